"""--track: the metrics of a run in tensorboard, wandb or trackio, besides metrics.jsonl.

A service beside the training: what keeps it from starting is said before the first step, and when it fails
later the training goes on.
"""

import sys
import uuid
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from machinery.command import UserError


class Tracker:
    """Writes metrics to the service `name`; to none if that is empty."""

    def __init__(self, name: str, folder: Path, config: dict):
        """`folder` is the run's, `config` its args. Raises UserError if the service cannot be used."""
        self.name, self.failed = name, False
        self.write, self.finish = _nothing, _nothing
        if name == "tensorboard":
            self.write, self.finish = _tensorboard(folder)
        elif name:
            self.write, self.finish = _hosted(name, folder, config)

    def log(self, metrics: dict) -> None:
        """Metrics with their step. The first failure is a warning, later ones are silent."""
        self._try(self.write, metrics)

    def close(self) -> None:
        self._try(self.finish)

    def _try(self, call, *args) -> None:
        try:
            call(*args)
        except Exception as error:  # of any kind: networks, disks, the service's own
            if not self.failed:
                tqdm.write(f"warning: --track {self.name} fails ({_first_line(error)}): training goes on, "
                           "metrics.jsonl has all metrics", file=sys.stderr)
            self.failed = True


def _nothing(*_) -> None:
    pass


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--track tensorboard: pip install tensorboard, or leave it out") from None
    writer = SummaryWriter(str(folder))

    def write(metrics):
        for key, value in metrics.items():
            writer.add_scalar(key, value, metrics["step"])
        writer.flush()

    return write, writer.close


def _hosted(name: str, folder: Path, config: dict):
    """wandb and trackio have one interface, but only wandb knows a run by its id, trackio by its name."""
    try:
        module = import_module(name)
    except Exception as error:  # not there, or not fit for what else is installed
        said = _first_line(error)
        raise UserError(f"--track {name}: pip install {name}, or leave it out ({said})") from None
    if not hasattr(module, "init"):  # Python takes any folder of that name for a package, old logs too
        where = next(iter(getattr(module, "__path__", [])), module.__name__)
        raise UserError(f"--track {name}: pip install {name}, or leave it out ({where} is not that package)")
    own = run_id(folder)
    options = {"name": folder.name, "id": own} if name == "wandb" else {"name": f"{folder.name}-{own}"}
    try:
        module.init(project="cleanrlvr", config=config, resume="allow", **options)
    except Exception as error:  # no account, no network: now the user is there to mend it
        said = _first_line(error)
        raise UserError(f"--track {name} does not start ({said}): mend that, or leave it out") from error

    def write(metrics):
        values = {key: value for key, value in metrics.items() if key != "step"}  # a word of their own
        module.log(values, step=metrics["step"])

    return write, lambda: module.finish()


def run_id(folder: Path) -> str:
    """The same at each start of a run: one that is resumed is one run for the service too."""
    file = folder / "track_id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12])  # does not draw from the random states of the training
    return file.read_text()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
