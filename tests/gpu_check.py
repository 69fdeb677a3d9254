"""What a GPU does with this code, in under 10 minutes:  python tests/gpu_check.py

Models of the shape of Qwen2.5-1.5B and 7B with random weights, made from their configurations: nothing is
downloaded. It prints a table of: the update's MFU against the card's own matrix product, peak memory of
chunked and naive log-probs, the gap between sampler and trainer, tokens a second of rollouts, and
guide_grpo.py's learning run "at sea". With --tiny it does the same at a size for which a CPU is enough, which
is how the test suite runs it.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import machinery  # isort: skip  # noqa: F401  how threads wait, set before torch loads

import torch
from bench_memory import MIB, VOCABULARY, compare, random_model, rows, step

import data
from evaluate import versions
from grpo import pad, token_logprobs
from machinery.compare import curve, read_result
from machinery.ranks import clip_gradient
from machinery.run import Clock, TokenMeans
from machinery.sampler import Sampler


@dataclass
class Plan:
    updates_of: tuple[tuple, ...]  # (model, its weights' type, gradient checkpointing, logits a chunk)
    vocabulary: int
    tokens: int  # of a micro-batch
    length: int  # of a row, a quarter of it prompt
    updates: int
    response: int  # of the row whose peak is measured
    prompts: int  # of a rollout, 8 samples each
    new_tokens: int
    steps: int  # of the learning run
    learning: str = ""  # its other options


FULL = Plan(
    updates_of=(("1.5B", torch.float32, True, 2**26), ("1.5B", torch.float32, True, 2**28),
                ("7B", torch.bfloat16, True, 2**26)),
    vocabulary=VOCABULARY, tokens=16384, length=2048, updates=4, response=4096, prompts=64, new_tokens=512,
    steps=100,
)
TINY = Plan(
    updates_of=(("tiny", torch.float32, True, 2**26), ("tiny", torch.bfloat16, False, 2**14)),
    vocabulary=512, tokens=256, length=64, updates=2, response=64, prompts=4, new_tokens=16,
    steps=1, learning="--prompts 4 --n 4 --eval-problems 8 --eval-n 4",
)


# ---- how fast the device can be ----------------------------------------------------------------------------

@cache
def matmul_rate(device: str) -> float:
    """Floating-point operations a second of a large matrix product: bfloat16 on a GPU, float32 on a CPU."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(n, n, generator=generator, device=device).to(dtype)  # zeros would be faster
    times = []
    for _ in range(3):  # the first one warms up
        clock = Clock()
        for _ in range(4):
            a @ a
        clock("matmul")
        times.append(clock.seconds["matmul"] / 4)
    return 2 * n**3 / min(times)


def train_flops(model: torch.nn.Module, lengths: list[tuple[int, int]]) -> float | None:
    """Floating-point operations of a forward and a backward pass over rows of (all, response) tokens.

    `model` is a language model or a ppo.Critic. 6 a weight and token, with the head's for responses only, and
    causal attention; norms and recomputation are not counted. None where that does not fit: mixtures of
    experts, state spaces, a vision tower.
    """
    of_policy = hasattr(model, "base_model")
    backbone = model.base_model if of_policy else model.backbone
    embeddings = [module for module in backbone.modules() if isinstance(module, torch.nn.Embedding)]
    looked_up = {id(module.weight) for module in embeddings}
    matrices = [w for w in backbone.parameters() if w.ndim > 1 and id(w) not in looked_up]
    config = backbone.config
    if not hasattr(config, "num_attention_heads") or any(weight.ndim > 2 for weight in matrices):
        return None
    weights = sum(weight.numel() for weight in matrices)
    head = model.get_output_embeddings().weight.numel() if of_policy else 0
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    # Of a token and each one that it looks at, half of the row on average.
    attention = 6 * config.num_hidden_layers * width
    return float(sum(6 * (weights * n + head * t) + attention * n * n for n, t in lengths))


# ---- the rows of the table ---------------------------------------------------------------------------------

def show(what: str, value: str) -> None:
    print(f"| {what} | {value} |", flush=True)


def update_speed(plan: Plan, size: str, dtype, checkpointing: bool, chunk: int, device: str) -> None:
    """Whole updates, optimizer included: MFU and peak memory."""
    model = random_model(size, device, dtype, vocab_size=plan.vocabulary)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
    # float32: master weights and autocast, as in the scripts. bfloat16: all of 7B on one card, which the
    # scripts shard.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device == "cuda")
    mixed = device == "cuda" and dtype == torch.float32
    autocast = torch.autocast(device, torch.bfloat16, enabled=mixed, cache_enabled=False)
    n, prompt = plan.tokens // plan.length, plan.length // 4
    ids = rows(n, prompt, plan.length - prompt, plan.vocabulary, device)
    times = []
    for _ in range(1 + plan.updates):  # the first one warms up
        clock = Clock()
        step(partial(token_logprobs, chunk=chunk), model, ids, autocast)
        clip_gradient(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock("update")
        times.append(clock.seconds["update"])
    seconds = float(np.median(times[1:]))
    flops = train_flops(model, [(plan.length, plan.length - prompt)] * n)
    mfu = flops / seconds / matmul_rate(device)
    what = [f"update of {size}", f"{str(dtype).removeprefix('torch.')} weights"]
    what += ["gradient checkpointing"] if checkpointing else []
    what += [f"{n} rows of {plan.length} tokens", f"2^{chunk.bit_length() - 1} logits a chunk"]
    memory = f", peak {torch.cuda.max_memory_allocated() / MIB / 1024:.1f} GiB" if device == "cuda" else ""
    show(", ".join(what), f"MFU {mfu:.1%}, {n * plan.length / seconds:.0f} tokens/s{memory}")


def sampling(plan: Plan, size: str, device: str, backend: str) -> None:
    """Tokens a second of a rollout, and how far its log-probs are from the trainer's."""
    with tempfile.TemporaryDirectory() as folder:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = random_model(size, device, dtype, vocab_size=plan.vocabulary)
        model.base_model.norm.weight.data.fill_(5.0)  # logits as wide as a trained model's: a few nats
        model.save_pretrained(folder)
        # A tokenizer for its stop tokens, which random weights hardly ever draw.
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(data.EMBEDDED_MODEL) / file, folder)
        sampler = Sampler(folder, backend, device)
        prompts = [row.tolist() for row in rows(plan.prompts, 64, 0, 300, "cpu")[0]]
        sampler.generate(prompts[:1], 1, 1.0, 8, seed=0)
        clock = Clock()
        groups = sampler.generate(prompts, 8, 1.0, plan.new_tokens, seed=0)
        clock("rollout", sum(len(s.ids) for group in groups for s in group))
    speed = clock.tokens["rollout"] / clock.seconds["rollout"]
    show(f"rollouts of {size}, {backend}, {plan.prompts} x 8 of up to {plan.new_tokens} tokens",
         f"{speed:.0f} tokens/s")
    model = model.float()  # the master weights
    some = [(prompt, group[0]) for prompt, group in zip(prompts, groups)][:8]
    ids = pad([prompt for prompt, _ in some], [s.ids for _, s in some], device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False)
    with torch.no_grad(), autocast:
        logp_NT, _, mask_NT = token_logprobs(model, *ids, 1.0)
    means = TokenMeans()
    engine_NT = torch.zeros_like(logp_NT)
    for row_T, (_, s) in zip(engine_NT, some):
        row_T[: len(s.ids)] = torch.tensor(s.logprobs)
    means.add(0.0, mask_NT, logp_NT, engine_NT)
    found = means.metrics()
    mean, most, k3 = (found[f"engine/{key}"] for key in ("gap_mean", "gap_max", "k3"))
    show(f"log-probs of {size}, {backend} against the trainer",
         f"mean {mean:.1e}, max {most:.1e}, k3 {k3:.1e} nats")


def learning(plan: Plan, device: str) -> None:
    """The run of the README's first command, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        args = f"--steps {plan.steps} --eval-every 0 --sampler transformers --device {device} {plan.learning}"
        command = [sys.executable, "guide_grpo.py", *args.split(), "--run-dir", f"{folder}/run"]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"guide_grpo.py {args}\n{done.stderr}")
        seconds = time.perf_counter() - start
        of_steps = 0.0
        for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines():
            of_steps += sum(value for key, value in json.loads(line).items() if key.startswith("time/"))
        results = [read_result(f"{folder}/run/eval_{name}.json") for name in ("base", "trained")]
    base, trained = (curve(result)[0][1] for result in results)
    show(f"at sea, guide_grpo.py, {plan.steps} steps",
         f"{seconds:.0f} s, of them {of_steps:.0f} in the steps; pass@1 {base:.3f} -> {trained:.3f}")


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--tiny", action="store_true", help="small shapes, on the CPU")
    plan = TINY if parser.parse_args().tiny else FULL
    device = "cpu" if plan is TINY else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; --tiny runs the same checks on a CPU")
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{name}; " + ", ".join(f"{package} {version}" for package, version in versions().items()))
    print("| what | measured |\n|---|---|")
    precision = "bfloat16" if device == "cuda" else "float32"
    show(f"matrix product, {precision}", f"{matmul_rate(device) / 1e12:.2f} TFLOP/s")
    size = plan.updates_of[0][0]
    two_layers = {"num_hidden_layers": 2, "vocab_size": plan.vocabulary}
    (_, chunked, mine), (_, naive, theirs) = compare(size, 512, plan.response, device, **two_layers)
    apart = (mine - theirs).abs().max()
    show(f"peak of a step over {plan.response} response tokens, {size} with 2 layers",
         f"chunked {chunked / MIB:.0f} MiB, naive {naive / MIB:.0f} MiB, log-probs {apart:.1e} apart")
    sampling(plan, size, device, "transformers")
    if device == "cuda" and find_spec("vllm"):
        sampling(plan, size, device, "vllm")
    learning(plan, device)
    for update in plan.updates_of:  # the largest model last: it may not fit
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        update_speed(plan, *update, device)


if __name__ == "__main__":
    main()
