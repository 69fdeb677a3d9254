"""A training run as evaluate.py reads it: the weights of one of its checkpoints, and how it was measured."""

import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from data import UserError, pick_template
from machinery.checkpoint import checkpoints
from machinery.names import is_file, names_of


def is_run(model: str) -> bool:
    """Whether this is the folder of a training run; others write an args.json beside a model's config."""
    folder = Path(model)
    return bool(model) and (folder / "args.json").is_file() and not (folder / "config.json").exists()


def held_out_name(train: str, given: str) -> str:
    """--eval-data; where that is empty, the data sets of --data that have a test split, which no file has."""
    return given or ",".join(name for name in names_of(train) if not is_file(name))


def measured_with(run: str) -> tuple[dict, dict, dict]:
    """Options of evaluate.py under which it does what the run's own evaluations did.

    Three parts: which problems, in what prompts, how they are sampled. `data` is "" if the run held none out.
    Raises UserError for a run of an earlier version, whose args were others.
    """
    saved = json.loads((Path(run) / "args.json").read_text())
    try:
        problems = {"data": held_out_name(saved["data"], saved["eval_data"]), "split": saved["eval_split"],
                    "limit": saved["eval_problems"], "verifier": saved["verifier"],
                    "verifier_seconds": saved["verifier_seconds"],
                    "verifier_memory": saved["verifier_memory"]}
        prompts = {"template": pick_template(saved["template"], saved["data"])}
        sampling = {"n": saved["eval_n"], "temperature": saved["eval_temperature"], "top_p": 1.0,
                    "max_prompt": saved["max_prompt"], "max_tokens": saved["max_response"]}
    except KeyError as error:
        raise UserError(f"--model {run}: its args.json has no {error}, it is of another version of "
                        f"CleanRLVR: evaluate {run}/final") from None
    return problems, prompts, sampling


def find_weights(run: str, step: int | None) -> tuple[str, Path | None]:
    """A model's folder or hub id, and the checkpoint whose weights take the place of its own, if one does.

    Step 0 is the model that the run began with. None is final/ or, while the run is not finished, the newest
    checkpoint; of what is no run it is the model itself. Raises UserError if there is no such step.
    """
    folder, final = Path(run), Path(run) / "final"
    if not is_run(run):
        if step is None:
            return run, None
        raise UserError(f"--step {step}: --model {run} is not the folder of a training run (no args.json)")
    base = json.loads((folder / "args.json").read_text())["model"]
    if step == 0:
        return base, None
    of_step = {int(path.name.removeprefix("step-")): path for path in checkpoints(folder)}
    # curves.png is drawn last, and goes when a finished run is given more steps.
    finished = (folder / "curves.png").exists() or not of_step
    if step is None and final.exists() and finished:
        return str(final), None
    if step is None and not of_step:
        raise UserError(f"{run} has neither final/ nor a checkpoint yet: --step 0 is the model it began with")
    if step is None:
        step = max(of_step)
    if step not in of_step:
        have = ", ".join(map(str, of_step)) or "none"
        raise UserError(f"--step {step}: {run} has no checkpoint of that step; there are: {have} (a run "
                        "saves one every --save-every steps and keeps the newest --keep), and 0, its start")
    # The final model has everything beside the weights, wherever the run's folder has been moved to.
    return str(final) if final.exists() else base, of_step[step]


def saved_weights(checkpoint: Path, model: torch.nn.Module, at_once: int = 32):
    """(name, tensor) of each parameter of `model`, as the policy had it; on the CPU, `at_once` at a time.

    Any number of ranks may have written the checkpoint; each that calls this reads whole tensors. Raises
    UserError if they cannot be read.
    """
    names = [name for name, _ in model.named_parameters()]
    for start in range(0, len(names), at_once):
        tensors = {f"policy.backbone.{name}": None for name in names[start : start + at_once]}
        try:
            saved = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
            for key in tensors:
                tensors[key] = torch.empty(saved[key].size, dtype=saved[key].properties.dtype)
            dcp.load(tensors, checkpoint_id=checkpoint, no_dist=True)
        except (OSError, KeyError, RuntimeError, EOFError, dcp.api.CheckpointException) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{checkpoint} cannot be read ({type(error).__name__}: {said}): it is damaged, "
                            "or a run at work has just removed it (--keep)") from error
        for key, tensor in tensors.items():
            yield key.removeprefix("policy.backbone."), tensor
