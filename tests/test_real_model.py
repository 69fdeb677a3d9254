"""tests/real_model.py with a small model in a folder: its questions, its checks, its learning run."""

import json
import math
import random
import re
import shutil
import sys
from pathlib import Path

import pytest

from data import UserError
from tests import gpu_check, real_model, started

MODEL = "assets/countdown"  # it answers none of these questions
SIZES = "--device cpu --steps 2 --prompts 4 --n 2 --problems 4 --eval-n 2"


# ---- the questions -----------------------------------------------------------------------------------------

def parts_of(asked: str) -> list[str]:
    """What is added up, number by number: 8 - 3 + 9 after one step, after two ..."""
    words = asked.split()
    return [" ".join(words[:end]) for end in range(3, len(words) + 1, 2)]


def assert_right(row: dict) -> int:
    """By Python's own arithmetic; the number of steps."""
    assert row["question"].startswith(real_model.EXAMPLES)
    question = row["question"].removeprefix(real_model.EXAMPLES)
    asked = re.fullmatch(r"What is (\d+(?: [+-] \d+)+)\?", question)[1]
    parts = parts_of(asked)
    assert row["answer"] == str(eval(asked))
    assert row["hint"] == f"{parts[0]} = {eval(parts[0])}"
    assert min(map(eval, parts)) >= 0
    numbers = [int(number) for number in re.findall(r"\d+", asked)]
    assert 1 <= min(numbers) and max(numbers) <= {1: 20, 2: 10}[len(parts)]
    return len(parts)


def test_a_question_has_the_right_answer_and_hint():
    rng = random.Random(1)
    steps = [assert_right(real_model.problem(rng)) for _ in range(2000)]
    assert 800 < steps.count(1) < 1200 and steps.count(1) + steps.count(2) == 2000
    for wrong in ({"answer": "77"}, {"hint": "1 + 1 = 3"}):
        with pytest.raises(AssertionError):
            assert_right({**real_model.problem(rng), **wrong})


def test_the_worked_examples_are_right():
    examples = re.findall(r"What is (.+)\?\n(.+), \\boxed{(\d+)}\n\n", real_model.EXAMPLES)
    assert len(examples) == 3
    for asked, equations, boxed in examples:
        assert int(boxed) == eval(asked)
        values = [eval(part) for part in parts_of(asked)]
        sides = [equation.split(" = ") for equation in equations.split(", ")]
        assert [int(right) for _, right in sides] == [eval(left) for left, _ in sides] == values


def test_no_question_comes_twice_and_they_are_always_the_same(tmp_path):
    texts = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        paths = real_model.write_problems(tmp_path / name, train=800, test=128)
        texts.append([path.read_text() for path in paths])
    assert texts[0] == texts[1]
    train, test = ([json.loads(line) for line in text.splitlines()] for text in texts[0])
    assert len(train) == 800 and len(test) == 128
    assert len({row["question"] for row in train + test}) == 928
    for rows in (train, test):
        assert {assert_right(row) for row in rows} == {1, 2}


# ---- the runs ----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished folder of a model, which is taken as it is."""
    return shutil.copytree(MODEL, tmp_path_factory.mktemp("real") / "model")


@pytest.fixture
def real(folder, tmp_path, monkeypatch):
    """`python tests/real_model.py --folder .. --out .. options`, without the imports of each process."""

    def run(script, *options):
        process = started.start(script, *options, err=tmp_path / "said")
        process.join()
        assert process.exitcode == 0, (tmp_path / "said").read_text()

    def main(*options):
        where = ["--folder", str(folder), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["real_model.py", *where, *options])
        real_model.main()

    monkeypatch.setattr(real_model, "run", run)
    return main


@pytest.mark.slow
def test_the_checks_pass_and_see_what_a_run_has_left(real, tmp_path, monkeypatch, capsys):
    real(*SIZES.split())
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][-3:]
    cells = [line.split(" | ") for line in table]
    assert [row[:2] for row in cells] == [["| grpo", "3"], ["| guide_grpo", "2"], ["| nsr", "2"]]
    assert float(cells[2][-1].removesuffix(" |")) < 0.01
    with pytest.raises(UserError, match="has a run, grpo: remove it"):
        real(*SIZES.split())

    # The same over files that a run must not leave.
    lines = real_model.metrics(tmp_path / "out/nsr")
    monkeypatch.setattr(real_model, "run", lambda *command: None)
    monkeypatch.setattr(real_model, "CHECKED", ())  # main takes what is there
    for changed, why in (
        ([lines[0]], "nsr: steps are missing"),
        ([lines[0], lines[1] | {"train/loss": math.nan}], r"nsr, step 2: \['train/loss'\] are no finite"),
        ([lines[0], lines[1] | {"engine/k3": 0.02}], "nsr: the log-probs of sampler and trainer are apart"),
    ):
        text = "".join(json.dumps(line) + "\n" for line in changed)
        (tmp_path / "out/nsr/metrics.jsonl").write_text(text)
        with pytest.raises(AssertionError, match=why):
            real(*SIZES.split())


@pytest.mark.slow
def test_the_learning_run_is_a_row_of_the_gpu_check(real, folder, monkeypatch, capsys):
    def timed(script, *options, shown):
        assert script == "tests/real_model.py" and options[:3] == ("--learn", "--folder", str(folder))
        out = Path(options[options.index("--out") + 1])
        real(*options)
        left.append(json.loads((out / "learn/eval_trained.json").read_text()))
        return 1.0

    left = []
    monkeypatch.setattr(gpu_check, "timed", timed)
    (figure,) = gpu_check.smollm2(gpu_check.TINY, "cpu", str(folder))
    assert figure.values["steps"] == len(figure.values["rewards"]) == 1
    rows = left[0]["problems"]
    mean = sum(row["c"] / row["n"] for row in rows) / len(rows)
    assert len(rows) == 4 and figure.values["after"] == pytest.approx(mean)
    assert "held-out pass@1 after: " in capsys.readouterr().out


def test_a_number_of_prompts_that_nsr_cannot_divide_is_refused(real):
    with pytest.raises(UserError, match="--prompts 6: give a multiple of 4"):
        real("--prompts", "6")


def test_a_script_that_fails_is_an_error():
    with pytest.raises(UserError, match=r"no_such\.py ended with code 2"):
        real_model.run("no_such.py")
