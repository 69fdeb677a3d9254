r"""Guide-PPO: PPO that gives a hint for the prompts it fails, and learns to answer them without.

Paper: the abstract of arXiv 2506.13923 names it and its code has no script for it: this is our derivation.
PPO: Schulman et al. 2017 (arXiv 1707.06347); GAE: arXiv 1506.02438; the token rewards are those of RLHF, arXiv 2203.02155.

    actor   max_theta  E[ x ~ data, y ~ pi_old(.|x) ]  1/tokens  sum_t  min( rho_t A_t, clip(rho_t, 1-eps_low, 1+eps_high) A_t )
    critic  min_phi    1/tokens  sum_t  0.5 max( (V_t - R_t)^2, (clip(V_t, V_old_t -+ value_clip) - R_t)^2 )
    rho_t = pi(y_t | x, y_<t) / pi_old(y_t | x, y_<t)
    r_t   = [t last] r(y) - beta log(pi_old(y_t | ..) / pi_ref(y_t | ..))                    k1, only when beta > 0
    A_t   = sum_l (gamma lambda)^l (r_t+l + gamma V_t+l+1 - V_t+l)   whitened over the batch   R_t = A_t + V_t, not whitened

Guidance, as in guide_grpo.py: where all samples of a prompt are wrong, as many are drawn with the hint g in the prompt and
trained on after the plain prompt x, without a clip: rho = pi(y_t | x, ..) / pi_old(y_t | x, g, ..), shaped rho / (rho + gamma).
  - The critic sees the plain prompt always, V(x, y_<t): it is the baseline of the policy that is trained, and a critic that
    saw the hint would call a failed prompt easy. So rewards, k1, GAE and returns of guided rows are those of the plain context.
  - The failed plain rows stay ("union"): with a critic their advantage is not 0, unlike in GRPO.
  - A is whitened over plain and guided rows together: the better the guided ones, the more the failed ones are pushed down.

Differs from the papers:
  - paper: several clipped updates on each batch; here: one (`--mini-batches 1`), in which the ratio is 1 and no clip acts;
    the command below has the paper's number. beta is 0 and not the NSR paper's 1e-3, which saves the reference model.
  - the critic learns alone in the first `--critic-warmup` steps, because whitened errors of a new critic are only noise.
  - n samples per prompt, as in GRPO: the critic, not the group, is the baseline, and it shares nothing with the policy.

    python guide_ppo.py                         # the embedded 0.8 M model on Countdown: minutes on a laptop
    python guide_ppo.py --model Qwen/Qwen2.5-Math-1.5B --data vaskarnath/guide_math_rl_dataset --template guide \
        --prompts 128 --mini-batches 2 --max-response 3072 --lr 1e-6 --critic-lr 1e-5
"""

import math
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm
from transformers import AutoModel, AutoModelForCausalLM

import data
import evaluate
from data import EMBEDDED_MODEL, TEMPLATES, UserError
from verify import WHY, Verdict, Verifier, check_golds

# Shapes: B prompts, G samples a prompt, N rows (responses), L padded prompt + response tokens, T response tokens,
# M valid response tokens of a micro-batch, V vocabulary.

# ---- args ------------------------------------------------------------------------------------------------------------

@dataclass
class Args:
    model: str = EMBEDDED_MODEL  # Hugging Face hub id or folder
    data: str = "countdown"  # countdown, a hub id (openai/gsm8k:main), or a .jsonl, .json, .parquet, .csv file
    data_split: str = "train"  # of a hub id or countdown
    eval_data: str = ""  # held-out problems; empty: the test split of --data (none if that is a file)
    eval_split: str = "test"  # of a hub id or countdown
    template: Literal["auto", *TEMPLATES] = "auto"  # of the prompt; auto: countdown for that task, else chat
    verifier: str = ""  # module:function of your own, (completion, problem) -> bool
    workers: int = 2  # verifier processes
    max_prompt: int = 1024  # longer prompts are left out and counted, tokens
    max_response: int = 16  # tokens; the papers use 3072
    steps: int = 200  # rollout batches
    prompts: int = 32  # B, prompts a step
    n: int = 8  # G, samples a prompt
    temperature: float = 1.0  # of the policy, in sampling and in the loss
    mini_batches: int = 1  # optimizer steps a rollout batch; 1 is fully on-policy
    micro_tokens: int = 16384  # padded tokens a forward pass: memory only, the gradient does not depend on it
    lr: float = 1e-4  # peak learning rate; 1e-6 for billions of parameters
    warmup: int = 0  # steps of linear warm-up
    weight_decay: float = 0.01  # AdamW
    grad_clip: float = 1.0  # gradient norm
    eps_low: float = 0.2  # the ratio's lower clip
    eps_high: float = 0.2  # the ratio's upper clip; 0.28 is DAPO's clip-higher
    critic_lr: float = 1e-3  # peak learning rate of the critic; 1e-5 for billions of parameters
    critic_warmup: int = 5  # first steps, in which the critic learns alone
    value_clip: float = 0.5  # of the critic's change in one step
    gamma: float = 1.0  # discount
    gae_lambda: float = 1.0  # 1: reward-to-go minus value, 0: one-step differences
    whiten: bool = True  # advantages of a batch to mean 0 and standard deviation 1
    loss_agg: Literal["token", "sequence", "constant"] = "token"  # sum over tokens / number | row means / rows | / max
    beta: float = 0.0  # KL to the initial model, in the reward; 0 drops the reference model; 1e-3 in the NSR paper
    guide_threshold: float = 0.0  # a prompt is failed, and guided, if at most this share of its samples is right
    guided_group: Literal["union", "replace"] = "union"  # A inside failed and guided samples, or inside the guided
    guide_ratio: Literal["shaped", "clip", "none", "sequence", "naive"] = "shaped"  # of the guided rows, see above
    guide_gamma: float = 0.0  # of shaped; 0: the 0.9 quantile of the ratio
    eval_every: int = 25  # steps; 0: at the start and the end only
    eval_problems: int = 256  # at most
    eval_n: int = 64  # samples a problem, at the start and the end
    eval_temperature: float = 1.0  # the papers report 0.6 with top_p 0.95, see evaluate.py
    save_every: int = 50  # steps between checkpoints; 0: when stopped only
    keep: int = 2  # newest checkpoints kept
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is one
    sampler: Literal["auto", "transformers", "vllm"] = "auto"  # the engine that samples; auto: vllm if there is a GPU for it
    gpu_memory: float = 0.4  # vllm: its share of the GPU, weights and cache
    tensor_parallel: int = 1  # vllm: GPUs an engine
    sleep_level: Literal[0, 1, 2] = 0  # vllm between rollouts: 0 stays, 2 drops weights and cache, 1 only the cache
    tis_cap: float = 0.0  # weigh tokens by min(pi_trainer / pi_sampler, cap) where the two differ; 0: off, 2 is usual
    seed: int = 0  # of the order of problems and of all sampling
    run_dir: str = ""  # empty: runs/<script>-<model>-<data>-s<seed>-<time>
    resume: str = ""  # a run's folder: go on from its newest checkpoint, with its args
    track: Literal["", "tensorboard", "wandb", "trackio"] = ""  # log there too, besides metrics.jsonl


# ---- policy ----------------------------------------------------------------------------------------------------------

@dataclass
class Row:
    """One sampled response. It is trained on after `prompt`; it was sampled after `sampled_from`."""

    problem: int
    prompt: list[int]
    sampled_from: list[int]
    response: list[int]
    engine_logp: list[float]
    finished: bool  # ended in a stop token, not at max_response
    guided: bool  # sampled with a hint that is not in `prompt`
    verdict: Verdict
    advantage: float = 0.0
    old_logp: torch.Tensor | None = None  # [T] under the sampling policy; None: the policy itself, not yet updated
    ref_logp: torch.Tensor | None = None  # [T] under the reference model

    @property
    def reward(self) -> float:
        return float(self.verdict.correct)


def load_model(path: str) -> torch.nn.Module:
    """The model in float32, the master weights. Raises UserError if its logits are not head(hidden states), scaled say."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        logp_NT, _, _ = token_logprobs(model, ids, torch.tensor([1]), torch.tensor([7]), 1.0)
    if not torch.allclose(logits.gather(1, ids[0, 1:, None])[:, 0], logp_NT[0], atol=1e-3):
        raise UserError(f"--model {path} scales or caps its logits, which token_logprobs does not do")
    return model


def pad(prompts: list[list[int]], responses: list[list[int]], device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids_NL with the lengths of prompts and responses [N]. Masks come from lengths, never from ids.

    Without rows it is a row without a response, so that a rank out of work takes part in the others' forward pass.

    >>> pad([[5, 6], [7]], [[8], [9, 9]], "cpu")[0].tolist()
    [[5, 6, 8], [7, 9, 9]]
    """
    prompts, responses = (prompts, responses) if prompts else ([[0]], [[]])
    length = max(len(p) + len(r) for p, r in zip(prompts, responses))
    ids_NL = torch.tensor([p + r + [0] * (length - len(p) - len(r)) for p, r in zip(prompts, responses)], device=device)
    prompt_N = torch.tensor([len(p) for p in prompts], device=device)
    response_N = torch.tensor([len(r) for r in responses], device=device)
    return ids_NL, prompt_N, response_N


@evaluate.uses_weights
def token_logprobs(model, ids_NL, prompt_N, response_N, temperature: float, chunk: int = 2**26, entropy_grad=False):
    """Log-probability and entropy, in nats, of every response token: (logp_NT, entropy_NT, mask_NT); 0 where mask is False.

    At most `chunk` logits exist at a time, 441 tokens of Qwen's 151,936, and the backward pass recomputes them: never
    [N, L, V], and none for the prompt. No attention mask: padding stands right of every response, where a causal model does
    not look. `entropy_grad`: the entropy has a gradient; one that no loss uses would keep every chunk's logits.
    """
    T = int(response_N.max())
    mask_NT = torch.arange(T, device=ids_NL.device) < response_N[:, None]
    row_M, t_M = mask_NT.nonzero(as_tuple=True)
    at_M = prompt_N[row_M] + t_M  # where the token stands in its row; the position before predicts it
    hidden_NLD = model.base_model(ids_NL, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()

    def score(hidden_mD, token_m):
        logp_mV = (head(hidden_mD).float() / temperature).log_softmax(-1)
        seen_mV = logp_mV if entropy_grad else logp_mV.detach()
        return logp_mV.gather(1, token_m[:, None])[:, 0], -(seen_mV.exp() * seen_mV).sum(-1)

    hidden_MD, token_M = hidden_NLD[row_M, at_M - 1], ids_NL[row_M, at_M]
    size = max(1, chunk // head.weight.shape[0])
    parts = [
        recompute(score, h, tokens, use_reentrant=False) for h, tokens in zip(hidden_MD.split(size), token_M.split(size))
    ]
    logp_M, entropy_M = (torch.cat(part) for part in zip(*parts))
    zeros_NT = torch.zeros(mask_NT.shape, device=ids_NL.device)
    return zeros_NT.index_put((row_M, t_M), logp_M), zeros_NT.index_put((row_M, t_M), entropy_M), mask_NT


def micro_batches(lengths: list[int], budget: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """Indices packed, longest first, so that rows x longest row stays within `budget` tokens (one row may exceed it).

    Of several ranks each gets its share, and as many batches as the others: the last ones may be empty.

    >>> micro_batches([3, 9, 4], budget=10)
    [[1], [2, 0]]
    >>> [micro_batches([3, 9, 4], 10, rank, world=2) for rank in (0, 1)]
    [[[1], [0]], [[2], []]]
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    shares: list[list[list[int]]] = [[] for _ in range(world)]
    for k, i in enumerate(longest_first):
        batches = shares[k % world]
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(i)
    return shares[rank] + [[]] * (max(map(len, shares)) - len(shares[rank]))


@torch.no_grad()
def rows_logprobs(model, rows: list[Row], prompts: list[list[int]], temperature: float, budget: int, autocast):
    """Log-probs [T] of each row's response after the given prompt, without gradient. Ranks share the work."""
    lengths, out = [len(p) + len(row.response) for p, row in zip(prompts, rows)], []
    for batch in micro_batches(lengths, budget, evaluate.rank(), evaluate.world()):
        ids = pad([prompts[i] for i in batch], [rows[i].response for i in batch], model.device)
        with autocast:
            logp_NT, _, _ = token_logprobs(model, *ids, temperature)
        out += [(i, logp_T[: len(rows[i].response)]) for i, logp_T in zip(batch, logp_NT.cpu())]
    return [logp_T.to(model.device) for _, logp_T in sorted(evaluate.gather(out), key=itemgetter(0))]


def stack(logps: list[torch.Tensor | None], logp_NT: torch.Tensor) -> torch.Tensor:
    """Rows [T] as one [N, T]. A row that is None is the policy's own, detached: its ratio is exactly 1, without rounding."""
    out_NT = logp_NT.detach().clone()
    for i, logp_T in enumerate(logps):
        if logp_T is not None:
            out_NT[i, : len(logp_T)] = logp_T
    return out_NT


# ---- critic ----------------------------------------------------------------------------------------------------------


class Critic(torch.nn.Module):
    """A second copy of the model with one number a token in the place of the logits: V = 0 before the first update."""

    def __init__(self, path: str):
        super().__init__()
        self.backbone = AutoModel.from_pretrained(path, dtype=torch.float32)
        self.head = torch.nn.Linear(self.backbone.config.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, ids_NL, prompt_N, response_N):
        """values_NT: V(x, y_<t), read before token t; 0 beyond the response."""
        t_T = torch.arange(int(response_N.max()), device=ids_NL.device)
        before_NT = (prompt_N[:, None] + t_T - 1).clamp(max=ids_NL.shape[1] - 1)
        hidden_NLD = self.backbone(ids_NL, use_cache=False).last_hidden_state
        with torch.autocast(ids_NL.device.type, enabled=False):  # bfloat16 would round V to steps of 0.004
            values_NL1 = torch.nn.functional.linear(hidden_NLD.float(), self.head.weight.float(), self.head.bias.float())
            values_NT = values_NL1[..., 0].gather(1, before_NT)
        return values_NT * (t_T < response_N[:, None])


@torch.no_grad()
def rows_values(critic, rows: list[Row], budget: int, device, autocast) -> list[torch.Tensor]:
    """The critic's values [T] along each response, after its plain prompt. Ranks share the work."""
    lengths, out = [len(row.prompt) + len(row.response) for row in rows], []
    for batch in micro_batches(lengths, budget, evaluate.rank(), evaluate.world()):
        ids = pad([rows[i].prompt for i in batch], [rows[i].response for i in batch], device)
        with autocast:
            values_NT = critic(*ids)
        out += [(i, values_T[: len(rows[i].response)]) for i, values_T in zip(batch, values_NT.cpu())]
    return [values_T.to(device) for _, values_T in sorted(evaluate.gather(out), key=itemgetter(0))]


# ---- rollout ---------------------------------------------------------------------------------------------------------

def rollout(sampler, verifier, tokenizer, problems, indices, prompts, sampled_from, n, temperature, max_tokens, seed, clock):
    """`n` scored rows for each problem index, a group each: sampled after `sampled_from`, to be trained on after `prompts`."""
    mine = indices[evaluate.rank() :: evaluate.world()]  # every rank samples and verifies its share, and gets all rows
    samples = sampler.generate([sampled_from[i] for i in mine], n, temperature, max_tokens, evaluate.own_seed(seed))
    clock("rollout", sum(len(s.ids) for group in samples for s in group))
    texts = [tokenizer.decode(s.ids, skip_special_tokens=True) for group in samples for s in group]
    verdicts = iter(verifier.score(texts, [problems[i] for i in mine for _ in range(n)]))
    scored = evaluate.gather([[(s, next(verdicts)) for s in group] for group in samples])
    clock("verify")
    guided = sampled_from is not prompts
    return [
        [Row(i, prompts[i], sampled_from[i], s.ids, s.logprobs, s.finished, guided, verdict) for s, verdict in group]
        for i, group in zip(indices, scored)
    ]


def show(row: Row, problems, tokenizer) -> dict:
    """A row as a person reads it, for rollouts.jsonl."""
    problem = problems[row.problem]
    return {
        "problem": problem.id, "prompt": tokenizer.decode(row.prompt), "guided": row.guided,
        "sampled_from": tokenizer.decode(row.sampled_from), "completion": tokenizer.decode(row.response),
        "answer": problem.answer, "verdict": row.verdict.why, "reward": row.reward, "advantage": row.advantage,
    }


# ---- guidance --------------------------------------------------------------------------------------------------------


def failed_groups(groups: list[list[Row]], hinted_prompts, threshold: float) -> list[int]:
    """Which groups the policy fails although there is a hint."""
    accuracy = [np.mean([row.reward for row in group]) for group in groups]
    return [i for i, g in enumerate(groups) if accuracy[i] <= threshold and hinted_prompts[g[0].problem] is not None]


# ---- advantage -------------------------------------------------------------------------------------------------------

def gae(rewards_NT, values_NT, mask_NT, gamma: float, lam: float):
    """Generalised advantage estimation over the valid tokens (arXiv 1506.02438, eq. 16): (advantages_NT, returns_NT).

    A_t = delta_t + gamma lam A_t+1 with delta_t = r_t + gamma V_t+1 - V_t; V and A are 0 after the last token, which ends
    the episode, truncated or not. returns = A + V. Both are 0 where mask is False, whatever stands there.

    >>> one, half = torch.ones(1, 3, dtype=bool), torch.full((1, 3), 0.5)
    >>> gae(torch.tensor([[0.0, 0.0, 1.0]]), half, one, gamma=1.0, lam=1.0)[0]
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    rewards_NT, values_NT = rewards_NT.masked_fill(~mask_NT, 0.0), values_NT.masked_fill(~mask_NT, 0.0)
    advantages_NT = torch.zeros_like(values_NT)
    next_A_N = next_V_N = torch.zeros_like(values_NT[:, 0])
    for t in reversed(range(values_NT.shape[1])):
        delta_N = rewards_NT[:, t] + gamma * next_V_N - values_NT[:, t]
        next_A_N = (delta_N + gamma * lam * next_A_N) * mask_NT[:, t]
        next_V_N = values_NT[:, t]
        advantages_NT[:, t] = next_A_N
    return advantages_NT, (advantages_NT + values_NT) * mask_NT


def whitened(x_NT, mask_NT):
    """(x - mean) / (std + 1e-8) over the valid tokens of the batch; 0 beyond them."""
    x_M = x_NT[mask_NT]
    return torch.where(mask_NT, (x_NT - x_M.mean()) / (x_M.std(unbiased=False) + 1e-8), 0.0)


# ---- loss ------------------------------------------------------------------------------------------------------------

def policy_loss(logp_NT, old_logp_NT, advantages_NT, mask_NT, guided_N, eps_low: float, eps_high: float, guide_ratio, gamma):
    """PPO's clipped surrogate per token, to be minimised (PPO eq. 7, GRPO eq. 3), and where the clip took the gradient away.

    loss_NT = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A), rho = exp(logp - old_logp); A is [N, T], or [N, 1] where
    the tokens of a response share it.
    Guided rows: -w(rho) A without a clip, unless `guide_ratio` says otherwise (Guide, section 4).
    """
    ratio_NT = (logp_NT - old_logp_NT).exp()
    gain_NT = ratio_NT * advantages_NT
    clipped_gain_NT = ratio_NT.clamp(1 - eps_low, 1 + eps_high) * advantages_NT
    loss_NT, is_clipped_NT = -torch.min(gain_NT, clipped_gain_NT), clipped_gain_NT < gain_NT
    if guide_ratio in ("clip", "naive"):
        return loss_NT, is_clipped_NT
    if guide_ratio == "shaped":
        ratio_NT = ratio_NT / (ratio_NT + gamma)
    elif guide_ratio == "sequence":  # value: the product of all ratios; gradient: that times the gradient of each logp
        product_N1 = ((logp_NT - old_logp_NT) * mask_NT).sum(1, keepdim=True).exp().detach()
        ratio_NT = product_N1 * (logp_NT - logp_NT.detach()).exp()
    return torch.where(guided_N[:, None], -ratio_NT * advantages_NT, loss_NT), is_clipped_NT & ~guided_N[:, None]


def explained_variance(values_M, returns_M) -> float:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for a constant, below 0 for a harmful one; 0 if all returns agree."""
    variance = returns_M.var(unbiased=False).item()
    return 1 - (returns_M - values_M).var(unbiased=False).item() / variance if variance > 0 else 0.0


def value_loss(values_NT, old_values_NT, returns_NT, clip: float):
    """0.5 max((V - R)^2, (V_old + clamp(V - V_old, +-clip) - R)^2) per token, and where the clipped one is the larger.

    Of the PPO authors' code (openai/baselines), not of their paper.
    """
    near_NT = old_values_NT + (values_NT - old_values_NT).clamp(-clip, clip)
    free_NT, clipped_NT = (values_NT - returns_NT) ** 2, (near_NT - returns_NT) ** 2
    return 0.5 * torch.max(free_NT, clipped_NT), clipped_NT > free_NT


def engine_weight(old_logp_NT, engine_logp_NT, cap: float):
    """min(pi_old / pi_engine, cap) per token: E[pi_engine] of it times f is near E[pi_old] of f; 1 everywhere if `cap` is 0.

    Truncated importance sampling against kernels and a precision that are not the trainer's (Yao et al. 2025).
    """
    return (old_logp_NT - engine_logp_NT).exp().clamp(max=cap) if cap else torch.ones_like(old_logp_NT)


def aggregate(loss_NT, mask_NT, loss_agg: str, n_tokens: int, n_rows: int, max_response: int):
    """One micro-batch's share of the loss of an optimizer step of `n_rows` rows with `n_tokens` response tokens.

    The shares add up to the same loss, and the same gradient, for any micro-batches and ranks.
    """
    loss_NT = loss_NT * mask_NT
    if loss_agg == "token":
        return loss_NT.sum() / n_tokens
    if loss_agg == "sequence":
        return (loss_NT.sum(1) / mask_NT.sum(1).clamp(min=1)).sum() / n_rows
    return loss_NT.sum() / (n_rows * max_response)  # constant: Dr. GRPO


# ---- main ------------------------------------------------------------------------------------------------------------

def main(args: Args) -> Path:
    evaluate.check_ranges(args)
    if args.guide_ratio == "sequence" and args.tis_cap:
        raise UserError("--guide-ratio sequence is exact for whole responses, --tis-cap weighs single tokens: leave one out")
    if args.prompts % args.mini_batches:
        raise UserError(f"--prompts {args.prompts} does not divide into --mini-batches {args.mini_batches}")
    device = evaluate.join_ranks(args.device)
    template = data.pick_template(args.template, args.data)
    tokenizer = evaluate.load_tokenizer(args.model)
    verifier = Verifier(args.workers, custom=args.verifier or None)
    problems = check_golds(data.load(args.data, args.data_split), verifier)
    problems, prompts, hinted_prompts, counts = data.encode(problems, tokenizer, template, args.max_prompt)
    evaluation = evaluate.held_out(args, tokenizer, template, verifier)

    run = evaluate.run_folder(args, Path(__file__).stem)
    torch.manual_seed(args.seed)
    model = evaluate.shard(load_model(args.model), device)
    critic = evaluate.shard(Critic(args.model), device)
    reference = evaluate.shard(load_model(args.model), device).to("cpu").eval() if args.beta > 0 else None
    if args.gradient_checkpointing:
        model.train()  # transformers recomputes in training mode only
        model.gradient_checkpointing_enable()
        critic.train()
        critic.backbone.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=device == "cuda")
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_lr, weight_decay=args.weight_decay,
                                         fused=device == "cuda")
    parts = {"model": model, "optimizer": optimizer, "critic": critic, "critic_optimizer": critic_optimizer}
    start = evaluate.load_checkpoint(run, parts) if args.resume else 0
    sampler = evaluate.Sampler(args.model, args.sampler, device, gpu_memory=args.gpu_memory,
                               tensor_parallel=args.tensor_parallel, sleep_level=args.sleep_level)
    # A cached bfloat16 copy of the head would add up the gradients of its chunks in bfloat16.
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False)
    log = evaluate.tracker(args, run)
    print(f"{run}: {len(problems)} problems, {sum(h is not None for h in hinted_prompts)} with a hint, {counts}, step {start}")

    if evaluation and start == 0 and not (run / "eval_base.json").exists():
        evaluate.write_json(run / "eval_base.json", evaluation(sampler, args.eval_n))
    sampler.update(evaluate.stream(model, sampler.dtype))

    signals = evaluate.Signals()  # the step in progress is finished and saved
    done = start
    bar = tqdm(range(start, args.steps), Path(__file__).stem, initial=start, total=args.steps, dynamic_ncols=True,
               disable=evaluate.rank() > 0)
    for step in bar:
        clock = evaluate.Clock()

        # rollout: B groups of G rows
        indices = data.draw(len(problems), args.prompts, step, args.seed)
        stream = (args.seed, step, 0)
        new = rollout(sampler, verifier, tokenizer, problems, indices, prompts, prompts, args.n, args.temperature,
                      args.max_response, seed=stream, clock=clock)
        plain, guided = list(new), []

        # guidance: failed prompts are rolled out again with their hint
        failed = failed_groups(new, hinted_prompts, args.guide_threshold)
        hinted = rollout(sampler, verifier, tokenizer, problems, [new[i][0].problem for i in failed], prompts,
                         hinted_prompts, args.n, args.temperature, args.max_response, seed=(*stream, 1), clock=clock)
        for i, group in zip(failed, hinted):
            new[i] = new[i] + group if args.guided_group == "union" else group
        guided += hinted

        groups = new
        rows = [row for group in groups for row in group]
        sampler.sleep()
        clock("sync")

        # log-probs under the policies that stand still during the update
        score = partial(rows_logprobs, temperature=args.temperature, budget=args.micro_tokens, autocast=autocast)
        off_policy = [row for row in rows if row.guided or args.mini_batches > 1 or args.beta > 0]
        for row, logp_T in zip(off_policy, score(model, off_policy, [row.sampled_from for row in off_policy])):
            row.old_logp = logp_T
        across = [row for row in rows if row.guided]
        plain_logps = score(model, across, [row.prompt for row in across])
        ratios = [rho for row, logp_T in zip(across, plain_logps) for rho in (logp_T - row.old_logp).exp().tolist()] or [1.0]
        gamma = args.guide_gamma or max(1e-4, float(np.quantile(ratios, 0.9)))
        for row, logp_T in zip(across, plain_logps if args.guide_ratio == "naive" else []):
            row.old_logp, row.engine_logp = logp_T, logp_T.tolist()  # the engine's is of the other context
        plain_logp = {id(row): logp_T for row, logp_T in zip(across, plain_logps)}
        if reference is not None:
            with evaluate.on_device(reference, device):
                for row, logp_T in zip(rows, score(reference, rows, [row.prompt for row in rows])):
                    row.ref_logp = logp_T

        # advantage
        values = rows_values(critic, rows, args.micro_tokens, device, autocast)
        lengths_N = torch.tensor([len(row.response) for row in rows], device=device)
        valid_NT = torch.arange(int(lengths_N.max()), device=device) < lengths_N[:, None]
        rewards_NT = torch.zeros(valid_NT.shape, device=device)
        old_values_NT = stack(values, rewards_NT)
        rewards_NT[torch.arange(len(rows)), lengths_N - 1] = torch.tensor([row.reward for row in rows], device=device)
        for i, row in enumerate(rows if reference is not None else []):
            rewards_NT[i, : len(row.response)] -= args.beta * (plain_logp.get(id(row), row.old_logp) - row.ref_logp)  # k1
        raw_NT, returns_NT = gae(rewards_NT, old_values_NT, valid_NT, args.gamma, args.gae_lambda)
        advantages_NT = whitened(raw_NT, valid_NT) if args.whiten else raw_NT
        for i, row in enumerate(rows):
            row.advantage = raw_NT[i, : len(row.response)].mean().item()
        clock("logprobs")

        # update
        warmup = min(1.0, (step + 1) / max(1, args.warmup))  # not 0 at the first step
        lr, critic_lr = warmup * args.lr, warmup * args.critic_lr
        means, trained, norm_sum, updates = evaluate.TokenMeans(), [], 0.0, 0
        first = np.cumsum([0, *map(len, groups)])  # of the rows of each group
        for part in np.array_split(np.arange(len(groups)), args.mini_batches):
            batch = [i for g in part for i in range(first[g], first[g + 1])]
            n_tokens = sum(len(rows[i].response) for i in batch)
            lengths = [len(rows[i].prompt) + len(rows[i].response) for i in batch]
            for micro in micro_batches(lengths, args.micro_tokens, evaluate.rank(), evaluate.world()):
                at = [batch[i] for i in micro]
                some = [rows[i] for i in at]
                ids = pad([row.prompt for row in some], [row.response for row in some], device)
                with autocast:
                    logp_NT, entropy_NT, mask_NT = token_logprobs(model, *ids, args.temperature)
                    values_NT = critic(*ids)
                T = mask_NT.shape[1]
                old_NT = stack([row.old_logp for row in some], logp_NT)
                engine_NT = stack([torch.tensor(row.engine_logp, device=device) for row in some], logp_NT)
                guided_N = torch.tensor([row.guided for row in some], dtype=torch.bool, device=device)
                loss_NT, clipped_NT = policy_loss(logp_NT, old_NT, advantages_NT[at, :T], mask_NT, guided_N, args.eps_low,
                                                  args.eps_high, args.guide_ratio, gamma)
                loss_NT = engine_weight(old_NT, engine_NT, args.tis_cap) * loss_NT
                loss = aggregate(loss_NT, mask_NT, args.loss_agg, n_tokens, len(batch), args.max_response)
                value_NT, value_clipped_NT = value_loss(values_NT, old_values_NT[at, :T], returns_NT[at, :T], args.value_clip)
                aggregate(value_NT, mask_NT, args.loss_agg, n_tokens, len(batch), args.max_response).backward()
                if step >= args.critic_warmup:
                    loss.backward()
                kl_NT = stack([row.old_logp for row in some], logp_NT) - stack([row.ref_logp for row in some], logp_NT)  # k1
                seen = {"train/entropy": entropy_NT, "train/ratio": (logp_NT - old_NT).exp(), "train/clip_fraction": clipped_NT,
                        "train/kl": kl_NT * (args.beta > 0), "critic/loss": value_NT, "critic/clip_fraction": value_clipped_NT}
                means.add(loss, seen, old_NT, engine_NT, mask_NT)
            for module, module_optimizer, module_lr in ((model, optimizer, lr), (critic, critic_optimizer, critic_lr)):
                norm = evaluate.clip_gradient(module, args.grad_clip)
                if not math.isfinite(norm):
                    raise UserError(f"the gradient of step {step + 1} is not finite; the last checkpoint of {run} is whole")
                norm_sum += norm * (module is model)
                for param_group in module_optimizer.param_groups:
                    param_group["lr"] = module_lr
                module_optimizer.step()  # in the warm-up the policy has no gradient, and AdamW passes it over
                module_optimizer.zero_grad()
            updates += step >= args.critic_warmup
            trained += [rows[i] for i in batch]
        clock("update")
        sampler.update(evaluate.stream(model, sampler.dtype))
        clock("sync")
        done = step + 1

        # metrics of all ranks: docs/metrics.md has the formula of each
        sampled = [row for group in plain for row in group]
        verdicts = Counter(row.verdict.why for group in plain + guided for row in group)
        pass_rates = [np.mean([row.reward for row in group]) for group in plain]
        metrics = {
            "step": done,
            "rollout/reward": np.mean(pass_rates),
            "rollout/solved": np.mean([rate > 0 for rate in pass_rates]),
            "rollout/mastered": np.mean([rate == 1 for rate in pass_rates]),
            "rollout/response_tokens": np.mean([len(row.response) for row in sampled]),
            "rollout/truncated": np.mean([not row.finished for row in sampled]),
            "rollout/entropy": -np.mean([logp for row in sampled for logp in row.engine_logp]),
            **{f"verify/{why.replace(' ', '_')}": verdicts[why] for why in WHY},
            "guide/failed": len(guided) / len(plain), "guide/ratio": np.mean(ratios), "guide/gamma": gamma,
            "guide/share": len(across) / max(1, len(rows)),
            "guide/reward": np.mean([row.reward for group in guided for row in group] or [0.0]),
            "train/grad_norm": norm_sum / max(1, updates),
            "train/lr": lr,
            "train/updates": updates,
            "train/rows": len(trained),
            "train/kept": len(trained) / max(1, len(rows)),
            **means.result(updates),
            "critic/explained_variance": explained_variance(old_values_NT[valid_NT], returns_NT[valid_NT]),
            "critic/value": old_values_NT[valid_NT].mean().item(),
            "critic/return": returns_NT[valid_NT].mean().item(),
            "advantage/mean": raw_NT[valid_NT].mean().item(), "advantage/std": raw_NT[valid_NT].std().item(),
            **evaluate.speed(clock, [critic] if step < args.critic_warmup else [model, critic], device, trained),
        }
        if evaluation and args.eval_every and done % args.eval_every == 0:
            solved = evaluate.curve(evaluation(sampler, min(8, args.eval_n)))
            metrics |= {f"eval/pass@{k}": mean for k, mean, _, _ in solved}
        log(metrics, [show(row, problems, tokenizer) for row in (rows or sampled)[:: args.n][:3]])
        progress = {"pass": metrics["rollout/reward"], "guided": metrics["guide/share"], "s/step": sum(clock.seconds.values())}
        bar.set_postfix({key: f"{value:.2f}" for key, value in progress.items()})
        stop = signals.of_any_rank()
        if stop or (args.save_every and done % args.save_every == 0):
            evaluate.save_checkpoint(run, done, parts, args.keep)
        if stop:
            verifier.close()
            print(f"\nstopped by {signal.Signals(stop).name} after step {done}; {evaluate.go_on(run)}")
            sys.exit(0 if stop == signal.SIGTERM else 130)

    bar.close()
    signals.release()

    # the end: checkpoint, final model, what was learned
    evaluate.save_checkpoint(run, done, parts, args.keep)
    evaluate.save_model(model, tokenizer, sampler.dtype, run / "final")
    if evaluation:
        evaluate.write_json(run / "eval_trained.json", evaluation(sampler, args.eval_n))
    verifier.close()
    print(evaluate.report(run))
    return run


if __name__ == "__main__":
    evaluate.command_line(main, Args)
