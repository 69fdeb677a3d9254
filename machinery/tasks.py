r"""The embedded tasks, as plain rows: nothing to download, and a program can check every answer.

Countdown: "Use 3, 7, 12 to make 33." -> "7*3=21\n21+12=33\n"

A task is a function (split) -> rows with the columns id, question, answer, domain, hint, solution and meta.
data.py reads the rows as it reads a file's. Imports nothing of ours.
"""

import itertools
import random
from functools import cache

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
