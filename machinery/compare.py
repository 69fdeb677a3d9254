"""Result files of evaluate.py: pass@k with its band, and what changed from one model to another.

A result is {"problems": [{id, n, c, ..}], ..}: of the n samples of a problem c are right. All the rest is
computed from such counts, as means over problems with a 95 % bootstrap band over the problems.
"""

import json
import math
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from machinery.command import UserError

KS = tuple(2**i for i in range(9))  # 1 .. 256
SPLIT_K = 16  # the Guide paper's k
# Shapes: P problems, X quantities, R bootstrap resamples.


# ---- one result --------------------------------------------------------------------------------------------

def read_result(path) -> dict:
    """Raises UserError for what is no result file; files of earlier versions are read too."""
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}")
    try:
        result = json.loads(Path(path).read_text())
        assert result["problems"], "no problems"
        for row in result["problems"]:
            whole = 0 <= row["c"] <= row["n"] and row["n"] >= 1
            assert whole and row["id"], f"the row {row}"
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no result file of evaluate.py ({what})") from None
    return result


def counts(result: dict) -> tuple[np.ndarray, np.ndarray]:
    """n and c of every problem: [P] each."""
    return tuple(np.array([row[key] for row in result["problems"]]) for key in ("n", "c"))


@cache
def _pass_at_k(n: int, c: int, k: int) -> float:
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def pass_at_k(n, c, k: int) -> np.ndarray:
    """Unbiased estimate, per problem, of the chance that one of k samples is right: 1 - C(n-c, k) / C(n, k).

    `n` samples of which `c` right: numbers or arrays of one shape. Chen et al. 2021 (arXiv 2107.03374), eq.
    1. Raises ValueError for k > n, which no estimate can be unbiased for.
    """
    n, c = np.broadcast_arrays(n, c)
    if k < 1 or (n < k).any() or (c > n).any() or (c < 0).any():
        raise ValueError(f"pass@{k} needs 1 <= k <= n and 0 <= c <= n, got n in [{n.min()}, {n.max()}]")
    return np.vectorize(_pass_at_k, otypes=[float])(n, c, k)


def ks_of(*results: dict) -> list[int]:
    """1, 2, 4 .. up to the number of samples that every problem of every result has."""
    most = min(counts(result)[0].min() for result in results)
    return [k for k in KS if k <= most]


@lru_cache(maxsize=4)  # of 5000 problems: 80 MB
def resamples(P: int, seed: int = 0) -> np.ndarray:
    """2000 bootstrap resamples of P problems, as the weight of each problem: [R, P], rows sum to 1."""
    picks_RP = np.random.default_rng(seed).integers(P, size=(2000, P))
    return np.stack([np.bincount(picks, minlength=P) for picks in picks_RP]) / P


def bands(values_XP: list[np.ndarray]) -> list[tuple[float, float, float]]:
    """(mean, low, high) over the problems of each quantity; all see the same resamples: pairs stay pairs."""
    found = []
    for values_P in values_XP:
        low, high = np.quantile(resamples(len(values_P)) @ values_P, [0.025, 0.975])
        found.append((float(values_P.mean()), float(low), float(high)))
    return found


def macro_average(values_P: np.ndarray, parts: dict[str, list[int]]) -> tuple[float, float, float]:
    """(mean, low, high) of the mean over parts, each counted once; problems are resampled in their part."""
    means, resampled = [], []
    for seed, numbers in enumerate(parts.values()):
        means.append(values_P[numbers].mean())
        resampled.append(resamples(len(numbers), seed) @ values_P[numbers])
    low, high = np.quantile(np.mean(resampled, 0), [0.025, 0.975])
    return float(np.mean(means)), float(low), float(high)


def curve(result: dict) -> list[tuple[int, float, float, float]]:
    """(k, pass@k, low, high) for k = 1, 2, 4 .. n."""
    n, c = counts(result)
    ks = ks_of(result)
    found = bands([pass_at_k(n, c, k) for k in ks])
    return [(k, *values) for k, values in zip(ks, found)]


def parts(result: dict) -> dict[str, dict[str, list[int]]]:
    """{"data": {data set: its rows}, "kind": .., "domain": ..}: of these what divides the rows, each division
    once: where each data set is a domain of its own, the domains divide them no otherwise.
    """
    divisions, taken = {}, []
    for key in ("data", "kind", "domain"):
        found: dict[str, list[int]] = {}
        for i, row in enumerate(result["problems"]):
            found.setdefault(row.get(key, "other"), []).append(i)
        if len(found) > 1 and [*found.values()] not in taken:
            taken.append([*found.values()])
            divisions[key] = found if key == "data" else dict(sorted(found.items()))
    return divisions


# ---- two results -------------------------------------------------------------------------------------------

def check_pair(base: dict, other: dict) -> None:
    if [row["id"] for row in base["problems"]] != [row["id"] for row in other["problems"]]:
        raise UserError(f"the two results are of different problems ({len(base['problems'])} and "
                        f"{len(other['problems'])}): evaluate both with the same --data, --split and "
                        "--limit, train both with the same --eval-problems")


def decompose(base: dict, trained: dict, k: int = SPLIT_K) -> dict:
    """How the answers change: the Guide paper's split (arXiv 2506.13923), in expectation over the draws.

    A problem makes *progress* if one sample is wrong before and one is right after. That is
    *self-distillation* if the base has a right one among its k samples, *capability gain* if it has none.
    *Regression* is right before, wrong after. The sample before is one of the base's k (none right among k
    means that it is wrong), the one after is drawn independently: give the two evaluations different seeds.
    With p = c0 / n0, q = c1 / n1 and u = C(n0-c0, k) / C(n0, k), the chance of none right in k, a problem has

        progress (1 - p) q  =  self-distillation (1 - p - u) q  +  capability gain u q
        regression p (1 - q);  change of pass@1: q - p = progress - regression

    each without bias. `k` is at most the fewest samples of the base. The split depends on it: at k = 1 all
    progress is capability gain. `itself` says what a model makes against itself: see `against_itself`.

    Returns {"k": k, part: (mean, low, high), .., "itself": {part: (mean, low, high), ..}}. Raises UserError
    if the two results are not of the same problems.
    """
    check_pair(base, trained)
    (n0, c0), (n1, c1) = counts(base), counts(trained)
    k = min(k, int(n0.min()))
    values = parts_of_change(c0 / n0, c1 / n1, 1 - pass_at_k(n0, c0, k))
    shown = dict(zip(values, bands(list(values.values()))))
    return {"k": k, **shown, "itself": against_itself(base, k, again=n1)}


def parts_of_change(before, after, none) -> dict[str, np.ndarray]:
    """`decompose`'s parts of pass@1 before and after, and the chance of none right in k: arrays that fit."""
    return {
        "change": after - before,
        "progress": (1 - before) * after,
        "self_distillation": (1 - before - none) * after,
        "capability_gain": none * after,
        "regression": before * (1 - after),
    }


def against_itself(base: dict, k: int, again=None) -> dict:
    """The floor: `decompose` of a model against another evaluation of itself, which is not zero.

    Who answers right one time in ten is wrong before and right after by luck. No second evaluation is needed:
    of the n samples at hand, C(n-c, k) / C(n, k) * c / (n-k) is the chance that k are wrong and the next one
    is right, which estimates (1 - p)^k p without bias; so does c (n-c) / (n (n-1)) with (1 - p) p. That takes
    more than k samples of every problem, and more than one: what has too few is not known, and left out.

    The change is 0 in expectation. Its band is that of the luck of both evaluations, with variance (1 - p) p
    (1 / n + 1 / n') for a problem, where the second one has n' samples: `again`, of each problem or of all;
    as many as the first by default.
    """
    n, c = counts(base)
    values, change = {}, {}
    if n.min() > 1:
        progress = c * (n - c) / (n * (n - 1))
        luck = 1.96 * math.sqrt((progress * (1 / n + 1 / (n if again is None else again))).sum()) / len(n)
        change = {"change": (0.0, -luck, luck)}
        values = {"progress": progress, "regression": progress}
    if n.min() > k:
        gain = (1 - pass_at_k(n, c, k)) * c / (n - k)
        values |= {"self_distillation": progress - gain, "capability_gain": gain}
    return {**change, **dict(zip(values, bands(list(values.values()))))}


STATES = ("never", "sometimes", "always")


def movement(base: dict, trained: dict) -> list[list[int]]:
    """Numbers of problems by STATES of the base (rows) and of the trained model (columns), as sampled."""
    check_pair(base, trained)
    pairs: Counter = Counter()
    for before, after in zip(base["problems"], trained["problems"]):
        pairs[state(before), state(after)] += 1
    return [[pairs[a, b] for b in STATES] for a in STATES]


def state(row: dict) -> str:
    if row["c"] == 0:
        return "never"
    return "always" if row["c"] == row["n"] else "sometimes"


def differences(base: dict, trained: dict) -> list[tuple]:
    """(setting, of base, of trained) where two results were not made alike and both say how.

    Model and seed are meant to differ. An engine or a library that only one has used is a difference too.
    """
    found = []
    for key in (base.keys() & trained.keys()) - {"problems", "samples", "verdicts", "entropy", "model"}:
        a, b = base[key], trained[key]
        if isinstance(a, dict) and isinstance(b, dict):  # sampling, versions
            for name in (a.keys() | b.keys()) - {"seed"}:
                found.append((name, a.get(name), b.get(name)))
        else:
            found.append((key, a, b))
    return sorted(((key, a, b) for key, a, b in found if a != b), key=lambda row: row[0])


# ---- tables ------------------------------------------------------------------------------------------------

def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown with columns of even width, to be read in a terminal too."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = []
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: tuple | None, sign: str = "") -> str:
    if values is None:
        return "not known"
    mean, low, high = (f"{value + 0.0:{sign}.3f}" for value in values)
    return f"{mean} [{low}, {high}]"


def comparison(results: dict[str, dict], full: bool = False) -> str:
    """Labelled results, the first of them the base, as Markdown; warnings of what differs besides the model.

    What a training run ends with: pass@k, and how the answers changed. `full` adds what --compare shows:
    paired differences at every k, the capability gain at every k, and how many problems moved where.
    """
    (first, base), *others = results.items()
    blocks = [warnings(results)]
    curves = [curve(result) for result in results.values()]
    rows = []
    for k, *of_k in zip(ks_of(*results.values()), *curves):
        rows.append([f"pass@{k}", *(cell(values[1:]) for values in of_k)])
    blocks.append(table(["mean [95 % band]", *results], rows))
    if full:
        blocks.append(difference_table(results))
    blocks.append(split_table(results))
    if full:
        blocks.append(gain_table(results))
        for name, result in others:
            moved = [[f"{a} right", *map(str, row)] for a, row in zip(STATES, movement(base, result))]
            blocks.append(table([f"problems: {first} \\ {name}", *(f"{b} right" for b in STATES)], moved))
    for key, rows_of in parts(base).items():
        blocks.append(part_table(results, key, rows_of))
    return "\n\n".join(block for block in blocks if block)


def warnings(results: dict[str, dict]) -> str:
    (_, base), *others = results.items()
    lines = []
    for name, result in others:
        of = f" ({name})" if len(others) > 1 else ""
        for key, a, b in differences(base, result):
            lines.append(f"warning: made with different {key}, {a} and {b}: training is not all{of}")
        seeds = [r.get("sampling", {}).get("seed") for r in (base, result)]
        alike = base.get("hinted", False) == result.get("hinted", False)  # else the streams are two anyway
        if None not in seeds and seeds[0] == seeds[1] and alike:
            lines.append(f"note: both were sampled with seed {seeds[0]}, so where the models are alike they "
                         f"share their luck: give one another --seed{of}")
    return "\n".join(lines)


def difference_table(results: dict[str, dict]) -> str:
    (first, base), *others = results.items()
    ks, columns = ks_of(*results.values()), []
    for _, result in others:
        check_pair(base, result)
        changes = [pass_at_k(*counts(result), k) - pass_at_k(*counts(base), k) for k in ks]
        columns.append(bands(changes))
    rows = []
    for k, *of_k in zip(ks, *columns):
        rows.append([f"pass@{k}", *(cell(values, "+") for values in of_k)])
    return table([f"change from {first}, paired", *(name for name, _ in others)], rows)


def hint_table(plain: dict, hinted: dict) -> str:
    """pass@k of the same problems without and with their hint, and what it adds; of each part too."""
    check_pair(plain, hinted)
    ks, rows = ks_of(plain, hinted), []
    added = bands([pass_at_k(*counts(hinted), k) - pass_at_k(*counts(plain), k) for k in ks])
    for without, with_hint, gain in zip(curve(plain), curve(hinted), added):
        rows.append([f"pass@{without[0]}", cell(without[1:]), cell(with_hint[1:]), cell(gain, "+")])
    blocks = [table(["mean [95 % band]", "plain", "hinted", "hinted - plain, paired"], rows)]
    for key, rows_of in parts(plain).items():
        blocks.append(part_table({"plain": plain, "hinted": hinted}, key, rows_of))
    return "\n\n".join(blocks)


SPLIT_ROWS = {"progress": "progress: wrong before, right after", "self_distillation": "- self-distillation",
              "capability_gain": "- capability gain", "regression": "regression: right before, wrong after"}


def split_table(results: dict[str, dict]) -> str:
    (first, base), *others = results.items()
    splits = [decompose(base, result) for _, result in others]
    k = splits[0]["k"]
    fewest = min((counts(result)[0] for _, result in others), key=np.min)  # of several: the widest band
    itself = against_itself(base, k, fewest)
    changes = [cell(split["change"], "+") for split in splits]
    rows = [["change of pass@1", *changes, cell(itself.get("change"), "+")]]
    for part, words in SPLIT_ROWS.items():
        rows.append([words, *(cell(split[part]) for split in splits), cell(itself.get(part))])
    head = ["one sample before, one after", *(name for name, _ in others), f"{first} against itself"]
    few = f", with {SPLIT_K} it would have more" if k < SPLIT_K else ""
    said = (f"self-distillation: the base has a right one among {k} samples{few}; capability gain: none.\n"
            "What a model makes against another evaluation of itself is luck.")
    return f"{table(head, rows)}\n\n{said}"


def gain_table(results: dict[str, dict]) -> str:
    (first, base), *others = results.items()
    rows = []
    for k in ks_of(base):
        splits = [decompose(base, result, k) for _, result in others]
        floor = cell(splits[0]["itself"].get("capability_gain"))
        rows.append([f"k = {k}", *(cell(split["capability_gain"]) for split in splits), floor])
    head = ["capability gain: none of k right", *(name for name, _ in others), f"{first} against itself"]
    return table(head, rows)


def part_table(results: dict[str, dict], key: str, rows_of: dict[str, list[int]]) -> str:
    """pass@1 of each part, `key` of parts(), its change, and the mean over them, each counted once."""
    (_, *others), rates = results, []
    for result in results.values():
        n, c = counts(result)
        rates.append(c / n)
    changes = [rate - rates[0] for rate in rates[1:]]
    rows = []
    for label, numbers in rows_of.items():
        means = [f"{rate[numbers].mean():.3f}" for rate in rates]
        moved = [cell(bands([change[numbers]])[0], "+") for change in changes]
        rows.append([label, str(len(numbers)), *means, *moved])
    means = [f"{macro_average(rate, rows_of)[0]:.3f}" for rate in rates]
    moved = [cell(macro_average(change, rows_of), "+") for change in changes]
    rows.append(["macro average", "", *means, *moved])
    return table([f"pass@1 by {key}", "problems", *results, *(f"change: {name}" for name in others)], rows)


def part_curves(result: dict) -> str:
    """pass@k of one result by data set, kind and domain, with the mean over them, each counted once."""
    n, c = counts(result)
    ks, blocks = ks_of(result), []
    for key, rows_of in parts(result).items():
        rows, means_XK = [], []
        for label, numbers in rows_of.items():
            means = [float(pass_at_k(n[numbers], c[numbers], k).mean()) for k in ks]
            means_XK.append(means)
            rows.append([label, str(len(numbers)), *(f"{mean:.3f}" for mean in means)])
        rows.append(["macro average", "", *(f"{mean:.3f}" for mean in np.mean(means_XK, 0))])
        blocks.append(table([f"by {key}", "problems", *(f"pass@{k}" for k in ks)], rows))
    return "\n\n".join(blocks)
