"""docs/metrics.md and the pages on the algorithms: the keys that the scripts log, a table of grpo.md."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
import pages
import seeds

from tests import test_objectives
from tests.test_loop import BASE
from tests.test_loop import few_problems as few_problems  # of every test here too

pytestmark = pytest.mark.slow  # who experiments in a script need not write a page
PAGES = {"grpo": ["grpo"], "guide": ["guide_grpo"], "ppo": ["ppo", "guide_ppo"], "nsr": ["nsr"]}
SCRIPTS = [script for scripts in PAGES.values() for script in scripts]
KEY = r"`((?:rollout|verify|guide|train|critic|advantage|engine|time|perf|eval)/[\w@]+|step)`"


def explained() -> set[str]:
    """The keys in the first column of docs/metrics.md."""
    rows = re.findall(r"^\| (`.*?) \|", Path("docs/metrics.md").read_text(), re.MULTILINE)
    return set(re.findall(KEY, " ".join(rows)))


@pytest.fixture(scope="module")
def runs():
    return {}  # of each script, the keys of two steps


def logged(script: str, runs: dict, folder: Path) -> set[str]:
    if script not in runs:
        module = import_module(script)
        args = {**BASE, "steps": 2, "eval_every": 1, "eval_n": 8, "save_every": 0, "critic_warmup": 0}
        args |= {"lr": 1e-4, "run_dir": str(folder / script)}
        args = {key: value for key, value in args.items() if key in module.Args.__dataclass_fields__}
        lines = (module.main(module.Args(**args)) / "metrics.jsonl").read_text().splitlines()
        runs[script] = set().union(*map(json.loads, lines))
    return runs[script]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_key_of_a_run_is_explained(script, runs, tmp_path):
    keys = logged(script, runs, tmp_path)
    assert len(keys) > 25 and keys <= explained()


def test_every_key_that_is_explained_is_of_a_run(runs, tmp_path):
    assert explained() == set().union(*(logged(script, runs, tmp_path) for script in SCRIPTS))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_reads_the_keys_of_its_own_scripts(page, runs, tmp_path):
    text = Path(f"docs/{page}.md").read_text()
    named = set(re.findall(KEY, text))
    keys = set().union(*(logged(script, runs, tmp_path) for script in PAGES[page]))
    assert len(named) > 4 and named <= keys
    of_its_own = {"guide": "guide/", "ppo": ("critic/", "advantage/")}.get(page)
    if of_its_own:
        assert {key for key in keys if key.startswith(of_its_own)} <= named


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_read_in_one_go(page):
    text = Path(f"docs/{page}.md").read_text()
    written = re.sub(r"<!-- ([\w -]+) -->\n.*?<!-- end -->", "", text, flags=re.DOTALL)
    assert len(written.splitlines()) <= 150  # its tables apart


def numbers(text: str, label: str) -> list[float]:
    """Of the row of a table that begins with `label`."""
    row = re.search(rf"^\| {re.escape(label)} \| (.*) \|$", text, re.MULTILINE)
    return [float(cell) for cell in row[1].split("|")]


def test_the_weights_of_prompts_are_those_that_were_proved(monkeypatch):
    """grpo.md's w(p) for G = 8, by the formula that tests/test_objectives.py holds against samples."""
    monkeypatch.setattr(test_objectives, "G", 8)
    text = Path("docs/grpo.md").read_text()
    chances, scaled = numbers(text, "$p$"), numbers(text, "$w(p)$")
    centred = numbers(text, "$w(p)$ with `--no-norm-std`")
    taught = numbers(text, "chance that a group has an advantage at all")
    assert len(chances) == 5
    for p, *of_p in zip(chances, scaled, centred, taught, strict=True):
        weights = [test_objectives.group_weight(p, norm_std) for norm_std in (True, False)]
        assert of_p == pytest.approx([*weights, 1 - p**8 - (1 - p) ** 8], abs=0.006)
        assert test_objectives.group_weight(1 - p, True) == pytest.approx(weights[0])


@pytest.mark.parametrize("page", ["grpo", "guide", "nsr"])
def test_the_steps_of_a_series_are_those_that_its_page_names(page):
    words, said = " ".join(Path(f"docs/{page}.md").read_text().split()), []
    for task in ("sea", "countdown"):
        steps_X = seeds.method(task, "grpo").logged("step")[0].astype(int)
        said.append(f"{steps_X[0]}, {steps_X[len(steps_X) // 2]} and {steps_X[-1]}")
    at_sea, on_countdown = said
    if page == "nsr":
        assert f"on Countdown in steps {on_countdown}" in words
    else:
        assert f"in steps {at_sea} at sea, {on_countdown} on Countdown" in words


def test_a_mean_says_of_how_many_seeds_it_is(monkeypatch):
    logged = {"guide/failed": np.array([[0.5, 0.2, 0.0], [0.5, 0.0, 0.0]]),
              "guide/reward": np.array([[0.5, 0.25, 0.0], [0.7, 0.0, 0.0]])}
    monkeypatch.setattr(pages, "method", lambda *of: SimpleNamespace(logged=logged.__getitem__))
    assert pages.along("sea", "guide", "guide/failed") == "0.50 / 0.10 / 0.00"
    assert pages.along("sea", "guide", "guide/reward") == "0.60 / 0.25 (1 of 2) / -"
