"""A run's folder: who may use it, and whether there is anything left to do in it."""

import fcntl
import json
import os
import shlex
import sys
from pathlib import Path

from data import fingerprint
from machinery.checkpoint import checkpoints, steps_done
from machinery.command import UserError
from machinery.ranks import gather, rank

LOCKS: dict[Path, int] = {}  # of this process, which the system takes back when it ends


def claim(folder: Path, task: dict, resumed: bool) -> None:
    """Makes a run's folder, or takes one where no step was made: a start that failed is in nobody's way.

    `task`: the args that base and trained model are measured by. Other processes are kept out until `release`
    or the end of this one. Raises UserError if the folder holds a run and this one is not `resumed`, if
    another process is at work there, or if it cannot be written.
    """
    log, before = folder / "metrics.jsonl", folder / "args.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        began = checkpoints(folder) or (log.exists() and log.stat().st_size > 0)
        if began and not resumed:
            resume = f"--resume {shlex.quote(str(folder))}"
            raise UserError(f"{folder} holds a run already: use {resume}, or give another --run-dir")
        lock(folder)
        if before.exists() and not resumed:
            old = json.loads(before.read_text())
            if any(old.get(key) != value for key, value in task.items()):
                (folder / "eval_base.json").unlink(missing_ok=True)  # of another model, say
        log.touch()
        (folder / "rollouts.jsonl").touch()
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): give another --run-dir") from None


def lock(folder: Path) -> None:
    release(folder)  # a run of this very process that has failed
    LOCKS[folder.resolve()] = descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        release(folder)
        raise UserError(f"{folder} is in use: another process trains there") from None
    except OSError as error:  # some network disks have no locks
        warning = f"{folder} cannot be locked ({error.strerror}): start no second process there"
        print(f"warning: {warning}", file=sys.stderr)


def release(folder: Path) -> None:
    if folder.resolve() in LOCKS:
        os.close(LOCKS.pop(folder.resolve()))


def is_finished(folder: Path, steps: int) -> bool:
    """Whether a run has all that `steps` steps leave. Raises UserError if it has done more than those."""
    done = steps_done(folder)
    if steps < done:
        raise UserError(f"--steps {steps}: {folder} has done {done} already; give more, or start a new run")
    left = {"final", "curves.png"}  # which is drawn last
    if (folder / "eval_base.json").exists():
        left.add("eval_trained.json")
    return steps == done and all((folder / name).exists() for name in left)


def check_data(folder: Path, prompts: list, resumed: bool) -> None:
    """Keeps in data.json which problems a run has, held-out ones too. UserError if they were others.

    Or if ranks have different ones: each reads and checks them by itself, and all draw by their numbers.
    """
    file, now = folder / "data.json", {"prompts": len(prompts), "sha256": fingerprint(prompts)}
    of_ranks = gather([now])
    if any(other != now for other in of_ranks):
        numbers = ", ".join(str(of["prompts"]) for of in of_ranks)
        raise UserError(
            f"the processes have not found the same problems ({numbers} of them): give all machines the same "
            "files; where a reference answer timed out (\"left out\" above), start again"
        )
    then = json.loads(file.read_text()) if resumed and file.exists() else now
    if then != now:
        raise UserError(
            f"the data has changed since {folder} began ({then['prompts']} prompts then, {len(prompts)} now, "
            "held-out ones included): put it back as it was, or start a new run"
        )
    write_json(file, now)


def write_json(path, value) -> None:
    """Whole or not at all: written beside the file, then renamed. By rank 0."""
    if rank():
        return
    part = Path(f"{path}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)
