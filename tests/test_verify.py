"""Verdicts against a table worked by hand, and workers that survive whatever a completion does to them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data import Problem, UserError
from machinery import answers, labelled, workers
from machinery.fences import fenced_blocks
from verify import Verdict, Verifier, check_golds, choice_verdict, countdown_verdict

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
    (r"\text{B: Paris}", "right"), ("B. x = 42", "right"), (r"(B) \frac{1}{2}", "right"), ("B) 7 m", "right"),
    (r"\textbf{(B)}\ 12", "right"), ("$B$", "right"),
    ("A", "wrong"), ("AB", "wrong"), ("A, B", "wrong"), ("", "wrong"), ("2", "wrong"), ("A: B", "wrong"),
    ("Both", "wrong"), ("B or C", "wrong"), ("B, C", "wrong"), ("Bx = 42", "wrong"), ("B: C", "wrong"),
    ("A. B is wrong", "wrong"),
    ("B: Both A and C", "right"), ("B: Both A and D", "wrong"),
    (r"B \text{ Paris}", "right"), ("[B]", "right"), ("**B**", "right"), ("**(B)** Paris", "right"),
    ("B. A base pair", "right"), ("B: I only", "right"), ("(B) B-cells", "right"), (r"B\quad 7", "right"),
    ("(B), (C), (D)", "wrong"), ("(B) or (C)", "wrong"), ("(B)(C)", "wrong"), ("B. C. D.", "wrong"),
    ("(B) is wrong, (C)", "wrong"), ("(B) is wrong", "wrong"), ("B: no, C", "wrong"), ("B. c", "wrong"),
    ("Option B", "right"), ("Answer: B", "right"), (r"\text{Option } (B)", "right"), ("Option C", "wrong"),
    ("Option B or C", "wrong"), ("Answer", "wrong"), ("Options: B", "wrong"),
    ("(b), (c), (d)", "wrong"), ("b) c) d)", "wrong"), ("B. or c. or d.", "wrong"), ("B.c.d", "wrong"),
    ("B) not", "wrong"), ("B: A base", "wrong"), ("B: three", "wrong"), ("C: three", "wrong"),
    ("B: f(a) = 3", "right"), ("B. not so", "right"), ("b. " + r"\text{Both A and C}", "right"),
    (r"B \text{ or } C", "wrong"), (r"\text{(B)} \text{ and } \text{(A)}", "wrong"), ("[B] [A]", "wrong"),
])
def test_choice(box, why):
    problem = Problem("p", "Q\n\nA. A base\nB. Both A and C\nC. $three$", "B", "choice")
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
    (r"5\text{ m}", "5", {"rel_tol": 0.05, "unit": "m"}, True),
    (r"5\text{ cm}", "5", {"rel_tol": 0.05, "unit": "m"}, False),
    (r"5.1\text{ kilojoules}", "5", {"rel_tol": 0.05, "unit": r"$\mathrm{~kJ}$"}, True),
    (r"5\text{ kJ}", "5", {"rel_tol": 0.05, "unit": r"$\mathrm{~J}$"}, False),
    (r"5\text{ kJ/mol}", "5", {"rel_tol": 0.05, "unit": r"$\mathrm{kJ} \mathrm{~mol}^{-1}$"}, True),
    (r"5\text{ J/mol}", "5", {"rel_tol": 0.05, "unit": r"$\mathrm{kJ} \mathrm{~mol}^{-1}$"}, False),
    (r"5\text{ mm}", "5", {"rel_tol": 0.05, "unit": r"$10^{-3} \mathrm{~m}$"}, False),
    (r"25^\circ", "25", {"rel_tol": 0.05, "unit": r"${\circ}$"}, True),
    ("$69$,$84$", "84, 69", {}, True), ("(1,8,19),(4,5,7)", "$(4,5,7), (1,8,19)$", {}, True),
])
def test_science(answer, gold, meta, correct, verifier):
    problem = Problem("s", "Q", gold, meta=meta)
    assert verifier.score([f"\\boxed{{{answer}}}"], [problem])[0].correct == correct


HOSTILE = ["9^{9^{9^9}}", r"\binom{10^9}{5^9}", "(x+y+z+w)^{500}", "x" + "^x" * 60,
           r"\sum_{k=1}^{50000000} \frac{1}{k^3+1}", r"\int_0^1 \sin(\sin(\sin(x^x))) dx",
           "500000!", "e^{e^{e^{e^{e}}}}",
           "(2^{9999})^{9999}", "2^" * 300 + "2"]


def test_twenty_hostile_answers_in_a_row(verifier):
    """Those that are not refused at once end their worker: its successor is there at once."""
    boxes = [f"\\boxed{{{answer}+{i}}}" for i in (1, 2) for answer in HOSTILE]
    verifier.score([r"\boxed{1+x}"] * 2, [math("x+1"), math("x+2")])  # both workers are there
    start = time.monotonic()
    verdicts = verifier.score([*boxes, r"\boxed{x+2}"], [math("7")] * 20 + [math("2+x")])
    assert time.monotonic() - start < 20  # of CPU time it is 5 s with two workers
    assert [v.correct for v in verdicts] == [False] * 20 + [True]


PIECES = ["\\boxed{", "\\boxed ", "}", "{", "\\frac", "\\sqrt", "^", "_", "x", "1", "-", ",", "(", "]",
          "\\text{", "$", "\0", "\x7f", "\u200b", "\ud800", "\udfff", "½", "√", "\u2028", "\r", "\n", "\t",
          "```", "~~~", "```python\n", "\\", "%", "&", "=", "\\pm",
          "\\left", "\\begin{pmatrix}", "🙂", "'", '"', "#", "\\int", "∞", " ", "7*3=21", "B"]


def test_no_text_stalls_or_ends_the_trainer(verifier):
    rng = random.Random(0)
    choice, code = Problem("b", "Q", "B", "choice"), {"tests": {"type": "assert", "code": "assert f()"}}
    problems = [math("7"), math(r"\frac{x}{2}"), math("(1,2)"), choice, countdown(3, 7, 12, target=33)]
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(40))) for _ in range(2_000)]
    texts = [f"\\boxed{{{text}}}" if i % 2 else text for i, text in enumerate(texts)]
    start = time.monotonic()
    verdicts = verifier.score(texts, [problems[i % len(problems)] for i in range(len(texts))])
    assert time.monotonic() - start < 60 and len(verdicts) == 2_000
    lines = [rng.choice(PIECES) * 300_000 for _ in range(20)]  # up to 10 MB
    start = time.monotonic()
    for problem in problems:
        assert not any(verdict.correct for verdict in verifier.score(lines, [problem] * 20))
    assert time.monotonic() - start < 20
    blank = [line for line in lines if not fenced_blocks(line)]
    program = Problem("c", "Q", "", "code", meta=code)
    assert {*whys(verifier, [(line, program) for line in blank])} == {"no answer"}


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
    def ask(self, request, seconds):
        sent.append(request)
        return real(self, request, seconds)

    sent, real = [], workers.Worker.ask
    monkeypatch.setattr(workers.Worker, "ask", ask)
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


@pytest.mark.parametrize("value, why", [
    ("True", "right"), ("False", "wrong"), ("1", "right"), ("0", "wrong"), ("1.0", "right"), ("0.0", "wrong"),
    ("np.bool_(True)", "right"), ("np.bool_(False)", "wrong"), ("np.int64(1)", "right"),
    ("np.float32(0)", "wrong"),
])
def test_what_an_own_verifier_may_return(value, why):
    assert workers.meaning(eval(value, {"np": np}), "own:check") == (why, "")


@pytest.mark.parametrize("value", [
    "-1.0", "0.5", "[0.0]", "None", "'right'", "2", "float('nan')", "np.array([True])", "np.float64(.5)",
    "{'score': 1.0}",
])
def test_what_it_may_not_return_ends_the_run(value, tmp_path, monkeypatch):
    """A reward of another kind would be read as right or wrong, whichever Python takes it for."""
    source = f"import numpy as np\ndef check(completion, problem): return {value}\n"
    (tmp_path / "own_value.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_value", raising=False)
    with Verifier(1, custom="own_value:check") as verifier, pytest.raises(UserError) as said:
        verifier.score(["x", "y"], [math("1")] * 2)
    shown = repr(eval(value, {"np": np}))
    assert str(said.value).startswith(f"--verifier own_value:check returned {shown}: ")
    assert "\n" not in str(said.value)


def test_an_error_is_shown_once_with_its_traceback(own, capsys):
    pairs = [("1", math("1")), ("raise", math("1")), ("raise", math("2"))]
    assert whys(own, pairs) == ["right", "error", "error"]
    assert whys(own, pairs) == ["right", "error", "error"]
    said = capsys.readouterr().err
    assert said.count("RuntimeError: as asked") == 1 and 'raise RuntimeError("as asked")' in said


@pytest.mark.parametrize("completions, said", [
    (["raise"] * 3, r"judged none of the first 1 completions \({'error': 1}\): mend it"),
    (["raise", "sleep"], r"judged none of the first 2 completions \({'error': 1, 'timeout': 1}\): mend it"),
])
def test_a_first_batch_without_a_verdict_ends_the_run(own, completions, said):
    """What never works would train on rewards of 0."""
    with pytest.raises(UserError, match=rf"^--verifier own_verifier:check {said}"):
        own.score(completions, [math("1")] * len(completions))


def test_memory_of_an_own_verifier(tmp_path, monkeypatch):
    source = "def check(completion, problem): return len(bytearray(10**9)) == 10**9\n"
    (tmp_path / "own_large.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with Verifier(1, 30, "own_large:check") as verifier:
        assert whys(verifier, [("x", math("1"))]) == ["right"]
    small = Verifier(1, 30, "own_large:check", memory=1)
    with small as verifier, pytest.raises(UserError, match="memory"):
        verifier.score(["x"], [math("1")])


@pytest.mark.parametrize("name, said", [
    ("no_such_module:check", "no_such_module"), ("own_verifier:nope", "nope"),
    ("own_verifier", "module:function"),
    ("own_verifier:OWN", "OWN"), (":check", "module:function"),
])
def test_unknown_module_or_function(own, name, said):
    with pytest.raises(UserError, match=said):
        Verifier(custom=name)


@pytest.mark.parametrize("source, said", [
    ("raise RuntimeError('no key')", r"importing bad raised RuntimeError: no key"),
    ("def f(:", r"importing bad raised SyntaxError: invalid syntax .*line 1.*"),
    ("import sys\nsys.exit(3)", "importing bad raised SystemExit: 3"),
    ("assert 0", "importing bad raised .*"),
    ("import not_there", "importing bad raised ModuleNotFoundError: No module named 'not_there'"),
])
def test_a_module_that_cannot_be_imported_is_one_line(source, said, tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=rf"^--verifier bad:check: {said}$"):
        Verifier(custom="bad:check")


def test_an_own_verifier_that_forks_answers_once(tmp_path, monkeypatch):
    source = "import os\ndef check(completion, problem):\n    os.fork()\n    return completion == '1'\n"
    (tmp_path / "own_fork.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with Verifier(1, custom="own_fork:check") as verifier:
        wanted = ["right", "wrong", "wrong", "right"] * 5
        assert whys(verifier, [("1" if why == "right" else "0", math("1")) for why in wanted]) == wanted


# ---- processes ---------------------------------------------------------------------------------------------

def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(") ")[2][0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_close_leaves_no_worker(own, monkeypatch):
    def start(self):
        real(self)
        pids.append(self.pid)

    pids, real = [], workers.Worker.start
    monkeypatch.setattr(workers.Worker, "start", start)
    own.pool.size = 2
    pairs = [("os._exit", math("x")), ("sleep", math("x")), ("1", math("1"))]
    assert whys(own, pairs) == ["error", "timeout", "right"]
    pids.append(own.pool.template.pid)
    own.close()
    assert len(set(pids)) >= 4
    assert ended(*pids)
    assert whys(own, [("1", math("1"))]) == ["right"]  # a closed verifier starts again


def ended(*pids) -> bool:
    """Within a second: the kernel takes a moment to clear away what is killed."""
    until = time.monotonic() + 1
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_close_leaves_no_child_of_a_worker(own, tmp_path):
    assert whys(own, [("1", math("1")), ("child", math("x"))]) == ["right", "timeout"]
    own.close()
    child = int((tmp_path / "child").read_text())
    try:
        assert ended(child)
    finally:
        if alive(child):
            os.kill(child, 9)


def test_workers_end_with_the_trainer(tmp_path):
    """Whatever ends it: nothing is left of a run that the scheduler has killed."""
    program = """
import os, sys, time
from data import Problem
from verify import Verifier
verifier = Verifier(1)
verifier.score([r"\\boxed{1}"], [Problem("m", "Q", "1")])
print(verifier.pool.template.pid, verifier.pool.workers[0].pid, flush=True)
time.sleep(60)
"""
    trainer = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    trainer.kill()
    trainer.communicate()
    assert len(pids) == 2 and ended(*pids)


@pytest.mark.parametrize("what", ["worker", "template"])
def test_a_process_that_died_between_batches_is_replaced(own, what):
    # The kernel takes the largest process when memory is short: that must not end a training run.
    assert whys(own, [("1", math("1"))]) == ["right"]
    pid = own.pool.workers[0].pid if what == "worker" else own.pool.template.pid
    os.kill(pid, signal.SIGKILL)
    if what == "template":
        own.pool.template.wait()
    assert ended(pid, own.pool.workers[0].pid)
    assert whys(own, [("2", math("2"))]) == ["right"]


def test_workers_that_do_not_start_are_one_clear_line():
    said = "^verifier workers do not start: `.*` says why$"
    with Verifier(2) as verifier, pytest.raises(UserError, match=said):
        verifier.pool.command[1] = "/no/such/file.py"
        verifier.score([rf"\boxed{{{i}}}" for i in range(9)], [math("1")] * 9)


def test_ctrl_c_reaches_the_trainer_alone(verifier):
    """A worker is no part of the group that a terminal sends it to."""
    assert whys(verifier, [(r"\boxed{x+1}", math("1+x"))]) == ["right"]
    pids = [worker.pid for worker in verifier.pool.workers] + [verifier.pool.template.pid]
    assert all(os.getpgid(pid) == pid for pid in pids)


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


def test_a_gold_that_timed_out_is_asked_once_more(monkeypatch, capsys):
    """On a busy machine that is no reason to train without it."""
    problems, asked = [Problem(f"p{i}", "Q", f"{i}") for i in range(200)], []

    class Busy:
        custom, code_seconds, pool = None, 5, SimpleNamespace(ask=lambda requests: [])

        def score(self, golds, problems):
            asked.append([problem.id for problem in problems])
            late = {0: {"p3", "p7"}, 1: {"p7"}}.get(len(asked) - 1, set())
            why = ["timeout" if problem.id in late else "right" for problem in problems]
            return [Verdict(each == "right", each) for each in why]

    kept = check_golds(problems, Busy())
    assert [p.id for p in problems if p not in kept] == ["p7"] and asked[1] == ["p3", "p7"]
    said = capsys.readouterr().err
    assert "1 of 200 reference answers do not verify against themselves: p7 (timeout)" in said


def test_golds_are_checked_by_their_value(verifier, monkeypatch, capsys):
    """Not against their own string, which is always the same; what no answer can meet is named so."""
    plain = {"x=5": "5", "['34']": None, "7": "8"}
    monkeypatch.setattr(answers, "plain", lambda gold: plain.get(gold, gold), raising=False)
    golds = ["x=5", "['34']", "7", *map(str, range(100, 400))]
    problems = [Problem(f"p{i}", "Q", gold) for i, gold in enumerate(golds)]
    kept = check_golds(problems, verifier)
    assert [p.id for p in problems if p not in kept] == ["p1", "p2"]
    assert ": p1 (no answer can meet it), p2 (wrong): left out" in capsys.readouterr().err


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


def test_an_own_verifier_can_be_tried(tmp_path):
    """As its user would before training: on the reference answers, then on completions."""
    rows = [{"id": f"q{i}", "question": "Q", "answer": f"{i}"} for i in range(3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text("def right(completion, problem): return completion == problem.answer\n")
    sampled = [{"completion": "2", "id": "q2"}, {"completion": "1", "index": 1}, {"completion": "7"}]
    (tmp_path / "sampled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sampled))

    def said(*more, code=0):
        call = [sys.executable, ROOT / "verify.py", "--data", "data.jsonl", *more]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return [line.split() for line in (done.stderr if code else done.stdout).splitlines()]

    lines = said("--verifier", "mine:right")
    assert [line[:4] for line in lines[1:3]] == [["bare", "3", "3", "0"], ["boxed", "3", "0", "3"]]
    assert lines[3] == ["boxed", "q0:", "wrong", "for", r"'\\boxed{0}'"]
    assert lines[6] == ["bare", "q0:", "right", "for", "'0'"]
    lines = said("--verifier", "mine:right", "--completions", "sampled.jsonl")
    assert lines[1][:4] == ["completions", "3", "2", "1"]
    assert [line[1:3] for line in lines[2:]] == [["q2:", "right"], ["q1:", "right"], ["q2:", "wrong"]]
    assert said("--completions", "sampled.jsonl")[1][:5] == ["completions", "3", "0", "0", "3"]  # no box
    rollouts = [{"problem": "q2", "completion": "2", "answer": "2"}, {"problem": "q0", "completion": "1"}]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rollouts))
    lines = said("--verifier", "mine:right", "--completions", "rollouts.jsonl")
    assert [line[1:3] for line in lines[2:]] == [["q2:", "right"], ["q0:", "wrong"]]
    (tmp_path / "sampled.jsonl").write_text('{"completion": "2", "id": "q9"}\n')
    ((*error,),) = said("--completions", "sampled.jsonl", code=1)
    needs = "needs a completion, and an id or index of a problem of --data"
    assert " ".join(error) == f"error: sampled.jsonl, row 0: {needs}"


def test_self_check_of_the_command_line(tmp_path):
    rows = [{"question": "Q", "answer": "1"}] * 3 + [{"question": "Q", "choices": ["a", "b"], "answer": 0}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call = [sys.executable, ROOT / "verify.py", "--data", "data.jsonl"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = [line.split()[:3] for line in done.stdout.splitlines()[1:3]]
    assert table == [["choice", "1", "1"], ["math", "3", "3"]]
    assert done.stdout.endswith("data.jsonl: 4 of 4 reference answers verify against themselves\n")


BAD_ROWS = {  # by flag: rows, and the message of each
    "--cases": [
        ([], "bad.jsonl has no rows"), ([["a"]], "row 0: needs"),
        ([{"prediction": "1", "gold": "1", "correct": "false"}], "row 0: needs"),
        ([{"prediction": "1", "gold": "1", "correct": 1}], "row 0: needs"),
        ([{"prediction": None, "gold": "1", "correct": True}], "row 0: needs"),
        ([{"prediction": "1", "gold": 1, "correct": True}], "row 0: needs"),
        ([{"prediction": "1", "gold": "1", "correct": True, "kind": ["a"]}], "row 0: needs"),
        ([{"prediction": "1", "domain": "countdown", "correct": True}], "row 0: needs"),
    ],
    "--completions": [
        ([], "bad.jsonl has no rows"), ([["a"]], "row 0: needs"), ([{"completion": None}], "row 0: needs"),
        *([[{"completion": "1", "index": index}], "row 0: needs"] for index in (-1, 0.9, True, "0", 3, [])),
        *([[{"completion": "1", "problem": name}], "row 0: needs"] for name in ("other/0", 0, [])),
    ],
}


@pytest.mark.parametrize("flag", BAD_ROWS)
def test_rows_that_cannot_be_judged_are_one_line(flag, tmp_path):
    for rows, said in BAD_ROWS[flag]:
        (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(UserError, match=said) as error:
            if flag == "--cases":
                labelled.read_cases(str(tmp_path / "bad.jsonl"))
            else:
                labelled.read_completions(str(tmp_path / "bad.jsonl"), [math("1")])
        assert "\n" not in str(error.value)


def test_rows_with_empty_columns_are_read(tmp_path):
    """A table has every column in every row."""
    columns = "prediction completion pieces gold tests domain kind index id"
    empty = dict.fromkeys(columns.split())
    rows = [{"prediction": "1", "gold": "1", "correct": True},
            {"pieces": [["a", 2]], "gold": "1", "correct": False},
            {"completion": "3-2=1", "domain": "countdown", "numbers": [3, 2], "target": 1, "correct": True}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(empty | row) + "\n" for row in rows))
    cases = labelled.read_cases(str(tmp_path / "rows.jsonl"))
    assert [case.completion for case in cases] == ["1", "aa", "3-2=1"]
    assert {case.kind for case in cases} == {"all"}
    assert countdown_verdict(cases[2].completion, cases[2].problem).correct
    (tmp_path / "rows.jsonl").write_text(json.dumps(empty | {"completion": "1"}) + "\n")
    assert labelled.read_completions(str(tmp_path / "rows.jsonl"), [math("1")])[0][1] == "1"


@pytest.mark.parametrize("settings", [{"time_limit": -1}, {"time_limit": float("nan")}, {"memory": 0}])
def test_limits_are_above_zero(settings):
    with pytest.raises(UserError, match=r"^--verifier-(seconds|memory) \S+: give a number above 0$"):
        Verifier(**settings)
