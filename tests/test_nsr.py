"""PSR, NSR, W-REINFORCE: the NSR paper's gradient analysis, and what one update does to a distribution."""

import json

import pytest
import torch

import nsr
from nsr import policy_loss, signed_advantages
from tests.test_loop import BASE
from tests.test_loop import few_problems as few_problems  # of every test here too
from verify import Verdict

RIGHT, WRONG = torch.tensor(1.0), torch.tensor(0.0)


@pytest.mark.parametrize(
    "reinforce, lam, right, wrong",
    [("psr", 9, 1, 0), ("nsr", 9, 0, -1), ("w-reinforce", 0.1, 0.1, -1), ("w-reinforce", 1, 1, -1),
     ("w-reinforce", 0, 0, -1)],
)
def test_advantages_by_hand(reinforce, lam, right, wrong):
    A_N = signed_advantages(torch.stack([RIGHT, WRONG, RIGHT]), reinforce, lam)
    torch.testing.assert_close(A_N, torch.tensor([right, wrong, right], dtype=torch.float32))


def on_policy_gradient(z, v, A):
    """d loss / d logits of a token v sampled from softmax(z), with advantage A, through the script's loss."""
    z = z.clone().requires_grad_()
    logp = z.log_softmax(-1)[v].reshape(1, 1)
    loss_NT, _ = policy_loss(logp, logp.detach(), torch.tensor([[A]], dtype=z.dtype), 0.2, 0.2)
    return torch.autograd.grad(loss_NT.sum(), z)[0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "reward, reinforce",
    [(RIGHT, "psr"), (WRONG, "nsr"), (RIGHT, "w-reinforce"), (WRONG, "w-reinforce")],
)
def test_gradient_on_every_logit_is_the_papers_closed_form(seed, reward, reinforce):
    z = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pi, v = z.softmax(-1), seed
    A = signed_advantages(reward, reinforce, 0.1).item()
    # descent on the loss moves z_v by +A (1 - pi_v) and every other z_u by -A pi_u (paper, section 4)
    ascent = -on_policy_gradient(z, v, A)
    closed = -A * pi
    closed[v] = A * (1 - pi[v])
    torch.testing.assert_close(ascent, closed, atol=1e-6, rtol=0)


def entropy(p):
    return -(p * p.log()).sum()


def test_psr_sharpens_and_nsr_hands_the_mass_to_the_prior():
    z = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0], dtype=torch.float64)
    pi = z.softmax(-1)
    psr = (z - 0.1 * on_policy_gradient(z, 0, 1.0)).softmax(-1)
    assert psr[0] > pi[0] and (psr[1:] < pi[1:]).all() and entropy(psr) < entropy(pi)
    nsr = (z - 0.1 * on_policy_gradient(z, 0, -1.0)).softmax(-1)
    gain = nsr - pi
    assert gain[0] < 0 and (gain[1:] > 0).all() and gain.sum().abs() < 1e-12 and entropy(nsr) > entropy(pi)
    assert (gain[1:-1] > gain[2:]).all()  # the likelier a token was, the more of the mass it gets
    # to first order, a logit step dz moves pi_u by pi_u (dz_u - sum_w pi_w dz_w), here with dz_u = pi_u and
    # dz_0 = pi_0 - 1
    small = (z - 1e-6 * on_policy_gradient(z, 0, -1.0)).softmax(-1)
    mean = (pi**2).sum() - pi[0]
    torch.testing.assert_close((small - pi)[1:] / 1e-6, (pi * (pi - mean))[1:], atol=1e-5, rtol=0)


def test_the_clip_stops_what_has_become_unlikely_enough():
    old = torch.zeros(1, 3)
    logp = torch.tensor([[0.9, 0.85, 0.5]]).log().requires_grad_()
    loss_NT, clipped_NT = policy_loss(logp, old, torch.tensor([[-1.0]]), 0.2, 0.2)
    loss_NT.sum().backward()
    assert clipped_NT.tolist() == [[False, False, True]]
    torch.testing.assert_close(logp.grad, torch.tensor([[0.9, 0.85, 0.0]]))


@pytest.mark.parametrize(
    "reinforce, right, kept, updates",  # of 6 x 4 rows, in mini-batches of 24 / 3 = 8 kept ones
    [("psr", 0, 0, 0), ("psr", 8, 8, 1), ("nsr", 7, 17, 3), ("w-reinforce", 5, 24, 3)],
)
def test_updates_are_counted_in_kept_rows(reinforce, right, kept, updates, tmp_path, monkeypatch):
    original = nsr.rollout

    def judged(*a, **k):
        groups = original(*a, **k)
        for i, row in enumerate(nsr.flat(groups)):
            row.verdict = Verdict(i < right, "right" if i < right else "wrong")
        return groups

    monkeypatch.setattr(nsr, "rollout", judged)
    args = {key: value for key, value in BASE.items() if key not in ("norm_std", "beta")}
    args |= {"reinforce": reinforce, "mini_batches": 3, "lr": 1e-4, "eval_problems": 1, "eval_n": 1}
    run = nsr.main(nsr.Args(**args, run_dir=str(tmp_path / "run")))
    (logged,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (logged["train/rows"], logged["train/updates"]) == (kept, updates)
    assert logged["train/kept"] == pytest.approx(kept / 24, abs=1e-6)
