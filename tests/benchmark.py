"""Seconds, tokens a second and memory of a step, beside TRL's GRPOTrainer:  python tests/benchmark.py

On the CPU, in float32, with the same models, prompts, samples, lengths, learning rate and verdicts on both
sides, no KL term, one optimizer step a rollout batch. Each run is a process of its own, and they take turns:
grpo.py, TRL, the other scripts, the bare passes, and again. TRL has no counterpart of guide_grpo.py, ppo.py
and nsr.py. It gets an environment in runs/ that sees this one's packages: torch is the same build.

    embedded    assets/countdown, 0.8 M parameters: 32 prompts x 8 samples, 13 tokens a response
    random      20 M parameters, random weights, vocabulary of 32,000: 2 x 8, 256 tokens
    smollm2     SmolLM2-135M, where --smollm2 names the folder that tests/real_model.py has made: 8 x 4, 46
                tokens

    step        from its begin to the next one's. `other` is what is neither model nor sampler: verdicts,
                advantages, the log, the sampler's new weights
    rows        that have a gradient. Ours leaves out those of advantage 0, TRL computes them too; with --coin
                nearly all have one, and both sides do the same work
    memory      the most that the process held until its last step ended, and its verifiers, added up
    start       from the start of the process to its first step
    bare        forward and backward pass of the same number of tokens without padding; sampling's forward
                passes without sampling; tests/benchmark_side.py has them. Its `other` is AdamW

Below the table the ratios that we want to hold, GOALS, and whether they do. Times are medians over the steps
of all runs; JSON of every run is written to --out. On a machine that does anything else they mean nothing.
--tiny does the same at sizes for a test, without TRL unless --trl-python is given.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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
COIN = "tests.benchmark_side:coin"
PROGRAMS = ("grpo", "trl", "guide_grpo", "ppo", "nsr", "bare")  # the order in which they take turns
PHASES = ("rollout", "logprobs", "update", "other")


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
    verifier: str = ""  # the built-in ones
    lr: float = 1e-6  # the model stays what it is: every step has the same work
    micro_tokens: int = 16384  # padded tokens of a forward pass, at most


@dataclass
class Goal:
    what: str
    case: str  # of this one alone; empty: of each
    limit: float
    at_least: bool = False


GOALS = {
    "speed": [Goal("step of TRL / step of grpo.py", "embedded", 3.0, True),
              Goal("step of TRL / step of grpo.py", "smollm2", 2.2, True)],
    "memory": [Goal("memory of grpo.py / of TRL", "", 0.6)],
    "update": [Goal("update of grpo.py / bare pass, a token", "", 1.25)],
    "rollout": [Goal("rollout of grpo.py / bare passes, a token", "", 1.4)],
    "other": [Goal("other / step of grpo.py", "", 0.04)],
    "start": [Goal("start of grpo.py, s", "", 6.0)],
}


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
    return Case("random", str(model), "countdown", "countdown", 2, 8, response, COIN)


def cases_of(names: list[str], folder: Path, smollm2: str, tiny: bool) -> list[Case]:
    found = []
    for name in names:
        if name == "embedded":
            case = Case(name, "assets/countdown", "countdown", "countdown", 32, 8, 48)
        elif name == "random":
            case = random_case(folder, 320, 8, 32_000, 256)
            if tiny:
                case = random_case(folder, 64, 1, 512, 8)
        else:
            train, _ = write_problems(folder, train=800, test=128)
            case = Case(name, str(Path(smollm2).resolve()), str(train), "plain", 8, 4, 46)
        found.append(replace(case, prompts=2, n=4) if tiny else case)
    return found


def grown(case: Case) -> list[Case]:
    """The case at 2 and 4 times the rollouts, and the lengths where the model does not end responses."""
    found = []
    for factor in (2, 4):
        found.append(replace(case, name=f"{case.name}, {factor}x rollouts", prompts=factor * case.prompts))
        if case.name == "random":
            found.append(replace(case, name=f"{case.name}, {factor}x lengths",
                                 max_response=factor * case.max_response))
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


def start(python: str, side: str, task: Path, log: Path) -> None:
    """Runs a side to its end. Raises UserError, with what it said last, if it fails."""
    command = [python, "tests/benchmark_side.py", side, str(task)]
    with open(log, "w") as out:
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                              env={**os.environ, "HF_HUB_OFFLINE": "1"})
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
    found["other"] = [float(whole) - sum(parts) for whole, *parts in known]
    for key in ("sampled", "trained", "rows"):
        found[key] = [step[key] for step in steps]
    return found


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
    found["low"], found["high"] = float(min(whole)), float(max(whole))
    return found


def table(results: dict[tuple[str, str], dict]) -> Iterator[str]:
    """Lines of Markdown; `results` are medians of (case, program)."""
    yield "| case | program | step, s | of runs | TRL is | rollout | log-probs | update | other | other, % " \
          "| sampled tokens/s | trained tokens/s | rows | memory, MiB | start, s |"
    yield "|---" * 15 + "|"
    for (case, program), m in results.items():
        trl = results.get((case, "trl"))
        times = f"{trl['step'] / m['step']:.2f}x" if trl and program not in ("trl", "bare") else ""
        name = {"trl": "TRL GRPO", "bare": "bare"}.get(program, f"{program}.py")
        seconds = " | ".join(f"{m[phase]:.3f}" for phase in PHASES)
        share = f"{m['other'] / m['step']:.1%}"
        spread = f"{m['low']:.3f} to {m['high']:.3f}"
        yield (f"| {case} | {name} | {m['step']:.3f} | {spread} | {times} | {seconds} | {share} "
               f"| {m['sampled/s']:.0f} | {m['trained/s']:.0f} | {m['rows']:.0f} "
               f"| {m['memory'] / 2**20:.0f} | {m['start']:.1f} |")


def ratios(results: dict, case: str) -> dict[str, float]:
    """The values of GOALS that can be had from these results."""
    ours, trl, bare = (results.get((case, program)) for program in ("grpo", "trl", "bare"))
    found = {}
    if ours:
        found |= {"other": ours["other"] / ours["step"], "start": ours["start"]}
    if ours and trl:
        found |= {"speed": trl["step"] / ours["step"], "memory": ours["memory"] / trl["memory"]}
    if ours and bare:
        for phase, tokens in (("update", "trained/s"), ("rollout", "sampled/s")):
            found[phase] = bare[tokens] / max(ours[tokens], 1e-9)
    return found


def goals(results: dict) -> Iterator[str]:
    """Lines of Markdown: what should hold, what is."""
    yield "| goal | case | measured | limit | |\n|---|---|---|---|---|"
    cases = list(dict.fromkeys(case for case, _ in results))
    for key, wanted in GOALS.items():
        for goal in wanted:
            for case in cases:
                value = ratios(results, case).get(key)
                if value is None or goal.case not in ("", case):
                    continue
                holds = value >= goal.limit if goal.at_least else value <= goal.limit
                limit = f"at {'least' if goal.at_least else 'most'} {goal.limit}"
                yield f"| {goal.what} | {case} | {value:.3f} | {limit} | {'yes' if holds else 'no'} |"


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
    parser.add_argument("--growth", action="store_true", help="2 and 4 times the rollouts and lengths too: grpo.py, TRL, bare")
    parser.add_argument("--coin", action="store_true", help="verdicts by a coin: every row has a gradient")
    parser.add_argument("--trl-python", default="", help=f"of an environment with TRL {TRL_VERSION} and "
                        "requirements.txt; without it runs/trl is made")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a test")
    parser.add_argument("--out", default="", help="a file for all runs, a line of JSON each")
    args = parser.parse_args()
    names = args.cases or ["embedded", "random", *(["smollm2"] if args.smollm2 else [])]
    if "smollm2" in names and not args.smollm2:
        parser.error("--cases smollm2 needs --smollm2 FOLDER, which python tests/real_model.py makes")
    programs = [name for name in PROGRAMS if name in args.programs]
    if args.tiny and not args.trl_python:
        programs.remove("trl")
    trl_python = args.trl_python
    if "trl" in programs and not trl_python:
        trl_python = make_trl(ROOT / "runs/trl")
    with tempfile.TemporaryDirectory() as folder, open(args.out or os.devnull, "w", buffering=1) as out:
        cases = cases_of(names, Path(folder), args.smollm2, args.tiny)
        if args.growth:
            cases = [each for case in cases for each in (case, *grown(case))]
        if args.coin:
            cases = [replace(case, verifier=COIN) for case in cases]
        results = {}
        for case in cases:
            own = [name for name in programs if case.name in names or name in ("grpo", "trl", "bare")]
            runs = {program: [] for program in own}
            for _ in range(args.repeats):
                for program in own:
                    python = trl_python if program == "trl" else sys.executable
                    left = run(case, program, args.warmup + args.steps, python, Path(folder))
                    runs[program].append(measured(left, args.warmup))
                    about = {"case": asdict(case), "program": program, "warmup": args.warmup}
                    out.write(json.dumps({**about, **runs[program][-1], "versions": left["versions"]}) + "\n")
                    seconds = np.median(runs[program][-1]["step"])
                    print(f"{case.name}, {program}: {seconds:.3f} s a step", file=sys.stderr, flush=True)
            results |= {(case.name, program): medians(runs[program]) for program in own}
    print("\n".join(table(results)), end="\n\n")
    print("\n".join(goals(results)))


if __name__ == "__main__":
    run_command(main)
