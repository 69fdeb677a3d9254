"""verify.py against other verifiers, on labelled cases and on answers sampled from MATH.

    python tests/bench_verify.py

Accuracy, false positives, false negatives and time per case of each, and how many of the near misses of
near_misses.py it takes for right though they are not; then the speed of batches, of hostile answers and of
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
from near_misses import near_misses, really_equal

from data import Problem, last_box, load
from machinery.notation import normalise
from verify import Verifier, gold_completion

BOMBS = [
    "8^{8^{8^{8}}}", "((((9^9)^9)^9)^9)^9", "500000!", "(((9!)!)!)!", r"\frac{1}{" * 150 + "2" + "}" * 150,
    "(" * 900 + "1" + ")" * 900, "1" + "+1" * 900, "3" + "^3" * 100, "2^" * 300 + "2",
    r"\prod_{k=1}^{99999999} k",
    r"\sum_{k=1}^{50000000} \frac{1}{k^3+1}", r"\int_0^1 \sin(\sin(\sin(x^x))) dx", r"\binom{10^9}{5^9}",
    r"\sqrt{" * 200 + "2" + "}" * 200, "(x+1)^{9999}", "(x+y+z+w)^{500}", "1/" * 190 + "1",
    r"\sin" * 300 + "x",
    "|" * 500, r"\sqrt{2^{11111}+1}",
]  # fmt: skip


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
    parser.add_argument("--misses", type=int, default=1000, help="near misses of MATH's reference answers")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    problems = load(str(args.data / "math_test.parquet"))
    pairs = math_pairs(problems, args.pairs)
    files = {"labelled cases": "verify_cases.jsonl", "faults found": "verify_faults.jsonl"}
    sets = {"MATH pairs": pairs}
    for name, file in files.items():
        rows = [json.loads(line) for line in (args.data / file).open()]
        sets[name] = [(row["prediction"], row["gold"], row["correct"]) for row in rows if "domain" not in row]
    misses = list(near_misses(sorted({problem.answer for problem in problems}), args.misses, seed=0))
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
            columns = "accuracy | false positives | false negatives | median ms | p99 ms"
            print(f"\n| {name} ({len(cases)}) | {columns} |")
            print("|" + 6 * "---|")
            for label, judge in judges.items():
                m = measure(judge, cases)
                counts = f"{m['accuracy']:.3f} | {m['fp']} | {m['fn']}"
                print(f"| {label} | {counts} | {m['median']:.2f} | {m['p99']:.1f} |")
        print(f"\n| near misses ({len(misses)}) | false positives |\n|---|---|")
        for label, judge in judges.items():
            right = [(answer, gold) for gold, _, answer in misses if judge(f"\\boxed{{{answer}}}", gold)]
            print(f"| {label} | {sum(not really_equal(*pair) for pair in right)} |")
        batch = pairs[:1024]
        golds = [Problem("p", "", gold) for _, gold, _ in batch]
        own = seconds(lambda: verifier.score([completion for completion, _, _ in batch], golds))
        theirs = seconds(lambda: [math_verify_default(completion, gold) for completion, gold, _ in batch])
        bombs = [(f"\\boxed{{{bomb}}}", Problem("b", "", "7")) for bomb in BOMBS]
        hostile = seconds(lambda: verifier.score(*map(list, zip(*bombs))))
        self_check = seconds(lambda: verifier.score([gold_completion(p) for p in problems], problems))
    print(f"\n- a batch of {len(batch)} completions, half of them right, {args.workers} workers: "
          f"{own:.2f} s; math_verify in one process {theirs:.2f} s: {theirs / own:.1f} times as long")
    print(f"- {len(bombs)} hostile answers: {hostile:.2f} s")
    print(f"- {len(problems)} reference answers of MATH against their own box: {self_check:.2f} s")


if __name__ == "__main__":
    main()
