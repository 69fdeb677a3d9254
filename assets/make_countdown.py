r"""Make assets/countdown: the tiny base model on which every script of this repository runs on a laptop.

    python assets/make_countdown.py            # writes assets/countdown: 26 minutes on 2 busy CPU cores

It is pre-trained on traces of a careless Countdown player, so that it is to Countdown what a base model is to
mathematics: it knows the moves, its arithmetic is right, it rarely solves a problem at the first try, and it
can do more than it does unprompted.

  - The player's taste is skewed: it likes + and -, rarely multiplies, hardly ever divides. Most targets are
    larger than the sum of the numbers and need a multiplication, so many problems stay unsolved in 8 tries.
  - It looks ahead at the last move only, and only 60 % of the time. Traces are kept even if they fail.
  - A quarter of the traces carry a hint in the prompt and follow it; half of those hints are a random legal
    move, so that the model learns to follow hints, not that hints are right.

Held-out problems (the test split) are never seen. The tokenizer is Qwen2's byte-level one without merges,
plus one token for each number up to 60 and for each phrase of the prompt: it reads any text, and a Countdown
prompt takes 10 tokens (15 with the hint), a response 13.

The 256 held-out problems, 256 samples each at temperature 1; 99.8 % of all moves are calculated right:

    prompt   pass@1    @2     @4     @8    @16    @32    @64   @128   @256
    plain     .139   .233   .350   .472   .590   .696   .791   .881   .945
    hinted    .700   .897   .983   .996   .997   .998   .999  1.000  1.000

    python evaluate.py --model assets/countdown --data countdown --n 256 --temperature 1 --top-p 1 \
        --max-tokens 16 [--hinted] --out base.json
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machinery import tasks  # isort: skip  first: machinery sets how threads wait before torch loads

import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.tokenization_utils_base import AddedToken

TASTE = {"+": 5.0, "-": 4.0, "*": 0.4, "/": 0.2}  # how readily the player picks an operation
LOOK_AHEAD = 0.6  # probability that it sees a last move which hits the target
HINTED = 0.25  # share of traces with a hint
PHRASES = ("Use ", ", ", " to make ", " Hint: start with ")
CHAT = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(words: list[str]):
    """Bytes (in GPT-2's printable alphabet), three special tokens, the words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {b: chr(b) for b in printable}
    alphabet |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in alphabet)}
    vocab = {alphabet[b]: b for b in range(256)}
    end = "<|endoftext|>"
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], unk_token=None, eos_token=end, pad_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer.chat_template = CHAT
    tokenizer.model_max_length = 2048
    return tokenizer


def play(problem: dict, rng: random.Random) -> tuple[str, str]:
    """(prompt, response) of one careless game."""
    numbers, target = problem["meta"]["numbers"], problem["meta"]["target"]
    shown = tuple(rng.sample(numbers, k=len(numbers)))
    prompt = f"Use {', '.join(map(str, shown))} to make {target}."
    moves = tasks.countdown_moves(shown)

    def pick(options):
        weights = [TASTE[next(c for c in move if c in TASTE)] for move, _ in options]
        return rng.choices(options, weights)[0]

    if rng.random() < HINTED:
        good = [m for m in moves if tasks.countdown_solutions(m[1], target)]
        move, left = rng.choice(good) if good and rng.random() < 0.5 else rng.choice(moves)
        prompt += f" Hint: start with {move.split('=')[0]}."
    else:
        move, left = pick([m for m in moves if tasks.countdown_moves(m[1])] or moves)
    response = move + "\n"
    if last := tasks.countdown_moves(left):
        hits = [m for m in last if m[1] == (target,)]
        response += (rng.choice(hits) if hits and rng.random() < LOOK_AHEAD else pick(last))[0] + "\n"
    return prompt + "\n", response


def pretrain(words: list[str], trace: Callable[[random.Random], tuple[str, str]], args) -> None:
    """Trains a model on what `trace` returns, (prompt, response), and saves it to args.out.

    `words` are tokens of their own.
    """
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = make_tokenizer(words)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # sdpa's backward is three times slower under CPU autocast
    )
    model = Qwen2ForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps - 100, eta_min=0.05 * args.lr)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[100])

    start = time.time()
    for step in range(args.steps):
        texts = [trace(rng) for _ in range(args.batch)]
        prompts = tokenizer([p for p, _ in texts]).input_ids
        responses = [[*r, tokenizer.eos_token_id] for r in tokenizer([r for _, r in texts]).input_ids]
        length = max(len(p) + len(r) for p, r in zip(prompts, responses))
        ids = torch.full((args.batch, length), tokenizer.pad_token_id)
        labels = torch.full((args.batch, length), -100)  # loss on the response only
        for i, (p, r) in enumerate(zip(prompts, responses)):
            ids[i, : len(p) + len(r)] = torch.tensor(p + r)
            labels[i, len(p) : len(p) + len(r)] = torch.tensor(r)
        # Right padding and a causal mask: what follows a response cannot reach it. So no attention mask.
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == args.steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.time() - start:5.0f} s", flush=True)

    model.config._attn_implementation = "sdpa"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"saved to {args.out}")


def arguments(doc: str, out: str, steps: int, batch: int):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(Path(__file__).resolve().parent / out))
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main():
    problems = tasks.countdown("train")
    words = [*map(str, range(10, tasks.COUNTDOWN_MAX + 1)), *PHRASES]
    args = arguments(__doc__, "countdown", steps=4000, batch=256)
    pretrain(words, lambda rng: play(rng.choice(problems), rng), args)


if __name__ == "__main__":
    main()
