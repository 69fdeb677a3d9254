"""Checkpoints of a training script, and the model that it leaves: each whole or not at all.

runs/<run>/checkpoint/step-000012/ is written by all ranks, a shard each, and read by any number of them.
"""

import json
import os
import shlex
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from data import UserError
from machinery.ranks import gather, rank, world

# Said of every checkpoint of a single process.
warnings.filterwarnings("ignore", "torch.distributed is disabled")


def checkpoints(run: Path) -> list[Path]:
    """The whole ones, oldest first: step-000012.part is one whose writing was cut off."""
    return sorted(path for path in (run / "checkpoint").glob("step-*") if path.is_dir() and not path.suffix)


def steps_done(run: Path) -> int:
    """The steps of the newest checkpoint; 0 without one."""
    whole = checkpoints(run)
    return int(whole[-1].name.removeprefix("step-")) if whole else 0


def tensors(parts: dict, saved=()) -> dict:
    """{name: tensor} of the models and optimizers in `parts`, not copied.

    Of an optimizer, what is in the names `saved` too.
    """
    found = {"rng": torch.get_rng_state()}
    for part, of in parts.items():
        if isinstance(of, torch.nn.Module):
            # A tied tensor has one name.
            own = {name for name, _ in (*of.named_parameters(), *of.named_buffers())}
            found |= {f"{part}.{name}": tensor for name, tensor in of.state_dict().items() if name in own}
            continue
        for i, parameter in enumerate(p for group in of.param_groups for p in group["params"]):
            state = of.state[parameter] if parameter in of.state else {}
            for key in (name.split(".")[2] for name in saved if name.startswith(f"{part}.{i}.")):
                state = of.state[parameter]
                state[key] = torch.zeros_like(parameter.detach())
                if key == "step":  # a fused optimizer counts on the device
                    state[key] = torch.zeros((), device=parameter.device)
            found |= {f"{part}.{i}.{key}": value for key, value in state.items()}
    return found


def save_checkpoint(run: Path, step: int, parts: dict, keep: int) -> None:
    """checkpoint/step-000012/: everything that the next step depends on. Whole or not at all.

    Each rank writes its shards.
    """
    path = run / "checkpoint" / f"step-{step:06d}"
    part = path.with_suffix(".part")
    if any(gather([path.exists()])):  # by this very run: the last step may be one of --save-every
        return
    try:
        if rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        gather([])  # the folder is there
        dcp.save(tensors(parts), checkpoint_id=part, no_dist=world() == 1)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        failures = error.failures.values() if isinstance(error, dcp.api.CheckpointException) else [(error,)]
        why = "; ".join(dict.fromkeys(str(failure[0]).split("\n")[0] for failure in failures))
        shutil.rmtree(part, ignore_errors=True)
        again = f"--resume {shlex.quote(str(run))}"
        raise UserError(f"cannot write {path} ({why}): make room, then go on with {again}") from error
    if rank() == 0:
        os.replace(part, path)
        for old in checkpoints(run)[:-keep]:
            old.replace(old.with_suffix(".part"))  # one that is removed in part is no checkpoint
        for old in path.parent.glob("*.part"):
            shutil.rmtree(old)
    gather([])  # renamed


def load_checkpoint(run: Path, parts: dict) -> int:
    """Restores the newest checkpoint of a run, if there is one; the steps done.

    Log lines of later steps are removed. Any number of ranks reads what any number has written.
    """
    newest, step = max(checkpoints(run), default=None), steps_done(run)
    if not newest and any((run / "checkpoint").glob("*.pt")):
        raise UserError(
            f"--resume {run}: its checkpoints are of an earlier version of CleanRLVR; go on with that one"
        )
    if newest:
        saved = dcp.FileSystemReader(newest).read_metadata().state_dict_metadata
        state = tensors(parts, saved)
        dcp.load(state, checkpoint_id=newest, no_dist=world() == 1)
        torch.set_rng_state(state["rng"])
    if rank() == 0:
        if not newest and (run / "metrics.jsonl").stat().st_size:
            print(f"{run} has no checkpoint yet: it begins again")
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            with open(run / name) as lines, open(run / f"{name}.part", "w") as kept:  # a large file
                for line in lines:
                    if line.endswith("\n") and json.loads(line)["step"] <= step:
                        kept.write(line)
            os.replace(run / f"{name}.part", run / name)
    return step


def save_model(model: torch.nn.Module, tokenizer, dtype: torch.dtype, path: Path) -> None:
    """The end of a run: the model as a Hugging Face folder, whole or not at all. It stays `dtype`."""
    model.to(dtype)
    state = None
    if world() > 1:
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        # A tied tensor has one name.
        own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        state = {name: tensor for name, tensor in whole.items() if name in own}
    if rank():
        return
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part, state_dict=state)
        tokenizer.save_pretrained(part)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        again = f"--resume {shlex.quote(str(path.parent))}"
        raise UserError(f"cannot write {path} ({error}): make room, then go on with {again}") from error
    shutil.rmtree(path, ignore_errors=True)  # of a run that was finished before and got more steps
    part.replace(path)
