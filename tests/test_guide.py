"""Guide's correction, against exact enumeration of every response of a small policy.

The policies are tables of logits, one row a prefix: `plain` is pi(. | x, prefix) with gradient, `hinted` is
pi_old(. | x, g, prefix). Everything is in float64, and every expectation is a sum over all V^T responses.
"""

import itertools

import pytest
import torch

import guide_ppo
from data import Problem, Prompt
from evaluate import guide_metrics
from guide_grpo import fails, policy_loss

V = 3


class Table:
    """All V^T responses under a random table policy: log-probs [V^T, T] of their tokens."""

    def __init__(self, T: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.prefixes = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]
        logits = torch.randn(len(self.prefixes), V, generator=generator, dtype=torch.float64)
        self.logits = logits.requires_grad_()
        self.responses = list(itertools.product(range(V), repeat=T))

    def logp_NT(self):
        logp = self.logits.log_softmax(-1)
        rows = [[logp[self.prefixes.index(y[:t]), y[t]] for t in range(len(y))] for y in self.responses]
        return torch.stack([torch.stack(row) for row in rows])


def setting(T: int):
    plain, hinted = Table(T, seed=1), Table(T, seed=2)
    A_N = torch.randn(V**T, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return plain, hinted.logp_NT().detach(), A_N


def estimator(plain, old_NT, sampled_NT, A_N, guide_ratio, gamma=1.0):
    """E over y ~ exp(sampled_NT) of policy_loss's gradient of guided rows: ascent on the plain logits."""
    logp_NT = plain.logp_NT()
    everything = torch.ones(logp_NT.shape, dtype=torch.bool)
    guided = torch.ones(len(A_N), dtype=torch.bool)
    loss_NT, _ = policy_loss(logp_NT, old_NT, A_N[:, None], everything, guided, 0.2, 0.2, guide_ratio, gamma)
    expectation = (sampled_NT.sum(1).exp()[:, None] * loss_NT).sum()
    return -torch.autograd.grad(expectation, plain.logits)[0]


def exact_gradient(plain, A_N):
    """The gradient of E[y ~ pi(.|x)] A(y), the plain-prompt objective, by differentiating the sum itself."""
    return torch.autograd.grad((plain.logp_NT().sum(1).exp() * A_N).sum(), plain.logits)[0]


@pytest.mark.parametrize("T", [1, 2, 3])
def test_sequence_ratio_is_the_exact_gradient_of_the_plain_objective(T):
    plain, hinted_NT, A_N = setting(T)
    torch.testing.assert_close(
        estimator(plain, hinted_NT, hinted_NT, A_N, "sequence"), exact_gradient(plain, A_N),
        atol=1e-10, rtol=0,
    )


def test_token_ratio_is_exact_for_one_token():
    plain, hinted_NT, A_N = setting(1)
    torch.testing.assert_close(
        estimator(plain, hinted_NT, hinted_NT, A_N, "none"), exact_gradient(plain, A_N), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("T", [2, 3])
def test_token_ratio_is_exact_for_each_next_token_given_hinted_prefixes(T):
    """The paper's per-token ratio: prefixes and continuations are the hint's, the token between is pi's.

    sum over prefixes s of pi_old(s|x,g) sum over v of grad pi(v|x,s) Q(s,v), with Q the expected A of hinted
    continuations; written out here over the tree, without ratios or log-probs.
    """
    plain, hinted_NT, A_N = setting(T)
    p_hinted_N = hinted_NT.sum(1).exp()
    pi = plain.logits.softmax(-1)
    surrogate = torch.zeros((), dtype=torch.float64)
    for row, prefix in enumerate(plain.prefixes):
        here = torch.tensor([y[: len(prefix)] == prefix for y in plain.responses])
        for v in range(V):
            then = here & torch.tensor([y[len(prefix)] == v for y in plain.responses])
            Q = (p_hinted_N * A_N)[then].sum() / p_hinted_N[then].sum()
            surrogate = surrogate + p_hinted_N[here].sum() * pi[row, v] * Q
    exact = torch.autograd.grad(surrogate, plain.logits)[0]
    estimate = estimator(plain, hinted_NT, hinted_NT, A_N, "none")
    torch.testing.assert_close(estimate, exact, atol=1e-10, rtol=0)
    # It is not the gradient of the plain objective itself: hinted prefixes have other weights.
    assert (estimate - exact_gradient(plain, A_N)).abs().max() > 1e-3


@pytest.mark.parametrize("T", [1, 2, 3])
def test_naive_guidance_is_biased(T):
    """Hinted samples taken for plain ones: the old log-probs are those of the plain prompt."""
    plain, hinted_NT, A_N = setting(T)
    naive = estimator(plain, plain.logp_NT().detach(), hinted_NT, A_N, "naive")
    assert (naive - exact_gradient(plain, A_N)).abs().max() > 1e-2
    # and it is right, as every other ratio is, where the hint changes nothing
    same = plain.logp_NT().detach()
    for guide_ratio in ("naive", "none", "sequence", "clip"):
        torch.testing.assert_close(
            estimator(plain, same, same, A_N, guide_ratio), exact_gradient(plain, A_N), atol=1e-10, rtol=0
        )


def test_shaping_tends_to_the_plain_ratio_for_large_gamma():
    plain, hinted_NT, A_N = setting(3)
    shaped = estimator(plain, hinted_NT, hinted_NT, A_N, "shaped", gamma=1e8) * 1e8
    torch.testing.assert_close(shaped, estimator(plain, hinted_NT, hinted_NT, A_N, "none"), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "guide_ratio, loss, slope",  # rho = 3, A = 2, gamma = 1; slope is d loss / d logp = rho d loss / d rho
    [("shaped", -1.5, -2 * 3 / 16), ("none", -6, -6), ("clip", -2.4, 0), ("naive", -2.4, 0),
     ("sequence", -6, -6)],
)
def test_guided_rows_by_hand(guide_ratio, loss, slope):
    logp = torch.log(torch.tensor([[3.0]])).requires_grad_()
    mask, A, guided = torch.tensor([[True]]), torch.tensor([[2.0]]), torch.tensor([True])
    loss_NT, _ = policy_loss(logp, torch.zeros(1, 1), A, mask, guided, 0.2, 0.2, guide_ratio, 1.0)
    assert loss_NT.item() == pytest.approx(loss, rel=1e-6)
    loss_NT.sum().backward()
    assert logp.grad.item() == pytest.approx(slope, rel=1e-6)


def test_sequence_ratio_leaves_padding_out():
    logp, old = torch.log(torch.tensor([[2.0, 3.0, 5.0]])), torch.zeros(1, 3)
    mask = torch.tensor([[True, True, False]])
    A, guided = torch.tensor([[1.0]]), torch.tensor([True])
    loss_NT, _ = policy_loss(logp, old, A, mask, guided, 0.2, 0.2, "sequence", 1.0)
    assert loss_NT[0, 0].item() == pytest.approx(-6.0)


@pytest.mark.parametrize("guide_ratio", ["shaped", "clip", "none", "sequence", "naive"])
def test_plain_rows_keep_the_clip(guide_ratio):
    import grpo

    logp, old = torch.randn(5, 4), torch.randn(5, 4)
    A, mask = torch.randn(5, 1), torch.ones(5, 4, dtype=torch.bool)
    ours = policy_loss(logp, old, A, mask, torch.zeros(5, dtype=torch.bool), 0.2, 0.28, guide_ratio, 0.7)
    for mine, theirs in zip(ours, grpo.policy_loss(logp, old, A, 0.2, 0.28)):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("fails", [fails, guide_ppo.fails], ids=["guide_grpo", "guide_ppo"])
def test_failed_groups_need_a_hint_and_an_accuracy_at_the_threshold(fails):
    class Row:
        def __init__(self, reward):
            self.reward = reward

    groups = [[Row(0.0)] * 4, [Row(0.0)] * 4, [Row(0.0)] * 3 + [Row(1.0)]]
    prompts = [Prompt(Problem("", "", ""), [0], hinted) for hinted in ([1], None, [1])]

    def failed(threshold):
        return [k for k in range(3) if fails(groups[k], prompts[k], threshold)]

    assert failed(0.0) == [0]
    assert failed(0.25) == [0, 2]


def test_what_guidance_did_by_hand():
    class Row:
        def __init__(self, reward, guided):
            self.reward, self.guided = reward, guided

    plain = [[Row(0.0, False)] * 2, [Row(1.0, False)] * 2, [Row(0.0, False)] * 2, [Row(0.0, False)] * 2]
    second = [[Row(1.0, True), Row(0.0, True)]]
    rows = [*plain[0], *second[0], *plain[1]]
    assert guide_metrics(plain, second, rows, [0.1, 0.4, 0.5, 1.0], 0.7) == {
        "guide/failed": 0.25, "guide/reward": 0.5, "guide/share": pytest.approx(1 / 3),
        "guide/ratio": 0.5, "guide/low_ratio": 0.5, "guide/gamma": 0.7,
    }
    none = guide_metrics(plain, [], [], [1.0], 1.0)
    assert (none["guide/failed"], none["guide/reward"], none["guide/share"]) == (0, 0, 0)
