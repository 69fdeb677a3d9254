"""Programs that are right, wrong, and hostile; and that nothing of them is left afterwards."""

import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import data
from data import Problem, UserError
from machinery import fences
from verify import Verifier, check_golds, gold_completion

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared/data"
FIB = "assert fib(0) == 0\nassert fib(1) == 1\nassert fib(10) == 55\nassert fib(30) == 832040"
NAP = 90_000 + os.getpid()  # seconds that a left-behind process sleeps: known as one of this run
GOOD = "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n"

# ---- the modes of the sandbox ------------------------------------------------------------------------------

# Makes a Python that other users cannot read (in root's folder, say) readable, for what it starts alone.
OPENED = [] if os.getuid() else ["unshare", "--mount", "sh", "-c", f"""set -e
prefix={sys.base_prefix}
top=/$(echo $prefix | cut -d/ -f2)
if ! setpriv --reuid=65534 --regid=65534 --clear-groups sh -c "cd $prefix" 2> /dev/null; then
    kept=$(mktemp -d)
    mount --rbind $prefix $kept
    mount -t tmpfs -o mode=755 none $top
    mkdir -p $prefix
    mount --rbind $kept $prefix
    umount -l $kept
    rmdir $kept
fi
exec "$@"
""", "sh"]
NO_ONE = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
STARTED = {  # how the workers of each mode are started here
    "root": [],
    "user": [*OPENED, *NO_ONE] if os.getuid() == 0 else [],
    "nobody": OPENED,
}


def offered(mode: str) -> bool:
    """Whether this machine lends it."""
    if mode != "user" and os.getuid():
        return False
    program = f"""
import ctypes, sys
ctypes.CDLL(None).prctl(36, 1)
sys.path.insert(0, {str(ROOT)!r})
from machinery import sandbox
tests = {{"type": "assert", "code": "assert f() == 1"}}
print(sandbox.judge([("python", "import heapq\\ndef f(): return 1")], tests, {mode!r}))
"""
    call = [*STARTED[mode], sys.executable, "-c", program]
    asked = subprocess.run(call, cwd="/", capture_output=True, text=True)
    return asked.stdout == "right\n"


OFFERED = [mode for mode in STARTED if offered(mode)]
MODES = [pytest.param(mode, marks=pytest.mark.skipif(mode not in OFFERED, reason="not lent by this machine"))
         for mode in STARTED]


def verifier_of(mode: str, **settings) -> Verifier:
    verifier = Verifier(**settings)
    verifier.sandbox = mode
    verifier.pool.command[:0] = STARTED[mode]
    return verifier


def code(tests: dict | str) -> Problem:
    tests = {"type": "assert", "code": tests} if isinstance(tests, str) else tests
    return Problem("p", "Q", "", "code", meta={"tests": tests})


def fenced(program: str) -> str:
    return f"So:\n\n```python\n{program}\n```\n".replace("'NAP'", f"'{NAP}'")


def stdio(*cases: tuple[str, str]) -> dict:
    return {"type": "stdio", "cases": [{"input": given, "output": wanted} for given, wanted in cases]}


@pytest.fixture(scope="module", autouse=True)
def temporary_folder():
    """The programs' folders are made here, where no other run on this machine makes any."""
    folder = Path(tempfile.mkdtemp(prefix="programs-"))
    folder.chmod(0o1777)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        yield folder
    folder.rmdir()


@pytest.fixture(scope="module")
def verifier(temporary_folder):
    with Verifier(workers=2) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def hasty(temporary_folder):
    """For programs that sleep or spin until they are ended: 1 s of CPU time in place of 5."""
    with Verifier(workers=3, code_seconds=1) as verifier:
        yield verifier


@pytest.fixture(autouse=True)
def nothing_left(temporary_folder):
    """No process and no folder of a program is left after a test. Workers stay until the module ends."""
    yield
    until = time.monotonic() + 3
    while (left := processes()) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []
    assert os.listdir(temporary_folder) == []


def processes() -> list[str]:
    """Command lines of the sandboxes under this process, and of what programs of the tests have started."""
    commands, parents = {}, {}
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            command = Path(f"{folder}/cmdline").read_text(errors="replace")
            commands[int(folder[6:])] = command.replace("\0", " ")
            parents[int(folder[6:])] = int(Path(f"{folder}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    left = [c for pid, c in commands.items() if ("def run_cases(" in c and ours(pid)) or f"sleep {NAP}" in c]
    return [c[:100] for c in left]


def whys(verifier, *pairs) -> list[str]:
    return [v.why for v in verifier.score([c for c, _ in pairs], [code(t) for _, t in pairs])]


# ---- programs that are right or wrong ----------------------------------------------------------------------

@pytest.mark.parametrize("program, tests, why", [
    (GOOD, FIB, "right"),
    ("def fib(n):\n    return n", FIB, "wrong"),
    ("def fib(n)\n    return n", FIB, "wrong"),
    ("def fob(n):\n    return n", FIB, "wrong"),
    (GOOD + "raise ValueError", FIB, "wrong"),
    ("import math\ndef f(x): return math.sqrt(x)", "assert abs(f(2) - 1.41421356) < 1e-6", "right"),
    ("def f(x): return float('nan')", "assert abs(f(2) - 1.4) < 1", "wrong"),
    ("def f(x): return float('nan')", "assert f(1) != f(1)", "right"),
    ("def f(x): return float('inf')", "assert f(1) == float('inf')", "right"),
    ("def f(x): return (1, 2)", "assert f(1) == (1, 2)", "right"),
    ("def f(x): return [1, 2]", "assert f(1) == (1, 2)", "wrong"),
    ("def f(x): return {1, 2}", "assert f(1) == {2, 1}", "right"),
    ("def f(x): return frozenset([1])", "assert f(1) == {1} and isinstance(f(1), frozenset)", "right"),
    ("def f(x): return {1: [2], 'a': (None, True)}", "assert f(1) == {1: [2], 'a': (None, True)}", "right"),
    ("def f(x): return b'a' + x", "assert f(b'b') == b'ab'", "right"),
    ("def f(x): return x * 2", "assert f('½\\n') == '½\\n½\\n' and f(1j) == 2j and f([1]) == [1, 1]",
     "right"),
    ("def f(x): return 3 ** x", "assert f(9000) == 3 ** 9000", "right"),
    ("def f(x): return (i for i in range(x))", "assert list(f(3)) == [0, 1, 2]", "right"),
    ("def f(x): return (i for i in range(x))", "assert f(3) == [0, 1, 2]", "wrong"),
    ("import itertools\ndef f(): return itertools.count()", "g = f()\nassert [next(g), next(g)] == [0, 1]",
     "right"),
    ("from collections import Counter\nf = Counter", "assert f('aab') == {'a': 2, 'b': 1}", "right"),
    ("from collections import deque\ndef f(): return deque([1])", "from collections import deque\n"
     "assert f() == deque([1])", "right"),
    ("def f(a, *, b=2): return a + b", "assert f(1) == 3 and f(1, b=5) == 6", "right"),
    ("def f(x): return x[0]", "try:\n    f([])\nexcept IndexError:\n    pass\nelse:\n    assert False",
     "right"),
    ("def f(x): return 1", "try:\n    f([])\nexcept IndexError:\n    pass\nelse:\n    assert False", "wrong"),
    ("N = 3", "assert N == 3", "right"),
    ("class S:\n    def __init__(self): self.v = []\n    def push(self, x): self.v.append(x)\n"
     "    def pop(self): return self.v.pop()",
     "s = S()\ns.push(1)\ns.push(2)\nassert s.pop() == 2 and s.v == [1]", "right"),
    ("class S:\n    def pop(self): return 1", "s = S()\nassert s.pop() == 2", "wrong"),
    ("class P:\n    pass\ndef f(): return P()\ndef g(p): return isinstance(p, P)", "assert g(f())", "right"),
    ("def f(x):\n    return sorted(x)", "import random\nfor n in range(20):\n"
     "    x = [random.random() for _ in range(n)]\n"
     "    assert f(x) == sorted(x)", "right"),
    ("import threading, time\nt = threading.Thread(target=time.sleep, args=(98,))\nt.start()\n"
     "def f(): return 1",
     "assert f() == 1", "right"),
    ("print('x' * 100)\ndef f():\n    print('y')\n    return 1", "assert f() == 1", "right"),
    ("import sys\ndef f():\n    sys.stdout = None\n    sys.stdin = None\n"
     "    return 1", "assert f() == 1 and f() == 1", "right"),
    ("def f(x): return __name__", "assert f(1) != '__main__'", "right"),
    ("if __name__ == '__main__':\n    1 / 0\ndef f(): return 1", "assert f() == 1", "right"),
    ("def f(x): return object()", "assert f(1) == 5", "wrong"),
    ("def sum(a, b): return a - b", {"type": "assert", "code": "assert sum(3, 2) == 1", "entry_point": "sum"},
     "right"),
    ("print(int(input()) + 1)", stdio(("1\n", "2\n"), ("5", "6")), "right"),
    ("print(int(input()) + 1)", stdio(("1\n", "2\n"), ("5", "7")), "wrong"),
    ("import sys\nfor line in sys.stdin: print(line.strip() + '  ')\nprint()\nprint()",
     stdio(("a\nb\n", "a\nb")), "right"),
    ("print('a\\r\\nb', end='\\r\\n')", stdio(("", "a\nb\n")), "right"),
    ("print('a\\nb')", stdio(("", "a\r\nb\r\n")), "right"),
    ("print('a\\n\\nb')", stdio(("", "a\nb\n")), "wrong"),
    ("print(' a')", stdio(("", "a\n")), "wrong"),
    ("print('½')", stdio(("", "½\n")), "right"),
    ("if __name__ == '__main__':\n    print(1)", stdio(("", "1")), "right"),
    ("print(1)\nraise SystemExit", stdio(("", "1")), "right"),
    ("print(1)\n1 / 0", stdio(("", "1")), "wrong"),
    ("", stdio(("", "")), "right"),
    ("pass", stdio(("", "1")), "wrong"),
    ("import sys\nprint(len(sys.stdin.read()))", stdio(("x" * 10**6, "1000000")), "right"),
    ("print(input() + input())", stdio(("a\n", "aa")), "wrong"),
])
def test_program(program, tests, why, verifier):
    assert whys(verifier, (fenced(program), tests)) == [why]


@pytest.mark.parametrize("completion, why", [
    ("no block", "no answer"), ("```python\n" + GOOD, "right"), ("```\n" + GOOD + "```", "right"),
    ("```python\r\n" + GOOD.replace("\n", "\r\n") + "```", "right"), (fenced("x") + fenced(GOOD), "right"),
    (fenced(GOOD) + fenced("def fib(n): return n"), "wrong"),
    ("```py\n" + GOOD + "```\n" + "word " * 1000, "right"),
    ("`" * 200_000, "no answer"), ("``` \n" * 50_001, "wrong"), ("\ud800" + fenced(GOOD), "right"),
    (fenced("\ud800"), "wrong"),
])
def test_the_last_block_is_the_program(completion, why, verifier):
    assert whys(verifier, (completion, FIB)) == [why]


@pytest.mark.parametrize("program, tests, why", [
    ("import numpy as np\ndef f(a): return np.sum(a)", "assert f([1, 2]) == 3", "right"),
    ("import numpy as np\ndef f(a): return np.all(a), np.int8(3)", "assert f([1]) == (True, 3)", "right"),
    ("import numpy as np\ndef f(a): return np.float32(a)",
     "assert abs(f(.1) - .1) < 1e-6 and f(.5) == .5", "right"),
    ("import numpy as np\ndef f(a): return np.array(a) * 2",
     "import numpy as np\n"
     "assert f([1, 2]).tolist() == [2, 4] and np.allclose(f(np.ones(2)), [2, 2])", "right"),
    ("import numpy as np\ndef f(a): return np.array(a)", "assert (f([1, 2]) == [1, 3]).all()", "wrong"),
    ("def f(n): return range(n)", "assert f(3) == range(3) and list(f(2)) == [0, 1]", "right"),
    ("def f(d): return d.keys(), d.values(), d.items()",
     "k, v, i = f({'a': 1})\nassert k == {'a'} and list(v) == [1] and sorted(i) == [('a', 1)]", "right"),
    ("from decimal import Decimal\ndef f(x): return Decimal(x)",
     "from decimal import Decimal\nassert f('0.1') == Decimal('0.1')", "right"),
    ("from fractions import Fraction\ndef f(x): return Fraction(1, x)",
     "from fractions import Fraction\nassert f(2) == Fraction(1, 2) == .5", "right"),
    ("from datetime import *\n"
     "def f(d): return d + timedelta(1), datetime(2024, 2, 28, 7), timedelta(hours=1)",
     "from datetime import *\nassert f(date(2024, 2, 28)) == "
     "(date(2024, 2, 29), datetime(2024, 2, 28, 7), timedelta(hours=1))", "right"),
    ("class I(int): pass\ndef f(x): return [I(x), True, x ** 70, bytearray(b'a')]",
     "assert f(2) == [2, True, 2 ** 70, b'a']", "right"),
    ("def f(x: List[int]) -> Optional[int]: return x[0]", "assert f([1]) == 1", "right"),  # as on LeetCode
    ("class Solution:\n    def twoSum(self, nums: List[int], target: int) -> List[int]: return [0, 1]",
     {"type": "assert", "code": "def check(candidate):\n    assert candidate([2, 7], 9) == [0, 1]",
      "entry_point": "Solution().twoSum"}, "right"),
    ("from __future__ import annotations\nfrom dataclasses import dataclass\n"
     "@dataclass\nclass P:\n    x: int\ndef f(x): return P(x)", "assert f(2).x == 2", "right"),
    ("def f(x): return x", "for f_ in (1, 2):\n    def g(f): return f\n    assert g(f(f_)) == f_", "right"),
])
def test_results_are_compared_by_value(program, tests, why, verifier):
    assert whys(verifier, (fenced(program), tests)) == [why]


RIGHT, WRONG = "def f(x): return x + 1", "def f(x): return 'x'"
CASE = "import unittest\nclass {}(unittest.TestCase):\n    def setUp(self): self.one = 1\n"
CASE_OF_TWO = (
    CASE.format("T") + "    def test_f(self):\n        self.assertEqual(f(1), 2)\n"
    "    def test_g(self):\n        self.assertEqual(f(2), 3)\n"
)
TESTED = {  # tests that `RIGHT` passes and `WRONG` does not
    "pytest": "def test_f():\n    assert f(1) == 2\n",
    "pytest, wrong at the second": "def test_f():\n    assert f(1) != 3\n"
        "def test_g():\n    assert f(1) == 2\n",
    "unittest": CASE.format("T") + "    def test_f(self):\n        self.assertEqual(f(self.one), 2)\n",
    "unittest by name": CASE.format("TestCases")
        + "    def test_f(self):\n        self.assertTrue(f(1) == 2)\n"
        "if __name__ == '__main__':\n    unittest.main()\n",
    "check": {"code": "def check(candidate):\n    assert candidate(1) == 2\n", "entry_point": "f"},
    "check that is called": {"code": "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)",
        "entry_point": "f"},
    "helper": "def same(a, b):\n    assert a == b\nsame(f(1), 2)",
    "raise": "if f(1) != 2:\n    raise ValueError",
    "numpy": "import numpy as np\nnp.testing.assert_allclose(f(1), 2)",
    "exit": "import sys\nassert f(1) == 2\nsys.exit(0)", "exit without import": "assert f(1) == 2\nexit(0)",
    "main": CASE.format("T") + "    def test_f(self):\n        self.assertEqual(f(1), 2)\nunittest.main()\n",
    "main by name": CASE.format("T") + "    def test_f(self):\n        self.assertEqual(f(1), 2)\n"
        "from unittest import main\nmain()\n",
    "else": "if f(1) == 2:\n    print('ok')\nelse:\n    raise ValueError",
    "class of pytest": "class TestF:\n    def setup_method(self): self.one = 1\n"
        "    def test_f(self):\n        assert f(self.one) == 2\n",
    "skipped": CASE.format("T") + "    @unittest.skip('later')\n    def test_g(self): assert 0\n"
        "    def test_f(self):\n        self.assertEqual(f(1), 2)\n",
    "class skipped": "import unittest\n@unittest.skip('later')\nclass S(unittest.TestCase):\n"
        "    def test_g(self): assert 0\ndef test_f():\n    assert f(1) == 2\n",
    "result first": "result = [f(i) for i in range(3)]\nassert result == [1, 2, 3]",
}
UNTESTED = {  # tests that compare nothing: no program is right
    "no code": "", "no cases": {"type": "stdio", "cases": []},
    "check that is not called": "def check(candidate):\n    assert candidate(1) == 2\n",
    "function with arguments": "def test_f(case):\n    assert f(1) == 2\n",
    "call": "f(1)", "name": "assert callable(f)", "print": "print(f(1) == 2)",
    "loop of none": "for x in []:\n    assert f(x) == 2", "before the result": "assert True\nf(1)",
    "pass": "def test_f():\n    pass",
    "exit of a failure": "import sys\nassert f(1) == 2\nsys.exit(1)", "exit first": "f(1)\nexit()",
    "class with arguments": "class TestF:\n    def test_f(self, case): assert f(1) == 2\n",
    "all skipped": CASE.format("T") + "    def test_f(self): self.skipTest('no')\n",
}


def as_tests(tests: dict | str) -> dict:
    return {"type": "assert", **({"code": tests} if isinstance(tests, str) else tests)}


@pytest.mark.parametrize("name", TESTED)
def test_tests_of_every_kind_are_run(name, verifier):
    tests = as_tests(TESTED[name])
    assert whys(verifier, (fenced(RIGHT), tests), (fenced(WRONG), tests)) == ["right", "wrong"]


@pytest.mark.parametrize("name", UNTESTED)
def test_where_nothing_is_checked_nothing_is_right(name, verifier):
    assert whys(verifier, (fenced(RIGHT), as_tests(UNTESTED[name]))) == ["wrong"]


def test_problems_that_a_program_passes_that_does_nothing(verifier, capsys):
    """Their rewards could be had for nothing: they are named and left out."""
    passed = ["assert f(1) != 7", "assert f(1)",
              "try:\n    assert f(1) == 3\nexcept AssertionError:\n    assert 1", "f(1)\nassert True",
              stdio(("1", ""))]
    good = [Problem(f"good/{i}", "Q", RIGHT, "code", meta={"tests": as_tests(f"assert f({i}) == {i + 1}")})
            for i in range(1, 4)]
    bad = [Problem(f"bad/{i}", "Q", RIGHT, "code", meta={"tests": as_tests(tests)})
           for i, tests in enumerate(passed)]
    rest = [Problem(f"math/{i}", "Q", f"{i}") for i in range(600)]
    assert check_golds([*good, *bad, *rest], verifier) == [*good, *rest]
    said = capsys.readouterr().err
    assert "5 of 608" in said and "good" not in said
    assert all(f"bad/{i} (a program that does nothing passes its tests)" in said for i in range(5))
    with pytest.raises(UserError, match="bad/0"):
        check_golds([*good, *bad], verifier)


def test_problems_that_a_constant_passes(verifier, capsys):
    tests = {"if abs(f(1) - 2) > 1e-6:\n    raise AssertionError": 2, "assert f(1) == 0": 0,
             "assert all(a == b for a, b in zip(f([2, 1]), [1, 2]))": [1, 2], "assert f(1) == True": True,
             "assert f(1) is None": None, "assert (f(1) == [1]).all()": "__import__('numpy').array([1])",
             "try:\n    f(1)\nexcept Exception:\n    pass\nelse:\n    assert f(1) == 2": 2,
             "assert f(1) == {'x': 1}": {"x": 1}}
    problems = [Problem(f"{i}", "Q", f"def f(x): return {value}", "code", meta={"tests": as_tests(code)})
                for i, (code, value) in enumerate(tests.items())]
    rest = [Problem(f"math/{i}", "Q", f"{i}") for i in range(700)]
    assert check_golds([*problems, *rest], verifier) == [problems[-1], *rest]
    said = capsys.readouterr().err
    why = "a program that always returns the same, or raises, passes its tests"
    named = [i for i in range(8) if f" {i} ({why})" in said]
    assert named == [0, 1, 2, 3, 4, 5, 6]


SHAPES = """
import enum, collections, json
class MyError(ValueError):
    def __init__(self, code): self.code = code
    def __str__(self): return f'code {self.code}'
class Color(enum.Enum):
    RED = 1
    BLUE = 2
class Box:
    def __init__(self, *items): self.items, self.balance, self.empty = list(items), 0, not items
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]
    def __setitem__(self, i, x): self.items[i] = x
    def __delitem__(self, i): del self.items[i]
    def __iter__(self): return iter(self.items)
    def __str__(self): return f'Box{self.items}'
    def __add__(self, other): return Box(*self.items, *other.items)
    def __mul__(self, n): return Box(*self.items * n)
    def __sub__(self, other): return len(self.items) - len(other.items)
    def double(self): return self.balance * 2
Point = collections.namedtuple('Point', 'x y')
def neg(x):
    if x < 0: raise ValueError('neg')
def mine(x): raise MyError(x)
def load(text): return json.loads(text)
def count(text): return collections.Counter(text)
def pick(n): return Color(n)
"""


@pytest.mark.parametrize("tests, wrong", [  # and what would be wrong
    ("b = Box(1, 2)\nassert len(b) == 2", "b = Box(1)\nassert len(b) == 2"),
    ("b = Box(1, 2)\nassert b[1] == 2 and b[-1] == 2", "assert Box(1)[0] == 2"),
    ("b = Box(1, 2)\nb[0] = 5\ndel b[1]\nassert list(b) == [5]", "b = Box(1)\nb[0] = 5\nassert b[0] == 1"),
    ("assert str(Box(1)) == 'Box[1]' and f'{Box(1)}' == 'Box[1]'", "assert str(Box(1)) == 'Box[2]'"),
    ("assert list(Box(1) + Box(2)) == [1, 2] and list(Box(1) * 2) == [1, 1]",
     "assert Box(1) + Box(2) == [1, 2]"),
    ("assert Box(1, 2) - Box(1) == 1", "assert Box(1) - 1 == 0"),
    ("assert 2 in Box(1, 2) and 3 not in Box(1, 2)", "assert 3 in Box(1, 2)"),
    ("assert isinstance(Box(1), Box) and not isinstance(pick(1), Box)", "assert isinstance(pick(1), Box)"),
    ("assert pick(1) == Color.RED and pick(2) is Color.BLUE", "assert pick(1) == Color.BLUE"),
    ("assert pick(1) != Color.BLUE and pick(1).name == 'RED'", "assert pick(1) != Color.RED"),
    ("p = Point(1, 2)\nassert p.x == 1 and p == (1, 2)", "assert Point(1, 2).x == 2"),
    ("try:\n    neg(-1)\nexcept ValueError as e:\n    assert str(e) == 'neg'\nelse:\n    assert 0",
     "try:\n    neg(-1)\nexcept ValueError as e:\n    assert str(e) == 'pos'"),
    ("try:\n    mine(3)\nexcept MyError as e:\n    assert str(e) == 'code 3' and e.code == 3\n"
     "else:\n    assert 0",
     "try:\n    neg(-1)\nexcept MyError:\n    pass"),
    ("try:\n    mine(3)\nexcept ValueError:\n    pass\nelse:\n    assert 0",
     "try:\n    mine(3)\nexcept KeyError:\n    pass"),
    ("import json\ntry:\n    load('{')\nexcept json.JSONDecodeError as e:\n    assert e.pos == 1\n"
     "else:\n    assert 0", "import json\ntry:\n    neg(-1)\nexcept json.JSONDecodeError:\n    pass"),
    ("assert count('aab')['missing'] == 0 and count('aab') == {'a': 2, 'b': 1}",
     "assert count('a')['a'] == 2"),
    ("b = Box()\nb.balance = 5\nassert b.double() == 10", "b = Box()\nb.empty = 5\nassert b.double() == 10"),
    ("assert Box(1) and not Box()", "assert Box()"),
])
def test_objects_of_the_program(tests, wrong, verifier):
    assert whys(verifier, (fenced(SHAPES), tests), (fenced(SHAPES), wrong)) == ["right", "wrong"]


@pytest.mark.parametrize("program, tests, why", [
    ("class Counter:\n    def __init__(self): self.n = 0\n    def inc(self): self.n += 1",
     "c = Counter()\nc.inc()\nassert c.n == 1", "right"),
    ("def calendar(x): return x", "assert calendar(3) == 3", "right"),
    ("def select(x): return x", "assert list(map(select, [3])) == [3]", "right"),
    ("def sum(a, b): return a - b", "assert sum(3, 2) == 1", "right"),
    ("def sum(a, b): return a", "assert sum(3, 2) == 1", "wrong"), ("def g(): pass", "assert sum([1]) == 1",
     "wrong"),
    ("import math\ndef f(x): return x ** .5", "assert math.isclose(f(4), 2)", "right"),
    ("def f(x): return x ** .5", "assert math.isclose(f(4), 2)", "right"),
    # What compares stays Python's.
    ("def f(x): return 0\ndef all(x): return True", "assert all([f(4) == 2])", "wrong"),
    ("def f(x): return 0\ndef abs(x): return 0", "assert abs(f(4) - 2) < 1e-6", "wrong"),
    ("def f(x): return 0\nclass math:\n    isclose = lambda *a: True", "assert math.isclose(f(4), 2)",
     "wrong"),
    ("def f(x): return [0]\ndef Counter(x): return 1", "assert Counter(f(4)) == Counter([2])", "wrong"),
    ("class f:\n    def __init__(self, x): pass\n    def __sub__(self, x): return 0\n    __abs__ = __sub__",
     "assert abs(f(4) - 2) < 1e-6", "wrong"),
    ("class f:\n    def __init__(self, x): pass\n    def __lt__(self, x): return True\n"
     "    __contains__ = __lt__",
     "assert 3 in f(4)", "wrong"),
    ("import unittest\ndef f(x):\n    if x > 1: raise unittest.SkipTest\n    return 2",
     CASE_OF_TWO, "wrong"),
    ("def f(x): return 0", "assert f", "wrong"), ("def f(x): return 0", "sum\nassert f(1) == 0", "right"),
    ("def f(x): return range(10 ** 12)", "assert sum(f(1)) == 2", "wrong"),
])
def test_whose_names_and_whose_word(program, tests, why, verifier):
    assert whys(verifier, (fenced(program), tests)) == [why]


def test_tests_that_take_long_are_a_timeout(hasty):
    start = time.monotonic()
    assert whys(hasty, (fenced("def f(x): return x"), "while f(1) == 1:\n    pass")) == ["timeout"]
    assert time.monotonic() - start < 10  # the limit of the tests, 2 s: the worker has 32


def test_input_and_output_as_lists_and_numbers(verifier):
    cases = [{"input": ["2", "3 4"], "output": [5, 9]}, {"input": ["0", 1], "output": 1}]
    program = "n = int(input())\nx = sum(map(int, input().split()))\n"
    program += "print(x - n if n else 1)\nif n: print(x + n)"
    assert whys(verifier, (fenced(program), {"type": "stdio", "cases": cases})) == ["right"]
    cases[0]["output"] = [5, 8]
    assert whys(verifier, (fenced(program), {"type": "stdio", "cases": cases})) == ["wrong"]


def test_200_cases_take_one_start(verifier):
    cases = stdio(*((f"{i}\n", f"{i * i}\n") for i in range(200)))
    assert whys(verifier, (fenced("n = int(input())\nprint(n * n)"), cases)) == ["right"]
    late = "n = int(input())\nprint(n * n if n < 199 else 0)"
    assert whys(verifier, (fenced(late), cases)) == ["wrong"]


@pytest.mark.parametrize("program", [  # what is printed in the end only, or by other means
    "n = int(open(0).read())\nprint(n * n)",
    "import os\nn = int(os.read(0, 9))\nos.write(1, str(n * n).encode())",
    "import io, sys\nout = io.TextIOWrapper(io.FileIO(1, 'w'))\nn = int(input())\nout.write(str(n * n))",
    "import atexit\nn = int(input())\natexit.register(lambda: print(n * n))",
    "import threading, time\nn = int(input())\n"
    "threading.Thread(target=lambda: (time.sleep(.1), print(n * n))).start()",
    "import sys\nn = int(input())\nprint(n * n, end='')\nsys.exit()",
])
def test_all_that_is_printed_counts(program, verifier):
    assert whys(verifier, (fenced(program), stdio(("2\n", "4\n"), ("3\n", "9\n")))) == ["right"]


@pytest.mark.parametrize("program", [
    # One case cannot answer for another: what the first leaves behind does not print for the second.
    "import os, sys, time\nn = input()\nif n == '1':\n    print('one', flush=True)\n    if os.fork() == 0:\n"
    "        for _ in range(30):\n            for fd in range(3, 64):\n"
    "                try: os.write(fd, b'two')\n                except OSError: pass\n"
    "            time.sleep(.05)",
    "import __main__\nif input() == '1':\n    print('one')\n    __main__.kept = 'two'\n"
    "else:\n    print(__main__.kept)",
    "import os\nif input() == '1':\n    print('one', flush=True)\n    os.kill(os.getppid(), 9)",
    "import os\nprint('one' if input() == '1' else 'two' * (os.fork() > 0))\nos.kill(-1, 9)",
])
def test_a_case_cannot_answer_for_another(program, verifier):
    assert whys(verifier, (fenced(program), stdio(("1", "one"), ("2", "two")))) == ["wrong"]


# ---- the program in a completion ---------------------------------------------------------------------------

F, G = "def f(): return 1", "def g():\n    return 1"


@pytest.mark.parametrize("completion, program", [
    ("no block", None), (f"```python\n{F}\n```", F), (f"```\n{F}\n```", F), (f"```python\n{F}", F),
    ("```python\n", None),
    (f"1. Do:\n   ```python\n   {F}\n   ```\n", F), (f"   ```python\n{F}\n   ```", F),
    ("\t```py\n\tdef g():\n\t    return 1\n\t```", G),
    (f"```python\n{F}\n```\nOutput:\n```\n1\n```", F), (f"```python\n{F}\n```\n```\nresult: 1\n```", F),
    (f"```python\n{F}\n```\nRun it:\n```bash\npython f.py\n```", F),
    (f"```python\n{F}\n```\n```text\nprint(1)\n```", F), (f"```python\n{F}\n```\n```\n>>> f()\n1\n```", F),
    (f"```\n{F}\n```\n```\n[1, 2]\n```", F), ("```\nx = 1\n```", "x = 1"),
    (f"```python\nx = 0\n```\nrather\n```\n{F}\n```", F), (f"```python\n{F}```", F),
    (f"```python\n{G}```\nend", G),
    (f"````python\n{F}\n````", F), (f"~~~python\n{F}\n~~~", F), (f"~~~\n{F}\n~~~\n", F),
    (f"```Python3 title=x\n{F}\n```", F),
    (f"```{{.python}}\n{F}\n```", F), (f"```python\nx = 0\n\nNo:\n```python\n{F}\n```", F),
    ('```python\ndef h():\n    """Example:\n    ```\n    h()\n    ```\n    """\n```',
     'def h():\n    """Example:\n    ```\n    h()\n    ```\n    """'),
    (f"```python\r\n{F}\r\n```", F), ("`x` and ```y``` in a line", None),
    ("```cpp\nint f();\n```", "int f();"),
    (f"Here is the code: ```python\n{F}\n```", F), (f"1. ```py\n   {F}\n   ```", F),
    (f"The code: ```\n{F}\n```", F), (f"Mark it with ```\n```python\n{F}\n```", F),
    (f"As ```python\n```python\n{F}\n```", F), ("See ```x``` and: `y`\nend", None),
    (f"```python\n\ufeff{F}\n```", F), (f"\ufeff```\n{F}\n```", F),
])
def test_the_program_in_a_completion(completion, program):
    blocks = fences.fenced_blocks(completion)
    assert (fences.last_program(blocks) if blocks else None) == program


@pytest.mark.parametrize("piece", [
    "`", "```\n", "~~~\n", "```python\n", " ```x\n", "```\n`\n", " ", "\n", "a```\n", "a: ```\n", "a ```x\n",
])
def test_fences_are_found_in_linear_time(piece):
    start = time.perf_counter()
    fences.fenced_blocks(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - start < 1


# ---- programs that want the reward without the work --------------------------------------------------------

ALWAYS = (
    "class A(int):\n    def __eq__(self, o): return True\n    __ne__ = lambda s, o: False\n"
    "    __hash__ = int.__hash__\n"
)
HOSTILE = {
    "sys.exit": "import sys\nsys.exit(0)",
    "exit in the call": "import sys\ndef fib(n): sys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "os._exit in the call": "import os\ndef fib(n): os._exit(0)",
    "equal to all": ALWAYS + "def fib(n): return A(0)",
    "equal to all, no int": "class A:\n    def __eq__(self, o): return True\ndef fib(n): return A()",
    "equal to all in a list": ALWAYS + "class L(list):\n    def __eq__(self, o): return True\n"
        "def fib(n): return L([A(1)])",
    "lying repr": "class R:\n    def __repr__(self): return '0'\n    __str__ = __repr__\n"
        "def fib(n): return R()",
    "raises AssertionError": "def fib(n): raise AssertionError",
    "raises StopIteration": "def fib(n): raise StopIteration",
    "raises SystemExit": "def fib(n): raise SystemExit(0)",
    "raises KeyboardInterrupt": "def fib(n): raise KeyboardInterrupt",
    "own exception class": "class E(BaseException): pass\ndef fib(n): raise E",
    "patched builtins": "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.abs = lambda x: 0\n"
        "def fib(n): return 1",
    "patched json": "import json\njson.dumps = lambda *a, **k: '{\"value\": {\"int\": \"0x0\"}}'\n"
        "def fib(n): return 1",
    "patched print": "import builtins\nbuiltins.print = lambda *a, **k: None\ndef fib(n): return 1",
    "pass markers": "print('right')\nprint('ALL TESTS PASSED')\nprint('1')\nprint('ready')\n"
        "def fib(n): return -1",
    "replies without being asked": "import os\nfor fd in range(1, 64):\n"
        "    try: os.write(fd, b'{\"value\": {\"int\": \"0x0\"}}\\n' * 9)\n"
        "    except OSError: pass\ndef fib(n): return 0",
    "right to every descriptor": "import os\nfor fd in range(1, 64):\n"
        "    try: os.write(fd, b'right\\n' * 9)\n"
        "    except OSError: pass",
    "frames": "import sys\ndef fib(n):\n    f = sys._getframe()\n    while f:\n"
        "        for k, v in list(f.f_globals.items()):\n"
        "            if 'verdict' in k: f.f_globals[k] = True\n        f = f.f_back\n    return 5",
    "main module": "import __main__, sys\nfor m in list(sys.modules.values()):\n    for k in list(vars(m)):\n"
        "        if k in ('right', 'verdict', 'encode'): setattr(m, k, lambda *a: True)\n"
        "def fib(n): return 1",
    "reads its own files": "import glob, itertools, os, re\ntexts = []\n"
        "for f in itertools.islice(glob.iglob('**/*', recursive=True), 500):\n"
        "    try:\n"
        "        if os.path.isfile(f): texts.append(open(f, errors='replace').read(10**5))\n"
        "    except OSError: pass\n"
        "def fib(n):\n    for t in texts:\n"
        "        m = re.search(r'fib\\(%d\\) == (\\d+)' % n, t)\n"
        "        if m: return int(m[1])\n    return -1",
    "reads /proc": "import glob, re\ndef fib(n):\n"
        "    for f in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
        "        try: m = re.search(rb'fib\\(%d\\) == (\\d+)' % n, open(f, 'rb').read())\n"
        "        except OSError: continue\n"
        "        if m: return int(m[1])\n    return -1",
    "reads memory": "import os, re\ndef fib(n):\n    for p in (os.getppid(), 1, os.getpid() - 1):\n"
        "        try:\n"
        "            for line in open(f'/proc/{p}/maps'):\n"
        "                a, b = (int(x, 16) for x in line.split()[0].split('-'))\n"
        "                if '[heap]' in line:\n"
        "                    m = open(f'/proc/{p}/mem', 'rb')\n"
        "                    m.seek(a)\n"
        "                    m = re.search(rb'fib\\(%d\\) == (\\d+)' % n, m.read(b - a))\n"
        "                    if m: return int(m[1])\n"
        "        except OSError: pass\n    return -1",
    "gc": "import gc\ndef fib(n):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, dict) and 'expected' in o: return o['expected']\n",
    "kills the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef fib(n): return 1",
    "kills all": "import os, signal\ntry: os.kill(-1, signal.SIGKILL)\nexcept OSError: pass\n"
        "def fib(n): return 1",
    "closes descriptors": "import os\nos.closerange(0, 64)\ndef fib(n): return 1",
    "infinite loop": "def fib(n):\n    while True: pass",
    "infinite loop at import": "while True: pass",
    "swallows all": "def fib(n):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass",
    "ignores signals": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass",
    "sleeps": "import time\ntime.sleep(98)",
    "recursion": "def fib(n): return fib(n + 1)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef fib(n): return fib(n + 1)",
    "deep result": "def fib(n):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "circular result": "def fib(n):\n    x = []\n    x.append(x)\n    return x",
    "memory": "x = []\nwhile True: x.append(bytearray(10**7))",
    "memory in the call": "def fib(n): return 'x' * 10**10",
    "large result": "def fib(n): return 'x' * 10**8",
    "flood": "import sys\nwhile True: print('x' * 10**6)",
    "flood of the channel": "import os\ndef fib(n):\n    while True:\n        for fd in range(3, 64):\n"
        "            try: os.write(fd, b'x' * 10**6)\n"
        "            except OSError: pass",
    "flood of stderr": "import sys\nwhile True: sys.stderr.write('x' * 10**6)",
    "fills the disk": "n = 0\nwhile True:\n    n += 1\n    open(f'f{n}', 'wb').write(b'x' * 10**6)",
    "threads": "import threading, time\nwhile True:\n"
        "    try: threading.Thread(target=time.sleep, args=(98,)).start()\n    except RuntimeError: break\n"
        "def fib(n): return 1",
    "children": "import subprocess\nfor _ in range(5): subprocess.Popen(['sleep', 'NAP'])\n"
        "def fib(n): return 1",
    "daemon": "import os, subprocess\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        subprocess.Popen(['sleep', 'NAP'],"
        " start_new_session=True)\n        os.execvp('sleep', ['sleep', 'NAP'])\n    os._exit(0)\n"
        "def fib(n): return 1",
    "null bytes": "def fib(n): return '\\0'\n\0",
    "bad encoding": "# -*- coding: nonsense -*-\ndef fib(n): return 1",
    "lambda": "fib = lambda n: lambda: 0",
    "bool for int": "def fib(n): return n == 1",
    "not callable": "fib = 0",
    "acts as a number": "class A:\n    def __bool__(self): return True\n"
        "    __len__ = __int__ = lambda s: 0\n    __float__ = lambda s: 0.0\n"
        "    __lt__ = __gt__ = __contains__ = __eq__ = lambda s, o: True\n"
        "    __add__ = __sub__ = lambda s, o: 0\ndef fib(n): return A()",
    "exceptions with the names of ours": "class E(Exception): pass\nE.__module__ = 'machinery.checks'\n"
        "E.__qualname__ = 'Stopped'\ndef fib(n): raise E('right')",
    "exceptions without a name": "class E(Exception): pass\nE.__module__ = None\nE.__qualname__ = ''\n"
        "def fib(n): raise E(*[E] * 9)",
    "fields that are code": "class T(tuple): _fields = ('a=print(1)', '*')\ndef fib(n): return T((0, 1))",
    "every exception": "from unittest import SkipTest\ndef fib(n): raise SkipTest",
    "decimal": "from decimal import Decimal\ndef fib(n): return Decimal(0)",
    "complex": "def fib(n): return complex('nan')",
    "module that is not there": "import no_such_module\ndef fib(n): return 0",
}  # fmt: skip
SLOW = {  # what sleeps or spins until it is ended
    "patched print", "infinite loop", "infinite loop at import", "swallows all", "ignores signals", "sleeps",
    "flood", "flood of stderr", "fills the disk",
}  # fmt: skip


@pytest.fixture(scope="module")
def attacks(temporary_folder):
    """attacks(mode): the verdicts on all attacks, each with a good program of its own after it."""

    def verdicts_of(mode: str) -> dict:
        verdicts = {}
        with verifier_of(mode, workers=3) as verifier:
            for names, seconds in (([n for n in HOSTILE if n not in SLOW], 5), (sorted(SLOW), 1)):
                verifier.code_seconds = seconds
                programs = [fenced(p) for name in names for p in (HOSTILE[name], f"{GOOD}# {name}")]
                judged = verifier.score(programs, [code(FIB)] * len(programs))
                verdicts |= dict(zip(names, zip(judged[::2], judged[1::2])))
        return verdicts

    return cache(verdicts_of)


@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.parametrize("mode", MODES)
def test_attack(mode, attack, attacks):
    bad, good = attacks(mode)[attack]
    assert bad.why in ("wrong", "timeout") and good.why == "right"


CASES = "[(1, 2), (3, 4)]"


@pytest.mark.parametrize("tests", [
    f"assert all(map(lambda c: f(c[0]) == c[1], {CASES}))",
    f"assert not list(filter(lambda c: f(c[0]) != c[1], {CASES}))",
    f"assert all(map(lambda c: f(c[0])[0] == c[1], {CASES}))",
    f"assert not [x for x in map(lambda c: f(c[0]) - c[1], {CASES}) if x]",
    "assert next(iter(lambda: f(1), 2), 5) == 5",
])
@pytest.mark.parametrize("program", [
    "def f(x): raise StopIteration", "def f(x): raise StopAsyncIteration",
    "class Stop(StopIteration): pass\ndef f(x): raise Stop(2)",
    "class A:\n    def __getitem__(self, i): raise StopIteration\ndef f(x): return A()",
])
def test_a_program_cannot_end_the_iterators_of_the_tests(program, tests, verifier):
    assert whys(verifier, (fenced(program), tests)) == ["wrong"]


def test_iterators_of_a_program_end(verifier):
    program = "def f(n): yield from range(n)\ndef g(n): return iter([n])"
    tests = "assert list(f(3)) == [0, 1, 2]\nassert sum(map(next, [g(1), g(2)])) == 3 == next(f(0), 3)"
    assert whys(verifier, (fenced(program), tests)) == ["right"]


@pytest.mark.parametrize("mode", MODES)
def test_fork_bomb(mode):
    """Alone: it slows down what runs beside it."""
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    with verifier_of(mode, workers=1, code_seconds=1) as verifier:
        assert whys(verifier, (fenced(bomb), FIB)) in (["wrong"], ["timeout"])
        assert whys(verifier, (fenced(f"{GOOD}# fork bomb"), FIB)) == ["right"]


@pytest.mark.parametrize("program, why", [
    ("import sys\nprint(1)\nsys.exit(3)", "wrong"), ("import os\nos.write(1, b'1\\n')\nos._exit(0)", "right"),
    ("while True: print(1)", "wrong"),
    ("import subprocess\nprint(1, flush=True)\nsubprocess.Popen(['sleep', 'NAP'], start_new_session=True)",
     "right"),
    ("import sys\nprint(open('/proc/self/fd/0').read())", "wrong"),
    ("import sys\nsys.stdout.close()", "wrong"),
])
def test_attack_on_standard_output(program, why, verifier):
    assert whys(verifier, (fenced(program), stdio(("", "1\n")))) == [why]


def test_a_right_line_does_not_help_what_does_not_end(hasty):
    programs = [
        "print(1, flush=True)\nwhile True: pass",
        "import time\nprint(1)\ntime.sleep(98)",
        "import threading, time\nprint(1, flush=True)\n"
            "threading.Thread(target=time.sleep, args=(98,)).start()",
    ]
    assert whys(hasty, *((fenced(p), stdio(("", "1\n"))) for p in programs)) == ["timeout"] * 3


def test_a_program_has_5_seconds_unless_told_otherwise(verifier):
    spin = "import time\nwhile time.process_time() < {}: pass\nprint(1)"
    pairs = [(fenced(spin.format(seconds)), stdio(("", "1\n"))) for seconds in (3, 98)]
    start = time.monotonic()
    assert whys(verifier, *pairs) == ["right", "timeout"]
    assert time.monotonic() - start >= 5


def test_a_program_that_knows_the_worker_cannot_answer_for_it(verifier):
    one = "def fib(n): return 1"
    program = (
        "import glob\nfor f in glob.glob('/proc/[0-9]*/fd/*'):\n    try: open(f, 'w').write('right\\n' * 9)\n"
        "    except OSError: pass\n"
    )
    assert whys(verifier, (fenced(program + one), FIB), (fenced(one), FIB)) == ["wrong"] * 2


# ---- isolation ---------------------------------------------------------------------------------------------

NAMESPACES = [mode for mode in OFFERED if mode != "nobody"]
jailed = pytest.mark.skipif(not NAMESPACES, reason="this machine lends no namespaces")


@jailed
@pytest.mark.parametrize("program", [
    "import os\ndef f(): return os.listdir('/home') if os.path.exists('/home') else []",
    "import os\n"
        f"def f(): return [p for p in ({str(ROOT / 'verify.py')!r}, {str(SHARED)!r}) if os.path.exists(p)]",
    "import os\ndef f(): return [p for p in os.listdir('/proc') if p.isdigit() and int(p) > 3]",
    "import os\n"
        "def f(): return [k for k in os.environ if k not in ('PATH', 'HOME', 'LANG') and '_' not in k]",
    "import os\ndef f():\n    try: open('/usr/lib/written', 'w')\n    except OSError: return []\n"
        "    return ['written']",
    "import ctypes, os\ndef f():\n    libc = ctypes.CDLL(None)\n"
        "    done = [libc.mount(b'none', b'/usr', None, 4096 | 32, None), libc.umount2(b'/usr', 2),"
        " libc.mount(b'none', b'/', b'tmpfs', 0, None), libc.chroot(b'/usr')]\n"
        "    return [d for d in done if d == 0]",
    "import os\ndef f():\n    try: os.setuid(1)\n    except OSError: return []\n    return ['user']",
])
def test_a_program_sees_and_changes_nothing_else(program, verifier):
    assert whys(verifier, (fenced(program), "assert f() == []")) == ["right"]


@jailed
def test_no_network(verifier):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        address = server.getsockname()[:2]
        program = (
            f"import socket\ndef f():\n    try: socket.create_connection({address}, 1)\n"
            "    except OSError: return 'none'\n    return 'network'"
        )
        assert whys(verifier, (fenced(program), "assert f() == 'none'")) == ["right"]
        with pytest.raises(TimeoutError):
            server.accept()


def test_files_of_a_program_are_its_own(verifier):
    write = "open('here', 'w').write('1')\nimport tempfile\ntempfile.mkdtemp()\n"
    write += "def f(): return open('here').read()"
    assert whys(verifier, (fenced(write), "assert f() == '1'")) == ["right"]
    again = "import os\ndef f(): return os.path.exists('here')"
    assert whys(verifier, (fenced(again), "assert f() is False")) == ["right"]


def test_other_children_of_the_trainer_live_on():
    bystander = subprocess.Popen(["sleep", "1000"])
    with Verifier(workers=1) as verifier:
        assert whys(verifier, (fenced(GOOD), FIB), (fenced(HOSTILE["daemon"]), FIB)) == ["right", "wrong"]
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


@pytest.mark.skipif(os.getuid() != 0, reason="makes a root without rights")
def test_who_has_no_sandbox_runs_no_program():
    prison = ["unshare", "--user", "--map-root-user", "sh", "-c",
              'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh"]
    with Verifier(1) as verifier, pytest.raises(UserError, match=r"^programs need a sandbox: .*") as said:
        verifier.pool.command[:0] = prison
        verifier.score([fenced(GOOD)], [code(FIB)])
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_worker_takes_its_program_with_it(mode, temporary_folder):
    verifier = verifier_of(mode, workers=1)
    assert whys(verifier, (fenced(GOOD), FIB)) == ["right"]  # the worker is there
    sleeper = fenced("import time\ntime.sleep(98)")
    thread = threading.Thread(target=whys, args=(verifier, (sleeper, FIB)))
    thread.start()
    until = time.monotonic() + 60
    while not processes() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)  # the sandbox is complete
    assert processes()
    os.kill(verifier.pool.workers[0].pid, signal.SIGKILL)
    thread.join(60)
    verifier.close()
    for folder in temporary_folder.iterdir():  # the killed worker could not remove it
        shutil.rmtree(folder)


# ---- real data ---------------------------------------------------------------------------------------------

@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
@pytest.mark.parametrize("file", ["humaneval_test.jsonl", "mbpp_sanitized.jsonl"])
def test_reference_programs_pass_and_mutants_fail(file, verifier):
    # 123's reference takes 5 s: right or a timeout, as the machine is busy.
    problems = [p for p in data.load(str(SHARED / file)) if p.id != "MbppEval/123"]
    problems = random.Random(0).sample(problems, 60)
    verdicts = verifier.score([gold_completion(p) for p in problems], problems)
    assert Counter(v.why for v in verdicts) == {"right": 60}
    name = [p.meta["tests"]["entry_point"] for p in problems]
    listed = "_real = {0}\ndef {0}(*a, **k):\n    return [_real(*a, **k)]"
    mutants = [fenced(f"{p.answer}\n{listed.format(n)}") for p, n in zip(problems, name)]
    assert Counter(v.why for v in verifier.score(mutants, problems)) == {"wrong": 60}


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_labelled_cases(hasty):
    cases = [json.loads(line) for line in (SHARED / "code_cases.jsonl").open()]
    verdicts = hasty.score([case["completion"] for case in cases], [code(case["tests"]) for case in cases])
    assert [(case["kind"], v.why) for case, v in zip(cases, verdicts) if v.correct != case["correct"]] == []


def test_sandbox_is_reported_once(tmp_path):
    row = {"completion": fenced(GOOD), "tests": {"type": "assert", "code": FIB}, "correct": True}
    (tmp_path / "cases.jsonl").write_text((json.dumps(row) + "\n") * 3)
    call = [sys.executable, ROOT / "verify.py", "--cases", "cases.jsonl", "--require", "1"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    kinds = "namespaces", "another user, no namespaces (docs/verify.md)"
    assert done.stderr in [f"code sandbox: {kind}\n" for kind in kinds]
