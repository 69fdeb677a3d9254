"""pass@k against brute force, the split of what changed against enumeration, tables by hand."""

import itertools
import json
import math

import numpy as np
import pytest

from data import UserError
from machinery.compare import (
    against_itself,
    bands,
    comparison,
    curve,
    decompose,
    differences,
    hint_table,
    macro_average,
    movement,
    part_curves,
    parts,
    pass_at_k,
    read_result,
)


def result(counts, n=4, **more):
    return {"problems": [{"id": str(i), "n": n, "c": c} for i, c in enumerate(counts)], **more}


# ---- pass@k ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        samples = [True] * c + [False] * (n - c)
        subsets = list(itertools.combinations(samples, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased_and_exact_at_256():
    assert pass_at_k([256, 256], [0, 1], 256).tolist() == [0.0, 1.0]
    assert pass_at_k(256, 1, 64) == pytest.approx(0.25)
    # over the binomial distribution of c, the estimate's mean is 1 - (1 - p)^k
    n, k, p = 12, 5, 0.3
    mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert mean == pytest.approx(1 - 0.7**5, abs=1e-12)
    for bad in ((4, 2, 5), (4, 5, 1), (4, 2, 0)):
        with pytest.raises(ValueError):
            pass_at_k(*bad)


def test_curve_has_a_band_around_the_mean():
    points = curve(result([0, 1, 2, 4] * 25))
    assert [k for k, *_ in points] == [1, 2, 4]
    assert points[0][1] == pytest.approx(7 / 16)
    assert all(low < mean < high for _, mean, low, high in points)


def test_a_band_is_that_of_the_mean_and_keeps_pairs():
    values = np.random.default_rng(1).random(400)
    (mean, low, high), same, (gap, gap_low, gap_high) = bands([values, values, values - values])
    error = values.std() / 20
    assert mean == pytest.approx(values.mean()) and (mean, low, high) == same
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    assert (gap, gap_low, gap_high) == (0, 0, 0)


# ---- what changed ------------------------------------------------------------------------------------------

PARTS = ("progress", "self_distillation", "capability_gain", "regression")


def enumerated(n0, c0, n1, c1, k):
    """The split of one problem by its definition, over every k samples of the base and one of the trained."""
    found, draws = dict.fromkeys(PARTS, 0), 0
    base, trained = [True] * c0 + [False] * (n0 - c0), [True] * c1 + [False] * (n1 - c1)
    for drawn, after in itertools.product(itertools.permutations(base, k), trained):
        draws += 1
        before = drawn[0]  # pass@1 is the first of the k
        if not before and after:
            found["progress"] += 1
            found["self_distillation" if any(drawn) else "capability_gain"] += 1
        if before and not after:
            found["regression"] += 1
    return {part: number / draws for part, number in found.items()}


@pytest.mark.parametrize("n0, n1", [(4, 3), (5, 5), (1, 2)])
def test_the_split_is_its_definition_over_all_draws(n0, n1):
    for c0, c1, k in itertools.product(range(n0 + 1), range(n1 + 1), range(1, n0 + 1)):
        split, expected = decompose(result([c0], n0), result([c1], n1), k), enumerated(n0, c0, n1, c1, k)
        assert {part: split[part][0] for part in PARTS} == pytest.approx(expected, abs=1e-12)
        assert split["change"][0] == pytest.approx(c1 / n1 - c0 / n0)


def test_the_split_is_a_mean_over_problems_that_adds_up():
    base, trained = result([0, 0, 1, 4]), result([2, 0, 3, 3])
    split = decompose(base, trained, k=2)
    means = {part: split[part][0] for part in ("change", *PARTS)}
    # problem 0: never right before, 2 of 4 after; problem 2: 3/4 wrong before, 3/6 pairs without a right one
    assert means["capability_gain"] == pytest.approx((2 / 4 + 3 / 6 * 3 / 4) / 4)
    assert means["self_distillation"] == pytest.approx((3 / 4 - 3 / 6) * 3 / 4 / 4)
    assert means["regression"] == pytest.approx((1 / 4 * 1 / 4 + 1 / 4) / 4)
    assert means["progress"] == pytest.approx(means["self_distillation"] + means["capability_gain"])
    assert means["change"] == pytest.approx(means["progress"] - means["regression"]) == pytest.approx(3 / 16)
    assert decompose(base, trained, k=1)["self_distillation"] == (0, 0, 0)
    assert decompose(base, trained)["k"] == 4  # no more than there are samples
    other = result([0, 0, 1, 4])
    other["problems"][0]["id"] = "another"
    with pytest.raises(UserError, match="different problems"):
        decompose(base, other)


@pytest.mark.parametrize("n, k", [(5, 3), (8, 4), (17, 16)])
def test_the_floor_is_what_a_second_evaluation_shows_on_average(n, k):
    for p in (0.05, 0.3, 0.9):
        chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        mean = dict.fromkeys(PARTS, 0.0)
        for c, chance in enumerate(chances):
            floor = against_itself(result([c], n), k)
            for part in PARTS:
                mean[part] += chance * floor[part][0]
        gain = (1 - p) ** k * p
        expected = {"progress": p * (1 - p), "capability_gain": gain, "self_distillation": p * (1 - p) - gain,
                    "regression": p * (1 - p)}
        assert mean == pytest.approx(expected, abs=1e-12)
    assert "capability_gain" not in against_itself(result([1], k), k)  # takes one sample more
    assert against_itself(result([1], 1), 1) == {}


def test_an_untrained_model_shows_no_change_and_its_floor():
    n, rng = 64, np.random.default_rng(0)
    p = rng.beta(0.3, 1, 2000)
    base, again = (result(rng.binomial(n, p).tolist(), n) for _ in range(2))
    split = decompose(base, again)
    assert split["change"][1] < 0 < split["change"][2]
    for part in PARTS:
        assert split[part][0] == pytest.approx(split["itself"][part][0], abs=0.01)
    assert split["capability_gain"][0] > 0.003


def test_a_second_evaluation_is_within_the_band_of_its_change():
    """500 pairs of evaluations with other numbers of samples: 95 % of the changes, and their spread."""
    rng, inside, changes, lucks = np.random.default_rng(3), 0, [], []
    p = rng.beta(0.5, 1, 100)
    for _ in range(500):
        c0, c1 = rng.binomial(24, p), rng.binomial(16, p)
        base = result(c0.tolist(), 24)
        mean, low, high = against_itself(base, 24, again=16)["change"]
        assert mean == 0 and low == -high
        changes.append(c1.mean() / 16 - c0.mean() / 24)
        lucks.append(high)
        inside += low < changes[-1] < high
    assert decompose(base, result(c1.tolist(), 16))["itself"]["change"] == (mean, low, high)
    assert 465 <= inside <= 485  # 475 expected, with a deviation of 4.9
    assert np.mean(lucks) == pytest.approx(1.96 * np.std(changes), rel=0.1)  # which is known to 3 %
    assert against_itself(result([1, 3], 4), 2, again=4) == against_itself(result([1, 3], 4), 2)


def test_movement_counts_problems():
    assert movement(result([0, 0, 1, 4, 4]), result([0, 3, 4, 4, 2])) == [[1, 1, 0], [0, 0, 1], [0, 1, 1]]


# ---- tables ------------------------------------------------------------------------------------------------

def rows_of(said, first):
    """The cells of the rows that begin so."""
    lines = [line for line in said.splitlines() if line.startswith(f"| {first}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_tables_show_the_numbers():
    base, one, two = result([0, 0, 1, 4], 32), result([16, 0, 3, 3], 32), result([0, 0, 1, 32], 32)
    said = comparison({"base": base, "one": one, "two": two}, full=True)
    (heading,) = rows_of(said, "mean")
    assert heading[1:] == ["base", "one", "two"]
    level, change = rows_of(said, "pass@1 ")
    assert [cell[:5] for cell in level[1:]] == ["0.039", "0.172", "0.258"]
    assert [cell[:6] for cell in change[1:]] == ["+0.133", "+0.219"]
    ((_, gain, _, floor),) = rows_of(said, "- capability gain")
    split = decompose(base, one)
    assert gain.startswith(f"{split['capability_gain'][0]:.3f} [")
    assert floor.startswith(f"{split['itself']['capability_gain'][0]:.3f} [")
    luck = 1.96 / 4 * math.sqrt((1 * 31 + 4 * 28) / (32 * 31) * 2 / 32)  # of problems 2 and 3
    ((*_, change_floor),) = rows_of(said, "change of pass@1")
    assert change_floor == f"+0.000 [-{luck:.3f}, +{luck:.3f}]" == "+0.000 [-0.047, +0.047]"
    assert rows_of(said, "never right") == [["never right", "1", "1", "0"], ["never right", "2", "0", "0"]]
    assert len(rows_of(said, "k = ")) == 6 and rows_of(said, "k = 32")[0][-1] == "not known"
    short = comparison({"base": base, "trained": one})
    assert "self-distillation" in short and "never right" not in short and "k = 32" not in short
    assert "macro" not in said


def test_data_sets_and_domains_are_shown_apart():
    def two_parts(counts, key):
        made = result(counts)
        for row, label in zip(made["problems"], ["a", "a", "a", "b"]):
            row[key] = label
        return made

    for key in ("data", "kind", "domain"):
        said = comparison({"base": two_parts([0, 0, 0, 4], key), "trained": two_parts([4, 0, 2, 4], key)})
        assert rows_of(said, "a ")[0][:4] == ["a", "3", "0.000", "0.500"]
        assert rows_of(said, "b ") == [["b", "1", "1.000", "1.000", "+0.000 [+0.000, +0.000]"]]
        ((*macro, change),) = rows_of(said, "macro average")
        assert macro == ["macro average", "", "0.500", "0.750"] and change.startswith("+0.250 [")


def test_a_table_for_data_sets_and_one_for_domains_that_are_in_several():
    def mixed(counts):
        made = result(counts)
        for row, data, domain in zip(made["problems"], "aabbb", ["math", "code", "code", "math", "math"]):
            row |= {"data": data, "domain": domain}
        return made

    base, trained = mixed([0, 1, 2, 3, 4]), mixed([4, 1, 2, 3, 4])
    domains = {"code": [1, 2], "math": [0, 3, 4]}
    assert parts(base) == {"data": {"a": [0, 1], "b": [2, 3, 4]}, "domain": domains}
    compared = comparison({"base": base, "trained": trained})
    for said, column in ((compared, 3), (hint_table(base, trained), 3), (part_curves(trained), 2)):
        shown = {label: rows_of(said, f"{label} ") for label in ("a", "b", "code", "math")}
        assert {label: float(row[column]) for label, (row,) in shown.items()} == pytest.approx(
            {"a": 0.625, "b": 0.75, "code": 0.375, "math": 0.917})
        both = [row[column] for row in rows_of(said, "macro average")]
        assert both == ["0.688", "0.646"], said
        assert "by data " in said and "by domain " in said and "by kind" not in said
    for row, domain in zip(base["problems"], ["math", "math", "code", "code", "code"]):
        row["domain"] = domain
    assert list(parts(base)) == ["data"]  # domains divide no otherwise


def test_the_band_of_the_macro_average_is_that_of_its_parts():
    rng = np.random.default_rng(2)
    values, numbers = rng.random(500), {"a": list(range(400)), "b": list(range(400, 500))}
    mean, low, high = macro_average(values, numbers)
    assert mean == pytest.approx((values[:400].mean() + values[400:].mean()) / 2)
    error = math.sqrt(values[:400].var() / 400 + values[400:].var() / 100) / 2
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_comparison_warns_of_all_that_differs_but_model_and_seed():
    made = {"model": "a", "data": "d", "split": "test", "hinted": False, "too_long": 0,
            "verdicts": {"right": 5}, "sampling": {"n": 4, "temperature": 0.6, "seed": 0},
            "versions": {"torch": "2.11"}}
    other = {"model": "b", "data": "e", "split": "test", "hinted": True, "too_long": 2,
             "verdicts": {"right": 9}, "sampling": {"n": 8, "temperature": 0.6, "seed": 1},
             "versions": {"torch": "2.13", "vllm": "0.32"},
             "verifier": "mine:f"}  # a file of an earlier version does not tell
    expected = [("data", "d", "e"), ("hinted", False, True), ("n", 4, 8), ("too_long", 0, 2),
                ("torch", "2.11", "2.13"), ("vllm", None, "0.32")]
    assert differences(made, other) == expected
    said = comparison({"base": result([0, 1]) | made, "trained": result([0, 1]) | other})
    assert said.count("warning: made with different ") == len(expected) and "note" not in said
    assert "warning: made with different vllm, None and 0.32: training is not all" in said
    said = comparison({"base": result([0, 1]) | made, "trained": result([0, 1]) | made})
    assert "warning" not in said and "note: both were sampled with seed 0" in said


def test_different_numbers_of_samples_are_compared_where_both_have_them():
    said = comparison({"base": result([0, 1, 2], n=4), "trained": result([2, 4, 8], n=8)}, full=True)
    same = comparison({"base": result([0, 1, 2], n=4), "trained": result([1, 2, 4], n=4)}, full=True)
    assert "pass@4" in said and "pass@8" not in said
    assert rows_of(said, "- capability gain") == rows_of(same, "- capability gain")  # no bias to correct


def test_files_of_earlier_versions_are_read(tmp_path):
    old = {"problems": [{"id": "0", "n": 4, "c": 1, "c_half": 1, "mean_length": 2.0}]}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert read_result(tmp_path / "old.json") == old
