"""What a GPU does with this code, in under 10 minutes:  python tests/gpu_check.py

Models of the shape of Qwen2.5-1.5B and 7B with random weights, made from their configurations: nothing is downloaded. It
prints a table of: the update's MFU against the card's own matrix product, peak memory of chunked and naive log-probs,
the gap between sampler and trainer, tokens a second of rollouts, and the Countdown learning run. With --tiny it does the
same at a size for which a CPU is enough, which is how the test suite runs it.
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
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench_memory import MIB, compare, random_model, rows, step

import data
import evaluate
from grpo import pad, token_logprobs


@dataclass
class Plan:
    updates_of: tuple[tuple[str, torch.dtype, bool, int], ...]  # model, its weights, gradient checkpointing, logits a chunk
    vocabulary: int
    tokens: int  # of a micro-batch
    length: int  # of a row, a quarter of it prompt
    updates: int
    prompts: int  # of a rollout, 8 samples each
    new_tokens: int
    steps: int  # of the learning run


FULL = Plan((("1.5B", torch.float32, True, 2**26), ("1.5B", torch.float32, True, 2**28), ("7B", torch.bfloat16, True, 2**26)),
            151_936, 16384, 2048, 4, 64, 512, 100)
TINY = Plan((("tiny", torch.float32, True, 2**26), ("tiny", torch.bfloat16, False, 2**14)), 512, 256, 64, 2, 4, 16, 2)


def show(what: str, value: str) -> None:
    print(f"| {what} | {value} |", flush=True)


def update_speed(plan: Plan, size: str, dtype: torch.dtype, checkpointing: bool, chunk: int, device: str) -> None:
    """Whole updates, optimizer included: MFU and peak memory."""
    model = random_model(size, device, dtype, vocab_size=plan.vocabulary)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
    # float32: master weights and autocast, as in the scripts. bfloat16: all of 7B on one card, which the scripts shard.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device == "cuda")
    mixed = device == "cuda" and dtype == torch.float32
    autocast = torch.autocast(device, torch.bfloat16, enabled=mixed, cache_enabled=False)
    n, prompt = plan.tokens // plan.length, plan.length // 4
    ids = rows(n, prompt, plan.length - prompt, plan.vocabulary, device)
    times = []
    for _ in range(1 + plan.updates):  # the first one warms up
        clock = evaluate.Clock()
        step(partial(token_logprobs, chunk=chunk), model, ids, autocast)
        evaluate.clip_gradient(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock("update")
        times.append(clock.seconds["update"])
    seconds = float(np.median(times[1:]))
    flops = evaluate.train_flops(model, [(plan.length, plan.length - prompt)] * n)
    mfu = flops / seconds / evaluate.matmul_rate(device)
    memory = f", peak {torch.cuda.max_memory_allocated() / MIB / 1024:.1f} GiB" if device == "cuda" else ""
    weights = f"{str(dtype).removeprefix('torch.')} weights" + (", gradient checkpointing" if checkpointing else "")
    show(f"update of {size}, {weights}, {n} rows of {plan.length} tokens, 2^{chunk.bit_length() - 1} logits a chunk",
         f"MFU {mfu:.1%}, {n * plan.length / seconds:.0f} tokens/s{memory}")


def sampling(plan: Plan, size: str, device: str, backend: str) -> None:
    """Tokens a second of a rollout, and how far its log-probs are from the trainer's."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(size, device, torch.bfloat16 if device == "cuda" else torch.float32, vocab_size=plan.vocabulary)
        model.base_model.norm.weight.data.fill_(5.0)  # logits as wide as a trained model's, an entropy of a few nats
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):  # for its stop tokens, which random weights hardly ever draw
            shutil.copy(Path(data.EMBEDDED_MODEL) / file, folder)
        sampler = evaluate.Sampler(folder, backend, device)
        prompts = [row.tolist() for row in rows(plan.prompts, 64, 0, 300, "cpu")[0]]
        sampler.generate(prompts[:1], 1, 1.0, 8, seed=0)
        clock = evaluate.Clock()
        groups = sampler.generate(prompts, 8, 1.0, plan.new_tokens, seed=0)
        clock("rollout", sum(len(s.ids) for group in groups for s in group))
    speed = clock.tokens["rollout"] / clock.seconds["rollout"]
    show(f"rollouts of {size}, {backend}, {plan.prompts} x 8 of up to {plan.new_tokens} tokens", f"{speed:.0f} tokens/s")
    model = model.float()  # the master weights
    some = [(prompt, group[0]) for prompt, group in zip(prompts, groups)][:8]
    ids = pad([prompt for prompt, _ in some], [s.ids for _, s in some], device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
        logp_NT, _, mask_NT = token_logprobs(model, *ids, 1.0)
    means = evaluate.TokenMeans()
    engine_NT = torch.zeros_like(logp_NT)
    for row_T, (_, s) in zip(engine_NT, some):
        row_T[: len(s.ids)] = torch.tensor(s.logprobs)
    means.add(0.0, {}, logp_NT, engine_NT, mask_NT)
    gap = means.result(0)
    show(f"log-probs of {size}, {backend} against the trainer",
         f"mean {gap['engine/gap_mean']:.1e}, max {gap['engine/gap_max']:.1e}, k3 {gap['engine/k3']:.1e} nats")


def learning(plan: Plan, device: str) -> None:
    """The run of the README's first command, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        args = f"--steps {plan.steps} --eval-every 0 --sampler transformers --device {device} --run-dir {folder}/run"
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "guide_grpo.py", *args.split()], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"guide_grpo.py {args}\n{done.stderr}")
        seconds = time.perf_counter() - start
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
        of_steps = sum(value for line in lines for key, value in json.loads(line).items() if key.startswith("time/"))
        results = [evaluate.read_result(f"{folder}/run/eval_{name}.json") for name in ("base", "trained")]
    base, trained = (evaluate.curve(result)[0][1] for result in results)
    show(f"Countdown, guide_grpo.py, {plan.steps} steps",
         f"{seconds:.0f} s, of them {of_steps:.0f} in the steps; pass@1 {base:.3f} -> {trained:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, on the CPU")
    plan = TINY if parser.parse_args().tiny else FULL
    device = "cpu" if plan is TINY else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; --tiny runs the same checks on a CPU")
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{name}; " + ", ".join(f"{package} {version}" for package, version in evaluate.versions().items()))
    print("| what | measured |\n|---|---|")
    precision = "bfloat16" if device == "cuda" else "float32"
    show(f"matrix product, {precision}", f"{evaluate.matmul_rate(device) / 1e12:.2f} TFLOP/s")
    size = plan.updates_of[0][0]
    response = 4096 if device == "cuda" else 64
    (_, chunked, mine), (_, naive, theirs) = compare(size, 2, 512, response, device, plan.vocabulary)
    show(f"peak of a step over {response} response tokens, {size} with 2 layers",
         f"chunked {chunked / MIB:.0f} MiB, naive {naive / MIB:.0f} MiB, log-probs {(mine - theirs).abs().max():.1e} apart")
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
