r"""PSR, NSR and W-REINFORCE: learning from right answers only, from wrong ones only, from both unequally.

Paper: The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning (arXiv 2506.01347), sec. 2, 5.

    max_theta  E[ x ~ data, y_1..y_G ~ pi_old(.|x) ]  1/tokens  sum_i sum_t
                   min( rho_it A_i, clip(rho_it, 1-eps_low, 1+eps_high) A_i ) + entropy_coef H_it
    rho_it = pi(y_it | x, y_i<t) / pi_old(y_it | x, y_i<t)
    A_i    = psr: 1 if right | nsr: -1 if wrong | w-reinforce: lambda if right, -1 if wrong      (eq. 3, 4, 9)

Differs from the paper:
  - paper: a mean over the tokens of each response, then over responses; here: one sum over all tokens of the
    optimizer step divided by their number, because the paper's (`--loss-agg sequence`) favours short
    right answers;
  - as in the authors' code, not in the paper: dropped rows go first, the kept ones are cut into mini-batches
    of prompts n / mini_batches rows, and the last one, of what is left, counts by its size.
And from grpo.py: *advantage*, dropped rows, no KL term, no refills, defaults.

Without options: the embedded 0.8 M model on the task "at sea" (`--data countdown` is another), in minutes on
a laptop. docs/papers.md has the commands of the papers' settings, and of Dr. GRPO and DAPO.
"""

import machinery  # isort: skip  # noqa: F401  how threads wait, set before torch loads

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

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
    mini_batches: int = 4  # optimizer steps a rollout batch if all rows are kept; 1 is fully on-policy
    lr: float = 3e-5  # peak learning rate; 1e-6 for billions of parameters
    warmup: int = 0  # steps of linear warm-up
    weight_decay: float = 0.01  # AdamW
    grad_clip: float = 1.0  # gradient norm
    eps_low: float = 0.2  # the ratio's lower clip, where --mini-batches is above 1
    eps_high: float = 0.2  # its upper one; 0.28 is DAPO's clip-higher
    reinforce: Literal["psr", "nsr", "w-reinforce"] = "w-reinforce"  # right rows, wrong rows, both
    lam: float = 0.1  # lambda of w-reinforce, the weight of right rows; 1: REINFORCE, 0: nsr
    entropy_coef: float = 1e-4  # of the entropy bonus; 1e-3 in the authors' code
    loss_agg: Literal["token", "sequence", "constant"] = "token"  # sum/tokens | row means | sum/constant
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


# ---- advantage ---------------------------------------------------------------------------------------------

def signed_advantages(rewards_N: torch.Tensor, reinforce: str, lam: float) -> torch.Tensor:
    """`lam` or 1 for right rows (reward 1), -1 for wrong ones, 0 for dropped ones (eq. 3, 4, 9)."""
    right, wrong = {"psr": (1.0, 0.0), "nsr": (0.0, 1.0), "w-reinforce": (lam, 1.0)}[reinforce]
    return right * rewards_N - wrong * (1 - rewards_N)


# ---- loss --------------------------------------------------------------------------------------------------

def policy_loss(logp_NT, old_logp_NT, advantages_NT, eps_low: float, eps_high: float):
    """PPO's clipped surrogate per token, to be minimised (PPO eq. 7, GRPO eq. 3), and where the clip acts.

    loss_NT = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A), rho = exp(logp - old_logp); A is [N, T], or
    [N, 1] where the tokens of a response share it.
    """
    ratio_NT = (logp_NT - old_logp_NT).exp()
    gain_NT = ratio_NT * advantages_NT
    clipped_gain_NT = ratio_NT.clamp(1 - eps_low, 1 + eps_high) * advantages_NT
    loss_NT, is_clipped_NT = -torch.min(gain_NT, clipped_gain_NT), clipped_gain_NT < gain_NT
    return loss_NT, is_clipped_NT


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
        drawn = data.draw(len(prompts), args.prompts, step, args.seed)
        plain = groups = rollout(sampler, verifier, [prompts[i] for i in drawn], args.n, args.temperature,
                                 args.max_response, (args.seed, step), run.clock)
        sampler.sleep()

        # advantage
        for group in groups:
            rewards_1G = torch.tensor([[row.reward for row in group]])
            for row, A in zip(group, signed_advantages(rewards_1G, args.reinforce, args.lam)[0].tolist()):
                row.advantage = A

        # log-probs under the policies that stand still during the update, of rows that have a gradient
        scoring = args.temperature, args.micro_tokens, device
        rows = [row for row in flat(groups) if row.advantage != 0]  # the others are dropped
        off_policy = [row for row in rows if row.guided or args.mini_batches > 1]
        old_logps = logprobs(policy, off_policy, [row.sampled_from for row in off_policy], *scoring)
        for row, logp_T in zip(off_policy, old_logps):
            row.old_logp = logp_T
        run.clock("logprobs")

        # update
        optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / max(1, args.warmup))
        means = TokenMeans()
        size = args.prompts * args.n // args.mini_batches  # kept rows a mini-batch, the last one has the rest
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            # A short last batch counts by its size.
            n_rows, n_tokens = size, sum(len(row.response) for row in batch) * size / len(batch)
            for micro in micro_batches([row.length for row in batch], args.micro_tokens):
                part = [batch[i] for i in micro]
                ids = pad([row.prompt for row in part], [row.response for row in part], device)
                logp_NT, entropy_NT, mask_NT = policy(*ids, args.temperature, args.entropy_coef > 0)
                old_NT = stack([row.old_logp for row in part], logp_NT)
                engine_NT = stack([row.engine_logp for row in part], logp_NT)
                advantages_N1 = torch.tensor([[row.advantage] for row in part], device=device)
                loss_NT, clipped_NT = policy_loss(logp_NT, old_NT, advantages_N1, args.eps_low, args.eps_high)
                loss_NT = engine_weight(old_NT, engine_NT, args.tis_cap) * loss_NT
                loss_NT = loss_NT - args.entropy_coef * entropy_NT
                loss = aggregate(loss_NT, mask_NT, args.loss_agg, n_tokens, n_rows, args.max_response)
                loss.backward()
                means.add(loss, mask_NT, old_NT, engine_NT, part, entropy=entropy_NT,
                          ratio=(logp_NT - old_NT).exp(), clip_fraction=clipped_NT)
            means.add_update(clip_gradient(policy, args.grad_clip))
            optimizer.step()
            optimizer.zero_grad()
        run.clock("update", tokens=sum(row.length for row in share(rows)))
        metrics |= {"train/lr": optimizer.param_groups[0]["lr"], "train/rows": len(rows),
                    "train/kept": len(rows) / max(1, len(flat(groups)))}
        metrics |= evaluate.rollout_metrics(plain) | means.metrics()
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
