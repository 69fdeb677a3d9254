"""Seconds, tokens a second and memory of a step, beside TRL's GRPOTrainer:  python tests/benchmark.py

On the CPU, in float32, with the same models, prompts, samples, lengths, learning rate and verdicts on both
sides, no KL term, one optimizer step a rollout batch. Each run is a process of its own, and they take turns:
grpo.py, TRL, the other scripts, the bare passes, and again. TRL has no counterpart of guide_grpo.py, ppo.py
and nsr.py. It gets an environment in runs/ that sees this one's packages: torch is the same build.

    embedded    assets/countdown, 0.8 M parameters: 32 prompts x 8 samples, 13 tokens a response
    random      20 M parameters, random weights, vocabulary of 32,000: 2 x 8, 256 tokens
    smollm2     SmolLM2-135M, where --smollm2 names the folder that tests/real_model.py has made: 8 x 4, 46
                tokens

    step        from its begin to the next one's; `rest` is advantages, metrics, the log, the sampler's new
                weights; `neither` model nor sampler are verify and rest
    rows        that have a gradient. Ours leaves out those of advantage 0, TRL computes them too; with --coin
                ("embedded, coin") nearly all have one, and both sides do the same work
    memory      the most that the process held until its last step ended, and its verifiers, added up
    start       from the start of the process to its first step
    bare        forward and backward pass of the same number of tokens without padding; sampling's forward
                passes without sampling; tests/benchmark_side.py has them. Its `rest` is AdamW

Below the table the ratios that we want to hold, GOALS, and whether they do. Times are medians over the steps
of all runs; JSON of every run is written to --out. On a machine that does anything else they mean nothing.
--busy has a process beside them that loops on one core: grpo.py's ratio of busy to idle needs both in --out.
--tiny does the same at sizes for a test, without TRL unless --trl-python is given.
"""

import os

ENVIRONMENT = dict(os.environ)  # of every side: `machinery` sets how threads wait, for our scripts alone

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import machinery  # isort: skip  # noqa: F401  how threads wait, set before torch loads

import torch
from real_model import write_problems
from transformers import AutoModelForCausalLM, Qwen2Config

from machinery.command import UserError, run_command

TRL_VERSION = "1.16.0"
COIN, BUSY = "tests.benchmark_side:coin", ", busy"
PROGRAMS = ("grpo", "trl", "guide_grpo", "ppo", "nsr", "bare")  # the order in which they take turns
PHASES = ("rollout", "verify", "logprobs", "update", "rest")


@dataclass
class Case:
    """What is run, the same on all sides."""

    name: str
    model: str
    data: str
    template: str
    prompts: int  # a step
    n: int  # samples a prompt
    max_response: int  # tokens
    usual_response: int  # tokens, by which TRL's rows are packed
    verifier: str = ""  # the built-in ones
    lr: float = 1e-6  # the model stays what it is: every step has the same work
    micro_tokens: int = 16384  # padded tokens of a forward pass, at most


@dataclass
class Goal:
    key: str  # of `ratios`
    what: str
    limit: float
    case: str = ""  # of this one alone; empty: of each
    at_least: bool = False
    beside: str = "grpo"  # the program it is compared with


GOALS = (
    Goal("speed", "step of TRL / step of grpo.py", 3.0, "embedded", at_least=True, beside="trl"),
    Goal("speed", "step of TRL / step of grpo.py", 2.2, "smollm2", at_least=True, beside="trl"),
    Goal("memory", "memory of grpo.py / of TRL", 0.6, beside="trl"),
    Goal("update", "update of grpo.py / bare pass, a token", 1.25, beside="bare"),
    Goal("rollout", "rollout of grpo.py / bare passes, a token", 1.4, beside="bare"),
    Goal("neither", "neither model nor sampler / step of grpo.py", 0.04),
    Goal("start", "start of grpo.py, s", 6.0),
    Goal("busy", "step of grpo.py beside a busy process / idle", 2.5),
)


# ---- what is run -------------------------------------------------------------------------------------------

def random_case(folder: Path, hidden: int, layers: int, vocabulary: int, response: int) -> Case:
    """A Qwen2 with random weights; the tokenizer and the prompts are Countdown's."""
    model = folder / f"random-{vocabulary}"
    end = 256  # the tokenizer's
    config = Qwen2Config(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden,
                         num_hidden_layers=layers, num_attention_heads=hidden // 32,
                         num_key_value_heads=hidden // 64, tie_word_embeddings=True,
                         bos_token_id=None, eos_token_id=end, pad_token_id=end)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(model)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "assets/countdown" / file, model)
    return Case("random", str(model), "countdown", "countdown", 2, 8, response, response, COIN)


def cases_of(names: list[str], folder: Path, smollm2: str, tiny: bool) -> list[Case]:
    found = []
    for name in names:
        if name == "embedded":
            case = Case(name, "assets/countdown", "countdown", "countdown", 32, 8, 48, 13)
        elif name == "random":
            case = random_case(folder, 320, 8, 32_000, 256)
            if tiny:
                case = random_case(folder, 64, 1, 512, 8)
        else:
            train, _ = write_problems(folder, train=800, test=128)
            case = Case(name, str(Path(smollm2).resolve()), str(train), "plain", 8, 4, 46, 46)
        found.append(replace(case, prompts=2, n=4) if tiny else case)
    return found


def grown(case: Case) -> list[Case]:
    """The case at 2 and 4 times the rollouts, and the lengths where the model does not end responses."""
    found = []
    for factor in (2, 4):
        found.append(replace(case, name=f"{case.name}, {factor}x rollouts", prompts=factor * case.prompts))
        if case.name == "random":
            longer = factor * case.max_response
            found.append(replace(case, name=f"{case.name}, {factor}x lengths", max_response=longer,
                                 usual_response=longer))
    return found


# ---- the runs ----------------------------------------------------------------------------------------------

def make_trl(folder: Path) -> str:
    """The Python of an environment with TRL, which is made once. Packages of this one are not installed anew.
    """
    python, made = folder / "bin/python", folder / f"made-{TRL_VERSION}"
    if not made.exists():
        print(f"making {folder}: TRL {TRL_VERSION}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        (seen,) = folder.glob("lib/python*/site-packages")
        here = sysconfig.get_path("purelib")
        (seen / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"trl=={TRL_VERSION}"], check=True)
        made.touch()
    return str(python)


@contextmanager
def busy(wanted: bool):
    """Inside, if `wanted`, another process loops on one core."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def start(python: str, side: str, task: Path, log: Path) -> None:
    """Runs a side to its end. Raises UserError, with what it said last, if it fails."""
    command = [python, "tests/benchmark_side.py", side, str(task)]
    with open(log, "w") as out:
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                              env={**ENVIRONMENT, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        said = "".join(log.read_text().splitlines(keepends=True)[-20:])
        raise UserError(f"{' '.join(command)} ended with {done.returncode}: {said}")


def run(case: Case, program: str, steps: int, python: str, folder: Path) -> dict:
    """What a side has left (benchmark_side.Notes), and the second when it was started."""
    for old in ("run", "out.json"):
        shutil.rmtree(folder / old, ignore_errors=True)
    side = program if program in ("trl", "bare") else "ours"
    task = {"program": program, "case": asdict(case), "steps": steps, "run_dir": str(folder / "run"),
            "out": str(folder / "out.json")}
    (folder / "task.json").write_text(json.dumps(task))
    started = time.time()
    start(python, side, folder / "task.json", folder / f"{program}.log")
    return {"started": started, **json.loads((folder / "out.json").read_text())}


def measured(left: dict, warmup: int) -> dict:
    """Of one run: lists over its steps after the warm-up, memory and start."""
    seconds = np.diff(left["begins"])[warmup:]
    steps = left["steps"][warmup:]
    found = {"step": seconds.tolist(), "memory": left["memory"], "start": left["begins"][0] - left["started"]}
    for phase in PHASES[:-1]:
        found[phase] = [step["seconds"].get(phase, 0.0) for step in steps]
    known = zip(seconds, *(found[phase] for phase in PHASES[:-1]))
    found["rest"] = [float(whole) - sum(parts) for whole, *parts in known]
    for key in ("sampled", "trained", "rows"):
        found[key] = [step[key] for step in steps]
    return found


def take_turns(case: Case, programs: list[str], args, trl_python: str, folder: Path, out) -> dict[str, dict]:
    """Medians of each program, of --repeats runs; each run is a line of the file `out`."""
    runs = {program: [] for program in programs}
    for _ in range(args.repeats):
        for program in programs:
            python = trl_python if program == "trl" else sys.executable
            load = os.getloadavg()[0]  # of a minute; right after another run it is of that one too
            left = run(case, program, args.warmup + args.steps, python, folder)
            found = measured(left, args.warmup)
            runs[program].append(found)
            named = asdict(case) | {"model": Path(case.model).name, "data": Path(case.data).name}
            about = {"case": named, "program": program, "warmup": args.warmup, "load": load}
            out.write(json.dumps({**about, **found, "versions": left["versions"]}) + "\n")
            print(f"{case.name}, {program}: {np.median(found['step']):.3f} s a step", file=sys.stderr)
    return {program: medians(runs[program]) for program in programs}


# ---- the table ---------------------------------------------------------------------------------------------

def medians(runs: list[dict]) -> dict[str, float]:
    """Of all runs of a program in a case: of seconds and tokens a second over the steps of all."""
    found = {}
    for key in ("step", *PHASES, "rows"):
        found[key] = float(np.median(np.concatenate([r[key] for r in runs])))
    for tokens, phase in (("sampled", "rollout"), ("trained", "update")):
        pairs = [pair for r in runs for pair in zip(r[tokens], r[phase]) if pair[0]]  # some had no row
        found[f"{tokens}/s"] = float(np.median([count / seconds for count, seconds in pairs] or [0.0]))
    for key in ("memory", "start"):
        found[key] = float(np.median([r[key] for r in runs]))
    whole = [np.median(r["step"]) for r in runs]
    found["runs"] = len(runs)
    found["low"], found["high"] = float(min(whole)), float(max(whole))
    return found


def read_runs(path: Path) -> dict[tuple[str, str], dict]:
    """Medians of each (case, program) of a file that --out has left."""
    runs = {}
    for line in path.read_text().splitlines():
        found = json.loads(line)
        runs.setdefault((found["case"]["name"], found["program"]), []).append(found)
    return {key: medians(of) for key, of in runs.items()}


HEADER = ("case", "program", "step, s", "of runs", "TRL is", *PHASES, "neither, %", "sampled tokens/s",
          "trained tokens/s", "rows", "memory, MiB", "start, s")


def neither(m: dict) -> float:
    """The share of a step that is neither the model's nor the sampler's."""
    return (m["verify"] + m["rest"]) / m["step"]


def row(results: dict[tuple[str, str], dict], case: str, program: str) -> list[str]:
    """The cells of a line of the table; `results` are medians of (case, program)."""
    m, trl = results[case, program], results.get((case, "trl"))
    times = f"{trl['step'] / m['step']:.2f}x" if trl and program not in ("trl", "bare") else ""
    name = {"trl": "TRL GRPO", "bare": "bare"}.get(program, f"{program}.py")
    return [
        case, name, f"{m['step']:.3f}", f"{m['low']:.3f} to {m['high']:.3f}", times,
        *(f"{m[phase]:.3f}" for phase in PHASES), f"{neither(m):.1%}", f"{m['sampled/s']:.0f}",
        f"{m['trained/s']:.0f}", f"{m['rows']:.0f}", f"{m['memory'] / 2**20:.0f}", f"{m['start']:.1f}",
    ]


GOALS_HEADER = ("goal", "case", "measured", "limit", "holds")


def show(cells) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def ratios(results: dict, case: str) -> dict[str, float]:
    """The values of GOALS that can be had from these results."""
    ours, trl, bare = (results.get((case, program)) for program in ("grpo", "trl", "bare"))
    found = {}
    if ours:
        found |= {"neither": neither(ours), "start": ours["start"]}
    if ours and trl:
        found |= {"speed": trl["step"] / ours["step"], "memory": ours["memory"] / trl["memory"]}
    if ours and bare:
        for phase, tokens in (("update", "trained/s"), ("rollout", "sampled/s")):
            found[phase] = bare[tokens] / max(ours[tokens], 1e-9)
    idle = results.get((case.removesuffix(BUSY), "grpo"))
    if ours and idle and case.endswith(BUSY):
        found["busy"] = ours["step"] / idle["step"]
    return found


def goals(results: dict) -> Iterator[list[str]]:
    """Lines of a second table, as cells: what should hold, what is."""
    for goal, case in product(GOALS, dict.fromkeys(case for case, _ in results)):
        value = ratios(results, case).get(goal.key)
        if value is None or goal.case not in ("", case) or case.endswith(BUSY) != (goal.key == "busy"):
            continue
        holds = "yes" if (value >= goal.limit if goal.at_least else value <= goal.limit) else "no"
        if min(results[case, name]["runs"] for name in ("grpo", goal.beside)) == 1:
            holds += ", in one run"
        limit = f"at {'least' if goal.at_least else 'most'} {goal.limit}"
        yield [goal.what, case, f"{value:.3f}", limit, holds]


# ---- the command -------------------------------------------------------------------------------------------

def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--cases", nargs="+", choices=("embedded", "random", "smollm2"), help="these alone")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="these alone")
    parser.add_argument("--smollm2", default="", help="the folder that tests/real_model.py has made")
    parser.add_argument("--steps", type=int, default=10, help="that are timed, of a run")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program, in turns")
    parser.add_argument("--growth", action="store_true", help="2 and 4 times the rollouts and lengths too, "
                        "of grpo.py, TRL and the bare passes")
    parser.add_argument("--coin", action="store_true", help="verdicts by a coin: every row has a gradient")
    parser.add_argument("--busy", action="store_true", help="a process loops on one core all the time")
    parser.add_argument("--trl-python", default="", help=f"of an environment with TRL {TRL_VERSION} and "
                        "requirements.txt; without it runs/trl is made")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a test")
    parser.add_argument("--out", default="", help="a file for all runs, a line of JSON each")
    args = parser.parse_args()
    names = args.cases or ["embedded", "random", *(["smollm2"] if args.smollm2 else [])]
    if "smollm2" in names and not args.smollm2:
        parser.error("--cases smollm2 needs --smollm2 FOLDER, which python tests/real_model.py makes")
    left_out = {"trl"} if args.tiny and not args.trl_python else set()
    programs = [name for name in PROGRAMS if name in args.programs and name not in left_out]
    trl_python = args.trl_python
    if "trl" in programs and not trl_python:
        trl_python = make_trl(ROOT / "runs/trl")
    with tempfile.TemporaryDirectory() as folder, open(args.out or os.devnull, "w", buffering=1) as out:
        cases = cases_of(names, Path(folder), args.smollm2, args.tiny)
        if args.growth:
            cases = [each for case in cases for each in (case, *grown(case))]
        if args.coin:
            cases = [replace(case, name=f"{case.name}, coin", verifier=COIN) for case in cases]
        show(HEADER)
        show(["---"] * len(HEADER))
        results = {}
        with busy(args.busy):
            for case in cases:
                grows = case.name.removesuffix(", coin") not in names
                own = [name for name in programs if not grows or name in ("grpo", "trl", "bare")]
                case = replace(case, name=f"{case.name}{BUSY}") if args.busy else case
                found = take_turns(case, own, args, trl_python, Path(folder), out)
                results |= {(case.name, program): found[program] for program in own}
                for program in own:
                    show(row(results, case.name, program))
    print()
    show(GOALS_HEADER)
    show(["---"] * len(GOALS_HEADER))
    for cells in goals(results):
        show(cells)


if __name__ == "__main__":
    run_command(main)
