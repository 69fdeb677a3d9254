"""verify.py against other verifiers, on labelled cases and on answers sampled from MATH.

    python tests/bench_verify.py

Accuracy, false positives, false negatives and time per case of each; then the speed of batches and of
reference answers. Needs the data folder ../shared/data beside the repository, or --data FOLDER.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse
from math_verify import verify as equal

from data import Problem, last_box, load
from machinery.answers import normalise
from verify import Verifier, gold_completion


def naive(completion: str, gold: str) -> bool:
    box = last_box(completion)
    return box is not None and normalise(box) == normalise(gold)


def math_verify_default(completion: str, gold: str) -> bool:
    return equal(parse(f"${gold}$"), parse(completion))


def math_verify_as_trl(completion: str, gold: str) -> bool:
    """The configuration of TRL's accuracy_reward: strict about the box, units dropped."""
    gold_parsed = parse(f"${gold}$")
    config = NormalizationConfig(
        nits=False, malformed_operators=False, basic_latex=True, boxed="all", units=True
    )
    extraction = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=config)]
    answer = parse(completion, extraction_config=extraction, extraction_mode="first_match")
    return bool(gold_parsed) and equal(gold_parsed, answer)


def measure(judge, cases) -> dict:
    """Accuracy, false positives and negatives, and milliseconds a case."""
    verdicts, times = [], []
    for completion, gold, _ in cases:
        start = time.perf_counter()
        verdicts.append(bool(judge(completion, gold)))
        times.append(1e3 * (time.perf_counter() - start))
    labels = [correct for _, _, correct in cases]
    return {
        "accuracy": np.mean([v == c for v, c in zip(verdicts, labels)]),
        "fp": sum(v and not c for v, c in zip(verdicts, labels)),
        "fn": sum(c and not v for v, c in zip(verdicts, labels)),
        "median": np.median(times),
        "p99": np.quantile(times, 0.99),
    }


def math_pairs(problems: list[Problem], n: int) -> list[tuple[str, str, bool]]:
    """`n` completions: half with the gold in the box, half with the answer of another problem. The few golds
    of other problems that are the same number are left out by their text, so a label of False could in rare
    cases be a true equality."""
    rng = random.Random(0)
    pairs = []
    for i, problem in enumerate(rng.sample(problems, n)):
        answer = problem.answer
        while i % 2 and normalise(answer) == normalise(problem.answer):
            answer = rng.choice(problems).answer
        solution = " ".join(problem.solution.replace("\\boxed", "").split()[:200])
        pairs.append((f"{solution} The answer is $\\boxed{{{answer}}}$.", problem.answer, i % 2 == 0))
    return pairs


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--pairs", type=int, default=2000, help="answers sampled from MATH")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    problems = load(str(args.data / "math_test.parquet"))
    pairs = math_pairs(problems, args.pairs)
    rows = [json.loads(line) for line in (args.data / "verify_cases.jsonl").open()]
    sets = {
        f"labelled cases ({len(rows)})": [(row["prediction"], row["gold"], row["correct"]) for row in rows],
        f"MATH pairs ({len(pairs)})": pairs,
    }
    with Verifier(args.workers) as verifier:
        # The workers start here.
        verifier.score([r"\boxed{1+x}"] * 2, [Problem("a", "", "x+1"), Problem("b", "", "x+2")])

        def ours(completion: str, gold: str) -> bool:
            return verifier.score([completion], [Problem("p", "", gold)])[0].correct

        judges = {
            "verify.py": ours,
            "math_verify, default": math_verify_default,
            "math_verify as in TRL": math_verify_as_trl,
            "equal normalised strings": naive,
        }
        for name, cases in sets.items():
            print(f"\n| {name} | accuracy | false positives | false negatives | median ms | p99 ms |")
            print("|" + 6 * "---|")
            for label, judge in judges.items():
                m = measure(judge, cases)
                counts = f"{m['accuracy']:.3f} | {m['fp']} | {m['fn']}"
                print(f"| {label} | {counts} | {m['median']:.2f} | {m['p99']:.1f} |")
        batch = pairs[:1024]
        golds = [Problem("p", "", gold) for _, gold, _ in batch]
        own = seconds(lambda: verifier.score([completion for completion, _, _ in batch], golds))
        theirs = seconds(lambda: [math_verify_default(completion, gold) for completion, gold, _ in batch])
        self_check = seconds(lambda: verifier.score([gold_completion(p) for p in problems], problems))
    print(f"\n- a batch of {len(batch)} completions, half of them right, {args.workers} workers: "
          f"{own:.2f} s; math_verify in one process {theirs:.2f} s: {theirs / own:.1f} times as long")
    print(f"- {len(problems)} reference answers of MATH against their own box: {self_check:.2f} s")


if __name__ == "__main__":
    main()
