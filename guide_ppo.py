r"""Guide-PPO: PPO that gives a hint for the prompts it fails, and learns to answer them without.

Paper: the abstract of arXiv 2506.13923 names it, its code has no script for it: this is our derivation.
Papers: Schulman et al. 2017 (arXiv 1707.06347); GAE: 1506.02438; token rewards as in RLHF: 2203.02155.

    actor   max_theta  E[ x ~ data, y ~ pi_old(.|x) ]  1/tokens  sum_t
                           min( rho_t A_t, clip(rho_t, 1-eps_low, 1+eps_high) A_t ) + entropy_coef H_t
    critic  min_phi    1/tokens  sum_t  0.5 max( (V_t - R_t)^2, (clip(V_t, V_old_t -+ value_clip) - R_t)^2 )
    rho_t = pi(y_t | x, y_<t) / pi_old(y_t | x, y_<t)
    r_t   = [t last] r(y) - beta log(pi_old(y_t | ..) / pi_ref(y_t | ..))              k1, only when beta > 0
    A_t   = sum_l (gamma lambda)^l (r_t+l + gamma V_t+l+1 - V_t+l)                     whitened over the batch
    R_t   = A_t + V_t                                                                  not whitened

Guidance, as in guide_grpo.py: where all samples of a prompt are wrong, as many are drawn with the hint g and
trained on after the plain prompt x, without a clip: rho = pi(y_t | x, ..) / pi_old(y_t | x, g, ..), shaped.
  - The critic sees the plain prompt always, V(x, y_<t), and learns from first samples alone, those that
    guided ones replace too: hinted returns taught it .44 where plain ones reach .20. k1, GAE: after x too.
  - The failed plain rows stay ("union"): with a critic their advantage is not 0, unlike in GRPO.
  - A is whitened over all rows together: the better the guided ones, the harder failed ones are pushed down.

Differs from the papers:
  - paper (Guide's trainer runs it too, with adv_estimator=gae): guided groups replace failed ones, and the
    critic learns from guided rows as if they were plain; here: union, and a critic of first samples.
  - paper: several epochs over each batch; here: each row is used once, by default in one update, in which the
    ratio is 1 and no clip acts (`--mini-batches`). beta is 0: no reference model (the NSR paper's PPO: 1e-3).
  - the critic learns alone in the first `--critic-warmup` steps: whitened errors of a new critic are noise.
  - n samples per prompt, as in GRPO: the critic, not the group, is the baseline. It shares no weights.

Without options: the embedded 0.8 M model on the task "at sea" (`--data countdown` is another), in minutes on
a laptop. docs/papers.md has the commands of the papers' settings.
"""

import machinery  # isort: skip  # noqa: F401  how threads wait, set before torch loads

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint as recompute

import data
import evaluate
from data import Problem
from machinery.checkpoint import save_model
from machinery.models import check_logits, check_model, load_model
from machinery.ranges import check_ranges
from machinery.ranks import clip_gradient, gather, join, micro_batches, on_device, shard, share, weights
from machinery.run import Run, RunArgs, TokenMeans, launch
from machinery.sampler import Sampler
from verify import Verdict, Verifier, check_golds

# Shapes: B prompts, G samples a prompt, N rows (responses), L padded prompt + response tokens,
# T response tokens, M valid response tokens of a micro-batch, V vocabulary.


# ---- args --------------------------------------------------------------------------------------------------

@dataclass
class Args(RunArgs):  # model, data, evaluation, checkpoints, machine: machinery/run.py
    prompts: int = 32  # B, prompts a step
    n: int = 8  # G, samples a prompt
    temperature: float = 1.0  # of the policy, in sampling and in the loss
    mini_batches: int = 1  # optimizer steps a rollout batch; 1 is fully on-policy
    lr: float = 1e-4  # peak learning rate; 1e-6 for billions of parameters
    warmup: int = 0  # steps of linear warm-up
    weight_decay: float = 0.01  # AdamW
    grad_clip: float = 1.0  # gradient norm
    eps_low: float = 0.2  # the ratio's lower clip, where --mini-batches is above 1
    eps_high: float = 0.2  # its upper one; 0.28 is DAPO's clip-higher
    critic_lr: float = 1e-3  # peak learning rate of the critic; 1e-5 for billions of parameters
    critic_warmup: int = 5  # first steps, in which the critic learns alone
    critic_mini_batches: int = 0  # optimizer steps of the critic a rollout batch; 0: as many as of the policy
    value_clip: float = 0.5  # of the critic's change in one step
    gamma: float = 1.0  # discount
    gae_lambda: float = 1.0  # 1: reward-to-go minus value, 0: one-step differences
    whiten: bool = True  # advantages of a batch to mean 0 and standard deviation 1
    loss_agg: Literal["token", "sequence", "constant"] = "token"  # sum/tokens | row means | sum/constant
    entropy_coef: float = 0.0  # of the entropy bonus: H_it, the entropy of pi(. | x, y_i<t)
    beta: float = 0.0  # KL to the initial model, in the reward; 0 drops the reference model
    guide_threshold: float = 0.0  # a prompt is failed if at most this share of its samples is right
    guided_group: Literal["union", "replace"] = "union"  # failed rows stay beside guided ones, or go
    guide_ratio: Literal["shaped", "clip", "none", "sequence", "naive"] = "shaped"  # see the header
    guide_gamma: float = 0.0  # of shaped; 0: the 0.9 quantile of the ratio
    guide_with: Literal["hint", "nothing"] = "hint"  # nothing is the control: as many samples, all plain
    tis_cap: float = 0.0  # weigh tokens by min(pi_old / pi_engine, cap); 0: off, 2 is usual


# ---- policy ------------------------------------------------------------------------------------------------

class Policy(torch.nn.Module):
    """The language model, asked for the log-probs of responses instead of logits. Its weights are float32."""

    def __init__(self, path: str):
        """Raises UserError if there is no such model, or it cannot be trained."""
        super().__init__()
        self.backbone = load_model(path, torch.float32)
        check_logits(self, path)

    def forward(self, ids_NL, prompt_N, response_N, temperature: float, entropy_grad=False):
        """`token_logprobs`, on a GPU in bfloat16."""
        gpu = ids_NL.device.type == "cuda"
        # No cache: autocast would keep one bfloat16 copy of the head and add up its gradients in bfloat16.
        with torch.autocast(ids_NL.device.type, torch.bfloat16, enabled=gpu, cache_enabled=False):
            chunk = 2**28 if gpu else 2**26  # large ones: 6 % of an update of 1.5B on an H200
            return token_logprobs(self.backbone, ids_NL, prompt_N, response_N, temperature, chunk,
                                  entropy_grad=entropy_grad)


def token_logprobs(model, ids_NL, prompt_N, response_N, temperature, chunk: int = 2**26, entropy_grad=False):
    """Log-probability and entropy of every response token, nats: (logp_NT, entropy_NT, mask_NT); 0 beyond it.

    At most `chunk` logits exist at a time, 441 tokens of Qwen's 151,936, and the backward pass recomputes
    all but the last: never [N, L, V], and none for the prompt. No attention mask: padding stands right of
    every response, where a causal model does not look. `entropy_grad`: the entropy has a gradient; one that
    no loss uses would keep the logits of every chunk.
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

    size = max(1, chunk // head.weight.shape[0])
    hidden_chunks = hidden_NLD[row_M, at_M - 1].split(size)
    token_chunks = ids_NL[row_M, at_M].split(size)
    parts = []
    for hidden_mD, token_m in zip(hidden_chunks[:-1], token_chunks[:-1]):
        parts.append(recompute(score, hidden_mD, token_m, use_reentrant=False))
    parts.append(score(hidden_chunks[-1], token_chunks[-1]))  # the backward pass begins with it: it may stay
    logp_M, entropy_M = (torch.cat(part) for part in zip(*parts))
    zeros_NT = torch.zeros(mask_NT.shape, device=ids_NL.device)
    return zeros_NT.index_put((row_M, t_M), logp_M), zeros_NT.index_put((row_M, t_M), entropy_M), mask_NT


@torch.no_grad()
def logprobs(policy, rows: list["Row"], contexts: list[list[int]], temperature, tokens: int, device: str):
    """Log-probs [T] of each row's response after its context, without gradient. Ranks share the work."""
    lengths = [len(context) + len(row.response) for context, row in zip(contexts, rows)]
    found = []
    with on_device(policy, device):  # the reference model waits elsewhere
        for micro in micro_batches(lengths, tokens):
            ids = pad([contexts[i] for i in micro], [rows[i].response for i in micro], device)
            logp_NT, _, _ = policy(*ids, temperature)
            for i, logp_T in zip(micro, logp_NT.cpu()):
                found.append((i, logp_T[: len(rows[i].response)].clone()))  # a view would send all of logp_NT
    of_row = dict(gather(found))
    return [of_row[i] for i in range(len(rows))]


# ---- critic ------------------------------------------------------------------------------------------------

class Critic(torch.nn.Module):
    """A second copy of the model, one number a token in the place of the logits: 0 at the start."""

    def __init__(self, path: str):
        super().__init__()
        self.backbone = load_model(path, torch.float32).base_model
        with torch.no_grad():
            hidden_NLD = self.backbone(torch.arange(8)[None], use_cache=False).last_hidden_state
        self.head = torch.nn.Linear(hidden_NLD.shape[-1], 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, ids_NL, prompt_N, response_N):
        """values_NT: V(x, y_<t), read before token t; 0 beyond the response."""
        device = ids_NL.device.type
        t_T = torch.arange(int(response_N.max()), device=ids_NL.device)
        before_NT = (prompt_N[:, None] + t_T - 1).clamp(max=ids_NL.shape[1] - 1)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            hidden_NLD = self.backbone(ids_NL, use_cache=False).last_hidden_state
        with torch.autocast(device, enabled=False):  # bfloat16 would round V to steps of 0.004
            head = self.head.weight.float(), self.head.bias.float()
            values_NL1 = torch.nn.functional.linear(hidden_NLD.float(), *head)
            values_NT = values_NL1[..., 0].gather(1, before_NT)
        return values_NT * (t_T < response_N[:, None])


@torch.no_grad()
def critic_values(critic, rows: list["Row"], tokens: int, device: str) -> list[torch.Tensor]:
    """The critic's values [T] along each response, after its plain prompt. Ranks share the work."""
    found = []
    for micro in micro_batches([row.length for row in rows], tokens):
        ids = pad([rows[i].prompt for i in micro], [rows[i].response for i in micro], device)
        values_NT = critic(*ids)
        for i, values_T in zip(micro, values_NT.cpu()):
            found.append((i, values_T[: len(rows[i].response)].clone()))
    of_row = dict(gather(found))
    return [of_row[i] for i in range(len(rows))]


def update_critic(critic, optimizer, rows: list["Row"], updates: int, clip, grad_clip, tokens, device, means):
    """Fits V to the returns of all tokens of the rows, in mini-batches of rows: `updates` optimizer steps."""
    for mini in np.array_split(np.arange(len(rows)), updates):
        batch = [rows[i] for i in mini]
        n_tokens = sum(len(row.response) for row in batch)
        for micro in micro_batches([row.length for row in batch], tokens):
            part = [batch[i] for i in micro]
            ids = pad([row.prompt for row in part], [row.response for row in part], device)
            values_NT = critic(*ids)
            mask_NT = torch.arange(values_NT.shape[1], device=device) < ids[2][:, None]
            old_NT = stack([row.values for row in part], values_NT)
            returns_NT = stack([row.returns for row in part], values_NT)
            loss_NT, clipped_NT = value_loss(values_NT, old_NT, returns_NT, clip)
            ((loss_NT * mask_NT).sum() / n_tokens).backward()
            means.add_values(mask_NT, critic_loss=loss_NT, critic_clip_fraction=clipped_NT)
        clip_gradient(critic, grad_clip)
        optimizer.step()
        optimizer.zero_grad()


# ---- rollout -----------------------------------------------------------------------------------------------

@dataclass
class Row:
    """One response, sampled after `sampled_from`, trained on after `prompt`: a hint is all they differ in."""

    problem: Problem
    prompt: list[int]
    sampled_from: list[int]
    response: list[int]
    engine_logp: list[float]
    finished: bool  # ended in a stop token, not at max_response
    guided: bool  # sampled with a hint that is not in `prompt`
    verdict: Verdict
    values: torch.Tensor | None = None  # [T] of the critic, V(x, y_<t)
    returns: torch.Tensor | None = None  # [T] what the critic learns
    advantage: torch.Tensor | None = None  # [T]
    old_logp: torch.Tensor | None = None  # [T] of the sampling policy; None: the policy as it is
    ref_logp: torch.Tensor | None = None  # [T] of the reference model
    k1: torch.Tensor | None = None  # [T] log pi_old - log pi_ref, both after `prompt`
    trained: tuple | None = None  # {name: [N, T]} of its update and its row there, for rollouts.jsonl

    @property
    def reward(self) -> float:
        return float(self.verdict.correct)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


def rollout(sampler, verifier, prompts, n, temperature, max_tokens, seed, clock, hinted=False):
    """Groups of `n` scored rows, one a prompt, sampled with its hint if `hinted`. Ranks share the work."""
    mine = share(prompts)
    contexts = [prompt.hinted if hinted else prompt.plain for prompt in mine]
    groups = sampler.generate(contexts, n, temperature, max_tokens, seed)
    clock("rollout", tokens=sum(len(sample.ids) for group in groups for sample in group))
    verdicts = verifier.score_groups(groups, [prompt.problem for prompt in mine])
    scored = gather([list(zip(*both)) for both in zip(groups, verdicts)])
    clock("verify")
    rows = []
    for prompt, group in zip(prompts, scored):
        context = prompt.hinted if hinted else prompt.plain
        rows.append([Row(prompt.problem, prompt.plain, context, s.ids, s.logprobs, s.finished, hinted, v)
                     for s, v in group])
    return rows


def flat(groups) -> list[Row]:
    """The rows of some groups."""
    return list(chain.from_iterable(groups))


def pad(contexts: list[list[int]], responses: list[list[int]], device: str):
    """Right-padded ids_NL, lengths of contexts and responses [N]: masks come from lengths, never from ids.

    Without rows it is a row without a response: so a rank out of work takes part in the others' forward pass.

    >>> pad([[5, 6], [7]], [[8], [9, 9]], "cpu")[0].tolist()
    [[5, 6, 8], [7, 9, 9]]
    """
    contexts, responses = (contexts, responses) if contexts else ([[0]], [[]])
    rows = [torch.tensor(context + response) for context, response in zip(contexts, responses)]
    ids_NL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    context_N = torch.tensor([len(context) for context in contexts], device=device)
    response_N = torch.tensor([len(response) for response in responses], device=device)
    return ids_NL, context_N, response_N


def stack(rows: list, own_NT: torch.Tensor) -> torch.Tensor:
    """Rows [T] as one [N, T]; for None stands `own_NT`, detached: a ratio to itself is exactly 1."""
    out_NT = own_NT.detach().clone()
    for i, row_T in enumerate(rows):
        if row_T is not None:
            out_NT[i, : len(row_T)] = torch.as_tensor(row_T)
    return out_NT


# ---- guidance ----------------------------------------------------------------------------------------------

def fails(group: list[Row], prompt, threshold: float) -> bool:
    """Whether the policy fails a prompt for which there is a hint."""
    return prompt.hinted is not None and evaluate.accuracy(group) <= threshold


def hint_ratios(rows: list[Row], plain_logps: list[torch.Tensor]) -> list[float]:
    """pi_old(y_t | x, y_<t) / pi_old(y_t | x, g, y_<t) of all tokens of guided rows; [1.0] without any."""
    gaps = [logp_T - row.old_logp for row, logp_T in zip(rows, plain_logps)]
    return torch.cat(gaps).exp().tolist() if rows else [1.0]


# ---- advantage ---------------------------------------------------------------------------------------------

def gae(rewards_NT, values_NT, mask_NT, gamma: float, lam: float):
    """Generalised advantage estimation (1506.02438, eq. 16) over valid tokens: (advantages_NT, returns_NT).

    A_t = delta_t + gamma lam A_t+1 with delta_t = r_t + gamma V_t+1 - V_t; V and A are 0 after the last
    token, which ends the episode, truncated or not. returns = A + V. Both are 0 where mask is False, whatever
    stands there.

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


def set_advantages(rows: list[Row], beta: float, gamma: float, lam: float, whiten: bool) -> None:
    """Advantages and returns [T] of rows that have values [T]; beta k1 is a cost, see r_t in the header."""
    lengths_N = torch.tensor([len(row.response) for row in rows])
    mask_NT = torch.arange(lengths_N.max()) < lengths_N[:, None]
    zeros_NT = torch.zeros(mask_NT.shape)
    rewards_NT, values_NT = zeros_NT.clone(), stack([row.values for row in rows], zeros_NT)
    for row, rewards_T in zip(rows, rewards_NT):
        T = len(row.response)
        rewards_T[T - 1] = row.reward
        if beta > 0:
            rewards_T[:T] -= beta * row.k1
    raw_NT, returns_NT = gae(rewards_NT, values_NT, mask_NT, gamma, lam)
    advantages_NT = whitened(raw_NT, mask_NT) if whiten else raw_NT
    for i, row in enumerate(rows):
        T = len(row.response)
        row.returns, row.advantage = returns_NT[i, :T], advantages_NT[i, :T]


# ---- loss --------------------------------------------------------------------------------------------------

def policy_loss(logp_NT, old_logp_NT, advantages_NT, mask_NT, guided_N, eps_low, eps_high, how, gamma):
    """PPO's clipped surrogate per token, to be minimised (PPO eq. 7, GRPO eq. 3), and where the clip acts.

    loss_NT = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A), rho = exp(logp - old_logp); A is [N, T], or
    [N, 1] where the tokens of a response share it.
    Guided rows: -w(rho) A without a clip, unless `how`, --guide-ratio, says otherwise (Guide's code).
    """
    ratio_NT = (logp_NT - old_logp_NT).exp()
    gain_NT = ratio_NT * advantages_NT
    clipped_gain_NT = ratio_NT.clamp(1 - eps_low, 1 + eps_high) * advantages_NT
    loss_NT, is_clipped_NT = -torch.min(gain_NT, clipped_gain_NT), clipped_gain_NT < gain_NT
    free_N1 = guided_N[:, None] & (how not in ("clip", "naive"))
    if how == "shaped":
        ratio_NT = ratio_NT / (ratio_NT + gamma)
    elif how == "sequence":  # value: the product of all ratios; gradient: that times each logp's
        product_N1 = ((logp_NT - old_logp_NT) * mask_NT).sum(1, keepdim=True).exp().detach()
        ratio_NT = product_N1 * (logp_NT - logp_NT.detach()).exp()
    loss_NT = torch.where(free_N1, -ratio_NT * advantages_NT, loss_NT)
    is_clipped_NT = is_clipped_NT & ~free_N1
    return loss_NT, is_clipped_NT


def explained_variance(values_M, returns_M) -> float:
    """1 - Var(R - V) / Var(R): 1 of a perfect critic, 0 of a constant, negative of a harmful one."""
    variance = returns_M.var(unbiased=False).item()  # 0 where all returns agree: nothing to explain
    return 1 - (returns_M - values_M).var(unbiased=False).item() / variance if variance > 0 else 0.0


def value_loss(values_NT, old_values_NT, returns_NT, clip: float):
    """0.5 max((V - R)^2, (clip(V, V_old -+ clip) - R)^2), openai/baselines; where the second is larger."""
    near_NT = old_values_NT + (values_NT - old_values_NT).clamp(-clip, clip)
    free_NT, clipped_NT = (values_NT - returns_NT) ** 2, (near_NT - returns_NT) ** 2
    return 0.5 * torch.max(free_NT, clipped_NT), clipped_NT > free_NT


def engine_weight(old_logp_NT, engine_logp_NT, cap: float):
    """min(pi_old / pi_engine, cap) per token, 1 everywhere if `cap` is 0.

    Truncated importance sampling against kernels and a precision that are not the trainer's (Yao et al.
    2025): E[pi_engine] of it times f is near E[pi_old] of f.
    """
    return (old_logp_NT - engine_logp_NT).exp().clamp(max=cap) if cap else torch.ones_like(old_logp_NT)


def aggregate(loss_NT, mask_NT, loss_agg: str, n_tokens: int, n_rows: int, max_response: int):
    """One micro-batch's share of the loss of an optimizer step: `n_rows` rows, `n_tokens` response tokens.

    The shares add up to the same loss, and the same gradient, for any micro-batches and ranks.
    """
    loss_NT = loss_NT * mask_NT
    if loss_agg == "token":
        return loss_NT.sum() / n_tokens
    if loss_agg == "sequence":
        return (loss_NT.sum(1) / mask_NT.sum(1).clamp(min=1)).sum() / n_rows
    return loss_NT.sum() / (n_rows * max_response)  # constant: Dr. GRPO


def value_metrics(plain: list[Row], rows: list[Row]) -> dict[str, float]:
    """What the critic has foreseen of the rows it learns from; the advantages of all before whitening."""
    values_M, returns_M = torch.cat([row.values for row in plain]), torch.cat([row.returns for row in plain])
    raw_M = torch.cat([row.returns - row.values for row in rows])
    return {
        "critic/explained_variance": explained_variance(values_M, returns_M),
        "critic/value": values_M.mean().item(), "critic/return": returns_M.mean().item(),
        "advantage/mean": raw_M.mean().item(), "advantage/std": raw_M.std().item(),
    }


# ---- main --------------------------------------------------------------------------------------------------

def main(args: Args) -> Path:
    check_ranges(args)
    device = join(args.device)  # of this process, which is one of several under torchrun
    verifier = Verifier(args.workers, args.verifier_seconds, args.verifier or None, args.verifier_memory)
    problems = check_golds(data.load(args.data, args.data_split, own_verifier=bool(args.verifier)), verifier)
    sampler = Sampler(args.model, args.sampler, device, gpu_memory=args.gpu_memory,
                      tensor_parallel=args.tensor_parallel, sleep_level=args.sleep_level)
    prompts, counts = data.encode(problems, sampler.tokenizer, data.pick_template(args.template, args.data),
                                  args.max_prompt, args.max_response, sampler.positions)
    held_out = evaluate.HeldOut(args, sampler, verifier)
    policy = check_model(shard(Policy(args.model), device, args.gradient_checkpointing), sampler)
    critic = shard(Critic(args.model), device, args.gradient_checkpointing)
    reference = shard(Policy(args.model), device).to("cpu").eval() if args.beta > 0 else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_lr,
                                         weight_decay=args.weight_decay, fused=True)
    run = Run(args, __file__, [*prompts, *held_out.prompts])
    print(evaluate.start_line(prompts, counts, held_out))
    held_out.write(run.folder / "eval_base.json", again=False)

    for step in run.steps(policy=policy, optimizer=optimizer, critic=critic, critic_opt=critic_optimizer):
        sampler.update(weights(policy.backbone, sampler.dtype))
        run.clock("sync")
        metrics = held_out.metrics(step)
        run.clock("evaluate")

        # rollout: B groups of G rows
        drawn = data.draw(len(prompts), args.prompts, step, args.seed)
        new = rollout(sampler, verifier, [prompts[i] for i in drawn], args.n, args.temperature,
                      args.max_response, (args.seed, step, 0), run.clock)
        plain, guided = list(new), []  # first groups, and second ones of failed prompts

        # guidance: failed prompts are rolled out again with their hint
        failed = [k for k, i in enumerate(drawn) if fails(new[k], prompts[i], args.guide_threshold)]
        hinted = rollout(sampler, verifier, [prompts[drawn[k]] for k in failed], args.n, args.temperature,
                         args.max_response, (args.seed, step, 0, 1), run.clock,
                         hinted=args.guide_with == "hint")
        for k, group in reversed(list(zip(failed, hinted))):  # from the end: inserting moves what follows
            if args.guided_group == "union":
                new[k] = new[k] + group
            else:
                new[k : k + 1] = [new[k], group] if evaluate.accuracy(new[k]) > 0 else [group]
        guided += hinted

        groups = new
        rows = flat(plain + guided)  # a replaced one too: the critic learns from it
        sampler.sleep()

        # log-probs under the policies that stand still during the update
        scoring = args.temperature, args.micro_tokens, device
        off_policy = [row for row in rows if row.guided or args.mini_batches > 1 or args.beta > 0]
        old_logps = logprobs(policy, off_policy, [row.sampled_from for row in off_policy], *scoring)
        for row, logp_T in zip(off_policy, old_logps):
            row.old_logp = logp_T
        guided_rows = [row for row in rows if row.guided]
        plain_logps = logprobs(policy, guided_rows, [row.prompt for row in guided_rows], *scoring)
        rho = hint_ratios(guided_rows, plain_logps)
        gamma = args.guide_gamma or max(1e-4, float(np.quantile(rho, 0.9)))
        if args.guide_ratio == "naive":
            for row, logp_T in zip(guided_rows, plain_logps):
                row.old_logp, row.engine_logp = logp_T, logp_T  # the engine's is of the other context
        if reference is not None:
            for row, logp_T in zip(rows, logprobs(reference, rows, [row.prompt for row in rows], *scoring)):
                row.ref_logp = logp_T
                row.k1 = row.old_logp - logp_T
            for row, logp_T in zip(guided_rows, plain_logps):
                row.k1 = logp_T - row.ref_logp  # the KL is paid after the plain prompt

        # advantage
        values = critic_values(critic, rows, args.micro_tokens, device)
        for row, values_T in zip(rows, values):
            row.values = values_T
        set_advantages(rows, args.beta, args.gamma, args.gae_lambda, whiten=False)
        set_advantages(flat(groups), args.beta, args.gamma, args.gae_lambda, args.whiten)
        run.clock("logprobs")

        # update: the critic learns from plain rows, V(x, y_<t) is their mean return
        lr = args.lr * min(1.0, max(0, step + 1 - args.critic_warmup) / max(1, args.warmup))
        optimizer.param_groups[0]["lr"] = lr  # its warm-up comes after the critic's steps alone
        critic_optimizer.param_groups[0]["lr"] = args.critic_lr * min(1.0, (step + 1) / max(1, args.warmup))
        means, plain_rows = TokenMeans(), flat(plain)
        update_critic(critic, critic_optimizer, plain_rows, args.critic_mini_batches or args.mini_batches,
                      args.value_clip, args.grad_clip, args.micro_tokens, device, means)
        for mini in np.array_split(np.arange(len(groups)), args.mini_batches):
            batch = flat(groups[g] for g in mini)
            n_rows, n_tokens = len(batch), sum(len(row.response) for row in batch)
            for micro in micro_batches([row.length for row in batch], args.micro_tokens):
                part = [batch[i] for i in micro]
                ids = pad([row.prompt for row in part], [row.response for row in part], device)
                logp_NT, entropy_NT, mask_NT = policy(*ids, args.temperature, args.entropy_coef > 0)
                old_NT = stack([row.old_logp for row in part], logp_NT)
                engine_NT = stack([row.engine_logp for row in part], logp_NT)
                advantages_NT = stack([row.advantage for row in part], torch.zeros_like(logp_NT))
                guided_N = torch.tensor([row.guided for row in part], dtype=torch.bool, device=device)
                loss_NT, clipped_NT = policy_loss(logp_NT, old_NT, advantages_NT, mask_NT, guided_N,
                                                  args.eps_low, args.eps_high, args.guide_ratio, gamma)
                push_NT = -torch.autograd.grad(loss_NT.sum(), logp_NT, retain_graph=True)[0]
                loss_NT = engine_weight(old_NT, engine_NT, args.tis_cap) * loss_NT
                loss_NT = loss_NT - args.entropy_coef * entropy_NT
                loss = aggregate(loss_NT, mask_NT, args.loss_agg, n_tokens, n_rows, args.max_response)
                if step >= args.critic_warmup:
                    loss.backward()
                kl_NT = stack([row.k1 for row in part], torch.zeros_like(logp_NT))  # 0 without a reference
                means.add(loss, mask_NT, old_NT, engine_NT, part, entropy=entropy_NT,
                          push_plain=push_NT * ~guided_N[:, None], push_guided=push_NT * guided_N[:, None],
                          ratio=(logp_NT - old_NT).exp(), clip_fraction=clipped_NT, kl=kl_NT)
            if step >= args.critic_warmup:
                means.add_update(clip_gradient(policy, args.grad_clip))
                optimizer.step()
                optimizer.zero_grad()
        run.clock("update", tokens=sum(row.length for row in share(flat(groups))))
        metrics |= {"train/lr": lr, "train/rows": len(flat(groups))} | value_metrics(plain_rows, flat(groups))
        metrics |= evaluate.guide_metrics(plain, guided, flat(groups), rho, gamma)
        metrics |= evaluate.rollout_metrics(plain, guided) | means.metrics()
        run.log(metrics, groups, sampler.tokenizer)

    save_model(policy.backbone, sampler.tokenizer, sampler.dtype, run.folder / "final")
    sampler.update(weights(policy.backbone, sampler.dtype))
    held_out.write(run.folder / "eval_trained.json", seed=1)
    verifier.close()
    run.close()
    print(evaluate.report(run.folder))
    return run.folder


if __name__ == "__main__":
    launch(main, Args)
