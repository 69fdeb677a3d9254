"""Verdicts against a table worked by hand, and workers that survive whatever a completion does to them."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import verify
from data import Problem, UserError
from verify import Verifier, check_golds, choice_verdict, countdown_verdict

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared/data"


def math(gold: str) -> Problem:
    return Problem("m", "Q", gold)


def countdown(*numbers: int, target: int) -> Problem:
    return Problem("c", "Q", str(target), "countdown", meta={"numbers": list(numbers), "target": target})


def whys(verifier, pairs) -> list[str]:
    return [v.why for v in verifier.score([c for c, _ in pairs], [p for _, p in pairs])]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2) as verifier:
        yield verifier


# ---- decided at once ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("numbers, target, completion, why", [
    ((3, 7, 12), 33, "7*3=21\n21+12=33\n", "right"),
    ((3, 7, 12), 33, " 3*7=21 \n12+21=33", "right"),
    ((5, 5, 10), 20, "5+5=10\n10+10=20", "right"),  # equal numbers are different things
    ((12, 3, 6), 24, "12/3=4\n4*6=24", "right"),
    ((3, 7, 12), 33, "7*3=20\n20+12=32", "wrong"),  # wrong arithmetic
    ((3, 7, 12), 33, "7*3=21\n21+12=34", "wrong"),
    ((3, 7, 12), 32, "7*3=20\n20+12=32", "wrong"),  # ... that reaches the target
    ((3, 7, 12), 36, "8*3=24\n24+12=36", "wrong"),  # 8 is not at hand
    ((3, 7, 12), 33, "7*3=21\n20+13=33", "wrong"),
    ((3, 7, 12), 49, "7*7=49", "wrong"),  # 7 is there once
    ((3, 5, 7), 30, "7+3=10\n10+5=15\n15+15=30", "wrong"),  # 15 is there once, though 30 is reached
    ((3, 7, 12), 33, "7*3=21\n21+7=28\n28+12=40", "wrong"),  # 7 is used up
    ((3, 7, 12), 33, "7+3=10\n10+12=22\n", "wrong"),  # another target
    ((3, 7, 12), 33, "7*3=21\n", "wrong"),  # a move is missing
    ((3, 7, 12), 21, "7*3=21\n", "wrong"),  # the target too early: 12 is not used
    ((3, 7, 12), 33, "7*3=21\n21+12=33\n33*1=33", "wrong"),
    ((3, 7, 12), 33, "7*3=21\n21+12=33\nSo it is 33.", "no answer"),
    ((15, 5, 15), 60, "15*5=75\n75-15=60", "wrong"),  # 75 > 60 on the way
    ((7, 7, 20), 20, "7-7=0\n20+0=20", "wrong"),  # 0 on the way
    ((7, 3, 12), 14, "7/3=2\n12+2=14", "wrong"),  # 7/3 is no integer
    ((7, 3, 12), 14, "7/0=1", "wrong"),
    ((3, 7, 12), 33, "7*3=21 21+12=33", "no answer"),
    ((3, 7, 12), 33, "3-7=-4\n", "no answer"),
    ((3, 7, 12), 33, "The answer is 33.", "no answer"),
    ((3, 7, 12), 33, "\n", "no answer"),
    ((3, 7, 12), 33, "", "no answer"),
])
def test_countdown(numbers, target, completion, why):
    assert countdown_verdict(completion, countdown(*numbers, target=target)).why == why


@pytest.mark.parametrize("box, why", [
    ("B", "right"), ("b", "right"), ("(B)", "right"), ("B.", "right"), (r"\text{(B)}", "right"),
    (r"\mathbf{B}", "right"),
    ("A", "wrong"), ("AB", "wrong"), ("A, B", "wrong"), ("", "wrong"), ("2", "wrong"),
])
def test_choice(box, why):
    problem = Problem("p", "Q", "B", "choice")
    assert choice_verdict(f"B \\boxed{{{box}}} B", problem).why == why
    assert choice_verdict(box, problem).why == "no answer"


# ---- mathematics in the workers ----------------------------------------------------------------------------

@pytest.mark.parametrize("answer, gold, why", [
    ("1+x", "x+1", "right"), (r"3\sqrt{2}", r"\sqrt{18}", "right"), ("x^2+2x+1", "(x+1)^2", "right"),
    (r"0.5\pi", r"\frac{\pi}{2}", "right"), (r"\{2, 1\}", r"\{1, 2\}", "right"), ("x = 5", "5", "right"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", "right"), ("1/0", "1/0", "right"),
    ("x+2", "x+1", "wrong"), (r"1.414", r"\sqrt{2}", "wrong"), ("(1,2)", "(2,1)", "wrong"),
    ("[0,2)", "(0,2]", "wrong"),
    (r"\{1, 2\}", r"\{1, 2, 3\}", "wrong"), (r"\pi", r"2\pi", "wrong"), ("", "5", "wrong"),
    ("1/0", "5", "wrong"),
    ("9" * 1900, "x", "wrong"),
])
def test_math(verifier, answer, gold, why):
    assert whys(verifier, [(f"So \\boxed{{{answer}}}.", math(gold))]) == [why]


ANSWERS = [json.loads(line) for line in (ROOT / "tests/answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in ANSWERS}))
def test_answers_written_by_hand(kind, verifier):
    """Right and wrong answers for each kind of gold, several hundred in all: nothing is judged wrongly."""
    asked = [(answer, row["gold"], correct) for row in ANSWERS if row["kind"] == kind
             for correct in (True, False) for answer in row["right" if correct else "wrong"]]
    boxes = [f"so \\boxed{{{answer}}}" for answer, _, _ in asked]
    verdicts = verifier.score(boxes, [math(gold) for _, gold, _ in asked])
    assert [(*row, v.why) for row, v in zip(asked, verdicts) if v.correct != row[2]] == []


BOMBS = [
    "8^{8^{8^{8}}}", "9^{9^{9^9}}", "((((9^9)^9)^9)^9)^9", "500000!", "(((9!)!)!)!", "10^{10^{10}}!",
    r"\frac{1}{" * 150 + "2" + "}" * 150,
    "(" * 900 + "1" + ")" * 900, "{" * 900 + "1" + "}" * 900, "1" + "+1" * 900, "3" + "^3" * 100,
    "x" + "^x" * 60,
    "2^" * 300 + "2",
    r"\sum_{k=1}^{50000000} \frac{1}{k^3+1}", r"\prod_{k=1}^{99999999} k",
    r"\int_0^1 \sin(\sin(\sin(x^x))) dx",
    r"\binom{10^9}{5^9}",
    r"\int " * 50 + "x dx" * 50, r"\begin{pmatrix}" + r"1&2&3&4\\" * 120 + r"\end{pmatrix}",
    r"\sqrt{" * 200 + "2" + "}" * 200,
    "\0" * 100, "7\0", "½" * 900, "√" * 900, "²" * 900, r"\pm 1" * 60, r"\pm" * 200, "(x+1)^{9999}",
    "(x+y+z+w)^{500}",
    "9" * 1900,
    ",".join(map(str, range(400))), "x=" * 500 + "1", "<".join("abc" * 90), r"\text{" * 100 + "a" + "}" * 100,
    "1/" * 500 + "1",
    r"\sin" * 300 + "x", "|" * 500, "[" * 500, ":".join("1" * 500), "0." + "3" * 900, r"1234567^{1234}",
    "(2^{9999})^{9999}",
    "*" * 900, "~" * 900 + "x" + "~" * 900, " " * 900 + "x", '"' * 900, "$" * 900, "\\" * 901, "1 " * 900,
    "1," * 900,
    "a_" * 500,
    r"\frac" * 300, "10^" + "9" * 300, "x^{" + "9" * 300 + "}", r"\lim_{x\to 0} \frac{\sin x^{99}}{x^{99}}",
    "e^{e^{e^{e^{e}}}}", "i^{i^{i^i}}",
]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: f"{bomb[:20]}..{len(bomb)}")
def test_a_bomb_costs_its_time_limit_and_no_more(bomb, verifier):
    verifier.score([r"\boxed{1+x}"] * 2, [math("x+1"), math("x+2")])  # both workers are there
    start = time.monotonic()
    completions = [f"\\boxed{{{bomb}}}", f"\\boxed{{{bomb}}}", r"\boxed{x+2}"]
    verdicts = verifier.score(completions, [math("7"), math("x+1"), math("2+x")])
    assert time.monotonic() - start < 5  # two comparisons of at most 1.5 s, and a new worker for the third
    assert [v.correct for v in verdicts] == [False, False, True]


@pytest.mark.parametrize("text, why", [
    ("\\boxed{" * 50_000, "no answer"), ("lorem " * 500_000 + r"\boxed{7}", "right"),
    (r"\boxed{7}" + "lorem " * 500_000, "no answer"),
    ("\0" * 100_000 + r"\boxed{7}", "right"), ("```" * 50_000, "no answer"), ("\ud800\\boxed{7}", "right"),
    ("\\boxed{\ud800}", "wrong"),
])
def test_strange_completions(text, why, verifier):
    start = time.monotonic()
    assert whys(verifier, [(text, math("7"))]) == [why]
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("answer, gold, meta, correct", [
    ("50.7", "50.7", {"rel_tol": 0.05}, True), ("49", "50.7", {"rel_tol": 0.05}, True),
    ("47", "50.7", {"rel_tol": 0.05}, False),
    (r"50.7\text{ atm}", "50.7", {"rel_tol": 0.05}, True), ("8.31 J/K", "8.3147", {"rel_tol": 0.05}, True),
    (r"8.31 \mathrm{~J} \mathrm{~K}^{-1}", "8.3147", {"rel_tol": 0.05}, True),
    (r"x \approx 50.7", "50.7", {"rel_tol": 0.05}, True),
    (r"7 \times 10^7", "7", {"rel_tol": 0.05, "unit": r"$\mathrm{10^7} \mathrm{~km}$"}, True),
    ("7", "7", {"rel_tol": 0.05, "unit": "$10^7$"}, True),
    ("7e7", "7", {"rel_tol": 0.05, "unit": "$10^7$"}, True),
    (r"7\times10^6", "7", {"rel_tol": 0.05, "unit": "$10^7$"}, False),
    (r"1.6\times10^{-19} C", "1.602", {"rel_tol": 0.05, "unit": r"$10^{-19} \mathrm{C}$"}, True),
    ("-1.5", "1.5", {"rel_tol": 0.05}, False),
    ("102,965", "102,965.21", {"rel_tol": 0.05}, True), ("−2", "-2", {"rel_tol": 0.05}, True),
    ("3 or 50.7", "50.7", {"rel_tol": 0.05}, False),
    (r"16\pi", "50.7", {"rel_tol": 0.05}, True), (r"\sqrt{2}", "1.41", {"rel_tol": 0.05}, True),
    ("0", "0", {"rel_tol": 0.05}, True),
    ("0.01", "0", {"rel_tol": 0.05}, False), ("2.05", "2", {"abs_tol": "1e-1"}, True),
    ("2.2", "2", {"abs_tol": "1e-1"}, False),
    ("-2.05, 2", "2, -2", {"abs_tol": "0.1"}, True), ("2", "2, -2", {"abs_tol": "0.1"}, False),
    (r"\sqrt{4.1}", "2", {"abs_tol": "0.1"}, True),
    ("2.05", "2", {}, False), ("50.6999999", "50.7", {}, False),  # mathematics has no tolerance
    ("$69$,$84$", "84, 69", {}, True), ("(1,8,19),(4,5,7)", "$(4,5,7), (1,8,19)$", {}, True),
])
def test_science(answer, gold, meta, correct, verifier):
    problem = Problem("s", "Q", gold, meta=meta)
    assert verifier.score([f"\\boxed{{{answer}}}"], [problem])[0].correct == correct


def test_no_box_is_no_answer(verifier):
    pairs = [(completion, math("x+1")) for completion in ("x+1", "\\boxed{x+1", "")]
    assert whys(verifier, pairs) == ["no answer"] * 3


def test_order_is_kept_in_a_mixed_batch(verifier):
    choice, trace = Problem("b", "Q", "B", "choice"), countdown(3, 7, 12, target=33)
    batch = [
        (r"\boxed{1+x}", math("x+1"), "right"), ("7*3=21\n21+12=33", trace, "right"),
        (r"\boxed{B}", choice, "right"),
        (r"\boxed{x+2}", math("x+1"), "wrong"), ("7*3=21", trace, "wrong"), (r"\boxed{A}", choice, "wrong"),
        ("x+1", math("x+1"), "no answer"), ("33", trace, "no answer"), ("B", choice, "no answer"),
        (r"\boxed{5}", math("5.0"), "right"), (r"\boxed{\sqrt{8}}", math(r"2\sqrt{2}"), "right"),
    ]
    for rows in (batch, batch[::-1]):
        assert whys(verifier, [(c, p) for c, p, _ in rows]) == [why for _, _, why in rows]


def test_groups(verifier):
    @dataclass
    class Sample:
        text: str

    one, two = Sample(r"\boxed{1}"), Sample(r"\boxed{2}")
    groups = [[one, two], [], [two, Sample("2"), one]]
    verdicts = verifier.score_groups(groups, [math("1"), math("1"), math("2")])
    whys = [[v.why for v in group] for group in verdicts]
    assert whys == [["right", "wrong"], [], ["right", "no answer", "wrong"]]


def test_equal_questions_are_asked_once(verifier, monkeypatch):
    def send(self, task, request, time_limit):
        sent.append(request)
        real(self, task, request, time_limit)

    sent, real = [], verify.Worker.send
    monkeypatch.setattr(verify.Worker, "send", send)
    pairs = [(f"Way {i}: \\boxed{{1+x}}", math("x+1")) for i in range(6)] + [(r"\boxed{x+2}", math("x+1"))]
    assert whys(verifier, pairs) == ["right"] * 6 + ["wrong"]
    assert len(sent) == 2


def test_unknown_domain(verifier):
    with pytest.raises(UserError, match="poetry"):
        verifier.score(["x"], [Problem("p", "Q", "A", "poetry")])


# ---- a verifier of the user's own --------------------------------------------------------------------------

OWN = """
import os, subprocess, sys, time
from pathlib import Path

def check(completion, problem):
    if completion == "raise":
        raise RuntimeError("as asked")
    if completion == "sys.exit":
        sys.exit(0)
    if completion == "os._exit":
        os._exit(1)
    if completion == "sleep":
        time.sleep(60)
    if completion == "print":
        print("1")
    if completion == "echo":
        os.system("echo 1")
    if completion == "child":
        child = subprocess.Popen(["sleep", "60"])
        Path("child").write_text(str(child.pid))
        child.wait()
    return completion == problem.answer
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_verifier.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # load_function adds the working folder
    with Verifier(workers=1, time_limit=1.0, custom="own_verifier:check") as verifier:
        yield verifier


@pytest.mark.parametrize("completion, why", [
    ("raise", "error"), ("sys.exit", "error"), ("os._exit", "error"), ("sleep", "timeout"),
    ("print", "wrong"), ("echo", "wrong"),  # what it writes to standard output is not a verdict
])
def test_own_verifier_and_what_comes_after(own, completion, why):
    after = [("1", math("1")), ("1", math("2")), ("3", math("3"))]
    assert whys(own, [(completion, math("x")), *after]) == [why, "right", "wrong", "right"]
    assert whys(own, after[::-1]) == ["right", "wrong", "right"]  # nothing is left over in the next batch


def test_own_verifier_knows_the_whole_problem(tmp_path, monkeypatch):
    own = "def same(completion, problem): return completion == repr(problem)\n"
    (tmp_path / "own_whole.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    problem = Problem("p", "½?", "1", "of my own", "hint", "solution", {"numbers": [1, 2]})
    with Verifier(1, custom="own_whole:same") as verifier:
        assert whys(verifier, [(repr(problem), problem), ("", problem)]) == ["right", "wrong"]
        assert check_golds([problem], verifier) == [problem]  # which only it can judge


@pytest.mark.parametrize("name, said", [
    ("no_such_module:check", "no_such_module"), ("own_verifier:nope", "nope"),
    ("own_verifier", "module:function"),
    ("own_verifier:OWN", "OWN"), (":check", "module:function"),
])
def test_unknown_module_or_function(own, name, said):
    with pytest.raises(UserError, match=said):
        Verifier(custom=name)


# ---- processes ---------------------------------------------------------------------------------------------

def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(") ")[2][0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_close_leaves_no_worker(own, monkeypatch):
    class Recorded(verify.Worker):
        def __init__(self, custom):
            super().__init__(custom)
            pids.append(self.process.pid)

    pids = []
    monkeypatch.setattr(verify, "Worker", Recorded)
    own.n_workers = 2
    pairs = [("os._exit", math("x")), ("sleep", math("x")), ("1", math("1"))]
    assert whys(own, pairs) == ["error", "timeout", "right"]
    assert len(pids) >= 4 and sum(map(alive, pids)) == 2  # two were replaced
    own.close()
    assert not any(map(alive, pids))
    assert whys(own, [("1", math("1"))]) == ["right"]  # a closed verifier starts again


def test_close_leaves_no_child_of_a_worker(own, tmp_path):
    assert whys(own, [("child", math("x"))]) == ["timeout"]
    own.close()
    child = int((tmp_path / "child").read_text())
    try:
        until = time.monotonic() + 1
        while alive(child) and time.monotonic() < until:
            time.sleep(0.02)
        assert not alive(child)
    finally:
        if alive(child):
            os.kill(child, 9)


def test_a_worker_that_died_between_batches_is_replaced(own):
    # The kernel takes the largest process when memory is short: that must not end a training run.
    assert whys(own, [("1", math("1"))]) == ["right"]
    own.workers[0].process.kill()
    own.workers[0].process.wait()
    assert whys(own, [("2", math("2"))]) == ["right"]


# ---- reference answers, command line, labelled cases -------------------------------------------------------

@pytest.mark.parametrize("bad", [
    math("{"),  # its box does not close
    Problem("m", "Q", "", "countdown", solution="3+7=11\n", meta={"numbers": [3, 7], "target": 11}),
    Problem("m", "Q", "12", "choice"),
])
def test_check_golds(bad, verifier, capsys):
    good = [Problem(f"good/{i}", "Q", f"{i}") for i in range(99)]
    assert check_golds([*good[:50], bad, *good[50:]], verifier) == good
    said = capsys.readouterr().err
    assert "1 of 100" in said and ": m (" in said and "left out" in said and "good/" not in said
    with pytest.raises(UserError, match=r"1 of 99 .*: m \("):  # just above one percent
        check_golds([*good[:98], bad], verifier)


@pytest.mark.parametrize("arguments, printed, code", [
    (["--answer", r"\frac12", "--completion", r"So \boxed{0.5}."], "right", 0),
    (["--answer", "x+1", "--completion", r"So \boxed{x+2}."], "wrong", 1),
    (["--answer", "5", "--completion", "So 5."], "no answer", 1),
    (["--answer", "5"], "", 1),
])
def test_command_line(arguments, printed, code):
    call = [sys.executable, "verify.py", *arguments]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == (printed, code)
    if not printed:
        assert done.stderr.startswith("error: give --answer and --completion")
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_labelled_cases(verifier):
    cases = [json.loads(line) for line in (SHARED / "verify_cases.jsonl").open()]
    verdicts = verifier.score([case["prediction"] for case in cases], [math(case["gold"]) for case in cases])
    false = [(case["correct"], case["gold"], case["prediction"][-80:])
             for case, verdict in zip(cases, verdicts) if verdict.correct != case["correct"]]
    assert false == []


@pytest.mark.parametrize("require, code", [("0.9", 1), ("0.6", 0)])
def test_cases_of_the_command_line(require, code, tmp_path):
    rows = [
        {"prediction": r"\boxed{0.5}", "gold": "1/2", "correct": True, "kind": "fraction"},
        {"pieces": [["\\boxed{", 500]], "gold": "1", "correct": False, "kind": "open"},
        {"prediction": r"\boxed{0.5}", "gold": "1/2", "correct": False, "kind": "mislabelled"},
        {"completion": "```python\ndef f(): return 1\n```", "correct": True,
         "tests": {"type": "assert", "code": "assert f() == 1"}},
    ]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call = [sys.executable, ROOT / "verify.py", "--cases", "cases.jsonl", "--require", require]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].split() == "mislabelled 1 false positives 0 false negatives of 1".split()
    assert lines[1].startswith("accuracy 0.7500, 1 false positives, 0 false negatives of 4")


def test_self_check_of_the_command_line(tmp_path):
    rows = [{"question": "Q", "answer": "1"}] * 3 + [{"question": "Q", "choices": ["a", "b"], "answer": 0}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call = [sys.executable, ROOT / "verify.py", "--data", "data.jsonl"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = [line.split()[:3] for line in done.stdout.splitlines()[1:3]]
    assert table == [["choice", "1", "1"], ["math", "3", "3"]]
    assert done.stdout.endswith("data.jsonl: 4 of 4 reference answers verify against themselves\n")
