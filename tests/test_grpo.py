"""The maths of grpo.py: against numbers worked by hand, and for what it estimates."""

import math

import pytest
import torch

import grpo
import guide_grpo
from grpo import aggregate, group_advantages, kl_k3, pad, policy_loss, stack, token_logprobs
from machinery.ranks import micro_batches


def test_advantages_by_hand():
    # rewards 1 0 0 0: mean 1/4, squared deviations 9/16 + 3/16, unbiased variance 12/16/3 = 1/4, std 1/2
    A = group_advantages(torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]]))
    half = 0.5 / math.sqrt(1 / 3)
    expected = torch.tensor([[1.5, -0.5, -0.5, -0.5], [0] * 4, [0] * 4, [half, -half, half, -half]])
    torch.testing.assert_close(A, expected, atol=1e-5, rtol=0)


def test_advantages_without_std_are_centred_rewards():
    A = group_advantages(torch.tensor([[1.0, 0, 0, 0]]), norm_std=False)
    torch.testing.assert_close(A, torch.tensor([[0.75, -0.25, -0.25, -0.25]]))


def test_equal_rewards_that_do_not_average_exactly_have_no_advantage():
    # The mean of seven times 0.1 is not 0.1 in float32: a test of the std would let rounding through.
    rewards = torch.full((1, 7), 0.1)
    assert (rewards - rewards.mean()).abs().max() > 0
    assert (group_advantages(rewards) == 0).all()


@pytest.mark.parametrize(
    "ratio, A, loss, clipped",
    [
        (1.0, 1.0, -1.0, False),
        (1.1, 2.0, -2.2, False),  # inside the clip
        (1.5, 1.0, -1.2, True),  # above, A > 0: clipped
        (1.5, -1.0, 1.5, False),  # above, A < 0: min keeps the worse, unclipped
        (0.5, 1.0, -0.5, False),  # below, A > 0: unclipped
        (0.5, -1.0, 0.8, True),  # below, A < 0: clipped
        (1.5, 0.0, 0.0, False),
    ],
)
def test_policy_loss_by_hand(ratio, A, loss, clipped):
    logp = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    args = logp, torch.tensor([[-1.0]]), torch.tensor([[A]])
    loss_NT, clipped_NT = policy_loss(*args, 0.2, 0.2)
    assert loss_NT.item() == pytest.approx(loss, abs=1e-6)
    assert clipped_NT.item() is clipped
    loss_NT.sum().backward()
    assert logp.grad.item() == pytest.approx(0.0 if clipped else -ratio * A, abs=1e-6)  # d rho / d logp = rho


def test_clip_higher_moves_the_upper_clip_only():
    logp, old = torch.tensor([[math.log(1.25)], [math.log(0.5)]]), torch.zeros(2, 1)
    loss_NT, _ = policy_loss(logp, old, torch.tensor([[1.0], [-1.0]]), 0.2, 0.28)
    torch.testing.assert_close(loss_NT, torch.tensor([[-1.25], [0.8]]))


def test_k3_estimates_the_kl_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.9, 0.09, 0.01])
    k3 = kl_k3(p.log(), q.log())
    assert (k3 >= 0).all()
    expectation = (p * k3).sum()  # exact: over all three outcomes of y ~ p
    assert expectation.item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)  # KL(p || q)
    assert abs(expectation.item() - (q * (q / p).log()).sum().item()) > 0.05  # and not KL(q || p)


def test_aggregate_by_hand():
    loss_NT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 50.0, 60.0]])
    mask_NT = torch.tensor([[True, True, True], [True, False, False]])
    of = {"n_tokens": 4, "n_rows": 2, "max_response": 10}
    assert aggregate(loss_NT, mask_NT, "token", **of).item() == pytest.approx(10 / 4)
    assert aggregate(loss_NT, mask_NT, "sequence", **of).item() == pytest.approx((6 / 3 + 4 / 1) / 2)
    assert aggregate(loss_NT, mask_NT, "constant", **of).item() == pytest.approx(10 / 20)


def test_micro_batches_hold_every_row_once_within_the_budget():
    lengths = [5, 1, 9, 3, 3, 12, 2]
    batches = micro_batches(lengths, 12)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 12 for batch in batches)
    # a row over the budget goes alone
    assert micro_batches(lengths, 1) == [[i] for i in (5, 2, 0, 3, 4, 6, 1)]
    assert micro_batches([], 12) == []


PROMPTS = [[310, 51, 311, 55], [310, 51], [310, 55, 311, 55, 311, 261]]
RESPONSES = [[55, 42, 51, 256], [55], [55, 42, 51, 61, 270, 256]]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_are_those_of_the_full_forward_pass(model, temperature):
    ids = pad(PROMPTS, RESPONSES, "cpu")
    for chunk in (1, 3, 4096):
        logp_NT, entropy_NT, mask_NT = token_logprobs(model, *ids, temperature, chunk)
        assert mask_NT.sum(1).tolist() == [4, 1, 6]  # lengths count: 256 is both EOS and padding token
        for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES)):
            full = (model(torch.tensor([p + r])).logits[0] / temperature).log_softmax(-1)
            for t, token in enumerate(r):  # the EOS among them; position len(p) + t - 1 predicts token t
                row = full[len(p) + t - 1]
                assert logp_NT[i, t].item() == pytest.approx(row[token].item(), abs=1e-4)
                assert entropy_NT[i, t].item() == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-4)
            assert (logp_NT[i, len(r) :] == 0).all() and (entropy_NT[i, len(r) :] == 0).all()


def test_padding_of_any_value_changes_nothing(model):
    ids_NL, prompt_N, response_N = pad(PROMPTS, RESPONSES, "cpu")
    before, _, _ = token_logprobs(model, ids_NL, prompt_N, response_N, 1.0)
    beyond = torch.arange(ids_NL.shape[1]) >= (prompt_N + response_N)[:, None]
    after, _, _ = token_logprobs(model, ids_NL.masked_fill(beyond, 256), prompt_N, response_N, 1.0)
    assert torch.equal(before, after)


def test_stack_pads_with_the_policy_itself():
    logp_NT = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]], requires_grad=True)
    out = stack([None, torch.tensor([-5.0])], logp_NT)
    assert out.tolist() == [[-1.0, -2.0], [-5.0, 0.0]] and not out.requires_grad


def test_gathered_log_probs_carry_no_padding():
    """A view would send the whole [N, T] of its micro-batch to the other ranks, once a row."""
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES):
        rows.append(grpo.Row(None, prompt, prompt, response, [], True, False, None))
    policy = grpo.Policy("assets/countdown")
    for logp_T, response in zip(grpo.logprobs(policy, rows, PROMPTS, 1.0, 1000, "cpu"), RESPONSES):
        assert logp_T.untyped_storage().nbytes() == 4 * len(response)


def gradients(model, script, loss_agg, budget):
    """The gradient of a step on three rows, added up over micro-batches of at most `budget` tokens."""
    A, guided = [1.0, -0.5, 0.7], [False, False, True]
    with torch.no_grad():  # ratios on both sides of the clip
        logp_NT, _, _ = token_logprobs(model, *pad(PROMPTS, RESPONSES, "cpu"), 0.7)
    old = [row[: len(r)] + torch.linspace(-0.4, 0.4, len(r)) for row, r in zip(logp_NT, RESPONSES)]
    model.zero_grad()
    for micro in micro_batches([len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES)], budget):
        ids = pad([PROMPTS[i] for i in micro], [RESPONSES[i] for i in micro], "cpu")
        logp_NT, _, mask_NT = token_logprobs(model, *ids, 0.7)
        old_NT, A_N1 = stack([old[i] for i in micro], logp_NT), torch.tensor([[A[i]] for i in micro])
        if script is guide_grpo:
            guided_N = torch.tensor([guided[i] for i in micro])
            how = 0.2, 0.2, "shaped", 0.5
            loss_NT, _ = guide_grpo.policy_loss(logp_NT, old_NT, A_N1, mask_NT, guided_N, *how)
        else:
            loss_NT, _ = policy_loss(logp_NT, old_NT, A_N1, 0.2, 0.2)
        loss_NT = loss_NT + 0.1 * kl_k3(logp_NT, old_NT)
        aggregate(loss_NT, mask_NT, loss_agg, 11, 3, 16).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("script", [None, guide_grpo], ids=["grpo", "guide_grpo"])
@pytest.mark.parametrize("loss_agg", ["token", "sequence", "constant"])
def test_gradient_does_not_depend_on_micro_batches(model, script, loss_agg):
    whole = gradients(model, script, loss_agg, 10_000)
    assert whole.norm() > 1e-3
    for budget in (1, 24):  # one row each; two rows and one
        difference = gradients(model, script, loss_agg, budget) - whole
        assert difference.abs().max() < 1e-5 * whole.abs().max()
