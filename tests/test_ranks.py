"""Several processes do what one does: the same steps, checkpoints for any number, one end.

The samples are the same. The tests start this file as a program of two processes, with gloo on the CPU: they
run every case one after the other, while this one runs them alone. One test has torchrun itself.
"""

import json
import os
import resource
import shutil
import signal
import socket
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
from data import UserError
from grpo import token_logprobs
from machinery import ranks
from machinery import sampler as sampling
from machinery.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from machinery.ranks import gather, rank, shard
from machinery.run import write_json
from machinery.sampler import TransformersSampler
from machinery.trained import saved_weights
from tests import started
from tests.bench_memory import random_model, rows

MODEL = "assets/countdown"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
BASE = {"data": "countdown", "data_split": "train[:64]", "steps": 2, "prompts": 4, "n": 4,
        "micro_tokens": 150, "seed": 3, "eval_problems": 3, "eval_n": 2, "eval_every": 0, "save_every": 0,
        "device": "cpu", "grad_clip": 1.0, "lr": 0.3}
CRITIC = {"critic_warmup": 1, "critic_lr": 0.01, "loss_agg": "sequence"}
CASES = {
    "grpo": ("grpo", {"mini_batches": 2, "beta": 0.1, "filter_rounds": 2}),
    "grpo_untied": ("grpo", {"mini_batches": 2, "model": "untied", "template": "countdown",
                             "gradient_checkpointing": True}),
    # One rank has the failed group.
    "guide_grpo": ("guide_grpo", {"mini_batches": 2, "loss_agg": "sequence", "prompts": 2, "n": 8}),
    "nsr": ("nsr", {"reinforce": "w-reinforce", "lam": 0.3, "entropy_coef": 0.1}),
    "nsr_of_one_rank": ("nsr", {"reinforce": "psr", "prompts": 1, "mini_batches": 1, "n": 6, "seed": 0}),
    # Of 3 rows an update rank 1 has 1.
    "ppo": ("ppo", {"mini_batches": 4, "n": 3, "beta": 0.1, **CRITIC, "micro_tokens": 1}),
    "guide_ppo": ("guide_ppo", {"mini_batches": 2, "beta": 0.1, **CRITIC}),
}


def same_samples() -> None:
    """Sampling becomes a function of the prompt and the step, whichever rank does it."""

    def generate(self, prompts, n, temperature, max_tokens, seed, top_p, top_k):
        groups = []
        for prompt in prompts:
            own = int(np.random.SeedSequence([seed, *prompt]).generate_state(1)[0])
            groups += alone(self, [prompt], n, temperature, max_tokens, own, top_p, top_k)
        return groups

    alone = TransformersSampler._generate
    TransformersSampler._generate = generate
    sampling.world = lambda: 1  # no stream of a rank's own


def train(script: str, folder: Path, **args) -> Path:
    module = import_module(script)
    args = {**args, "model": str(folder.parent / "untied") if args.get("model") else MODEL}
    return module.main(module.Args(**args, run_dir=str(folder)))


def sgd_cases(folder: Path):
    adamw = torch.optim.AdamW
    # Keeps rounding small.
    torch.optim.AdamW = lambda params, lr, weight_decay, fused: torch.optim.SGD(params, lr=lr)
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


def two_ranks(script, *options, err: Path) -> list:
    """A script in two processes, as torchrun starts them, with their errors in the files err0, err1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for each in (0, 1):
        own = {"RANK": each, "LOCAL_RANK": each}
        processes.append(started.start(script, *options, err=f"{err}{each}", **own, **shared))
    return processes


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
    processes = two_ranks(__file__, "cases", folder, err=folder / "err")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersSampler, "_generate", TransformersSampler._generate)  # put back
        patch.setattr(sampling, "world", sampling.world)
        same_samples()
        sgd_cases(folder / "one")
        run_evaluation(folder / "one.json")
        for process in processes:
            process.join(600)
        assert [process.exitcode for process in processes] == [0, 0], (folder / "err0").read_text()[-6000:]
        yield folder


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
        if mine["train/rows"] > 1:  # a rank's own tokens
            whole, part = (m["perf/update_tokens_per_s"] * m["time/update"] for m in (mine, theirs))
            assert 0.3 * whole < part < 0.7 * whole
    rollouts = [(run / "rollouts.jsonl").read_text().splitlines() for run in (one, two)]
    assert len(rollouts[0]) == len(rollouts[1])
    assert (two / "eval_trained.json").exists()
    assert len(json.loads((two / "eval_base.json").read_text())["problems"]) == 3
    if "ppo" in case:
        critics = [import_module("ppo").Critic(MODEL) for _ in range(2)]
        for run, critic in zip((one, two), critics):
            load_checkpoint(run, {"critic": critic})
        flat = [torch.cat([p.detach().flatten() for p in critic.parameters()]) for critic in critics]
        start = import_module("ppo").Critic(MODEL)
        base = torch.cat([p.detach().flatten() for p in start.parameters()])
        assert (flat[0] - base).abs().max() > 1e-3 and (flat[0] - flat[1]).abs().max() < 1e-5


def test_the_cases_hold_the_steps_in_which_one_rank_has_no_work(runs):
    guided = metrics(runs / "two/guide_grpo")
    # One failed group of two: one rank samples with a hint.
    assert any(0 < m["guide/failed"] <= 0.5 for m in guided)
    # One row: one rank has none at all.
    assert {1, 0} <= {m["train/rows"] for m in metrics(runs / "two/nsr_of_one_rank")}


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
        resume(half, 3)
    left = sorted(path.name for path in (half / "checkpoint").iterdir())
    assert left == ["step-000002", "step-000003"]
    start = weights_of(Path(MODEL))
    assert (weights(whole) - start).abs().max() > 1e-3
    # AdamW divides by the gradient: compare where that is no rounding error
    apart = (weights(whole) - weights(half)).abs()
    assert (apart == 0).all() if resumed_by == "two" else (apart > 1e-5).float().mean() < 1e-3
    assert [m["step"] for m in metrics(half)] == [1, 2, 3]
    for mine, theirs in zip(metrics(whole), metrics(half)):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-5)


def test_a_checkpoint_of_two_processes_is_evaluated_by_one(runs):
    model, resumed = AutoModelForCausalLM.from_pretrained(MODEL), runs / "resumed"
    for step, run in ((2, "two_steps"), (3, "two")):
        saved = dict(saved_weights(resumed / f"two/checkpoint/step-00000{step}", model))
        final = AutoModelForCausalLM.from_pretrained(resumed / run / "final")
        assert all(torch.equal(saved[name], weight) for name, weight in final.named_parameters())


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
    command = [*TORCHRUN, "guide_grpo.py", *flags, f"--run-dir={run}"]
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
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
    assert [path.name for path in checkpoints(run)] == [f"step-{steps:06d}"]


def test_a_users_mistake_is_one_line_of_rank_0(tmp_path):
    first, second = two_ranks("grpo.py", "--n=1", f"--run-dir={tmp_path}/run", err=tmp_path / "err")
    first.join(120)
    second.kill()  # as torchrun does after a while: this rank has nothing to say
    second.join()
    assert first.exitcode == 1 and (tmp_path / "err1").read_text() == ""
    said = "error: --n 1: GRPO compares the samples of a prompt with each other, use --n 2\n"
    assert (tmp_path / "err0").read_text() == said


def test_a_checkpoint_that_one_rank_cannot_write_keeps_the_last_one(runs):
    said = (runs / "full.json").read_text()
    assert said.count("make room, then go on with --resume") == 2  # both ranks know
    assert [path.name for path in (runs / "full/checkpoint").iterdir()] == ["step-000001"]


def test_evaluation_is_shared_and_keeps_the_order(runs):
    one, two = (json.loads((runs / name).read_text()) for name in ("one.json", "two.json"))
    assert [row["id"] for row in one["problems"]] == [row["id"] for row in two["problems"]]
    assert len(two["problems"]) == 7
    assert [row["c"] for row in one["problems"]] == [row["c"] for row in two["problems"]]
    assert one["verdicts"] == two["verdicts"] and sum(two["verdicts"].values()) == 7 * 16


def run_evaluation(out: Path) -> None:
    evaluate.main(evaluate.Args(model=MODEL, data="countdown", limit=7, n=16, device="cpu", out=str(out)))


def full_disk(folder: Path) -> None:
    """Rank 1 cannot write: as a full disk of its machine."""
    (folder / "full").mkdir(exist_ok=True)
    model = shard(torch.nn.Linear(512, 512), "cpu")
    save_checkpoint(folder / "full", 1, {"model": model}, keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        save_checkpoint(folder / "full", 2, {"model": model}, keep=1)
        said = "nothing"
    except UserError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    write_json(folder / "full.json", gather([said]))


class Mixed(torch.nn.Module):
    """As grpo.Policy, with the autocast of a GPU on the CPU."""

    def __init__(self, enabled: bool):
        super().__init__()
        self.backbone, self.enabled = random_model("tiny", "cpu", vocab_size=512), enabled

    def forward(self, *ids, chunk: int):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled, cache_enabled=False):
            return token_logprobs(self.backbone, *ids, 1.0, chunk=chunk)


def bfloat16(folder: Path) -> None:
    """Gradients of the head, for one chunk of tokens and for 64, and of a layer: a GPU's policy, by gloo."""
    mesh = ranks.init_device_mesh
    found = {}
    for device in ("cpu", "cuda"):
        ranks.init_device_mesh = lambda _, shape: mesh("cpu", shape)
        model = shard(Mixed(enabled=device == "cuda"), device, gradient_checkpointing=True)
        backbone = model.backbone
        for chunk in (2**26, 2**12):
            model.zero_grad()
            logp_NT, _, _ = model(*rows(4, 16, 128, 512, "cpu"), chunk=chunk)
            logp_NT.sum().backward()
            both = backbone.get_output_embeddings().weight, backbone.base_model.layers[0].mlp.up_proj.weight
            found[device, chunk] = [weight.grad.full_tensor() for weight in both]
    ranks.init_device_mesh = mesh
    errors = []
    for chunk in (2**26, 2**12):
        pairs = zip(found["cuda", chunk], found["cpu", chunk])
        errors.append([((a - b).norm() / b.norm()).item() for a, b in pairs])
    write_json(folder / "bfloat16.json", errors)


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    ranks.join("cpu")
    full_disk(folder)
    bfloat16(folder)
    same_samples()
    sgd_cases(folder / "two")
    run_evaluation(folder / "two.json")
    args = {**BASE, "lr": 1e-3, "critic_warmup": 1, "beta": 0.01}
    # Saved before the policy's first update too.
    train("ppo", folder / "resumed/whole", **{**args, "steps": 3, "save_every": 1})
    half = train("ppo", folder / "resumed/two", **{**args, "steps": 2})
    if rank() == 0:
        shutil.copytree(half, folder / "resumed/one")
        shutil.copytree(half, folder / "resumed/two_steps")
    gather([])
    resume(half, 3)
