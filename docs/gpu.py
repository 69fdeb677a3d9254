"""What a step of GRPO should take on H200s, by arithmetic:  python docs/gpu.py

The update's speed is the measured one; all else is arithmetic with bytes and operations, and with
efficiencies that are assumed. It says where the next bottleneck is, not what a step takes to the second.
"""

import json
import sys
from bisect import bisect_right
from dataclasses import dataclass
from math import log
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
from machinery.compare import table

GB = 1e9


@dataclass(frozen=True)
class Model:
    """A Qwen2.5."""

    name: str
    parameters: int
    matrices: int  # of them those of the layers' matrices
    layers: int
    hidden: int
    kv_bytes: int  # of keys and values a token: 2 x layers x key-value heads x 128 x 2 bytes
    tied: bool  # the head is the embedding
    tensor_parallel: int  # GPUs an engine, so that weights and cache have room

    @property
    def head(self) -> int:
        return VOCABULARY * self.hidden

    @property
    def read(self) -> int:
        """Parameters that a forward pass reads: an embedding that is not the head too is looked up."""
        return self.parameters if self.tied else self.parameters - self.head


@dataclass(frozen=True)
class Card:
    """One GPU and its wires. Not measured by us: bandwidth, memory (data sheet), links (usual values)."""

    flops: float  # of a large bfloat16 matrix product, measured
    bandwidth: float = 4.8e12  # bytes a second
    memory: float = 141 * GB
    link: float = 400 * GB  # bytes a second between the GPUs of a machine, about what NCCL reaches
    network: float = 8 * 50 * GB  # between machines: a port of 400 Gb/s a GPU, all used by a collective


VOCABULARY = 151_936
MODELS = [
    Model("1.5B", 1_543_714_304, 1_310_195_712, 28, 1536, 28_672, True, 1),
    Model("7B", 7_614_699_008, 6_525_288_448, 28, 3584, 57_344, False, 1),
    Model("32B", 32_762_565_632, 31_205_621_760, 64, 5120, 262_144, False, 4),
]
ROWS, PROMPT, LONGEST = 128 * 8, 300, 3072  # of a step: responses; tokens of a prompt, of a response at most
SCALE = 1058  # assumed: lengths of responses are exponential with this mean; cut at LONGEST it is 1,000
READ = 0.6  # assumed: the share of the bandwidth that decoding reaches
COMPUTE = 0.5  # assumed: the share of a large matrix product's speed that decoding reaches
COPY = 0.5  # assumed: the share of the bandwidth that a copy reaches, which reads and writes
LAUNCH = 0.004  # assumed: seconds of a forward pass of the engine besides
MICRO = 16384  # tokens of a micro-batch
MACHINE = 8  # GPUs
CHECKED, SAMPLED = (2048, 1536), 64  # of tests/gpu_check.py: (all, response) tokens of a row; a prompt's


def response_lengths(rows: int) -> list[int]:
    """Tokens of a step's responses, ascending: quantiles of the distribution that is assumed."""
    return [min(LONGEST, max(1, round(-SCALE * log(1 - (i + 0.5) / rows)))) for i in range(rows)]


# ---- what was measured -------------------------------------------------------------------------------------

def figures() -> list[dict]:
    """What tests/gpu_check.py found with --out docs/study/h200.jsonl; the run at sea is of another day."""
    return [json.loads(line) for line in (HOME / "docs/study/h200.jsonl").read_text().splitlines()]


def rollouts() -> list[dict]:
    """Sampling, with the milliseconds of a forward pass."""
    found = [figure for figure in figures() if "engine" in figure and "rows" in figure]
    return [of | {"pass": 1000 * of["seconds"] * of["rows"] / of["tokens"]} for of in found]


def updates() -> list[dict]:
    """Updates as the scripts were then: gradient checkpointing, chunks of 2^26 logits, nothing compiled."""
    return [found for found in figures()
            if found.get("checkpointing") and not found.get("compiled") and found["chunk"] == 2**26]


def measured() -> tuple[Card, dict[str, float]]:
    """The card, and the MFU of updates over MICRO tokens.

    1.5B's is of float32 weights under autocast, the scripts' way; 7B's of bfloat16 ones; 32B's is 7B's.
    """
    mfu = {found["model"]: found["of_matmul"] for found in updates() if found["tokens"] == MICRO}
    return Card(flops=figures()[0]["flops_per_s"]), {**mfu, "32B": mfu["7B"]}


# ---- the arithmetic ----------------------------------------------------------------------------------------

def operations(model: Model, rows: list[tuple[int, int]]) -> int:
    """Of an update over rows of (all, response) tokens, as train_flops of tests/gpu_check.py counts them.

    6 a weight and token, the head's for responses only, and causal attention; no recomputation.
    """
    attention = 6 * model.layers * model.hidden
    return sum(6 * (model.matrices * n + model.head * t) + attention * n * n for n, t in rows)


def training(model: Model, gpus: int, card: Card, mfu: float, rows: list[tuple[int, int]]) -> float:
    """Seconds of an update over rows of (all, response) tokens."""
    return operations(model, rows) / (gpus * mfu * card.flops)


def communication(model: Model, gpus: int, card: Card, tokens: int) -> float:
    """Seconds on the wires, for each micro-batch: weights twice in bfloat16, gradients once in float32.

    Beside the update, if all goes well. Embedding and head go in float32: little more.
    """
    if gpus == 1:
        return 0.0
    micro_batches = max(1.0, tokens / MICRO / gpus)
    return micro_batches * (2 + 2 + 4) * model.parameters / (card.link if gpus <= MACHINE else card.network)


def decode(model: Model, gpus: int, card: Card, rows: float, context: int) -> float:
    """Seconds of an engine's pass, one more token for each row: the larger of reading and computing."""
    read = (2 * model.read + rows * context * model.kv_bytes) / (READ * card.bandwidth)
    compute = 2 * model.read * rows / (COMPUTE * card.flops)
    return max(read, compute) / gpus + LAUNCH


def rollout(model: Model, gpus: int, card: Card, lengths: list[int]) -> float:
    """Seconds until the longest response is there. `lengths` ascend; engines have equal shares of them."""
    wide = min(gpus, model.tensor_parallel)
    seconds = 0.0
    for t in range(lengths[-1]):
        growing = len(lengths) - bisect_right(lengths, t)  # rows of more than t tokens
        seconds += decode(model, wide, card, growing * wide / gpus, PROMPT + t)
    return seconds


def sync(model: Model, gpus: int, card: Card) -> float:
    """Seconds to give every engine the weights: gathered from the shards and copied, in bfloat16."""
    wire = card.link if gpus <= MACHINE else card.network
    return (2 * model.parameters / wire if gpus > 1 else 0.0) + 2 * model.parameters / (COPY * card.bandwidth)


def memory(model: Model, gpus: int) -> float:
    """Bytes a GPU: weights, gradients, AdamW in float32, the engine's weights. No activations, no cache."""
    return 16 * model.parameters / gpus + 2 * model.parameters / min(gpus, model.tensor_parallel)


def host_memory(model: Model, gpus: int) -> float:
    """Bytes a machine at the start: each of its processes loads the whole model in float32."""
    return 4 * model.parameters * min(gpus, MACHINE)


# ---- the tables of it --------------------------------------------------------------------------------------

def times_table() -> str:
    card, mfu = measured()
    lengths = response_lengths(ROWS)
    rows = [(PROMPT + n, n) for n in lengths]
    lines = []
    for model in MODELS:
        for gpus in (1, 8, 64):
            held = memory(model, gpus)
            lines.append([model.name, str(gpus), f"{host_memory(model, gpus) / GB:.0f}", f"{held / GB:.0f}"])
            if held > 0.9 * card.memory:
                lines[-1][-1] += ", does not fit"
                lines[-1] += [""] * 5
                continue
            parts = {
                "rollout": rollout(model, gpus, card, lengths),
                "update": training(model, gpus, card, mfu[model.name], rows),
                "FSDP2's wires": communication(model, gpus, card, sum(whole for whole, _ in rows)),
                "sync": sync(model, gpus, card),
            }
            lines[-1] += [*(f"{part:.1f}" for part in parts.values()), max(parts, key=parts.get)]
    said = f"{ROWS:,} responses: {sum(lengths) / ROWS:,.0f} tokens on average, half of them under "
    said += f"{lengths[ROWS // 2]:,}, {lengths.count(LONGEST)} cut at {LONGEST:,}. "
    said += f"{LONGEST * LAUNCH:.1f} s of each rollout are the {1000 * LAUNCH:.0f} ms a pass."
    head = ["model", "GPUs", "host GB a machine", "GB a GPU", "rollout, s", "update, s", "FSDP2's wires, s",
            "sync, s", "largest"]
    return f"{said}\n\n{table(head, lines)}"


def checks_table() -> str:
    """The formulas against what was measured, where the one was not made of the other."""
    card, mfu = measured()
    of, lines = {model.name: model for model in MODELS}, []

    def add(what: str, formula: float, found: float, unit: str) -> None:
        shown = [f"{value:.{3 if unit == 's' else 1}f} {unit}" for value in (formula, found)]
        lines.append([what, *shown, f"{found / formula:.2f}"])

    for found in updates():
        model, tokens = of[found["model"]], found["tokens"]
        each = 16 if found["weights"] == "float32" else 8
        add(f"peak of an update, {model.name}, {tokens:,} tokens: {each} bytes a parameter",
            each * model.parameters / GB, found["peak_bytes"] / GB, "GB")
        by = "1.5B" if tokens == MICRO else model.name
        if (by, tokens) != (model.name, MICRO):  # else the MFU is this update's
            rows = [CHECKED] * (tokens // CHECKED[0])
            add(f"update, {model.name}, {tokens:,} tokens: the MFU of {by}, {MICRO:,} tokens",
                training(model, 1, card, mfu[by], rows), found["seconds"], "s")
    for found in rollouts():
        model, passes = of[found["model"]], found["tokens"] // found["rows"]
        seconds = sum(decode(model, 1, card, found["rows"], SAMPLED + t) for t in range(passes))
        add(f"forward pass of sampling, {model.name}, {found['rows']} rows", 1000 * seconds / passes,
            found["pass"], "ms")
    return table(["", "formula", "measured", "measured / formula"], lines)


if __name__ == "__main__":
    print(times_table())
    print(checks_table())
