"""The study: every method on both embedded tasks, several seeds each, controls at equal steps.

    python docs/study.py                 # trains what is missing; a stopped study goes on where it was
    python docs/study.py --only sea --jobs 14

Each method leaves one small file, docs/study/TASK/METHOD.json: its command, and of every seed how many of
the samples of each held-out problem are right. `python docs/tables.py` makes docs/results.md of them.
A seed is trained again where the file has another command. One thread a run, --jobs runs at a time.

The base is sampled with seeds from 1000 on, every trained model with the seed 1 of a run's last evaluation.
The NSR family has the entropy bonus that nsr.py has by default, 1e-4; "no-bonus" is without.
"""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
from machinery import tasks
from machinery.compare import read_result

RUNS = HOME / "runs/study"  # what training leaves; may be deleted when the study is done
PIECES = range(1000, 1004)  # seeds of the base's evaluations, which add up to n = 1024; v1, v3: the first
KEPT = """step eval/pass@1 eval/pass@8 eval/entropy rollout/reward rollout/entropy guide/failed guide/reward
          guide/share guide/ratio guide/low_ratio guide/gamma train/rows train/updates""".split()

# One optimizer step at most a rollout batch, of 32 x 8 samples. In the end 64 or 256 samples a problem.
POOLS = {
    "sea": "--data sea --steps 140 --eval-n 64 --eval-problems 400",
    "countdown": "--data countdown --steps 200 --eval-n 256 --eval-problems 256",
    "sea-v1": "--data sea:v1 --steps 140 --eval-n 64 --eval-problems 400",
    "sea-v3": "--data sea:v3 --steps 140 --eval-n 64 --eval-problems 400",
}
EVALUATED = {  # the same held-out problems and sampling
    "sea": "--data sea --limit 400 --max-tokens 24",
    "countdown": "--data countdown --limit 256 --max-tokens 16",
    "sea-v1": "--data sea:v1 --limit 400 --max-tokens 24",
    "sea-v3": "--data sea:v3 --limit 400 --max-tokens 24",
}

GROUPED = {
    "grpo": "grpo.py",
    "guide": "guide_grpo.py",
    "control": "guide_grpo.py --guide-with nothing",
}
CORE = {
    **GROUPED,
    "replace": "guide_grpo.py --guided-group replace",
    "ppo": "ppo.py",
    "guide-ppo": "guide_ppo.py",
    "control-ppo": "guide_ppo.py --guide-with nothing",
    "psr": "nsr.py --reinforce psr --mini-batches 1 --lr 1e-4",
    "nsr": "nsr.py --reinforce nsr --mini-batches 1 --lr 1e-4",
    "w-reinforce": "nsr.py --mini-batches 1 --lr 1e-4",
}
FAMILY = {name: CORE[name] for name in ("psr", "nsr", "w-reinforce")}
LAMBDAS = {f"lambda-{lam}": f"nsr.py --lam {lam} --mini-batches 1 --lr 1e-4" for lam in (0.03, 0.3, 1)}
# As many samples as the control draws in all, spent on more prompts.
SEA_MORE, COUNTDOWN_MORE = {"grpo-more": "grpo.py --prompts 42"}, {"grpo-44": "grpo.py --prompts 44"}
NO_BONUS = {"nsr-no-bonus": "nsr.py --reinforce nsr --mini-batches 1 --lr 1e-4 --entropy-coef 0"}
SLOW = {  # the search for settings in which NSR is level with GRPO: a third of the learning rate
    "grpo-3e-5": "grpo.py --lr 3e-5",
    "psr-3e-5": "nsr.py --reinforce psr --mini-batches 1 --lr 3e-5",
    "nsr-3e-5": "nsr.py --reinforce nsr --mini-batches 1 --lr 3e-5",
    "w-reinforce-3e-5": "nsr.py --mini-batches 1 --lr 3e-5",
}
FEWER = {  # the search goes on: less than half of the steps
    "grpo-60": "grpo.py --steps 60",
    "nsr-60": "nsr.py --reinforce nsr --mini-batches 1 --lr 1e-4 --steps 60",
    "w-reinforce-60": "nsr.py --mini-batches 1 --lr 1e-4 --steps 60",
}
UPDATES = {  # the authors' number of updates a rollout batch, at our learning rate for it
    "grpo-4x": "grpo.py --mini-batches 4 --lr 3e-5",
    "psr-4x": "nsr.py --reinforce psr",
    "nsr-4x": "nsr.py --reinforce nsr",
    "w-reinforce-4x": "nsr.py",
}
RATIOS = {
    "ratio-none": "guide_grpo.py --guide-ratio none",
    "ratio-sequence": "guide_grpo.py --guide-ratio sequence",
    "ratio-clip": "guide_grpo.py --guide-ratio clip",
    "ratio-naive": "guide_grpo.py --guide-ratio naive",
    "gamma-0.1": "guide_grpo.py --guide-gamma 0.1",
    "threshold-0.25": "guide_grpo.py --guide-threshold 0.25",
    "threshold-0.25-control": "guide_grpo.py --guide-threshold 0.25 --guide-with nothing",
    "threshold-0.25-replace": "guide_grpo.py --guide-threshold 0.25 --guided-group replace",
}
HINTS = {
    "hints-wrong": "guide_grpo.py --data runs/study/wrong.jsonl",
    "hints-empty": "guide_grpo.py --data runs/study/empty.jsonl",
}
MAIN = [("sea", CORE), ("countdown", CORE), ("sea-v1", {**GROUPED, **FAMILY}), ("sea-v3", GROUPED)]
TWO_RATIOS = {name: RATIOS[name] for name in ("ratio-none", "ratio-naive")}
THREE_SLOW = {name: SLOW[name] for name in ("grpo-3e-5", "nsr-3e-5", "w-reinforce-3e-5")}
MORE = [("sea", {**RATIOS, **HINTS, **SEA_MORE}), ("sea-v1", {**THREE_SLOW, **FEWER}),
        ("countdown", {**LAMBDAS, **SLOW, **UPDATES, **TWO_RATIOS})]
KEY = [("sea", GROUPED), ("countdown", {"grpo": "grpo.py", **FAMILY})]
# Those on which a sentence stands. PPO and `replace` on Countdown and PSR at v1 have one seed.
V1 = {**GROUPED, "nsr": CORE["nsr"], "w-reinforce": CORE["w-reinforce"]}
TWO_SLOW = {name: SLOW[name] for name in ("grpo-3e-5", "nsr-3e-5")}
LIES = {"hints-wrong": HINTS["hints-wrong"]}
DECIDING = [("countdown", {**TWO_SLOW, **NO_BONUS, **COUNTDOWN_MORE, **GROUPED}),
            ("sea", {**TWO_RATIOS, **LIES, **CORE}), ("sea-v1", V1), ("sea-v3", GROUPED)]
# In this order: five seeds of KEY, three of DECIDING, one of the rest.
PLAN = [(MAIN, 0), (KEY, 1), (KEY, 2), (MORE, 0), (KEY, 3), (KEY, 4), (DECIDING, 0), (DECIDING, 1),
        (DECIDING, 2)]


# ---- the data of two ablations -----------------------------------------------------------------------------

def write_hints() -> None:
    """Copies of sea's training problems: with hints that lie, odd words as on land, and that say nothing."""
    common = {"gets": "-", "wins": "-", "loses": "+", "spends": "+", "times": "+", "copies": "-"}
    lies_at_sea, lies_on_land = common | tasks.LAND_ODD, common | tasks.SEA_ODD
    for name in ("wrong", "empty"):
        lines = []
        for row in tasks.sea("train"):
            row = {key: row[key] for key in ("id", "question", "answer", "hint", "meta")}
            meta = row.pop("meta")
            if name == "empty":
                row["hint"] = "Count every step."
            else:
                told = {hint.split()[0] for hint in row["hint"].split(", ")}
                wrong = lies_at_sea if meta["at_sea"] else lies_on_land
                row["hint"] = tasks.sea_hint({word: wrong[word] for word in meta["words"] if word in told})
            lines.append(json.dumps(row))
        write(RUNS / f"{name}.jsonl", "\n".join(lines) + "\n")


# ---- the runs ----------------------------------------------------------------------------------------------

def command_of(task: str, method: str, options: str) -> str:
    """The command of a method, without its seed."""
    if method in ("base", "hinted"):
        return f"{options} --model assets/{task.partition('-')[0]} {EVALUATED[task]}"
    pool = POOLS[task]
    if "--steps" in options:
        pool = re.sub(r"--steps \d+ ", "", pool)
    if "--data" in options:  # own hints
        pool = pool.replace("--data", "--model assets/sea --max-response 24 --template plain --eval-data")
    return f"{options} {pool} --eval-every 20 --save-every 0"


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def call(log: Path, command: list[str]) -> None:
    """Raises CalledProcessError if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # so small: on the CPU
    with open(log, "w") as file:
        output = {"stdout": file, "stderr": file}
        subprocess.run([sys.executable, *command], cwd=HOME, env=environment, check=True, **output)


class Study:
    """The files of the results, which grow by a seed at a time."""

    def __init__(self, out: Path):
        self.out, self.lock = out, Lock()

    def has(self, task: str, method: str, seed: int, command: str) -> bool:
        path = self.out / task / f"{method}.json"
        if not path.exists():
            return False
        known = json.loads(path.read_text())
        return known["command"] == command and str(seed) in known["seeds"]

    def add(self, task: str, method: str, seed: int, command: str, result: dict, metrics: list[dict]) -> None:
        ids = [row["id"] for row in result["problems"]]
        made = {"machine": platform.machine(), **result["versions"]}
        n, c = result["sampling"]["n"], [row["c"] for row in result["problems"]]
        record = {"versions": made, "n": n, "c": c}
        if metrics:
            # A step's evaluation comes before its update: of "step" 21, after 20 updates.
            every = [m for m in metrics if "eval/pass@1" in m or m is metrics[-1]]
            for key in KEPT:
                if any(key in m for m in every):
                    record[key] = [m.get(key) for m in every]
            record |= {"sampled": 0, "updates": 0}
            for m in metrics:
                record["sampled"] += sum(int(m[key]) for key in m if key.startswith("verify/"))
                record["updates"] += int(m["train/updates"])
        with self.lock:
            path = self.out / task / f"{method}.json"
            known = json.loads(path.read_text()) if path.exists() else {}
            if known.get("command") != command:
                known = {"command": command, "seeds": {}}
            seeds = known["seeds"] | {str(seed): record}
            known["seeds"] = {key: seeds[key] for key in sorted(seeds, key=int)}
            path.parent.mkdir(parents=True, exist_ok=True)
            problems = self.out / task / "problems.json"
            if not problems.exists():
                write(problems, json.dumps(ids, indent=0))
            assert json.loads(problems.read_text()) == ids, f"{command}: other problems than in {problems}"
            write(path, compact(known))

    def make(self, task: str, method: str, options: str, seed: int) -> None:
        """Trains or evaluates one seed of a method, unless it is there."""
        command = command_of(task, method, options)
        folder = RUNS / f"{task}-{method}-s{seed}"
        needed = (method, seed) == ("base", PIECES[0]) and not (folder / "result.json").exists()
        if self.has(task, method, seed, command) and not needed:  # runs start with that one
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if method in ("base", "hinted"):
            result = folder / "result.json"
            call(folder / "log", [*command.split(), "--seed", str(seed), "--out", str(result)])
            self.add(task, method, seed, command, read_result(result), [])
        else:
            # What a run would start with, which all runs share.
            shutil.copy(RUNS / f"{task}-base-s{PIECES[0]}/result.json", folder / "eval_base.json")
            call(folder / "log", [*command.split(), "--seed", str(seed), "--run-dir", str(folder)])
            metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            self.add(task, method, seed, command, read_result(folder / "eval_trained.json"), metrics)
        print(f"{task} {method} seed {seed}", flush=True)


def compact(record: dict) -> str:
    """JSON with a line for each list of numbers, not one for each number."""
    lines = []
    for seed, values in record["seeds"].items():
        inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        lines.append(f" {json.dumps(seed)}: {{\n{inner}}}")
    head = {key: value for key, value in record.items() if key != "seeds"}
    return json.dumps(head, indent=1)[:-2] + ',\n "seeds": {\n' + ",\n".join(lines) + "}}\n"


@dataclass
class Args:
    only: str = ""  # tasks or task/method, with commas between; empty: all
    jobs: int = 2  # runs at the same time
    out: str = "docs/study"  # folder of the results


def plan(wanted: set[str]) -> list[tuple[str, str, str, int]]:
    """(task, method, its options, seed) of every run, in their order; the base's evaluations are cheap."""
    sampled, jobs = "evaluate.py --n 256 --temperature 1 --top-p 1", []
    for task in POOLS:
        pieces = PIECES if task in ("sea", "countdown") else PIECES[:1]
        jobs += [(task, "base", sampled, piece) for piece in pieces]
        if len(pieces) > 1:
            jobs.append((task, "hinted", f"{sampled} --hinted", 2000))
    for of_tasks, seed in PLAN:
        for task, methods in of_tasks:
            jobs += [(task, method, options, seed) for method, options in methods.items()]
    jobs = list(dict.fromkeys(jobs))  # a part of PLAN may be in another part
    return [job for job in jobs if not wanted or wanted & {job[0], f"{job[0]}/{job[1]}"}]


def main(args: Args) -> None:
    RUNS.mkdir(parents=True, exist_ok=True)
    with open(RUNS / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"error: another study is at work in {RUNS}: wait for it, or stop it")
        write_hints()
        study, jobs = Study(HOME / args.out), plan(set(args.only.split(",")) - {""})
        pool = ThreadPoolExecutor(args.jobs)
        try:
            # What a task's runs begin with comes first.
            first = [plan({f"{task}/base"})[0] for task in dict.fromkeys(job[0] for job in jobs)]
            list(pool.map(study.make, *zip(*first)))
            waiting = [pool.submit(study.make, *job) for job in jobs]
            failed = [made.exception() for made in waiting if made.exception()]
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C ends the runs in progress, and none begins
    for error in failed:
        print(f"failed: {error!r}")
    if failed:
        sys.exit("a run's own words are in its folder under runs/study; start the study again to go on")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
