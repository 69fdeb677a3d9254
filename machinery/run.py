"""A run of a training script: its options, its folder, its log, its checkpoints, its end.

runs/<script>-<model>-<data>-s<seed>-<time>/ holds args.json, data.json, metrics.jsonl, rollouts.jsonl,
checkpoint/, final/, eval_base.json, eval_trained.json and curves.png.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from tqdm import tqdm

from data import TEMPLATES, UserError
from machinery import rollouts
from machinery.checkpoint import load_checkpoint, save_checkpoint
from machinery.command import resume_line, run_command
from machinery.curves import last_pass_at_1
from machinery.folder import check_data, claim, is_finished, release, write_json
from machinery.names import names_of, short_name
from machinery.progress import Progress
from machinery.ranks import gather, rank, total, world
from machinery.tasks import TASKS
from machinery.track import Tracker

WIDE_GAP = 0.01  # nats of engine/k3 that bring a warning; bfloat16 kernels made .001 of a 135 M model
NOTHING_RIGHT = (
    "warning: not one response of 5 steps was right: see rollouts.jsonl, and whether --template and "
    "--verifier fit the data and the model (python data.py --data D --template T shows the prompts); "
    "docs/first-run.md says where to look"
)


# ---- options -----------------------------------------------------------------------------------------------

@dataclass
class TaskArgs:
    """What is learned, and how it is measured: a resumed run keeps it."""

    model: str = ""  # Hugging Face hub id or folder; empty: the embedded one for --data
    data: str = "sea"  # sea, countdown, hub id (openai/gsm8k:main), .jsonl, .csv ..; or several: a,b
    data_split: str = "train"  # of a hub id or an embedded task; a part of any: train[:1000]
    template: Literal["auto", *TEMPLATES] = "auto"  # of the prompt; auto: an embedded task's own, else chat
    max_prompt: int = 1024  # longer prompts are left out and counted, tokens
    max_response: int = 0  # tokens; the papers use 3072; 0: what the embedded model needs, else 1024
    verifier: str = ""  # module:function of your own, (completion, problem) -> bool
    seed: int = 0  # of the order of problems and of training's samples
    sampler: Literal["auto", "transformers", "vllm"] = "auto"  # engine; auto: vllm if there is a GPU for it
    eval_data: str = ""  # held-out problems, a,b too; empty: the test split of --data (a file has none)
    eval_split: str = "test"  # of a hub id or an embedded task
    eval_problems: int = 256  # at most, of each data set
    eval_n: int = 64  # samples a problem, at the start and the end
    eval_temperature: float = 1.0  # the papers report 0.6 with top_p 0.95, see evaluate.py
    run_dir: str = ""  # empty: runs/<script>-<model>-<data>-s<seed>-<time>

    def __post_init__(self):
        named = [TASKS[name] for name in names_of(self.data) if name in TASKS]
        tasks = named or [TASKS["countdown"]]  # whose model also stands in on other data
        needed = max(task.max_response for task in tasks) if named or not self.model else 1024
        self.max_response = self.max_response or needed
        if not self.model and not named and self.template == "auto":
            self.template = tasks[0].template  # the only one that the stand-in knows
        self.model = self.model or tasks[0].model


@dataclass
class MachineArgs:
    """How long it runs, and on what: may change when a run is resumed."""

    resume: str = ""  # a run's folder: go on from its newest checkpoint, with its args
    steps: int = 140  # rollout batches
    eval_every: int = 25  # steps; 0: at the start and the end only
    save_every: int = 50  # steps between checkpoints; 0: when stopped and at the end only
    keep: int = 2  # newest checkpoints kept
    track: Literal["", "tensorboard", "wandb", "trackio"] = ""  # log there too, besides metrics.jsonl
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is one
    gpu_memory: float = 0.4  # vllm: its share of the GPU, weights and cache
    tensor_parallel: int = 1  # vllm: GPUs an engine
    sleep_level: Literal[0, 1, 2] = 0  # vllm between rollouts: 0 stays, 1 drops the cache, 2 the weights too
    micro_tokens: int = 16384  # padded tokens a forward pass: memory only, the gradient does not depend on it
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    workers: int = 2  # verifier processes
    verifier_seconds: float = 3.0  # for a completion, of your own verifier
    verifier_memory: float = 4.0  # GB for each of its processes


@dataclass
class RunArgs(MachineArgs, TaskArgs):
    """What every script is told besides its algorithm. Dataclasses take the fields of the last base first."""


# ---- the run -----------------------------------------------------------------------------------------------

class Run:
    """A run's folder and all that is written there; its time: steps, seconds, signals. Ranks share it."""

    current: ClassVar["Run | None"] = None  # the one of this process

    def __init__(self, args, script: str, prompts=()):
        self.args, self.script = args, Path(script).stem
        self.step: int | None = None  # None: before the first one and after the last one
        self.stop = 0  # the signal to stop after this step
        self.metrics: dict = {}  # of the last step
        given = args.resume or args.run_dir
        folder = Path(given or Path("runs") / self.name())
        task = {key: getattr(args, key) for key in TaskArgs.__dataclass_fields__}
        if rank() == 0:
            claim(folder, task, resumed=bool(args.resume))
        check_data(folder, prompts, resumed=bool(args.resume))
        self.tracker = Tracker("" if rank() else args.track, folder, asdict(args))
        write_json(folder / "args.json", {"script": self.script, **asdict(args), "resume": ""})
        self.folder = gather([folder])[0]  # rank 0's, which has its clock in its name
        Run.current = self
        print(f"run folder: {self.folder}")
        torch.manual_seed(args.seed)
        signals = signal.SIGINT, signal.SIGTERM
        self.handlers = {number: signal.signal(number, self._on_signal) for number in signals}

    def name(self) -> str:
        parts = [self.script]
        for what in ([self.args.model], names_of(self.args.data)):
            parts.append("+".join(map(short_name, what)))
        return "-".join([*parts, f"s{self.args.seed}", time.strftime("%Y%m%d-%H%M%S")])

    def steps(self, **parts):
        """The numbers of the steps left, each with a clock. `parts`: a checkpoint's modules and optimizers.

        Goes on from the newest checkpoint of --resume, saves one every --save-every steps and at the end.
        After SIGINT or SIGTERM the step in progress is finished and saved, and the script ends.
        """
        start = load_checkpoint(self.folder, parts) if self.args.resume else 0
        if start < self.args.steps and rank() == 0:
            (self.folder / "curves.png").unlink(missing_ok=True)  # a run that has it is finished
            if (trained := self.folder / "eval_trained.json").exists():  # and is given more steps now
                trained.rename(self.folder / f"eval_step{start}.json")
        progress = Progress("step", start, self.args.steps)
        progress.at(start, {} if rank() else last_pass_at_1(self.folder))
        warned = solved = False
        for step in range(start, self.args.steps):
            self.step, self.clock = step, Clock()
            yield step
            progress.at(step + 1, self.metrics)
            if not warned and rank() == 0 and self.metrics.get("engine/k3", 0) > WIDE_GAP:
                tqdm.write(gap_warning(self.metrics, self.args.tis_cap), file=sys.stderr)
                warned = True
            solved = solved or self.metrics["rollout/reward"] > 0
            if not solved and step == start + 4 and rank() == 0:
                tqdm.write(NOTHING_RIGHT, file=sys.stderr)
            stop = self._stop_of_any_rank()
            if stop or (self.args.save_every and (step + 1) % self.args.save_every == 0):
                save_checkpoint(self.folder, step + 1, parts, self.args.keep)
            if stop:
                progress.close()
                self.tracker.close()
                name = signal.Signals(stop).name
                print(f"\nstopped by {name} after step {step + 1}; go on with: {resume_line(self.folder)}")
                sys.exit(0 if stop == signal.SIGTERM else 130)
        progress.close()
        save_checkpoint(self.folder, max(start, self.args.steps), parts, self.args.keep)
        self.step = None
        if stop := self._stop_of_any_rank():  # it came during this save
            self._on_signal(stop, None)

    def _stop_of_any_rank(self) -> int:
        return next(iter(gather([self.stop] if self.stop else [])), 0)

    def _on_signal(self, number, _) -> None:
        if self.step is None:
            print(f"\nstopped outside of a step, nothing is lost; go on with: {resume_line(self.folder)}")
            sys.exit(143 if number == signal.SIGTERM else 130)
        if not self.stop and rank() == 0:  # print() may be at work already
            again = b"; once more ends at once" if world() == 1 else b""
            os.write(2, b"\nfinishing this step, then saving" + again + b"\n")
        self.stop = number
        # Under torchrun it comes twice: from a scheduler that sends it to all processes, and passed on.
        if world() == 1:
            signal.signal(number, signal.SIG_DFL)

    def log(self, metrics: dict, groups: list[list], tokenizer) -> None:
        """A line to metrics.jsonl, and some whole groups to rollouts.jsonl. All ranks call it."""
        metrics = {"step": self.step + 1, **metrics, **self.clock.metrics()}
        self.metrics = {key: v if isinstance(v, int) else float(f"{v:.6g}") for key, v in metrics.items()}
        rows = rollouts.lines(groups, tokenizer)
        if rank():
            return
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(self.metrics) + "\n")
        with open(self.folder / "rollouts.jsonl", "a") as file:
            for row in rows:
                file.write(json.dumps({"step": self.step + 1, **row}) + "\n")
        self.tracker.log(self.metrics)

    def close(self) -> None:
        """Signals are again what they were before, and the folder is free."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.tracker.close()
        release(self.folder)
        Run.current = None


def gap_warning(metrics: dict, tis_cap: float) -> str:
    mean, k3 = metrics["engine/gap_mean"], metrics["engine/k3"]
    apart = f"{mean:.2g} nats a token apart (engine/k3 {k3:.2g} > {WIDE_GAP})"
    weigh = "--tis-cap corrects up to its cap" if tis_cap else "weigh it with --tis-cap 2, in a new run"
    return (f"warning: in step {metrics['step']} the log-probs of sampler and trainer are {apart}, "
            f"which biases the gradient: {weigh}; --sampler transformers shows whether the engine "
            "is the cause")


# ---- the command line --------------------------------------------------------------------------------------

def launch(main, Args) -> None:
    """Runs `main(args)` with the args of the command line, which go on from those of the run to resume."""
    run_command(lambda: start(main, Args))


def start(main, Args) -> None:
    import tyro

    saved = resumed_args(Args)
    default = Args(**saved) if saved else tyro.MISSING_NONPROP
    args = tyro.cli(Args, default=default, description=sys.modules["__main__"].__doc__)
    changed = []
    for key, value in saved.items():
        if key not in MachineArgs.__dataclass_fields__ and getattr(args, key) != value:
            changed.append(f"--{key.replace('_', '-')} was {value!r}")
    if changed:
        raise UserError(
            f"a resumed run keeps its args: {', '.join(changed)}; leave them out, or start a new run"
        )
    if saved and is_finished(Path(args.resume), args.steps):
        if not rank():
            more = resume_line(Path(args.resume), "--steps", "N")
            print(f"nothing to do: {args.resume} has its {args.steps} steps; more with: {more}")
        return
    try:
        main(args)
    except Exception as error:
        if Run.current and Run.current.metrics and "--resume" not in str(error):
            error.add_note(f"go on with: {resume_line(Run.current.folder)}")
        raise


def resumed_args(Args) -> dict:
    """The args of the run that --resume names; none without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", default="")
    folder, script = parser.parse_known_args()[0].resume, Path(sys.argv[0]).stem
    if not folder:
        return {}
    file = Path(folder) / "args.json"
    if not file.is_file():
        raise UserError(f"--resume {folder}: there is no {file}; give the folder of a run")
    saved = json.loads(file.read_text())
    of = saved.pop("script", None)
    if of != script:
        raise UserError(f"--resume {folder} is a run of {of}.py, not of {script}.py")
    unknown = saved.keys() ^ Args.__dataclass_fields__.keys()
    if unknown:
        raise UserError(
            f"--resume {folder} is of another version of {script}.py, with other args: {sorted(unknown)}"
        )
    return {**saved, "resume": folder}


# ---- what a step measures ----------------------------------------------------------------------------------

class Clock:
    """Seconds by phase: clock("verify") adds the time since the last call to phase verify. Tokens too."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.tokens: dict[str, int] = defaultdict(int)
        self.last = time.perf_counter()

    def __call__(self, phase: str, tokens: int = 0) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what was only queued belongs to the phase that queued it
        now = time.perf_counter()
        self.seconds[phase] += now - self.last
        self.last = now
        if tokens:
            self.tokens[phase] += tokens

    def metrics(self) -> dict[str, float]:
        """Seconds of each phase, and tokens a second of one process in those that have told their tokens."""
        speed = {f"perf/{phase}_tokens_per_s": n / self.seconds[phase] for phase, n in self.tokens.items()}
        return {f"time/{phase}": seconds for phase, seconds in self.seconds.items()} | speed


class TokenMeans:
    """Means over the response tokens that a step trains on, of all micro-batches and ranks."""

    def __init__(self):
        self.sums: dict = defaultdict(float)
        self.tokens: dict = defaultdict(int)  # that each sum is of
        self.gap_max = self.grad_norm = 0.0
        self.updates = 0

    @torch.no_grad()
    def add(self, loss, mask_NT, old_logp_NT, engine_logp_NT, rows=(), **values_NT) -> None:
        """One micro-batch: its share of the loss, each token's two log-probs at sampling, what to average.

        `rows` keep, as `trained`, what rollouts.jsonl shows of their tokens.
        """
        if not mask_NT.any():  # a rank out of work
            return
        # Double: exp(2 gap) of a far one is beyond float32.
        gap_NT = (old_logp_NT - engine_logp_NT).double() * mask_NT
        self.gap_max = max(self.gap_max, gap_NT.abs().max().item())
        gaps_NT = {"engine/gap_mean": gap_NT.abs(), "engine/k3": gap_NT.expm1() - gap_NT,
                   "weight": gap_NT.exp(), "weight2": (2 * gap_NT).exp()}
        self.add_values(mask_NT, **values_NT)
        self._add(mask_NT, gaps_NT)
        self.sums["loss"] += loss
        rollouts.keep(rows, old_logp_NT, values_NT)

    @torch.no_grad()
    def add_values(self, mask_NT, **values_NT) -> None:
        """Averaged over these tokens: a value named critic_x is logged as critic/x, any other as train/x."""
        named_NT = {}
        for key, value_NT in values_NT.items():
            named_NT[key.replace("_", "/", 1) if key.startswith("critic_") else f"train/{key}"] = value_NT
        self._add(mask_NT, named_NT)

    def _add(self, mask_NT, values_NT: dict) -> None:
        tokens = mask_NT.sum()
        for key, value_NT in values_NT.items():
            self.sums[key] += (value_NT * mask_NT).sum(dtype=torch.float64)
            self.tokens[key] += tokens

    def add_update(self, grad_norm: float) -> None:
        self.grad_norm += grad_norm
        self.updates += 1

    def metrics(self) -> dict[str, float]:
        """train/loss and train/grad_norm are means over optimizer steps, 0 without any; the rest over tokens.
        """
        gap_max, updates = max(gather([self.gap_max])), max(1, self.updates)
        sums = total({key: float(value) for key, value in self.sums.items()})
        tokens = total({key: int(n) for key, n in self.tokens.items()})
        loss = sums.pop("loss", 0.0) * (self.updates > 0)
        found = {"train/loss": loss / updates, "train/grad_norm": self.grad_norm / updates,
                 "train/updates": self.updates}
        means = {key: value / tokens[key] for key, value in sums.items()}
        if means:
            ess = means.pop("weight") ** 2 / means.pop("weight2")
            found |= {**means, "engine/gap_max": gap_max, "engine/ess": ess}
        return found
