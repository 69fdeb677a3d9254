"""The study on Countdown: every algorithm, several seeds, one table.

    python docs/study.py                    # trains what is missing under runs/study, then writes docs/results.md
    python docs/study.py --seeds 1 --only grpo guide-grpo

A finished run is not trained again, so an interrupted study goes on where it stopped, and the table can be made again in
seconds. Two runs share the machine, one thread each.
"""

import argparse
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
from evaluate import counts, decompose, pass_at_k, plot, read_result, versions

RUNS = {  # slug: name, script, and the args that differ from its defaults
    "grpo": ("GRPO", "grpo.py"),
    "guide-grpo": ("Guide-GRPO (union)", "guide_grpo.py"),
    "guide-grpo-replace": ("Guide-GRPO (replace)", "guide_grpo.py", "--guided-group", "replace"),
}
KS = (1, 8, 64)


def train(slug: str, seed: int) -> Path:
    run = HOME / f"runs/study/{slug}-s{seed}"
    if not (run / "eval_trained.json").exists():
        run.parent.mkdir(parents=True, exist_ok=True)
        where = ["--resume", str(run)] if (run / "args.json").exists() else ["--run-dir", str(run), "--seed", str(seed)]
        with open(f"{run}.log", "w") as log:
            command = [sys.executable, *RUNS[slug][1:], *where]
            subprocess.run(command, cwd=HOME, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, check=True)
        assert (run / "eval_trained.json").exists(), f"{run} was stopped: start the study again to go on"
        print("trained", run.relative_to(HOME), flush=True)
    return run


def spread(values) -> str:
    """Mean over the seeds with the lowest and highest of them."""
    return f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    args = parser.parse_args()
    seeds = range(args.seeds)
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {slug: [pool.submit(train, slug, seed) for seed in seeds] for slug in args.only}
        runs = {RUNS[slug][0]: [future.result() for future in of] for slug, of in futures.items()}

    base = read_result(next(iter(runs.values()))[0] / "eval_base.json")
    trained = {name: [read_result(run / "eval_trained.json") for run in of] for name, of in runs.items()}
    n, c = counts(base)
    head = ["", *(f"pass@{k}" for k in KS), "self-distillation", "capability gain"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines.append("| base | " + " | ".join(f"{pass_at_k(n, c, k).mean():.3f}" for k in KS) + " | | |")
    for name, results in trained.items():
        cells = [spread([pass_at_k(*counts(r), k).mean() for r in results]) for k in KS]
        splits = [decompose(base, r) for r in results]
        cells += [spread([s[key] for s in splits]) for key in ("self_distillation", "capability_gain")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    by_base = decompose(base, base)["by_base"]
    head = ["pass@1 on problems that the base solves", *(f"{label} ({m})" for label, m, _, _ in by_base)]
    lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines.append("| base | " + " | ".join(f"{before:.3f}" for *_, before, _ in by_base) + " |")
    for name, results in trained.items():
        after = np.array([[row[3] for row in decompose(base, r)["by_base"]] for r in results])
        lines.append(f"| {name} | " + " | ".join(spread(column) for column in after.T) + " |")

    table = "\n".join(lines)
    about = ", ".join(f"{key} {value}" for key, value in versions().items())
    (HOME / "docs/results.md").write_text(
        "# Results on Countdown\n\n"
        f"Made by `python docs/study.py`: {args.seeds} seeds of each script with its defaults, mean (lowest-highest).\n"
        f"{len(n)} held-out problems, plain prompts, {n[0]} samples each at temperature 1.\n"
        f"{platform.machine()} CPU, one thread a run; {about}.\n\n{table}\n\n"
        "![pass@k of seed 0](results.png)\n"
    )
    plot({"base": base, **{name: results[0] for name, results in trained.items()}}, HOME / "docs/results.png")
    print(table)


if __name__ == "__main__":
    main()
