"""What a run logs of its rollouts: whole groups, and what each token of them was worth to the update."""

from importlib import import_module

import pytest
import torch

import guide_grpo
import ppo
from data import Problem
from machinery import logged, rollouts
from machinery.logged import row_shown
from verify import Verdict


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8, most of which are no text alone."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return bytes(ids).decode(errors="replace")


def row(module=guide_grpo, text="4*9=36", guided=False, reward=1.0, **more):
    ids = list(text.encode())
    verdict = Verdict(reward > 0, "right" if reward else "wrong")
    found = module.Row(Problem("p1", "?", "36"), [65], [65, 66] if guided else [65], ids, [-0.5] * len(ids),
                       True, guided, verdict)
    if "trained" in more:  # in the second row of its micro-batch, which is padded
        of_T = more.pop("trained")
        found.trained = {name: torch.stack([v_T, v_T]).repeat(1, 2) for name, v_T in of_T.items()}, 1
        for v_NT in found.trained[0].values():
            v_NT[0] = 7
    for name, value in more.items():
        setattr(found, name, value)
    return found


def test_the_groups_of_a_step_are_whole_and_one_is_guided():
    plain, guided = [row(), row()], [row(), row(guided=True)]
    assert rollouts.chosen([plain, plain, plain]) == [plain, plain]
    assert rollouts.chosen([plain, guided, guided]) == [plain, guided]
    assert [len(group) for group in rollouts.chosen([plain, plain, plain, guided])] == [2, 2, 2]
    taught, both = [row(advantage=1.0), row()], [row(advantage=1.0), row(guided=True)]
    assert rollouts.chosen([plain, plain, plain, taught, taught]) == [plain, plain, taught]
    assert rollouts.chosen([plain, plain, taught, guided]) == [plain, plain, guided, taught]
    assert rollouts.chosen([plain, plain, taught, both]) == [plain, plain, both]
    lines = rollouts.lines([plain, plain, plain, guided], Bytes())
    assert [line["group"] for line in lines] == [0, 0, 1, 1, 2, 2]
    assert [line["guided"] for line in lines] == [False] * 5 + [True]
    assert lines[-1]["sampled_from"] == "AB" and lines[-1]["prompt"] == "A"


def test_a_row_is_logged_with_the_numbers_of_its_update():
    trained = {"old_logp": torch.full((6,), -1.0), "ratio": torch.tensor([1, 1.3, 1, 1, 0.5, float("nan")]),
               "clipped": torch.tensor([False, True, False, False, False, False])}
    (line,) = rollouts.lines([[row(trained=trained, advantage=2.0)]], Bytes())
    assert line["tokens"] == list("4*9=36") and line["engine_logp"] == [-0.5] * 6
    assert line["old_logp"] == [-1.0] * 6 and line["advantage"] == 2.0 and line["n_tokens"] == 6
    assert line["ratio"] == [1.0, 1.3, 1.0, 1.0, 0.5, None]
    assert line["weight"] == [1.0, 0.0, 1.0, 1.0, 0.5, None]  # the clip takes a gradient away
    pushed = {**trained, "push": torch.tensor([-0.5, 0, 0, 0, 0, 0])}
    (line,) = rollouts.lines([[row(trained=pushed, advantage=-2.0)]], Bytes())
    assert line["weight"][0] == 0.25
    (line,) = rollouts.lines([[row()]], Bytes())
    assert "ratio" not in line  # it was not trained on


def test_a_row_with_a_critic_is_logged_token_by_token():
    values = {"values": torch.arange(6.0), "advantage": torch.tensor([0.5, -0.5, 0.5, 0.5, 0.5, 0.5])}
    trained = {"old_logp": torch.zeros(6), "ratio": torch.ones(6), "clipped": torch.zeros(6)}
    (line,) = rollouts.lines([[row(ppo, **values, trained=trained)]], Bytes())
    assert line["values"] == [0, 1, 2, 3, 4, 5] and line["advantages"][:2] == [0.5, -0.5]
    assert line["advantage"] == 0.3333


def test_long_responses_have_the_numbers_of_their_first_tokens(monkeypatch):
    monkeypatch.setattr(rollouts, "TOKENS", 8)
    trained = {name: torch.ones(6) for name in ("old_logp", "ratio", "clipped")}
    for line in rollouts.lines([[row(trained=trained), row(trained=trained)]], Bytes()):
        assert line["completion"] == "4*9=36" and line["n_tokens"] == 6
        assert line["tokens"] == list("4*9=")
        assert [len(line[name]) for name in ("engine_logp", "old_logp", "ratio", "weight")] == [4] * 4
    shown = row_shown(line)
    assert shown["tokens"] == list("4*9=") and shown["rest"] == "36"


@pytest.mark.parametrize("text", ["4*9=36", "žluť 中文 🙂🙂", "", "\n\n"])
def test_tokens_join_to_the_response(text, tokenizer):
    ids = list(text.encode())
    assert "".join(rollouts.pieces(Bytes(), ids)) == text and len(rollouts.pieces(Bytes(), ids)) == len(ids)
    broken = ids[:-1]
    assert "".join(rollouts.pieces(Bytes(), broken)) == Bytes().decode(broken)
    ids = tokenizer("4*9=36\n")["input_ids"]
    assert "".join(rollouts.pieces(tokenizer, ids)) == "4*9=36\n"


@pytest.mark.parametrize("script", ["grpo", "guide_grpo", "nsr", "ppo", "guide_ppo"])
def test_look_knows_the_defaults_of_the_script(script):
    fields = import_module(script).Args.__dataclass_fields__
    assert logged.defaults(script) == {name: field.default for name, field in fields.items()}
    assert logged.changed_args({"script": script, **vars(import_module(script).Args())}) == ""
