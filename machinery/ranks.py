"""Several processes: torchrun --nproc-per-node N, FSDP2.

Every rank holds a shard of each weight and knows every row; what is dealt out is the work: prompts to sample
and to verify, forward passes. So advantages, denominators and metrics are of all rows, as in one process.
"""

import math
import os
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from data import UserError

# ---- the processes -----------------------------------------------------------------------------------------

def rank() -> int:
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """Number of ranks, asked of torchrun: vLLM initialises torch.distributed in a single process too."""
    return int(os.environ.get("WORLD_SIZE", 1))


def pick_device(device: str) -> str:
    """cpu or cuda. Raises UserError if it is neither, or if there is no GPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: give auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here, use --device cpu")
    return device


def join(device: str) -> str:
    """The device of this process, in the group of all that torchrun started. Only rank 0 talks."""
    transformers.utils.logging.disable_progress_bar()  # of loading and writing: a line in every log
    device = pick_device(device)
    if world() == 1 or dist.is_initialized():
        return device
    backend, bound = "gloo", None
    if device == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(
                f"torchrun started more processes than there are GPUs here: use --nproc-per-node {gpus}"
            )
        torch.cuda.set_device(local)
        # vLLM's engines want both; objects go by gloo.
        backend, bound = "cpu:gloo,cuda:nccl", torch.device("cuda", local)
    # Two hours: a rank may have to wait for another's rollout.
    dist.init_process_group(backend, device_id=bound, timeout=timedelta(hours=2))
    if rank():
        sys.stdout = open(os.devnull, "w")
        transformers.utils.logging.set_verbosity_error()
    return device


# ---- sharing out the work ----------------------------------------------------------------------------------

def share(items: list) -> list:
    """This rank's part of the work."""
    return items[rank() :: world()]


def gather(mine: list) -> list:
    """What all ranks made of their shares, in the order of the whole: the inverse of `share`."""
    if world() == 1:
        return list(mine)
    parts = [None] * world()
    dist.all_gather_object(parts, mine)
    whole = []
    for i in range(max(map(len, parts))):
        whole += [part[i] for part in parts if i < len(part)]
    return whole


def total(sums: dict) -> dict:
    """{key: number} added up over all ranks, each of which may lack keys."""
    totals: dict = {}
    for part in gather([sums]):
        for key, value in part.items():
            totals[key] = totals.get(key, 0) + value
    return totals


def micro_batches(lengths: list[int], tokens: int) -> list[list[int]]:
    """Indices packed, longest first: rows x longest row is at most `tokens` (one row alone may exceed it).

    Of several ranks each gets its share, and as many batches as the others: the last ones may be empty.

    >>> micro_batches([3, 9, 4], 10)
    [[1], [2, 0]]
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    shares: list[list[list[int]]] = [[] for _ in range(world())]
    for k, i in enumerate(longest_first):
        batches = shares[k % world()]
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > tokens:
            batches.append([])
        batches[-1].append(i)
    mine, most = shares[rank()], max(map(len, shares))
    return mine + [[] for _ in range(most - len(mine))]


# ---- models ------------------------------------------------------------------------------------------------

def shard(model: torch.nn.Module, device: str, gradient_checkpointing: bool = False) -> torch.nn.Module:
    """The policy or critic on `device`: each weight split over the ranks (FSDP2), gathered a layer at a time.

    Whole in one process. Gradients are added up over the ranks, not averaged. Weights and gradient sums are
    float32, on a GPU the compute is bfloat16. A model on the CPU goes to the GPU layer by layer: no GPU ever
    holds all of it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if gradient_checkpointing:
        try:
            model.backbone.gradient_checkpointing_enable()
        except ValueError as error:
            raise UserError(f"--gradient-checkpointing: {error}") from error
        for layer in layers:
            layer.training = True  # it recomputes in training mode only; the dropout inside of it stays out
    if world() == 1:
        return model.to(device)
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    whole = MixedPrecisionPolicy()  # the head too: the gradients of its chunks would be added up in bfloat16
    mesh = init_device_mesh(device, (world(),))
    # Embedding and head stay together in the last one: they may be one tensor.
    for module in (*layers, model):
        policy = mixed if device == "cuda" and module is not model else whole
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return model


@contextmanager
def on_device(model: torch.nn.Module, device: str):
    """The model is on `device` inside, and back where it was after.

    The rest of the time the policy has the memory.
    """
    home = next(model.parameters()).device.type
    yield model.to(device)
    if home != device:
        model.to(home)
        torch.cuda.empty_cache()


def weights(model: torch.nn.Module, dtype: torch.dtype):
    """(name, whole tensor) of each parameter, gathered one at a time: every rank has to drain it.

    Shards are cast to `dtype` before they are sent; a whole parameter comes as it is.
    """
    for name, parameter in model.named_parameters():
        sharded = isinstance(parameter, DTensor)
        yield name, parameter.detach().to(dtype).full_tensor() if sharded else parameter


def clip_gradient(model: torch.nn.Module, most: float) -> float:
    """Scales the gradient down to norm `most` if it is larger; the norm before, over all ranks' shards.

    Raises UserError if it is not finite, before this model's optimizer takes the step.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
    norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    if not math.isfinite(norm):
        raise UserError("the gradient is not finite, and --resume would draw the same samples again: start a "
                        "new run with a lower --lr")
    return norm
