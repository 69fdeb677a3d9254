r"""Guide-GRPO: GRPO that gives a hint for the prompts it fails, and learns to answer them without.

Paper: Adaptive Guidance Accelerates RL of Reasoning Models (arXiv 2506.13923), its code; GRPO: 2402.03300.

    max_theta  E[ x ~ data, y_1..y_G ~ pi_old(.|x) ]  1/tokens  sum_i sum_t
                   min( rho_it A_i, clip(rho_it, 1-eps_low, 1+eps_high) A_i ) + entropy_coef H_it
                   - beta k3_it                                                                     (eq. 3)
    rho_it = pi(y_it | x, y_i<t) / pi_old(y_it | x, y_i<t)
    A_i    = (r_i - mean(r_1..r_G)) / (std(r_1..r_G) + 1e-6)         inside the G samples of one prompt
    k3     = pi_ref/pi - log(pi_ref/pi) - 1      mean: KL(pi || pi_ref), eq. 4; gradient: KL(pi_ref || pi)'s

Guidance: where all G samples of a prompt are wrong, G more are drawn with the hint g, y ~ pi_old(.|x,g), and
trained on after x alone, without a clip, with the ratio between the two contexts:
    rho_it = pi(y_it | x, y_i<t) / pi_old(y_it | x, g, y_i<t)       shaped: rho / (rho + quantile_0.9(rho))
`--guide-ratio none` (rho) is exact for each next token after a prefix that the hint drew; `sequence` (its
product over t) is the gradient of the plain objective, `naive` neither (tests/test_guide.py); `clip`: PPO's.

`--guide-with nothing` is the control: as many second samples, plain ones. k3 of guided rows is no KL.

Differs from grpo.py by *guidance*, guided rows in `policy_loss`, five Args. Differs from the papers:
  - paper: A inside the guided group, one of equal rewards goes (`--filter-rounds`; else it has A 0), a partly
    right plain one (threshold above 0) stays beside it ("replace"); here: inside all 2 G samples ("union"),
    because a guided group that always succeeds then still teaches;
  - paper: gamma per response, padding included; here: one a step, over guided tokens;
  - paper: a mean over the tokens of each response, then over responses; here: one sum over all tokens of the
    optimizer step divided by their number, because the paper's (`--loss-agg sequence`) favours short
    right answers;
  - paper: beta 0.04; here: 0 and no reference model: a verifiable reward leaves no reward model to exploit.

Without options: the embedded 0.8 M model on the task "at sea" (`--data countdown` is another), in minutes on
a laptop. docs/papers.md has the commands of the papers' settings, and of Dr. GRPO and DAPO.
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
    norm_std: bool = True  # divide by the group's standard deviation; off is Dr. GRPO
    loss_agg: Literal["token", "sequence", "constant"] = "token"  # sum/tokens | row means | sum/constant
    entropy_coef: float = 0.0  # of the entropy bonus: H_it, the entropy of pi(. | x, y_i<t)
    beta: float = 0.0  # KL to the initial model; 0 drops the reference model
    guide_threshold: float = 0.0  # a prompt is failed if at most this share of its samples is right
    guided_group: Literal["union", "replace"] = "union"  # A inside failed and guided samples, or the guided
    guide_ratio: Literal["shaped", "clip", "none", "sequence", "naive"] = "shaped"  # see the header
    guide_gamma: float = 0.0  # of shaped; 0: the 0.9 quantile of the ratio
    guide_with: Literal["hint", "nothing"] = "hint"  # nothing is the control: as many samples, all plain
    filter_rounds: int = 0  # DAPO: drop groups of equal rewards and draw more prompts, at most so many times
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
    advantage: float = 0.0
    old_logp: torch.Tensor | None = None  # [T] of the sampling policy; None: the policy as it is
    ref_logp: torch.Tensor | None = None  # [T] of the reference model
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

def group_advantages(rewards_BG: torch.Tensor, norm_std: bool = True) -> torch.Tensor:
    """A_BG = (r - mean) / (std + 1e-6) inside each group, std unbiased (section 4.1.2); 0 where all r agree.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    scale_B1 = rewards_BG.std(1, keepdim=True) + 1e-6 if norm_std else 1.0
    equal_B1 = (rewards_BG == rewards_BG[:, :1]).all(1, keepdim=True)  # a test of the std would meet rounding
    return ((rewards_BG - rewards_BG.mean(1, keepdim=True)) / scale_B1).masked_fill(equal_B1, 0.0)


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


def kl_k3(logp_NT, ref_logp_NT):
    """k3 >= 0 of the header, per token: over y ~ pi its mean is KL(pi || pi_ref), but its gradient
    (1 - pi_ref/pi) grad log pi has that of KL(pi_ref || pi) for its mean. Over other y it is neither."""
    return (ref_logp_NT - logp_NT).exp() - (ref_logp_NT - logp_NT) - 1


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
    reference = shard(Policy(args.model), device).to("cpu").eval() if args.beta > 0 else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    run = Run(args, __file__, [*prompts, *held_out.prompts])
    print(evaluate.start_line(prompts, counts, held_out))
    held_out.write(run.folder / "eval_base.json", again=False)

    for step in run.steps(policy=policy, optimizer=optimizer):
        sampler.update(weights(policy.backbone, sampler.dtype))
        run.clock("sync")
        metrics = held_out.metrics(step)
        run.clock("evaluate")

        # rollout: B groups of G rows
        plain, groups = [], []  # all that was sampled, all that is trained on
        guided = []  # the second groups of failed prompts
        for turn in range(1 + args.filter_rounds):
            missing = max(0, args.prompts - len(groups))
            drawn = data.draw(len(prompts), args.prompts, step, args.seed, turn)[:missing]
            new = rollout(sampler, verifier, [prompts[i] for i in drawn], args.n, args.temperature,
                          args.max_response, (args.seed, step, turn), run.clock)
            plain += new

            # guidance: failed prompts are rolled out again with their hint
            failed = [k for k, i in enumerate(drawn) if fails(new[k], prompts[i], args.guide_threshold)]
            hinted = rollout(sampler, verifier, [prompts[drawn[k]] for k in failed], args.n, args.temperature,
                             args.max_response, (args.seed, step, turn, 1), run.clock,
                             hinted=args.guide_with == "hint")
            for k, group in reversed(list(zip(failed, hinted))):  # from the end: inserting moves what follows
                if args.guided_group == "union":
                    new[k] = new[k] + group
                else:
                    new[k : k + 1] = [new[k], group] if evaluate.accuracy(new[k]) > 0 else [group]
            guided += hinted

            groups += [group for group in new if not args.filter_rounds or 0 < evaluate.accuracy(group) < 1]
        sampler.sleep()

        # advantage
        for group in groups:
            rewards_1G = torch.tensor([[row.reward for row in group]])
            for row, A in zip(group, group_advantages(rewards_1G, args.norm_std)[0].tolist()):
                row.advantage = A

        # log-probs under the policies that stand still during the update, of rows that have a gradient
        scoring = args.temperature, args.micro_tokens, device
        rows = [row for row in flat(groups) if row.advantage != 0 or args.beta + args.entropy_coef > 0]
        off_policy = [row for row in rows if row.guided or args.mini_batches > 1]
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
        run.clock("logprobs")

        # update
        optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / max(1, args.warmup))
        means = TokenMeans()
        for mini in np.array_split(np.arange(len(groups)), args.mini_batches):
            whole = flat(groups[g] for g in mini)
            batch = [row for row in whole if row.advantage != 0 or args.beta + args.entropy_coef > 0]
            n_rows, n_tokens = len(whole), sum(len(row.response) for row in whole)
            if not batch:
                continue
            for micro in micro_batches([row.length for row in batch], args.micro_tokens):
                part = [batch[i] for i in micro]
                ids = pad([row.prompt for row in part], [row.response for row in part], device)
                logp_NT, entropy_NT, mask_NT = policy(*ids, args.temperature, args.entropy_coef > 0)
                old_NT = stack([row.old_logp for row in part], logp_NT)
                engine_NT = stack([row.engine_logp for row in part], logp_NT)
                advantages_N1 = torch.tensor([[row.advantage] for row in part], device=device)
                guided_N = torch.tensor([row.guided for row in part], dtype=torch.bool, device=device)
                loss_NT, clipped_NT = policy_loss(logp_NT, old_NT, advantages_N1, mask_NT, guided_N,
                                                  args.eps_low, args.eps_high, args.guide_ratio, gamma)
                push_NT = -torch.autograd.grad(loss_NT.sum(), logp_NT, retain_graph=True)[0]
                kl_NT = kl_k3(logp_NT, stack([row.ref_logp for row in part], logp_NT))  # 0 without one
                loss_NT = engine_weight(old_NT, engine_NT, args.tis_cap) * loss_NT
                loss_NT = loss_NT - args.entropy_coef * entropy_NT + args.beta * kl_NT
                loss = aggregate(loss_NT, mask_NT, args.loss_agg, n_tokens, n_rows, args.max_response)
                loss.backward()
                means.add(loss, mask_NT, old_NT, engine_NT, part, entropy=entropy_NT,
                          push_plain=push_NT * ~guided_N[:, None], push_guided=push_NT * guided_N[:, None],
                          ratio=(logp_NT - old_NT).exp(), clip_fraction=clipped_NT, kl=kl_NT)
            means.add_update(clip_gradient(policy, args.grad_clip))
            optimizer.step()
            optimizer.zero_grad()
        run.clock("update", tokens=sum(row.length for row in share(rows)))
        metrics |= {"train/lr": optimizer.param_groups[0]["lr"], "train/rows": len(rows),
                    "train/kept": len(rows) / max(1, len(flat(groups)))}
        metrics |= evaluate.guide_metrics(plain, guided, rows, rho, gamma)
        metrics |= evaluate.rollout_metrics(plain, guided) | means.metrics()
        run.log(metrics, groups or plain, sampler.tokenizer)

    save_model(policy.backbone, sampler.tokenizer, sampler.dtype, run.folder / "final")
    sampler.update(weights(policy.backbone, sampler.dtype))
    held_out.write(run.folder / "eval_trained.json", seed=1)
    verifier.close()
    run.close()
    print(evaluate.report(run.folder))
    return run.folder


if __name__ == "__main__":
    launch(main, Args)
