"""The tables of the algorithms' pages, docs/grpo.md, guide.md, ppo.md, nsr.md: docs/tables.py fills them."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from claims import Claim
from seeds import NAMES, Method, difference, exists, method, problems, share_band

from machinery.compare import cell, table

# Of Qwen2.5-Math-7B on the test problems of MATH: table 1 of the NSR paper (2506.01347, version 1).
MATH_7B = {
    "base": {1: 0.632, 64: 0.952, 256: 0.969}, "grpo": {1: 0.763, 64: 0.936, 256: 0.955},
    "ppo": {1: 0.766, 64: 0.947, 256: 0.963}, "psr": {1: 0.741, 64: 0.893, 256: 0.912},
    "nsr": {1: 0.757, 64: 0.953, 256: 0.969}, "w-reinforce": {1: 0.766, 64: 0.953, 256: 0.967},
}
Place = tuple[str, str, int]  # task, kind of its problems ("": all), k


# ---- tables ------------------------------------------------------------------------------------------------

def with_seeds(label: str, of: list[Method]) -> str:
    """The label of a row or a column, with the seeds that every trained method there has."""
    fewest = min(len(each.counts[1]) for each in of if each.name not in ("base", "hinted"))
    return f"{label} ({fewest} seed{'s' if fewest > 1 else ''})"


def summary_table(head: str, names: list[str], columns: dict[str, Place]) -> str:
    """pass@k of methods by places; the task "MATH" is the NSR paper's."""
    heads, rows = [head], [[NAMES[name]] for name in names]
    for label, (task, kind, k) in columns.items():
        if task == "MATH":
            heads.append(label)
            cells = {name: f"{MATH_7B[name][k]:.3f}" for name in names if name in MATH_7B}
        else:
            known, cells = [method(task, name) for name in names if exists(task, name)], {}
            heads.append(with_seeds(label, known))
            for of in known:
                cells[of.name] = cell(share_band(of.values(k)[:, problems(task, kind)], of.name))
        for name, row in zip(names, rows):
            row.append(cells.get(name, "-"))
    return table(heads, rows)


def along(task: str, name: str, key: str) -> str:
    """A logged quantity in the first and the middle step of those that evaluate, and in the run's last step.

    The mean over the seeds. Those in which no prompt failed in a step have no hinted reward and no guided
    rows there, those without a guided row that has a gradient no ratio: they do not count, and how many do is
    said.
    """
    of, shown = method(task, name), []
    values_SX = of.logged(key)
    if key in ("guide/reward", "guide/share"):
        values_SX = np.where(of.logged("guide/failed") > 0, values_SX, np.nan)
    elif key in ("guide/ratio", "guide/low_ratio", "guide/gamma"):
        values_SX = np.where(of.logged("guide/share") > 0, values_SX, np.nan)
    for i in (0, values_SX.shape[1] // 2, values_SX.shape[1] - 1):
        known = values_SX[:, i][~np.isnan(values_SX[:, i])]
        fewer = f" ({len(known)} of {len(values_SX)})" if len(known) < len(values_SX) else ""
        shown.append(f"{known.mean():.2f}{fewer}" if len(known) else "-")
    return " / ".join(shown)


def series_table(runs: dict[str, tuple[str, str]], keys: list[str]) -> str:
    """Logged quantities of some methods, `along` their runs."""
    rows = []
    for key in keys:
        rows.append([f"`{key}`", *(along(task, name, key) for task, name in runs.values())])
    heads = [with_seeds(label, [method(task, name)]) for label, (task, name) in runs.items()]
    return table(["", *heads], rows)


def gain_table() -> str:
    """What hints add to GRPO and to the control, by places; the last row is the Guide paper's abstract."""
    rows = []
    for label, (task, kind, k) in GAINS.items():
        guide, *others = (method(task, name) for name in ("guide", "grpo", "control"))
        gains = [cell(difference(guide, other, k, kind), "+") for other in others]
        rows.append([with_seeds(label, [guide, *others]), *gains])
    rows.append(["paper, 7 B and 32 B: macro average over mathematics benchmarks", "up to +0.04", "not run"])
    return table(["", "Guide-GRPO - GRPO", "Guide-GRPO - no-hint control"], rows)


def expected_table(expected: list[Claim]) -> str:
    """What one might expect, and how it came; rows whose runs are still missing are left out."""
    rows = [claim.row() for claim in expected if exists(claim.task, claim.a) and exists(claim.task, claim.b)]
    return table(["one might expect", "where", "difference", "", "verdict"], rows)


# ---- what they show ----------------------------------------------------------------------------------------

GUIDED = {"at sea": ("sea", "", 1), "its hard problems": ("sea", "sea3", 1), "sea:v1": ("sea-v1", "", 1),
          "sea:v3": ("sea-v3", "", 1), "countdown": ("countdown", "", 1)}
GAINS = {**{f"{label}, pass@1": place for label, place in GUIDED.items()},
         "countdown, pass@256": ("countdown", "", 256)}
SMALL_AND_LARGE = {
    "at sea, pass@1": ("sea", "", 1), "pass@64": ("sea", "", 64),
    "Countdown, pass@1": ("countdown", "", 1), "pass@256": ("countdown", "", 256),
    "paper, 7 B, MATH: pass@1": ("MATH", "", 1), "paper: pass@256": ("MATH", "", 256),
}
TAILS = {f"Countdown, pass@{k}": ("countdown", "", k) for k in (1, 64, 256)}
TAILS |= {f"paper, 7 B, MATH: pass@{k}": ("MATH", "", k) for k in (1, 64, 256)}

SAMPLED = ["rollout/reward", "rollout/entropy", "train/rows"]
GUIDANCE = ["guide/failed", "guide/reward", "guide/share", "guide/ratio", "guide/low_ratio", "guide/gamma"]
OF_BOTH = {"at sea": ("sea", "grpo"), "Countdown": ("countdown", "grpo")}
WITH_CRITIC = ["base", "grpo", "ppo", "control-ppo", "guide-ppo"]
OF_GUIDE = {"at sea": ("sea", "guide"), "replace": ("sea", "replace"), "control": ("sea", "control"),
            "hints that lie": ("sea", "hints-wrong"), "sea:v3": ("sea-v3", "guide"),
            "Countdown": ("countdown", "guide")}
FAMILY = {NAMES[name]: ("countdown", name) for name in ("grpo", "psr", "nsr", "w-reinforce")}

LARGE_K = "it keeps the base's pass@k at large k"
GRPO = [
    Claim(LARGE_K, "sea", "grpo", "base", 64, "not worse"),
    Claim(LARGE_K, "countdown", "grpo", "base", 256, "not worse"),
    Claim("at a third of the learning rate it does", "countdown", "grpo-3e-5", "base", 256, "not worse"),
    Claim("four updates at 3e-5 learn more than one at 3e-5", "countdown", "grpo-4x", "grpo-3e-5", 1),
    Claim("four updates at 3e-5 learn more than one at 1e-4", "countdown", "grpo-4x", "grpo", 1),
    Claim("44 prompts keep as much as the control", "countdown", "grpo-44", "control", 256, "not worse"),
]
GUIDE = [
    Claim("`replace`, the authors' grouping, gains over GRPO", "sea", "replace", "grpo", 1),
    Claim("`replace`, the authors' grouping, gains over GRPO", "countdown", "replace", "grpo", 1),
    Claim("hints gain over as many plain samples", "sea-v3", "guide", "control", 1),
    Claim("hints gain over as many plain samples", "countdown", "guide", "control", 1),
    Claim("hints keep as much at large k", "countdown", "guide", "control", 256, "not worse"),
    Claim("second samples alone keep more of the tail", "countdown", "control", "grpo", 256),
    Claim("also at as many samples", "countdown", "control", "grpo-44", 256),
    Claim("hints raise pass@1 above GRPO's", "countdown", "guide", "grpo", 1),
    Claim("the exact ratio, `sequence`, gains over GRPO", "sea", "ratio-sequence", "grpo", 1),
    Claim("`none` gains over no correction, `naive`", "sea", "ratio-none", "ratio-naive", 1),
    Claim("the quantile is a better gamma than .1", "sea", "guide", "gamma-0.1", 1),
    Claim("hints that lie are worse than right ones", "sea", "guide", "hints-wrong", 1),
    Claim("hints that say nothing are worse than right ones", "sea", "guide", "hints-empty", 1),
]
PPO = [
    Claim("a critic gains over the group's mean", "sea", "ppo", "grpo", 1),
    Claim("a critic gains over the group's mean", "countdown", "ppo", "grpo", 1),
    Claim(LARGE_K, "countdown", "ppo", "base", 256, "not worse"),
    Claim("hints raise pass@1 above PPO's", "countdown", "guide-ppo", "ppo", 1),
    Claim("Guide-PPO gains over Guide-GRPO", "sea", "guide-ppo", "guide", 1),
    Claim("Guide-PPO gains over Guide-GRPO", "countdown", "guide-ppo", "guide", 1),
]
NSR = [
    Claim("NSR matches GRPO at pass@1", "countdown", "nsr", "grpo", 1, "not worse"),
    Claim("W-REINFORCE matches GRPO at pass@1", "countdown", "w-reinforce", "grpo", 1, "not worse"),
    Claim("a smaller step closes NSR's gap", "countdown", "nsr-3e-5", "grpo-3e-5", 1, "not worse"),
    Claim("there it keeps more at large k than GRPO", "countdown", "nsr-3e-5", "grpo-3e-5", 256),
    Claim("NSR keeps the base's pass@k at large k", "countdown", "nsr", "base", 256, "not worse"),
    Claim("NSR keeps the base's pass@k at large k", "sea", "nsr", "base", 64, "not worse"),
    Claim("so does W-REINFORCE", "countdown", "w-reinforce", "base", 256, "not worse"),
    Claim("NSR: one update at 1e-4 learns more than four at 3e-5", "countdown", "nsr", "nsr-4x", 1),
    Claim("NSR: it keeps as much as four at 3e-5", "countdown", "nsr", "nsr-4x", 256, "not worse"),
    Claim("NSR: one update at 1e-4 learns more than one at 3e-5", "countdown", "nsr", "nsr-3e-5", 1),
    Claim("NSR: it keeps as much as one at 3e-5", "countdown", "nsr", "nsr-3e-5", 256, "not worse"),
    Claim("right rows at .1 add to NSR's pass@1", "countdown", "w-reinforce", "nsr", 1),
    Claim("the entropy bonus keeps some of NSR's tail", "countdown", "nsr", "nsr-no-bonus", 256),
    Claim("without it NSR keeps more than GRPO", "countdown", "nsr-no-bonus", "grpo", 256),
]
BLOCKS = {
    "readme guide": lambda: summary_table("held-out pass@1", ["base", "grpo", "control", "guide"], GUIDED),
    "grpo results": lambda: summary_table("", ["base", "grpo"], SMALL_AND_LARGE),
    "grpo series": lambda: series_table(OF_BOTH, [*SAMPLED, "train/updates"]),
    "grpo expected": lambda: expected_table(GRPO),
    "guide results": gain_table,
    "guide series": lambda: series_table(OF_GUIDE, GUIDANCE),
    "guide expected": lambda: expected_table(GUIDE),
    "ppo results": lambda: summary_table("", WITH_CRITIC, SMALL_AND_LARGE),
    "ppo expected": lambda: expected_table(PPO),
    "nsr results": lambda: summary_table("", list(MATH_7B), TAILS),
    "nsr series": lambda: series_table(FAMILY, SAMPLED),
    "nsr expected": lambda: expected_table(NSR),
}
