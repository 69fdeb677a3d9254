"""What docs/study.py left: the seeds of each method, means over them and over problems, with bands.

Bands are 95 % of 2000 bootstrap resamples of problems and of seeds. A bootstrap of three or five seeds is too
narrow, so what a seed differs by from the mean is first made larger, by Student's t over the normal quantile
and by sqrt(S / (S - 1)). Two methods share the resampled problems, not the seeds. With one seed the band
knows of problems only.
"""

import json
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from zlib import crc32

import numpy as np

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
from machinery.compare import parts_of_change, pass_at_k, resamples

STUDY = HOME / "docs/study"
NAMES = {
    "base": "base", "hinted": "base, with the hint", "grpo": "GRPO", "grpo-more": "GRPO, 42 prompts",
    "guide": "Guide-GRPO", "control": "no-hint control", "replace": "Guide-GRPO, replace", "ppo": "PPO",
    "guide-ppo": "Guide-PPO", "control-ppo": "no-hint control (PPO)", "psr": "PSR", "nsr": "NSR",
    "w-reinforce": "W-REINFORCE", "nsr-no-bonus": "NSR, no entropy bonus",
    "ratio-none": "ratio as it is (none)", "ratio-sequence": "product of ratios (sequence)",
    "ratio-clip": "ratio clipped (clip)", "ratio-naive": "no correction (naive)",
    "gamma-0.1": "gamma .1 in all steps", "hints-wrong": "hints that lie",
    "hints-empty": "hints that say nothing", "threshold-0.25": "threshold .25",
    "threshold-0.25-control": "threshold .25, no-hint control",
    "threshold-0.25-replace": "threshold .25, replace", "grpo-44": "GRPO, 44 prompts",
    "lambda-0.03": "lambda .03", "lambda-0.3": "lambda .3", "lambda-1": "lambda 1",
}
for _name in ("grpo", "psr", "nsr", "w-reinforce"):
    NAMES |= {f"{_name}-3e-5": f"{NAMES[_name]}, 3e-5", f"{_name}-4x": f"{NAMES[_name]}, 4 updates"}
    NAMES[f"{_name}-60"] = f"{NAMES[_name]}, 60 steps"
# Shapes: S seeds, P problems, R bootstrap resamples.


# ---- what the study left -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Method:
    """The seeds of one method on one task."""

    task: str
    name: str

    @cached_property
    def record(self) -> dict:
        return json.loads((STUDY / self.task / f"{self.name}.json").read_text())

    @property
    def title(self) -> str:
        return NAMES.get(self.name, self.name)

    @cached_property
    def counts(self) -> tuple[int, np.ndarray]:
        """Samples a problem, and the right ones [S, P]. The base's seeds are one evaluation in pieces."""
        seeds = self.record["seeds"].values()
        n, c_SP = {seed["n"] for seed in seeds}, np.array([seed["c"] for seed in seeds])
        assert len(n) == 1, f"{self.task}/{self.name}: seeds of different n"
        if self.name in ("base", "hinted"):
            return n.pop() * len(c_SP), c_SP.sum(0, keepdims=True)
        return n.pop(), c_SP

    def values(self, k: int) -> np.ndarray:
        """pass@k of each seed and problem [S, P]."""
        n, c_SP = self.counts
        return pass_at_k(np.full(c_SP.shape, n), c_SP, k)

    def logged(self, key: str) -> np.ndarray:
        """[S, evaluated steps]; nan where it was not measured."""
        rows = [seed[key] for seed in self.record["seeds"].values()]
        return np.array(rows, dtype=float)


@cache
def method(task: str, name: str) -> Method:
    return Method(task, name)


def exists(task: str, name: str) -> bool:
    return (STUDY / task / f"{name}.json").exists()


@cache
def problems(task: str, kind: str = "") -> np.ndarray:
    """Indices of a task's held-out problems, or of those of a kind ("sea:v2/sea3/114" is of sea3)."""
    ids = json.loads((STUDY / task / "problems.json").read_text())
    return np.array([i for i, id in enumerate(ids) if not kind or id.split("/")[1] == kind])


# ---- bands -------------------------------------------------------------------------------------------------

T_QUANTILE = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's .975 quantile, S - 1 degrees of freedom


def draws(values_SP: np.ndarray, name: str) -> np.ndarray:
    """The mean over seeds and problems, of 2000 resamples of both [R]."""
    S, P = values_SP.shape
    if S > 1:
        wider = T_QUANTILE[S] / 1.96 * np.sqrt(S / (S - 1))
        mean_P = values_SP.mean(0)
        values_SP = mean_P + wider * (values_SP - mean_P)
    seeds_RS = resamples(S, crc32(name.encode()))
    return ((seeds_RS @ values_SP) * resamples(P)).sum(1)


def mean_band(values_SP: np.ndarray, name: str) -> tuple[float, float, float]:
    return float(values_SP.mean()), *np.quantile(draws(values_SP, name), [0.025, 0.975])


def share_band(values_SP: np.ndarray, name: str) -> tuple[float, float, float]:
    """`mean_band` of what lies in [0, 1], which widened seeds may leave."""
    mean, *ends = mean_band(values_SP, name)
    return mean, *np.clip(ends, 0.0, 1.0)


def difference(a: Method, b: Method, k: int, kind: str = "") -> tuple[float, float, float]:
    """pass@k of a minus that of b, with its band."""
    keep = problems(a.task, kind)
    a_SP, b_SP = a.values(k)[:, keep], b.values(k)[:, keep]
    drawn_R = draws(a_SP, a.name) - draws(b_SP, b.name)
    return float(a_SP.mean() - b_SP.mean()), *np.quantile(drawn_R, [0.025, 0.975])


# ---- the change of pass@1 ----------------------------------------------------------------------------------

def split(task: str, name: str, k: int) -> dict[str, np.ndarray]:
    """The Guide paper's split of the change of pass@1, as of machinery.compare.decompose: [S, P] each.

    Of the base itself: what another evaluation of it would show.
    """
    n0, c0_1P = method(task, "base").counts
    before_1P, none_1P = c0_1P / n0, 1 - method(task, "base").values(k)
    if name == "base":
        gain_1P, progress_1P = none_1P * c0_1P / (n0 - k), c0_1P * (n0 - c0_1P) / (n0 * (n0 - 1))
        return {"progress": progress_1P, "self-distillation": progress_1P - gain_1P,
                "capability gain": gain_1P, "regression": progress_1P}
    n1, c1_SP = method(task, name).counts
    parts = parts_of_change(before_1P, c1_SP / n1, none_1P)
    parts.pop("change")
    return {part.replace("_", "-" if "self" in part else " "): values_SP for part, values_SP in parts.items()}
