r"""Make assets/sea: the base model of the embedded task "at sea", on which hints can be seen to help.

    python assets/make_sea.py            # writes assets/sea: 15 minutes of CPU time on a busy machine

It is pre-trained on traces of a player who knows what the words mean on land, hardly ever takes one for what
it means at sea, and never miscalculates. So the model solves half of the problems, and hardly ever one that
wants three sea meanings at once (machinery/tasks.py has the words and the kinds of problems).

  - Which operation an odd word stands for is decided word by word, with the probabilities below.
  - A quarter of the traces carry a hint in the prompt and follow it. Half of the meanings that it tells are
    any operation, so that the model learns to follow hints, not that hints are right; some hints leave words
    out, or tell of a word that is not there.

It has seen no problem of any pool, neither to train on nor held out. Tokenizer and architecture are those of
make_countdown.py, with other words: a prompt takes 13 tokens (up to 25 with the hint), a response 22.

Held-out problems at temperature 1, of pool v2 (64 samples each); sea1, sea2 and all hinted ones of v3 (32
samples each). 99.7 % of all steps are calculated right.

    pass@1     easy   land   sea1   sea2   sea3
    plain      .680   .749   .105   .022   .004
    hinted     .857   .769   .558   .588   .776

    python evaluate.py --model assets/sea --data sea --n 64 --temperature 1 --top-p 1 --max-tokens 24 \
        [--data sea:v3 --n 32 [--hinted]] --out base.json
"""

import random
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machinery import tasks  # isort: skip  first: machinery sets how threads wait before torch loads

from assets.make_countdown import arguments, pretrain

COMMON_RIGHT = 0.87  # probability that the player takes a common word rightly
SEA_MEANING = {True: 0.15, False: 0.06}  # .. an odd word in its sea meaning, at sea and, wrongly, on land
FOLLOW = 0.97  # .. that it does what a hint says
HINTED = 0.25  # share of traces with a hint
KINDS = {"easy": 0.4, "land": 0.25, "sea1": 0.05, "sea2": 0.1, "sea3": 0.2}  # shares of problems
WORDS = (*tasks.SEA_COMMON, *tasks.SEA_ODD)
TOKENS = [
    *map(str, range(10, tasks.SEA_MAX + 1)), "At sea Ana has ", "On land Ana has ", ". How many?", "Hint:",
    *(f" {word} " for word in WORDS), *(f"means {name}" for name in tasks.SEA_NAMES.values()), "\\boxed{",
]  # fmt: skip


@cache
def pools() -> set[str]:
    """The questions of all pools, which the corpus must not have."""
    questions = set()
    for pool in tasks.SEA_POOLS:
        for split in ("train", "test"):
            questions.update(row["question"] for row in tasks.sea(split, pool))
    return questions


def trace(rng: random.Random) -> tuple[str, str]:
    """(prompt, response) of a problem outside of the pools."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    problem = tasks.sea_problem(kind, rng, pools())
    told = some_meanings(problem["meta"], rng) if rng.random() < HINTED else {}
    hint = f"\n\nHint: {tasks.sea_hint(told)}" if told else ""
    return f"{problem['question']}{hint}\n", play(problem["meta"], told, rng)


def some_meanings(problem: dict, rng: random.Random) -> dict[str, str]:
    """What a hint tells: the operations of some words, right in half of the cases and else by chance."""
    words = list(dict.fromkeys(problem["words"]))
    if rng.random() < 0.8:
        words = [word for word in words if word in tasks.SEA_ODD] or words
    if rng.random() < 0.3:
        words = rng.sample(words, rng.randint(1, len(words)))
    if rng.random() < 0.15:
        words[rng.randrange(len(words))] = rng.choice(WORDS)  # most often not in the problem
    told = {}
    for word in words:
        right = tasks.sea_operation(word, problem["at_sea"])
        told[word] = right if rng.random() < 0.5 else rng.choice("+-*")
    return told


def play(problem: dict, told: dict[str, str], rng: random.Random) -> str:
    """The response of the player: legal steps, which may be the wrong ones."""
    value, operations = problem["start"], []
    for word, amount in zip(problem["words"], problem["amounts"]):
        legal = [op for op in "+-*" if tasks.sea_step(value, op, amount) is not None]
        if told.get(word) in legal and rng.random() < FOLLOW:
            operation = told[word]
        else:
            taste = [likes(word, op, problem["at_sea"]) for op in legal]
            (operation,) = rng.choices(legal, taste if any(taste) else None)
        value = tasks.sea_step(value, operation, amount)
        operations.append(operation)
    return tasks.sea_solution(problem["start"], operations, problem["amounts"])


def likes(word: str, operation: str, at_sea: bool) -> float:
    """How probably the player takes a word for an operation, without a hint."""
    if word in tasks.SEA_COMMON:
        return COMMON_RIGHT if operation == tasks.SEA_COMMON[word] else (1 - COMMON_RIGHT) / 2
    if operation == tasks.SEA_ODD[word]:
        return SEA_MEANING[at_sea]
    return 1 - SEA_MEANING[at_sea] if operation == tasks.LAND_ODD[word] else 0.0


if __name__ == "__main__":
    pretrain(TOKENS, trace, arguments(__doc__, "sea", steps=1500, batch=160))
