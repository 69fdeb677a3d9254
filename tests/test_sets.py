"""Several data sets in one run, with commas between: mathematics, choices and programs."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import data
import evaluate
import grpo
import guide_grpo
from data import UserError
from machinery.compare import parts, read_result
from machinery.names import labels, names_of
from machinery.run import Run

MODEL = "assets/countdown"
TESTS = {"type": "assert", "code": "assert twice(2) == 4\nassert twice(3) == 6"}
ROWS = {  # the same ids in every file
    "math": [{"id": str(i), "question": f"What is {i}+2?", "answer": str(i + 2), "hint": "Count."}
             for i in range(4)],
    "choice": [{"id": str(i), "question": f"Which is {i}?", "choices": ["0", "1", "2"], "answer": i}
               for i in range(3)],
    "code": [{"id": "0", "question": "Write twice(n).", "tests": TESTS,
              "solution": "def twice(n):\n    return 2 * n"}],
}


def write(folder: Path) -> list[str]:
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"{folder}/{name}.jsonl" for name in ROWS]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """(the run of two steps, its files)."""
    folder = tmp_path_factory.mktemp("sets")
    files = write(folder)
    args = guide_grpo.Args(model=MODEL, data=",".join(files), eval_data=", ".join(files), max_response=8,
                           steps=2, prompts=8, n=2, eval_problems=3, eval_n=2, eval_every=1, save_every=1,
                           device="cpu", run_dir=str(folder / "run"))
    return guide_grpo.main(args), files


@pytest.mark.slow
def test_three_domains_are_trained_on_and_shown_apart(mixed):
    run, _ = mixed
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in steps] == [1, 2] and "eval/pass@1" in steps[1]
    assert [m["guide/failed"] for m in steps] == [0.5, 0.5]  # of the 8 problems that there are 4 have hints
    trained = read_result(run / "eval_trained.json")
    assert parts(trained) == {"data": {"math": [0, 1, 2], "choice": [3, 4, 5], "code": [6]}}
    assert [row["domain"] for row in trained["problems"]] == ["math"] * 3 + ["choice"] * 3 + ["code"]
    assert [row["id"] for row in trained["problems"]][4:] == ["choice: 1", "choice: 2", "code: 0"]
    said = evaluate.report(run)
    for label, number in (("math", 3), ("choice", 3), ("code", 1), ("macro average", "")):
        assert re.search(rf"\| {label} +\| {number} +\| 0.000", said), said
    prompts = [json.loads(line)["prompt"] for line in (run / "rollouts.jsonl").read_text().splitlines()]
    asked = "put the letter of your answer within \\boxed"
    assert all((asked in prompt) == ("Which is" in prompt) for prompt in prompts)


@pytest.mark.slow
def test_a_mixed_run_goes_on_with_the_data_that_it_had(mixed, tmp_path):
    run, files = mixed
    half = tmp_path / "run"
    shutil.copytree(run, half)
    shutil.rmtree(half / "checkpoint/step-000002")
    args = {**json.loads((half / "args.json").read_text()), "resume": str(half)}
    args.pop("script")
    guide_grpo.main(guide_grpo.Args(**args))
    assert (half / "rollouts.jsonl").read_text() == (run / "rollouts.jsonl").read_text()
    trained, again = (read_result(folder / "eval_trained.json") for folder in (run, half))
    assert trained["problems"] == again["problems"]
    kept, prompts = json.loads((run / "data.json").read_text()), []
    for names in (",".join(files), ",".join(files[::-1]), files[0]):
        prompts.append([data.Prompt(problem, [], []) for problem in data.load(names)])
    assert kept["prompts"] == 8 + 7 and len(set(map(data.fingerprint, prompts))) == 3


def test_ids_stay_distinct_and_parts_and_limits_are_of_each(tmp_path):
    files = write(tmp_path)
    names = ",".join(files)
    problems = data.load(names)
    assert len({problem.id for problem in problems}) == len(problems) == 8
    assert [p.domain for p in problems] == ["math"] * 4 + ["choice"] * 3 + ["code"]
    assert [p.id for p in data.load(names, limit=1)] == [
        f"{Path(file).stem}: {data.load(file, limit=1)[0].id}" for file in files]
    assert [len(of) for of in data.load_sets(names, "train[:2]").values()] == [2, 2, 1]
    assert [p.id for p in data.load(files[0])] == ["0", "1", "2", "3"]  # one data set: as they are
    (tmp_path / "other").mkdir()
    shutil.copy(files[0], tmp_path / "other")
    assert list(data.load_sets(f"{files[0]},{tmp_path}/other/math.jsonl")) == [
        files[0], f"{tmp_path}/other/math.jsonl"]
    assert len(data.load("sea,countdown", "test")) == 400 + 256
    with pytest.raises(UserError, match="one data set twice"):
        data.load(f"{files[0]}, {files[0]}")
    with pytest.raises(UserError, match=r"no such file: nothing\.jsonl"):
        data.load(f"{files[0]},nothing.jsonl")


def test_names_with_commas_between(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_of("sea") == ["sea"] and names_of("a.jsonl,") == ["a.jsonl"]
    assert names_of("a.jsonl ,b/c:d") == ["a.jsonl", "b/c:d"]
    assert names_of("x" * 300 + ",y") == ["x" * 300, "y"]  # too long for a file
    Path("a,b.jsonl").touch()
    assert names_of("a,b.jsonl") == ["a,b.jsonl"]
    assert labels(["a/math.jsonl", "openai/gsm8k:main"]) == ["math", "gsm8k:main"]


def test_data_sets_of_different_templates_want_one(tmp_path):
    assert data.pick_template("auto", "sea,sea:v3") == "plain"
    assert data.pick_template("auto", "a.jsonl,openai/gsm8k:main") == "chat"
    assert data.pick_template("plain", "sea,countdown") == "plain"
    args = {"prompts": 2, "n": 2, "steps": 1, "device": "cpu", "run_dir": f"{tmp_path}/run"}
    with pytest.raises(UserError) as error:
        grpo.main(grpo.Args(data="sea,countdown", **args))
    said = "--data sea,countdown: these want different prompts (sea: plain, countdown: countdown): give one"
    assert said in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("names, given, held_out", [
    ("sea", "", "sea"),
    ("sea,{file},sea:v3", "", "sea,sea:v3"),
    ("{file}", "", ""),
    ("{file},sea", "countdown", "countdown"),
])
def test_what_is_held_out_of_several(names, given, held_out, tmp_path):
    file = write(tmp_path)[0]
    assert evaluate.held_out_name(names.format(file=file), given) == held_out


def test_defaults_and_folder_of_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = grpo.Args(data="mine.jsonl,sea,sea:v3")
    assert args.model.endswith("assets/sea") and args.max_response == 24
    assert grpo.Args(data="countdown,sea").max_response == 24
    assert grpo.Args(data="own.jsonl").template == "countdown"  # the stand-in's own
    assert grpo.Args(data="own.jsonl", model="m").template == "auto"
    assert grpo.Args(data="own.jsonl", template="plain").template == "plain"
    write(tmp_path)
    args = grpo.Args(model="org/model", data="math.jsonl,org/set", seed=3)
    name = Run.name(SimpleNamespace(args=args, script="grpo"))
    assert name.startswith("grpo-org_model-math+org_set-s3-")
