import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test looks anything up; read when the libraries below are imported

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "assets/countdown"


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL)
