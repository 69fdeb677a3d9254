"""One whole step of each script's `main` against a second, naive implementation of the papers.

The optimizer is replaced by SGD, so that the weights after the step show every denominator, sign and scale of
the gradient. The rows that the script sampled are recorded; everything after sampling is computed here again,
one row at a time, from full logits, in loops.
"""

import copy
import json
import math
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import data

MODEL = "assets/countdown"


@cache
def some_problems(*args, load=data.load, **keywords):
    return load(*args, **keywords)[:64]


@pytest.fixture(autouse=True)
def few_problems(monkeypatch):
    """Encoding and verifying all 2534 takes longer than everything that is tested here."""
    monkeypatch.setattr(data, "load", some_problems)


def sgd(params, lr, weight_decay, fused):
    """In the place of AdamW."""
    return torch.optim.SGD(params, lr=lr)


@cache
def base_model():
    """Whoever changes it takes a copy."""
    return AutoModelForCausalLM.from_pretrained(MODEL)


def flat_weights(path):
    model = base_model() if path == MODEL else AutoModelForCausalLM.from_pretrained(path)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def full_logp(model, prompt, response, temperature, entropies=None):
    logits = model(torch.tensor([prompt + response])).logits[0] / temperature
    if entropies is not None:
        at = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        entropies += torch.distributions.Categorical(logits=logits[at]).entropy()
    logp = logits.log_softmax(-1)
    return torch.stack([logp[len(prompt) + t - 1, token] for t, token in enumerate(response)])


def advantages(rewards, norm_std):
    mean = sum(rewards) / len(rewards)
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) + 1e-6
    return [(r - mean) / (std if norm_std else 1.0) for r in rewards]


def noisy(groups):
    """A sampler that is off: its log-probs are not the trainer's. In place; `said` is a copy."""
    for i, row in enumerate(row for group in groups for row in group):
        noise = np.random.default_rng(i).normal(0, 0.2, len(row.response))
        row.engine_logp = (np.array(row.engine_logp) + noise).tolist()
        row.said = list(row.engine_logp)
    return groups


def naive_weights(args, row, old):
    """min(pi_old / pi_engine, cap) per token, 1 where both are not of one context."""
    if not args.get("tis_cap") or (row.guided and args.get("guide_ratio") == "naive"):
        return [1.0] * len(old)
    return [min(math.exp(o - e), args["tis_cap"]) for o, e in zip(old.tolist(), row.said)]


def naive_gap(pairs) -> dict:
    """engine/* of a step, from (trainer's, sampler's) log-probs of every token trained on."""
    gaps = [o - e for o, e in pairs]
    ratios = [math.exp(gap) for gap in gaps]
    return {
        "engine/gap_mean": np.mean(np.abs(gaps)), "engine/gap_max": max(map(abs, gaps)),
        "engine/k3": np.mean([ratio - gap - 1 for ratio, gap in zip(ratios, gaps)]),
        "engine/ess": sum(ratios) ** 2 / len(ratios) / sum(ratio**2 for ratio in ratios),
    }


def naive_step(args, groups):
    """The weights after one rollout batch `groups` (lists of rows), by SGD on the objective of the header."""
    model, reference = copy.deepcopy(base_model()), base_model()
    T = args["temperature"]
    rows = []
    for g, group in enumerate(groups):
        if "reinforce" in args:
            of_rewards = {"psr": (1, 0), "nsr": (0, -1), "w-reinforce": (args["lam"], -1)}
            right, wrong = of_rewards[args["reinforce"]]
            signed = [(row, right if row.reward else wrong) for row in group]
            signed = [(row, A) for row, A in signed if A != 0]
        else:
            signed = zip(group, advantages([row.reward for row in group], args["norm_std"]))
        for row, A in signed:
            with torch.no_grad():
                context = row.prompt if args.get("guide_ratio") == "naive" else row.sampled_from
                old = full_logp(model, context, row.response, T)
                plain = full_logp(model, row.prompt, row.response, T)
                ref = full_logp(reference, row.prompt, row.response, T) if args.get("beta") else plain
            rows.append((g, row, A, old, plain, ref))
    beta, entropy_coef = args.get("beta", 0.0), args.get("entropy_coef", 0.0)
    across = [(plain - old).exp() for _, row, A, old, plain, _ in rows if row.guided and (A != 0 or beta)]
    quantile = np.quantile(torch.cat(across).numpy(), 0.9) if across else 1.0
    gamma = args.get("guide_gamma") or max(1e-4, quantile)
    lr = args["lr"] * min(1, 1 / max(1, args["warmup"]))
    updates, share = [], 1.0  # share: how much of a whole mini-batch an update is
    if "reinforce" in args:  # mini-batches of kept rows
        size = args["prompts"] * args["n"] // args["mini_batches"]
        for start in range(0, len(rows), size):
            updates.append(rows[start : start + size])
    else:
        per_update = len(groups) // args["mini_batches"]
        for start in range(0, len(groups), per_update):
            updates.append([r for r in rows if start <= r[0] < start + per_update])
    pushes = {"train/push_plain": 0.0, "train/push_guided": 0.0}
    trained = sum(len(row.response) for _, row, A, *_ in rows if A != 0 or beta or entropy_coef)
    for batch in updates:
        n_tokens = sum(len(row.response) for _, row, *_ in batch)
        if "reinforce" in args:
            share = len(batch) / size
        total = torch.zeros(())
        for _, row, A, old, _, ref in batch:
            entropies, losses = torch.zeros(len(row.response)), []
            logp = full_logp(model, row.prompt, row.response, T, entropies)
            weights = naive_weights(args, row, old)
            for t in range(len(row.response)):
                rho = (logp[t] - old[t]).exp()
                how = args.get("guide_ratio", "shaped") if row.guided else "clip"
                if how == "shaped":
                    gain, slope = rho / (rho + gamma) * A, rho * gamma / (rho + gamma) ** 2 * A
                elif how == "none":
                    gain = slope = rho * A
                elif how == "sequence":
                    slope = (logp - old).sum().exp().detach() * A
                    gain = slope * logp[t]
                else:
                    clipped = torch.clamp(rho, 1 - args["eps_low"], 1 + args["eps_high"])
                    gain = torch.minimum(rho * A, clipped * A)
                    slope = rho * A * (gain == rho * A)
                pushes["train/push_guided" if row.guided else "train/push_plain"] += slope.item() / trained
                k3 = (ref[t] - logp[t]).exp() - (ref[t] - logp[t]) - 1
                losses.append(-weights[t] * gain + beta * k3 - entropy_coef * entropies[t])
            if args["loss_agg"] == "token":
                total = total + share * sum(losses) / n_tokens
            elif args["loss_agg"] == "sequence":
                total = total + share * sum(losses) / len(losses) / len(batch)
            else:
                total = total + share * sum(losses) / (len(batch) * args["max_response"])
        model.zero_grad()
        total.backward()
        if not total.requires_grad or not batch:
            continue
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
        with torch.no_grad():
            for p in model.parameters():
                p -= lr * min(1.0, args["grad_clip"] / norm) * p.grad
    pairs = []
    for _, row, A, old, *_ in rows:
        if A != 0 or beta:
            pairs += zip(old.tolist(), getattr(row, "said", []))
    return torch.cat([p.detach().flatten() for p in model.parameters()]), gamma, pairs, pushes


# Seed 33: of the six groups, 0 to 4 of 4 are right, and in both halves some rows have a gradient.
BASE = {
    "data": "countdown", "steps": 1, "prompts": 6, "n": 4, "seed": 33, "temperature": 0.7, "max_response": 16,
    "lr": 0.1, "warmup": 0, "grad_clip": 1e9, "mini_batches": 1, "eps_low": 0.2, "eps_high": 0.2,
    "norm_std": True, "loss_agg": "token", "beta": 0.0, "eval_problems": 2, "eval_n": 2,
    "eval_every": 0, "device": "cpu",
}  # fmt: skip
# The second update meets both clips.
TIGHT = {"mini_batches": 2, "eps_low": 0.002, "eps_high": 0.01, "lr": 0.3}


@pytest.mark.parametrize(
    "script, change",
    [
        ("grpo", {}),
        ("grpo", {"loss_agg": "sequence", "norm_std": False, "warmup": 4, "gradient_checkpointing": True}),
        ("grpo", {"loss_agg": "constant", "beta": 0.5, **TIGHT}),
        ("grpo", {"grad_clip": 0.01, **TIGHT}),
        ("nsr", {"reinforce": "psr", "lam": 0.1, "entropy_coef": 0.0}),
        ("nsr", {"reinforce": "nsr", "lam": 0.1, "entropy_coef": 0.3, "loss_agg": "sequence"}),
        ("nsr", {"reinforce": "w-reinforce", "lam": 0.3, "entropy_coef": 0.1, **TIGHT}),
        ("nsr", {"reinforce": "nsr", "lam": 0.1, "entropy_coef": 0.0, **TIGHT, "mini_batches": 3}),
        ("grpo", {"entropy_coef": 0.3, "loss_agg": "sequence"}),
        pytest.param("guide_grpo", {}, id="guide_grpo-defaults"),  # docs/reading-order.md names it
        ("guide_grpo", {"beta": 0.5, **TIGHT}),
        ("guide_grpo", {"guided_group": "replace", "guide_threshold": 0.25, "loss_agg": "sequence"}),
        ("guide_grpo", {"guided_group": "replace", "entropy_coef": 0.2}),
        ("guide_grpo", {"guide_with": "nothing"}),
        ("guide_grpo", {"guide_ratio": "clip", **TIGHT}),
        ("guide_grpo", {"guide_ratio": "none", "norm_std": False, "temperature": 1.5}),
        ("guide_grpo", {"guide_ratio": "sequence"}),
        ("guide_grpo", {"guide_ratio": "naive", **TIGHT}),
        ("guide_grpo", {"guide_gamma": 0.3, "guide_threshold": 0.5}),
        ("grpo", {"tis_cap": 1.1}),
        ("grpo", {"tis_cap": 1.1, "beta": 0.5, **TIGHT}),
        ("nsr", {"tis_cap": 1.1, "reinforce": "w-reinforce", "lam": 0.3, "entropy_coef": 0.1}),
        ("guide_grpo", {"tis_cap": 1.1, "loss_agg": "sequence", **TIGHT}),
        ("guide_grpo", {"tis_cap": 1.1, "guide_ratio": "naive"}),
    ],
)
def test_a_step_of_main_is_the_step_of_the_papers(script, change, tmp_path, monkeypatch):
    module = import_module(script)
    args = {**BASE, **change}
    if script == "nsr":
        args = {key: value for key, value in args.items() if key not in ("norm_std", "beta")}
    sampled = []

    def recorded(*a, **k):
        groups = original(*a, **k)
        if "tis_cap" in args:
            noisy(groups)
        sampled.append(list(groups))
        return groups

    original = module.rollout
    monkeypatch.setattr(module, "rollout", recorded)
    monkeypatch.setattr(torch.optim, "AdamW", sgd)
    entropy_grads, token_logprobs = set(), module.token_logprobs

    def noted(*a, entropy_grad, **k):
        entropy_grads.add(entropy_grad)
        return token_logprobs(*a, entropy_grad=entropy_grad, **k)

    monkeypatch.setattr(module, "token_logprobs", noted)
    run = module.main(module.Args(**args, run_dir=str(tmp_path / "run")))
    assert (True in entropy_grads) == (args.get("entropy_coef", 0.0) > 0)  # a bonus of 0 costs no memory

    groups = list(sampled[0])
    accuracies = [sum(row.reward for row in group) / len(group) for group in groups]
    assert len(set(accuracies)) > 1, "the seed must give failed and solved groups"
    if script == "guide_grpo":
        failed = [i for i, accuracy in enumerate(accuracies) if accuracy <= args.get("guide_threshold", 0.0)]
        assert failed and len(failed) == len(sampled[1])
        for i, second in reversed(list(zip(failed, sampled[1]))):
            for row in second:
                assert row.guided == (args.get("guide_with") != "nothing") == (row.sampled_from != row.prompt)
                assert row.problem == groups[i][0].problem
            if args.get("guided_group") != "replace":
                groups[i] = groups[i] + second
            elif accuracies[i] > 0:  # partly right: both groups, each with an advantage of its own
                groups.insert(i + 1, second)
            else:
                groups[i] = second
    if args.get("guided_group") == "replace":
        assert (len(groups) > args["prompts"]) == (args.get("guide_threshold", 0.0) > 0)
    if "reinforce" not in args:  # said before what follows from them: gamma, pushes, weights
        for group in groups:
            by_hand = advantages([row.reward for row in group], args["norm_std"])
            assert [row.advantage for row in group] == pytest.approx(by_hand, abs=1e-5)
    expected, gamma, pairs, pushes = naive_step(args, groups)
    (logged,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged.get("guide/gamma", gamma) == pytest.approx(gamma, rel=5e-6, abs=2e-6)
    if pairs and args.get("guide_ratio") != "naive":
        assert {key: logged[key] for key in naive_gap(pairs)} == pytest.approx(naive_gap(pairs), abs=2e-5)
        assert logged["engine/gap_mean"] > 0.1 and 0.9 < logged["engine/ess"] < 0.99
    if script == "guide_grpo":
        assert {key: logged[key] for key in pushes} == pytest.approx(pushes, abs=1e-4)
    actual, moved = flat_weights(run / "final"), (expected - flat_weights(MODEL)).norm()
    assert moved > 1e-4
    assert (actual - expected).norm() < 2e-3 * moved


def test_the_reference_model_stands_still(tmp_path):
    grpo = import_module("grpo")
    args = {**BASE, "steps": 2, "beta": 0.1, "lr": 1e-3, "run_dir": str(tmp_path / "run")}
    run = grpo.main(grpo.Args(**args))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line)["train/kl"] for line in lines)
    assert first == 0 and second > 1e-6


def test_rounds_without_a_failed_group(tmp_path, monkeypatch):
    guide_grpo = import_module("guide_grpo")
    (tmp_path / "yes.py").write_text("def right(completion, problem):\n    return True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    small = {**BASE, "prompts": 2, "run_dir": str(tmp_path / "run"), "verifier": "yes:right"}
    run = guide_grpo.main(guide_grpo.Args(**small, filter_rounds=2))
    (line,) = (Path(run) / "metrics.jsonl").read_text().splitlines()
    m = json.loads(line)
    assert m["guide/failed"] == 0 and m["rollout/mastered"] == 1 and m["train/updates"] == 0


def test_refilled_groups_are_of_new_prompts(tmp_path, monkeypatch):
    grpo = import_module("grpo")
    seen = []
    original = grpo.rollout

    def recorded(sampler, verifier, prompts, *a, **k):
        seen.append([prompt.problem.id for prompt in prompts])
        return original(sampler, verifier, prompts, *a, **k)

    monkeypatch.setattr(grpo, "rollout", recorded)
    args = {**BASE, "prompts": 8, "filter_rounds": 4, "run_dir": str(tmp_path / "run")}
    run = grpo.main(grpo.Args(**args))
    drawn = [id for ids in seen for id in ids]
    assert len(seen) > 1 and len(drawn) == len(set(drawn))
    assert load_file(run / "final/model.safetensors")


def test_a_model_that_scales_its_logits_is_refused(tmp_path):
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=2, logits_scaling=8.0)
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(data.UserError, match="scales or caps its logits"):
        import_module("grpo").Policy(str(tmp_path))
