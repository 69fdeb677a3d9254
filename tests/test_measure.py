"""What a step measures: engine weights, means, operations, memory, seconds, the order of what it does."""

import inspect
import json
import math
import runpy
import sys
import time
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, MambaConfig, Qwen3MoeConfig

from grpo import Args, engine_weight, policy_loss, token_logprobs
from machinery import ranks
from machinery.run import Clock, Run, TokenMeans
from machinery.sampler import TransformersSampler
from ppo import Critic
from tests import gpu_check
from tests.bench_memory import MIB, compare, peak_memory, random_model, rows
from tests.gpu_check import matmul_rate, train_flops
from tests.test_runs import SMALL

MODEL = "assets/countdown"


# ---- the gap between sampler and trainer -------------------------------------------------------------------

def test_engine_weight_by_hand():
    old_NT = torch.tensor([[0.5, 0.1, 0.4]]).log().requires_grad_()
    weight_NT = engine_weight(old_NT.detach(), torch.tensor([[0.4, 0.4, 0.1]]).log(), cap=2.0)
    torch.testing.assert_close(weight_NT, torch.tensor([[1.25, 0.25, 2.0]]))
    assert (engine_weight(old_NT.detach(), torch.zeros(1, 3), cap=0.0) == 1).all()


def test_weighted_samples_of_another_distribution_give_the_policys_gradient():
    """Of pi, from samples of mu, exactly: sums over the vocabulary; a cap below a ratio is a bias."""
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
    run = Run(Args(steps=3, save_every=0, tis_cap=cap, run_dir=str(tmp_path / "run")), "grpo.py")
    for step in run.steps():
        k3 = (0.001, 0.02, 0.03)[step]
        run.log({"engine/k3": k3, "engine/gap_mean": 0.15, "rollout/reward": 0.0}, [], None)
    run.close()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("warning: in step 2 ") and "0.15 nats a token apart" in line
    assert ("--tis-cap 2" in line) == (cap == 0)


def test_means_are_the_same_for_any_micro_batches():
    generator = torch.Generator().manual_seed(0)
    old_NT, engine_NT, value_NT = (torch.randn(4, 5, generator=generator) for _ in range(3))
    mask_NT = torch.arange(5) < torch.tensor([5, 2, 0, 3])[:, None]
    found = []
    for split in ([4], [1, 3], [2, 1, 1]):
        means = TokenMeans()
        parts = [x.split(split) for x in (mask_NT, old_NT, engine_NT, value_NT)]
        for mask, old, engine, value in zip(*parts):
            means.add(torch.tensor(0.6) / len(split), mask, old, engine, x=value, critic_some_x=2 * value)
        for grad_norm in (0.5, 0.7):
            means.add_update(grad_norm)
        found.append(means.metrics())
    gap_M = (old_NT - engine_NT)[mask_NT]
    mean, ratio_M = value_NT[mask_NT].mean().item(), gap_M.exp()
    assert found[0]["train/x"] == pytest.approx(mean, rel=1e-5)
    assert found[0]["critic/some_x"] == pytest.approx(2 * mean, rel=1e-5)
    assert found[0]["train/grad_norm"] == pytest.approx(0.6) and found[0]["train/updates"] == 2
    assert found[0]["engine/gap_max"] == gap_M.abs().max()
    assert found[0]["engine/gap_mean"] == pytest.approx(gap_M.abs().mean().item())
    assert found[0]["engine/k3"] == pytest.approx((ratio_M - gap_M - 1).mean().item(), rel=1e-5)
    ess = ratio_M.mean() ** 2 / (ratio_M**2).mean()
    assert found[0]["engine/ess"] == pytest.approx(ess.item(), rel=1e-5)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert {k: v for k, v in found[0].items() if k != "train/loss"} == pytest.approx(
        {k: v for k, v in found[2].items() if k != "train/loss"}, rel=1e-6
    )
    assert found[1]["train/loss"] == pytest.approx(0.3)
    assert found[2]["train/loss"] == pytest.approx(0.2)  # no token in the third part: a rank out of work
    assert TokenMeans().metrics() == {"train/loss": 0.0, "train/grad_norm": 0.0, "train/updates": 0}
    means = TokenMeans()
    ones_NT = torch.ones(1, 2, dtype=torch.bool)
    means.add(torch.tensor(0.0), ones_NT, torch.tensor([[49.0, 0.0]]), torch.zeros(1, 2))
    assert means.metrics()["engine/ess"] == pytest.approx(0.5)  # exp(2 * 49) is no float32


# ---- operations, seconds -----------------------------------------------------------------------------------

HEAD = (314, 128)  # MODEL's


@pytest.mark.parametrize("of", ["policy", "critic"])
def test_train_flops_are_those_that_torch_counts(of):
    model = AutoModelForCausalLM.from_pretrained(MODEL) if of == "policy" else Critic(MODEL)
    backbone = model.base_model if of == "policy" else model.backbone
    backbone.set_attn_implementation("eager")  # torch does not count what its fused attention does on a CPU
    n, prompt, response = 3, 20, 30
    ids = rows(n, prompt, response, 300, "cpu")
    with FlopCounterMode(display=False) as counter:
        values = token_logprobs(model, *ids, 1.0, 40 * HEAD[0])[0] if of == "policy" else model(*ids)
        values.sum().backward()
    lengths = [(prompt + response, response)] * n
    # torch counts the scores above the diagonal too, and the head's passes that the backward pass repeats:
    # those of two chunks of 40 tokens, not of the last one.
    quadratic = (train_flops(model, [(2 * 50, 0)]) - 2 * train_flops(model, [(50, 0)])) / 2 * n
    again = 2 * math.prod(HEAD) * 2 * 40 if of == "policy" else 0
    expected = train_flops(model, lengths) + quadratic + again
    assert quadratic > 0.01 * expected
    # A critic's head, one column, is left out.
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_the_clock_adds_up_by_phase():
    clock = Clock()
    for phase, seconds, tokens in (("rollout", 0.02, 5), ("verify", 0.05, 0), ("rollout", 0.03, 7)):
        time.sleep(seconds)
        clock(phase, tokens)
    assert clock.tokens == {"rollout": 12}
    assert 0.05 <= clock.seconds["rollout"] and 0.05 <= clock.seconds["verify"]
    assert sum(clock.seconds.values()) < 1


def test_speed_is_tokens_by_the_seconds_of_their_phase():
    clock = Clock()
    clock.seconds |= {"rollout": 2.0, "verify": 0.5, "update": 4.0}
    clock.tokens |= {"rollout": 100, "update": 20}
    assert clock.metrics() == {"time/rollout": 2.0, "time/verify": 0.5, "time/update": 4.0,
                               "perf/rollout_tokens_per_s": 50, "perf/update_tokens_per_s": 5}


def test_a_matrix_product_has_a_rate(monkeypatch):
    state = torch.get_rng_state()

    class Fake:  # four products of 1024 x 1024 in 2 seconds
        def __init__(self):
            self.seconds = {"matmul": 2.0}

        def __call__(self, phase):
            pass

    monkeypatch.setattr(gpu_check, "Clock", Fake)
    assert matmul_rate.__wrapped__("cpu") == 4 * 2 * 1024**3 / 2.0
    assert torch.equal(state, torch.get_rng_state())


def test_only_operations_that_are_known_are_counted():
    text = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1}
    experts = Qwen3MoeConfig(**text, intermediate_size=32, moe_intermediate_size=16, num_experts=4)
    spaces = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    for config in (experts, spaces):
        assert train_flops(AutoModelForCausalLM.from_config(config), [(15, 5)]) is None
    small = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    gpt2 = AutoModelForCausalLM.from_config(small)  # 12 d^2 weights, none of them in a Linear
    assert train_flops(gpt2, [(1, 0)]) == 6 * 12 * 32**2 + 6 * 32


# ---- memory ------------------------------------------------------------------------------------------------

SMALL_MEMORY = {"vocab_size": 20_000, "hidden_size": 32}
CHUNK = 2**22  # 210 tokens, of the vocabulary of 20,000


def test_chunked_log_probs_need_less_memory_for_a_large_vocabulary():
    (_, chunked, mine), (_, naive, theirs) = compare("tiny", 64, 512, "cpu", CHUNK, **SMALL_MEMORY)
    assert (mine - theirs).abs().max() < 1e-4
    assert naive > 2.8 * 4 * (64 + 512) * 20_000  # about three tensors of 576 x 20,000 floats
    assert chunked < 3.8 * 4 * CHUNK  # three of a chunk's logits, and little else
    assert inspect.signature(token_logprobs).parameters["chunk"].default * 4 == 256 * MIB


def test_an_entropy_that_is_trained_on_needs_five_chunks():
    model, ids = random_model("tiny", "cpu", **SMALL_MEMORY), rows(1, 64, 512, 20_000, "cpu")

    def step(entropy_grad):
        logp_NT, entropy_NT, _ = token_logprobs(model, *ids, 1.0, CHUNK, entropy_grad)
        (logp_NT + 0.1 * entropy_NT).sum().backward()

    without, trained = (peak_memory(partial(step, grad), "cpu") for grad in (False, True))
    assert without < 3.8 * 4 * CHUNK < trained < 5.8 * 4 * CHUNK


def test_the_heads_gradient_is_added_up_in_float32_over_chunks():
    """In bfloat16, as on a GPU: 64 chunks are as close to the float32 gradient as one."""
    model = random_model("tiny", "cpu", vocab_size=512, tie_word_embeddings=False)
    ids = rows(4, 16, 128, 512, "cpu")

    def gradient(chunk, enabled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False):
            logp_NT, _, _ = token_logprobs(model, *ids, 1.0, chunk=chunk)
        logp_NT.sum().backward()
        return model.get_output_embeddings().weight.grad.clone()

    exact = gradient(2**26, False)
    one, many = ((gradient(chunk, True) - exact).norm() / exact.norm() for chunk in (2**26, 2**12))
    assert 1e-4 < many < 1.1 * one


def test_a_model_is_on_the_device_only_inside(monkeypatch):
    places = []

    class Fake:
        def __init__(self, home):
            self.home = torch.device(home)

        def parameters(self):
            yield SimpleNamespace(device=self.home)

        def to(self, device):
            places.append(device)
            return self

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: places.append("emptied"))
    waiting, there = Fake("cpu"), Fake("cuda:1")
    with ranks.on_device(waiting, "cuda") as inside:
        assert inside is waiting and places == ["cuda"]
    assert places == ["cuda", "cpu", "emptied"]
    places.clear()
    with ranks.on_device(there, "cuda") as inside:
        assert inside is there
    assert places == ["cuda"]  # the policy stays


@pytest.mark.parametrize("script", ["grpo", "guide_grpo", "ppo", "guide_ppo"])
def test_a_script_takes_its_reference_model_to_the_device_and_back(script, tmp_path, monkeypatch):
    module = import_module(script)
    models, moves, inside, forwards = [], [], [], []

    class Policy(module.Policy):
        def to(self, device):
            moves.append((self, device))
            return super().to(device)

        def forward(self, *args, **kwargs):
            forwards.append((self, list(inside)))
            return super().forward(*args, **kwargs)

    @contextmanager
    def on_device(model, device):
        inside.append((model, device))
        yield model
        inside.remove((model, device))

    def shard(model, *args):
        models.append(model)
        made = ranks.shard(model, *args)
        forwards.clear()  # of its construction
        return made

    for name, spy in (("Policy", Policy), ("on_device", on_device), ("shard", shard)):
        monkeypatch.setattr(module, name, spy)
    args = {**SMALL, "steps": 1, "eval_every": 0, "beta": 0.1, "run_dir": str(tmp_path / "run")}
    args |= {"critic_warmup": 0} if "ppo" in script else {}
    module.main(module.Args(**args))
    policy, *_, reference = models
    assert type(policy) is type(reference) is Policy and policy is not reference
    assert moves[-1] == (reference, "cpu") and not reference.training  # it waits there
    where = [models_inside for model, models_inside in forwards if model is reference]
    assert where and all(models_inside == [(reference, "cpu")] for models_inside in where)
    assert all(model in (policy, reference) for model, _ in forwards)
    assert any(model is policy for model, _ in forwards)


@pytest.mark.parametrize("script", ["grpo", "guide_grpo", "nsr", "ppo", "guide_ppo"])
def test_the_sampler_sleeps_between_the_last_rollout_and_the_update(script, tmp_path, monkeypatch):
    calls, options, autocasts = [], set(), []

    def spy(name):
        original = getattr(TransformersSampler, name)

        def call(self, *args, **kwargs):
            calls.append(name)
            options.add((self.gpu_memory, self.tensor_parallel, self.sleep_level))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(TransformersSampler, name, call)

    def autocast(self, *args, **kwargs):
        autocasts.append((args, kwargs))
        return original(self, *args, **kwargs)

    for name in ("generate", "sleep", "update"):
        spy(name)
    original = torch.autocast.__init__
    monkeypatch.setattr(torch.autocast, "__init__", autocast)
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: calls.append("backward") or backward(loss))
    module = import_module(script)
    engine = {"gpu_memory": 0.3, "tensor_parallel": 3, "sleep_level": 2}
    args = {**SMALL, **engine, "steps": 2, "eval_every": 1, "save_every": 0, "run_dir": str(tmp_path / "run")}
    args |= {"critic_warmup": 0} if "ppo" in script else {}
    run = module.main(module.Args(**args))
    assert options == {(0.3, 3, 2)}
    mixed = [kwargs for args, kwargs in autocasts if torch.bfloat16 in args]
    assert mixed and all(kwargs == {"enabled": False, "cache_enabled": False} for kwargs in mixed)
    assert calls.count("backward") >= 2
    order = [call for i, call in enumerate(calls) if call != "backward" or calls[i - 1] != "backward"]
    rollouts = ["generate"] * (1 + script.startswith("guide"))
    tried = ["update", "generate", "generate"]  # before the run has a folder
    first = ["generate", "update", *rollouts, "sleep", "backward"]
    second = ["update", "generate", *rollouts, "sleep", "backward"]  # measured at the head of a step
    assert order == [*tried, *first, *second, "update", "generate"]
    for line in (run / "metrics.jsonl").read_text().splitlines():
        m = json.loads(line)
        assert all(m[f"time/{phase}"] > 0 for phase in ("sync", "rollout", "verify", "logprobs", "update"))
        assert m["perf/rollout_tokens_per_s"] > 0 and m["perf/update_tokens_per_s"] > 0
        assert math.isfinite(m["engine/k3"]) and m["engine/ess"] == pytest.approx(1, abs=1e-4)


def test_the_gpu_check_runs_at_a_tiny_size(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--tiny"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path("tests/gpu_check.py", run_name="__main__")  # python tests/gpu_check.py, libraries loaded
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    for what in ("matrix product", "peak of a step", "rollouts of tiny", "log-probs of tiny", "at sea",
                 "new weights of tiny for transformers",
                 "update of tiny, float32", "update of tiny, bfloat16",
                 "update of tiny, float32 weights, gradient checkpointing, compiled layers"):
        assert any(line.startswith(f"| {what}") for line in table), what
    assert all("MFU" in line for line in table if "update of" in line)


def test_a_check_that_fails_costs_no_other_its_figures(tmp_path, monkeypatch, capsys):
    def broken(plan, device):
        yield gpu_check.Figure("before", "1", {"found": 1})
        raise RuntimeError("a kernel is missing")

    def too_large(*args):
        raise torch.OutOfMemoryError("8 GiB more")

    monkeypatch.setattr(gpu_check, "peak", broken)
    monkeypatch.setattr(gpu_check, "time_updates", too_large)
    monkeypatch.setattr(gpu_check, "matmul_rate", lambda device: 1e12)
    out = tmp_path / "figures.jsonl"
    argv = ["gpu_check.py", "--tiny", "--only", "peak", "update", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match=r"^error: failed, with the tracebacks above: peak$"):
        gpu_check.main()
    assert "RuntimeError: a kernel is missing" in capsys.readouterr().err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("found") for line in lines[:2]] == [None, 1]
    assert [line["fits"] for line in lines[2:]] == [False] * 4  # a figure, no failure


@pytest.fixture
def trained_and_sampled():
    return gpu_check.trainer_and_sampler(gpu_check.TINY, "cpu", "transformers")


def test_new_weights_that_do_not_arrive_fail_after_their_row(trained_and_sampled, monkeypatch):
    monkeypatch.setattr(TransformersSampler, "_load", lambda self, named_tensors: list(named_tensors))
    figures = gpu_check.new_weights(gpu_check.TINY, "cpu", "transformers", *trained_and_sampled)
    assert next(figures).values["gap_mean"] > 0.1
    with pytest.raises(AssertionError, match="it samples from other weights than the trainer"):
        next(figures)


@pytest.mark.parametrize("asleep", [2, 8])
def test_a_sleep_gives_memory_back_or_fails_after_its_row(asleep, trained_and_sampled, monkeypatch):
    memory = iter([8 * 2**30, asleep * 2**30, 7 * 2**30])
    monkeypatch.setattr(gpu_check, "taken", lambda device: next(memory))  # as a GPU would have
    figures = gpu_check.new_weights(gpu_check.TINY, "cpu", "transformers", *trained_and_sampled, level=1)
    figure = next(figures)
    assert figure.measured.endswith(f"GiB of the card taken: 8.0 before, {asleep}.0 asleep, 7.0 after")
    assert figure.values["slept"] and figure.values["asleep_bytes"] == asleep * 2**30
    assert figure.values["gap_max"] < 1e-4 and figure.values["old_gap_mean"] > 0.1
    if asleep == 2:
        assert list(figures) == []
    else:
        with pytest.raises(AssertionError, match="level 1: it holds as much of the card as before"):
            next(figures)


def test_a_process_of_its_own_that_fails_has_sent_its_rows(monkeypatch):
    def broken(plan, device):
        yield gpu_check.Figure("before", f"1 on {device}", {"found": plan})
        raise RuntimeError("no kernel image")

    # A fork knows `broken`, and has what is imported.
    monkeypatch.setattr(gpu_check.multiprocessing, "get_context", lambda name: get_context("fork"))
    figures = gpu_check.alone("plan", "cpu", broken)
    figure = next(figures)
    assert figure.measured == "1 on cpu" and figure.values["found"] == "plan" and figure.values["torch"]
    with pytest.raises(RuntimeError, match="its process ended with 1"):
        next(figures)
