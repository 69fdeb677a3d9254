"""PPO's estimators by hand and against direct sums; a whole step of `main` against a naive implementation."""

import copy
import json
import math
from importlib import import_module

import numpy as np
import pytest
import torch

from ppo import explained_variance, gae, value_loss, whitened
from tests.test_loop import BASE, MODEL, TIGHT, base_model, flat_weights, full_logp, naive_weights, noisy, sgd
from tests.test_loop import few_problems as few_problems  # of every test here too
from verify import Verdict

LENGTHS = torch.tensor([5, 1, 3])
MASK = torch.arange(5) < LENGTHS[:, None]


def random_case():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)


@pytest.mark.parametrize("gamma, lam", [(0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_double_sum(gamma, lam):
    rewards, values = random_case()
    advantages, returns = gae(rewards, values, MASK, gamma, lam)
    for i, T in enumerate(LENGTHS.tolist()):
        V = [*values[i, :T].tolist(), 0.0]
        delta = [rewards[i, t].item() + gamma * V[t + 1] - V[t] for t in range(T)]
        for t in range(T):
            expected = sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, T))
            assert advantages[i, t].item() == pytest.approx(expected, abs=1e-5)
            assert returns[i, t].item() == pytest.approx(expected + V[t], abs=1e-5)
        assert (advantages[i, T:] == 0).all() and (returns[i, T:] == 0).all()


def test_gae_at_one_is_reward_to_go_minus_value():
    rewards, values = random_case()
    advantages, returns = gae(rewards, values, MASK, 1.0, 1.0)
    to_go = (rewards * MASK).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, (to_go - values) * MASK)
    torch.testing.assert_close(returns, to_go * MASK)


def test_padding_of_any_value_changes_nothing():
    rewards, values = random_case()
    before = gae(rewards, values, MASK, 0.9, 0.8)
    after = gae(rewards.masked_fill(~MASK, 1e9), values.masked_fill(~MASK, -1e9), MASK, 0.9, 0.8)
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert torch.equal(whitened(rewards, MASK), whitened(rewards.masked_fill(~MASK, 1e9), MASK))


def test_whitening_by_hand():
    # 1, 2, 3 are valid: mean 2, standard deviation sqrt(2/3)
    out = whitened(torch.tensor([[1.0, 2.0], [3.0, 99.0]]), torch.tensor([[True, True], [True, False]]))
    torch.testing.assert_close(out, torch.tensor([[-math.sqrt(1.5), 0.0], [math.sqrt(1.5), 0.0]]))


@pytest.mark.parametrize(
    "value, old, target, loss, clipped",
    [
        (1.0, 1.0, 3.0, 2.0, False),  # nothing moved: 0.5 * 2^2
        (1.3, 1.0, 3.0, 0.5 * 1.7**2, False),  # inside the clip
        (2.0, 1.0, 3.0, 0.5 * 1.5**2, True),  # moved too far towards the target: counted as if at 1.5
        (0.0, 1.0, 3.0, 0.5 * 3.0**2, False),  # moved away: the free error is the larger one
    ],
)
def test_value_loss_by_hand(value, old, target, loss, clipped):
    one = lambda x: torch.tensor([[x]])  # noqa: E731
    loss_NT, clipped_NT = value_loss(one(value), one(old), one(target), 0.5)
    assert loss_NT.item() == pytest.approx(loss) and clipped_NT.item() is clipped


def test_explained_variance_by_hand():
    R = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert explained_variance(R, R) == 1 and explained_variance(R * 0 + 7, R) == 0
    assert explained_variance(-R, R) == -3
    assert explained_variance(R, R * 0) == 0


def naive_step(args, groups, critic_head, second=(), dropped=()):
    """The policy after a batch; (row, A, returns, hidden states) of the first samples, by the first critic.

    The critic does not learn from `second` samples, but from `dropped` ones, the policy the other way round.
    """
    model, reference = copy.deepcopy(base_model()), base_model()
    T, rows, all_A, critic_rows = args["temperature"], [], [], []
    for g, group in enumerate(groups):
        for row in group:
            with torch.no_grad():
                context = row.prompt if args.get("guide_ratio") == "naive" else row.sampled_from
                old = full_logp(model, context, row.response, T)
                plain = full_logp(model, row.prompt, row.response, T)
                ref = full_logp(reference, row.prompt, row.response, T) if args["beta"] else plain
            r = -args["beta"] * (plain - ref)
            r[-1] += row.reward
            with torch.no_grad():
                ids = torch.tensor([row.prompt + row.response])  # the critic never sees a hint
                hidden_TD = model.base_model(ids).last_hidden_state[0, len(row.prompt) - 1 : -1]
            V = hidden_TD @ critic_head
            n, gamma, discount = len(r), args["gamma"], args["gamma"] * args["gae_lambda"]
            delta = r + gamma * torch.cat([V[1:], torch.zeros(1)]) - V
            A = torch.stack([sum(discount ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)])
            if all(row is not other for other in second):
                critic_rows.append((row, A, A + V, hidden_TD))
            if all(row is not other for other in dropped):
                rows.append((g, row, A, old, plain))
                all_A.append(A)
    flat = torch.cat(all_A)
    across = [(plain - old).exp() for _, row, _, old, plain in rows if row.guided]
    gamma = max(1e-4, np.quantile(torch.cat(across).numpy(), 0.9)) if across else 1.0
    per_update = len(groups) // args["mini_batches"]
    for start in range(0, len(groups), per_update):
        batch = [r for r in rows if start <= r[0] < start + per_update]
        total = torch.zeros(())
        n_tokens = sum(len(row.response) for _, row, *_ in batch)
        for _, row, A, old, _ in batch:
            A = (A - flat.mean()) / (flat.std(unbiased=False) + 1e-8) if args["whiten"] else A
            entropies = torch.zeros(len(row.response))
            rho = (full_logp(model, row.prompt, row.response, T, entropies) - old).exp()
            clipped = rho.clamp(1 - args["eps_low"], 1 + args["eps_high"])
            gain = rho / (rho + gamma) * A if row.guided else torch.minimum(rho * A, clipped * A)
            gain = gain * torch.tensor(naive_weights(args, row, old))
            total = total - (gain + args.get("entropy_coef", 0.0) * entropies).sum() / n_tokens
        model.zero_grad()
        total.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= args["lr"] * p.grad
    return torch.cat([p.detach().flatten() for p in model.parameters()]), critic_rows


PPO = {k: v for k, v in BASE.items() if k != "norm_std"}
PPO |= {"critic_warmup": 0, "critic_lr": 0.0, "gamma": 1.0, "gae_lambda": 1.0}


@pytest.mark.parametrize(
    "script, head, change",  # head: size of the critic's first weights; 0 is what a run starts with
    [
        ("ppo", 0.0, {"whiten": False}),  # with V = 0 and no whitening this is REINFORCE with the raw reward
        ("ppo", 0.1, {"whiten": True, "gamma": 0.9, "gae_lambda": 0.8, **TIGHT}),
        ("ppo", 0.0, {"whiten": True, "beta": 0.5, "critic_lr": 1e-3}),
        ("ppo", 0.1, {"whiten": False, "critic_lr": 1e-4, "gradient_checkpointing": True}),
        ("guide_ppo", 0.1, {"whiten": True, "gae_lambda": 0.5, **TIGHT}),
        ("guide_ppo", 0.1, {"whiten": False, "beta": 0.5, "critic_lr": 1e-4}),
        ("ppo", 0.1, {"whiten": True, "tis_cap": 1.1, "critic_lr": 1e-4}),
        ("ppo", 0.1, {"whiten": True, "entropy_coef": 0.2, "critic_lr": 1e-4}),
        ("guide_ppo", 0.1, {"guided_group": "replace", "whiten": True, "beta": 0.5, "critic_lr": 1e-4}),
        ("guide_ppo", 0.1, {"guide_with": "nothing", "whiten": True, "critic_lr": 1e-4}),
        ("guide_ppo", 0.1, {"whiten": True, "tis_cap": 1.1, **TIGHT}),
    ],
)
def test_a_step_of_main_is_the_step_of_the_papers(script, head, change, tmp_path, monkeypatch):
    module = import_module(script)
    args = {**PPO, **change}
    critic_head = head * torch.randn(128, generator=torch.Generator().manual_seed(0))
    from_path, critics = module.Critic.__init__, []

    def with_head(self, path):
        from_path(self, path)
        self.head.weight.data.copy_(critic_head)
        critics.append(self)

    monkeypatch.setattr(module.Critic, "__init__", with_head)
    sampled, original = [], module.rollout

    def recorded(*a, **k):
        groups = original(*a, **k)
        if "tis_cap" in args:
            noisy(groups)
        sampled.append(list(groups))
        return groups

    monkeypatch.setattr(module, "rollout", recorded)
    monkeypatch.setattr(torch.optim, "AdamW", sgd)
    run = module.main(module.Args(**args, run_dir=str(tmp_path / "run")))
    groups = list(sampled[0])
    failed = [i for i, group in enumerate(groups) if not any(row.reward for row in group)]
    second, dropped = [], []
    for i, again in zip(failed, sampled[1] if script == "guide_ppo" else []):
        assert all(row.guided == (args.get("guide_with") != "nothing") for row in again)
        dropped += groups[i] if args.get("guided_group") == "replace" else []
        groups[i] = groups[i] + again
        second += again
    assert any(row.reward for group in groups for row in group)
    expected, rows = naive_step(args, groups, critic_head, second, dropped)
    actual, moved = flat_weights(run / "final"), (expected - flat_weights(MODEL)).norm()
    assert moved > 1e-4 and (actual - expected).norm() < 2e-3 * moved

    # The critic's first step moves its head by lr / tokens * sum of (R_t - V_t) h_t, h_t read before token t,
    # plain context.
    if args["critic_lr"]:
        toward = sum((R - hidden_TD @ critic_head) @ hidden_TD for _, _, R, hidden_TD in rows)
        moved = critic_head + args["critic_lr"] * toward / sum(len(row.response) for row, *_ in rows)
        assert (moved - critic_head).norm() > 1e-5
        (critic,) = critics
        torch.testing.assert_close(critic.head.weight[0].detach(), moved, atol=1e-6, rtol=1e-3)


def test_warm_up_moves_the_critic_alone(tmp_path, monkeypatch):
    ppo = import_module("ppo")
    handed, original = [], ppo.weights  # to the sampler: before each step, and at the end

    def recorded(*args):
        handed.append([tensor.clone() for _, tensor in original(*args)])
        return original(*args)

    monkeypatch.setattr(ppo, "weights", recorded)
    args = {**PPO, "critic_lr": 1e-3, "critic_warmup": 2, "steps": 3, "lr": 1e-3}
    run = ppo.main(ppo.Args(**args, run_dir=str(tmp_path / "run")))
    first, second, third = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    moved = [any(not torch.equal(a, b) for a, b in zip(handed[0], weights)) for weights in handed]
    assert moved == [False, False, False, True]
    assert second["train/updates"] == 0 and third["train/updates"] == 1
    assert first["critic/value"] == 0 and second["critic/value"] != 0


class Steps(torch.nn.Module):
    """V is one number a position, whatever the tokens."""

    def __init__(self):
        super().__init__()
        self.V = torch.nn.Parameter(torch.zeros(4))

    def forward(self, ids_NL, prompt_N, response_N):
        T = int(response_N.max())
        return self.V[:T] * (torch.arange(T) < response_N[:, None])


@pytest.mark.parametrize("script", ["ppo", "guide_ppo"])
@pytest.mark.parametrize("updates, tokens", [(1, 1000), (2, 1000), (2, 1), (3, 7), (9, 1000)])
def test_the_critics_mini_batches_are_rows_and_means_over_tokens(script, updates, tokens):
    """Against the same steps of gradient descent by hand; more updates than rows are as many as rows."""
    module = import_module(script)
    rows = []
    for i, T in enumerate([2, 3, 4, 1, 2, 4]):
        row = module.Row(None, [1, 2], [1, 2], [3] * T, [0.0] * T, True, False, Verdict(False, "wrong"))
        row.values, row.returns = torch.zeros(T), torch.arange(T) + 0.1 * i
        rows.append(row)
    critic, means = Steps(), module.TokenMeans()
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.3)
    module.update_critic(critic, optimizer, rows, updates, 9.0, 1e9, tokens, "cpu", means)
    V, losses = [0.0] * 4, []
    size, larger = divmod(len(rows), updates)
    start = 0
    for u in range(updates):
        batch = rows[start : start + size + (u < larger)]
        start += len(batch)
        n_tokens = sum(len(row.response) for row in batch)
        slope = [0.0] * 4
        for row in batch:
            for t, R in enumerate(row.returns.tolist()):
                losses.append(0.5 * (V[t] - R) ** 2)
                slope[t] += (V[t] - R) / n_tokens
        V = [v - 0.3 * s for v, s in zip(V, slope)]
    assert critic.V.tolist() == pytest.approx(V, abs=1e-6)
    assert float(means.sums["critic/loss"]) == pytest.approx(sum(losses), rel=1e-6)
    assert int(means.tokens["critic/loss"]) == len(losses)


@pytest.mark.parametrize("critic_mini_batches, steps", [(0, 2), (5, 5)])
def test_the_critic_takes_as_many_steps_as_it_is_told(critic_mini_batches, steps, tmp_path, monkeypatch):
    ppo, taken = import_module("ppo"), []
    original = torch.optim.AdamW.step

    def counted(self, *a, **k):
        taken.append(self.param_groups[0]["lr"])
        return original(self, *a, **k)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    args = {**PPO, "critic_lr": 1e-3, "lr": 1e-4, "mini_batches": 2, "eval_problems": 1, "eval_n": 1}
    ppo.main(ppo.Args(**args, critic_mini_batches=critic_mini_batches, run_dir=str(tmp_path / "run")))
    assert taken == [1e-3] * steps + [1e-4] * 2


@pytest.mark.parametrize("guided_group", ["union", "replace"])
def test_the_critic_learns_what_plain_samples_reach(guided_group, tmp_path, monkeypatch):
    """Plain samples are right in .2 of all cases, hinted ones always; failed groups are half of all."""
    guide_ppo = import_module("guide_ppo")
    original = guide_ppo.rollout

    def judged(*a, **k):
        groups = original(*a, **k)
        for g, group in enumerate(groups):
            for i, row in enumerate(group):
                right = row.guided or (g % 2 == 0 and i < 2)
                row.verdict = Verdict(right, "right" if right else "wrong")
        return groups

    monkeypatch.setattr(guide_ppo, "rollout", judged)
    args = {**PPO, "prompts": 2, "n": 5, "steps": 11, "critic_warmup": 10, "critic_lr": 3e-3,
            "critic_mini_batches": 1, "guided_group": guided_group, "eval_problems": 1, "eval_n": 1}
    run = guide_ppo.main(guide_ppo.Args(**args, run_dir=str(tmp_path / "run")))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [lines[-1][key] for key in ("critic/return", "guide/reward", "guide/failed")] == [
        pytest.approx(0.2, abs=0.02), 1.0, 0.5]
    assert np.mean([line["critic/value"] for line in lines[-6:]]) == pytest.approx(0.2, abs=0.06)
