"""The study on Countdown: every algorithm, several seeds, tables and curves.

    python docs/study.py        # trains what is missing under runs/study, writes docs/results.md and .png
    python docs/study.py --seeds 1 --only grpo guide-grpo

A finished run is not trained again, so an interrupted study goes on where it stopped, and the tables can be
made again in seconds; after a change of a script, delete runs/study. A part of the study is printed, not
written. Two runs share the machine, one thread each.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np

HOME = Path(__file__).resolve().parent.parent
STUDY = HOME / "runs/study"
sys.path.insert(0, str(HOME))
from machinery.compare import SPLIT_K, against_itself, counts, decompose, pass_at_k, read_result

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
BASE = ["evaluate.py", "--model", "assets/countdown", "--data", "countdown", "--limit", "256", "--n", str(N),
        "--temperature", "1", "--top-p", "1", "--max-tokens", "16", "--out", str(STUDY / "base.json")]
# Shapes: S seeds, P problems, K values of k.


# ---- the runs ----------------------------------------------------------------------------------------------

def call(log: Path, *command) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as file:
        output = {"stdout": file, "stderr": file}
        subprocess.run([sys.executable, *command], cwd=HOME, env=environment, check=True, **output)


def train(slug: str, seed: int) -> Path:
    run = STUDY / f"{slug}-s{seed}"
    if not (run / "eval_trained.json").exists():
        if (run / "args.json").exists():
            where = ["--resume", str(run)]
        else:
            run.mkdir(exist_ok=True)
            shutil.copy(STUDY / "base.json", run / "eval_base.json")  # the same for every run: measured once
            where = ["--run-dir", str(run), "--seed", str(seed), "--eval-n", str(N), "--eval-every", "0"]
        call(STUDY / f"{slug}-s{seed}.log", *RUNS[slug][1:], *where)
        assert (run / "eval_trained.json").exists(), f"{run} was stopped: start the study again to go on"
        print("trained", run.relative_to(HOME), flush=True)
    return run


# ---- statistics --------------------------------------------------------------------------------------------

def per_problem(results: list[dict]) -> np.ndarray:
    """pass@k of every seed, problem and k in KS: [S, P, K]."""
    return np.array([[pass_at_k(*counts(result), k) for k in KS] for result in results]).swapaxes(1, 2)


def band(values_SPK: np.ndarray, n_boot: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds and problems with its 95 % bootstrap band over both: (mean, low, high), [K] each."""
    S, P, _ = values_SPK.shape
    rng = np.random.default_rng(0)
    means = []
    for _ in range(n_boot):
        seeds, problems = rng.integers(S, size=S), rng.integers(P, size=P)
        means.append(values_SPK[seeds][:, problems].mean((0, 1)))
    return values_SPK.mean((0, 1)), *np.percentile(means, [2.5, 97.5], axis=0)


def metrics_mean(run: Path, key: str) -> float:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return float(np.mean([json.loads(line)[key] for line in lines]))


# ---- tables and curves -------------------------------------------------------------------------------------

def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def spread(values) -> str:
    """Mean over the seeds with the lowest and highest of them."""
    return f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def pass_table(curves: dict[str, np.ndarray]) -> str:
    rows = []
    for name, values_SPK in curves.items():
        cells = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in zip(*band(values_SPK))]
        rows.append([name, *cells])
    return table(["", *(f"pass@{k}" for k in KS)], rows)


def difference_table(curves: dict[str, np.ndarray]) -> str:
    rows = []
    for a, b in PAIRS:
        if a in curves and b in curves:
            change_SPK = curves[a] - curves[b]  # of the same problems, and of runs of the same seed
            signs_KS = np.sign(change_SPK.mean(1)).T
            row = [f"{a} - {b}"]
            for mean, low, high, signs in zip(*band(change_SPK), signs_KS):
                star = "*" if len(set(signs)) == 1 else ""
                row.append(f"{mean:+.3f}{star} [{low:+.3f}, {high:+.3f}]")
            rows.append(row)
    return table(["", *(f"pass@{k}" for k in KS)], rows)


def split_table(base: dict, splits: dict[str, list[dict]]) -> str:
    parts = ("change", "progress", "self_distillation", "capability_gain", "regression")
    itself = against_itself(base, SPLIT_K)
    rows = [["base against itself", *(f"{itself[part][0]:.3f}" for part in parts)]]
    for name, of_seeds in splits.items():
        row = [name]
        for part in parts:
            row.append(spread([split[part][0] for split in of_seeds]))
        rows.append(row)
    head = ["", "change of pass@1", "progress", "self-distillation", "capability gain", "regression"]
    return table(head, rows)


def gain_table(base: dict, results: dict[str, list[dict]]) -> str:
    """The capability gain for every k: none of the base's k samples is right."""
    floors = [against_itself(base, k) for k in KS]
    row = ["base against itself"]
    for floor in floors:
        row.append(f"{floor['capability_gain'][0]:.3f}" if "capability_gain" in floor else "not known")
    rows = [row]
    for name, of_seeds in results.items():
        row = [name]
        for k in KS:
            row.append(spread([decompose(base, result, k)["capability_gain"][0] for result in of_seeds]))
        rows.append(row)
    return table(["", *(f"k = {k}" for k in KS)], rows)


def picture(curves: dict[str, np.ndarray], path: Path) -> None:
    fig, axes = plt.subplots(1, len(PANELS), figsize=(11, 4), sharey=True)
    for axis, names in zip(axes, PANELS):
        for name in ("base", *names):
            if name in curves:
                mean, low, high = band(curves[name])
                style = {"marker": "o", "markersize": 3, "color": "0.5" if name == "base" else None}
                (line,) = axis.plot(KS, mean, label=name, **style)
                axis.fill_between(KS, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="k", ylabel="pass@k")
        axis.legend(loc="lower right")
    fig.suptitle("Countdown, held-out problems, plain prompts")
    fig.tight_layout()
    fig.savefig(path, dpi=150)


PAGE = """# Results on Countdown

Made by `python docs/study.py`: {seeds} seeds a method, all args at their defaults except as listed below.
{problems} held-out problems, plain prompts, {N} samples each at temperature 1.
{machine} CPU, one thread a run; {versions}.

{commands}

GRPO and PPO make one update of lr 1e-4 a step; NSR, W-REINFORCE (3e-5) and PSR (1e-4) as many as their
kept rows fill, at most four.
Failed prompts are sampled again; rollouts with a hint for each one without, mean over the steps: {extra}.

![pass@k](results.png)

## pass@k

Mean over the seeds [95 % band: bootstrap over problems and seeds].

{passes}

## Differences

Paired over problems and seeds, with the same kind of band; * all seeds have that sign. {seeds} seeds say
little about the spread between seeds, so the bands are too narrow for that part, and {comparisons}
comparisons are shown: read the clear ones.

{differences}

## Where the change of pass@1 comes from

Mean over the seeds (lowest-highest), in expectation over one sample before and one after. Progress: wrong
before, right after. It is self-distillation if the base has a right one among {SPLIT_K} samples, capability
gain if it has none. Regression: right before, wrong after. A second evaluation of the base itself would show
the first row: it is luck.

{claim}

The capability gain by the number of the base's samples among which none is right:

{gains}
"""


@dataclass
class Args:
    seeds: int = 3  # runs a method
    only: tuple[Literal[*RUNS], ...] = tuple(RUNS)
    jobs: int = 2  # runs at the same time


def main(args: Args) -> None:
    STUDY.mkdir(parents=True, exist_ok=True)
    if not (STUDY / "base.json").exists():
        call(STUDY / "base.log", *BASE)
    waiting = {}
    with ThreadPoolExecutor(args.jobs) as pool:  # the first seed of every method first
        for seed in range(args.seeds):
            for slug in args.only:
                waiting[slug, seed] = pool.submit(train, slug, seed)
    base = read_result(STUDY / "base.json")
    curves, splits, trained, extra = {"base": per_problem([base])}, {}, {}, []
    for slug in args.only:
        name = RUNS[slug][0]
        runs = [waiting[slug, seed].result() for seed in range(args.seeds)]
        results = [read_result(run / "eval_trained.json") for run in runs]
        curves[name] = per_problem(results)
        splits[name] = [decompose(base, result) for result in results]
        trained[name] = results
        if slug.startswith("guide"):
            extra.append(f"{name} {np.mean([metrics_mean(run, 'guide/failed') for run in runs]):.2f}")
    tables = {"passes": pass_table(curves), "differences": difference_table(curves),
              "claim": split_table(base, splits), "gains": gain_table(base, trained)}
    print("\n\n".join(tables.values()))
    if set(args.only) != set(RUNS) or args.seeds < 3:
        return
    commands = [f"- {name}: `python {' '.join(command)}`" for name, *command in RUNS.values()]
    page = PAGE.format(
        seeds=args.seeds, problems=len(base["problems"]), N=N, SPLIT_K=SPLIT_K, machine=platform.machine(),
        versions=", ".join(f"{key} {value}" for key, value in base["versions"].items()),
        commands="\n".join(commands), extra=", ".join(extra), comparisons=len(PAIRS) * len(KS), **tables,
    )
    (HOME / "docs/results.md").write_text(page)
    picture(curves, HOME / "docs/results.png")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
