"""Which architectures evolora runs exactly: the self-check's figures for tiny random models of many, as a table.

python benchmarks/architectures.py > docs/results/architectures.md
"""

import sys
import warnings
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from evolora.engine.choose import choose_engine
from evolora.engine.self_check import check_engine
from evolora.engine.text import Text
from evolora.errors import InputError
from evolora.models.base import load_base
from evolora.models.lora import lora_config, lora_layout

_WORDS = {"vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_NARROW = {"hidden_size": 32, "num_hidden_layers": 2}
_PLAIN = {**_NARROW, "intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_EXPERTS = {"num_experts_per_tok": 2}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt1": ("OpenAIGPTConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gptj": ("GPTJConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 128,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "intermediate_size": 64,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", dict(**_PLAIN)),
    "gpt_neox_japanese": ("GPTNeoXJapaneseConfig", {k: v for k, v in _PLAIN.items() if k != "intermediate_size"}),
    "gpt_bigcode": ("GPTBigCodeConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
        },
    ),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}),
    "codegen": (
        "CodeGenConfig",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_ctx": 128, "rotary_dim": 4},
    ),
    "ctrl": ("CTRLConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "dff": 64}),
    "llama": ("LlamaConfig", dict(**_GROUPED)),
    "mistral": ("MistralConfig", dict(**_GROUPED, sliding_window=8)),
    "mixtral": ("MixtralConfig", dict(**_GROUPED, num_local_experts=4, **_EXPERTS)),
    "qwen2": ("Qwen2Config", dict(**_GROUPED)),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        dict(**_GROUPED, num_experts=4, **_EXPERTS, moe_intermediate_size=32, shared_expert_intermediate_size=32),
    ),
    "qwen3": ("Qwen3Config", dict(**_GROUPED, head_dim=8)),
    "qwen3_moe": ("Qwen3MoeConfig", dict(**_GROUPED, head_dim=8, num_experts=4, **_EXPERTS, moe_intermediate_size=32)),
    "qwen3_next": (
        "Qwen3NextConfig",
        dict(
            **_GROUPED,
            head_dim=8,
            num_experts=4,
            **_EXPERTS,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention"],
        ),
    ),
    "gemma": ("GemmaConfig", dict(**_GROUPED, head_dim=8)),
    "gemma2": ("Gemma2Config", dict(**_GROUPED, head_dim=8, sliding_window=8)),
    "gemma3": (
        "Gemma3TextConfig",
        dict(**_GROUPED, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    ),
    "phi": ("PhiConfig", dict(**_PLAIN)),
    "phi3": ("Phi3Config", dict(**_GROUPED)),
    "stablelm": ("StableLmConfig", dict(**_GROUPED)),
    "starcoder2": ("Starcoder2Config", dict(**_GROUPED)),
    "olmo": ("OlmoConfig", dict(**_GROUPED)),
    "olmo2": ("Olmo2Config", dict(**_GROUPED)),
    "olmoe": ("OlmoeConfig", dict(**_GROUPED, num_experts=4, **_EXPERTS)),
    "jetmoe": ("JetMoeConfig", dict(**_GROUPED, kv_channels=8, num_local_experts=4, **_EXPERTS)),
    "afmoe": (
        "AfmoeConfig",
        dict(
            **_GROUPED,
            head_dim=8,
            sliding_window=8,
            num_experts=4,
            **_EXPERTS,
            moe_intermediate_size=32,
            num_dense_layers=1,
            global_attn_every_n_layers=2,
        ),
    ),
    "granite": ("GraniteConfig", dict(**_GROUPED)),
    "granitemoe": ("GraniteMoeConfig", dict(**_GROUPED, num_local_experts=4, **_EXPERTS)),
    "cohere": ("CohereConfig", dict(**_GROUPED)),
    "cohere2": (
        "Cohere2Config",
        dict(**_GROUPED, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    ),
    "smollm3": ("SmolLM3Config", dict(**_GROUPED)),
    "glm": ("GlmConfig", dict(**_GROUPED, head_dim=8)),
    "glm4": ("Glm4Config", dict(**_GROUPED, head_dim=8)),
    "nemotron": ("NemotronConfig", dict(**_GROUPED)),
    "helium": ("HeliumConfig", dict(**_GROUPED, head_dim=8)),
    "exaone4": (
        "Exaone4Config",
        dict(**_GROUPED, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    ),
    "gpt_oss": (
        "GptOssConfig",
        dict(
            **_GROUPED,
            head_dim=8,
            num_local_experts=4,
            **_EXPERTS,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        dict(
            **_PLAIN,
            num_key_value_heads=4,
            n_routed_experts=4,
            **_EXPERTS,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=32,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            first_k_dense_replace=1,
        ),
    ),
    "lfm2": ("Lfm2Config", dict(**_GROUPED, block_ff_dim=64, layer_types=["conv", "full_attention"])),
    "jamba": (
        "JambaConfig",
        dict(
            **_GROUPED,
            num_experts=2,
            num_experts_per_tok=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            use_mamba_kernels=False,
            mamba_d_state=8,
            mamba_dt_rank=4,
        ),
    ),
    "bamba": (
        "BambaConfig",
        dict(**_GROUPED, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, attn_layer_indices=[1]),
    ),
    "falcon_h1": (
        "FalconH1Config",
        dict(
            **_GROUPED, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
        ),
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "lru_width": 32,
            "attention_window_size": 8,
        },
    ),
    "mamba": ("MambaConfig", dict(**_NARROW, state_size=8)),
    "mamba2": ("Mamba2Config", dict(**_NARROW, state_size=8, num_heads=8, head_dim=8, n_groups=1)),
    "falcon_mamba": ("FalconMambaConfig", dict(**_NARROW, state_size=8)),
    "rwkv": (
        "RwkvConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "intermediate_size": 64,
            "context_length": 128,
        },
    ),
    "biogpt": ("BioGptConfig", dict(**_PLAIN)),
    "xglm": (
        "XGLMConfig",
        {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 128},
    ),
    "persimmon": ("PersimmonConfig", dict(**_PLAIN)),
    "arcee": ("ArceeConfig", dict(**_GROUPED)),
    "seed_oss": ("SeedOssConfig", dict(**_GROUPED, head_dim=8)),
    "minimax": (
        "MiniMaxConfig",
        dict(
            **_GROUPED,
            head_dim=8,
            num_local_experts=4,
            **_EXPERTS,
            layer_types=["linear_attention", "full_attention"],
            block_size=16,
        ),
    ),
    "apertus": ("ApertusConfig", dict(**_GROUPED)),
    "ernie4_5": ("Ernie4_5Config", dict(**_GROUPED, head_dim=8)),
    "gemma3_vision": (
        "Gemma3Config",
        {
            "text_config": {**_GROUPED, "head_dim": 8, "sliding_window": 8},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 1000,
            "boi_token_index": 1001,
            "eoi_token_index": 1002,
        },
    ),
    "hunyuan": ("HunYuanDenseV1Config", dict(**_GROUPED, head_dim=8)),
}
TARGETS = (None, "all-linear")


_HEAD = f"""# Architectures

Tiny random models of two or three layers, run by the engine that a run on a CPU gets. *Exact*: log-probabilities of two
uneven prompts completed in one batch, by the base and by an adapter of noise, equal those of plain passes of one text
at a time, with PEFT's own adapter, up to the figure. More than 1e-4, and than rounding explains, is refused. The same
check is made before every run.

Made by `python benchmarks/architectures.py` with transformers {transformers.__version__}, torch {torch.__version__}, in
float32 on a CPU.

| architecture | default layers | all-linear |
|---|---|---|"""


def random_model(architecture: str) -> PreTrainedModel:
    """A tiny model whose random weights are large enough that its greedy text is varied."""
    kind, sizes = ARCHITECTURES[architecture]
    if "text_config" in sizes:
        sizes = {**sizes, "text_config": {**_WORDS, **sizes["text_config"]}}
    else:
        sizes = {**_WORDS, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes), dtype=torch.float32)
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "conv" not in name and "A_log" not in name:
                weight.data.normal_(0, 0.25)
    model.config.architectures = [type(model).__name__]
    return model.eval().requires_grad_(False)


def outcome(architecture: str, targets: str | None) -> str:
    """What the engine that a run would get says of the architecture beside plain passes and PEFT, in words."""
    model, text = random_model(architecture), load_base("tiny-gpt2").tokenizer
    try:
        lora = lora_config(model, target_modules=targets)
        layout, founder = lora_layout(model, lora, seed=0)
        engine = choose_engine(model, layout).engine
        found = check_engine(engine, model, lora, founder, Text.of(model, text), name=architecture)
    except (InputError, ValueError) as error:  # the latter are PEFT's own
        said = " ".join(str(error).split()).removeprefix(f"--model {architecture}: ")
        return f"refused: {said}"
    return f"exact, within {found.largest:.0e}, on {len(layout.modules)} layers"


def main() -> None:
    print(_HEAD)
    for architecture in sys.argv[1:] or ARCHITECTURES:
        cells = dict.fromkeys(outcome(architecture, targets).replace("|", "\\|") for targets in TARGETS)
        print(f"| {architecture} | {' | '.join(cells)} |{' as before |' * (len(cells) < len(TARGETS))}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    main()
