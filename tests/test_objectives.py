"""For each of the five: large on-policy batches climb the gradient that the script states, exactly.

The policy is a table of logits over every prefix of a response of T tokens, one table a prompt; the reward of
each of the V^T responses is fixed. Batches are sampled from it and go through the scripts' own functions. The
exact gradients are sums over all responses, by autograd through plain probabilities: no log-probs, ratios,
losses or samples. In every test, the mean over many batches may be off by what its standard error allows and
no more.
"""

from itertools import product
from math import comb

import pytest
import torch

import grpo
import guide_grpo
import guide_ppo
import nsr
import ppo
from data import Problem, Prompt

V, T, G, B = 3, 2, 4, 600  # vocabulary, response tokens, samples a prompt, groups a batch
RESPONSES = torch.tensor(list(product(range(V), repeat=T)))  # [V^T, T]
PREFIX = torch.stack([torch.zeros(V**T, dtype=torch.long), 1 + RESPONSES[:, 0]], 1)  # row each token reads
RIGHT = torch.tensor(
    [[0, 0, 0, 0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 1, 1, 0], [1, 1, 1, 0, 1, 1, 1, 0, 1]]
).double()
X = len(RIGHT)  # prompts: a hard one, that groups of G mostly fail, a middling and an easy one


def table(seed: int) -> torch.Tensor:
    """Logits [X, prefixes, V]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(X, 1 + V, V, generator=generator, dtype=torch.float64).requires_grad_()


# success .14 .45 .94 without and .51 .58 .81 with a hint
POLICY, HINTED, REFERENCE = table(1), table(37), table(5)


def all_logp(logits: torch.Tensor) -> torch.Tensor:
    """Log-probs [X, V^T, T] of the tokens of every response."""
    return logits.log_softmax(-1)[:, PREFIX, RESPONSES]


def chances(logits: torch.Tensor) -> torch.Tensor:
    """[X, V^T], multiplied token by token."""
    return logits.softmax(-1)[:, PREFIX, RESPONSES].prod(-1)


def draw(logits: torch.Tensor, seed: int):
    """Groups of G responses: prompts x_B and responses y_BG, as indices."""
    x_B = torch.arange(B) % X  # as many groups of each prompt
    p_BY = chances(logits.detach())[x_B]
    return x_B, torch.multinomial(p_BY, G, replacement=True, generator=torch.Generator().manual_seed(seed))


def gradient(loss: torch.Tensor) -> torch.Tensor:
    return -torch.autograd.grad(loss, POLICY)[0]


def agrees(batch_gradient, exact: torch.Tensor, batches: int = 60) -> float:
    """Largest |mean - exact| / standard error over the table, of independent batches."""
    estimates = torch.stack([batch_gradient(seed) for seed in range(batches)])
    error = estimates.std(0) / batches**0.5
    assert error.norm() < 0.05 * exact.norm(), "the batches are too few to tell anything"
    some = error > 0
    assert torch.equal(exact[~some].abs() < 1e-12, torch.ones_like(exact[~some], dtype=torch.bool))
    return ((estimates.mean(0) - exact).abs() / error)[some].max().item()


def exact(objective: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(objective, POLICY, retain_graph=True)[0]


def success(logits: torch.Tensor) -> torch.Tensor:
    """The chance p(x) of a right response, [X]."""
    return (chances(logits) * RIGHT).sum(1)


# ---- grpo --------------------------------------------------------------------------------------------------

def group_weight(p: float, norm_std: bool) -> float:
    """How strongly GRPO climbs p(x): its gradient is this times the gradient of p(x), for rewards 0 and 1.

    With K of G right, the A of right and of wrong rows add up to a gradient of  K/G (1 - K/G) / std_K  times
    grad p / (p (1 - p)); K is binomial. Without the division by the std this is 1 - 1/G for every p.
    """
    total = 0.0
    for K in range(1, G):
        std = (K * (G - K) / G / (G - 1)) ** 0.5 + 1e-6 if norm_std else 1.0
        total += comb(G, K) * p**K * (1 - p) ** (G - K) * K / G * (1 - K / G) / std
    return total / (p * (1 - p))


@pytest.mark.parametrize("norm_std", [True, False])
def test_grpo_climbs_the_success_rate_of_each_prompt_with_a_known_weight(norm_std):
    p = success(POLICY)
    weights = torch.tensor([group_weight(v, norm_std) for v in p.tolist()], dtype=torch.float64)
    if not norm_std:
        torch.testing.assert_close(weights, torch.full((X,), 1 - 1 / G, dtype=torch.float64))

    def batch(seed):
        x_B, y_BG = draw(POLICY, seed)
        A_BG = grpo.group_advantages(RIGHT[x_B[:, None], y_BG], norm_std)
        logp_NT = all_logp(POLICY)[x_B[:, None], y_BG].flatten(0, 1)
        loss_NT, _ = grpo.policy_loss(logp_NT, logp_NT.detach(), A_BG.reshape(-1, 1), 0.2, 0.2)
        return gradient(grpo.aggregate(loss_NT, torch.ones_like(loss_NT) > 0, "sequence", 0, B * G, T) * T)

    assert agrees(batch, exact((weights * p).mean())) < 4.5
    assert agrees(batch, exact(p.mean())) > 10  # the prompts' weights do matter, and show


def kl_of_tokens(of: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """KL(of || to) of the next token, summed over the prefixes of responses that POLICY draws: mean over x.

    How often a prefix comes is held still.
    """
    p, q = of.softmax(-1), to.softmax(-1)
    at_prefix_XP = (p * (p / q).log()).sum(-1)
    return (chances(POLICY.detach())[..., None] * at_prefix_XP[:, PREFIX]).sum((1, 2)).mean()


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_grpo_with_a_kl_term_by_enumeration_of_every_group(beta):
    """No samples: all (V^T)^G groups of a prompt, each by its chance.

    What k3 adds to the gradient is that of KL(pi_ref || pi), token by token, although its value is the mean
    KL(pi || pi_ref).
    """
    groups_NG = torch.cartesian_prod(*[torch.arange(V**T)] * G)
    logp_XYT, ref_XYT = all_logp(POLICY), all_logp(REFERENCE).detach()
    total, value = torch.zeros((), dtype=torch.float64), 0.0
    for x in range(X):
        chance_N = chances(POLICY.detach())[x][groups_NG].prod(1)
        A_NG = grpo.group_advantages(RIGHT[x][groups_NG])
        logp_MT, ref_MT = logp_XYT[x][groups_NG].flatten(0, 1), ref_XYT[x][groups_NG].flatten(0, 1)
        loss_MT, _ = grpo.policy_loss(logp_MT, logp_MT.detach(), A_NG.reshape(-1, 1), 0.2, 0.2)
        kl_MT = grpo.kl_k3(logp_MT, ref_MT)
        chance_M1 = chance_N.repeat_interleave(G)[:, None] / G
        total = total + ((loss_MT + beta * kl_MT) * chance_M1).sum() / X
        value += (kl_MT * chance_M1).sum().item() / X
    p = success(POLICY)
    weights = torch.tensor([group_weight(v, True) for v in p.tolist()], dtype=torch.float64)
    claimed = exact((weights * p).mean() - beta * kl_of_tokens(REFERENCE.detach(), POLICY))
    torch.testing.assert_close(gradient(total), claimed, atol=1e-12, rtol=0)
    assert value == pytest.approx(kl_of_tokens(POLICY, REFERENCE).item())
    other = exact((weights * p).mean() - beta * kl_of_tokens(POLICY, REFERENCE))
    assert (other - claimed).norm() > 0.2 * beta * exact(kl_of_tokens(POLICY, REFERENCE)).norm() or beta == 0


def test_k3_of_hinted_responses_is_no_kl():
    hinted_XY1 = chances(HINTED).detach()[..., None]
    k3_XYT = grpo.kl_k3(all_logp(POLICY), all_logp(REFERENCE).detach())
    found = torch.autograd.grad((hinted_XY1 * k3_XYT).sum(), POLICY)[0]
    # The prefixes that the hint draws, and there either KL: neither is what k3 pulls to.
    for of, to in ((POLICY, REFERENCE.detach()), (REFERENCE.detach(), POLICY)):
        p, q = of.softmax(-1), to.softmax(-1)
        at_prefix_XP = (p * (p / q).log()).sum(-1)
        kl = torch.autograd.grad((hinted_XY1 * at_prefix_XP[:, PREFIX]).sum(), POLICY)[0]
        assert (found - kl).norm() > 0.3 * kl.norm()


# ---- nsr ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    "reinforce, lam", [("psr", 0.1), ("nsr", 0.1), ("w-reinforce", 0.1), ("w-reinforce", 1.0)]
)
def test_nsr_climbs_the_expected_signed_reward(reinforce, lam):
    """PSR, NSR, W-REINFORCE: E[A(y)] with A = +1 or 0, 0 or -1, lam or -1."""
    right, wrong = {"psr": (1.0, 0.0), "nsr": (0.0, -1.0), "w-reinforce": (lam, -1.0)}[reinforce]
    p_XY = chances(POLICY)
    A_XY = RIGHT * right + (1 - RIGHT) * wrong

    def batch(seed):
        x_B, y_BG = draw(POLICY, seed)
        A_N = nsr.signed_advantages(RIGHT[x_B[:, None], y_BG].flatten(), reinforce, lam)
        kept = A_N != 0  # the others never enter a forward pass
        logp_NT = all_logp(POLICY)[x_B[:, None], y_BG].flatten(0, 1)[kept]
        loss_NT, _ = nsr.policy_loss(logp_NT, logp_NT.detach(), A_N[kept, None], 0.2, 0.2)
        # one mini-batch of as many rows as were sampled, which counts by the rows that are kept, as in main
        size, n_tokens = B * G, int(kept.sum()) * T
        n_tokens = n_tokens * size / int(kept.sum())
        return gradient(nsr.aggregate(loss_NT, torch.ones_like(loss_NT) > 0, "token", n_tokens, size, T)) * T

    assert agrees(batch, exact((p_XY * A_XY).sum(1).mean())) < 4.5


# ---- ppo ---------------------------------------------------------------------------------------------------

def values(x_N, y_N, truth: bool = False) -> torch.Tensor:
    """A critic's V(x, y_<t), [N, T]: of the policy in truth, or any other numbers of the prefix."""
    if not truth:
        V_XP = torch.randn(X, 1 + V, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    else:
        p_XY = chances(POLICY.detach())
        after = []
        for v in range(V):
            here = RESPONSES[:, 0] == v
            after.append((p_XY * RIGHT)[:, here].sum(1) / p_XY[:, here].sum(1))
        V_XP = torch.stack([(p_XY * RIGHT).sum(1), *after], 1)
    return V_XP[x_N[:, None], PREFIX[y_N]]


def ppo_advantages(x_N, y_N, truth: bool, lam: float, beta: float) -> torch.Tensor:
    mask_NT = torch.ones(len(x_N), T, dtype=torch.bool)
    rewards_NT = -beta * (all_logp(POLICY) - all_logp(REFERENCE)).detach()[x_N, y_N]
    rewards_NT[:, -1] += RIGHT[x_N, y_N]
    return ppo.gae(rewards_NT, values(x_N, y_N, truth), mask_NT, 1.0, lam)[0]


@pytest.mark.parametrize(
    "truth, lam, beta", [(False, 1.0, 0.0), (False, 1.0, 0.3), (True, 0.0, 0.0), (True, 0.7, 0.0)]
)
def test_ppo_climbs_reward_less_kl_for_any_critic(truth, lam, beta):
    """E[r] - beta KL(pi | ref): with lambda 1 for any critic, with lambda < 1 for one that is right."""
    p_XY, q_XY = chances(POLICY), chances(REFERENCE).detach()
    objective = (p_XY * (RIGHT - beta * (p_XY / q_XY).log())).sum(1).mean()

    def batch(seed):
        x_B, y_BG = draw(POLICY, seed)
        x_N, y_N = x_B.repeat_interleave(G), y_BG.flatten()
        logp_NT = all_logp(POLICY)[x_N, y_N]
        A_NT = ppo_advantages(x_N, y_N, truth, lam, beta)
        loss_NT, _ = ppo.policy_loss(logp_NT, logp_NT.detach(), A_NT, 0.2, 0.2)
        everything = torch.ones_like(loss_NT) > 0
        return gradient(ppo.aggregate(loss_NT, everything, "token", B * G * T, B * G, T)) * T

    assert agrees(batch, exact(objective)) < 4.5


def test_ppo_is_biased_by_a_wrong_critic_when_lambda_is_below_1():
    def batch(seed):
        x_B, y_BG = draw(POLICY, seed)
        x_N, y_N = x_B.repeat_interleave(G), y_BG.flatten()
        logp_NT = all_logp(POLICY)[x_N, y_N]
        A_NT = ppo_advantages(x_N, y_N, False, 0.0, 0.0)
        loss_NT, _ = ppo.policy_loss(logp_NT, logp_NT.detach(), A_NT, 0.2, 0.2)
        return gradient(loss_NT.sum() / (B * G))

    assert agrees(batch, exact(success(POLICY).mean())) > 10


def test_whitening_divides_the_gradient_by_the_spread_of_the_advantages():
    p_XY = chances(POLICY.detach()) / X
    every = torch.cartesian_prod(torch.arange(X), torch.arange(V**T))
    A_NT = ppo_advantages(every[:, 0], every[:, 1], True, 1.0, 0.0)
    weight_NT = p_XY.reshape(-1, 1).expand(-1, T) / T
    std = (weight_NT * (A_NT - (weight_NT * A_NT).sum()) ** 2).sum().sqrt()

    def batch(seed):
        x_B, y_BG = draw(POLICY, seed)
        x_N, y_N = x_B.repeat_interleave(G), y_BG.flatten()
        A_NT = ppo_advantages(x_N, y_N, True, 1.0, 0.0)
        logp_NT = all_logp(POLICY)[x_N, y_N]
        white_NT = ppo.whitened(A_NT, torch.ones_like(A_NT) > 0)
        loss_NT, _ = ppo.policy_loss(logp_NT, logp_NT.detach(), white_NT, 0.2, 0.2)
        return gradient(loss_NT.sum() / len(x_N))

    assert agrees(batch, exact(success(POLICY).mean()) / std) < 4.5


# ---- guidance ----------------------------------------------------------------------------------------------

def guided_sum(guide_ratio: str, gamma: float, weights_XYT: torch.Tensor) -> torch.Tensor:
    """The sum over all hinted responses of their chance times w(rho_t) times each token's given weight, [X].

    `sequence` is written as what it stands for: the same sum over plain responses, whose gradient acts token
    by token.
    """
    hinted_XY = chances(HINTED).detach()
    plain_XYT = POLICY.softmax(-1)[:, PREFIX, RESPONSES]
    rho_XYT = plain_XYT / HINTED.detach().softmax(-1)[:, PREFIX, RESPONSES]
    if guide_ratio == "sequence":
        still_XYT = plain_XYT.detach()
        return (plain_XYT / still_XYT * weights_XYT * still_XYT.prod(-1, keepdim=True)).sum((1, 2))
    if guide_ratio == "shaped":
        rho_XYT = rho_XYT / (rho_XYT + gamma)
    return (hinted_XY[..., None] * rho_XYT * weights_XYT).sum((1, 2))


class Sampled:
    def __init__(self, reward):
        self.reward = reward


def guided_batch(script, x_B, y_BG, seed):
    """The failed groups, by the script's own test, and their hinted responses: (indices, y_FG)."""
    groups = [tuple(rewards) for rewards in RIGHT[x_B[:, None], y_BG].tolist()]
    prompt = Prompt(Problem("", "", ""), [0], [1])
    fails = {group: script.fails([Sampled(r) for r in group], prompt, 0.0) for group in set(groups)}
    failed = torch.tensor([b for b, group in enumerate(groups) if fails[group]])
    p_FY, generator = chances(HINTED.detach())[x_B[failed]], torch.Generator().manual_seed(1000 + seed)
    return failed, torch.multinomial(p_FY, G, replacement=True, generator=generator)


@pytest.mark.parametrize("guide_ratio", ["shaped", "none", "sequence"])
def test_guide_grpo_climbs_plain_and_guided_terms(guide_ratio):
    """Union: with the exact ratio each prompt's update is a positive multiple of p(x)'s gradient."""
    p, q, gamma = success(POLICY), success(HINTED).detach(), 0.8
    right = guided_sum(guide_ratio, gamma, RIGHT[..., None].expand(-1, -1, T))
    wrong = guided_sum(guide_ratio, gamma, 1 - RIGHT[..., None].expand(-1, -1, T))
    objective = torch.zeros((), dtype=torch.float64)
    for x in range(X):
        px, qx = p[x].item(), q[x].item()
        objective = objective + group_weight(px, True) * p[x]  # groups with some right
        for J in range(1, G + 1):  # failed ones: J of the G hinted are right, 2 G in the union
            std = (J * (2 * G - J) / (2 * G) / (2 * G - 1)) ** 0.5 + 1e-6
            up, down = (1 - J / (2 * G)) / std, -J / (2 * G) / std
            chance = (1 - px) ** G * comb(G, J) * qx**J * (1 - qx) ** (G - J)
            plain = down * G * (1 - p[x]) / (1 - px)  # the G failed plain rows
            hinted = up * J * right[x] / qx + down * (G - J) * wrong[x] / (1 - qx)
            objective = objective + chance / G * (hinted + plain)
    if guide_ratio == "sequence":
        for climbed, of_p in zip(exact(objective), exact(p.sum())):
            slope = (climbed * of_p).sum() / (of_p * of_p).sum()
            assert slope > 0.4
            torch.testing.assert_close(climbed, slope * of_p, atol=1e-12, rtol=0)

    def batch(seed):
        x_B, y_BG = draw(POLICY, seed)
        failed, y_FG = guided_batch(guide_grpo, x_B, y_BG, seed)
        rewards_BG, hinted_FG = RIGHT[x_B[:, None], y_BG], RIGHT[x_B[failed][:, None], y_FG]
        A_BG = guide_grpo.group_advantages(rewards_BG)
        union_F2G = guide_grpo.group_advantages(torch.cat([rewards_BG[failed], hinted_FG], 1))
        A_BG[failed] = union_F2G[:, :G]
        A_N1 = torch.cat([A_BG.flatten(), union_F2G[:, G:].flatten()])[:, None]
        logp = all_logp(POLICY)
        plain_NT, hinted_at = logp[x_B[:, None], y_BG].flatten(0, 1), (x_B[failed][:, None], y_FG)
        across_NT = logp[hinted_at].flatten(0, 1)
        old_NT = torch.cat([plain_NT.detach(), all_logp(HINTED).detach()[hinted_at].flatten(0, 1)])
        guided_N = torch.arange(len(A_N1)) >= len(plain_NT)
        logp_NT = torch.cat([plain_NT, across_NT])
        loss_NT, _ = guide_grpo.policy_loss(
            logp_NT, old_NT, A_N1, torch.ones_like(logp_NT) > 0, guided_N, 0.2, 0.2, guide_ratio, gamma
        )
        return gradient(loss_NT.sum() / len(x_B) / G)

    assert agrees(batch, exact(objective / X)) < 4.5


@pytest.mark.parametrize("guide_ratio", ["shaped", "none", "sequence"])
def test_guide_ppo_climbs_plain_and_guided_terms(guide_ratio):
    """For any critic, with the exact ratio: p(x) times 1 + P(all G fail), that chance held constant."""
    p, gamma = success(POLICY), 0.8
    every_V = torch.stack([values(torch.full((V**T,), x), torch.arange(V**T)) for x in range(X)])
    failure = (1 - p.detach()) ** G
    objective = (p + failure * guided_sum(guide_ratio, gamma, RIGHT[..., None] - every_V)).mean()
    if guide_ratio == "sequence":
        torch.testing.assert_close(exact(objective), exact(((1 + failure) * p).mean()), atol=1e-12, rtol=0)

    def batch(seed):
        x_B, y_BG = draw(POLICY, seed)
        failed, y_FG = guided_batch(guide_ppo, x_B, y_BG, seed)
        x_N = torch.cat([x_B.repeat_interleave(G), x_B[failed].repeat_interleave(G)])
        y_N = torch.cat([y_BG.flatten(), y_FG.flatten()])
        guided_N = torch.arange(len(x_N)) >= len(x_B) * G
        logp_NT = all_logp(POLICY)[x_N, y_N]
        old_NT = torch.where(guided_N[:, None], all_logp(HINTED).detach()[x_N, y_N], logp_NT.detach())
        A_NT = ppo_advantages(x_N, y_N, False, 1.0, 0.0)
        loss_NT, _ = guide_ppo.policy_loss(
            logp_NT, old_NT, A_NT, torch.ones_like(A_NT) > 0, guided_N, 0.2, 0.2, guide_ratio, gamma
        )
        return gradient(loss_NT.sum() / len(x_B) / G)

    assert agrees(batch, exact(objective)) < 4.5
