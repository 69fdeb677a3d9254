"""Every schema `load` accepts, prompts to the letter, boxes, hints, and a clear message for bad input."""

import copy
import csv
import datetime
import doctest
import gzip
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest

import data
import machinery.sampler
import verify
from data import Problem, Prompt, UserError, draw, encode, last_box, load, prompt_text, render, solution_hint
from machinery import answers, hints, names, reading, tasks

ROOT = Path(data.__file__).parent
SHARED = Path(__file__).parent.parent.parent / "shared/data"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Problem: What is 2+3?"}]
BEFORE = {"earlier_messages": CHAT[:1]}


def write(path: Path, rows) -> str:
    """A file of the type that its name says, and its name."""
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = "".join(json.dumps(row) + "\n\n" for row in rows)
        if ".json" in (path.suffix, path.with_suffix("").suffix):
            text = json.dumps(rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


# ---- schemas -------------------------------------------------------------------------------------

SCHEMAS = {
    "plain": (
        {"question": "What is 2+3?", "answer": "5", "hint": "Count on from 2."},
        Problem("rows/0", "What is 2+3?", "5", hint="Count on from 2."),
    ),
    "no hint": ({"question": "What is 2+3?", "gold": "5"}, Problem("rows/0", "What is 2+3?", "5")),
    "gsm8k": (  # three sentences: the hint is the first; <<...>> are a calculator's, for no one to learn
        {"question": "How many?",
         "answer": "He has 2*3=<<2*3=6>>6 boxes. He adds some.\nThat makes 1,250.\n#### 1,250"},
        Problem("rows/0", "How many?", "1250", hint="He has 2*3=6 boxes.",
                solution="He has 2*3=6 boxes. He adds some.\nThat makes 1,250."),
    ),
    "math": (  # a box in the first sentence leaves no hint
        {"problem": "Solve.", "level": "Level 1",
         "solution": r"Is it \boxed{2}? No. So $x = \boxed{\frac{1}{2}}$."},
        Problem("rows/0", "Solve.", r"\frac{1}{2}",
                solution=r"Is it \boxed{2}? No. So $x = \boxed{\frac{1}{2}}$."),
    ),
    "aime int": ({"id": 60, "problem": "Walk.", "answer": 27}, Problem("60", "Walk.", "27")),
    "aime float": ({"id": 60, "problem": "Walk.", "answer": 27.0}, Problem("60", "Walk.", "27")),
    "aime zeros": ({"id": 60, "problem": "Walk.", "answer": "027"}, Problem("60", "Walk.", "027")),
    "zero": ({"problem": "Walk.", "answer": 0}, Problem("rows/0", "Walk.", "0")),
    "verl string": (
        {"data_source": "x", "prompt": CHAT, "reward_model": {"ground_truth": "5", "style": "rule"}},
        Problem("rows/0", "What is 2+3?", "5", meta=BEFORE),
    ),
    "verl dict": (  # the damaged target of a real MATH row
        {"prompt": CHAT, "reward_model": {"ground_truth": {
            "question": "How big?", "solution": r"It is \boxed{15\mbox{ cm}^2}.", "target": "15^2"}}},
        Problem("rows/0", "How big?", r"15\mbox{ cm}^2", solution=r"It is \boxed{15\mbox{ cm}^2}.",
                meta=BEFORE),
    ),
    "verl dict without solution": (
        {"prompt": CHAT, "reward_model": {"ground_truth": {"question": "How big?", "target": "70"}}},
        Problem("rows/0", "How big?", "70", meta=BEFORE),
    ),
    "guide": (
        {"prompt": CHAT, "hint": [CHAT[0], {"role": "user", "content": "Problem: What is 2+3?\nCount on."}],
         "cot": "Five.", "ability": "math", "reward_model": {"ground_truth": "5"}},
        Problem("rows/0", "What is 2+3?", "5", hint="What is 2+3?\nCount on.", solution="Five.",
                meta={"hinted_question": "What is 2+3?\nCount on.", **BEFORE}),
    ),
    "olympiadbench": (
        {"id": 1606, "question": "Which x?", "solution": ["Square it. Take roots. Done."],
         "final_answer": ["2", "-2"], "error": "1e-2", "unit": None},
        Problem("1606", "Which x?", "2, -2", hint="Square it.", solution="Square it. Take roots. Done.",
                meta={"abs_tol": "1e-2"}),
    ),
    "mmlu index": (
        {"question": "Which?", "type": "biology", "choices": ["red", "blue", "green"], "answer": 1},
        Problem("rows/0", "Which?\nA. red\nB. blue\nC. green", "B", "choice"),
    ),
    "mmlu letter": (
        {"question": "Which?", "choices": ["red", "blue"], "answer": "A"},
        Problem("rows/0", "Which?\nA. red\nB. blue", "A", "choice"),
    ),
    "scibench": (
        {"problemid": "e1.1", "problem_text": "Find p.", "answer_number": "50.7", "unit": r"$\mathrm{atm}$"},
        Problem("e1.1", r"Find p. Answer in $\mathrm{atm}$.", "50.7",
                meta={"rel_tol": 0.05, "unit": r"$\mathrm{atm}$"}),
    ),
    "openmathinstruct": ({"problem": "Walk.", "expected_answer": "27"}, Problem("rows/0", "Walk.", "27")),
    "input": ({"input": "Walk.", "answer": "27"}, Problem("rows/0", "Walk.", "27")),
    "alpaca": (
        {"instruction": "Add.", "input": "2 and 3", "answer": "5"},
        Problem("rows/0", "Add.\n\n2 and 3", "5"),
    ),
    "alpaca without input": (
        {"instruction": "Add 2 and 3.", "input": "", "answer": "5"},
        Problem("rows/0", "Add 2 and 3.", "5"),
    ),
    "sharegpt": (
        {"conversations": [{"from": "system", "value": "Be brief."},
                           {"from": "human", "value": "What is 2+3?"},
                           {"from": "gpt", "value": r"Count on. Then \boxed{5}."}]},
        Problem("rows/0", "What is 2+3?", "5", hint="Count on.", solution=r"Count on. Then \boxed{5}.",
                meta=BEFORE),
    ),
    "messages, whose reply is a solution": (
        {"messages": [{"role": "user", "content": "What is 2+3?"},
                      {"role": "assistant", "content": "Count on.\n#### 5"}]},
        Problem("rows/0", "What is 2+3?", "5", solution="Count on."),
    ),
    "problem and messages": (  # OpenR1-Math has both: the text is the question, the row's solution stays
        {"problem": "What is 2+3?", "answer": "5", "solution": "Five.", "messages": CHAT},
        Problem("rows/0", "What is 2+3?", "5", solution="Five."),
    ),
    "parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "What is"},
                                                 {"type": "text", "text": "2+3?"}]}], "answer": "5"},
        Problem("rows/0", "What is\n2+3?", "5"),
    ),
    "chat as text": (  # it went through .csv
        {"prompt": str(CHAT), "answer": "5"},
        Problem("rows/0", "Problem: What is 2+3?", "5", meta=BEFORE),
    ),
    "a question that is a list": (  # of no messages: text
        {"question": '[{"a": 1}] is which type?', "answer": "list"},
        Problem("rows/0", '[{"a": 1}] is which type?', "list"),
    ),
    "gsm8k's mark in the solution": (
        {"question": "How many?", "solution": "Six. Then more.\n#### 1,250"},
        Problem("rows/0", "How many?", "1250", hint="Six.", solution="Six. Then more."),
    ),
    "a heading is no answer": (
        {"question": "How many?", "solution": "#### Step 1\nAdd. Then \\boxed{5}.", "answer": "5"},
        Problem("rows/0", "How many?", "5", hint="#### Step 1 Add.",
                solution="#### Step 1\nAdd. Then \\boxed{5}."),
    ),
    "no choices": ({"question": "Q", "choices": [], "answer": "5"}, Problem("rows/0", "Q", "5")),
    "eleven choices": (
        {"question": "Q", "choices": list("abcdefghijk"), "answer": 10},
        Problem("rows/0", "Q\n" + "\n".join(f"{c.upper()}. {c}" for c in "abcdefghijk"), "K", "choice"),
    ),
    "choices of a problem": (
        {"problem": "2+3?", "choices": ["4", "5"], "answer": 1},
        Problem("rows/0", "2+3?\nA. 4\nB. 5", "B", "choice"),
    ),
    "options of a prompt": (
        {"prompt": "2+3?", "options": ["4", "5"], "gold": "B"},
        Problem("rows/0", "2+3?\nA. 4\nB. 5", "B", "choice"),
    ),
    "options of a chat": (
        {"prompt": CHAT, "options": ["4", "5"], "answer": 0},
        Problem("rows/0", "Problem: What is 2+3?\nA. 4\nB. 5", "A", "choice", meta=BEFORE),
    ),
    "points": (
        {"problem": "Where?", "answer": [[1, 2], [2, 1]]},
        Problem("rows/0", "Where?", "(1, 2), (2, 1)"),
    ),
    "a point": ({"problem": "Where?", "answer": [[1, 2.5]]}, Problem("rows/0", "Where?", "(1, 2.5)")),
    "points as text": (
        {"problem": "Where?", "answer": "[['1', '2'], ['2', '1']]"},
        Problem("rows/0", "Where?", "(1, 2), (2, 1)"),
    ),
    "a heading last": (
        {"question": "How many?", "solution": "#### Step 1\nSo \\boxed{5}\n#### Conclusion"},
        Problem("rows/0", "How many?", "5", solution="#### Step 1\nSo \\boxed{5}\n#### Conclusion"),
    ),
    "a heading last, in the answer": (
        {"question": "How many?", "answer": "So \\boxed{5}.\n#### Note"}, Problem("rows/0", "How many?", "5"),
    ),
    "box and mark": (
        {"question": "How many?", "answer": "So \\boxed{5}.\n#### 5"},
        Problem("rows/0", "How many?", "5", solution="So \\boxed{5}."),
    ),
    "a tolerance that is a number": (
        {"question": "Q", "answer": "5", "error": 0.01},
        Problem("rows/0", "Q", "5", meta={"abs_tol": "0.01"}),
    ),
    "no tolerance": ({"question": "Q", "answer": "5", "error": "nan"}, Problem("rows/0", "Q", "5")),
    "missing as text": (
        {"question": "Q", "answer": "nan", "gold": "None", "target": "5", "hint": "nan", "solution": "N/A"},
        Problem("rows/0", "Q", "5"),
    ),
    "missing as text, and a solution": (
        {"question": "Q", "answer": "null", "hint": "None", "solution": "Six. Then more.\n#### 7"},
        Problem("rows/0", "Q", "7", hint="Six.", solution="Six. Then more."),
    ),
    "null as the name of an option": (
        {"question": "Q", "choices": ["null", "None"], "answer": 1},
        Problem("rows/0", "Q\nA. null\nB. None", "B", "choice"),
    ),
    "two hints": (
        {"question": "Q", "answer": "5", "hint": ["Look.", "Count."]},
        Problem("rows/0", "Q", "5", hint="Look.\nCount."),
    ),
    "two hints as text": (
        {"question": "Q", "answer": "5", "hint": "['Look.', 'Count.']"},
        Problem("rows/0", "Q", "5", hint="Look.\nCount."),
    ),
    "no hint in a list": (
        {"question": "Q", "answer": "5", "hint": "['nan', None]"},
        Problem("rows/0", "Q", "5"),
    ),
    "an empty column before": (
        {"question": "", "problem": "Q", "answer": None, "gold": float("nan"), "target": "5"},
        Problem("rows/0", "Q", "5"),
    ),
    "upper case": (
        {"Question": "What is 2+3?", "ANSWER": "5", "Hint": None},
        Problem("rows/0", "What is 2+3?", "5"),
    ),
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_schema(schema, tmp_path):
    row, expected = SCHEMAS[schema]
    assert load(write(tmp_path / "rows.jsonl", [row])) == [expected]


@pytest.mark.parametrize("answer, read", [
    ("['34']", "34"), ('["34"]', "34"), ("['2', '-2']", "2, -2"), ("['2' '-2']", "2, -2"),  # numpy's
    ("['34'\n '5']", "34, 5"), ('["\u00bd"]', "½"), ('["\\u00bd"]', "½"),
    (r"['\frac{1}{2}']", r"\frac{1}{2}"), (r'["\\frac{1}{2}"]', r"\frac{1}{2}"), (r"['5\%']", r"5\%"),
    ("[1, 2]", "[1, 2]"), ("[0, 1)", "[0, 1)"), ("['a'", "['a'"),  # mathematics, and what is no list
    ("b'34'", "34"), ("[b'34']", "34"), ("34\u200b", "34"), ("\ufeff34", "34"), ("1\u00ad234", "1234"),
    ("x &lt; 3", "x < 3"), ("x&#60;3", "x<3"), ("[&#39;34&#39;]", "34"), ("&nbsp;34&nbsp;", "34"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    (r"a &lt b", r"a &lt b"),  # & and l and t, in a matrix
])
def test_damage_in_answers(answer, read, tmp_path):
    question = "Is a &lt; b in b'34' of ['34']\u200b?"  # in a question it may be what is asked
    (problem,) = load(write(tmp_path / "rows.jsonl", [{"question": question, "answer": answer}]))
    assert (problem.question, problem.answer) == (question, read)


def test_bytes_are_utf8(tmp_path):
    rows = [{"question": "Wie groß?".encode(), "answer": "½".encode(), "hint": "Größer.".encode()}]
    (problem,) = load(write(tmp_path / "rows.parquet", rows))
    assert problem == Problem("rows/0", "Wie groß?", "½", hint="Größer.")


def test_code_schema(tmp_path):
    row = {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "entry_point": "f",
           "canonical_solution": "    return x + 1\n",
           "test": "def check(candidate):\n    assert candidate(1) == 2\n"}
    (problem,) = load(write(tmp_path / "rows.jsonl", [row]))
    assert (problem.id, problem.domain, problem.meta["tests"]["type"]) == ("HumanEval/0", "code", "assert")
    assert problem.question.endswith("\n\ndef f(x):\n")
    assert problem.answer == problem.solution == "def f(x):\n    return x + 1\n"
    assert problem.meta["tests"]["entry_point"] == "f" and problem.meta["tests"]["setup"] == "def f(x):\n"
    exec(problem.answer + problem.meta["tests"]["code"], {})
    with pytest.raises(AssertionError):  # the tests are called, not only defined
        exec("def f(x):\n    return x\n" + problem.meta["tests"]["code"], {})
    row["test"] += "check(f)\n"
    (problem,) = load(write(tmp_path / "called.jsonl", [row]))
    exec(problem.answer + problem.meta["tests"]["code"], {})


@pytest.mark.parametrize("suffix", reading.FILE_TYPES)
def test_file_types(suffix, tmp_path):
    rows = [{"question": 'Is "a, b"\na ½?', "answer": "yes", "hint": "Look."},
            {"question": "Q", "answer": "1", "hint": ""}]
    name = write(tmp_path / f"rows{suffix}", rows)
    first = Problem("rows/0", rows[0]["question"], "yes", hint="Look.")
    assert load(name) == [first, Problem("rows/1", "Q", "1")]
    assert load(name, split="test") == load(name, split="train")  # a file is one split


@pytest.mark.parametrize("name", ["rows.JSONL", "rows.Json", "rows.CSV", "rows.Parquet", "rows.jsonl.GZ"])
def test_suffixes_in_any_case(name, tmp_path):
    write(tmp_path / name.lower(), [GOOD])
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert [p.question for p in load(str(tmp_path / name))] == ["Q"]


@pytest.mark.parametrize("part", [
    "[:2]", "[3:]", "[-2:]", "[1:3]", "[:15%]", "[25%:]", "[-10%:]", "[10%:50%]", "[:99]", "[:]",
])
def test_parts_of_a_file_are_those_of_datasets(part, tmp_path):
    rows = [{"question": "Q", "answer": str(i)} for i in range(10)]
    name = write(tmp_path / "rows.jsonl", rows)
    expected = datasets.ReadInstruction.from_spec(f"train{part}").to_absolute({"train": 10})[0]
    ids = [f"rows/{i}" for i in range(expected.from_, expected.to)]  # the numbers of the whole file
    assert [p.id for p in load(name, f"train{part}")] == ids
    assert [p.id for p in load(name, f"test{part}")] == ids  # a file is one split
    assert load("countdown", f"test{part}") == load("countdown", "test")[slice_of(part, 256)]


def slice_of(part, count):
    found = datasets.ReadInstruction.from_spec(f"test{part}").to_absolute({"test": count})[0]
    return slice(found.from_, found.to)


@pytest.mark.parametrize("split, said", [
    ("train[5]", r"train\[:100\]"), ("train[a:b]", r"train\[:100\]"), ("train[:2", r"train\[:100\]"),
    ("train[3:3]", "no rows"),
])
def test_what_is_no_part_of_a_file(split, said, tmp_path):
    with pytest.raises(UserError, match=said):
        load(write(tmp_path / "rows.jsonl", [GOOD] * 9), split)


def test_duplicate_ids_become_unique(tmp_path):
    rows = [{"id": id, "question": "Q", "answer": "1"} for id in ("a", "a", "a#1", "b")]
    assert len({p.id for p in load(write(tmp_path / "rows.jsonl", rows))}) == 4


def test_limit(tmp_path):
    name = write(tmp_path / "rows.jsonl", [{"question": "Q", "answer": str(i)} for i in range(50)])
    picks = [[int(p.answer) for p in load(name, limit=10, seed=seed)] for seed in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]
    for pick in picks:
        assert len(pick) == 10 and pick == sorted(set(pick)) and pick != list(range(10))
    assert len(load(name, limit=51)) == 50


@pytest.mark.parametrize("column", ["Algebra", ["Mathematics -> Algebra"]])
def test_a_domain_column_of_another_meaning(column, tmp_path):
    # Omni-MATH has one: its problems are mathematics, and there is no verifier named "Algebra".
    (problem,) = load(write(tmp_path / "rows.jsonl", [{"problem": "Q", "answer": "1", "domain": column}]))
    assert problem.domain == "math"


@pytest.mark.parametrize("name, path, config", [
    ("openai/gsm8k:main", "openai/gsm8k", "main"), ("a/b", "a/b", None),
])
def test_hub(name, path, config, monkeypatch):
    def load_dataset(path, name=None, split=None):
        calls.append((path, name, split))
        return datasets.Dataset.from_list([{"question": "Q", "answer": "Two.\n#### 2"}])

    calls = []
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [p.answer for p in load(name, "test")] == ["2"]
    assert calls == [(path, config, "test")]


def test_hub_failure_is_one_line(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nTraceback: many lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    said = r"'openai/gsm8k:main'.*'validation'.*Couldn't reach the Hub.*built-in tasks are countdown"
    with pytest.raises(UserError, match=said) as error:
        load("openai/gsm8k:main", "validation")
    assert "\n" not in str(error.value)


# ---- bad input -----------------------------------------------------------------------------------

GOOD = {"question": "Q", "answer": "1"}


@pytest.mark.parametrize("name, content, said", [
    ("nope.jsonl", None, ["no such file"]),
    ("rows.txt", b"Q", [".jsonl", ".json", ".parquet", ".csv"]),
    ("rows.jsonl", b'{"question": "Q", "answer": "1"}\n\n{"question": \n', ["line 3", "not JSON"]),
    ("rows.jsonl", b"\xff\xfe", ["cannot read"]),
    ("rows.json", b'[{"question": "Q"', ["cannot read"]),
    ("rows.parquet", b"garbage", ["cannot read"]),
    ("rows.jsonl", b"", ["no rows"]),
    ("rows.json", b"[]", ["no rows"]),
    ("rows.csv", b"question,answer\n", ["no rows"]),
    ("rows.csv", b"", ["no rows"]),
    ("rows.csv", b"question,answer\nWhat is 2,3,5\n", ["columns: 2, cells: 3"]),
    ("rows.csv", b"question,answer,hint\nWhat is 2,3\n", ["columns: 3, cells: 2"]),
    ("rows.csv", b'question,answer\nWhat is 2,"3\nQ,1\n', ["cannot read", "line 3"]),  # a quote is left open
    ("rows.jsonl", b"[" * 100_000, ["line 1", "not JSON"]),
    ("rows.json", b"[" * 100_000, ["cannot read"]),
    ("rows.jsonl", [{"foo": 1, "bar": 2}],
     ["'foo'", "'bar'", "question", "answer", "hint", "reward_model", "choices"]),
])
def test_bad_file(name, content, said, tmp_path):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        load(str(tmp_path / name))
    assert all(part in str(error.value) for part in [name, *said]), error.value


def test_folder(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        load(str(tmp_path))


@pytest.mark.parametrize("index", [0, 3])
@pytest.mark.parametrize("answer", ["", " ", None])
def test_one_percent_of_the_rows_may_lack_an_answer(index, answer, tmp_path, capsys):
    rows = [GOOD] * 100
    rows[index] = {"question": "Q", "answer": answer}
    ids = [p.id for p in load(write(tmp_path / "rows.jsonl", rows))]
    assert ids == [f"rows/{i}" for i in range(100) if i != index]
    said = capsys.readouterr().err
    assert f"rows {index})" in said and "1 of 100" in said and "left out" in said
    with pytest.raises(UserError, match=f"1 of 99 rows.*{index}"):  # just above one percent
        load(write(tmp_path / "rows.jsonl", rows[:99]))


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}},
                                     {"type": "text", "text": "What is it?"}]}


@pytest.mark.parametrize("row, why", [
    (5, "no columns"),
    (["Q", "1"], "no columns"),
    ({"foo": "Q", "answer": "1"}, "no question"),
    ({"question": "Q"}, "no answer"),
    ({"question": "Q", "answer": {"text": ["1"]}}, "an object, {'text'}, where text is expected"),
    ({"question": {"text": "Q"}, "answer": "1"}, "an object, {'text'}"),
    ({"question": ["Q"], "answer": "1"}, "a list that is no chat"),
    ({"question": "Q", "answer": "x" * 301}, "an answer of more than 300 characters"),
    ({"question": "Q \ud800", "answer": "1"}, "half of a surrogate pair"),
    ({"question": "Q", "answer": "1", "hint": "\ud800"}, "half of a surrogate pair"),
    ({"prompt": CHAT[1:], "reward_model": "rule"}, "no answer"),
    ({"prompt": CHAT[1:], "reward_model": {"style": "rule"}}, "no answer"),
    ({"prompt": [IMAGE], "answer": "1"}, "a part of type 'image_url', and only text can be read"),
    ({"prompt": [{"role": "user", "content": [{"type": "audio", "text": None}]}], "answer": "1"}, "'audio'"),
    ({"prompt": CHAT[1:], "images": ["x.png"], "answer": "1"}, "something in its column 'images'"),
    ({"messages": CHAT[:1], "answer": "1"}, "a chat without a user's message"),
    ({"messages": [*CHAT, {"role": "observation", "content": "x"}], "answer": "1"}, "the role 'observation'"),
    ({"messages": [*CHAT, {"role": "user", "content": None}], "answer": "1"}, "a message without text"),
    ({"prompt": "def f():", "entry_point": "f", "test": 7}, "TypeError"),
    ({"prompt": 7, "entry_point": "f", "test": "x", "canonical_solution": None}, "no answer"),
    ({"question": "Q", "choices": "['a', 'b']", "answer": "A"}, "choices that are no list"),
    ({"problem": "Q", "options": {"A": "a", "B": "b"}, "answer": 1}, "choices that are no list"),
    ({"problem": "Q", "choices": ["4", "5"], "answer": 5}, "no answer that can be read"),
    ({"question": "Q", "answer": "1", "error": "0.1,0.2"}, "an error of '0.1,0.2', where a number is"),
    ({"question": "Q", "answer": "1", "error": "5%"}, "an error of '5%'"),
    ({"question": "Q", "answer": "1", "error": "timeout"}, "an error of 'timeout'"),
    ({"question": "Q", "answer": "1", "error": -1}, "an error of '-1'"),
    ({"question": "Q", "answer": "None"}, "no answer that can be read"),
    ({"question": "Q", "answer": "N/A"}, "no answer that can be read"),
    ({"question": "Q", "answer": ["NaN"]}, "no answer that can be read"),
    ({"question": "Q", "answer": "null", "domain": "math", "meta": {}}, "no answer that can be read"),
    ({"prompt": CHAT[1:], "reward_model": {"ground_truth": "nan"}}, "no answer that can be read"),
    ({"problem_text": "Q", "answer_number": "nan"}, "no answer that can be read"),
    ({"question": "nan", "answer": "1"}, "no question"),
    ({"question": "Q", "answer": float("inf")}, "inf, where a finite number or text is expected"),
    ({"question": "Q", "answer": [1, float("nan")]}, "nan, where a finite number or text is expected"),
    ({"question": "Q", "choices": ["a", "b"], "answer": "AB"}, "no answer that can be read"),
    ({"question": "Q", "answer": 1, "domain": "math", "meta": {}}, "AttributeError"),
])
def test_a_bad_row_is_left_out_by_its_number_and_reason(row, why, tmp_path, capsys):
    rows = [GOOD] * 200
    rows[7] = row
    assert len(load(write(tmp_path / "rows.jsonl", rows))) == 199
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}/rows.jsonl: 1 of 200 rows cannot be used: ") and said.count("\n") == 1
    assert why in said and said.endswith(" (rows 7): left out\n")
    with pytest.raises(UserError, match=r"2 of 150 rows.* \(rows 7, 8\).*: mend or remove them"):
        load(write(tmp_path / "rows.jsonl", [*rows[:7], row, row, *rows[9:150]]))


def test_a_row_with_a_comma_too_many_is_left_out(tmp_path, capsys):
    lines = ["question,answer", *["Q,1"] * 99, "", "What is 2,3,5"]  # an empty line is no row
    assert len(load(write(tmp_path / "rows.csv", "\n".join(lines).encode()))) == 99
    assert 'columns: 2, cells: 3 (commas in a cell need quotes: "2,3,5") (rows 99)' in capsys.readouterr().err


def test_a_number_too_large_for_a_float_is_left_out(tmp_path):
    text = '{"question": "Q", "answer": 1}\n' * 99 + '{"question": "Q", "answer": 1e400}\n'
    assert {p.answer for p in load(write(tmp_path / "rows.jsonl", text.encode()))} == {"1"}


@pytest.mark.parametrize("name", ["sea:v4", "countdown:main"])
def test_a_mistyped_task_is_not_looked_up(name):
    with pytest.raises(UserError, match=f"no task '{name}': the built-in tasks are countdown, sea:v1"):
        load(name)


def test_reasons_are_told_apart(tmp_path, capsys):
    rows = [GOOD] * 1000
    rows[3] = rows[5] = {"question": "Q"}
    rows[4] = 5
    load(write(tmp_path / "rows.jsonl", rows))
    said = capsys.readouterr().err
    assert "3 of 1000 rows cannot be used: no answer that can be read (rows 3, 5); " in said
    assert said.endswith("; no columns (rows 4): left out\n")


def test_what_a_verifier_of_ones_own_gets(tmp_path):
    """Every column as it is; an answer may be missing, long, or an object."""
    rows = [
        {"question": "Q", "Level": 3, "tags": ["a"], "unit": "cm", "note": None},
        {"question": "Q", "answer": "x" * 301},
        {"question": "Q", "answer": {"low": 1, "high": 2}},
        {"question": "Q", "answer": 5, "half": "\ud800"},
        {"prompt": CHAT, "reward_model": {"ground_truth": {"cases": [1]}, "style": "rule"}},
        {"question": "Q", "domain": "math", "meta": {"x": 1}, "y": 2, "hinted_question": "?"},
    ]
    name = write(tmp_path / "rows.jsonl", rows)
    problems = load(name, own_verifier=True)
    assert [p.answer for p in problems] == ["", "x" * 301, "", "5", "", ""]
    assert [p.meta for p in problems] == [
        {"Level": 3, "tags": ["a"], "unit": "cm", "note": None},
        {},
        {"answer": {"low": 1, "high": 2}},
        {"answer": 5},  # half a character reaches no worker
        {"prompt": CHAT, "reward_model": {"ground_truth": {"cases": [1]}, "style": "rule"}, **BEFORE},
        {"x": 1, "y": 2},
    ]
    for p in problems:
        assert Problem(**json.loads(json.dumps(asdict(p)))) == p  # the way to a worker
    with pytest.raises(UserError, match="5 of 6 rows"):
        load(name)
    row = {"question": "Q", "answer": "None", "error": "timeout"}
    (p,) = load(write(tmp_path / "words.jsonl", [row]), own_verifier=True)
    assert p.meta == {"answer": "None", "error": "timeout"}  # what they mean is for the verifier to say
    row = {"question": "Q", "answer": "5", "unit": "cm", "rel_tol": 1}
    (p,) = load(write(tmp_path / "known.jsonl", [row]))
    assert p.meta == {}  # what the built-in verifiers read there comes from their readers alone


def test_columns_that_no_worker_can_take_stay_behind(tmp_path):
    row = {"question": "Q", "picture": b"\xff\xfe", "day": datetime.date(2026, 1, 2), "level": 3}
    (problem,) = load(write(tmp_path / "rows.parquet", [row]), own_verifier=True)
    assert problem.meta == {"level": 3}


@pytest.mark.parametrize("row", [
    5,
    {"question": "Q", "choices": ["a", "b"], "answer": 2},  # there is no third choice
    {"question": "Q", "choices": ["a", "b"], "answer": -1},  # how some hub sets mark a hidden answer
    {"question": "Q", "choices": "['a', 'b']", "answer": "A"},  # a list that went through .csv
    {"prompt": "def f(x):\n", "entry_point": "f", "test": "def check(c): pass"},
])
def test_bad_row_is_a_user_error(row, tmp_path):
    with pytest.raises(UserError):
        load(write(tmp_path / "rows.jsonl", [GOOD, row]))


# ---- Countdown -----------------------------------------------------------------------------------

def test_countdown_splits_are_disjoint():
    train, test = load("countdown", "train"), load("countdown", "test")
    keys = [(*sorted(p.meta["numbers"]), p.meta["target"]) for p in train + test]
    assert len(set(keys)) == len(keys) == len({p.id for p in train + test})
    assert len(test) == 256 and len(train) > 1000
    with pytest.raises(UserError, match="train and test"):
        load("countdown", "validation")


def test_countdown_solutions_verify_and_hints_are_their_first_move():
    for p in load("countdown", "train") + load("countdown", "test"):
        assert p.question == "Use {}, {}, {} to make {}.".format(*p.meta["numbers"], p.meta["target"])
        assert p.answer == str(p.meta["target"])
        assert verify.countdown_verdict(p.solution, p) == verify.RIGHT
        move, hint = p.solution.split("=")[0], p.hint
        assert hint == f"start with {move}." and re.fullmatch(r"\d+[-+*/]\d+", move)


@pytest.mark.parametrize("module", [data, tasks, answers, reading, names])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


# ---- prompts -------------------------------------------------------------------------------------

ADD = Problem("p", "What is 2+3?", "5", hint="Count on from 2.")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
SYSTEM, USER, END = "<|im_start|>system\n", "<|im_start|>user\n", "<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant\n"


class FakeTokenizer:
    """One token per character, BOS = 1, and a chat template that nobody could take for ChatML."""

    def __init__(self, chat_template="fake", loses=""):
        self.chat_template, self.loses = chat_template, loses

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, enable_thinking, **_):
        assert (tokenize, add_generation_prompt, enable_thinking) == (False, True, False)
        return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"

    def __call__(self, text, add_special_tokens=True, verbose=True):
        letters = [ord(c) for c in text if c not in self.loses]
        return SimpleNamespace(input_ids=[1] * add_special_tokens + letters)

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.mark.parametrize("template, own, plain, hinted", [
    ("countdown", True, "What is 2+3?\n", "What is 2+3? Hint: Count on from 2.\n"),
    ("plain", True, "What is 2+3?\n", "What is 2+3?\n\nHint: Count on from 2.\n"),
    ("qwen-math", True,  # the literal ChatML of the NSR paper even where the tokenizer has its own template
     f"{SYSTEM}You are a helpful assistant.{END}{USER}What is 2+3?\n{BOXED}{END}{ASSISTANT}",
     f"{SYSTEM}You are a helpful assistant.{END}"
     f"{USER}What is 2+3?\n\nHint: Count on from 2.\n{BOXED}{END}{ASSISTANT}"),
    ("guide", False,
     f"{SYSTEM}{BOXED}{END}{USER}Problem: What is 2+3?{END}{ASSISTANT}",
     f"{SYSTEM}{BOXED}{END}{USER}Problem: What is 2+3?\n\nHint: Count on from 2.{END}{ASSISTANT}"),
    ("guide", True,
     f"[system]{BOXED}[user]Problem: What is 2+3?[assistant]",
     f"[system]{BOXED}[user]Problem: What is 2+3?\n\nHint: Count on from 2.[assistant]"),
    ("chat", True,
     f"[user]What is 2+3?\n{BOXED}[assistant]",
     f"[user]What is 2+3?\n\nHint: Count on from 2.\n{BOXED}[assistant]"),
])
def test_prompt_text(template, own, plain, hinted):
    tokenizer = FakeTokenizer("fake" if own else None)
    assert prompt_text(ADD, template, tokenizer) == plain
    assert prompt_text(ADD, template, tokenizer, hinted=True) == hinted
    if not own or template in ("countdown", "plain", "qwen-math"):
        assert prompt_text(ADD, template) == plain  # no tokenizer is needed to look at a literal template


def test_chat_instruction_follows_the_domain():
    problems = [Problem("p", "Q", "A", domain) for domain in ("choice", "countdown")]
    texts = [prompt_text(problem, "chat", FakeTokenizer()) for problem in problems]
    assert texts[0].startswith("[user]Q\nPlease") and "the letter of your answer within \\boxed{}" in texts[0]
    assert texts[1] == "[user]Q[assistant]"


def test_a_whole_hinted_question_replaces_question_and_hint(tmp_path):
    (problem,) = load(write(tmp_path / "rows.jsonl", [SCHEMAS["guide"][0]]))
    expected = f"{SYSTEM}{BOXED}{END}{USER}Problem: What is 2+3?\nCount on.{END}{ASSISTANT}"
    assert prompt_text(problem, "guide", hinted=True) == expected


def test_real_chat_template(tokenizer):
    assert prompt_text(ADD, "chat", tokenizer) == f"{USER}What is 2+3?\n{BOXED}{END}{ASSISTANT}"


SEVERAL = Problem("several", "And 4+5?", "9", hint="Count on.", meta={"earlier_messages": [
    *CHAT[:1], {"role": "user", "content": "What is 2+3?"}, {"role": "assistant", "content": "5"}]})
TOLD = Problem("told", "What is 2+3?", "5", hint="Count on.", meta=BEFORE)


@pytest.mark.parametrize("problem, template, text", [
    (SEVERAL, "chat", f"[system]Be brief.[user]What is 2+3?[assistant]5[user]And 4+5?\n{BOXED}[assistant]"),
    (TOLD, "chat", f"[system]Be brief.[user]What is 2+3?\n{BOXED}[assistant]"),
    (TOLD, "plain", "Be brief.\n\nWhat is 2+3?\n"),
    (TOLD, "countdown", "Be brief.\n\nWhat is 2+3?\n"),
    (TOLD, "guide", f"[system]{BOXED}[user]Problem: What is 2+3?[assistant]"),
    (data.replace(TOLD, meta={"earlier_messages": [{"role": "system", "content": BOXED}]}), "chat",
     f"[system]{BOXED}[user]What is 2+3?[assistant]"),  # the instruction is not said twice
])
def test_messages_before_the_question(problem, template, text):
    assert prompt_text(problem, template, FakeTokenizer()) == text
    hinted = prompt_text(problem, template, FakeTokenizer(), hinted=True)
    space = " " if template == "countdown" else "\n\n"
    assert hinted == text.replace(problem.question, f"{problem.question}{space}Hint: Count on.")


@pytest.mark.parametrize("template", ["countdown", "plain", "qwen-math", "guide"])
def test_several_turns_take_the_chat_template(template, capsys):
    problems = [ADD] * 150
    problems[9] = SEVERAL
    prompts, _ = encode(problems, FakeTokenizer(), template, 1000)
    assert len(prompts) == 149
    said = capsys.readouterr().err
    assert "1 of 150 rows" in said and "several turns, which takes --template chat (rows 'several')" in said
    with pytest.raises(UserError, match="several turns, which takes --template chat"):
        encode([ADD, SEVERAL], FakeTokenizer(), template, 1000)


@pytest.mark.parametrize("template", ["qwen-math", "guide"])
def test_a_system_message_that_is_not_shown_is_said(template, capsys):
    encode([ADD, TOLD], FakeTokenizer(), template, 1000)
    said = f"--template {template}: its system message stands in place of the data's\n"
    assert capsys.readouterr().err == said
    same = {"earlier_messages": [{"role": "system", "content": data.SYSTEM[template]}]}
    encode([data.replace(TOLD, meta=same)], FakeTokenizer(), template, 1000)
    assert capsys.readouterr().err == ""


IN_PARTS = ("{% for m in messages %}<{{ m.role }}>{# CHECK #}"
            "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
            "{% endfor %}")
REFUSE_TEXT = "{% if m.content is string %}{{ raise_exception('parts, please') }}{% endif %}"


@pytest.mark.parametrize("chat_template", [IN_PARTS, IN_PARTS.replace("{# CHECK #}", REFUSE_TEXT)])
def test_a_chat_template_that_reads_parts(chat_template, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat_template
    assert prompt_text(ADD, "chat", tokenizer) == f"<user>What is 2+3?\n{BOXED}"
    prompts, _ = encode([ADD], tokenizer, "guide", 1000)
    told = "<user>Problem: What is 2+3?\n\nHint: Count on from 2."
    assert tokenizer.decode(prompts[0].hinted) == f"<system>{BOXED}{told}"


@pytest.mark.parametrize("chat_template, template, said", [
    ("{% for m in messages %}[{{ m.role }}]{% endfor %}", "chat", "leaves out text of the user message"),
    ("{{ messages[0].content[:12] }}", "chat", "leaves out text of the user message"),
    ("{{ messages[-1].content }}", "guide", "leaves out text of the system message"),
    ("{{ raise_exception('no system here') }}", "guide", "refuses the messages .no system here"),
    ("{{ messages[0].content.split('Hint')[0] }}", "chat", "leaves out text of the user message"),
])
def test_a_chat_template_that_loses_text(chat_template, template, said, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat_template
    with pytest.raises(UserError, match=f"p: this tokenizer's chat template {said}.*: use another --templ"):
        encode([ADD], tokenizer, template, 1000)


def test_the_date_is_always_the_same(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    for write in ("{{ date_string }}", "{{ strftime_now('%d %b %Y') }}"):
        tokenizer.chat_template = write + "{{ messages[0].content }}"
        assert prompt_text(ADD, "chat", tokenizer).startswith("26 Jul 2024What is 2+3?")


def test_a_chat_template_of_the_model_that_writes_hints(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = IN_PARTS
    assert ADD.question in tokenizer.decode(hints._guidance_prompt(ADD, tokenizer))
    tokenizer.chat_template = "{{ messages[0].content[:12] }}"
    with pytest.raises(UserError, match="leaves out text of the user message"):
        hints._guidance_prompt(ADD, tokenizer)


@pytest.mark.parametrize("template, tokenizer, said", [
    ("chat", None, "no chat template"), ("chat", FakeTokenizer(None), "no chat template"),
    ("qwen", None, "qwen-math"),
])
def test_bad_template(template, tokenizer, said):
    with pytest.raises(UserError, match=said):
        prompt_text(ADD, template, tokenizer)


@pytest.mark.parametrize("template, own, bos", [
    ("countdown", True, True), ("plain", True, True), ("qwen-math", True, True), ("guide", False, True),
    ("guide", True, False), ("chat", True, False),  # a chat template writes its BOS itself: a second is wrong
])
def test_render_adds_bos_to_literal_templates_only(template, own, bos):
    tokenizer = FakeTokenizer("fake" if own else None)
    ids = render(tokenizer, ADD, template, hinted=True)
    assert ids == [1] * bos + [ord(c) for c in prompt_text(ADD, template, tokenizer, hinted=True)]


def test_encode_leaves_out_what_is_too_long(tokenizer):
    # One token a letter: "aaaa?\n" is 6, and with "\n\nHint: xy" (10) it is 16.
    fits = Problem("fits", "aaaa?", "1", hint="xy")
    hint_too_long = Problem("hint too long", "aaaa?", "1", hint="xyz")
    too_long = Problem("too long", "a" * 16, "1", hint="x")
    no_hint = Problem("no hint", "a" * 15, "1")
    prompts, counts = encode([too_long, fits, hint_too_long, no_hint], tokenizer, "plain", 16)
    assert [p.problem for p in prompts] == [fits, hint_too_long, no_hint]
    assert [len(p.plain) for p in prompts] == [6, 6, 16]
    assert [p.hinted and len(p.hinted) for p in prompts] == [16, None, None]
    plain, hinted = (render(tokenizer, fits, "plain", hinted=hinted) for hinted in (False, True))
    assert prompts[0] == Prompt(fits, plain, hinted)
    assert tokenizer.decode(prompts[0].hinted) == "aaaa?\n\nHint: xy\n"
    assert counts == {"too_long": 1, "hints_too_long": 1}
    with pytest.raises(UserError, match="longer than 5 tokens"):
        encode([fits, no_hint], tokenizer, "plain", 5)


def test_encode_leaves_out_what_leaves_no_room_for_the_response(tokenizer):
    fits = Problem("fits", "aaaa?", "1", hint="xy")  # 6 tokens, 16 with the hint, as above
    too_long = Problem("too long", "a" * 16, "1")
    for positions, kept, counts in [
        (26, [(6, 16)], {"too_long": 1, "hints_too_long": 0}),
        (25, [(6, None)], {"too_long": 1, "hints_too_long": 1}),
        (27, [(6, 16), (17, None)], {"too_long": 0, "hints_too_long": 0}),
    ]:
        prompts, counted = encode([fits, too_long], tokenizer, "plain", 100, 10, positions)
        assert [(len(p.plain), p.hinted and len(p.hinted)) for p in prompts] == kept and counted == counts
    for positions in (15, 10, 1):  # a response may need more than there is
        said = f"10 tokens for the response exceed the model's {positions} positions: lower --max-response"
        with pytest.raises(UserError, match=said):
            encode([fits, too_long], tokenizer, "plain", 100, 10, positions)


def test_encode_names_a_problem_that_the_tokenizer_refuses(capsys):
    class Refuses(FakeTokenizer):
        def __call__(self, text, **options):
            if "!" in text:
                raise TypeError("no such character")
            return super().__call__(text, **options)

    problems = [ADD] * 100
    problems[3] = Problem("bad", "What!", "5")
    assert len(encode(problems, Refuses(), "plain", 100)[0]) == 99
    said = "1 of 100 rows cannot be used: TypeError: no such character (rows 'bad')"
    assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="2 of 100 rows"):
        encode([*problems[:99], problems[3]], Refuses(), "plain", 100)


def test_fingerprint_is_of_all_that_a_run_reads():
    prompts = [Prompt(ADD, [1, 2], [1, 2, 3]), Prompt(TOLD, [1], None)]
    others = [
        prompts[::-1], prompts[:1], [Prompt(ADD, [1, 2], None), prompts[1]],
        [Prompt(data.replace(ADD, answer="6"), [1, 2], [1, 2, 3]), prompts[1]],
        [prompts[0], Prompt(data.replace(TOLD, meta={}), [1], None)],
    ]
    assert data.fingerprint(prompts) == data.fingerprint(copy.deepcopy(prompts))
    assert len({data.fingerprint(some) for some in [prompts, *others]}) == 6


def test_encode_notices_a_tokenizer_that_loses_text():
    encode([ADD], FakeTokenizer(loses=" \n"), "plain", 100)  # white space may change: many tokenizers do that
    with pytest.raises(UserError, match="does not give the prompt of p back"):
        encode([ADD], FakeTokenizer(loses="+"), "plain", 100)


# ---- boxes and hints -----------------------------------------------------------------------------

@pytest.mark.parametrize("text, content", [
    ("", None),
    ("the answer is 5", None),
    (r"so \boxed{5}.", "5"),
    (r"\boxed{}", ""),
    (r"\boxed {5}", "5"),
    (r"\boxed{1}, no: \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{x, \boxed{y}, \boxed 7}", "x, y, 7"),
    (r"\boxed{3", None),
    (r"\boxed{\frac{1}{2}", None),
    (r"\boxed{3} or \boxed{4", "3"),
    (r"\boxed{3 or \boxed{4}", "4"),
    (r"x^{2}} is \boxed{5}", "5"),  # a brace too many before the box
    (r"so $\boxed 7$.", "7"),
    (r"so \boxed 7.", "7"),
    (r"so \boxed 7.5", "7.5"),  # must not pass for 7
    (r"so \boxed -3, q.e.d.", "-3"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{a\}", None),
    (r"\boxed{\left\{ \frac{1}{2} \right\}}", r"\left\{ \frac{1}{2} \right\}"),
    (r"\fbox{3}", "3"),
    (r"\boxed{3} in a \fbox{4} and a \mbox{5}", "4"),
    ("\\boxed{" + "x" * 2000 + "}", "x" * 2000),
    ("\\boxed{1} \\boxed{" + "x" * 2001 + "}", "1"),  # no answer is that long
    ("\\boxed{1}" + " " * 200_000, None),  # only the end of an endless completion is read
    (r"so $\boxed\frac12$.", r"\frac12"), (r"\boxed\text{A}", r"\text{A}"),
    (r"\boxed{5}. I used \boxed as asked", "5"), (r"\boxed{5} as asked in \boxed{}", "5"),
    (r"\boxed{}", ""), (r"\boxed{5 \boxed{ }}", "5"), (r"so \boxed x", "x"),
    (r"\boxed\dfrac{\sqrt{2}}{2}.", r"\dfrac{\sqrt{2}}{2}"), (r"\boxed\frac{1", None),
])
def test_last_box(text, content):
    assert last_box(text) == content


@pytest.mark.parametrize("text", [
    "\\boxed{" * 100_000, "\\boxed " * 100_000, "\\boxed{1}" * 100_000, "\\boxed{" * 20_000 + "}" * 20_000,
    "\\boxed{" + "{" * 100_000, "\\boxed" + " " * 100_000 + "\\boxed", "\\" * 100_001,
    "\\boxed{1}" + "{}" * 90_000,
])
def test_last_box_takes_linear_time(text):
    start = time.perf_counter()
    last_box(text)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("question, solution, answer, hint", [
    ("Q", "One. Two! Three? Four.", "9", "One. Two!"),
    ("Q", "One. Two. Three.", "9", "One."),
    ("Q", "Only one sentence with 9.", "9", None),
    ("Q", r"It is \boxed{9}. One. Two. Three.", "9", None),  # nothing from the box on
    ("Q", r"One. It is \boxed{8}. Two. Three. Four. It is \boxed{9}.", "9", "One."),
    ("Q", "One. It is 9. Two. Three. Four. Five.", "9", "One."),  # nothing from the answer on
    ("What is 9?", "One. It is 9. Two. Three.", "9", "One. It is 9."),
    ("Q", "We have 19, 9.5 and 0.9 here. So it is 9.", "9", "We have 19, 9.5 and 0.9 here."),  # other numbers
    ("Q", r"It is $\dfrac{ 1 }{2}$ then. One.", r"\frac{1}{2}", None),  # the same answer in other clothes
    ("Q", "Let $a. b$ be one. Two.", "9", "Let $a. b$ be one."),  # a full stop in a formula ends no sentence
    ("Q", "[asy] draw. me. [/asy] One. Two.", "9", "One."),
    ("Q", r"Write $2\cdot9$ first. One.", "9", None),  # MATH writes its prime factors so
    ("Q", "He has 1,250 now. One.", "1250", None),  # GSM8K: the gold has lost its comma
    ("Solve $x - 3 = y$.", "So $x = -3$ first. One.", "-3", None),  # the question's minus is not a sign
])
def test_solution_hint(question, solution, answer, hint):
    assert solution_hint(question, solution, answer) == hint


def holds(text, answer):
    """Whether the answer stands in the text; on purpose not data.holds_answer."""
    if re.fullmatch(r"-?\d+(\.\d+)?", answer):
        text = re.sub(r"\\[A-Za-z]+|\$", " ", text)
        return re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w|\.\d)", text) is not None
    text, answer = (re.sub(r"\s", "", s) for s in (text, answer))
    return len(answer) > 5 and re.search(rf"(?<!\d){re.escape(answer)}", text) is not None


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_hints_of_real_solutions_give_nothing_away():
    problems = load(str(SHARED / "math_train.parquet"))
    assert len(problems) == 7498  # two published rows have an empty box
    hinted = [p for p in problems[:1000] if p.hint]
    assert 750 < len(hinted) < 950
    assert [p.id for p in hinted if "boxed" in p.hint] == []
    leaks = [p for p in hinted if holds(p.hint, p.answer) and not holds(p.question, p.answer)]
    assert [(p.id, p.answer) for p in leaks if p.id != "math_train/216"] == []  # "-3^2" in the hint is no -3


# ---- making hints --------------------------------------------------------------------------------

def hint_rows(tmp_path, n=40) -> str:
    rows = [{"id": f"p{i}", "question": f"Which number is {i}?", "answer": f"{i + 1000}",
             "solution": f"Take one half. Then go on. It is {i + 1000}. So \\boxed{{{i + 1000}}}."}
            for i in range(n)]
    return write(tmp_path / "problems.jsonl", rows)


MAKE_HINTS = [sys.executable, "-m", "machinery.hints", "--data"]


def run(call, cwd=ROOT, timeout=100):
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def test_hints_from_solutions_on_the_command_line(tmp_path):
    rows, out = hint_rows(tmp_path), tmp_path / "hinted.jsonl"
    with open(rows, "a") as file:
        short = {"id": "short", "question": "Q", "answer": "7", "solution": r"\boxed{7}"}
        file.write(json.dumps(short) + "\n")
    options = ["--by", "solution", "--out", str(out)]
    done = run([*MAKE_HINTS, rows, *options])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("hinted.jsonl: 41 problems; 1 without a hint (2.4%)\n")
    before, after = load(rows), load(str(out))
    assert after == before and after[0].hint == "Take one half. Then go on." and after[-1].hint is None
    again = run([*MAKE_HINTS, rows, *options])  # nothing is left to do
    assert "41 of them from an earlier run" in again.stdout and load(str(out)) == before
    other = run([*MAKE_HINTS, "countdown", *options])
    assert other.returncode == 1 and "holds other rows" in other.stderr and load(str(out)) == before


@pytest.mark.parametrize("out", [None, "hinted.txt", "{tmp}/nowhere/hinted.jsonl"])
def test_a_file_that_hints_cannot_be_written_to_is_one_line(out, tmp_path):
    done = run([*MAKE_HINTS, hint_rows(tmp_path), *(["--out", out.format(tmp=tmp_path)] if out else [])])
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: give --out FILE.jsonl in a folder that exists\n"


@pytest.mark.parametrize("problem", [
    Problem("a", "Q", "B", "choice", meta={"x": 1}),
    Problem("c", "Use 3.", "3", "countdown", "start", "t", {"numbers": [3], "target": 3}),
    Problem("s", "Q", "5", meta={"rel_tol": 0.05, "unit": "K"}),
    Problem("p", "Q", "x", "code", None, "x", {"tests": {"type": "stdio"}}),
])
def test_hinted_rows_load_as_they_were(problem, tmp_path):
    hints.make_hints([problem], tmp_path / "out.jsonl", lambda problems: ["A hint."], 1)
    assert load(str(tmp_path / "out.jsonl")) == [data.replace(problem, hint="A hint.")]


def test_a_hint_that_came_with_a_row_stays_where_none_is_made(tmp_path, capsys):
    meta = {"hinted_question": "Q, and a hint"}
    problem = Problem("a", "What is 2+3?", "5", hint="Count on from 2.", meta=meta)
    hints.make_hints([problem], tmp_path / "out.jsonl", hints.no_hints, 1)
    assert load(str(tmp_path / "out.jsonl")) == [problem] and "; 0 without a hint" in capsys.readouterr().out


MAKE = """
import sys, time
from pathlib import Path
from data import load
from machinery.hints import make_hints
def hints(problems):
    time.sleep(0.05)
    return [f"Hint for {p.id}." if p.id != "p3" else None for p in problems]
make_hints(load(sys.argv[1]), Path(sys.argv[2]), hints, 2)
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    rows, out, whole = hint_rows(tmp_path), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    call = [sys.executable, "-c", MAKE, rows]
    subprocess.run([*call, str(whole)], check=True, capture_output=True, timeout=100)
    for lines in (3, 21):
        process = subprocess.Popen([*call, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while (not out.exists() or out.read_bytes().count(b"\n") < lines) and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9 and lines <= out.read_bytes().count(b"\n") < 40
        with out.open("ab") as file:
            file.write(b'{"id": "p2", "quest')  # a line that was being written
    done = subprocess.run([*call, str(out)], check=True, capture_output=True, text=True, timeout=100)
    assert out.read_bytes() == whole.read_bytes()
    assert "40 problems, " in done.stdout and "0 without a hint" in done.stdout
    made = [p.hint for p in load(str(out))]
    assert made[2:4] == ["Hint for p2.", "Take one half. Then go on."]  # p3: from its solution


def test_hints_of_a_model_never_leak(monkeypatch):
    """First tries of three problems leak, are empty or were cut off: they are tried again, then given up."""
    said = [
        ["It is 1000.", "", "Cut", "Good 3."],
        [r"\boxed{1}", "Good 1.", "Good 2."],
        ["It is 1000"],
    ]
    asked = []

    class Tokenizer:
        chat_template = None

        def __call__(self, text, add_special_tokens):
            assert "Reference solution: S" in text and text.endswith("Guidance:")
            return SimpleNamespace(input_ids=[1, 2])

    class Sampler:
        positions = 10**6
        tokenizer = Tokenizer()

        def __init__(self, model, device, use):
            pass

        def generate(self, prompts, n, temperature, max_tokens, seed, top_p):
            asked.append((len(prompts), seed[1]))
            return [[SimpleNamespace(text=text, finished=text != "Cut")] for text in said[len(asked) - 1]]

    monkeypatch.setattr(machinery.sampler, "Sampler", Sampler)
    problems = [Problem(f"p{i}", "Q", f"{1000 + i}", solution="S") for i in range(4)]
    made = hints.model_hints("m", "cpu", tries=3, max_tokens=5)
    assert made(problems) == [None, "Good 1.", "Good 2.", "Good 3."]
    assert asked == [(4, 0), (3, 1), (1, 2)]


def test_hints_of_the_embedded_model_on_the_command_line(tmp_path, monkeypatch, capsys):
    out = tmp_path / "hinted.jsonl"
    options = ["--by", "model", "--out", str(out), "--tries", "1", "--max-tokens", "8"]
    monkeypatch.setattr(sys, "argv", ["hints.py", "--data", hint_rows(tmp_path, 3), *options])
    hints.main()
    assert "3 problems; 0 without a hint (0.0%); " in capsys.readouterr().out and len(load(str(out))) == 3


def test_the_embedded_model_is_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["data.py", "--show", "1"])
    data.main()
    assert " Ana has " in capsys.readouterr().out


@pytest.mark.parametrize("options, said", [
    (["--data", "nope.jsonl"], "error: no such file: nope.jsonl\n"),
    (["--split", "validation"], "error: sea has the splits train and test, not 'validation'\n"),
])
def test_what_the_user_can_mend_is_one_line(options, said, tmp_path):
    done = run([sys.executable, ROOT / "data.py", *options], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_real_hints_for_most_of_math():
    if not SHARED.exists():
        pytest.skip("needs the shared data")
    problems = load(str(SHARED / "math_train.parquet"))
    assert not [p.id for p in problems if p.hint and hints.leaks(p.hint, p)]
    assert sum(p.hint is None for p in problems) < 0.14 * len(problems)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
@pytest.mark.parametrize("file, count, domain", [
    ("aime2024_test.jsonl", 30, "math"), ("aime2025_test.parquet", 30, "math"),
    ("amc23_test.parquet", 40, "math"), ("gsm8k_test.jsonl", 1319, "math"),
    ("math500_test.jsonl", 500, "math"),
    ("olympiadbench_test.jsonl", 675, "math"), ("scibench.jsonl", 580, "math"),
    ("mmlu_stem_test.jsonl", 3018, "choice"), ("humaneval_test.jsonl", 164, "code"),
])
def test_real_files(file, count, domain):
    problems = load(str(SHARED / file))
    assert len(problems) == len({p.id for p in problems}) == count
    assert {p.domain for p in problems} == {domain}


# ---- the order of problems -----------------------------------------------------------------------

def test_draw_epochs_are_permutations():
    # 63 = 9 epochs of 7, with steps across their borders
    drawn = [i for step in range(21) for i in draw(7, 3, step, seed=0)]
    epochs = [tuple(drawn[i : i + 7]) for i in range(0, 63, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 9  # reshuffled each time
    assert draw(7, 63, 0, seed=0) == drawn  # a step may be longer than an epoch


def test_draw_is_pure_and_depends_on_seed_and_stream():
    assert draw(1000, 20, 5, 3, 1) == draw(1000, 20, 5, 3, 1)
    draws = [draw(1000, 20, 5, seed, stream) for seed in (0, 1) for stream in (0, 1)]
    assert len({tuple(d) for d in draws}) == 4


def test_draw_of_a_late_refill_is_fast_and_has_nothing_of_the_earlier_ones():
    drawn = [draw(10_000, 20, 5, 0, stream) for stream in range(30)]
    flat = [i for one in drawn for i in one]
    assert len(flat) == len(set(flat)) > 500
