"""The tables of README.md, docs/results.md, docs/performance.md and the algorithms' pages, and the pictures.

    python docs/tables.py           # a test holds that the committed tables are what this makes

They are made of the files that docs/study.py, tests/gpu_check.py and tests/benchmark.py left in docs/study.
"""

import json
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu
import pages
from claims import claim_table, search_table
from seeds import HOME, STUDY, difference, exists, method, problems, share_band, split

from machinery.compare import cell, table
from tests import benchmark

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TITLES = {"sea": "At sea (v2)", "countdown": "Countdown", "sea-v1": "At sea (v1)", "sea-v3": "At sea (v3)"}
KS = [1, 8, 64, 256]


# ---- tables ------------------------------------------------------------------------------------------------

def pass_table(task: str, names: list[str], kinds=("",)) -> str:
    """pass@k of some methods, over all problems and over those of each kind."""
    head, rows = ["", "seeds"], []
    for kind in kinds:
        head += [f"{kind + ' ' if kind else ''}pass@{k}" for k in ks_of(task)]
    for name in names:
        if exists(task, name):
            of = method(task, name)
            row = [of.title, "" if name in ("base", "hinted") else str(len(of.counts[1]))]
            for kind in kinds:
                row += [cell(share_band(of.values(k)[:, problems(task, kind)], name)) for k in ks_of(task)]
            rows.append(row)
    return table(head, rows)


def ks_of(task: str) -> list[int]:
    return KS if task == "countdown" else KS[:3]  # 64 samples a problem at sea


def difference_table(task: str, pairs: list[tuple[str, str]], kind: str = "") -> str:
    rows = []
    for a, b in pairs:
        if exists(task, a) and exists(task, b):
            of_a, of_b = method(task, a), method(task, b)
            rows.append([f"{of_a.title} - {of_b.title}"])
            rows[-1] += [cell(difference(of_a, of_b, k, kind), "+") for k in ks_of(task)]
    return table(["", *(f"{kind + ' ' if kind else ''}pass@{k}" for k in ks_of(task))], rows)


def split_table(task: str, names: list[str], k: int = 16) -> str:
    rows = []
    for name in ("base", *names):
        if exists(task, name):
            parts = split(task, name, k)
            title = "base against itself" if name == "base" else method(task, name).title
            rows.append([title, *(cell(share_band(values_SP, name)) for values_SP in parts.values())])
    return table(["", *split(task, "base", k)], rows)


def gain_table(task: str, names: list[str]) -> str:
    """The capability gain for each k among which the base has no right one."""
    n0 = method(task, "base").counts[0]
    rows, ks = [], [k for k in (1, 4, 16, 64, 256) if k < n0]
    for name in ("base", *names):
        if exists(task, name):
            title = "base against itself" if name == "base" else method(task, name).title
            gains = [split(task, name, k)["capability gain"].mean() for k in ks]
            rows.append([title, *(f"{gain:.3f}" for gain in gains)])
    return table(["capability gain", *(f"k = {k}" for k in ks)], rows)


def steps_to(task: str, name: str, rate: float) -> str:
    """The first evaluated step at which held-out pass@1 is at least `rate`: of each seed, or - for never."""
    of, found = method(task, name), []
    final_S = of.values(1).mean(1)
    for steps, rates, final in zip(of.logged("step"), of.logged("eval/pass@1"), final_S):
        reached = [int(step) - 1 for step, at in zip(steps, rates) if at >= rate]  # before its update
        reached += [int(steps[-1])] if final >= rate else []
        found.append(str(reached[0]) if reached else "-")
    return ", ".join(found)


def speed_table(task: str, names: list[str], rates: list[float]) -> str:
    rows = []
    for name in names:
        if exists(task, name):
            of = method(task, name)
            sampled = np.mean([seed["sampled"] for seed in of.record["seeds"].values()])
            updates = np.mean([seed["updates"] for seed in of.record["seeds"].values()])
            of_rates = [steps_to(task, name, rate) for rate in rates]
            rows.append([of.title, *of_rates, f"{updates:.0f}", f"{sampled / 1000:.1f}"])
    return table(["steps to pass@1", *(f"{rate:g}" for rate in rates), "updates", "thousand samples"], rows)


def logged_table(task: str, names: list[str], keys: dict[str, str]) -> str:
    """Logged quantities of some methods, `pages.along` their runs."""
    rows = []
    for name in names:
        if exists(task, name):
            rows.append([method(task, name).title, *(pages.along(task, name, key) for key in keys)])
    return table(["", *keys.values()], rows)


def command_list(task: str) -> str:
    lines = []
    for path in sorted((STUDY / task).glob("*.json")):
        if path.stem != "problems":
            of = method(task, path.stem)
            seeds = ", ".join(of.record["seeds"])
            torch = ", ".join(sorted({seed["versions"]["torch"] for seed in of.record["seeds"].values()}))
            lines.append(f"- {of.title} (seeds {seeds}; torch {torch}): `python {of.record['command']}`")
    return "\n".join(lines)


# ---- pictures ----------------------------------------------------------------------------------------------

def draw_pass_at_k(task: str, names: list[str], path: Path) -> None:
    """pass@k with bands."""
    fig, axis = plt.subplots(figsize=(5.5, 4))
    n = min(method(task, name).counts[0] for name in names)
    ks = [2**i for i in range(9) if 2**i <= n]
    for name in names:
        of = method(task, name)
        mean, low, high = zip(*(share_band(of.values(k), name) for k in ks))
        color = "0.5" if name == "base" else None
        (line,) = axis.plot(ks, mean, label=of.title, marker="o", markersize=3, color=color)
        axis.fill_between(ks, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="k", ylabel="pass@k", title=f"{TITLES[task]}: held-out problems")
    axis.legend(loc="lower right")
    fig.tight_layout()
    fig.savefig(path, dpi=150)
    plt.close(fig)


def draw_steps(task: str, names: list[str], path: Path) -> None:
    """Held-out pass@1 over the steps: a thin line a seed, the mean thick."""
    fig, axis = plt.subplots(figsize=(5.5, 4))
    base = method(task, "base").values(1).mean()
    for name in names:
        of = method(task, name)
        steps_S, rates_SX = of.logged("step"), of.logged("eval/pass@1")
        x = [0, *(steps_S[0, :-1] - 1), steps_S[0, -1]]  # evaluated before the step's update
        y_SX = np.concatenate([np.full((len(rates_SX), 1), base), rates_SX[:, :-1],
                               of.values(1).mean(1, keepdims=True)], 1)
        (line,) = axis.plot(x, y_SX.mean(0), label=of.title, linewidth=2.2)
        axis.plot(x, y_SX.T, color=line.get_color(), linewidth=0.6, alpha=0.5)
    axis.set(xlabel="step", ylabel="pass@1", title=f"{TITLES[task]}: held-out problems, plain prompts")
    axis.legend(loc="upper left")
    fig.tight_layout()
    fig.savefig(path, dpi=150)
    plt.close(fig)


def draw_smollm2(path: Path) -> None:
    """The worked case of docs/first-run.md: what the samples were, means of five steps; held-out pass@1."""
    run = json.loads((STUDY / "smollm2.json").read_text())
    labels = {"rollout/reward": "right: the reward", "rollout/solved": "prompts with a right sample",
              "rollout/truncated": "cut off at 32 tokens", "no answer": "no answer in a box"}
    fig, axis = plt.subplots(figsize=(5.5, 4))
    for key, label in labels.items():
        means = np.reshape(run["steps"][key], (-1, 5)).mean(1)
        width = 2.2 if key == "rollout/reward" else 1.2
        axis.plot(3 + 5 * np.arange(len(means)), means, label=label, linewidth=width)
    for x, when in ((0, "before"), (len(run["steps"]["rollout/reward"]), "after")):
        mean, low, high = run[when]["pass@1"]
        label = "held-out pass@1" if when == "before" else None
        axis.errorbar(x, mean, [[mean - low], [high - mean]], fmt="ks", markersize=4, capsize=3, label=label)
    axis.set(xlabel="step", ylabel="share", ylim=(0, 1), title="SmolLM2-135M, sums of one and two steps")
    axis.legend(loc="upper right", fontsize=8, ncols=2)
    fig.tight_layout()
    fig.savefig(path, dpi=150)
    plt.close(fig)


def benchmark_table() -> str:
    """What tests/benchmark.py found, by the commands in docs/performance.md."""
    results = benchmark.read_runs(STUDY / "benchmark.jsonl")
    return table(benchmark.HEADER, [benchmark.row(results, *key) for key in results])


def goals_table() -> str:
    """A row for each goal, a column for each case."""
    results, rows = benchmark.read_runs(STUDY / "benchmark.jsonl"), {}
    for what, case, value, limit, holds in benchmark.goals(results):
        rows.setdefault(what, {"": limit})[case] = f"{value}: {holds}"
        if limit != rows[what][""]:  # a limit of its own
            rows[what][case] += f" ({limit})"
    cases = list(dict.fromkeys(case for case, _ in results))
    cells = [[what, of[""], *(of.get(case, "") for case in cases)] for what, of in rows.items()]
    return table(["", "goal", *cases], cells)


def updates_table() -> str:
    """What tests/gpu_check.py found on one GPU."""
    rows = []
    for found in gpu.figures():
        if "optimizer_bytes" not in found:
            continue
        rows.append([found["model"], found["weights"], "yes" if found["checkpointing"] else "no"])
        rows[-1][2] += ", compiled" if found.get("compiled") else ""
        rows[-1] += [str(found["tokens"]), f"2^{found['chunk'].bit_length() - 1}"]
        rows[-1] += [f"{found['seconds']:.3f}", f"{found['tokens_per_s']:,.0f}"]
        rows[-1] += [f"{found[key]:.1%}" for key in ("of_matmul", "of_data_sheet")]
        rows[-1] += [f"{found[key] / 2**30:.1f}" for key in ("peak_bytes", "other_bytes")]
    head = ["model", "weights", "checkpointing", "tokens", "logits a chunk", "seconds", "tokens/s", "MFU",
            "of the data sheet", "peak, GiB", "activations and logits at least"]
    return table(head, rows)


def rollouts_table() -> str:
    rows = []
    for of in gpu.rollouts():
        rows.append([of["model"], of["engine"], str(of["rows"]), f"{of['tokens_per_s']:,.0f}",
                     f"{of['pass']:.0f}"])
    return table(["model", "sampler", "rows at once", "tokens/s", "ms a forward pass"], rows)


# ---- the pages ---------------------------------------------------------------------------------------------

AT_SEA = ["base", "grpo", "grpo-more", "control", "guide", "replace", "ppo", "control-ppo", "guide-ppo",
          "psr", "nsr", "w-reinforce"]
ON_COUNTDOWN = [*AT_SEA[:2], "grpo-44", *AT_SEA[3:]]
GROUPED = ["base", "grpo", "grpo-more", "control", "guide"]
FAMILY = ["base", "grpo", "psr", "nsr", "w-reinforce"]
SLOW = ["base", "grpo-3e-5", "psr-3e-5", "nsr-3e-5", "w-reinforce-3e-5"]
FEWER = ["base", "grpo-60", "nsr-60", "w-reinforce-60"]
UPDATES = ["base", "grpo-4x", "psr-4x", "nsr-4x", "w-reinforce-4x"]
LAMBDAS = ["nsr", "lambda-0.03", "w-reinforce", "lambda-0.3", "lambda-1", "psr"]
ABLATIONS = ["guide", "ratio-none", "ratio-sequence", "ratio-clip", "ratio-naive", "gamma-0.1", "hints-wrong",
             "hints-empty", "control"]
THRESHOLDS = ["guide", "control", "replace", "threshold-0.25", "threshold-0.25-control",
              "threshold-0.25-replace"]
LOGGED = {"guide/failed": "failed prompts", "guide/reward": "reward, hinted", "guide/share": "guided rows",
          "train/rows": "rows with a gradient", "guide/low_ratio": "ratios below .5"}
GUIDE_PAIRS = [("guide", "grpo"), ("guide", "control"), ("control", "grpo"), ("replace", "grpo"),
               ("guide-ppo", "ppo"), ("guide-ppo", "control-ppo")]
NSR_PAIRS = [("psr", "grpo"), ("nsr", "grpo"), ("w-reinforce", "grpo"), ("nsr", "base"),
             ("w-reinforce", "base"), ("psr", "base"), ("w-reinforce", "nsr")]
ABLATION_PAIRS = [("ratio-naive", "guide"), ("ratio-none", "guide"), ("hints-wrong", "control"),
                  ("hints-empty", "control"), ("hints-wrong", "grpo")]
BLOCKS = {  # of a page, between <!-- NAME --> and <!-- end -->
    **pages.BLOCKS,
    "claims": claim_table,
    "search": search_table,
    "sea": lambda: pass_table("sea", ["hinted", *AT_SEA]),
    "sea hard": lambda: pass_table("sea", ["hinted", *AT_SEA], ("sea3",)),
    "sea differences": lambda: difference_table("sea", GUIDE_PAIRS + NSR_PAIRS),
    "sea steps": lambda: speed_table("sea", AT_SEA[1:], [0.6, 0.65, 0.8, 0.9]),
    "sea logged": lambda: logged_table("sea", ["guide", "replace", "control"], LOGGED),
    "sea split": lambda: split_table("sea", AT_SEA[1:]),
    "sea gain": lambda: gain_table("sea", AT_SEA[1:]),
    "sea ablations": lambda: pass_table("sea", ABLATIONS, ("", "sea3")),
    "sea ablation differences": lambda: difference_table("sea", ABLATION_PAIRS),
    "sea thresholds": lambda: pass_table("sea", THRESHOLDS, ("", "sea3")),
    "sea-v1": lambda: pass_table("sea-v1", [*GROUPED, *FAMILY[2:]], ("", "sea3")),
    "sea-v1 steps": lambda: speed_table("sea-v1", GROUPED[1:] + FAMILY[2:], [0.6, 0.65, 0.8, 0.9]),
    "sea-v1 slow": lambda: pass_table("sea-v1", SLOW, ("", "sea3")),
    "sea-v1 fewer": lambda: pass_table("sea-v1", FEWER, ("", "sea3")),
    "sea-v3": lambda: pass_table("sea-v3", GROUPED, ("", "sea3")),
    "sea-v3 steps": lambda: speed_table("sea-v3", GROUPED[1:], [0.6, 0.7, 0.8, 0.9]),
    "countdown": lambda: pass_table("countdown", ["hinted", *ON_COUNTDOWN]),
    "countdown differences": lambda: difference_table("countdown", GUIDE_PAIRS + NSR_PAIRS),
    "countdown steps": lambda: speed_table("countdown", ON_COUNTDOWN[1:], [0.2, 0.25, 0.3, 0.35]),
    "countdown split": lambda: split_table("countdown", AT_SEA[1:]),
    "countdown gain": lambda: gain_table("countdown", AT_SEA[1:]),
    "countdown lambda": lambda: pass_table("countdown", LAMBDAS),
    "countdown bonus": lambda: pass_table("countdown", ["nsr", "nsr-no-bonus"]),
    "countdown slow": lambda: pass_table("countdown", SLOW),
    "countdown updates": lambda: pass_table("countdown", UPDATES),
    "countdown updates steps": lambda: speed_table("countdown", UPDATES[1:], [0.2, 0.25, 0.3, 0.35]),
    "countdown ratios": lambda: pass_table("countdown", ["guide", "ratio-none", "ratio-naive", "control"]),
    "benchmark": benchmark_table,
    "benchmark goals": goals_table,
    "gpu updates": updates_table,
    "gpu rollouts": rollouts_table,
    "gpu arithmetic": gpu.times_table,
    "gpu checks": gpu.checks_table,
    "commands": lambda: "\n".join(f"{TITLES[task]}:\n\n{command_list(task)}\n" for task in TITLES).strip(),
}
PAGES = ["README.md", "docs/results.md", "docs/performance.md"]
PAGES += [f"docs/{name}.md" for name in ("grpo", "guide", "ppo", "nsr")]


def filled(text: str) -> str:
    """A page with its blocks made again from the study's files."""

    def block(found: re.Match) -> str:
        return f"<!-- {found[1]} -->\n{BLOCKS[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- ([\w -]+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> None:
    for name in PAGES:
        path = HOME / name
        path.write_text(filled(path.read_text()))
    draw_steps("sea", ["grpo", "control", "guide"], HOME / "docs/guide.png")
    draw_pass_at_k("countdown", FAMILY, HOME / "docs/nsr.png")
    draw_smollm2(HOME / "docs/smollm2.png")


if __name__ == "__main__":
    main()
