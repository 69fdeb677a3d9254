"""What the documentation says is what the committed results of the study say."""

import doctest
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import claims
import seeds
import study
import tables

from machinery.compare import against_itself, decompose

KEPT = sorted(path for path in seeds.STUDY.glob("*/*.json") if path.stem != "problems")


@pytest.mark.parametrize("page", tables.PAGES)
def test_the_tables_are_those_of_the_results(page):
    text = (ROOT / page).read_text()
    assert "<!-- end -->" in text
    assert tables.filled(text) == text, "python docs/tables.py makes them again"


def test_every_block_of_a_page_is_known():
    text = "".join((ROOT / page).read_text() for page in tables.PAGES)
    for name in tables.BLOCKS:
        assert f"<!-- {name} -->" in text


def test_results_are_of_the_commands_that_the_study_runs():
    options = {(task, method): words for task, method, words, _ in study.plan(set())}
    assert KEPT
    for path in KEPT:
        known, of = json.loads(path.read_text()), (path.parent.name, path.stem)
        assert known["command"] == study.command_of(*of, options[of])
        for seed in known["seeds"].values():
            assert len(seed["c"]) == len(seeds.problems(path.parent.name))
            assert 0 <= min(seed["c"]) and max(seed["c"]) <= seed["n"]


def test_no_seed_of_the_base_is_one_of_a_trained_model():
    for path in KEPT:
        seeds = set(map(int, json.loads(path.read_text())["seeds"]))
        assert (min(seeds) >= 1000) == (path.stem in ("base", "hinted"))


def test_the_split_is_that_of_evaluate():
    base, grpo = seeds.method("sea", "base"), seeds.method("sea", "grpo")
    n0, c0_1P = base.counts
    n1, c1_SP = grpo.counts
    results = []
    for n, c_P in ((n0, c0_1P[0]), (n1, c1_SP[0])):
        results.append({"problems": [{"id": str(i), "n": n, "c": int(c)} for i, c in enumerate(c_P)]})
    theirs, itself = decompose(*results, k=16), against_itself(results[0], 16)
    ours, floor = seeds.split("sea", "grpo", 16), seeds.split("sea", "base", 16)
    for part in ours:
        assert ours[part][0].mean() == pytest.approx(theirs[part.replace("-", "_").replace(" ", "_")][0])
        assert floor[part].mean() == pytest.approx(itself[part.replace("-", "_").replace(" ", "_")][0])


@pytest.mark.parametrize("S", [3, 5])
def test_a_band_covers_the_truth_with_few_seeds(S):
    """Values = seed effect + problem effect + noise, 400 times: a band of 95 % covers their mean 0."""
    rng, covered = np.random.default_rng(S), 0
    for _ in range(400):
        parts = rng.normal(0, 0.2, (S, 1)), rng.normal(0, 0.5, (1, 40)), rng.normal(0, 0.2, (S, 40))
        _, low, high = seeds.mean_band(sum(parts), "some")
        covered += low <= 0 <= high
    assert 0.93 <= covered / 400


def test_two_trained_methods_without_a_difference_have_a_band_around_0():
    """400 pairs of 3 seeds each: problems' effects are shared, seeds' and noise are not."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        of_problem_1P, drawn = rng.normal(0.5, 0.3, (1, 40)).clip(0, 1), []
        for name in ("a", "b"):
            p_SP = (of_problem_1P + rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 0.1, (3, 40))).clip(0, 1)
            drawn.append(seeds.draws(rng.binomial(64, p_SP) / 64, name))
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
        covered += low <= 0 <= high
    assert 0.93 <= covered / 400


def test_doctests():
    result = doctest.testmod(claims)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(("against", "bands", "both"), [
    ((0.0, -0.01, 0.02), [(0.1, 0.0, 0.2), (0.0, -0.02, 0.1)], "yes"),
    ((0.0, -0.03, 0.02), [(0.1, 0.0, 0.2)], "not decided"),  # perhaps more than .02 below GRPO
    ((-0.1, -0.2, -0.05), [(0.1, 0.0, 0.2)], "no"),
    ((0.0, -0.01, 0.02), [(-0.2, -0.3, 0.1), (-0.01, -0.012, -0.008)], "no"),  # not only the lowest k counts
])
def test_the_search_judges_every_k(against, bands, both):
    assert claims.search_verdict(against, bands) == both


FIGURES = [  # words of docs/reading-order.md; pass@k of (task, method, k, kind of the problems)
    ("all problems {} with guidance, {} without; the hard ones, `sea3`, {} and {} (",
     [("sea", name, 1, kind) for kind in ("", "sea3") for name in ("guide", "grpo")]),
    ("pass@1, the base's {}, is higher with PSR ({}) than with NSR ({}).",
     [("countdown", name, 1, "") for name in ("base", "psr", "nsr")]),
    ("At pass@64 it is the other way round: PSR {}, NSR {}, and the base {}:",
     [("countdown", name, 64, "") for name in ("psr", "nsr", "base")]),
    ("of the base's pass@256 of {} NSR keeps {} (five seeds) and lambda 1 {} (one)",
     [("countdown", name, 256, "") for name in ("base", "nsr", "lambda-1")]),
]


@pytest.mark.parametrize(("words", "of"), FIGURES)
def test_the_figures_between_the_lines_are_those_of_the_results(words, of):
    text = " ".join((ROOT / "docs/reading-order.md").read_text().split())
    means = []
    for task, name, k, kind in of:
        means.append(seeds.method(task, name).values(k)[:, seeds.problems(task, kind)].mean())
    expected = words.format(*(f"{mean:.3f}".lstrip("0") for mean in means))
    assert expected in text, expected


def test_the_worked_case_is_what_was_logged():
    run = json.loads((tables.STUDY / "smollm2.json").read_text())
    page = (ROOT / "docs/first-run.md").read_text()
    rows = re.findall(r"^\| (\d+)-(\d+) \| (.*) \|$", page, re.MULTILINE)
    keys = ["rollout/reward", "rollout/solved", "no answer", "rollout/truncated", "rollout/entropy"]
    assert rows[0][0] == "1" and rows[-1][1] == str(len(run["steps"]["rollout/reward"]))
    for first, last, cells in rows:
        means = [np.mean(run["steps"][key][int(first) - 1 : int(last)]) for key in keys]
        assert [float(cell) for cell in cells.split(" | ")] == pytest.approx(means, abs=6e-4)
    for when in ("before", "after"):
        mean, low, high = run[when]["pass@1"]
        assert f"| {when} | {mean} [{low}, {high}] |".replace("0.", ".") in page


@pytest.mark.parametrize(("wanted", "low", "high", "verdict"), [
    ("above", 0.01, 0.2, "holds here"), ("above", -0.01, 0.2, "not decided"),
    ("above", -0.2, -0.01, "does not hold here"), ("below", -0.2, -0.01, "holds here"),
    ("below", -0.2, 0.01, "not decided"), ("below", 0.01, 0.2, "does not hold here"),
    ("not worse", -0.019, 0.3, "holds here"), ("not worse", -0.03, 0.0, "not decided"),
    ("not worse", -0.03, -0.021, "does not hold here"), ("above", 0.0, 0.0, "not decided"),
    ("not worse", -0.03, -0.01, "lower, perhaps within .02"), ("not worse", -0.02, -0.01, "holds here"),
])
def test_verdicts(wanted, low, high, verdict):
    assert claims.judge(wanted, low, high) == verdict
