r"""The embedded task "at sea": its rows by a second reading of the question, its pools, its base model."""

import hashlib
import json
import random
import re
import sys
from itertools import product
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import data
import grpo
from assets import make_sea
from assets.make_countdown import make_tokenizer
from machinery import tasks
from machinery.run import launch
from machinery.sampler import Sampler
from verify import RIGHT, WRONG, Verifier

MODEL = "assets/sea"
POOLS = ["v1", "v2", "v3"]
# Every word's operation on land and at sea, written down apart from tasks.py.
MEANS = {"gets": "++", "wins": "++", "loses": "--", "spends": "--", "times": "**", "copies": "**",
         "folds": "+*", "docks": "+-", "casts": "-+", "spans": "-*"}
NAMES = {"+": "add", "-": "subtract", "*": "multiply"}


def read(question: str) -> tuple[bool, int, list[tuple[str, int]]]:
    """(at sea, start, [(word, amount)]) of a question, by its text alone."""
    place, start, told = re.fullmatch(r"(At sea|On land) Ana has (\d+), (.*)\. How many\?", question).groups()
    steps = [step.split(" ") for step in told.split(", ")]
    assert len(steps) == 3
    return place == "At sea", int(start), [(word, int(amount)) for word, amount in steps]


def outcome(start: int, operations, amounts) -> int:
    value = start
    for operation, amount in zip(operations, amounts):
        value = {"+": value + amount, "-": value - amount, "*": value * amount}[operation]
        assert 0 <= value <= 99  # every reading is legal
    return value


@pytest.fixture(scope="module")
def rows():
    """All rows by pool and split."""
    return {(pool, split): tasks.sea(split, pool) for pool in POOLS for split in ("train", "test")}


# ---- the task ----------------------------------------------------------------------------------------------

def test_pools_are_fixed_and_have_their_shares(rows):
    kinds = {"v1": {"easy": 0.7, "sea3": 0.3}, "v2": {"easy": 0.35, "land": 0.35, "sea3": 0.3},
             "v3": {"easy": 0.3, "land": 0.2, "sea1": 0.1, "sea2": 0.1, "sea3": 0.3}}
    for (pool, split), of in rows.items():
        assert len(of) == {"train": 2400, "test": 400}[split]
        found = [row["meta"]["kind"] for row in of]
        assert {kind: found.count(kind) / len(of) for kind in set(found)} == kinds[pool]
        assert len({row["id"] for row in of}) == len({row["question"] for row in of}) == len(of)
        assert all(row["id"].startswith(f"sea:{pool}/{row['meta']['kind']}/") for row in of)
    everything = json.dumps([rows[pool, split] for pool in POOLS for split in ("train", "test")])
    assert hashlib.sha256(everything.encode()).hexdigest()[:16] == "4fb1fb0137f4f9fe"


def test_no_pool_trains_on_a_held_out_problem_and_the_base_saw_none_of_either(rows):
    train, test = set(), set()
    for (_, split), of in rows.items():
        (train if split == "train" else test).update(row["question"] for row in of)
    assert not train & test
    assert make_sea.pools() == train | test
    rng = random.Random(0)
    corpus = [make_sea.trace(rng)[0].split("\n")[0] for _ in range(4000)]
    assert not set(corpus) & (train | test)
    # It would have hit them often: they are a part of all problems that are drawn again and again.
    drawn = [tasks.sea_problem("sea3", rng, set())["question"] for _ in range(500)]
    assert len(set(drawn) & (train | test)) > 10


def test_every_row_by_a_second_reading_of_its_question(rows):
    for of in rows.values():
        for row in of:
            at_sea, start, steps = read(row["question"])
            words, amounts = zip(*steps)
            odd = [word for word in words if MEANS[word][0] != MEANS[word][1]]
            assert row["meta"]["kind"] == ("easy" if not odd else f"sea{len(odd)}" if at_sea else "land")
            right = [MEANS[word][at_sea] for word in words]
            value = outcome(start, right, amounts)
            assert row["answer"] == str(value) and row["domain"] == "math"
            for reading in product(*[set(MEANS[word]) for word in words]):
                assert (outcome(start, reading, amounts) == value) == (list(reading) == right)
            told = [f"{word} means {NAMES[MEANS[word][at_sea]]}" for word in odd or words]
            assert row["hint"] == ", ".join(dict.fromkeys(told)) + "."
            *lines, box = row["solution"].split("\n")
            assert box == f"\\boxed{{{value}}}" and len(lines) == 3
            for line, operation, amount in zip(lines, right, amounts):
                assert line == f"{start}{operation}{amount}={outcome(start, operation, [amount])}"
                start = int(line.split("=")[1])


def test_solutions_verify_as_mathematics():
    problems = data.load("sea", "test")
    assert problems == data.load("sea:v2", "test") and len(data.load("sea:v1")) == 2400
    with Verifier(1) as verifier:
        assert set(verifier.score([p.solution for p in problems], problems)) == {RIGHT}
        other = [f"\\boxed{{{int(p.answer) + 1}}}" for p in problems]
        assert set(verifier.score(other, problems)) == {WRONG}
    with pytest.raises(data.UserError, match="sea:v3 has the splits train and test, not 'validation'"):
        data.load("sea:v3", "validation")


def test_prompts():
    (problem,) = [p for p in data.load("sea", "test") if p.id == "sea:v2/sea3/0"]
    assert data.pick_template("auto", "sea:v1") == data.pick_template("auto", "sea") == "plain"
    hinted = data.prompt_text(problem, "plain", hinted=True)
    assert hinted == f"{data.prompt_text(problem, 'plain')}\nHint: {problem.hint}\n"
    assert re.fullmatch(r"At sea Ana has .* How many\?\n\nHint: \w+ means \w+, .*, \w+ means \w+\.\n", hinted)


# ---- the base model ----------------------------------------------------------------------------------------

def test_tokenizer_loads_as_it_was_made_and_reads_any_text():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    plain = PreTrainedTokenizerFast.from_pretrained(MODEL)
    pieces = ["At sea Ana has ", "12", ",", " folds ", "4", ",", " gets ", "3", ". How many?", "\n", "\n",
              "Hint:", " folds ", "means multiply", ".", "\n", "12", "*", "4", "=", "48", "\n",
              "\\boxed{", "48", "}"]
    whole = "".join(pieces)
    assert [tokenizer.decode([id]) for id in tokenizer(whole).input_ids] == pieces
    made = make_tokenizer(make_sea.TOKENS)
    for text in (whole, "½ of 3.5, día!\t", "x^{2}\r\n", "12345 unfolds", "a" * 50, "  two  spaces", "🌊"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text and ids == plain(text).input_ids == made(text).input_ids
    chat = [{"role": "user", "content": "Q"}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert asked == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.tokenize(asked)[0] == "<|im_start|>" and tokenizer.eos_token == "<|endoftext|>"


def test_the_base_solves_half_and_hardly_ever_the_hard_ones():
    """pass@1 by kind, without and with a hint, and how often its steps are calculated rightly."""
    sampler = Sampler(MODEL, device="cpu")
    problems = []
    for kind in tasks.SEA_KINDS:
        of = [p for name in ("sea", "sea:v3") for p in data.load(name, "test") if p.meta["kind"] == kind]
        problems += of[:16]
    prompts, _ = data.encode(problems, sampler.tokenizer, "plain", 64)
    rates, steps = {}, []
    with Verifier(1) as verifier:
        for hinted in (False, True):
            contexts = [prompt.hinted if hinted else prompt.plain for prompt in prompts]
            groups = sampler.generate(contexts, 16, 1.0, 24, (0, int(hinted)))
            for problem, verdicts in zip(problems, verifier.score_groups(groups, problems)):
                rate = sum(verdict.correct for verdict in verdicts) / 16
                rates.setdefault((problem.meta["kind"], hinted), []).append(rate)
            for group in groups:
                for sample in group:
                    assert sample.finished
                    steps += re.findall(r"(\d+)([-+*])(\d+)=(\d+)\n", sample.text)
    assert len(steps) > 0.99 * 3 * 16 * 2 * len(problems)
    right = [eval(a + operation + b) == int(value) for a, operation, b, value in steps]
    means = {key: sum(of) / len(of) for key, of in rates.items()}
    print(means, sum(right) / len(right))
    assert sum(right) / len(right) > 0.985
    assert 0.55 < means["easy", False] < 0.8 and 0.6 < means["land", False] < 0.9
    assert means["sea1", False] < 0.25 and means["sea2", False] < 0.08 and means["sea3", False] < 0.03
    for kind in tasks.SEA_KINDS:
        assert 0.4 < means[kind, True] < 0.99


# ---- by default --------------------------------------------------------------------------------------------

def test_data_picks_model_and_length_of_a_response(monkeypatch):
    countdown, sea = (str(Path(grpo.__file__).parent / "assets" / name) for name in ("countdown", "sea"))
    seen = []
    for options in (["--data", "sea"], ["--data", "sea:v1", "--model", "M", "--max-response", "9"], [],
                    ["--data", "countdown"], ["--data", "mine.jsonl"], ["--max-response", "99"],
                    ["--data", "mine.jsonl", "--model", "M"]):
        monkeypatch.setattr(sys, "argv", ["grpo.py", *options])
        launch(lambda args: seen.append((args.model, args.max_response)), grpo.Args)
    assert seen == [(sea, 24), ("M", 9), (sea, 24), (countdown, 16), (countdown, 16), (sea, 99), ("M", 1024)]


def test_a_run_without_data_is_at_sea_and_ends_with_what_became_of_each_kind(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    options = ["--steps=1", "--prompts=8", "--n=4", "--eval-problems=8", "--eval-n=2", "--device=cpu",
               f"--run-dir={run_dir}"]
    for command in (options, [f"--resume={run_dir}", "--steps=2"]):
        monkeypatch.setattr(sys, "argv", ["grpo.py", *command])
        launch(grpo.main, grpo.Args)
        said = capsys.readouterr().out.splitlines()
        assert said[1] == "2400 problems, 2400 with a hint; 8 held-out problems of sea"
        of_kind = [line.split()[1] for line in said if re.match(r"\| (easy|land|sea3) ", line)]
        assert of_kind == ["easy", "land", "sea3"]
    evaluated = json.loads((run_dir / "eval_trained.json").read_text())["problems"]
    assert [row["kind"] for row in evaluated] == [row["id"].split("/")[1] for row in evaluated]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0.2 < line["rollout/reward"] < 0.9 and line["rollout/truncated"] == 0 for line in lines)
    monkeypatch.setattr(sys, "argv", ["grpo.py", f"--resume={run_dir}", "--data=countdown"])
    with pytest.raises(SystemExit, match="--data was 'sea'"):
        launch(grpo.main, grpo.Args)
