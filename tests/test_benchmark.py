"""tests/benchmark.py: what its figures are made of, by hand, and the whole of it at a tiny size."""

import json
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo import token_logprobs
from tests import benchmark, started
from tests.benchmark import HEADER, Case, goals, measured, medians, ratios, row
from tests.benchmark_side import bare_pass, bare_rollout, coin, peak_memory, trl_rows_at_once
from tests.real_model import write_problems

MODEL = "assets/countdown"


def a_step(rollout, update, sampled, trained, **more):
    return {"seconds": {"rollout": rollout, "update": update, **more}, "sampled": sampled, "trained": trained,
            "rows": 4 * (trained > 0)}


def test_a_step_is_from_begin_to_begin_and_the_rest_is_what_is_left():
    left = {"started": 100.0, "begins": [104.0, 109.0, 111.0, 114.0], "memory": 7,
            "steps": [a_step(4.0, 1.0, 9, 9), a_step(0.5, 1.0, 10, 30, logprobs=0.25, verify=0.125),
                      a_step(2.0, 0.5, 10, 0)]}
    found = measured(left, warmup=1)
    assert found["step"] == [2.0, 3.0]
    assert found["rollout"] == [0.5, 2.0] and found["logprobs"] == [0.25, 0.0]
    assert found["verify"] == [0.125, 0.0] and found["rest"] == [0.125, 0.5]
    assert found["start"] == 4.0 and found["memory"] == 7
    m = medians([found, found])
    assert m["step"] == 2.5 and m["low"] == m["high"] == 2.5
    assert m["sampled/s"] == (20 + 5) / 2
    assert m["trained/s"] == 30  # a step without a row that has a gradient tells nothing


def test_ratios_and_goals_by_hand():
    ours = {"step": 1.0, "low": 1.0, "high": 1.0, "rollout": 0.4, "verify": 0.01, "logprobs": 0.0,
            "update": 0.57, "rest": 0.02, "sampled/s": 100.0, "trained/s": 50.0, "rows": 8.0, "memory": 0.5,
            "start": 7.0, "runs": 3}
    theirs = {**ours, "step": 2.5, "memory": 1.0}
    bare = {**ours, "sampled/s": 130.0, "trained/s": 70.0}
    results = {("embedded", "grpo"): ours, ("embedded", "trl"): theirs, ("embedded", "bare"): bare}
    expected = {"speed": 2.5, "memory": 0.5, "update": 1.4, "rollout": 1.3, "neither": 0.03, "start": 7.0}
    assert ratios(results, "embedded") == pytest.approx(expected)
    assert [cells[-1] for cells in goals(results)] == ["no", "yes", "no", "yes", "yes", "no"]
    results["embedded", "grpo"] = {**ours, "runs": 1}
    assert next(goals(results))[-1] == "no, in one run"
    results["embedded", "grpo"], results["embedded", "bare"] = ours, {**bare, "runs": 1}
    assert [cells[-1] for cells in goals(results)][1:4] == ["yes", "no, in one run", "yes, in one run"]
    assert ratios({("random", "nsr"): ours}, "random") == {}  # without grpo.py there is nothing to hold
    results["embedded, busy", "grpo"] = {**ours, "step": 2.4}
    assert ratios(results, "embedded, busy")["busy"] == pytest.approx(2.4)
    of_ours, of_theirs = row(results, "embedded", "grpo"), row(results, "embedded", "trl")
    assert len(of_ours) == len(of_theirs) == len(HEADER)
    assert of_ours[:5] == ["embedded", "grpo.py", "1.000", "1.000 to 1.000", "2.50x"]
    assert of_theirs[1] == "TRL GRPO" and of_theirs[4] == ""


def test_memory_is_the_most_of_a_process_and_of_those_it_has_started():
    alone = peak_memory()
    hold = "held = bytearray(64 << 20); del held; print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], **pipes) as child:
        child.stdout.readline()
        both = peak_memory()
        child.communicate(b"\n")
    assert both - alone > 64 << 20


def test_trl_takes_equal_parts_of_a_step():
    case = asdict(Case("", "", "", "", prompts=16, n=8, max_response=0, usual_response=0))
    assert trl_rows_at_once(case, longest=300) == 32  # 54 would fit, 32 is a part of 128
    assert trl_rows_at_once(case, longest=100) == 128
    assert trl_rows_at_once(case, longest=20_000) == 1


def test_the_bare_pass_has_the_gradient_of_the_responses_log_probs(model):
    torch.manual_seed(3)
    ids_NL = torch.randint(model.config.vocab_size, (3, 9))
    logp_NT, _, _ = token_logprobs(model, ids_NL, torch.full((3,), 5), torch.full((3,), 4), 1.0)
    (-logp_NT.mean()).backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(3)
    bare_pass(model, rows=3, prompt=5, response=4)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_the_bare_rollout_passes_each_prompt_once_and_each_token_but_the_last_ones():
    model, shapes = AutoModelForCausalLM.from_pretrained(MODEL), []
    model.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    with torch.no_grad():
        bare_rollout(model, prompts=2, n=2, prompt=6, lengths=[4, 3, 3, 1])
    assert shapes == [(2, 6), (3, 1), (3, 1), (1, 1)]


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """What `python tests/benchmark.py --tiny options` prints and writes, without its processes' imports."""
    def start(python, side, task, log):
        process = started.start("tests/benchmark_side.py", side, task, out=log, err=f"{log}.err")
        process.join()
        assert process.exitcode == 0, Path(f"{log}.err").read_text()

    def main(*options):
        out = tmp_path / "runs.jsonl"
        options += ("--warmup", "0", "--repeats", "1", "--out", str(out))
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "--tiny", *options])
        benchmark.main()
        return capsys.readouterr().out, [json.loads(line) for line in out.read_text().splitlines()]

    monkeypatch.setattr(benchmark, "start", start)
    return main


@pytest.mark.slow
def test_it_runs_at_a_tiny_size(bench):
    printed, lines = bench(*"--cases random --programs grpo ppo trl bare --steps 2".split())
    for name in ("grpo.py", "ppo.py", "bare"):
        assert f"| random | {name} |" in printed
    assert "| TRL GRPO |" not in printed  # it is skipped: no environment is made
    assert "| update of grpo.py / bare pass, a token | random |" in printed
    assert [line["program"] for line in lines] == ["grpo", "ppo", "bare"]
    for line in lines:
        assert min(line["sampled"]) > 0 and min(line["rest"]) >= 0 and line["memory"] > 2**27
        assert len(line["step"]) == 2


@pytest.mark.slow
def test_a_folder_that_real_model_has_made_is_a_case(bench, tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "made")
    (case,) = benchmark.cases_of(["smollm2"], tmp_path, str(folder), tiny=False)
    train, _ = write_problems(tmp_path, train=800, test=128)
    assert case == Case("smollm2", str(folder), str(train), "plain", prompts=8, n=4, max_response=46,
                        usual_response=46)
    printed, (line,) = bench("--smollm2", str(folder), *"--cases smollm2 --programs grpo --steps 1".split())
    assert "| smollm2 | grpo.py |" in printed
    assert line["case"]["model"] == "made" and line["case"]["data"] == "train.jsonl"
    assert 2 * 4 <= line["sampled"][0] <= 2 * 4 * 46


def test_growth_is_of_grpo_beside_trl_and_the_bare_passes(tmp_path, monkeypatch, capsys):
    asked = []

    def run(case, program, steps, python, folder):
        asked.append((case.name, case.prompts, case.max_response, case.verifier, program, python))
        return {"started": 0.0, "begins": [1.0, 2.0], "memory": 1, "steps": [a_step(0.5, 0.25, 9, 9)],
                "versions": {}}

    monkeypatch.setattr(benchmark, "run", run)
    options = "--tiny --growth --coin --trl-python there --steps 1 --warmup 0 --repeats 2".split()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *options, "--programs", "nsr", "trl", "grpo"])
    benchmark.main()
    turns = [(name, program) for name, *_, program, _ in asked]
    grown = [name for name in dict.fromkeys(name for name, _ in turns) if "x " in name]
    assert grown == ["embedded, 2x rollouts, coin", "embedded, 4x rollouts, coin",
                     "random, 2x rollouts, coin", "random, 2x lengths, coin",
                     "random, 4x rollouts, coin", "random, 4x lengths, coin"]
    assert turns[:6] == [("embedded, coin", name) for name in ("grpo", "trl", "nsr")] * 2  # they take turns
    assert [name for case, name in turns if case == grown[0]] == ["grpo", "trl"] * 2
    sizes = {name: (prompts, response) for name, prompts, response, *_ in asked}
    assert sizes["random, coin"] == (2, 8) and sizes[grown[3]] == (2, 16) and sizes[grown[4]] == (8, 8)
    assert {verifier for *_, verifier, _, _ in asked} == {benchmark.COIN}
    assert {python for *_, program, python in asked if program == "trl"} == {"there"}
    assert capsys.readouterr().out.count("| 1.00x |") == 2 * 2 + 6  # of grpo.py and nsr.py, of grpo.py


def test_every_side_starts_with_the_users_environment():
    code = """
import os, sys
from unittest.mock import MagicMock
for slow in ("torch", "transformers", "real_model"):
    sys.modules[slow] = MagicMock()
from tests import benchmark
print(os.environ.get("GOMP_SPINCOUNT"), benchmark.ENVIRONMENT.get("GOMP_SPINCOUNT"))
"""
    threads = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in threads}
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, cwd=benchmark.ROOT, env=environment, text=True)
    assert printed.split() == ["3000", "None"]  # `machinery` has set it, and not for TRL


def test_a_busy_process_is_there_inside_and_gone_after():
    def children():
        return [child for thread in Path("/proc/self/task").iterdir()
                for child in (thread / "children").read_text().split()]

    before = children()
    with benchmark.busy(True):
        assert len(children()) == len(before) + 1
    with benchmark.busy(False):
        assert children() == before


def test_the_coin_is_the_same_for_the_same_text():
    texts = [f"response {i}" for i in range(400)]
    heads = [coin(text, None) for text in texts]
    assert heads == [zlib.crc32(text.encode()) % 2 == 0 for text in texts]
    assert 160 < sum(heads) < 240
