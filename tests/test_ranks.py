"""Several processes do what one does: the same steps from the same samples, checkpoints for any number, one end.

The tests start this file as a program with torchrun: two processes with gloo on the CPU run every case one after the other.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import evaluate
from data import TEMPLATES

MODEL = "assets/countdown"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
BASE = {"steps": 3, "prompts": 4, "n": 4, "micro_tokens": 150, "seed": 3, "eval_problems": 3, "eval_n": 2, "eval_every": 0,
        "save_every": 0, "device": "cpu", "grad_clip": 1.0, "lr": 0.3}
CRITIC = {"critic_warmup": 1, "critic_lr": 0.01, "loss_agg": "sequence"}
CASES = {
    "grpo": ("grpo", {"mini_batches": 2, "beta": 0.1, "filter_rounds": 2}),
    "grpo_untied": ("grpo", {"mini_batches": 2, "model": "untied", "template": "countdown", "gradient_checkpointing": True}),
    "guide_grpo": ("guide_grpo", {"mini_batches": 2, "loss_agg": "sequence"}),
    "guide_grpo_of_one_rank": ("guide_grpo", {"prompts": 2, "n": 2, "filter_rounds": 1}),  # rank 1 has no failed group
    "nsr": ("nsr", {"reinforce": "w-reinforce", "lam": 0.3, "entropy_coef": 0.1}),
    "nsr_of_one_rank": ("nsr", {"reinforce": "psr", "prompts": 1, "mini_batches": 1, "seed": 7, "steps": 6}),
    "ppo": ("ppo", {"mini_batches": 2, "beta": 0.1, **CRITIC}),
    "guide_ppo": ("guide_ppo", {"mini_batches": 2, "beta": 0.1, **CRITIC}),
    "guide_ppo_of_one_prompt": ("guide_ppo", {"prompts": 1, **CRITIC}),
}
RESUMED = {**BASE, "steps": 4, "lr": 1e-3, "critic_warmup": 1, "beta": 0.01}  # of ppo with AdamW


def same_samples() -> None:
    """Sampling becomes a function of the prompt and the step, whichever rank does it."""

    def generate(self, prompts, n, temperature, max_tokens, seed, top_p, top_k):
        seeds = [int(np.random.SeedSequence([seed, *prompt]).generate_state(1)[0]) for prompt in prompts]
        return [alone(self, [prompt], n, temperature, max_tokens, s, top_p, top_k)[0] for prompt, s in zip(prompts, seeds)]

    alone = evaluate.TransformersSampler._generate
    evaluate.TransformersSampler._generate = generate
    evaluate.own_seed = lambda seed: seed


def train(script: str, folder: Path, **args) -> Path:
    module = import_module(script)
    args = {**args, "model": str(folder.parent / "untied") if args.get("model") else MODEL}
    return module.main(module.Args(**args, run_dir=str(folder)))


def sgd_cases(folder: Path):
    adamw = torch.optim.AdamW
    torch.optim.AdamW = lambda params, lr, weight_decay: torch.optim.SGD(params, lr=lr)  # rounding stays as small as it is
    for name, (script, change) in CASES.items():
        train(script, folder / name, **{**BASE, **change})
    torch.optim.AdamW = adamw


def resume(run: Path, steps: int) -> Path:
    ppo = import_module("ppo")
    saved = json.loads((run / "args.json").read_text())
    saved.pop("script")
    return ppo.main(ppo.Args(**{**saved, "resume": str(run), "steps": steps}))


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> torch.Tensor:
    return torch.cat([w.flatten() for w in load_file(run / "final/model.safetensors").values()])


def torchrun(*command, **more) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run([*TORCHRUN, *map(str, command)], capture_output=True, text=True, timeout=600, env=env, **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder of the runs of one process, folder of those of two)."""
    folder = tmp_path_factory.mktemp("ranks")
    config = AutoConfig.from_pretrained(MODEL)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "untied")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder / "untied")
    for name in ("one", "two", "resumed"):
        (folder / name).mkdir()
        os.symlink(folder / "untied", folder / name / "untied")
    done = torchrun(__file__, "cases", folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    alone, own_seed = evaluate.TransformersSampler._generate, evaluate.own_seed
    same_samples()
    sgd_cases(folder / "one")
    yield folder
    evaluate.TransformersSampler._generate, evaluate.own_seed = alone, own_seed
