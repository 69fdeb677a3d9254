"""Whole runs that sample with vLLM: they start processes, so they may run beside tests/test_vllm.py."""

import json
import subprocess
import sys

import pytest
import torch
from test_vllm import CLOSE, DEVICE, MODEL, TORCHRUN, build, needs_vllm, one_at_a_time, save
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig

from data import UserError


@needs_vllm
def test_guide_grpo_runs_and_its_engine_follows_the_policy(tmp_path):
    args = "--sampler vllm --steps 3 --prompts 4 --eval-problems 8 --eval-n 8 --eval-every 2 --lr 1e-3"
    command = [sys.executable, "guide_grpo.py", *args.split(), f"--run-dir={tmp_path}/run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("done: ") and "self-distillation" in done.stdout
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in steps] == [1, 2, 3]
    assert "engine/gap_max" in steps[2]
    assert all(m["engine/gap_max"] < CLOSE for m in steps if "engine/gap_max" in m)
    trained = json.loads((tmp_path / "run/eval_trained.json").read_text())
    assert trained["versions"]["vllm"]
    # The engine takes over the weights of a checkpoint, and measures what it has measured.
    args = f"--model {tmp_path}/run --step 3 --sampler vllm --gpu-memory 0.4 --seed 1 --out {tmp_path}/r.json"
    done = subprocess.run([sys.executable, "evaluate.py", *args.split()], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0 and "checkpoint/step-000003" in done.stdout, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["model"].endswith("checkpoint/step-000003") and found["versions"]["vllm"]
    if DEVICE == "cpu":  # a GPU's kernels need not draw the same twice
        assert found["problems"] == trained["problems"]


@needs_vllm
@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_train_with_one_engine_between_them(tmp_path):
    args = "--sampler=vllm --tensor-parallel=2 --sleep-level=1 --steps=3 --prompts=4 --lr=1e-3"
    args = [*args.split(), "--eval-problems=6", "--eval-n=4", f"--run-dir={tmp_path}/run"]
    command = [*TORCHRUN, "--", "guide_grpo.py", *args]
    with one_at_a_time():
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in steps] == [1, 2, 3] and "engine/gap_max" in steps[2]
    assert all(m["engine/gap_max"] < CLOSE for m in steps if "engine/gap_max" in m)
    assert len(json.loads((tmp_path / "run/eval_trained.json").read_text())["problems"]) == 6


@needs_vllm
@pytest.mark.skipif(DEVICE == "cuda", reason="there gpu_check.py itself samples with vLLM")
def test_the_gpu_check_samples_with_vllm(tmp_path):
    args = f"--tiny --only sampling --out {tmp_path}/out.jsonl"
    command = [sys.executable, "tests/gpu_check.py", *args.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    *speeds, close, updated = [row for row in found if row.get("engine") == "vllm"]
    assert len(speeds) == 2 and all(row["tokens_per_s"] > 0 for row in speeds)
    assert close["gap_max"] < CLOSE and close["vllm"]
    assert updated["sleep_level"] == 0 and updated["seconds"] > 0 and updated["bytes"] > 0
    assert updated["gap_max"] < CLOSE < 0.1 < updated["old_gap_mean"]


@needs_vllm
def test_mixture_of_experts_is_sampled_but_not_trained(tmp_path):
    torch.manual_seed(0)
    like = AutoConfig.from_pretrained(MODEL).to_dict()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    config = Qwen3MoeConfig(**{**like, "model_type": "qwen3_moe", "head_dim": 32, **experts})
    save(AutoModelForCausalLM.from_config(config), tmp_path)
    with pytest.raises(UserError, match="cannot take over the weights of a mixture-of-experts model: use"):
        build(str(tmp_path))
    args = f"--model {tmp_path} --data countdown --sampler vllm --limit 4 --n 2 --max-tokens 4"
    command = [sys.executable, "evaluate.py", *args.split(), "--gpu-memory=0.1", f"--out={tmp_path}/out.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (tmp_path / "out.json").exists(), done.stderr
