import os
from pathlib import Path

# Read when the libraries below are imported, and by the scripts that the tests start.
os.environ["HF_HUB_OFFLINE"] = "1"  # no test looks anything up
# Tiny tensors: a second thread is no faster, and far slower on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import machinery  # isort: skip  # noqa: F401  as every entry point, before torch loads

import pytest

MODEL = "assets/countdown"


# What takes longest starts first, so that two processes of pytest-xdist end at the same time.
LONGEST = ("test_ranks", "test_learning", "test_runs", "test_code", "test_data", "test_measure", "test_loop",
           "test_exercises", "test_real_model", "test_benchmark")


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist's order: the most tests first


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer  # not at the head: pytest-xdist's own process needs none of it

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL)


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    """curves.png is a third of a short run's time: drawn only where a test looks, and by started scripts."""
    if "draws" not in request.keywords:
        import evaluate

        monkeypatch.setattr(evaluate, "plot", lambda results, path, *runs: Path(path).touch())
