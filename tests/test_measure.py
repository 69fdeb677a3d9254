"""What a step measures and how it deals with the sampler: engine weights, means, operations, memory, seconds, the order."""

import json
import math
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, MambaConfig, Qwen3MoeConfig

import evaluate
from grpo import Args, engine_weight, policy_loss, token_logprobs
from ppo import Critic
from tests.bench_memory import MIB, compare, peak_memory, random_model, rows
from tests.test_runs import SMALL

MODEL = "assets/countdown"


# ---- the gap between sampler and trainer -----------------------------------------------------------------------------

def test_engine_weight_by_hand():
    old_NT = torch.tensor([[0.5, 0.1, 0.4]]).log().requires_grad_()
    weight_NT = engine_weight(old_NT.detach(), torch.tensor([[0.4, 0.4, 0.1]]).log(), cap=2.0)
    torch.testing.assert_close(weight_NT, torch.tensor([[1.25, 0.25, 2.0]]))
    assert (engine_weight(old_NT.detach(), torch.zeros(1, 3), cap=0.0) == 1).all()


def test_weighted_samples_of_another_distribution_give_the_policys_gradient():
    """Of pi, from samples of mu, exactly, by summing over the vocabulary; a cap below the largest ratio brings a bias."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    mu = (logits.detach() + 0.5 * torch.randn(6, generator=generator, dtype=torch.float64)).log_softmax(-1)
    A = torch.randn(6, generator=generator, dtype=torch.float64)
    logp = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad(-(logp.exp() * A).sum(), logits, retain_graph=True)

    def gradient(cap):
        old_N1 = logp.detach()[:, None]
        loss_N1, _ = policy_loss(logp[:, None], old_N1, A[:, None], 0.2, 0.2)
        loss = (mu.exp() * (engine_weight(old_N1, mu[:, None], cap) * loss_N1)[:, 0]).sum()
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    assert (logp - mu).exp().max() < 10
    torch.testing.assert_close(gradient(cap=10.0), exact)
    assert (gradient(cap=1.1) - exact).norm() < (gradient(cap=0.0) - exact).norm()
    assert (gradient(cap=1.1) - exact).norm() > 1e-3


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_a_wide_gap_warns_once_and_says_what_to_do(cap, tmp_path, capsys):
    log = evaluate.tracker(Args(tis_cap=cap), tmp_path)
    for step, k3 in enumerate((0.001, 0.02, 0.03)):
        log({"step": step, "engine/k3": k3, "engine/gap_mean": 0.15}, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: in step 1 ") and "0.15 nats a token apart" in line
    assert ("--tis-cap 2" in line) == (cap == 0)


def test_means_are_the_same_for_any_micro_batches():
    generator = torch.Generator().manual_seed(0)
    old_NT, engine_NT, value_NT = (torch.randn(4, 5, generator=generator) for _ in range(3))
    mask_NT = torch.arange(5) < torch.tensor([5, 2, 0, 3])[:, None]
    found = []
    for split in ([4], [1, 3], [2, 1, 1]):
        means = evaluate.TokenMeans()
        for parts in zip(*(x.split(split) for x in (value_NT, old_NT, engine_NT, mask_NT))):
            means.add(torch.tensor(0.6) / len(split), {"train/x": parts[0]}, *parts[1:])
        found.append(means.result(updates=2))
    gap_M = (old_NT - engine_NT)[mask_NT]
    assert found[0]["train/x"] == pytest.approx(value_NT[mask_NT].mean().item(), rel=1e-5)
    assert found[0]["engine/gap_max"] == gap_M.abs().max()
    assert found[0]["engine/gap_mean"] == pytest.approx(gap_M.abs().mean().item())
    assert found[0]["engine/k3"] == pytest.approx((gap_M.exp() - gap_M - 1).mean().item(), rel=1e-5)
    assert found[0]["engine/ess"] == pytest.approx((gap_M.exp().mean() ** 2 / (2 * gap_M).exp().mean()).item(), rel=1e-5)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert {k: v for k, v in found[0].items() if k != "train/loss"} == pytest.approx(
        {k: v for k, v in found[2].items() if k != "train/loss"}, rel=1e-6
    )
    assert found[1]["train/loss"] == pytest.approx(0.3)
    assert found[2]["train/loss"] == pytest.approx(0.2)  # the third part's row has no token: its loss is a rank's without work
    assert evaluate.TokenMeans().result(0) == {"train/loss": 0.0}
    means = evaluate.TokenMeans()
    means.add(torch.tensor(0.0), {}, torch.tensor([[49.0, 0.0]]), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert means.result(1)["engine/ess"] == pytest.approx(0.5)  # exp(2 * 49) is no float32


# ---- operations, seconds ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("of", ["policy", "critic"])
def test_train_flops_are_those_that_torch_counts(of):
    model = AutoModelForCausalLM.from_pretrained(MODEL) if of == "policy" else Critic(MODEL)
    backbone = model.base_model if of == "policy" else model.backbone
    backbone.set_attn_implementation("eager")  # torch does not count what its fused attention does on a CPU
    n, prompt, response = 3, 20, 30
    ids = rows(n, prompt, response, 300, "cpu")
    with FlopCounterMode(display=False) as counter:
        values = token_logprobs(model, *ids, 1.0)[0] if of == "policy" else model(*ids)
        values.sum().backward()
    lengths = [(prompt + response, response)] * n
    # torch counts the scores above the diagonal as well, and the head's forward pass that the backward pass does again
    quadratic = (evaluate.train_flops(model, [(2 * 50, 0)]) - 2 * evaluate.train_flops(model, [(50, 0)])) / 2 * n
    again = 2 * model.get_output_embeddings().weight.numel() * response * n if of == "policy" else 0
    expected = evaluate.train_flops(model, lengths) + quadratic + again
    assert quadratic > 0.01 * expected
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)  # a critic's head, one column, is left out


def test_the_clock_adds_up_by_phase():
    clock = evaluate.Clock()
    for phase, seconds, tokens in (("rollout", 0.02, 5), ("verify", 0.05, 0), ("rollout", 0.03, 7)):
        time.sleep(seconds)
        clock(phase, tokens)
    assert clock.tokens == {"rollout": 12, "verify": 0}
    assert 0.05 <= clock.seconds["rollout"] and 0.05 <= clock.seconds["verify"]
    assert sum(clock.seconds.values()) < 1


def test_speed_is_a_share_of_what_the_machine_can_do(model, monkeypatch):
    clock = evaluate.Clock()
    clock.seconds |= {"rollout": 2.0, "verify": 0.5, "update": 4.0}
    clock.tokens |= {"rollout": 100}
    trained = [SimpleNamespace(prompt=[0] * 10, response=[0] * 5), SimpleNamespace(prompt=[0] * 3, response=[0] * 2)]
    flops = evaluate.train_flops(model, [(15, 5), (5, 2)])
    monkeypatch.setattr(evaluate, "matmul_rate", lambda device: flops)
    found = evaluate.speed(clock, [model], "cpu", trained)
    assert found["perf/rollout_tokens_per_s"] == 50 and found["perf/train_tokens_per_s"] == 5 and found["time/verify"] == 0.5
    assert found["perf/mfu"] == pytest.approx(0.25)
    monkeypatch.setattr(evaluate, "world", lambda: 2)  # they have trained on these rows together
    assert evaluate.speed(clock, [model], "cpu", trained)["perf/mfu"] == pytest.approx(0.125)


def test_a_matrix_product_has_a_rate(monkeypatch):
    state = torch.get_rng_state()

    class Fake:  # four products of 1024 x 1024 in 2 seconds
        def __init__(self):
            self.seconds = {"matmul": 2.0}

        def __call__(self, phase):
            pass

    monkeypatch.setattr(evaluate, "Clock", Fake)
    assert evaluate.matmul_rate.__wrapped__("cpu") == 4 * 2 * 1024**3 / 2.0
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_whose_operations_are_unknown_has_no_mfu(model):
    clock = evaluate.Clock()
    clock.seconds |= {"rollout": 2.0, "update": 4.0}
    clock.tokens |= {"rollout": 100}
    text = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = Qwen3MoeConfig(**text, intermediate_size=32, moe_intermediate_size=16, num_experts=4)
    spaces = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    for config in (experts, spaces):
        other = AutoModelForCausalLM.from_config(config)
        assert evaluate.train_flops(other, [(15, 5)]) is None
        assert "perf/mfu" not in evaluate.speed(clock, [model, other], "cpu", [])
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    assert evaluate.train_flops(gpt2, [(1, 0)]) == 6 * 12 * 32**2 + 6 * 32  # 12 d^2 weights, none of them in a Linear


# ---- memory ----------------------------------------------------------------------------------------------------------

def test_chunked_log_probs_need_less_memory_for_a_large_vocabulary():
    (_, chunked, mine), (_, naive, theirs) = compare("tiny", 1, 64, 2048, "cpu", vocabulary=100_000)
    assert (mine - theirs).abs().max() < 1e-4
    assert naive / MIB > 2.8 * 805  # about three tensors of 2112 x 100,000 floats
    assert chunked / MIB < 3.8 * 256  # three of 2**26 floats, and little else


def test_an_entropy_that_is_trained_on_needs_five_chunks():
    model, ids = random_model("tiny", "cpu", vocab_size=100_000), rows(1, 64, 2048, 100_000, "cpu")

    def step():
        logp_NT, entropy_NT, _ = token_logprobs(model, *ids, 1.0, entropy_grad=True)
        (logp_NT + 0.1 * entropy_NT).sum().backward()

    assert peak_memory(step, "cpu") / MIB < 5.8 * 256


def test_the_heads_gradient_is_added_up_in_float32_over_chunks():
    """In bfloat16, as on a GPU: 64 chunks are as close to the float32 gradient as one."""
    model, ids = random_model("tiny", "cpu", vocab_size=2048, tie_word_embeddings=False), rows(4, 16, 512, 2048, "cpu")

    def gradient(chunk, enabled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False):
            logp_NT, _, _ = token_logprobs(model, *ids, 1.0, chunk=chunk)
        logp_NT.sum().backward()
        return model.get_output_embeddings().weight.grad.clone()

    exact = gradient(2**26, False)
    one, many = ((gradient(chunk, True) - exact).norm() / exact.norm() for chunk in (2**26, 2**16))
    assert 1e-4 < many < 1.1 * one


def test_the_reference_model_is_on_the_device_only_inside(monkeypatch):
    places = []
    model = SimpleNamespace(to=lambda device: places.append(device) or model)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: places.append("emptied"))
    with evaluate.on_device(model, "cuda") as there:
        assert there is model and places == ["cuda"]
    assert places == ["cuda", "cpu", "emptied"]


@pytest.mark.parametrize("script", ["grpo", "guide_grpo", "ppo", "guide_ppo"])
def test_a_script_takes_its_reference_model_to_the_device_and_back(script, tmp_path, monkeypatch):
    inside, calls = [], []

    @contextmanager
    def on_device(model, device):
        inside.append(model)
        yield model
        inside.append(None)

    module = import_module(script)
    rows_logprobs = module.rows_logprobs
    monkeypatch.setattr(evaluate, "on_device", on_device)

    def spy(model, *args, **kwargs):
        calls.append((model, inside[-1:]))
        return rows_logprobs(model, *args, **kwargs)

    monkeypatch.setattr(module, "rows_logprobs", spy)
    args = {**SMALL, "steps": 1, "eval_every": 0, "beta": 0.1, "run_dir": str(tmp_path / "run")}
    module.main(module.Args(**args))
    reference, nothing = inside
    assert nothing is None and [outer for model, outer in calls if model is reference] == [[reference]]
    assert all(outer == [] for model, outer in calls if model is not reference)


@pytest.mark.parametrize("script", ["grpo", "guide_grpo", "nsr", "ppo", "guide_ppo"])
def test_the_sampler_sleeps_between_the_last_rollout_and_the_update(script, tmp_path, monkeypatch):
    calls, options, autocasts = [], set(), []

    def spy(name):
        original = getattr(evaluate.TransformersSampler, name)

        def call(self, *args, **kwargs):
            calls.append(name)
            options.add((self.gpu_memory, self.tensor_parallel, self.sleep_level))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(evaluate.TransformersSampler, name, call)

    for name in ("generate", "sleep", "update"):
        spy(name)
    original = torch.autocast.__init__
    monkeypatch.setattr(torch.autocast, "__init__", lambda self, *a, **k: autocasts.append((a, k)) or original(self, *a, **k))
    module = import_module(script)
    engine = {"gpu_memory": 0.3, "tensor_parallel": 3, "sleep_level": 2}
    run = module.main(module.Args(**{**SMALL, "steps": 1, "eval_every": 1, "run_dir": str(tmp_path / "run")}, **engine))
    assert options == {(0.3, 3, 2)}
    (mixed,) = [kwargs for args, kwargs in autocasts if torch.bfloat16 in args]
    assert mixed == {"enabled": False, "cache_enabled": False}
    rollouts = calls.count("generate") - 3  # the evaluations before, after the step, at the end
    assert rollouts == 1 + script.startswith("guide")
    assert calls == ["generate", "update", *["generate"] * rollouts, "sleep", "update", "generate", "generate"]
    (m,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(m[f"time/{phase}"] > 0 for phase in ("rollout", "verify", "logprobs", "update", "sync"))
    assert 0 < m["perf/mfu"] < 2 and m["perf/rollout_tokens_per_s"] > 0 and m["perf/train_tokens_per_s"] > 0
    assert math.isfinite(m["engine/k3"]) and m["engine/ess"] == pytest.approx(1, abs=1e-4)


def test_the_gpu_check_runs_at_a_tiny_size():
    done = subprocess.run([sys.executable, "tests/gpu_check.py", "--tiny"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    for what in ("matrix product", "update of tiny", "peak of a step", "rollouts of tiny", "log-probs of tiny", "Countdown"):
        assert any(line.startswith(f"| {what}") for line in table), what
