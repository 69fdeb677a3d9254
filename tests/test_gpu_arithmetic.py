"""docs/gpu.py by hand: a small model and a card of round numbers; its three models are Qwen2.5's."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import gpu

from tests.gpu_check import random_model, train_flops

# 1,000 parameters in two layers' matrices, a head of 10 x the vocabulary, 4 bytes of keys and values a token.
SMALL = gpu.Model("small", 1000 + 10 * gpu.VOCABULARY, 1000, 2, 10, 4, True, 1)
UNTIED = gpu.Model("untied", 1000 + 20 * gpu.VOCABULARY, 1000, 2, 10, 4, False, 4)
READ = 1000 + 10 * gpu.VOCABULARY  # of both
CARD = gpu.Card(flops=1e9, bandwidth=1e9, memory=1e9, link=1e6, network=1e5)
SHAPES = {  # what random_model is told besides: 32B's shape is that of Qwen2.5-32B/config.json
    "1.5B": ("1.5B", {}), "7B": ("7B", {}),
    "32B": ("7B", {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
                   "num_attention_heads": 40, "num_key_value_heads": 8}),
}


@pytest.mark.parametrize("model", gpu.MODELS, ids=lambda model: model.name)
def test_models_are_those_of_the_checks(model):
    size, change = SHAPES[model.name]
    net = random_model(size, "meta", **change)
    config = net.config
    assert model.parameters == sum(weight.numel() for weight in net.parameters())
    assert (model.layers, model.hidden) == (config.num_hidden_layers, config.hidden_size)
    assert (model.head, model.tied) == (net.lm_head.weight.numel(), config.tie_word_embeddings)
    assert model.kv_bytes == 2 * config.num_hidden_layers * config.num_key_value_heads * 128 * 2
    assert config.hidden_size == 128 * config.num_attention_heads
    rows = [(2048, 1536), (700, 1), (5, 0)]
    assert gpu.operations(model, rows) == train_flops(net, rows)


def test_operations_by_hand():
    head = 10 * gpu.VOCABULARY
    # 6 a weight: 1,000 x 7 tokens, the head x 3. Attention: 6 x 2 layers x 10 x 7 x 7.
    assert gpu.operations(SMALL, [(7, 3)]) == 6 * 7000 + 6 * 3 * head + 5880
    assert gpu.operations(SMALL, [(7, 3), (1, 0)]) == 6 * 7000 + 6 * 3 * head + 5880 + 6000 + 120


def test_an_update_by_hand():
    assert gpu.training(SMALL, 1, CARD, 0.5, [(10, 0)]) == 72_000 / 5e8  # 60,000 + 12,000 of attention
    assert gpu.training(SMALL, 4, CARD, 0.5, [(10, 0)]) == 72_000 / 2e9


def test_the_wires_by_hand():
    eight = 8 * SMALL.parameters
    assert gpu.communication(SMALL, 1, CARD, 10**9) == 0
    assert gpu.communication(SMALL, 8, CARD, 24 * gpu.MICRO) == pytest.approx(3 * eight / 1e6)
    assert gpu.communication(SMALL, 64, CARD, 128 * gpu.MICRO) == pytest.approx(2 * eight / 1e5)
    assert gpu.communication(SMALL, 8, CARD, 1) == pytest.approx(eight / 1e6)  # one micro-batch at least


def test_a_pass_reads_or_computes_whichever_takes_longer():
    assert SMALL.read == UNTIED.read == READ  # the other embedding is looked up
    # 5 tokens of 2 rows are 40 bytes; a compute of 2 operations a weight and row at half of 1e9 a second.
    slow_memory = gpu.Card(flops=1e12, bandwidth=1e6)
    assert gpu.decode(SMALL, 1, slow_memory, 2, 5) == pytest.approx((2 * READ + 40) / 0.6e6 + 0.004)
    slow_compute = gpu.Card(flops=1e6, bandwidth=1e12)
    assert gpu.decode(SMALL, 1, slow_compute, 2, 5) == pytest.approx(4 * READ / 0.5e6 + 0.004)
    assert gpu.decode(SMALL, 4, slow_compute, 2, 5) == pytest.approx(READ / 0.5e6 + 0.004)  # 4 ms stay


def test_a_rollout_is_the_sum_over_the_tokens_of_the_longest():
    # 1, 1 and 3 tokens after a prompt of 300: three rows at 300, one at 301, one at 302.
    memory_only = gpu.Card(flops=1e30, bandwidth=1e6)
    bytes_read = 3 * 2 * READ + 4 * (3 * 300 + 301 + 302)
    assert gpu.rollout(SMALL, 1, memory_only, [1, 1, 3]) == pytest.approx(bytes_read / 0.6e6 + 3 * 0.004)
    # On 8 GPUs eight engines, or two of four GPUs: 3/8 and 3/2 rows, then 1/8 and 1/2.
    shared = 3 * 2 * READ + 4 * (3 * 300 + 301 + 302) / 8
    assert gpu.rollout(SMALL, 8, memory_only, [1, 1, 3]) == pytest.approx(shared / 0.6e6 + 3 * 0.004)
    shared = 3 * 2 * READ + 4 * (3 * 300 + 301 + 302) / 2
    assert gpu.rollout(UNTIED, 8, memory_only, [1, 1, 3]) == pytest.approx(shared / 4 / 0.6e6 + 3 * 0.004)
    compute_only = gpu.Card(flops=1e6, bandwidth=1e30)
    operations = 2 * READ * (3 + 1 + 1)
    assert gpu.rollout(SMALL, 1, compute_only, [1, 1, 3]) == pytest.approx(operations / 0.5e6 + 3 * 0.004)


def test_a_sum_of_maxima_is_more_than_the_maximum_of_sums():
    """Many rows compute, the last one reads: neither sum alone is the time."""
    lengths = [1] * 999 + [100]
    reading = gpu.rollout(SMALL, 1, gpu.Card(flops=1e30, bandwidth=1e9), lengths)
    computing = gpu.rollout(SMALL, 1, gpu.Card(flops=1e10, bandwidth=1e30), lengths)
    assert gpu.rollout(SMALL, 1, gpu.Card(flops=1e10, bandwidth=1e9), lengths) > 1.2 * max(reading, computing)


def test_sync_by_hand():
    into_engine = 2 * SMALL.parameters / 0.5e9
    assert gpu.sync(SMALL, 1, CARD) == pytest.approx(into_engine)
    assert gpu.sync(SMALL, 8, CARD) == pytest.approx(2 * SMALL.parameters / 1e6 + into_engine)
    assert gpu.sync(SMALL, 64, CARD) == pytest.approx(2 * SMALL.parameters / 1e5 + into_engine)


def test_memory_by_hand():
    n = UNTIED.parameters
    assert gpu.memory(SMALL, 1) == 18 * SMALL.parameters
    assert [gpu.memory(UNTIED, gpus) for gpus in (1, 2, 8)] == [18 * n, 8 * n + n, 2 * n + 0.5 * n]
    assert [gpu.host_memory(UNTIED, gpus) for gpus in (1, 8, 64)] == [4 * n, 32 * n, 32 * n]


def test_lengths_are_quantiles_of_a_cut_exponential():
    # 1058 ln(4/3) = 304.4 and 1058 ln 4 = 1466.7
    assert gpu.response_lengths(2) == [304, 1467]
    lengths = gpu.response_lengths(1024)
    assert lengths == sorted(lengths) and lengths[0] == 1 and lengths[-1] == 3072
    assert sum(lengths) / 1024 == pytest.approx(1000, abs=1)
    assert lengths.count(3072) / 1024 == pytest.approx(2.71828 ** (-3072 / 1058), abs=1e-3)


def test_no_check_is_of_a_number_by_itself():
    """A ratio of exactly 1 would be a figure against the one that it was made of."""
    rows = [line.split("|") for line in gpu.checks_table().splitlines()[2:]]
    ratios = [float(row[-2]) for row in rows]
    assert len(ratios) == 12 and 1.0 not in ratios
