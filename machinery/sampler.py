"""Sampling: a copy of the policy in an engine, vLLM on a GPU, transformers anywhere. Only this knows vLLM."""

import itertools
import math
import os
import random
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, GenerationConfig

from data import UserError
from machinery.draws import draw, sampling_logprobs
from machinery.models import load_config, load_model, load_tokenizer, refused
from machinery.ranks import pick_device, rank, world

MOST_LOGITS = 2**28  # of a forward pass of the transformers sampler: 1 GiB, and drawing takes some copies


@dataclass
class Sample:
    ids: list[int]  # the sampled tokens, the stop token included
    logprobs: list[float]  # of those tokens, under the distribution that they were sampled from
    finished: bool  # ended in a stop token, not at max_tokens
    text: str = ""


def stop_token_ids(tokenizer, generation_config) -> list[int]:
    """Every id that ends a response: what the model names, and what its chat template puts behind a turn.

    Where its generation config names no more than the tokenizer's EOS, which in a base model is not the end
    of a turn, the well-known names too; but in harmony <|end|> ends a channel.
    """
    eos, vocab = generation_config.eos_token_id, tokenizer.get_vocab()
    named = set(eos) if isinstance(eos, (list, tuple)) else {eos}
    ids = named | {tokenizer.eos_token_id, end_of_turn(tokenizer)}
    if named <= {tokenizer.eos_token_id, None}:
        ends = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")
        if "<|channel|>" in vocab:
            ends = ("<|return|>", "<|call|>")
        ids |= {vocab.get(t) for t in ends}
    return sorted(i for i in ids if i is not None)


def end_of_turn(tokenizer) -> int | None:
    """The special token that stands behind an assistant's turn in the tokenizer's own chat template."""
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception:  # there is none, or whatever one raises that no such chat fits: it tells nothing
        return None
    behind = tokenizer.encode(text.rpartition("answer")[2].strip(), add_special_tokens=False)
    return behind[0] if behind and behind[0] in tokenizer.all_special_ids else None


class Sampler:
    """A copy of the policy that samples. The only place that knows how sampling is done.

    Sampler(...) is a VllmSampler or a TransformersSampler, as Path(...) is a PosixPath or a WindowsPath.
    """

    def __new__(cls, model_path: str, backend: str = "auto", device: str = "auto", **_):
        if backend not in ("auto", "transformers", "vllm"):
            raise UserError(f"--sampler {backend}: the sampling backends are auto, transformers and vllm")
        if backend == "auto":
            on_gpu = torch.device(pick_device(device)).type == "cuda"
            backend = "vllm" if on_gpu and find_spec("vllm") else "transformers"
        return super().__new__({"transformers": TransformersSampler, "vllm": VllmSampler}[backend])

    def __init__(self, model_path: str, backend: str = "auto", device: str = "auto",
                 cache_tokens: int = 2**18, gpu_memory: float = 0.4, tensor_parallel: int = 1,
                 sleep_level: int = 0, use: str = "trained"):
        """Loads the model at `model_path` (hub id or folder): bfloat16 on a GPU, float32 elsewhere.

        `use`: what for, "trained" or "sampled from", see machinery/models.py.

        transformers: `cache_tokens` bounds rows x tokens of the key-value cache, so how many responses are
        sampled at once; MOST_LOGITS does so too. vllm: `gpu_memory` is its share of the whole GPU, 0.4 leaves
        room for a trainer; `tensor_parallel` processes of torchrun share one engine; `sleep_level` is what
        `sleep` does on a GPU: 0 nothing, 1 moves the weights to the host and drops the cache, 2 drops both.
        """
        self.device = torch.device(pick_device(device))
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.cache_tokens, self.gpu_memory = cache_tokens, gpu_memory
        self.tensor_parallel, self.sleep_level = tensor_parallel, sleep_level
        self.path, self.use = model_path, use
        config, self.tokenizer = load_config(model_path, use), load_tokenizer(model_path, use)
        try:
            generation_config = GenerationConfig.from_pretrained(model_path)
        except OSError:  # the model comes without one
            generation_config = GenerationConfig.from_model_config(config)
        self.stop_ids = stop_token_ids(self.tokenizer, generation_config)
        self.positions = getattr(config.get_text_config(), "max_position_embeddings", math.inf)
        self._start(model_path, config)
        self.n_embeddings = len(self.model.get_input_embeddings().weight)

    @torch.no_grad()
    def update(self, named_tensors) -> None:
        """Take over the policy's weights: an iterable of (name, full tensor), each parameter once, any order.

        It is drained one tensor at a time, so it may gather each from its shards, if every rank calls this.
        """
        left = {name for name, _ in self.model.named_parameters()}

        def once():
            for name, tensor in named_tensors:
                assert name in left, f"{name} came twice, or is no parameter of the model"
                left.remove(name)
                yield name, tensor

        self._load(once())
        assert not left, f"no new weights for {sorted(left)[:3]} ... ({len(left)} parameters)"

    def sleep(self) -> None:
        """Leaves the GPU to the trainer, as far as the backend and `sleep_level` do so, until `update`."""

    @torch.no_grad()
    def generate(
        self,
        prompts: list[list[int]],
        n: int,
        temperature: float,
        max_tokens: int,
        seed: int | tuple[int, ...],
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> list[list[Sample]]:
        """`n` samples for each prompt of token ids, in the prompts' order.

        Temperature 0 is greedy (with the log-probs of temperature 1). The same arguments give the same
        tokens; the global random states are as before. Each rank has a stream of its own.
        """
        longest = max(map(len, prompts), default=0)
        if longest + max_tokens > self.positions:
            raise UserError(
                f"{longest} prompt tokens and {max_tokens} for the response exceed the model's "
                f"{self.positions} positions: lower --max-prompt, or --max-response "
                "(--max-tokens of evaluate.py)"
            )
        last = max(itertools.chain(*prompts), default=0)
        if last >= self.n_embeddings:
            raise UserError(f"--model {self.path} cannot be {self.use}: a prompt holds its tokenizer's id "
                            f"{last}, and it has {self.n_embeddings} embeddings")
        if world() > 1:  # a stream of random numbers for each rank
            seed = (*(*seed, 0, 0, 0)[:4], 1 + rank())
        seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
        groups = self._generate(prompts, n, temperature, max_tokens, seed, top_p, top_k)
        for sample in itertools.chain(*groups):
            sample.text = self.tokenizer.decode(sample.ids, skip_special_tokens=True)
        return groups


class VllmSampler(Sampler):
    """vLLM's engine inside this process, which takes the policy's tensors as they are.

    One to a process, kept until its end: an engine that is collected takes all torch process groups with it.
    """

    def _start(self, model_path: str, config) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read by the import
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(
                f"--sampler vllm: install vllm, or use --sampler transformers ({error})"
            ) from error
        if current_platform.device_type != self.device.type:
            of = current_platform.device_type
            has = f"is built for {of}, not for {self.device.type}" if of else "needs a GPU and finds none"
            raise UserError(f"--sampler vllm: the installed vllm {has}: use --sampler transformers")
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks % self.tensor_parallel:
            raise UserError(
                f"--tensor-parallel {self.tensor_parallel}: the {ranks} processes do not divide into engines "
                f"of {self.tensor_parallel}; start a multiple of it with torchrun --nproc-per-node"
            )
        self.group = dist.new_subgroups(self.tensor_parallel)[0] if self.tensor_parallel > 1 else None
        with torch.device("meta"), forked_rng(0, self.device):
            self.model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)  # shapes, no memory
        experts = any(".experts." in name for name, _ in self.model.named_parameters())
        if experts and self.use == "trained":  # vLLM lays their weights out for its kernels
            raise UserError("--sampler vllm cannot take over the weights of a mixture-of-experts model: "
                            "use --sampler transformers")

        engine = {"dtype": self.dtype, "tensor_parallel_size": self.tensor_parallel,
                  "skip_tokenizer_init": True, "use_tqdm_on_load": False,
                  "logprobs_mode": "processed_logprobs",  # of the sampling distribution, with temperature
                  "max_model_len": -1}  # the model's positions, or what the cache can hold
        if ranks > 1:  # vLLM's own executor would put every rank on the first GPU
            engine["distributed_executor_backend"] = "external_launcher"
        if self.device.type == "cuda":
            engine |= {"gpu_memory_utilization": self.gpu_memory, "enable_sleep_mode": self.sleep_level > 0}
        else:  # small blocks: short prompts are cached as they are on a GPU
            engine |= {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 2**30}
            keep_cpu_weights()
        with refused(model_path, self.use), forked_rng(0, self.device):
            self.llm = vllm.LLM(model_path, **engine)
        self.positions = min(self.positions, self.llm.model_config.max_model_len)
        self.asleep = False

    def _load(self, named_tensors) -> None:
        def load(model) -> set[str]:
            return {name for name, _ in model.named_parameters()} - model.load_weights(named_tensors)

        if self.asleep:  # in two parts: what gathers the weights and the cache are not in memory together
            self.llm.wake_up(["weights"])
        (stale,) = self.llm.apply_model(load)
        assert not stale, (
            f"no new weights for {sorted(stale)[:3]} ... ({len(stale)} parameters of the engine)"
        )
        if self.asleep:
            self.llm.wake_up(["kv_cache"])
            self.asleep = False

    def sleep(self) -> None:
        if self.sleep_level and not self.asleep:
            self.llm.sleep(self.sleep_level)
            self.asleep = True

    def _generate(self, prompts, n, temperature, max_tokens, seed, top_p, top_k) -> list[list[Sample]]:
        from vllm import SamplingParams

        assert not self.asleep, "the sampler sleeps: update() wakes it"
        mine = slice(len(prompts))
        if self.group:  # an engine's ranks sample the prompts of all together, under the seed of the first
            parts = [None] * self.tensor_parallel
            dist.all_gather_object(parts, (prompts, seed), self.group)
            before = sum(len(theirs) for theirs, _ in parts[: dist.get_rank(self.group)])
            mine = slice(before, before + len(prompts))
            prompts, seed = [prompt for theirs, _ in parts for prompt in theirs], parts[0][1]
        params = SamplingParams(
            n=n if temperature else 1, temperature=temperature, top_p=top_p, top_k=top_k,
            max_tokens=max_tokens, stop_token_ids=self.stop_ids, logprobs=0, flat_logprobs=True,
            detokenize=False,
        )
        # Old keys and values may be of other weights; hits would change the batches and so a seed's draws.
        assert self.llm.reset_prefix_cache(), "vLLM still holds requests of a call that failed"
        # A seed for each request would do too, but breaks chunked prefill on a CPU.
        with forked_rng(seed, self.device):
            outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        groups = []
        for output in outputs[mine]:
            groups.append([])
            for s in output.outputs:
                groups[-1].append(Sample(list(s.token_ids), s.logprobs.logprobs, s.finish_reason == "stop"))
        return groups if temperature else [group * n for group in groups]


@contextmanager
def forked_rng(seed: int, device: torch.device):
    """Seeds every generator that vLLM draws from (torch's or numpy's, by its version), and puts all back."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def keep_cpu_weights() -> None:
    """Makes vLLM on a CPU use a layer's weights, not a packed copy that would stay old in `update`."""
    try:
        from vllm.model_executor.layers import utils

        _ = utils.dispatch_cpu_unquantized_gemm
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--sampler vllm: this vllm packs CPU weights in a way of its own ({error}): use vllm 0.32"
        ) from error
    utils.dispatch_cpu_unquantized_gemm = (
        lambda layer, remove_weight=False: setattr(layer, "cpu_linear", linear)
    )


class TransformersSampler(Sampler):
    """The transformers model with a key-value cache: slower than vLLM on a GPU, and at home everywhere."""

    def _start(self, model_path: str, config) -> None:
        self.model = load_model(model_path, self.dtype, self.use).to(self.device)

    def _load(self, named_tensors) -> None:
        own = dict(self.model.named_parameters())
        for name, tensor in named_tensors:
            own[name].copy_(tensor)

    def _generate(self, prompts, n, temperature, max_tokens, seed, top_p, top_k) -> list[list[Sample]]:
        generator = torch.Generator(self.device)
        generator.manual_seed(seed)
        samples: list[list[Sample]] = [[] for _ in prompts]
        for batch in self._batches(prompts, n, max_tokens):
            chosen, counts = [prompts[i] for i, _ in batch], [m for _, m in batch]
            rows = self._generate_batch(chosen, counts, temperature, max_tokens, top_p, top_k, generator)
            for i, m in batch:
                samples[i] += rows[:m]
                rows = rows[m:]
        return samples

    def _batches(self, prompts, n: int, max_tokens: int):
        """[(prompt, how many samples)] of similar prompt lengths, within the budgets of cache and logits."""
        batch, rows = [], 0
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True):
            left = n
            while left:
                # Prompts come longest first, so the batch's first prompt sets the width of the cache.
                width = len(prompts[batch[0][0]] if batch else prompts[i]) + max_tokens
                # On a CPU padding costs time: one much shorter than the batch's longest starts a new batch.
                unequal = (
                    batch and self.device.type == "cpu" and len(prompts[i]) < 0.9 * len(prompts[batch[0][0]])
                )
                room = max(1, min(self.cache_tokens // width, MOST_LOGITS // self.n_embeddings)) - rows
                if room <= 0 or unequal:
                    yield batch
                    batch, rows = [], 0
                    continue
                take = min(left, room)
                batch.append((i, take))
                rows += take
                left -= take
        if batch:
            yield batch

    def _generate_batch(self, prompts, counts, temperature, max_tokens, top_p, top_k, generator):
        lengths = [len(p) for p in prompts]
        width = max(lengths)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self.device)  # left padding
        mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).to(self.device)
        position = mask.long().cumsum(1).sub(1).clamp(min=0)
        padded = min(lengths) < width
        # The prompt is read once and its keys and values are shared out to its samples.
        out = self.model(
            ids, attention_mask=mask if padded else None, position_ids=position,
            use_cache=True, logits_to_keep=1,
        )
        if not hasattr(out, "past_key_values"):
            raise ValueError("transformers has no key-value cache for it")
        repeats = torch.tensor(counts, device=self.device)
        owner = torch.arange(len(prompts), device=self.device).repeat_interleave(repeats)
        kv, logits = out.past_key_values, out.logits[owner, -1]
        mask, position = mask[owner], position[owner, -1:]
        kv.reorder_cache(owner)

        stop = torch.tensor(self.stop_ids, device=self.device)
        alive = torch.arange(len(owner), device=self.device)  # rows of the result that are still growing
        tokens = torch.zeros(len(owner), max_tokens, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(len(owner), max_tokens, device=self.device)
        n_tokens = torch.zeros(len(owner), dtype=torch.long, device=self.device)
        finished = torch.zeros(len(owner), dtype=torch.bool, device=self.device)
        for t in range(max_tokens):
            logp = sampling_logprobs(logits.float(), temperature, top_p, top_k)
            token = draw(logp, generator) if temperature else logp.argmax(-1, keepdim=True)
            tokens[alive, t] = token[:, 0]
            logprobs[alive, t] = logp.gather(1, token)[:, 0]
            ended = torch.isin(token[:, 0], stop)
            finished[alive] = ended
            n_tokens[alive] = t + 1
            going = (~ended).nonzero()[:, 0]  # the one line of a token that waits for a GPU
            if t == max_tokens - 1 or not len(going):
                break
            if len(going) < len(alive):
                kv.reorder_cache(going)
                alive, token, mask, position = alive[going], token[going], mask[going], position[going]
            position = position + 1
            if padded:
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            out = self.model(
                token, attention_mask=mask if padded else None, position_ids=position,
                past_key_values=kv, use_cache=True,
            )
            logits = out.logits[:, -1]
        columns = tokens.tolist(), logprobs.tolist(), n_tokens.tolist(), finished.tolist()
        return [Sample(ids[:m], lps[:m], done) for ids, lps, m, done in zip(*columns)]
