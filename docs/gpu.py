"""A GPU: what was measured on one H200, and what a step should take on more of them:  python docs/gpu.py

The update's speed is the measured one; all else is arithmetic with bytes and operations, and with
efficiencies that are assumed. It says where the next bottleneck is, not what a step takes to the second.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
from machinery.compare import table

GB = 1e9


@dataclass(frozen=True)
class Model:
    """A Qwen2.5: parameters, those of them that are no embedding, and bytes of keys and values a token."""

    name: str
    parameters: float
    matrices: float
    kv_bytes: float  # 2 x layers x key-value heads x 128 x 2 bytes
    tensor_parallel: int  # GPUs an engine, so that weights and cache have room


@dataclass(frozen=True)
class Card:
    """One GPU and its wires. Not measured by us: bandwidth, memory (data sheet), links (usual values)."""

    flops: float  # of a large bfloat16 matrix product, measured
    bandwidth: float = 4.8e12  # bytes a second
    memory: float = 141 * GB
    link: float = 400 * GB  # bytes a second between the GPUs of a machine, about what NCCL reaches
    network: float = 8 * 50 * GB  # between machines: a port of 400 Gb/s a GPU, all used by a collective


MODELS = [
    Model("1.5B", 1.54e9, 1.31e9, 2 * 28 * 2 * 128 * 2, 1),
    Model("7B", 7.62e9, 6.53e9, 2 * 28 * 4 * 128 * 2, 1),
    Model("32B", 32.8e9, 31.0e9, 2 * 64 * 8 * 128 * 2, 4),
]
PROMPTS, SAMPLES, PROMPT, RESPONSE, LONGEST = 128, 8, 300, 1000, 3072  # of a step; tokens
DECODE = 0.6  # assumed: the share of the bandwidth that decoding reaches
LAUNCH = 0.004  # assumed: seconds of a forward pass of the engine besides
MICRO = 16384  # tokens of a micro-batch


def figures() -> list[dict]:
    """What tests/gpu_check.py found with --out docs/study/h200.jsonl; the run at sea is of another day."""
    return [json.loads(line) for line in (HOME / "docs/study/h200.jsonl").read_text().splitlines()]


def updates_table() -> str:
    rows = []
    for found in figures():
        if "optimizer_bytes" not in found:
            continue
        rows.append([found["model"], found["weights"], "yes" if found["checkpointing"] else "no"])
        rows[-1][2] += ", compiled" if found.get("compiled") else ""
        rows[-1] += [str(found["tokens"]), f"2^{found['chunk'].bit_length() - 1}"]
        rows[-1] += [f"{found['seconds']:.3f}", f"{found['tokens_per_s']:,.0f}"]
        rows[-1] += [f"{found[key]:.1%}" for key in ("of_matmul", "of_data_sheet")]
        rows[-1] += [f"{found[key] / 2**30:.1f}" for key in ("peak_bytes", "other_bytes")]
    head = ["model", "weights", "checkpointing", "tokens", "logits a chunk", "seconds", "tokens/s", "MFU",
            "of the data sheet", "peak, GiB", "activations and logits at least"]
    return table(head, rows)


def rollouts_table() -> str:
    rows = []
    for found in figures():
        if "engine" in found and "rows" in found:
            milliseconds = 1000 * found["seconds"] * found["rows"] / found["tokens"]
            rows.append([found["model"], found["engine"], str(found["rows"]), f"{found['tokens_per_s']:,.0f}",
                         f"{milliseconds:.0f}"])
    return table(["model", "sampler", "rows at once", "tokens/s", "ms a forward pass"], rows)


def measured() -> tuple[Card, dict[str, float]]:
    """The card, and the MFU of updates with gradient checkpointing.

    1.5B's is of float32 weights under autocast, the scripts' way; 7B's of bfloat16 ones; 32B's is 7B's.
    """
    mfu = {}
    for found in figures():
        ours = found.get("checkpointing") and not found.get("compiled")
        if ours and found["tokens"] == MICRO and found["chunk"] == 2**26:
            mfu[found["model"]] = found["of_matmul"]
    return Card(flops=figures()[0]["flops_per_s"]), {**mfu, "32B": mfu["7B"]}


def training(model: Model, gpus: int, card: Card, mfu: float) -> float:
    """Seconds of an update: 6 operations a weight and token, with the head's for responses only."""
    rows = PROMPTS * SAMPLES
    embeddings = model.parameters - model.matrices
    head = embeddings if model.name == "1.5B" else embeddings / 2  # 1.5B ties its head to the embeddings
    flops = 6 * rows * (model.matrices * (PROMPT + RESPONSE) + head * RESPONSE)
    return flops / (gpus * mfu * card.flops)


def communication(model: Model, gpus: int, card: Card) -> float:
    """Seconds on the wires, for each micro-batch: weights twice in bfloat16, gradients once in float32.

    Beside the update, if all goes well. Embedding and head go in float32: little more.
    """
    if gpus == 1:
        return 0.0
    micro_batches = max(1.0, PROMPTS * SAMPLES * (PROMPT + RESPONSE) / MICRO / gpus)
    return micro_batches * (2 + 2 + 4) * model.parameters / (card.link if gpus <= 8 else card.network)


def rollout(model: Model, gpus: int, card: Card) -> float:
    """Seconds until the longest response is there: each token reads all weights, keys and values."""
    engines = max(1, gpus // model.tensor_parallel)
    wide = min(gpus, model.tensor_parallel)
    rows = PROMPTS * SAMPLES / engines
    growing = rows * RESPONSE / LONGEST  # on average
    read = 2 * model.parameters + growing * (PROMPT + RESPONSE / 2) * model.kv_bytes
    compute = 2 * model.parameters * growing / (0.5 * card.flops * wide)
    return LONGEST * (max(read / (DECODE * card.bandwidth * wide), compute) + LAUNCH)


def sync(model: Model, gpus: int, card: Card) -> float:
    """Seconds to give every engine the weights: gathered from the shards and copied, in bfloat16."""
    wire = card.link if gpus <= 8 else card.network
    return (2 * model.parameters / wire if gpus > 1 else 0.0) + 2 * model.parameters / (0.5 * card.bandwidth)


def memory(model: Model, gpus: int) -> float:
    """Bytes a GPU: weights, gradients, AdamW in float32, the engine's weights. No activations, no cache."""
    return 16 * model.parameters / gpus + 2 * model.parameters / min(gpus, model.tensor_parallel)


def times_table() -> str:
    card, mfu = measured()
    rows = []
    for model in MODELS:
        for gpus in (1, 8, 64):
            held = memory(model, gpus)
            if held > 0.9 * card.memory:
                rows.append([model.name, str(gpus), f"{held / GB:.0f}, does not fit", "", "", "", "", ""])
                continue
            parts = {
                "rollout": rollout(model, gpus, card),
                "update": training(model, gpus, card, mfu[model.name]),
                "FSDP2's wires": communication(model, gpus, card),
                "sync": sync(model, gpus, card),
            }
            most = max(parts, key=parts.get)
            seconds = [f"{part:.1f}" for part in parts.values()]
            rows.append([model.name, str(gpus), f"{held / GB:.0f}", *seconds, most])
    return table(["model", "GPUs", "GB a GPU", "rollout, s", "update, s", "FSDP2's wires, s", "sync, s",
                  "largest"], rows)


if __name__ == "__main__":
    print(times_table())
