"""Which models can be trained: log-probs that sampler and trainer agree on, and one line for all others."""

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.modeling_layers import GradientCheckpointingLayer

import data
import evaluate
import grpo
import ppo
from data import UserError
from machinery.models import check_model, check_sampler, load_model
from machinery.ranks import shard
from machinery.run import launch
from machinery.sampler import Sampler, TransformersSampler, stop_token_ids
from tests.model_table import build, try_out

DROPOUT = {
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5},
    "qwen2": {"attention_dropout": 0.5},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "mpt": {"attn_config": {"attn_pdrop": 1}, "resid_pdrop": 0.5, "emb_pdrop": 0.5},
    "phimoe": {"router_jitter_noise": 0.5},
}
IDS = (torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 0, 0]]), torch.tensor([2, 1]), torch.tensor([4, 3]))


@pytest.fixture(autouse=True)
def few_problems(monkeypatch):
    monkeypatch.setattr(data, "load", lambda *args, load=data.load, **keywords: load(*args, **keywords)[:16])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama"))


# ---- dropout -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", DROPOUT)
def test_no_forward_pass_has_dropout(name, tmp_path):
    """In policy and critic; with --gradient-checkpointing too, and then the activations are recomputed."""
    folder = build(name, tmp_path, **DROPOUT[name])
    values, gradients, passes = [], [], []
    for again in (False, True):
        policy, critic = (shard(of(folder), "cpu", again) for of in (grpo.Policy, ppo.Critic))
        torch.nn.init.ones_(critic.head.weight)
        counted = []
        for model in (policy, critic):
            layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
            layers[0].register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        logp_NT, _, _ = policy(*IDS, 1.0)
        values_NT = critic(*IDS)
        (logp_NT + values_NT).sum().backward()
        values.append(torch.cat([logp_NT, values_NT]).detach())
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
        passes.append(len(counted))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    assert passes == [2, 4]


def test_a_run_with_recomputed_activations_has_no_gap(tmp_path):
    folder = build("gpt2", tmp_path / "gpt2", **DROPOUT["gpt2"])
    args = {"data": "countdown", "steps": 1, "prompts": 4, "n": 2, "eval_problems": 2, "eval_n": 2,
            "beta": 0.1, "critic_warmup": 0}
    run = ppo.main(ppo.Args(**args, model=folder, gradient_checkpointing=True, device="cpu",
                            run_dir=str(tmp_path / "run")))
    (logged,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged["engine/gap_max"] < 1e-5 and abs(logged["train/kl"]) < 1e-6


def test_a_model_that_cannot_recompute_is_one_line(tmp_path):
    config = AutoConfig.for_model("ctrl", vocab_size=314, n_embd=32, dff=64, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--gradient-checkpointing: CTRL.* does not support"):
        shard(grpo.Policy(str(tmp_path)), "cpu", gradient_checkpointing=True)


# ---- models that can be trained ----------------------------------------------------------------------------

@pytest.mark.parametrize(
    "name", ["opt", "qwen3_5", "qwen3_next", "jamba", "bamba", "lfm2", "granitemoehybrid"]
)
def test_sampler_and_trainer_agree(name, tmp_path):
    """Of prompts of unequal length, with rows that end early and leave the cache: of hybrids' states too."""
    assert try_out(build(name, tmp_path)) < 1e-4


def test_a_cache_that_keeps_the_wrong_rows_is_seen(llama, monkeypatch):
    sampler, policy = Sampler(llama, "transformers", "cpu"), grpo.Policy(llama)
    assert check_model(policy, sampler) is policy
    stop_ids = sampler.stop_ids

    def generate(self, *args, **keywords):
        groups = original(self, *args, **keywords)
        for sample in groups[1]:
            sample.logprobs[-1] -= 0.1
        return groups

    original = TransformersSampler.generate
    monkeypatch.setattr(TransformersSampler, "generate", generate)
    with pytest.raises(UserError, match=r"cannot be trained: the log-probs of sampler and trainer are 0\.1 "):
        check_model(policy, sampler)
    assert sampler.stop_ids == stop_ids and len(check_sampler(sampler)[0][1].ids) == 1


def test_a_sharp_head_is_put_back_to_the_last_bit(llama):
    """check_logits asks with a head 1024 times as large."""
    policy, weights = grpo.Policy(llama), load_file(f"{llama}/model.safetensors")
    assert torch.equal(policy.backbone.get_output_embeddings().weight, weights["lm_head.weight"])


# ---- models that cannot ------------------------------------------------------------------------------------

def changed(folder, **config):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def rewritten(change):
    def rewrite(folder):
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def with_value(value):
    def change(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        return weights

    return change


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def only_an_adapter(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')


BROKEN = {
    "cut": (cut, "SafetensorError: "),
    "compiled": (rewritten(lambda weights: {f"_orig_mod.{name}": w for name, w in weights.items()}),
                 "its files lack 21 weights (lm_head.weight, model.embed_tokens.weight, "
                 "model.layers.0.input_layernorm.weight), and hold others, _orig_mod.lm_head.weight say"),
    "headless": (rewritten(lambda weights: {name: w for name, w in weights.items() if "head" not in name}),
                 "its files lack 1 weights (lm_head.weight)"),
    "nan": (rewritten(with_value(float("nan"))), "its weights are not finite numbers: model.layers.1.mlp."),
    "inf": (rewritten(with_value(float("-inf"))), "its weights are not finite numbers: model.layers.1.mlp."),
    "huge": (rewritten(lambda weights: {**weights, "lm_head.weight": 1e38 * weights["lm_head.weight"]}),
             "its logits are not finite numbers"),
    "adapter": (only_an_adapter, "it is an adapter (LoRA) of another model: merge it into that one"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named"),
    "shapes": (lambda folder: changed(folder, hidden_size=64, head_dim=16), "size"),
    "no tokenizer": (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "tokenizer"),
    "unknown type": (lambda folder: changed(folder, model_type="gpt_9"), "model type `gpt_9`"),
    "its own code": (lambda folder: changed(folder, model_type="own", auto_map={"AutoConfig": "own.Config"}),
                     "contains custom code"),
    "no json": (lambda folder: (folder / "config.json").write_text("{"), "valid JSON"),
    "a VLM": (lambda folder: changed(folder, model_type="qwen2_5_vl"),
              "transformers has no causal language model of its type, qwen2_5_vl"),
    "quantized": (lambda folder: changed(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
                  "its weights are quantized: give the model that they were made from"),
}


def said_at_the_start(main, Args, monkeypatch, **args) -> str:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in args.items()]
    monkeypatch.setattr(sys, "argv", ["grpo.py", *flags])
    with pytest.raises(SystemExit) as exit:
        launch(main, Args)
    return str(exit.value.code)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_model_that_cannot_be_trained_is_one_line(fault, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    build("llama", folder)
    spoil, message = BROKEN[fault]
    spoil(folder)
    said = said_at_the_start(grpo.main, grpo.Args, monkeypatch, model=folder, data="countdown",
                             steps=1, device="cpu", run_dir=tmp_path / "run")
    assert re.match(f"error: --model {folder} (cannot be trained: |is neither a folder)", said), said
    assert message in said and "\n" not in said and len(said) < 600
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, message", [
    ("gemma2", "scales or caps its logits"),
    ("gemma3_text with a cap", "scales or caps its logits"),
    ("granite with scaled logits", "scales or caps its logits"),
    ("falcon_h1 with scaled logits", "scales or caps its logits"),
    ("cohere", "scales or caps its logits"),
    ("bert", "more than a linear head"),
    ("mamba", "transformers has no key-value cache for it"),
])
def test_a_type_of_model_that_cannot_be_trained_is_one_line(name, message, tmp_path):
    with pytest.raises(UserError, match=f"^--model {tmp_path} cannot be trained: .*{message}"):
        try_out(build(name, tmp_path))


def test_what_can_only_be_sampled_from_is_evaluated(tmp_path, monkeypatch):
    """evaluate.py needs no log-probs of the trainer's; and refuses what it cannot use."""
    build("gemma2", tmp_path)
    args = {"model": str(tmp_path), "data": "countdown", "limit": 2, "n": 2, "max_tokens": 2}
    evaluate.main(evaluate.Args(**args, device="cpu", out=str(tmp_path / "out.json")))
    assert (tmp_path / "out.json").exists()
    BROKEN["nan"][0](tmp_path)
    with pytest.raises(UserError, match="cannot be sampled from: its weights are not finite numbers"):
        evaluate.main(evaluate.Args(**args, device="cpu", out=str(tmp_path / "none.json")))
    assert not (tmp_path / "none.json").exists()


def test_other_numbers_of_a_models_files_do_not_matter(tmp_path):
    """Weights that it does not know, and an output layer that is its embedding."""
    folder = build("llama", tmp_path, tie_word_embeddings=True)
    rewritten(lambda weights: {**weights, "mtp.weight": torch.ones(3)})(tmp_path)
    assert "lm_head.weight" not in load_file(f"{folder}/model.safetensors")
    assert not load_model(folder, torch.float32).training


def test_tokens_that_the_model_has_no_embedding_of_are_one_line(tmp_path, monkeypatch):
    """Those of a prompt; a tokenizer may have others."""
    model = AutoModelForCausalLM.from_pretrained(build("llama", tmp_path / "model"))
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "model")
    sampler = Sampler(str(tmp_path / "model"), "transformers", "cpu")
    assert len(sampler.tokenizer) == 314 and sampler.generate([[299]], 1, 1.0, 1, seed=0)
    with pytest.raises(UserError, match="a prompt holds its tokenizer's id 300, and it has 300 embeddings"):
        sampler.generate([[5], [5, 300, 7]], 1, 1.0, 1, seed=0)


# ---- stop tokens -------------------------------------------------------------------------------------------

CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
LLAMA_3 = ("{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
           "{{ m.content | trim }}<|eot_id|>{% endfor %}")
PHI_3 = ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
         "{% if not add_generation_prompt %}<|endoftext|>{% endif %}")
GEMMA = ("{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
         "{{ m.content }}<end_of_turn>\n{% endfor %}")
HARMONY = ("{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final"
           "{% endif %}<|message|>{{ m.content }}{% if loop.last and m.role == 'assistant' %}<|return|>"
           "{% else %}<|end|>{% endif %}{% endfor %}")
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
OWN = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|done|>{% endfor %}"
PICKY = "{{ raise_exception('only users speak here') }}"
OF_QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
OF_LLAMA = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
OF_PHI = ["<|endoftext|>", "<|assistant|>", "<|end|>"]
OF_GEMMA = ["<eos>", "<start_of_turn>", "<end_of_turn>"]
OF_HARMONY = ["<|return|>", "<|endoftext|>", "<|call|>", "<|end|>", "<|channel|>", "<|message|>", "<|start|>"]


@pytest.mark.parametrize("specials, template, named, stops", [
    # (special tokens, of which the first is the tokenizer's EOS; template; generation config's EOS; stops)
    (OF_QWEN, CHATML, ["<|im_end|>", "<|endoftext|>"], {"<|im_end|>", "<|endoftext|>"}),
    (OF_QWEN, CHATML, ["<|endoftext|>"], {"<|im_end|>", "<|endoftext|>"}),  # a base model
    (OF_QWEN, None, [], {"<|im_end|>", "<|endoftext|>"}),
    (OF_LLAMA, LLAMA_3, OF_LLAMA, set(OF_LLAMA)),
    (OF_LLAMA, LLAMA_3, ["<|end_of_text|>"], {"<|end_of_text|>", "<|eot_id|>"}),
    (OF_LLAMA, None, ["<|end_of_text|>"], {"<|end_of_text|>", "<|eot_id|>"}),  # without a template
    (OF_LLAMA, None, ["<|eom_id|>"], {"<|end_of_text|>", "<|eom_id|>"}),  # the table is not asked
    (OF_PHI, PHI_3, OF_PHI, set(OF_PHI)),
    (OF_PHI, PHI_3, ["<|endoftext|>"], {"<|endoftext|>", "<|end|>"}),
    (OF_PHI, PHI_3, [], {"<|endoftext|>", "<|end|>"}),
    (OF_GEMMA, GEMMA, ["<eos>", "<end_of_turn>"], {"<eos>", "<end_of_turn>"}),
    (OF_GEMMA, GEMMA, ["<eos>"], {"<eos>", "<end_of_turn>"}),
    (OF_HARMONY, HARMONY, ["<|return|>", "<|call|>"], {"<|return|>", "<|call|>"}),
    (OF_HARMONY, HARMONY, ["<|return|>", "<|endoftext|>", "<|call|>"],
     {"<|return|>", "<|endoftext|>", "<|call|>"}),
    (OF_HARMONY, HARMONY, ["<|return|>"], {"<|return|>", "<|call|>"}),
    (OF_HARMONY, None, [], {"<|return|>", "<|call|>"}),
    (["</s>", "<|end|>"], PLAIN, ["</s>"], {"</s>", "<|end|>"}),  # no special token behind a turn
    (["</s>", "<|done|>"], OWN, ["</s>"], {"</s>", "<|done|>"}),  # a name that no table has
    (["</s>", "<|done|>"], OWN, ["</s>", "<|done|>"], {"</s>", "<|done|>"}),
    (["</s>", "<|im_end|>"], PICKY, ["</s>"], {"</s>", "<|im_end|>"}),
])
def test_stop_tokens(specials, template, named, stops):
    words = ["[UNK]", "user", "assistant", "model", "system", "question", "answer", "final", ":"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    backend.add_special_tokens([AddedToken(token) for token in specials])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token=specials[0],
                                        chat_template=template, additional_special_tokens=specials[1:])
    eos = tokenizer.convert_tokens_to_ids(named) or None
    found = stop_token_ids(tokenizer, GenerationConfig(eos_token_id=eos))
    assert set(tokenizer.convert_ids_to_tokens(found)) == stops
    if eos and len(eos) == 1:
        assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=eos[0])) == found
