"""Models: load one that can be trained, or say in one line why not, before a run has a folder.

The files have to hold every weight, `token_logprobs` and the sampler to have the model's own log-probs.
"""

import math
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from data import UserError
from machinery.ranks import weights

# A sampled token's two log-probs may be so many nats apart: a cache or a mask that is wrong makes far more.
WIDEST_GAP = {torch.float32: 0.01, torch.bfloat16: 1.0}


@contextmanager
def refused(path: str, use: str):
    """Any exception inside becomes the line that says why the model cannot be `use`: UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        said = shorten(str(error), 300, placeholder=" ...")
        raise UserError(f"--model {path} cannot be {use}: {kind}{said}") from error


# ---- loading -----------------------------------------------------------------------------------------------

def load_config(path: str, use: str = "trained"):
    """The config of a hub id or folder, without dropout. Raises UserError if there is no such model.

    `use`, here and below, is what for: "trained", or "sampled from", as a quantized model can be.
    """
    with refused(path, use):
        if (Path(path) / "adapter_config.json").exists():
            raise ValueError("it is an adapter (LoRA) of another model: merge it into that one (peft's "
                             "merge_and_unload), and give the folder of the whole")
        try:
            # A repository's own code is not run, and not asked for at a prompt.
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            said = str(error).split("\n")[0]
            if (Path(path) / "args.json").exists():
                said = f"it is the folder of a run, whose model is {path}/final"
            elif (Path(path) / ".metadata").exists():
                said = "it is a checkpoint: evaluate.py --model RUN --step N samples from it"
            elif path.count("/") > 1 and not Path(path).exists():
                said = "there is no such folder"
                if Path(path).parent.name == "assets":
                    said += "; give --model, or copy assets/, which has the embedded ones, beside the scripts"
            elif isinstance(error, ValueError):
                raise
            raise UserError(f"--model {path} is neither a folder with a model nor a hub id to be had: {said}"
                            ) from error
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"transformers has no causal language model of its type, {config.model_type}")
        if use == "trained" and getattr(config, "quantization_config", None):
            raise ValueError("its weights are quantized: give the model that they were made from, in "
                             "bfloat16 or float32")
    no_dropout(config)
    return config


def no_dropout(config) -> None:
    """Sets every dropout rate of a config to 0, in its parts too; the trained model's config keeps that.

    Layers that recompute their activations are in training mode, and some drop in it by themselves.
    """
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            no_dropout(value)
        elif "drop" in name and isinstance(value, (int, float)):
            setattr(config, name, type(value)(0))


def load_tokenizer(path: str, use: str = "trained"):
    """The tokenizer of a hub id or folder. Raises UserError if the model comes without one."""
    with refused(path, use):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def load_model(path: str, dtype: torch.dtype, use: str = "trained"):
    """The causal language model of a hub id or folder, on the CPU in eval mode, without dropout.

    Raises UserError if its files are cut or lack weights (transformers would draw random ones), or if a
    weight is not a finite number.
    """
    config = load_config(path, use)
    with refused(path, use):
        model, found = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype,
                                                            output_loading_info=True)
        if missing := sorted(found["missing_keys"]):
            strange = sorted(found["unexpected_keys"])[:1]
            instead = f", and hold others, {strange[0]} say" if strange else ""
            raise ValueError(f"its files lack {len(missing)} weights ({', '.join(missing[:3])}){instead}")
        for name, weight in model.named_parameters():
            if weight.dtype == dtype and weight.numel():
                low, high = weight.detach().aminmax()  # not a number, if there is one
                if not (low.isfinite() and high.isfinite()):
                    raise ValueError(f"its weights are not finite numbers: {name}")
    return model.eval()


# ---- trying out --------------------------------------------------------------------------------------------

@torch.no_grad()
def check_logits(policy, path: str) -> None:
    """Raises UserError unless the model's logits are head(hidden states), which a script's Policy assumes.

    Both are compared under a head 1024 times as large: a cap changes large logits only. Factors of two are
    undone to the last bit.
    """
    ids = torch.arange(8)[None]
    with refused(path, "trained"):
        head = policy.backbone.get_output_embeddings()
        head.weight.mul_(1024)
        logits_LV = policy.backbone(ids).logits[0, :-1]
        own_T = logits_LV.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        logp_NT, _, _ = policy(ids, torch.tensor([1]), torch.tensor([7]), 1.0)
        head.weight.div_(1024)
        if not own_T.isfinite().all():
            raise ValueError("its logits are not finite numbers")
        if not torch.allclose(own_T, logp_NT[0], rtol=0, atol=1e-4 * max(1, logits_LV.abs().max().item())):
            raise ValueError("it scales or caps its logits, or has more than a linear head, which "
                             "token_logprobs does not do")


@torch.no_grad()
def check_sampler(sampler) -> list[tuple]:
    """[(prompt, sample)]: up to two tokens after each of two prompts of unequal length.

    The first ends early: what it samples first is a stop token. Raises UserError if anything goes wrong.
    """
    prompts, stop_ids = [list(range(8)), list(range(8, 13))], sampler.stop_ids
    with refused(sampler.path, sampler.use):
        first = sampler.generate(prompts, n=2, temperature=0.0, max_tokens=1, seed=(0,))
        sampler.stop_ids = first[0][0].ids
        groups = sampler.generate(prompts, n=2, temperature=0.0, max_tokens=2, seed=(0,))
        sampler.stop_ids = stop_ids
        for sample in (*groups[0], *groups[1]):
            if not all(map(math.isfinite, sample.logprobs)):
                raise ValueError("its logits are not finite numbers")
    return [(prompt, group[0]) for prompt, group in zip(prompts, groups)]


@torch.no_grad()
def check_model(policy, sampler):
    """The policy, whose weights the sampler has taken over and then sampled with its log-probs.

    Raises UserError if anything goes wrong. Every rank has to call it.
    """
    with refused(sampler.path, sampler.use):
        sampler.update(weights(policy.backbone, sampler.dtype))
        for prompt, sample in check_sampler(sampler):
            lengths = [torch.tensor([len(part)], device=sampler.device) for part in (prompt, sample.ids)]
            ids_NL = torch.tensor([prompt + sample.ids], device=sampler.device)
            logp_NT, _, _ = policy(ids_NL, *lengths, 1.0)
            gap = (logp_NT[0].cpu() - torch.tensor(sample.logprobs)).abs().max().item()
            if not gap <= WIDEST_GAP[sampler.dtype]:
                raise ValueError(f"the log-probs of sampler and trainer are {gap:.2g} nats apart: its "
                                 "key-value cache does not do what its forward pass does")
    return policy
