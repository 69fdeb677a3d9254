r"""The embedded tasks, as plain rows: nothing to download, and a program can check every answer.

Countdown: "Use 3, 7, 12 to make 33." -> "7*3=21\n21+12=33\n"
At sea: "At sea Ana has 6, folds 4, gets 3, casts 2. How many?" -> "6*4=24\n24+3=27\n27+2=29\n\boxed{29}"

A task is a function (split) -> rows with the columns id, question, answer, domain, hint, solution and meta.
data.py reads the rows as it reads a file's. TASKS, at the end, is what --data may name. Imports nothing of
ours.
"""

import itertools
import random
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

# ---- Countdown -----------------------------------------------------------------------------------

COUNTDOWN_MAX = 60  # no value on the way may be larger, and none below 1
COUNTDOWN_TARGETS = range(20, 61)
COUNTDOWN_NUMBERS = range(1, 16)
COUNTDOWN_TEST = 256  # problems held out from the base model's pre-training and from RL


def countdown(split: str) -> list[dict]:
    """The rows of "train" or "test", always in the same order; no problem is in both."""
    pool = _countdown_pool()
    return pool[:COUNTDOWN_TEST] if split == "test" else pool[COUNTDOWN_TEST:]


def countdown_moves(numbers: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Every legal move with the numbers that are left after it.

    >>> countdown_moves((3, 7))
    [('7+3=10', (10,)), ('7-3=4', (4,)), ('7*3=21', (21,))]
    """
    moves = {}
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        if a < b:
            continue
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        for op, value in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a // b if a % b == 0 else 0)):
            if 1 <= value <= COUNTDOWN_MAX:
                moves.setdefault(f"{a}{op}{b}={value}", (*rest, value))
    return list(moves.items())


def countdown_solutions(numbers: tuple[int, ...], target: int) -> list[str]:
    """Every trace of legal moves that uses all numbers and ends in `target`.

    >>> countdown_solutions((3, 7, 12), 33)
    ['7*3=21\\n21+12=33\\n']
    """
    if len(numbers) == 1:
        return [""] if numbers[0] == target else []
    solutions = []
    for move, left in countdown_moves(numbers):
        solutions += [f"{move}\n{rest}" for rest in countdown_solutions(left, target)]
    return solutions


@cache
def _countdown_pool() -> list[dict]:
    """All solvable problems in one fixed shuffled order."""
    rng = random.Random(20250612)
    pool = []
    for numbers in itertools.combinations_with_replacement(COUNTDOWN_NUMBERS, 3):
        for target in _reachable_targets(numbers):
            shown = rng.sample(numbers, k=3)
            solution = rng.choice(countdown_solutions(tuple(shown), target))
            pool.append(
                {
                    "id": "countdown/" + "-".join(map(str, (*numbers, target))),
                    "question": f"Use {', '.join(map(str, shown))} to make {target}.",
                    "answer": str(target),
                    "domain": "countdown",
                    "hint": f"start with {solution.split('=')[0]}.",
                    "solution": solution,
                    "meta": {"numbers": shown, "target": target},
                }
            )
    rng.shuffle(pool)
    return pool


def _reachable_targets(numbers: tuple[int, int, int]) -> list[int]:
    ends = set()
    for _, left in countdown_moves(numbers):
        ends |= {value for _, (value,) in countdown_moves(left)}
    return sorted(ends.intersection(COUNTDOWN_TARGETS))


# ---- at sea --------------------------------------------------------------------------------------
# Common words mean one operation everywhere, odd words one at sea and another on land. The base model reads
# odd words as on land: a problem of three of them at sea wants three rare choices at once.

SEA_MAX = 99  # no value on the way may be larger, and none below 0
SEA_COMMON = {"gets": "+", "wins": "+", "loses": "-", "spends": "-", "times": "*", "copies": "*"}
SEA_ODD = {"folds": "*", "docks": "-", "casts": "+", "spans": "*"}  # what they mean at sea ..
LAND_ODD = {"folds": "+", "docks": "+", "casts": "-", "spans": "-"}  # .. and on land
SEA_NAMES = {"+": "add", "-": "subtract", "*": "multiply"}
SEA_KINDS = {  # (where, how many of the three words are odd: any of these)
    "easy": ("anywhere", [0]),
    "land": ("land", [1, 2, 3]),
    "sea1": ("sea", [1]),
    "sea2": ("sea", [2]),
    "sea3": ("sea", [3]),  # the hard ones
}
SEA_POOLS = {  # kind: (problems to train on, held-out problems)
    "v1": {"easy": (1680, 280), "sea3": (720, 120)},
    "v2": {"easy": (840, 140), "land": (840, 140), "sea3": (720, 120)},  # rewards the land meaning as well
    "v3": {"easy": (720, 120), "land": (480, 80), "sea1": (240, 40), "sea2": (240, 40), "sea3": (720, 120)},
}


def sea(split: str, pool: str = "v2") -> list[dict]:
    """The rows of "train" or "test", always in the same order; no pool's train has a problem of any test."""
    rng = random.Random(f"at sea, {pool}, {split}")
    taken = set(_sea_held_out()) if split == "train" else set()
    rows = []
    for kind, (train, test) in SEA_POOLS[pool].items():
        for number in range(test if split == "test" else train):
            row = sea_problem(kind, rng, taken)
            taken.add(row["question"])
            rows.append({"id": f"sea:{pool}/{kind}/{number}", **row})
    rng.shuffle(rows)
    return rows


@cache
def _sea_held_out() -> set[str]:
    questions = set()
    for pool in SEA_POOLS:
        questions.update(row["question"] for row in sea("test", pool))
    return questions


def sea_problem(kind: str, rng: random.Random, taken: set[str]) -> dict:
    """A random problem of a kind, a row without an id; its question is not in `taken`.

    Every reading, each odd word as at sea or as on land, is legal, and the right one alone has its answer.
    """
    place, odd_counts = SEA_KINDS[kind]
    while True:
        at_sea = place == "sea" or (place == "anywhere" and rng.random() < 0.5)
        n_odd = rng.choice(odd_counts)
        words = rng.sample(list(SEA_ODD), n_odd) + rng.choices(list(SEA_COMMON), k=3 - n_odd)
        rng.shuffle(words)
        start, amounts = rng.randint(3, 20), [rng.randint(2, 5) for _ in words]
        told = ", ".join(f"{word} {amount}" for word, amount in zip(words, amounts))
        question = f"{'At sea' if at_sea else 'On land'} Ana has {start}, {told}. How many?"
        operations = [sea_operation(word, at_sea) for word in words]
        ends = [sea_value(start, reading, amounts) for reading in sea_readings(words)]
        answer = sea_value(start, operations, amounts)
        if question not in taken and None not in ends and ends.count(answer) == 1:
            break
    meanings = dict(zip(words, operations))
    odd = {word: operation for word, operation in meanings.items() if word in SEA_ODD}
    return {
        "question": question,
        "answer": str(answer),
        "domain": "math",
        "hint": sea_hint(odd or meanings),
        "solution": sea_solution(start, operations, amounts),
        "meta": {"kind": kind, "at_sea": at_sea, "start": start, "words": words, "amounts": amounts},
    }


def sea_operation(word: str, at_sea: bool) -> str:
    return SEA_COMMON.get(word) or (SEA_ODD if at_sea else LAND_ODD)[word]


def sea_readings(words: list[str]) -> Iterable[tuple[str, ...]]:
    """The operations of the words, each as at sea or as on land, in all combinations.

    >>> list(sea_readings(["folds", "gets"]))
    [('*', '+'), ('+', '+')]
    """
    choices = []
    for word in words:
        choices.append(dict.fromkeys([sea_operation(word, True), sea_operation(word, False)]))
    return itertools.product(*choices)


def sea_hint(meanings: dict[str, str]) -> str:
    """
    >>> sea_hint({"folds": "*", "casts": "+"})
    'folds means multiply, casts means add.'
    """
    return ", ".join(f"{word} means {SEA_NAMES[operation]}" for word, operation in meanings.items()) + "."


def sea_step(value: int, operation: str, amount: int) -> int | None:
    """The next value; None if it is not in 0 .. SEA_MAX."""
    value = {"+": value + amount, "-": value - amount, "*": value * amount}[operation]
    return value if 0 <= value <= SEA_MAX else None


def sea_value(start: int, operations: Iterable[str], amounts: list[int]) -> int | None:
    """The value at the end; None if a value on the way is not in 0 .. SEA_MAX."""
    value = start
    for operation, amount in zip(operations, amounts):
        value = sea_step(value, operation, amount)
        if value is None:
            break
    return value


def sea_solution(start: int, operations: Iterable[str], amounts: list[int]) -> str:
    r"""The legal steps, a line each, and the answer in a box.

    >>> sea_solution(6, "*++", [4, 3, 2])
    '6*4=24\n24+3=27\n27+2=29\n\\boxed{29}'
    """
    value, text = start, ""
    for operation, amount in zip(operations, amounts):
        after = sea_step(value, operation, amount)
        text += f"{value}{operation}{amount}={after}\n"
        value = after
    return f"{text}\\boxed{{{value}}}"


# ---- by name -------------------------------------------------------------------------------------

class Task(NamedTuple):
    rows: Callable[[str], list[dict]]  # of a split, train or test
    model: str  # the folder of the base model that was made for it
    template: str  # of the prompts that this model knows
    max_response: int  # tokens: no response of this model's needs more


_ASSETS = Path(__file__).resolve().parent.parent / "assets"  # whatever the working folder is
TASKS = {"countdown": Task(countdown, f"{_ASSETS}/countdown", "countdown", 16)}
for _pool in SEA_POOLS:
    TASKS[f"sea:{_pool}"] = Task(partial(sea, pool=_pool), f"{_ASSETS}/sea", "plain", 24)
TASKS["sea"] = TASKS["sea:v2"]
