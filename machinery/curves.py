"""Curves over the steps of runs, and the picture of them beside pass@k: curves.png, evaluate.py --plot."""

import math
from pathlib import Path

import numpy as np

from machinery.command import UserError
from machinery.compare import counts, curve, ks_of, pass_at_k, read_result
from machinery.logged import finite, is_run, read_lines, read_results
from machinery.names import labels

PANELS = {  # a metric's title, and what its axis counts
    "rollout/reward": ("reward, training problems", "share of right samples"),
    "eval/pass@1": ("held-out pass@1", "pass@1"),
    "eval/pass@8": ("held-out pass@8", "pass@8"),
    "eval/entropy": ("held-out entropy", "nats a token"),
    "rollout/entropy": ("entropy, training problems", "nats a token"),
    "rollout/response_tokens": ("response length", "tokens"),
    "guide/share": ("guided share", "of the rows with a gradient"),
    "engine/k3": ("gap of sampler and trainer", "k3, nats a token"),
}
DENSE = 30  # points of a line that is smoothed
ROUNDING = 1e-6  # nats of k3: where no step has more, both compute the same


# ---- points ------------------------------------------------------------------------------------------------

def series(metrics: list[dict], results: dict[str, dict]) -> dict[str, list]:
    """{metric: [[steps done, value], ..]} of a run's lines, and of its results: base, trained.

    What the line of a step has is measured before the step's update: line 1 is of the base, after 0 steps.
    """
    found: dict[str, list] = {}
    for row in metrics:
        for key, value in row.items():
            if key != "step" and finite(value) is not None:
                found.setdefault(key, []).append([row["step"] - 1, value])
    ends = {"base": 0, "trained": metrics[-1]["step"] if metrics else 0}
    for name, result in results.items():
        for k in ks_of(result):
            if k <= 8:  # as in the lines
                rate = round(float(pass_at_k(*counts(result), k).mean()), 4)
                found.setdefault(f"eval/pass@{k}", []).append([ends[name], rate])
        if finite(result.get("entropy")) is not None:  # there is none at temperature 0
            found.setdefault("eval/entropy", []).append([ends[name], result["entropy"]])
    for points in found.values():
        points.sort()
    return found


def last_pass_at_1(folder: Path) -> dict[str, float]:
    """{"eval/pass@1": as the run has last measured it, at first in its base}; empty if it never did."""
    base = folder / "eval_base.json"
    results = {"base": read_result(base)} if base.exists() else {}
    points = series(read_lines(folder / "metrics.jsonl"), results).get("eval/pass@1")
    return {"eval/pass@1": points[-1][1]} if points else {}


def panels(runs: dict[str, dict]) -> dict[str, dict[str, list]]:
    """{metric: {run: its points}} of the PANELS for which the series of `runs` have something to show."""
    found = {}
    for key in PANELS:
        points = {label: of[key] for label, of in runs.items() if key in of}
        if key == "engine/k3" and all(gap < ROUNDING for of in points.values() for _, gap in of):
            continue
        if points:
            found[key] = points
    return found


def read_compared(names: list[str]) -> tuple[dict[str, dict], dict[str, dict]]:
    """Results by label, of result files and of folders of runs, which stand for what they have trained; the
    series of those runs. Raises UserError for what is neither, and for a run without a result.
    """
    results, runs = {}, {}
    for label, name in zip(labels(names), names):
        folder = Path(name)
        if not folder.is_dir():
            results[label] = read_result(name)
            continue
        if not is_run(folder):
            raise UserError(f"{name} is no result file, and no folder of a run (no args.json, metrics.jsonl)")
        found = read_results(folder)
        if "trained" not in found:
            raise UserError(f"{name} has no eval_trained.json: it is not finished, or held no problems out; "
                            f"evaluate.py --model {name} makes a result of what is there")
        results[label], runs[label] = found["trained"], series(read_lines(folder / "metrics.jsonl"), found)
    return results, runs


# ---- the picture -------------------------------------------------------------------------------------------

def smooth(points: list, around: int) -> list:
    """Each value's mean with up to `around` neighbours on either side.

    >>> smooth([[0, 1.0], [1, 4.0], [2, 1.0]], 1)
    [[0, 2.5], [1, 2.0], [2, 2.5]]
    """
    found = []
    for i, (x, _) in enumerate(points):
        near = [value for _, value in points[max(0, i - around) : i + around + 1]]
        found.append([x, sum(near) / len(near)])
    return found


def plot(results: dict[str, dict], path, runs: dict[str, dict] | None = None) -> None:
    """pass@k curves of labelled results, with bands; before them a panel for each of PANELS that the series
    of `runs`, of the same labels, have. A label has one colour everywhere. Raises UserError for an unknown
    format.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.lines import Line2D

    runs = runs or {}
    shown, names = panels(runs), list(results | runs)
    number = len(shown) + bool(results)
    across = 2 if number == 4 else min(3, number)
    down, colours = math.ceil(number / across), colours_of(names, runs)
    width, height = (across * 4, down * 3) if number > 1 else (5.5, 4)
    columns = max(1, min(len(names), int(width / (0.6 + 0.09 * max(map(len, names))))))  # of the legend
    height += 0.25 * math.ceil(len(names) / columns)
    fig = Figure(figsize=(width, height), layout="constrained")
    grid = fig.add_gridspec(down, across)
    axes = [fig.add_subplot(grid[i // across, i % across]) for i in range(number - 1)]
    axes.append(fig.add_subplot(grid[-1, (number - 1) % across :]))  # takes what is left of its row
    drawn = [points for of in shown.values() for points in of.values()]
    last = max((points[-1][0] for points in drawn), default=0)
    for axis, key in zip(axes, shown):
        draw_panel(axis, key, shown[key], colours, last)
    if results:
        draw_pass_at_k(axes[-1], results, colours)
    if any(len(points) >= DENSE for points in drawn):
        fig.supxlabel("thin: every step; thick: the mean of the steps around it", fontsize="medium")
    lines = [Line2D([], [], color=colours[name]) for name in names]
    words = [name.replace("$", r"\$") for name in names]  # else a formula
    fig.legend(lines, words, loc="outside upper left", ncols=columns, frameon=False)
    try:
        fig.savefig(path, dpi=150)
    except ValueError as error:  # no such format
        raise UserError(f"{path}: {error}") from None


def colours_of(names: list[str], runs: dict) -> dict[str, str | list]:
    """The first one is grey where it is no run: what the others are compared with."""
    first = ["0.5"] if names[0] not in runs else []
    left = len(names) - len(first)
    rest = [f"C{i}" for i in range(left)]
    if left > 7:  # the eighth is grey, the eleventh the first again
        from matplotlib import colormaps

        rest = colormaps["turbo"](np.linspace(0, 0.95, left)).tolist()
    return dict(zip(names, [*first, *rest]))


def draw_panel(axis, key: str, of: dict[str, list], colours: dict, last: int) -> None:
    """One metric of several runs over 0 .. `last` steps."""
    for label, points in of.items():
        if len(points) < DENSE:
            axis.plot(*zip(*points), color=colours[label], marker="o", markersize=3)
        else:
            axis.plot(*zip(*points), color=colours[label], linewidth=0.6, alpha=0.4)
            axis.plot(*zip(*smooth(points, len(points) // 30)), color=colours[label])
    title, unit = PANELS[key]
    axis.set(title=title, ylabel=unit, xlabel="steps done (0: the base model)")
    most = max(value for points in of.values() for _, value in points)
    axis.set_ylim(0, 1.08 * most or 1)
    axis.set_xlim(-0.03 * max(1, last), 1.03 * max(1, last))
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axis.grid(alpha=0.3)


def draw_pass_at_k(axis, results: dict[str, dict], colours: dict) -> None:
    for label, result in results.items():
        k, mean, low, high = zip(*curve(result))
        axis.plot(k, mean, marker="o", markersize=3, color=colours[label])
        axis.fill_between(k, low, high, alpha=0.15, color=colours[label], linewidth=0)
    hinted = any(result.get("hinted") for result in results.values())
    ks = ks_of(*results.values())
    axis.grid(alpha=0.3)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks], minor=False)
    title = "pass@k of problems that have a hint" if hinted else "pass@k of held-out problems"
    axis.set(xlabel="k", ylabel="pass@k", title=f"{title}, 95 % bands")
