"""The tables of README.md and docs/results.md, and the pictures, made of the files that docs/study.py left.

    python docs/tables.py           # a test holds that what is committed is what this makes

Bands are 95 % of 2000 bootstrap resamples of problems and of seeds. Two methods share the resampled problems,
not the seeds: no seed of one is a partner of one of the other.
"""

import json
import re
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from zlib import crc32

import matplotlib
import numpy as np

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
from machinery.compare import pass_at_k, resamples, table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STUDY = HOME / "docs/study"
TITLES = {"sea": "At sea (v2)", "sea-v1": "At sea (v1)", "sea-v3": "At sea (v3)", "countdown": "Countdown"}
KS = [1, 8, 64, 256]
NAMES = {
    "base": "base", "hinted": "base, with the hint", "grpo": "GRPO", "guide": "Guide-GRPO",
    "control": "no-hint control", "replace": "Guide-GRPO, replace", "ppo": "PPO", "guide-ppo": "Guide-PPO",
    "control-ppo": "no-hint control (PPO)", "psr": "PSR", "nsr": "NSR", "w-reinforce": "W-REINFORCE",
}
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

def draws(values_SP: np.ndarray, name: str) -> np.ndarray:
    """The mean over seeds and problems, of 2000 resamples of both [R]."""
    S, P = values_SP.shape
    seeds_RS = resamples(S, crc32(name.encode()))
    return ((seeds_RS @ values_SP) * resamples(P)).sum(1)


def mean_band(values_SP: np.ndarray, name: str) -> tuple[float, float, float]:
    return float(values_SP.mean()), *np.quantile(draws(values_SP, name), [0.025, 0.975])


def difference(a: Method, b: Method, k: int, kind: str = "") -> tuple[float, float, float]:
    """pass@k of a minus that of b, with its band."""
    keep = problems(a.task, kind)
    a_SP, b_SP = a.values(k)[:, keep], b.values(k)[:, keep]
    drawn_R = draws(a_SP, a.name) - draws(b_SP, b.name)
    return float(a_SP.mean() - b_SP.mean()), *np.quantile(drawn_R, [0.025, 0.975])


def cell(values: tuple[float, float, float], sign: str = "") -> str:
    mean, low, high = (f"{value + 0.0:{sign}.3f}" for value in values)
    return f"{mean} [{low}, {high}]"


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
                row += [cell(mean_band(of.values(k)[:, problems(task, kind)], name)) for k in ks_of(task)]
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
    after_SP = c1_SP / n1
    return {
        "progress": (1 - before_1P) * after_SP,
        "self-distillation": (1 - before_1P - none_1P) * after_SP,
        "capability gain": none_1P * after_SP,
        "regression": before_1P * (1 - after_SP),
    }


def split_table(task: str, names: list[str], k: int = 16) -> str:
    rows = []
    for name in ("base", *names):
        if exists(task, name):
            parts = split(task, name, k)
            title = "base against itself" if name == "base" else method(task, name).title
            rows.append([title, *(cell(mean_band(values_SP, name)) for values_SP in parts.values())])
    return table(["", *split(task, "base", k)], rows)


def gain_table(task: str, names: list[str]) -> str:
    """The capability gain for each k among which the base has no right one."""
    rows, ks = [], [1, 4, 16, 64, 256]
    for name in ("base", *names):
        if exists(task, name):
            title = "base against itself" if name == "base" else method(task, name).title
            rows.append([title, *(f"{split(task, name, k)['capability gain'].mean():.3f}" for k in ks)])
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
    """Logged quantities, mean over the seeds, at the first, the middle and the last evaluated step."""
    rows = []
    for name in names:
        if exists(task, name):
            of, row = method(task, name), [method(task, name).title]
            for key in keys:
                at = of.logged(key).mean(0)
                row.append(" / ".join(f"{at[i]:.2f}" for i in (0, len(at) // 2, len(at) - 1)))
            rows.append(row)
    return table(["", *keys.values()], rows)


def command_list(task: str) -> str:
    lines = []
    for path in sorted((STUDY / task).glob("*.json")):
        if path.stem != "problems":
            of = method(task, path.stem)
            seeds = ", ".join(of.record["seeds"])
            lines.append(f"- {of.title} (seeds {seeds}): `python {of.record['command']}`")
    return "\n".join(lines)


# ---- the papers' claims ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Claim:
    """pass@k of `a` against that of `b`, on all problems of a task or on those of a kind."""

    said: str
    task: str
    a: str
    b: str
    k: int
    wanted: str = "above"  # below; level: within .02
    kind: str = ""

    def row(self) -> list[str]:
        of_a, of_b = method(self.task, self.a), method(self.task, self.b)
        mean, low, high = difference(of_a, of_b, self.k, self.kind)
        where = f"{self.task}{', ' + self.kind if self.kind else ''}, pass@{self.k}"
        verdict = judge(self.wanted, low, high)
        return [self.said, where, f"{of_a.title} - {of_b.title}", cell((mean, low, high), "+"), verdict]


def judge(wanted: str, low: float, high: float) -> str:
    """What a band says of a difference that should be above 0, below 0, or level: within .02.

    >>> judge("above", 0.1, 0.2), judge("level", -0.01, 0.03), judge("below", 0.1, 0.2)
    ('holds here', 'not decided', 'does not hold here')
    """
    least, most = {"above": (0, np.inf), "below": (-np.inf, 0), "level": (-0.02, 0.02)}[wanted]
    if least <= low and high <= most:
        return "holds here"
    return "does not hold here" if high < least or low > most else "not decided"


def claims() -> list[Claim]:
    found = []
    for task, most in (("sea", 64), ("countdown", 256)):
        found += [
            Claim("2: a hint in the context raises pass@k", task, "hinted", "base", 1),
            Claim("2: a hint in the context raises pass@k", task, "hinted", "base", most),
        ]
    for task in ("sea", "sea-v1", "sea-v3", "countdown"):
        for other in ("grpo", "control"):
            found.append(Claim("3: Guide-GRPO generalises better", task, "guide", other, 1))
    for task in ("sea", "countdown"):
        for other in ("ppo", "control-ppo"):
            found.append(Claim("3, for PPO", task, "guide-ppo", other, 1))
    for task, most in (("sea", 64), ("sea-v1", 64), ("countdown", 256)):
        found += [
            Claim("4: PSR lifts pass@1", task, "psr", "base", 1),
            Claim("4: PSR lowers pass@k at large k", task, "psr", "base", most, "below"),
            Claim("4: NSR lifts pass@1", task, "nsr", "base", 1),
            Claim("4: NSR lifts pass@k at large k", task, "nsr", "base", most),
            Claim("4: NSR keeps more than PSR at large k", task, "nsr", "psr", most),
            Claim("4: NSR is level with GRPO at pass@1", task, "nsr", "grpo", 1, "level"),
            Claim("4: NSR is level with PPO at pass@1", task, "nsr", "ppo", 1, "level"),
            Claim("4: W-REINFORCE is level with GRPO at pass@1", task, "w-reinforce", "grpo", 1, "level"),
            Claim("4: W-REINFORCE beats GRPO at large k", task, "w-reinforce", "grpo", most),
        ]
    return found


def claim_1(task: str, name: str) -> list[str]:
    """Self-distillation against capability gain, each above what the base makes against itself."""
    ours, floor = split(task, name, 16), split(task, "base", 16)
    gap_SP = (ours["self-distillation"] - floor["self-distillation"]
              - (ours["capability gain"] - floor["capability gain"]))
    band = mean_band(gap_SP, name)
    return ["1: progress is self-distillation more than capability gain", f"{task}, k = 16",
            f"{method(task, name).title}, above the base against itself", cell(band, "+"),
            judge("above", *band[1:])]


def claim_table() -> str:
    rows = []
    for task in ("sea", "countdown"):
        rows += [claim_1(task, name) for name in ("grpo", "guide") if exists(task, name)]
    for claim in claims():
        if exists(claim.task, claim.a) and exists(claim.task, claim.b):
            rows.append(claim.row())
    rows.append(["5: what one update does to the logits", "exact, on any policy", "`tests/test_nsr.py`", "",
                 "holds"])
    return table(["claim", "where", "difference", "", "verdict"], rows)


def search_table() -> str:
    """Settings in which NSR or W-REINFORCE might be level with GRPO at pass@1 and not below the base."""
    rows = []
    for task in ("sea", "sea-v1", "countdown"):
        for suffix in ("", "-3e-5", "-4x"):
            for name in ("nsr", "w-reinforce"):
                a, b = f"{name}{suffix}", f"grpo{suffix}"
                if not (exists(task, a) and exists(task, b)):
                    continue
                of_a, base = method(task, a), method(task, "base")
                against_grpo = difference(of_a, method(task, b), 1)
                lows = [(difference(of_a, base, k)[0], k) for k in ks_of(task)]
                worst, k = min(lows)
                found = abs(against_grpo[0]) <= 0.02 and worst >= 0
                rows.append([task, of_a.title, method(task, b).title, cell(against_grpo, "+"),
                             f"{worst:+.3f} at k = {k}", "yes" if found else "no"])
    head = ["task", "", "against", "pass@1 - that", "least of pass@k - base's", "both"]
    return table(head, rows)


# ---- pictures ----------------------------------------------------------------------------------------------

def draw_pass_at_k(task: str, names: list[str], path: Path) -> None:
    """pass@k with bands."""
    fig, axis = plt.subplots(figsize=(5.5, 4))
    n = min(method(task, name).counts[0] for name in names)
    ks = [2**i for i in range(9) if 2**i <= n]
    for name in names:
        of = method(task, name)
        mean, low, high = zip(*(mean_band(of.values(k), name) for k in ks))
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


# ---- the pages ---------------------------------------------------------------------------------------------

AT_SEA = ["base", "grpo", "control", "guide", "replace", "ppo", "control-ppo", "guide-ppo", "psr", "nsr",
          "w-reinforce"]
GROUPED = ["base", "grpo", "control", "guide"]
FAMILY = ["base", "grpo", "psr", "nsr", "w-reinforce"]
SLOW = ["base", "grpo-3e-5", "psr-3e-5", "nsr-3e-5", "w-reinforce-3e-5"]
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
BLOCKS = {  # of a page, between <!-- NAME --> and <!-- end -->
    "readme guide": lambda: pass_table("sea", GROUPED, ("", "sea3")),
    "readme nsr": lambda: pass_table("countdown", FAMILY),
    "claims": claim_table,
    "search": search_table,
    "sea": lambda: pass_table("sea", ["hinted", *AT_SEA]),
    "sea hard": lambda: pass_table("sea", ["hinted", *AT_SEA], ("sea3",)),
    "sea differences": lambda: difference_table("sea", GUIDE_PAIRS + NSR_PAIRS),
    "sea steps": lambda: speed_table("sea", AT_SEA[1:], [0.6, 0.65, 0.8, 0.9]),
    "sea logged": lambda: logged_table("sea", ["guide", "replace"], LOGGED),
    "sea split": lambda: split_table("sea", AT_SEA[1:]),
    "sea gain": lambda: gain_table("sea", AT_SEA[1:]),
    "sea ablations": lambda: pass_table("sea", ABLATIONS, ("", "sea3")),
    "sea thresholds": lambda: pass_table("sea", THRESHOLDS, ("", "sea3")),
    "sea-v1": lambda: pass_table("sea-v1", ["hinted", *GROUPED, *FAMILY[2:]], ("", "sea3")),
    "sea-v1 steps": lambda: speed_table("sea-v1", GROUPED[1:] + FAMILY[2:], [0.6, 0.65, 0.8, 0.9]),
    "sea-v1 lambda": lambda: pass_table("sea-v1", LAMBDAS, ("", "sea3")),
    "sea-v1 slow": lambda: pass_table("sea-v1", SLOW, ("", "sea3")),
    "sea-v3": lambda: pass_table("sea-v3", ["hinted", *GROUPED], ("", "sea3")),
    "sea-v3 steps": lambda: speed_table("sea-v3", GROUPED[1:], [0.6, 0.7, 0.8, 0.9]),
    "countdown": lambda: pass_table("countdown", ["hinted", *AT_SEA]),
    "countdown differences": lambda: difference_table("countdown", GUIDE_PAIRS + NSR_PAIRS),
    "countdown steps": lambda: speed_table("countdown", AT_SEA[1:], [0.2, 0.25, 0.3, 0.35]),
    "countdown split": lambda: split_table("countdown", AT_SEA[1:]),
    "countdown gain": lambda: gain_table("countdown", AT_SEA[1:]),
    "countdown lambda": lambda: pass_table("countdown", LAMBDAS),
    "countdown slow": lambda: pass_table("countdown", SLOW),
    "countdown updates": lambda: pass_table("countdown", UPDATES),
    "countdown ratios": lambda: pass_table("countdown", ["guide", "ratio-none", "ratio-naive", "control"]),
    "commands": lambda: "\n".join(f"{TITLES[task]}:\n\n{command_list(task)}\n" for task in TITLES).strip(),
}
PAGES = ["README.md", "docs/results.md"]


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


if __name__ == "__main__":
    main()
