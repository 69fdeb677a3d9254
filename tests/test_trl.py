"""The losses of GRPO and PPO-clip against TRL, an independent implementation.

Skipped where TRL is absent; CI installs it. TRL's trainer scores rows that it pads left and right, with
attention masks and from whole logits; ours pads right and looks at response tokens alone. Loss and gradient
of the same rows must agree. Where the two differ by design:
- TRL adds 1e-4 to a group's std and we 1e-6, the paper having none: both are given the advantages here;
- TRL multiplies k3 by the ratio unless told not to, the paper does not;
- TRL has no PPO trainer any more: PPO-clip is the same loss with an advantage for each token, which its GRPO
  loss takes.
"""

from dataclasses import asdict

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo
import nsr
import ppo
from tests import benchmark_side
from tests.benchmark import Case
from tests.benchmark_side import Notes

trl = pytest.importorskip("trl")

MODEL = "assets/countdown"
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15]]
RESPONSES = [[20, 21, 22, 1], [30, 31], [40, 41, 42, 43, 44, 45], [50]]
TEMPERATURE, EPS_LOW, EPS_HIGH, MAX_RESPONSE = 0.7, 0.2, 0.28, 8


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    def make(**settings):
        config = trl.GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to=[],
            num_generations=2, per_device_train_batch_size=4, temperature=TEMPERATURE, epsilon=EPS_LOW,
            epsilon_high=EPS_HIGH, max_completion_length=MAX_RESPONSE, gradient_checkpointing=False,
            use_bias_correction_kl=False, **settings,
        )
        made = trl.GRPOTrainer(
            model=MODEL, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
            train_dataset=Dataset.from_list([{"prompt": "1"}] * 4),
            processing_class=AutoTokenizer.from_pretrained(MODEL),
        )
        made.current_gradient_accumulation_steps = 1
        made.model.eval()  # no dropout in this model: only TRL's own bookkeeping depends on the mode
        return made

    return make


def rows(per_token: bool):
    generator = torch.Generator().manual_seed(0)
    T = max(map(len, RESPONSES))
    # Moves the ratio to both sides of both clips.
    noise_NT = 0.3 * torch.randn(len(PROMPTS), T, generator=generator)
    ref_NT = 0.5 * torch.randn(len(PROMPTS), T, generator=generator)
    A = torch.randn(len(PROMPTS), T if per_token else 1, generator=generator)
    return noise_NT, ref_NT, A


def trl_inputs(old_NT, ref_NT, A):
    """Prompts padded left, responses right, as TRL has them."""
    L, T = max(map(len, PROMPTS)), max(map(len, RESPONSES))
    return {
        "prompt_ids": torch.tensor([[0] * (L - len(p)) + p for p in PROMPTS]),
        "prompt_mask": torch.tensor([[0] * (L - len(p)) + [1] * len(p) for p in PROMPTS]),
        "completion_ids": torch.tensor([r + [0] * (T - len(r)) for r in RESPONSES]),
        "completion_mask": torch.tensor([[1] * len(r) + [0] * (T - len(r)) for r in RESPONSES]),
        "advantages": A if A.shape[1] > 1 else A[:, 0],
        "old_per_token_logps": old_NT, "ref_per_token_logps": ref_NT,
    }


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters())])


@pytest.mark.parametrize(
    "script, per_token, beta", [(grpo, False, 0.0), (grpo, False, 0.3), (nsr, False, 0.0), (ppo, True, 0.0)]
)
@pytest.mark.parametrize(
    "loss_agg, loss_type", [("token", "bnpo"), ("sequence", "grpo"), ("constant", "dr_grpo")]
)
def test_loss_and_gradient_are_trls(trainer, script, per_token, beta, loss_agg, loss_type):
    noise_NT, ref_noise_NT, A = rows(per_token)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    logp_NT, _, mask_NT = script.token_logprobs(model, *script.pad(PROMPTS, RESPONSES, "cpu"), TEMPERATURE)
    old_NT, ref_NT = (logp_NT + noise_NT).detach(), (logp_NT + ref_noise_NT).detach()
    loss_NT, clipped_NT = script.policy_loss(logp_NT, old_NT, A, EPS_LOW, EPS_HIGH)
    assert 0 < clipped_NT[mask_NT].sum() < mask_NT.sum()
    if beta:
        loss_NT = loss_NT + beta * grpo.kl_k3(logp_NT, ref_NT)
    n_tokens = sum(map(len, RESPONSES))
    ours = script.aggregate(loss_NT, mask_NT, loss_agg, n_tokens, len(PROMPTS), MAX_RESPONSE)
    ours.backward()

    theirs = trainer(loss_type=loss_type, beta=beta)
    loss = theirs._compute_loss(theirs.model, trl_inputs(old_NT, ref_NT, A))
    loss.backward()
    assert abs(ours.item() - loss.item()) < 1e-6
    gradient = flat_gradient(theirs.model)
    assert (flat_gradient(model) - gradient).norm() < 1e-5 * gradient.norm()


def test_the_benchmark_sees_into_a_step_of_trl(tmp_path):
    """Its phases are methods of TRL that another version may name otherwise."""
    case = Case("embedded", MODEL, "countdown", "countdown", prompts=2, n=4, max_response=12,
                usual_response=12)
    task, notes = {"case": asdict(case), "steps": 2, "run_dir": str(tmp_path)}, Notes()
    benchmark_side.trl(task, notes)
    assert len(notes.steps) == 2 and len(notes.begins) == 3
    for step, begin, end in zip(notes.steps, notes.begins, notes.begins[1:]):
        assert {"rollout", "verify", "update", "rest"} == step["seconds"].keys()
        assert min(step["seconds"].values()) > 0 and sum(step["seconds"].values()) <= end - begin
        assert 8 <= step["sampled"] <= 8 * 12
        assert step["trained"] > step["sampled"] and step["rows"] == 8
