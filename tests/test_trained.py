"""A run's checkpoints are evaluated: the weights of that step, measured as the run measured itself."""

import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import grpo
from data import UserError
from evaluate import Args, main, read_args
from machinery.compare import curve, read_result
from machinery.trained import find_weights, saved_weights

pytestmark = pytest.mark.slow
MODEL = "assets/countdown"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps, of which the checkpoints of 2 and 3 are left, and an evaluation in each."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    grpo.main(grpo.Args(model=MODEL, data="countdown", data_split="train[:64]", steps=3, prompts=8, n=4,
                        lr=1e-3, eval_problems=8, eval_n=4, eval_every=1, save_every=1, device="cpu",
                        run_dir=str(folder)))
    (folder / "curves.png").touch()  # drawn last
    return folder


@pytest.fixture
def measured(run, tmp_path, monkeypatch):
    """The result of evaluate.py with --model RUN and these options."""

    def measure(*options, of=run):
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", str(of), "--out", str(out), *options])
        main(read_args())
        return read_result(out)

    return measure


def test_every_step_is_measured_as_the_run_measured_it(run, measured, capsys):
    base, trained = (read_result(run / f"eval_{name}.json") for name in ("base", "trained"))
    assert measured("--step", "0")["problems"] == base["problems"]
    final = measured("--seed", "1")
    assert final["problems"] == trained["problems"] and final["entropy"] == trained["entropy"]
    assert f"{run}: the weights are those of {run}/final\n" in capsys.readouterr().out
    last = measured("--step", "3", "--seed", "1")
    assert last["problems"] == trained["problems"] and last["model"] == f"{run}/checkpoint/step-000003"
    # line 3 of the log is of the policy after two steps
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[2])
    second = measured("--step", "2")
    assert second["entropy"] == pytest.approx(line["eval/entropy"], abs=1e-6)
    assert [mean for _, mean, _, _ in curve(second)] == pytest.approx(
        [line[f"eval/pass@{k}"] for k in (1, 2, 4)], abs=1e-6)


def test_a_run_that_is_not_finished_has_its_newest_checkpoint(run, measured, tmp_path, capsys):
    going_on = tmp_path / "run"
    shutil.copytree(run, going_on)
    (going_on / "curves.png").unlink()  # more steps, as yet without a picture: final/ is old
    assert find_weights(str(going_on), None) == (f"{going_on}/final", going_on / "checkpoint/step-000003")
    shutil.rmtree(going_on / "final")
    trained = read_result(run / "eval_trained.json")
    assert measured("--seed", "1", of=going_on)["problems"] == trained["problems"]
    assert f"the weights are those of {going_on}/checkpoint/step-000003\n" in capsys.readouterr().out
    (going_on / "checkpoint/step-000003").rename(going_on / "checkpoint/step-000003.part")
    assert find_weights(str(going_on), None) == (MODEL, going_on / "checkpoint/step-000002")
    only_final = tmp_path / "only"
    shutil.copytree(run, only_final, ignore=shutil.ignore_patterns("checkpoint", "curves.png"))
    assert find_weights(str(only_final), None) == (f"{only_final}/final", None)


def test_saved_weights_are_the_policys(run):
    model, final = (AutoModelForCausalLM.from_pretrained(path) for path in (MODEL, run / "final"))
    for step in (2, 3):
        saved = dict(saved_weights(run / f"checkpoint/step-00000{step}", model))
        same = [torch.equal(saved[name], weight) for name, weight in final.named_parameters()]
        assert all(same) if step == 3 else not any(same)


def test_what_cannot_be_had_is_one_line(run, tmp_path):
    args = {"model": str(run), "data": "countdown", "out": f"{tmp_path}/out.json"}
    with pytest.raises(UserError, match=r"--step 1: .* has no checkpoint of that step; there are: 2, 3 \(a"):
        main(Args(**args, step=1))
    with pytest.raises(UserError, match=r"it is a checkpoint: evaluate\.py --model RUN --step N"):
        main(Args(**{**args, "model": f"{run}/checkpoint/step-000003"}))
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    for shard in (damaged / "checkpoint/step-000003").glob("*.distcp"):
        shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step-000003 cannot be read \(\w+: .*\): it is damaged, or a"):
        main(Args(**{**args, "model": str(damaged), "step": 3}))
    with pytest.raises(UserError, match=r"step-000009 cannot be read"):
        list(saved_weights(run / "checkpoint/step-000009", torch.nn.Linear(1, 1)))


def test_not_every_args_json_is_a_runs(tmp_path, monkeypatch):
    (tmp_path / "args.json").write_text('{"model": "m"}')
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"--model={tmp_path}"])
    with pytest.raises(UserError, match=r"its args\.json has no 'data', it is of another version of Cle"):
        read_args()
    monkeypatch.chdir(tmp_path)
    assert find_weights("", None) == ("", None)  # of --compare, in the folder of a run
    (tmp_path / "config.json").touch()  # other trainers write one beside the model
    assert read_args().model == str(tmp_path) and find_weights(str(tmp_path), None) == (str(tmp_path), None)


@pytest.mark.parametrize("options, expected", [
    ([], ("countdown", "countdown", 8, 4, 1.0, 1.0, 16)),
    (["--n", "2", "--template", "plain"], ("countdown", "plain", 8, 2, 1.0, 1.0, 16)),
    (["--preset", "nsr"], ("countdown", "qwen-math", 8, 256, 0.6, 0.95, 0)),
    (["--data", "sea"], ("sea", "countdown", 0, 64, 0.6, 0.95, 0)),
])
def test_a_runs_own_way_of_measuring_is_the_default(options, expected, run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"--model={run}", *options])
    args = read_args()
    found = args.data, args.template, args.limit, args.n, args.temperature, args.top_p, args.max_tokens
    assert found == expected
