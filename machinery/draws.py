"""The sampling distribution of a token, and draws from it."""

import math

import torch

# Shapes: N rows, V vocabulary.


def sampling_logprobs(
    logits: torch.Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> torch.Tensor:
    """Log-probs [rows, V] of the sampling distribution: temperature, then top-k, then top-p, renormalised."""
    logits = logits / temperature if temperature else logits
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1.0:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the token that crosses top_p stays in
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -math.inf)
    return logits.log_softmax(-1)


def draw(logp_NV: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A token for each row [N, 1], of normalised log-probs, by the inverse of the cumulative distribution.

    torch.multinomial draws a random number for every token of the vocabulary, on a CPU one after the other.
    """
    cumulative_NV = logp_NV.exp().cumsum(-1, dtype=torch.float64)
    u_N1 = torch.rand(len(logp_NV), 1, generator=generator, dtype=torch.float64, device=logp_NV.device)
    token_N1 = torch.searchsorted(cumulative_NV, u_N1 * cumulative_NV[:, -1:], right=True)
    return token_N1.clamp(max=logp_NV.shape[-1] - 1)  # rounding could reach the sum itself
