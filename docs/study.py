"""The study on Countdown: every algorithm, several seeds, tables and curves.

    python docs/study.py                    # trains what is missing under runs/study, then writes docs/results.md and .png
    python docs/study.py --seeds 1 --only grpo guide-grpo

A finished run is not trained again, so an interrupted study goes on where it stopped, and the tables can be made again in
seconds; after a change of a script, delete runs/study. A part of the study is printed, not written. Two runs share the
machine, one thread each.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np

HOME = Path(__file__).resolve().parent.parent
STUDY = HOME / "runs/study"
sys.path.insert(0, str(HOME))
from evaluate import counts, decompose, pass_at_k, read_result

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RUNS = {  # slug: name, script, and the args that differ from its defaults
    "grpo": ("GRPO", "grpo.py"),
    "guide-grpo": ("Guide-GRPO", "guide_grpo.py"),
    "guide-grpo-replace": ("Guide-GRPO, replace", "guide_grpo.py", "--guided-group", "replace"),
    "ppo": ("PPO", "ppo.py"),
    "guide-ppo": ("Guide-PPO", "guide_ppo.py"),
    "psr": ("PSR", "nsr.py", "--reinforce", "psr", "--lr", "1e-4"),
    "nsr": ("NSR", "nsr.py", "--reinforce", "nsr"),
    "w-reinforce": ("W-REINFORCE", "nsr.py"),
}
PAIRS = [("Guide-GRPO", "GRPO"), ("Guide-GRPO, replace", "GRPO"), ("Guide-GRPO", "Guide-GRPO, replace"),
         ("Guide-PPO", "PPO"), ("GRPO", "base"), ("PPO", "base"),
         ("PSR", "base"), ("NSR", "base"), ("W-REINFORCE", "base"), ("W-REINFORCE", "NSR")]
PANELS = [("GRPO", "Guide-GRPO", "PPO", "Guide-PPO"), ("GRPO", "PSR", "NSR", "W-REINFORCE")]
N = 256
KS = [2**i for i in range(9)]


def call(log: Path, *command) -> None:
    with open(log, "w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *command], cwd=HOME, env=environment, stdout=file, stderr=file, check=True)


def train(slug: str, seed: int) -> Path:
    run = STUDY / f"{slug}-s{seed}"
    if not (run / "eval_trained.json").exists():
        if (run / "args.json").exists():
            where = ["--resume", str(run)]
        else:
            run.mkdir(exist_ok=True)
            shutil.copy(STUDY / "base.json", run / "eval_base.json")  # every run has the same base: measured once
            where = ["--run-dir", str(run), "--seed", str(seed), "--eval-n", str(N), "--eval-every", "0"]
        call(STUDY / f"{slug}-s{seed}.log", *RUNS[slug][1:], *where)
        assert (run / "eval_trained.json").exists(), f"{run} was stopped: start the study again to go on"
        print("trained", run.relative_to(HOME), flush=True)
    return run


def per_problem(results: list[dict]) -> np.ndarray:
    """pass@k of every seed, problem and k in KS: [S, P, K]."""
    return np.array([[pass_at_k(*counts(result), k) for k in KS] for result in results]).swapaxes(1, 2)


def band(values_SPK: np.ndarray, n_boot: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds and problems with its 95 % bootstrap band over both: (mean, low, high), [K] each."""
    S, P, _ = values_SPK.shape
    rng = np.random.default_rng(0)
    means = [values_SPK[rng.integers(S, size=S)][:, rng.integers(P, size=P)].mean((0, 1)) for _ in range(n_boot)]
    return values_SPK.mean((0, 1)), *np.percentile(means, [2.5, 97.5], axis=0)


def metrics_mean(run: Path, key: str) -> float:
    return float(np.mean([json.loads(line)[key] for line in (run / "metrics.jsonl").read_text().splitlines()]))


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def spread(values) -> str:
    """Mean over the seeds with the lowest and highest of them."""
    return f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def picture(curves: dict[str, np.ndarray], path: Path) -> None:
    fig, axes = plt.subplots(1, len(PANELS), figsize=(11, 4), sharey=True)
    for axis, names in zip(axes, PANELS):
        for name in ("base", *names):
            if name in curves:
                mean, low, high = band(curves[name])
                (line,) = axis.plot(KS, mean, marker="o", markersize=3, label=name, color="0.5" if name == "base" else None)
                axis.fill_between(KS, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="k", ylabel="pass@k")
        axis.legend(loc="lower right")
    fig.suptitle("Countdown, held-out problems, plain prompts")
    fig.tight_layout()
    fig.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    args = parser.parse_args()
    STUDY.mkdir(parents=True, exist_ok=True)
    if not (STUDY / "base.json").exists():
        call(STUDY / "base.log", "evaluate.py", "--model", "assets/countdown", "--data", "countdown", "--limit", "256",
             "--n", str(N), "--temperature", "1", "--top-p", "1", "--max-tokens", "16", "--out", str(STUDY / "base.json"))
    with ThreadPoolExecutor(args.jobs) as pool:  # the first seed of every method first
        futures = {(slug, seed): pool.submit(train, slug, seed) for seed in range(args.seeds) for slug in args.only}
    results = {RUNS[slug][0]: [read_result(futures[slug, seed].result() / "eval_trained.json") for seed in range(args.seeds)]
               for slug in args.only}
    base = read_result(STUDY / "base.json")
    curves = {"base": per_problem([base]), **{name: per_problem(of) for name, of in results.items()}}

    rows = [[name, *(f"{m:.3f} [{a:.3f}, {b:.3f}]" for m, a, b in zip(*band(curve)))] for name, curve in curves.items()]
    passes = table(["", *(f"pass@{k}" for k in KS)], rows)
    rows = []
    for a, b in PAIRS:
        if a in curves and b in curves:
            change = curves[a] - curves[b]  # of the same problems, and of runs of the same seed
            signs = np.sign(change.mean(1))
            agree = ["*" if len(set(column)) == 1 else "" for column in signs.T]
            cells = zip(*band(change), agree)
            rows.append([f"{a} - {b}", *(f"{m:+.3f}{star} [{low:+.3f}, {high:+.3f}]" for m, low, high, star in cells)])
    rows_of_pairs = rows
    differences = table(["", *(f"pass@{k}" for k in KS)], rows)
    splits = {name: [decompose(base, result) for result in of] for name, of in results.items()}
    claim = table(["", "change of pass@1", "self-distillation", "capability gain"],
                  [[name, *(spread([s[key] for s in of]) for key in ("change", "self_distillation", "capability_gain"))]
                   for name, of in splits.items()])
    by_base = decompose(base, base)["by_base"]
    rows = [["base", *(f"{before:.3f}" for *_, before, _ in by_base)]]
    rows += [[name, *(spread(column) for column in np.array([[row[3] for row in s["by_base"]] for s in of]).T)]
             for name, of in splits.items()]
    by_base = table(["pass@1 on problems that the base solves", *(f"{label} ({m})" for label, m, _, _ in by_base)], rows)

    print("\n\n".join((passes, differences, claim, by_base)))
    if set(args.only) != set(RUNS) or args.seeds < 3:
        return
    sampled = {name: [metrics_mean(futures[slug, seed].result(), "guide/failed") for seed in range(args.seeds)]
               for slug, (name, *_) in RUNS.items() if slug.startswith("guide")}
    extra = ", ".join(f"{name} {np.mean(of):.2f}" for name, of in sampled.items())
    about = ", ".join(f"{key} {value}" for key, value in base["versions"].items())
    problems = len(base["problems"])
    commands = "\n".join(f"- {name}: `python {' '.join(command)}`" for name, *command in RUNS.values())
    (HOME / "docs/results.md").write_text(f"""# Results on Countdown

Made by `python docs/study.py`: {args.seeds} seeds a method, all args at their defaults except as listed below.
{problems} held-out problems, plain prompts, {N} samples each at temperature 1.
{platform.machine()} CPU, one thread a run; {about}.

{commands}

GRPO and PPO make one update of lr 1e-4 a step, NSR and W-REINFORCE four of 3e-5, PSR four of 1e-4.
Failed prompts are sampled again; rollouts with a hint for each one without, mean over the steps: {extra}.

![pass@k](results.png)

## pass@k

Mean over the seeds [95 % band: bootstrap over problems and seeds].

{passes}

## Differences

Paired over problems and seeds, with the same kind of band; * all seeds have that sign. {args.seeds} seeds say little about
the spread between seeds, so the bands are too narrow for that part, and {len(rows_of_pairs) * len(KS)} comparisons are shown:
read the clear ones.

{differences}

## Where the change of pass@1 comes from

Mean over the seeds (lowest-highest). Self-distillation: from problems that the base solved in its {N} samples;
capability gain: from those it never solved.

{claim}

The problems sorted by one half of the base's samples, the base measured on the other half:

{by_base}
""")
    picture(curves, HOME / "docs/results.png")


if __name__ == "__main__":
    main()
