"""Memory of a training step with the vocabulary of Qwen2.5 (151,936):  python tests/bench_memory.py

Peak of what one forward and backward pass of the loss allocates, gradients included, for grpo.py's chunked
log-probs and for the textbook way, log_softmax of all logits: traced by torch's profiler on a CPU, read from
the allocator on a GPU. The model has random weights, the hidden size of Qwen2.5-1.5B and few layers: the head
is what differs.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import machinery  # isort: skip  # noqa: F401  how threads wait, set before torch loads

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from grpo import aggregate, policy_loss, token_logprobs

MIB = 2**20
SIZES = {  # of Qwen2.5
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
             "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
             "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "tiny": {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
}
VOCABULARY = 151_936


def random_model(size: str, device: str, dtype=torch.float32, **change) -> torch.nn.Module:
    """A Qwen2.5 of that size with random weights, made from its configuration: nothing is downloaded."""
    general = {"vocab_size": VOCABULARY, "max_position_embeddings": 32768}
    config = Qwen2Config(**{**general, **SIZES[size], **change})
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def rows(n: int, prompt: int, response: int, vocabulary: int, device: str):
    """ids_NL, prompt_N, response_N of random tokens, as of grpo.pad."""
    generator = torch.Generator().manual_seed(0)
    ids_NL = torch.randint(vocabulary, (n, prompt + response), generator=generator).to(device)
    return ids_NL, torch.full((n,), prompt, device=device), torch.full((n,), response, device=device)


def naive_logprobs(model, ids_NL, prompt_N, response_N, temperature: float):
    """As token_logprobs, for rows of equal lengths, from [N, L, V] logits."""
    logp_NLV = (model(ids_NL, use_cache=False).logits.float() / temperature).log_softmax(-1)
    first = int(prompt_N[0])
    logp_NT = logp_NLV[:, :-1].gather(2, ids_NL[:, 1:, None])[..., 0][:, first - 1 :]
    entropy_NT = -(logp_NLV.detach().exp() * logp_NLV.detach()).sum(-1)[:, first - 1 : -1]
    return logp_NT, entropy_NT, torch.ones_like(logp_NT, dtype=torch.bool)


def step(logprobs, model, ids, autocast) -> torch.Tensor:
    """Forward and backward pass of GRPO's loss; the log-probs."""
    with autocast:
        logp_NT, entropy_NT, mask_NT = logprobs(model, *ids, 1.0)
    loss_NT, _ = policy_loss(logp_NT, logp_NT.detach(), torch.ones_like(logp_NT[:, :1]), 0.2, 0.2)
    aggregate(loss_NT, mask_NT, "token", int(mask_NT.sum()), len(mask_NT), mask_NT.shape[1]).backward()
    del entropy_NT
    return logp_NT.detach()


def peak_memory(run, device: str) -> int:
    """Bytes that `run()` has allocated at the most, above what was there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    assert changes, "the profiler has traced no allocation"
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def compare(size: str, prompt: int, response: int, device: str, chunk: int = 2**26, **change) -> list[tuple]:
    """(name, peak bytes above the weights, log-probs) of the chunked and the naive way."""
    model = random_model(size, device, **change)
    ids = rows(1, prompt, response, model.config.vocab_size, device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False)
    found = []
    for name, logprobs in (("chunked", partial(token_logprobs, chunk=chunk)), ("naive", naive_logprobs)):
        model.zero_grad()
        logps = []
        peak = peak_memory(lambda: logps.append(step(logprobs, model, ids, autocast)), device)
        found.append((name, peak, logps[0].cpu()))
    return found


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--size", choices=SIZES, default="1.5B")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--responses", type=int, nargs="+", default=[1024, 2048, 4096])
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = f"Qwen2.5-{args.size} with {args.layers} layers, prompt {args.prompt} tokens"
    print(f"{device}, torch {torch.__version__}, {shape}")
    print("| response tokens | chunked, MiB | naive, MiB | naive / chunked |\n|---|---|---|---|")
    for response in args.responses:
        found = compare(args.size, args.prompt, response, device, num_hidden_layers=args.layers)
        (_, chunked, mine), (_, naive, theirs) = found
        assert (mine - theirs).abs().max() < (1e-3 if device == "cpu" else 0.1), "the two ways disagree"
        print(f"| {response} | {chunked / MIB:.0f} | {naive / MIB:.0f} | {naive / chunked:.1f} |", flush=True)


if __name__ == "__main__":
    main()
