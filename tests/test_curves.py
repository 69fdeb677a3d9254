"""Curves over the steps: where their points are, which panels there are, several runs in one comparison."""

import json
import math
import sys

import pytest
from matplotlib.colors import to_hex

import grpo
import guide_grpo
from data import UserError
from evaluate import Args, main
from machinery.curves import colours_of, last_pass_at_1, panels, plot, read_compared, series, smooth
from machinery.names import labels
from machinery.run import launch
from tests.test_runs import SMALL, command


def result(counts, n=4):
    return {"problems": [{"id": str(i), "n": n, "c": c} for i, c in enumerate(counts)]}


def lines(steps, **more):
    """As guide_grpo.py logs them: an evaluation stands in the line of the step after it."""
    found = []
    for step in range(1, steps + 1):
        found.append({"step": step, "rollout/reward": step / 100, "rollout/entropy": 0.2, "engine/k3": 1e-14,
                      "rollout/response_tokens": 22.0, **more})
        if step > 1 and (step - 1) % 10 == 0:
            found[-1] |= {"eval/pass@1": step / 1000, "eval/pass@8": step / 500}
    return found


def write_run(folder, metrics, **results):
    folder.mkdir(parents=True)
    (folder / "args.json").write_text('{"script": "grpo"}')
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    for name, found in results.items():
        (folder / f"eval_{name}.json").write_text(json.dumps(found))
    return folder


def test_curves_begin_at_the_base_and_end_at_the_trained_model():
    metrics = lines(25)
    metrics[2]["rollout/entropy"] = math.nan
    metrics[10]["eval/entropy"] = 0.3
    base = result([0, 2], 16) | {"entropy": 0.4}
    found = series(metrics, {"base": base, "trained": result([4, 16], 16) | {"entropy": 0.0}})
    assert found["rollout/reward"][0] == [0, 0.01] and found["rollout/reward"][-1] == [24, 0.25]
    assert found["eval/pass@1"] == [[0, 0.0625], [10, 0.011], [20, 0.021], [25, 0.625]]
    eight = (1 - math.comb(14, 8) / math.comb(16, 8)) / 2  # of the problem with 2 right ones
    assert found["eval/pass@8"][0] == [0, pytest.approx(eight, abs=1e-4)] and len(found["eval/pass@8"]) == 4
    assert "eval/pass@16" not in found and "step" not in found
    assert found["eval/entropy"] == [[0, 0.4], [10, 0.3], [25, 0.0]]
    assert [x for x, _ in found["rollout/entropy"]][:3] == [0, 1, 3]
    alone = series([], {"base": result([1])})  # no step yet
    assert alone["eval/pass@1"] == [[0, 0.25]] and "eval/pass@8" not in alone
    greedy = series([], {"base": result([1]) | {"entropy": None}})
    assert "eval/entropy" not in alone and "eval/entropy" not in greedy


def test_a_panel_is_there_where_a_run_has_something_to_show():
    plain = series(lines(5), {})
    guided = series(lines(5, **{"guide/share": 0.0}), {"base": result([1, 3], 8) | {"entropy": 0.4}})
    assert list(panels({"a": plain})) == ["rollout/reward", "rollout/entropy", "rollout/response_tokens"]
    found = panels({"a": plain, "b": guided})
    assert list(found) == ["rollout/reward", "eval/pass@1", "eval/pass@8", "eval/entropy", "rollout/entropy",
                           "rollout/response_tokens", "guide/share"]
    assert list(found["guide/share"]) == ["b"] and list(found["rollout/reward"]) == ["a", "b"]
    apart = series(lines(5, **{"engine/k3": 0.001}), {})
    assert list(panels({"a": plain, "c": apart})["engine/k3"]) == ["a", "c"]
    assert panels({}) == {}


def test_the_newest_pass_at_1_is_the_bases_until_there_is_another(tmp_path):
    results = {"base": result([1, 0]), "trained": result([4, 4])}  # of fewer steps, which are gone on with
    assert last_pass_at_1(write_run(tmp_path / "a", [], **results)) == {"eval/pass@1": 0.125}
    assert last_pass_at_1(write_run(tmp_path / "b", lines(25), **results)) == {"eval/pass@1": 0.021}
    assert last_pass_at_1(write_run(tmp_path / "c", lines(5))) == {}


def test_a_dense_line_is_smoothed_by_its_neighbours():
    points = [[0, 1.0], [1, 4.0], [2, 1.0], [5, 7.0]]
    assert smooth(points, 1) == [[0, 2.5], [1, 2.0], [2, 4.0], [5, 4.0]]
    assert smooth(points, 0) == points


def test_results_and_runs_are_read_by_their_names(tmp_path):
    base, one, two = result([0, 1]), result([1, 1]), result([2, 3])
    a = write_run(tmp_path / "grpo-Qwen2.5-s0", lines(3), base=base, trained=one)
    b = write_run(tmp_path / "grpo-Qwen2.5-s1", lines(3), base=base, trained=two)
    results, runs = read_compared([str(a / "eval_base.json"), f"{a}/", str(b)])
    assert results == {"eval_base": base, "grpo-Qwen2.5-s0": one, "grpo-Qwen2.5-s1": two}
    assert list(runs) == ["grpo-Qwen2.5-s0", "grpo-Qwen2.5-s1"]  # whole, with what looks like an ending
    assert runs["grpo-Qwen2.5-s1"]["eval/pass@1"] == [[0, 0.125], [3, 0.625]]
    assert labels([str(a), str(a)]) == [f"{a} (1)", f"{a} (2)"]
    (b / "eval_trained.json").unlink()
    with pytest.raises(UserError, match=r"s1 has no eval_trained.json: it is not finished, or held no prob"):
        read_compared([str(a), str(b)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is no result file, and no folder of a run"):
        read_compared([str(a), str(tmp_path / "empty")])
    with pytest.raises(UserError, match="no such file: "):
        read_compared([str(a), str(tmp_path / "none.json")])


@pytest.mark.parametrize("number", [1, 7, 8, 30])
def test_a_run_has_one_colour_of_its_own(number):
    names = [f"run {i}" for i in range(number)]
    colours = colours_of(["base", *names], dict.fromkeys(names))
    assert colours["base"] == "0.5" and len({*map(to_hex, colours.values())}) == number + 1
    assert colours_of(names, dict.fromkeys(names))["run 0"] == colours["run 0"]


@pytest.mark.draws
def test_a_picture_of_runs_and_of_results_alone(tmp_path):
    metrics = lines(40, **{"guide/share": 0.0, "engine/k3": 0.001})
    results = {"base": result([0, 1], 8), "a long name of a run, $x^$": result([1, 2], 8)}
    of_run = {name: series(metrics, {"base": results["base"], "trained": results[name]}) for name in results}
    del of_run["base"]
    for name, of in (("all", (results, of_run)), ("results", (results,)), ("no results", ({}, of_run))):
        path = tmp_path / f"{name}.png"
        plot(of[0], path, *of[1:])
        assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match=r"x.xyz: Format 'xyz' is not supported"):
        plot(results, tmp_path / "x.xyz")


@pytest.mark.draws
@pytest.mark.slow
def test_two_runs_are_compared_by_their_folders(tmp_path, monkeypatch, capfd):
    a, b = (str(tmp_path / name) for name in ("a", "b"))

    def train(module, folder):
        monkeypatch.setattr(sys, "argv", command(module.__name__, **SMALL, run_dir=folder)[1:])
        launch(module.main, module.Args)

    train(grpo, a)
    told = capfd.readouterr()
    said = [f"run folder: {a}", "evaluating the base model first: 8 problems x 8 samples",
            "evaluating the trained model: 8 problems x 8 samples"]
    assert [line for line in told.out.splitlines() if line.startswith(("run folder", "evaluating"))] == said
    first, *_, end = [line for line in told.err.splitlines() if line.startswith("step ")]
    base = json.loads((tmp_path / "a/eval_base.json").read_text())
    rate = sum(row["c"] / row["n"] for row in base["problems"]) / 8
    assert first == f"step 0/2  pass@1 {rate:.3f}" and end.startswith("step 2/2  reward 0.")
    assert not {"\r", "\x1b"} & set(told.err + told.out)
    train(guide_grpo, b)
    assert (tmp_path / "b/curves.png").stat().st_size > 10_000 and "  guided 0." in capfd.readouterr().err
    main(Args(compare=(f"{a}/eval_base.json", a, b), plot=str(tmp_path / "both.png")))
    said = capfd.readouterr().out
    assert "| mean [95 % band] | eval_base " in said and "| change from eval_base, paired | a " in said
    assert (tmp_path / "both.png").stat().st_size > 10_000
