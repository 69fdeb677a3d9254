"""Several processes do what one does: the same steps from the same samples, checkpoints for any number, one end.

The tests start this file as a program with torchrun: two processes with gloo on the CPU run every case one after the other.
"""

import json
import os
import resource
import shutil
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
from grpo import token_logprobs
from tests.bench_memory import random_model, rows

MODEL = "assets/countdown"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
BASE = {"steps": 3, "prompts": 4, "n": 4, "micro_tokens": 150, "seed": 3, "eval_problems": 3, "eval_n": 2, "eval_every": 0,
        "save_every": 0, "device": "cpu", "grad_clip": 1.0, "lr": 0.3}
CRITIC = {"critic_warmup": 1, "critic_lr": 0.01, "loss_agg": "sequence"}
CASES = {
    "grpo": ("grpo", {"mini_batches": 2, "beta": 0.1, "filter_rounds": 2}),
    "grpo_untied": ("grpo", {"mini_batches": 2, "model": "untied", "template": "countdown", "gradient_checkpointing": True}),
    "guide_grpo": ("guide_grpo", {"mini_batches": 2, "loss_agg": "sequence"}),
    "guide_grpo_of_one_rank": ("guide_grpo", {"prompts": 2, "n": 8, "seed": 4}),  # that one has all failed groups
    "nsr": ("nsr", {"reinforce": "w-reinforce", "lam": 0.3, "entropy_coef": 0.1}),
    "nsr_of_one_rank": ("nsr", {"reinforce": "psr", "prompts": 1, "mini_batches": 1, "n": 6, "steps": 4}),
    "ppo": ("ppo", {"mini_batches": 4, "n": 3, "beta": 0.1, **CRITIC, "micro_tokens": 1}),  # of 3 rows an update rank 1 has 1
    "guide_ppo": ("guide_ppo", {"mini_batches": 2, "beta": 0.1, **CRITIC}),
    "guide_ppo_of_one_prompt": ("guide_ppo", {"prompts": 1, **CRITIC}),
}


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
    torch.optim.AdamW = lambda params, lr, weight_decay, fused: torch.optim.SGD(params, lr=lr)  # keeps rounding small
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


def weights_of(folder: Path) -> torch.Tensor:
    return torch.cat([w.flatten() for _, w in sorted(load_file(folder / "model.safetensors").items())])


def weights(run: Path) -> torch.Tensor:
    return weights_of(run / "final")


def torchrun(*command) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run([*TORCHRUN, *map(str, command)], capture_output=True, text=True, timeout=600, env=env)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder of the runs of one process, folder of those of two)."""
    folder = tmp_path_factory.mktemp("ranks")
    config = AutoConfig.from_pretrained(MODEL)
    config.tie_word_embeddings = False
    untied = AutoModelForCausalLM.from_config(config)
    untied.load_state_dict(AutoModelForCausalLM.from_pretrained(MODEL).state_dict())
    untied.save_pretrained(folder / "untied")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder / "untied")
    for name in ("one", "two", "resumed"):
        (folder / name).mkdir()
        os.symlink(folder / "untied", folder / name / "untied")
    done = torchrun(__file__, "cases", folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    alone, own_seed = evaluate.TransformersSampler._generate, evaluate.own_seed
    same_samples()
    sgd_cases(folder / "one")
    run_evaluation(folder / "one.json")
    yield folder
    evaluate.TransformersSampler._generate, evaluate.own_seed = alone, own_seed


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case, runs):
    one, two = runs / "one" / case, runs / "two" / case
    start = weights_of(runs / "untied" if "untied" in case else Path(MODEL))
    moved = (weights(one) - start).abs().max()
    assert moved > 1e-3
    assert (weights(one) - weights(two)).abs().max() < 1e-5
    for mine, theirs in zip(metrics(one), metrics(two), strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            if key.startswith(("time/", "perf/")):
                continue
            if key == "critic/clip_fraction":  # V_old + (V - V_old) is not V to the last bit
                continue
            assert mine[key] == pytest.approx(theirs[key], abs=2e-5, rel=1e-4), key
    rollouts = [(run / "rollouts.jsonl").read_text().splitlines() for run in (one, two)]
    assert len(rollouts[0]) == len(rollouts[1])
    assert (two / "eval_trained.json").exists() and len(json.loads((two / "eval_base.json").read_text())["problems"]) == 3
    if "ppo" in case:
        critics = [import_module("ppo").Critic(MODEL) for _ in range(2)]
        for run, critic in zip((one, two), critics):
            evaluate.load_checkpoint(run, {"critic": critic})
        flat = [torch.cat([p.detach().flatten() for p in critic.parameters()]) for critic in critics]
        base = torch.cat([p.detach().flatten() for p in import_module("ppo").Critic(MODEL).parameters()])
        assert (flat[0] - base).abs().max() > 1e-3 and (flat[0] - flat[1]).abs().max() < 1e-5


def test_the_cases_hold_the_steps_in_which_one_rank_has_no_work(runs):
    guided = metrics(runs / "two/guide_grpo_of_one_rank")
    assert any(0 < m["guide/failed"] <= 0.5 for m in guided)  # one failed group of two: one rank samples with a hint
    assert {1, 0} <= {m["train/rows"] for m in metrics(runs / "two/nsr_of_one_rank")}  # one row: one rank has none at all


def test_bfloat16_gradients_are_added_up_in_float32(runs):
    (head, layer), (head_of_64, layer_of_64) = json.loads((runs / "bfloat16.json").read_text())
    assert 1e-4 < head < 0.02 and 1e-4 < layer < 0.02
    assert head_of_64 < 1.1 * head and layer_of_64 < 1.1 * layer


@pytest.mark.parametrize("resumed_by", ["one", "two"])
def test_a_checkpoint_of_two_processes_is_resumed_by(resumed_by, runs):
    whole, half = runs / "resumed/whole", runs / f"resumed/{resumed_by}"
    if resumed_by == "one":
        resume(half, 2)  # nothing left to do: what it loads is what it saves
        assert torch.equal(weights(half), weights(runs / "resumed/two_steps"))
        resume(half, 4)
    left = sorted(path.name for path in (half / "checkpoint").iterdir())
    assert left == ["step-000002", "step-000004"]
    start = weights_of(Path(MODEL))
    assert (weights(whole) - start).abs().max() > 1e-3
    # AdamW divides by the gradient: compare where that is no rounding error
    apart = (weights(whole) - weights(half)).abs()
    assert (apart == 0).all() if resumed_by == "two" else (apart > 1e-5).float().mean() < 1e-3
    assert [m["step"] for m in metrics(half)] == [1, 2, 3, 4]
    for mine, theirs in zip(metrics(whole), metrics(half)):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-5)


def children(pid: int) -> dict[int, int]:
    """{rank: pid} of the processes that a torchrun has started."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pairs = Path(f"/proc/{child}/environ").read_text().split("\0")
        found |= {int(pair.removeprefix("RANK=")): int(child) for pair in pairs if pair.startswith("RANK=")}
    return found


def test_a_signal_to_one_process_saves_and_ends_all(tmp_path):
    run = tmp_path / "run"
    args = {**BASE, "steps": 5000, "lr": 1e-4}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in args.items()]
    out = open(tmp_path / "out", "w+")
    process = subprocess.Popen([*TORCHRUN, "guide_grpo.py", *flags, f"--run-dir={run}"], stdout=out, stderr=subprocess.DEVNULL)
    while not (run / "metrics.jsonl").exists() or not metrics(run):
        assert process.poll() is None
        time.sleep(0.05)
    for _ in range(2):  # the scheduler's, and the same one passed on by torchrun
        os.kill(children(process.pid)[1], signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    out.seek(0)
    steps = len(metrics(run))
    torchrun = "torchrun --nproc-per-node 2 --shutdown-timeout 3600 --"
    assert out.read().splitlines()[-1] == (
        f"stopped by SIGTERM after step {steps}; go on with: {torchrun} guide_grpo.py --resume {run}"
    )
    assert [path.name for path in evaluate.checkpoints(run)] == [f"step-{steps:06d}"]


def test_a_users_mistake_is_one_line_of_rank_0(tmp_path):
    done = torchrun("grpo.py", "--n=1", f"--run-dir={tmp_path}/run")
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: --n 1: GRPO compares the samples of a prompt with each other, use --n 2 or more"
    ]


def test_a_checkpoint_that_one_rank_cannot_write_keeps_the_last_one(runs):
    said = (runs / "full.json").read_text()
    assert said.count("make room, then go on with --resume") == 2  # both ranks know
    assert [path.name for path in (runs / "full/checkpoint").iterdir()] == ["step-000001"]


def test_evaluation_is_shared_and_keeps_the_order(runs):
    one, two = (json.loads((runs / name).read_text()) for name in ("one.json", "two.json"))
    assert [row["id"] for row in one["problems"]] == [row["id"] for row in two["problems"]] and len(two["problems"]) == 7
    assert [row["c"] for row in one["problems"]] == [row["c"] for row in two["problems"]]
    assert one["verdicts"] == two["verdicts"] and sum(two["verdicts"].values()) == 7 * 16


def run_evaluation(out: Path) -> None:
    argv, sys.argv = sys.argv, f"evaluate.py --model {MODEL} --limit 7 --n 16 --device cpu --out {out}".split()
    evaluate.main()
    sys.argv = argv


def full_disk(folder: Path) -> None:
    """Rank 1 cannot write: as a full disk of its machine."""
    (folder / "full").mkdir(exist_ok=True)
    model = evaluate.shard(torch.nn.Linear(512, 512), "cpu")
    evaluate.save_checkpoint(folder / "full", 1, {"model": model}, keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if evaluate.rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        evaluate.save_checkpoint(folder / "full", 2, {"model": model}, keep=1)
        said = "nothing"
    except evaluate.UserError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    evaluate.write_json(folder / "full.json", evaluate.gather([said]))


def bfloat16(folder: Path) -> None:
    """Gradients of the head, for one chunk of tokens and for 64, and of a layer: shard's policy for a GPU, run by gloo."""
    mesh = evaluate.init_device_mesh
    found = {}
    for device in ("cpu", "cuda"):
        evaluate.init_device_mesh = lambda _, shape: mesh("cpu", shape)
        model = evaluate.shard(random_model("tiny", "cpu", vocab_size=2048), device)
        model.train()
        model.gradient_checkpointing_enable()
        for chunk in (2**26, 2**16):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
                logp_NT, _, _ = token_logprobs(model, *rows(4, 16, 512, 2048, "cpu"), 1.0, chunk=chunk)
            logp_NT.sum().backward()
            both = model.get_output_embeddings().weight, model.base_model.layers[0].mlp.up_proj.weight
            found[device, chunk] = [weight.grad.full_tensor() for weight in both]
    evaluate.init_device_mesh = mesh
    errors = [
        [((a - b).norm() / b.norm()).item() for a, b in zip(found["cuda", chunk], found["cpu", chunk])]
        for chunk in (2**26, 2**16)
    ]
    evaluate.write_json(folder / "bfloat16.json", errors)


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    evaluate.join_ranks("cpu")
    full_disk(folder)
    bfloat16(folder)
    same_samples()
    sgd_cases(folder / "two")
    run_evaluation(folder / "two.json")
    args = {**BASE, "lr": 1e-3, "critic_warmup": 1, "beta": 0.01}
    train("ppo", folder / "resumed/whole", **{**args, "steps": 4, "save_every": 1})  # saved before the policy's first update
    half = train("ppo", folder / "resumed/two", **{**args, "steps": 2})
    if evaluate.rank() == 0:
        shutil.copytree(half, folder / "resumed/one")
        shutil.copytree(half, folder / "resumed/two_steps")
    evaluate.gather([])
    resume(half, 4)
