"""Whole runs of every script: what they leave, that a resumed run is the same, what mistakes lead to."""

import fcntl
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

import data
import grpo
import verify
from data import UserError
from machinery import run as machinery_run
from machinery.checkpoint import checkpoints, load_checkpoint, save_checkpoint, save_model, tensors
from machinery.command import command_line, resume_line, run_command
from machinery.folder import check_data
from machinery.labelled import read_completions
from machinery.ranges import check_ranges
from machinery.run import Run, launch
from machinery.track import Tracker
from tests.started import start

SCRIPTS = ["grpo", "guide_grpo", "nsr", "ppo", "guide_ppo"]
SMALL = {"data": "countdown", "data_split": "train[:64]", "steps": 2, "prompts": 4, "n": 4, "seed": 3,
         "eval_problems": 8, "eval_n": 8, "eval_every": 1, "save_every": 1, "device": "cpu"}


def command(script: str, **args) -> list[str]:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in args.items()]
    return [sys.executable, f"{script}.py", *flags]


def train(script: str, **args) -> Path:
    """The same in this process, which saves the seconds of the imports."""
    module = import_module(script)
    resumed = dict(SMALL)
    if "resume" in args:
        resumed = json.loads((Path(args["resume"]) / "args.json").read_text())
    resumed.pop("script", None)
    return module.main(module.Args(**{**resumed, **args}))


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "final/model.safetensors")


def untimed(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if not key.startswith(("time/", "perf/"))}


def assert_same_run(a: Path, b: Path) -> None:
    assert all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert untimed(one) == untimed(other)
    assert (a / "rollouts.jsonl").read_text() == (b / "rollouts.jsonl").read_text()


@pytest.mark.parametrize("script", [pytest.param("grpo", marks=pytest.mark.draws), *SCRIPTS[1:]])
def test_two_steps_from_the_command_line(script, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    args = {**SMALL, "run_dir": run_dir, **({"critic_warmup": 1} if "ppo" in script else {})}
    module = import_module(script)
    monkeypatch.setattr(sys, "argv", command(script, **args)[1:])
    launch(module.main, module.Args)
    out = capsys.readouterr().out
    assert "pass@8" in out and "self-distillation" in out and out.splitlines()[-1].startswith("done: ")
    left = ["args.json", "checkpoint", "curves.png", "data.json", "eval_base.json", "eval_trained.json",
            "final", "metrics.jsonl", "rollouts.jsonl"]
    assert sorted(p.name for p in run_dir.iterdir()) == left
    assert [m["step"] for m in metrics(run_dir)] == [1, 2]
    for m in metrics(run_dir):
        scored = sum(m[f"verify/{why}"] for why in ("right", "wrong", "no_answer", "timeout", "error"))
        assert scored == 16 + 16 * m.get("guide/failed", 0)
        alone = "ppo" in script and m["step"] == 1  # the critic's step
        assert all(math.isfinite(v) for v in m.values())
        assert m["train/lr"] == (0 if alone else import_module(script).Args().lr)
        assert m["engine/gap_max"] < 1e-4  # old log-probs are the sampler's
    before = load_file("assets/countdown/model.safetensors")
    assert any(not torch.equal(before[k], v) for k, v in weights(run_dir).items())
    rows = [json.loads(line) for line in (run_dir / "rollouts.jsonl").read_text().splitlines()]
    assert {"step", "prompt", "sampled_from", "completion", "finished", "guided"} <= rows[0].keys()
    assert [row["step"] for row in rows if row["group"] == 0 and not row["guided"]] == [1] * 4 + [2] * 4
    assert any("ratio" in row for row in rows)
    for row in rows:
        assert "".join(row["tokens"]) == row["response"]
        for rho, weight in zip(row.get("ratio", []), row.get("weight", [])):
            expected = rho
            if row["guided"]:  # the derivative of rho / (rho + gamma) with respect to log rho
                gamma = metrics(run_dir)[row["step"] - 1]["guide/gamma"]
                expected = rho * gamma / (rho + gamma) ** 2
            assert weight == pytest.approx(expected, rel=0.01) or (weight == 0 and not row["guided"])
    again = read_completions(str(run_dir / "rollouts.jsonl"), data.load("countdown"))
    for rollout, (_, completion, problem) in zip(rows, again, strict=True):  # it shows what was judged
        assert verify.countdown_verdict(completion, problem).why == rollout["verdict"]


def test_help_shows_the_header_and_every_comment(tmp_path):
    done = start("guide_grpo.py", "--help", out=tmp_path / "out")
    done.join()
    said = (tmp_path / "out").read_text()
    assert done.exitcode == 0 and "arXiv 2506.13923" in said and "adamw" in said.lower()


class Service(ModuleType):
    """wandb, or trackio, out of order."""

    def __init__(self, name="wandb"):
        super().__init__(name)
        self.started, self.tried, self.finished = [], [], 0

    def init(self, **options):
        self.started.append(options)

    def log(self, metrics, step):
        self.tried.append(step)
        raise ConnectionError("the network\nis gone")

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_resumed_run_is_the_same_run(script, tmp_path, monkeypatch, capsys):
    # everything that could be forgotten: several updates a step, a reference model, warm-up, refilled groups
    args = {"mini_batches": 2, "warmup": 3, "eval_every": 2, "save_every": 0, "keep": 1}
    args |= {"entropy_coef": 0.01} if script == "nsr" else {"beta": 0.01}
    args |= {"critic_warmup": 1} if "ppo" in script else {"filter_rounds": 1} if "grpo" in script else {}
    whole = train(script, **args, steps=4, run_dir=str(tmp_path / "whole"))
    half = train(script, **args, steps=2, run_dir=str(tmp_path / "half"))
    torch.manual_seed(12345)
    with open(half / "metrics.jsonl", "a") as file:  # a line of a step after the checkpoint, and a torn one
        file.write('{"step": 3, "rollout/reward": 9}\n{"step": 4, "rollo')
    wandb = Service()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert_same_run(whole, train(script, resume=str(half), steps=4, track="wandb"))
    assert wandb.tried == [3, 4] and wandb.finished == 1
    assert capsys.readouterr().err.count("warning: --track wandb fails (ConnectionError: the network)") == 1
    saved = json.loads((half / "args.json").read_text())
    assert (saved["steps"], saved["track"], saved["resume"]) == (4, "wandb", "")
    assert [p.name for p in (half / "checkpoint").iterdir()] == ["step-000004"]


def test_a_run_that_has_no_checkpoint_yet_says_that_it_begins_again(tmp_path, capsys):
    for logged, said in (("", ""), ('{"step": 1}\n', f"{tmp_path} has no checkpoint yet: it begins again\n")):
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            (tmp_path / name).write_text(logged)
        assert load_checkpoint(tmp_path, {}) == 0 and capsys.readouterr().out == said
        assert (tmp_path / "metrics.jsonl").read_text() == ""


def wait_for(moment, process, seconds: float = 120.0) -> bool:
    """Whether the process still runs when `moment()` has come."""
    deadline = time.monotonic() + seconds
    while not moment():
        if not process.is_alive():
            return False
        assert time.monotonic() < deadline, "the moment to kill it did not come"
        time.sleep(0.0005)
    return process.is_alive()


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(tmp_path):
    """Killed at its start, in a step, while a checkpoint is written; resumed: the same run, bit for bit.

    KILLS=20 pytest tests/test_runs.py -k kill_9 -s    # more of them than the usual 3, and where they came
    """
    kills, rng = int(os.environ.get("KILLS", 3)), random.Random(0)
    args = {**SMALL, "steps": 4 + 4 * kills, "eval_every": 0, "eval_problems": 1, "keep": 1}
    whole, killed = train("guide_grpo", **args, run_dir=str(tmp_path / "whole")), tmp_path / "killed"
    torn = 0
    for kill in range(kills):
        begun = (killed / "args.json").exists()
        again = {"resume": killed} if begun else {**args, "run_dir": killed}
        process = start(*command("guide_grpo", **again)[1:])
        folder, file = killed / "checkpoint", killed / "args.json"
        written = file.stat().st_mtime_ns if begun else 0

        def moved(before=frozenset(checkpoints(killed))):  # noqa: B008
            return bool(set(checkpoints(killed)) - before)

        def writes(folder=folder):
            return any(folder.glob("*.part"))

        where = ("writing", "step", "start")[kill % 3]
        if where == "start":  # args.json is written anew: models are loaded, the first step comes next
            alive = wait_for(lambda: file.exists() and file.stat().st_mtime_ns != written, process)
            time.sleep(rng.uniform(0, 0.3))
        else:  # the first checkpoint of this process has taken a torn one of the last away
            alive = wait_for(moved, process)
            if where == "writing":
                alive = alive and wait_for(writes, process)
                time.sleep(rng.uniform(0, 0.02) if kill > 2 else 0)
            else:
                time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        assert alive, f"it ended before kill {kill}"
        torn += writes()
        print(f"kill {kill} at {where}: {[path.name for path in folder.glob('*')] or 'no checkpoint yet'}")
    done = start(*command("guide_grpo", resume=killed)[1:], err=tmp_path / "err")
    done.join()
    assert done.exitcode == 0, (tmp_path / "err").read_text()
    assert torn, "no kill came while a checkpoint was written"
    assert_same_run(whole, killed)
    assert [path.name for path in (killed / "checkpoint").iterdir()] == [f"step-{args['steps']:06d}"]


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_saves_and_says_how_to_go_on(number, code, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    args = {**SMALL, "steps": 5000, "eval_every": 0, "save_every": 0, "run_dir": run_dir}
    process = start(*command("guide_grpo", **args)[1:], out=tmp_path / "out")
    while not (run_dir / "metrics.jsonl").exists() or not metrics(run_dir):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode == code
    steps = len(metrics(run_dir))
    monkeypatch.setattr(sys, "argv", ["guide_grpo.py"])
    assert (tmp_path / "out").read_text().splitlines()[-1] == (
        f"stopped by {number.name} after step {steps}; go on with: {command_line('--resume', run_dir)}"
    )
    assert (run_dir / f"checkpoint/step-{steps:06d}").exists()


def test_micro_batches_do_not_change_a_step(tmp_path):
    finals = []
    for micro_tokens in (1, 60, 100_000):
        run_dir = str(tmp_path / str(micro_tokens))
        train("guide_grpo", run_dir=run_dir, steps=1, prompts=8, eval_every=0, eval_problems=1,
              micro_tokens=micro_tokens, lr=1e-3)
        finals.append(torch.cat([w.flatten() for w in weights(Path(run_dir)).values()]))
    start = torch.cat([w.flatten() for w in load_file("assets/countdown/model.safetensors").values()])
    assert (finals[0] - start).abs().max() > 5e-4
    # Adam's first step is lr * g / (|g| + eps): compare where the gradient is no rounding error
    for other in finals[1:]:
        assert ((finals[0] - other).abs() > 1e-5).float().mean() < 1e-3


def test_without_any_signal_nothing_moves_and_the_metrics_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "never.py").write_text("def right(completion, problem):\n    return False\n")
    sys.path.insert(0, str(tmp_path))
    run_dir = train("guide_grpo", run_dir=str(tmp_path / "run"), steps=1, verifier="never:right",
                    filter_rounds=2, data_split="train")
    (m,) = metrics(run_dir)
    assert m["train/updates"] == 0 and m["rollout/reward"] == 0 and m["guide/failed"] == 1
    assert m["verify/wrong"] == 2 * 3 * 16
    before = load_file("assets/countdown/model.safetensors")
    assert all(torch.equal(before[k], v) for k, v in weights(run_dir).items())


def test_math_rows_with_hints_from_their_solutions(tmp_path):
    solution = "Doubling is adding a number to itself. So \\boxed{%d}."
    rows = [{"problem": f"What is {i}+{i}?", "solution": solution % (2 * i)} for i in range(40)]
    file = tmp_path / "math.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_dir = train("guide_grpo", run_dir=str(tmp_path / "run"), data=str(file), template="guide", steps=1)
    shown = [json.loads(line) for line in (run_dir / "rollouts.jsonl").read_text().splitlines()]
    guided = [row for row in shown if row["guided"]]
    assert guided and "Hint: Doubling is adding" in guided[0]["sampled_from"]
    assert "Hint" not in guided[0]["prompt"] and guided[0]["verdict"] == "no answer"
    assert guided[0]["prompt"].startswith("<|im_start|>system\nPlease reason")
    assert not (run_dir / "eval_base.json").exists()  # a file has no test split


def test_a_verifier_of_ones_own_reads_the_columns_and_a_resumed_run_its_data(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "levels.py").write_text("""def right(completion, problem):
    assert problem.answer == "" and problem.meta == {"Level": 3, "tags": ["a"]}
    return bool(sum(map(ord, completion)) % 2)
""")
    lines = [json.dumps({"question": f"Use {i}.", "Level": 3, "tags": ["a"]}) + "\n" for i in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(lines))
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(lines))
    args = {"data": str(file), "eval_data": str(held_out), "template": "plain", "verifier": "levels:right"}
    run_dir = train("grpo", run_dir=str(tmp_path / "run"), steps=1, **args)
    (m,) = metrics(run_dir)
    assert m["verify/right"] + m["verify/wrong"] == 16 and m["verify/right"] > 0 and m["verify/error"] == 0
    for changed in (lines[:7], lines[::-1], [line.replace("Use 4", "Use 9") for line in lines]):
        file.write_text("".join(changed))
        with pytest.raises(UserError, match=r"data has changed since .*: put it back as it was, or start"):
            train("grpo", resume=str(run_dir), steps=2)
    file.write_text("".join(lines))
    held_out.write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"16 prompts then, 15 now, held-out ones included"):
        train("grpo", resume=str(run_dir), steps=2)
    held_out.write_text("".join(lines))
    assert len(metrics(train("grpo", resume=str(run_dir), steps=2))) == 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train("grpo", run_dir=str(tmp_path_factory.mktemp("runs") / "run"), steps=2, eval_every=0)


@pytest.mark.parametrize(
    "args, message",
    [
        ({"data": "nothing.jsonl"}, "no such file: nothing.jsonl"),
        ({"data": "{tmp}/columns.jsonl"}, "no problem can be read from the columns ['a', 'b']"),
        ({"data": "{tmp}/golds.jsonl", "template": "plain"}, "do not verify against themselves"),
        ({"temperature": 0}, "--temperature 0.0: it has to be above 0"),
        ({"prompts": 0}, "--prompts 0: it has to be 1 or more"),
        ({"steps": 0}, "--steps 0: it has to be 1 or more"),
        ({"tis_cap": -1}, "--tis-cap -1.0: it has to be 0 or more"),
        ({"gpu_memory": 2}, "--gpu-memory 2.0: it has to be above 0 and at most 1"),
        ({"lr": "nan"}, "--lr nan: it has to be 0 or more"),
        ({"device": "cuda"}, "--device cuda: torch finds no GPU here"),
        ({"track": "trackio"}, "--track trackio: pip install trackio"),
        ({"max_response": 2045}, "exceed the model's 2048 positions"),
        ({"n": 1}, "--n 1: GRPO compares the samples of a prompt with each other"),
        ({"max_prompt": 5}, "longer than 5 tokens: raise --max-prompt"),
        ({"prompts": 5, "mini_batches": 2}, "--prompts 5 does not divide into --mini-batches 2"),
        ({"run_dir": "{tmp}/columns.jsonl/run"},
         "columns.jsonl/run (Not a directory): give another --run-dir"),
        ({"run_dir": "{finished}"}, "holds a run already: use --resume"),
        ({"resume": "{tmp}"}, "give the folder of a run"),
        ({"resume": "{finished}", "lr": 0.5}, "a resumed run keeps its args: --lr was 0.0001"),
        ({"resume": "{finished}", "steps": 1}, "has done 2 already; give more, or start a new run"),
        ({"resume": "{guided}"}, "is a run of guide_grpo.py, not of grpo.py"),
        ({"model": "no_such_model"}, "--model no_such_model is neither a folder"),
        ({"verifier": "no_such_module:f"}, "--verifier no_such_module:f"),
    ],
)
def test_a_users_mistake_is_one_line(args, message, tmp_path, finished, monkeypatch):
    (tmp_path / "columns.jsonl").write_text('{"a": 1, "b": 2}\n')
    (tmp_path / "golds.jsonl").write_text('{"question": "1+1?", "answer": "\\\\frac{}{"}\n')
    (tmp_path / "guided").mkdir()
    (tmp_path / "guided/args.json").write_text('{"script": "guide_grpo"}')
    places = {"tmp": tmp_path, "finished": finished, "guided": tmp_path / "guided"}
    args = {key: str(value).format(**places) for key, value in args.items()}
    if "resume" not in args:
        args = {**SMALL, "run_dir": tmp_path / "run", **args}
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "trackio", None)  # not installed
    monkeypatch.setattr(sys, "argv", command("grpo", **args)[1:])
    with pytest.raises(SystemExit) as exit:
        launch(grpo.main, grpo.Args)
    said = exit.value.code
    assert str(said).startswith("error: ") and message in said and "\n" not in said
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before  # no other run is touched


@pytest.mark.parametrize("script, args, message", [
    ("grpo", {"eps_high": 0.28}, "--eps-high 0.28 would do nothing: with --mini-batches 1 the ratio is 1"),
    ("guide_ppo", {"eps_low": 0.1}, "--eps-low 0.1 would do nothing: with --mini-batches 1"),
    ("nsr", {"reinforce": "nsr", "lam": 0.3}, "--lam 0.3 would do nothing: --reinforce nsr has no lambda"),
    ("guide_grpo", {"guide_ratio": "none", "guide_gamma": 0.1}, "--guide-gamma 0.1 would do nothing: "),
    ("guide_grpo", {"guide_with": "nothing", "guide_ratio": "naive"}, "--guide-ratio naive would do"),
    ("grpo", {"eps_high": 0.28, "mini_batches": 2}, ""),
    ("guide_grpo", {"eps_high": 0.28, "guide_ratio": "clip"}, ""),  # of hinted rows it is not 1
    ("nsr", {"lam": 0.3, "eps_high": 0.28}, ""),
])
def test_an_option_that_would_do_nothing_is_refused(script, args, message):
    args = import_module(script).Args(**args)
    if message:
        with pytest.raises(UserError) as error:
            check_ranges(args)
        assert str(error.value).startswith(message)
    else:
        check_ranges(args)


def test_ranks_with_other_problems_do_not_begin(tmp_path, monkeypatch):
    """One has left out a problem whose reference answer timed out."""
    prompts = [data.Prompt(data.Problem(str(i), "Q", "1"), [i], None) for i in range(5)]
    other = {"prompts": 4, "sha256": "another"}
    monkeypatch.setattr("machinery.folder.gather", lambda own: [*own, other])
    with pytest.raises(UserError, match=r"have not found the same problems \(5, 4 of them\)"):
        check_data(tmp_path, prompts, resumed=False)
    monkeypatch.setattr("machinery.folder.gather", lambda own: own * 2)
    check_data(tmp_path, prompts, resumed=False)
    assert json.loads((tmp_path / "data.json").read_text())["prompts"] == 5


@pytest.mark.parametrize("script", ["ppo", "guide_ppo"])
@pytest.mark.parametrize("steps, warmup", [(5, 5), (3, 5)])
def test_steps_that_the_critic_alone_learns_in_are_refused(script, steps, warmup, tmp_path):
    module = import_module(script)
    with pytest.raises(UserError, match=rf"--steps {steps}: the critic learns alone in the first {warmup}"):
        module.main(module.Args(steps=steps, critic_warmup=warmup, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_has_nothing_left_to_do(finished, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(finished, tmp_path / "my run")
    (copy / "curves.png").touch()  # drawn last
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    monkeypatch.setattr(sys, "argv", ["grpo.py", f"--resume={copy}"])
    launch(grpo.main, grpo.Args)
    more = command_line("--resume", copy, "--steps", "N")
    assert capsys.readouterr().out == f"nothing to do: {copy} has its 2 steps; more with: {more}\n"
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before
    (copy / "eval_trained.json").unlink()  # what is missing is made again
    seen = []
    launch(seen.append, grpo.Args)
    assert seen[0].resume == str(copy)
    # More steps: until they are done the run is not.
    (copy / "data.json").unlink()  # no prompts are read below
    shutil.copy(finished / "eval_trained.json", copy)
    monkeypatch.setattr(sys, "argv", ["grpo.py", f"--resume={copy}", "--steps=3"])
    launch(lambda args: next(Run(args, "grpo.py").steps()), grpo.Args)
    Run.current.close()
    assert not (copy / "curves.png").exists() and not (copy / "eval_trained.json").exists()
    assert (copy / "eval_step2.json").read_bytes() == (finished / "eval_trained.json").read_bytes()
    assert json.loads((copy / "args.json").read_text())["steps"] == 3


def test_a_start_that_failed_is_in_nobodys_way(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    args = {"run_dir": str(folder), "steps": 1}
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(UserError, match="--track wandb"):
        Run(grpo.Args(**args, track="wandb"), "grpo.py")
    Run(grpo.Args(**args, lr=1.0), "grpo.py")  # and then something went wrong
    (folder / "eval_base.json").write_text("{}")
    Run(grpo.Args(**args), "grpo.py").close()
    assert json.loads((folder / "args.json").read_text())["lr"] == grpo.Args().lr
    assert (folder / "eval_base.json").exists()  # the same model on the same problems
    Run(grpo.Args(**args, model="another"), "grpo.py").close()
    assert not (folder / "eval_base.json").exists()
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="holds a run already: use --resume"):
        Run(grpo.Args(**args), "grpo.py")


@pytest.mark.parametrize("how", ["run_dir", "resume"])
def test_two_processes_do_not_train_in_one_folder(how, tmp_path):
    args = grpo.Args(**{how: str(tmp_path)})
    theirs = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(theirs, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="is in use: another process trains there"):
        Run(args, "grpo.py")
    os.close(theirs)
    Run(args, "grpo.py").close()


def test_whatever_ends_a_run_that_has_begun_the_last_line_says_how_to_go_on(tmp_path, monkeypatch):
    def main(args):
        run = Run(args, "grpo.py")
        run.metrics = {"step": 1}
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "argv", ["grpo.py", f"--run-dir={tmp_path}/run"])
    with pytest.raises(SystemExit) as exit:
        launch(main, grpo.Args)
    Run.current.close()
    line = command_line("--resume", tmp_path / "run")
    assert exit.value.code == f"error: [Errno 28] No space left on device; go on with: {line}"


# ---- trackers ----------------------------------------------------------------------------------------------

def test_a_resumed_run_is_one_run_for_the_tracker(tmp_path, monkeypatch):
    services = {name: Service(name) for name in ("wandb", "trackio")}
    for name, service in services.items():
        monkeypatch.setitem(sys.modules, name, service)
        for folder in ("a", "a", "b"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Tracker(name, tmp_path / folder, {"steps": 2}).close()
    first, again, other = services["wandb"].started
    assert first == again and first["id"] != other["id"]
    assert first["resume"] == "allow" and first["name"] == "a" and first["config"] == {"steps": 2}
    names = [options["name"] for options in services["trackio"].started]  # which knows a run by its name
    assert names[0] == names[1] == f"a-{first['id']}" and "id" not in services["trackio"].started[0]


@pytest.mark.parametrize("track", ["wandb", "trackio", "tensorboard"])
def test_old_logs_are_not_taken_for_the_tracker(track, tmp_path, monkeypatch):
    (tmp_path / track / "run-1").mkdir(parents=True)  # Python takes any folder for a package
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == track]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=rf"^--track {track}: pip install {track}, or leave it out.*$"):
        Tracker(track, tmp_path, {})
    sys.modules.pop(track, None)


def test_a_tracker_that_does_not_start_is_said_before_the_first_step(tmp_path, monkeypatch):
    service = Service()
    service.init = lambda **_: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", service)
    with pytest.raises(UserError, match=r"--track wandb does not start \(ZeroDivisionError: division"):
        Tracker("wandb", tmp_path, {})


def test_a_run_that_never_began_leaves_its_folder_free(tmp_path):
    for tokens in (2045, 2044):
        with pytest.raises(UserError, match="exceed the model's 2048 positions"):
            train("grpo", max_response=tokens, run_dir=str(tmp_path / "run"))
    run_dir = train("grpo", steps=1, run_dir=str(tmp_path / "run"))
    assert len(metrics(run_dir)) == 1
    with pytest.raises(UserError, match="holds a run already: use --resume"):
        train("grpo", run_dir=str(run_dir))


def test_a_users_mistake_ends_the_process_with_code_1(tmp_path):
    done = start("grpo.py", "--n=1", err=tmp_path / "err")
    done.join()
    assert done.exitcode == 1
    said = (tmp_path / "err").read_text()
    assert said.startswith("error: --n 1: ") and "Traceback" not in said


def test_checkpoint_that_cannot_be_written_keeps_the_last_one(tmp_path):
    model = torch.nn.Linear(256, 256)
    save_checkpoint(tmp_path, 1, {"model": model}, keep=1)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.nn.init.ones_(model.weight)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk: 262 kB break off
    try:
        with pytest.raises(UserError, match=r"cannot write .*make room, then go on with --resume"):
            save_checkpoint(tmp_path, 2, {"model": model}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["step-000001"]
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "rollouts.jsonl").touch()
    assert load_checkpoint(tmp_path, {"model": model}) == 1
    assert all(torch.equal(first[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("script", ["guide_grpo", "guide_ppo"])
def test_weights_of_tokens_are_refused_where_the_ratio_is_of_the_whole_response(script):
    module = import_module(script)
    with pytest.raises(UserError, match=r"--guide-ratio sequence .* leave one out"):
        module.main(module.Args(guide_ratio="sequence", tis_cap=2.0))


def test_a_fused_optimizer_of_a_checkpoint_counts_on_its_device():
    model = torch.nn.Linear(2, 1, device="meta")  # stands for a GPU
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    saved = [f"optimizer.{i}.{key}" for i in (0, 1) for key in ("step", "exp_avg", "exp_avg_sq")]
    found = tensors({"optimizer": optimizer}, saved)
    assert {tensor.device.type for tensor in found.values() if tensor.dtype == torch.float32} == {"meta"}


def test_signals_outside_of_a_step_end_at_once_and_within_one_after_it(tmp_path, capfd, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    run = Run(grpo.Args(run_dir=str(tmp_path / "run")), "grpo.py")
    monkeypatch.setattr(sys, "argv", ["grpo.py"])
    try:
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
        line = ("stopped outside of a step, nothing is lost; "
                f"go on with: {command_line('--resume', tmp_path / 'run')}")
        assert capfd.readouterr().out.splitlines()[-1] == line
        run.step = 0
        signal.raise_signal(signal.SIGTERM)
        assert run.stop == signal.SIGTERM
        assert "finishing this step, then saving; once more ends at once" in capfd.readouterr().err
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == run._on_signal
    finally:
        run.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_during_the_last_save_does_not_cut_it_off(tmp_path, capfd, monkeypatch):
    def save(*args):
        signal.raise_signal(signal.SIGTERM)
        saved.append(args[1])

    saved = []
    monkeypatch.setattr(machinery_run, "save_checkpoint", save)
    run = Run(grpo.Args(run_dir=str(tmp_path / "run"), steps=2), "grpo.py")
    try:
        with pytest.raises(SystemExit, match="143"):
            for _ in run.steps():
                run.metrics = {"rollout/reward": 0.0}
    finally:
        run.close()
    assert saved == [2] and "nothing is lost; go on with" in capfd.readouterr().out


@pytest.mark.parametrize("rewards, warned", [([0.0] * 6, True), ([0.0, 0.1, 0.0, 0.0, 0.0, 0.0], False)])
def test_five_steps_without_a_right_response_are_said(rewards, warned, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(machinery_run, "save_checkpoint", lambda *args: None)
    run = Run(grpo.Args(run_dir=str(tmp_path / "run"), steps=len(rewards)), "grpo.py")
    for step in run.steps():
        run.metrics = {"step": step + 1, "rollout/reward": rewards[step]}
    run.close()
    assert capfd.readouterr().err.count("not one response of 5 steps was right") == warned


@pytest.mark.parametrize("name", ["runs/1", "my runs/1", "it's", 'a "b"', "$HOME", "a;b*?", "-x", "é\n\\"])
def test_the_line_to_go_on_can_be_pasted(name, tmp_path, monkeypatch):
    """Into a real shell, in the folder where the script was called from."""
    (tmp_path / name / "here").mkdir(parents=True)
    script = tmp_path / name / "grpo.py"
    script.write_text("import sys, json\njson.dump(sys.argv[1:], sys.stdout)\n")
    monkeypatch.chdir(tmp_path / name / "here")
    monkeypatch.setattr(sys, "argv", ["../grpo.py", "--steps", "3"])
    pasted = subprocess.run(resume_line(Path(name), "--steps", 4), shell=True, capture_output=True, text=True)
    expected = f"./{name}" if name == "-x" else name
    assert json.loads(pasted.stdout) == ["--resume", expected, "--steps", "4"], pasted.stderr
    monkeypatch.setenv("PATH", "/nowhere")  # `python` is not this one
    assert command_line().startswith(f"{sys.executable} ")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_a_command_quietly(unbuffered, tmp_path):
    script = tmp_path / "talk.py"
    script.write_text("from machinery.command import run_command\n"
                      "run_command(lambda: [print('word ' * 99999) for _ in range(9)])\n")
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": os.getcwd()}
    pipe = f"{sys.executable} {script} | head -c 5; echo ${{PIPESTATUS[0]}}"
    piped = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, env=environment)
    assert (piped.stdout, piped.stderr) == ("word 141\n", "")
    for path in ("data.py", "verify.py", "evaluate.py", "machinery/hints.py", "machinery/run.py"):
        assert "run_command(" in Path(path).read_text()


def test_a_pipe_that_breaks_elsewhere_is_said():
    def main():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(SystemExit, match=r"error: .*Broken pipe"):
        run_command(main)


@pytest.mark.slow
def test_what_the_readme_says_to_copy_is_enough(tmp_path):
    """grpo.py with the shared modules in an empty folder, started from another one."""
    copied, elsewhere = tmp_path / "copied", tmp_path / "elsewhere"
    elsewhere.mkdir()
    lines = Path("README.md").read_text().splitlines()
    (files,) = [line for line in lines if line.startswith("mkdir my_project && cp grpo.py ")]
    (folder,) = [line for line in lines if line.startswith("cp -r machinery ")]
    for line in (files, folder):
        subprocess.run(line.replace("my_project", str(copied)), shell=True, check=True)
    model = Path("assets/countdown").resolve()
    args = {**SMALL, "steps": 1, "eval_problems": 2, "model": model, "template": "countdown"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, copied / "grpo.py", *command("grpo", **args)[2:]], cwd=elsewhere,
                          capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in elsewhere.iterdir()] == ["runs"]
    assert len(list((elsewhere / "runs").glob("*/final/model.safetensors"))) == 1


def test_the_pages_own_data_and_verifier(tmp_path, monkeypatch):
    """my_task.py as it stands there: it judges as the built-in verifier does, and a script trains on it."""
    page = Path("docs/data.md").read_text()
    source = page[page.index("# my_task.py") :].split("```")[0]
    (tmp_path / "my_task.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "my_task.py"], check=True)
    run_dir = train("grpo", steps=1, data="mine.jsonl", verifier="my_task:right",
                    template="countdown", eval_data="countdown", run_dir=str(tmp_path / "run"))
    assert 0 < metrics(run_dir)[0]["rollout/reward"] < 1
    problems = data.load("countdown", limit=200)
    completions = [problem.solution for problem in problems]
    completions[100:] = [text.replace("+", "-") for text in completions[100:]]
    theirs = [verify.countdown_verdict(*both).correct for both in zip(completions, problems)]
    with verify.Verifier(1, custom="my_task:right") as verifier:
        assert [verdict.correct for verdict in verifier.score(completions, problems)] == theirs
        twice = data.Problem("p", "Use 1, 7, 12 to make 19.", "19")
        assert [v.why for v in verifier.score(["1*1=1\n7+12=19", "7+7=14"], [twice] * 2)] == ["wrong"] * 2
    assert all(theirs[:100]) and 10 < sum(theirs[100:]) < 90


def test_final_model_that_cannot_be_written_keeps_the_last_one(tmp_path, model, tokenizer):
    save_model(model, tokenizer, torch.float32, tmp_path / "final")
    first = (tmp_path / "final/model.safetensors").read_bytes()
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*make room, then go on with --resume"):
            save_model(model, tokenizer, torch.float32, tmp_path / "final")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final/model.safetensors").read_bytes() == first


# ---- threads -----------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("imports, settings, spins", [
    ("machinery, torch", {}, "3000"),
    ("machinery, torch", {"GOMP_SPINCOUNT": "7"}, "7"),
    ("machinery, torch", {"OMP_WAIT_POLICY": "passive"}, "0"),
])
def test_threads_wait_shortly_unless_the_user_says_how(imports, settings, spins):
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    told = subprocess.run([sys.executable, "-c", f"import {imports}"], capture_output=True, text=True,
                          env=environment | settings | {"OMP_DISPLAY_ENV": "verbose"})
    assert told.returncode == 0, told.stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in told.stderr


@pytest.mark.slow
def test_every_entry_point_sets_how_threads_wait_before_torch_loads():
    late = {"torch", "transformers", "vllm", "bench_memory"}
    root = Path(__file__).resolve().parent.parent
    sources = [*root.glob("*.py"), *root.glob("assets/*.py"), *root.glob("tests/bench*.py"),
               root / "tests/gpu_check.py"]
    for path in sources:
        seen = [line.split()[1].split(".")[0] for line in path.read_text().splitlines()
                if line.startswith(("import ", "from "))]
        if late & set(seen):
            assert "machinery" in seen[: min(seen.index(name) for name in late & set(seen))], path
