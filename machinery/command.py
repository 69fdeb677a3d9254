"""How a command was started, as a line for a shell, and how it ends. Imports nothing of ours and no torch."""

import errno
import os
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Something the user can mend: a command prints the message as one line and exits with code 1."""


def run_command(main) -> None:
    """`main()` of a program, with an end that a shell and its user understand.

    UserError and OSError (a missing model, a full disk): one line on standard error, exit code 1. Ctrl-C:
    quietly, 130. Nobody reads what it prints any more, as in `| head`: quietly, 141. The rest is a bug and
    keeps its traceback.
    """
    if hasattr(sys.stdout, "reconfigure"):  # not a notebook's
        sys.stdout.reconfigure(line_buffering=True)  # in a file too: what is printed is to be read at once
    try:
        try:
            main()
        finally:
            print(end="", flush=True)  # here, for Python itself would complain of it at the very end
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still in the buffer
            sys.exit(141)
        if int(os.environ.get("RANK", 0)):  # rank 0 says the same most often, and torchrun ends this process
            time.sleep(15)
        said = " ".join(str(error).split("\n")[:3])
        sys.exit("; ".join([f"error: {said}", *getattr(error, "__notes__", [])]))


def reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads: another pipe that breaks is no quiet end."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def command_line(*options) -> str:
    """This script as it was started, with other `options`: can be pasted into a shell, in the same folder."""
    home, processes = Path(sys.executable).parent, int(os.environ.get("WORLD_SIZE", 1))
    python = shutil.which("python")  # may be none, or of another environment
    same = python and Path(python).parent == home and os.path.samefile(python, sys.executable)
    starter = ["python" if same else sys.executable]
    if processes > 1:
        torchrun = shutil.which("torchrun")
        found = torchrun and Path(torchrun).parent == home
        starter = ["torchrun"] if found else [*starter, "-m", "torch.distributed.run"]
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if processes > here:
            starter += ["--nnodes", str(processes // here), "--rdzv-endpoint", "HOST:PORT"]
        starter += ["--nproc-per-node", str(here), "--shutdown-timeout", "3600", "--"]
    return shlex.join([*starter, sys.argv[0], *map(str, options)])


def resume_line(run: Path, *options) -> str:
    """The command that goes on with a run of this script."""
    name = f"./{run}" if str(run).startswith("-") else run  # not an option
    return command_line("--resume", name, *options)


@contextmanager
def stoppable():
    """Ctrl-C and SIGTERM end what is inside, in one line that says how to go on."""

    def stop(number, _):
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as stopped:
        number = stopped.args[0] if stopped.args else signal.SIGINT  # some library's own
        print(f"\nstopped by {signal.Signals(number).name}, what is done is kept; "
              f"go on with: {command_line(*sys.argv[1:])}")
        sys.exit(128 + number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_writable(option: str, path: Path) -> None:
    """Makes the folder of `path`. Raises UserError if no file can be written there."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror}") from None
