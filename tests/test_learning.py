"""Six steps of each script, at sea, raise held-out pass@1 by more than three standard errors.

The learning rates are twice the scripts' own, or more.
"""

import json
import math
import os
import shutil

import numpy as np
import pytest

import evaluate
import grpo
from machinery.sampler import Sampler
from tests.test_runs import train
from verify import Verifier

EVALUATION = {"data": "sea", "data_split": "train", "steps": 6, "prompts": 24, "n": 8, "eval_problems": 256,
              "eval_n": 8, "eval_every": 0, "save_every": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """eval_base.json, which is the same for all."""
    path = tmp_path_factory.mktemp("base") / "eval_base.json"
    args = grpo.Args(**EVALUATION)
    evaluate.HeldOut(args, Sampler(args.model, device="cpu"), Verifier()).write(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, args",
    [
        pytest.param("grpo", {"lr": 2e-4}, marks=pytest.mark.draws),
        ("guide_grpo", {"lr": 2e-4}),
        ("ppo", {"lr": 2e-4, "critic_warmup": 2}),
        ("guide_ppo", {"lr": 2e-4, "critic_warmup": 2}),
        ("nsr", {"reinforce": "nsr", "lr": 1.2e-4}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("reinforce", ""),
)
def test_six_steps_raise_held_out_pass_at_1(script, args, base, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shutil.copy(base, run_dir)  # the scripts take it as it is
    train(script, run_dir=str(run_dir), **{**EVALUATION, **args})
    results = [json.loads((run_dir / f"eval_{name}.json").read_text()) for name in ("base", "trained")]
    before, after = (np.array([row["c"] / row["n"] for row in result["problems"]]) for result in results)
    error = (after - before).std(ddof=1) / math.sqrt(len(before))
    said = f"{script}: pass@1 {before.mean():.3f} -> {after.mean():.3f}, standard error {error:.3f}"
    print(said)
    assert (after - before).mean() > 3 * error, said
    assert script != "grpo" or os.path.getsize(run_dir / "curves.png") > 10_000
