"""The table of docs/running.md: which of transformers' causal language models can be trained.

    python tests/model_table.py                 # all of them; a minute
    python tests/model_table.py llama jamba     # these

Each is made tiny, with random weights, and goes through what a run does before it has a folder: it is loaded
as sampler, policy and critic and tried out. Then a response is sampled and its log-probs are computed again,
with recomputed activations.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # python tests/model_table.py
import machinery  # isort: skip  # noqa: F401  as every entry point, before torch loads

import tempfile

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from data import UserError
from grpo import Policy, pad
from machinery.models import check_model
from machinery.ranks import shard
from machinery.sampler import Sampler
from ppo import Critic

TOKENIZER = Path(__file__).resolve().parent.parent / "assets/countdown"
SIZES = {"vocab_size": 314, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
         "bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
           "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
LATENT = {**EXPERTS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
          "v_head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
          "num_key_value_heads": 4}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
          "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
         "mamba_chunk_size": 16}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}
QWEN_VISION = {"hidden_size": 32, "intermediate_size": 64, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
NEMOTRON_H = {**EXPERTS, "layers_block_type": ["mamba", "attention"], "ssm_state_size": 8, "head_dim": 8,
              "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 16}
# {transformers' model type, and a word on the config: what is set besides SIZES}
MODELS = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {}, "gemma": {}, "phi": {}, "phi3": {}, "olmo2": {},
    "olmo3": {}, "smollm3": {}, "granite": {}, "glm": {}, "glm4": {}, "starcoder2": {}, "stablelm": {},
    "exaone4": {}, "ernie4_5": {}, "seed_oss": {}, "nemotron": {}, "gemma3_text": {},
    "helium": {"head_dim": 8},
    "gpt2": {}, "gpt_neox": {}, "gptj": {"rotary_dim": 8}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "bloom": {}, "falcon": {}, "mpt": {},
    "mixtral": EXPERTS, "qwen2_moe": EXPERTS, "qwen3_moe": EXPERTS, "olmoe": EXPERTS, "gpt_oss": EXPERTS,
    "granitemoe": EXPERTS, "phimoe": EXPERTS, "glm4_moe": LATENT, "deepseek_v2": LATENT,
    "deepseek_v3": LATENT, "ernie4_5_moe": {**EXPERTS, "moe_num_experts": 4, "moe_k": 2},
    "qwen3_next": {**LINEAR, **EXPERTS}, "qwen3_5_text": LINEAR, "qwen3_5_moe_text": {**LINEAR, **EXPERTS},
    "qwen3_5": {"text_config": {**SIZES, **LINEAR}, "vision_config": QWEN_VISION},
    "lfm2": {"layer_types": ["conv", "full_attention"]}, "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "jamba": {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "granitemoehybrid": {**MAMBA, **EXPERTS, "layer_types": ["mamba", "attention"]},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64}, "nemotron_h": NEMOTRON_H, "minimax": EXPERTS,
    "olmo_hybrid": LINEAR,
    "gemma3": {"text_config": SIZES, "vision_config": VISION, "image_token_index": 300,
               "mm_tokens_per_image": 4},
    "gemma2": {}, "gemma3_text with a cap": {"final_logit_softcapping": 30.0}, "cohere": {}, "cohere2": {},
    "granite with scaled logits": {"logits_scaling": 8.0}, "falcon_h1 with scaled logits":
    {**MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "attention"]},
    "mamba": {"state_size": 8}, "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "falcon_mamba": {"state_size": 8}, "rwkv": {"attention_hidden_size": 32},
    "bert": {}, "qwen2_5_vl": {}, "t5": {},
}


def build(name: str, folder, **change) -> str:
    """Saves a tiny model with random weights and the embedded model's tokenizer; its folder."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **{**SIZES, **MODELS[name], **change})
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():  # larger than a new model's: its log-probs are all alike
                weight += 0.1 * torch.randn_like(weight)
        model.save_pretrained(folder)
    return str(folder)


def try_out(folder: str) -> float:
    """The largest gap between a sampled token's log-probs in sampler and trainer. Raises UserError."""
    sampler = Sampler(folder, "transformers", "cpu")
    policy = check_model(shard(Policy(folder), "cpu", gradient_checkpointing=True), sampler)
    critic = shard(Critic(folder), "cpu", gradient_checkpointing=True)
    prompts = [list(range(40, 60)), list(range(70, 77))]
    groups = sampler.generate(prompts, n=4, temperature=1.0, max_tokens=12, seed=0)
    rows = [(prompt, sample) for prompt, group in zip(prompts, groups) for sample in group]
    ids = pad([prompt for prompt, _ in rows], [sample.ids for _, sample in rows], "cpu")
    logp_NT, _, mask_NT = policy(*ids, 1.0)
    (logp_NT + critic(*ids)).sum().backward()
    engine_M = torch.tensor([logp for _, sample in rows for logp in sample.logprobs])
    return (logp_NT.detach()[mask_NT] - engine_M).abs().max().item()


def outcome(name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return f"trained, {try_out(build(name, folder)):.0e} nats apart"
        except UserError as error:
            return f"refused: {str(error).partition(': ')[2]}"


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[1:] or MODELS:
        print(f"| {name} | {outcome(name)} |", flush=True)
