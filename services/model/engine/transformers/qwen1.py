"""First-generation Qwen (`QWenLMHeadModel`: Qwen-1_8B, 7B, 14B, 72B) as Qwen2: the same mathematics under other names.

The published model code differs from Qwen2's in names, in one matrix for query, key and value, and in two things for long
texts, logn scaling and dynamic NTK. Both are inactive up to `seq_length` tokens, so the context ends there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from services.model.engine.transformers.weights import Cut, Piece, Translate
from services.model.errors import CheckpointError

# As `make_context` of the published code writes a conversation, whose default system prompt this is.
CHAT_TEMPLATE = (
    "{%- if not messages or messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>' }}"
    "{%- if not loop.last or add_generation_prompt %}{{- '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

_NAMES = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.up_proj",  # a1 = w1(x); a2 = w2(x); c_proj(a1 * silu(a2))
    "mlp.w2": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_TOP = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)\.(\w+)")


def is_qwen1(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "qwen" or "QWenLMHeadModel" in (config.get("architectures") or ())


def as_qwen2(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The `config.json` of Qwen2 for one of the first generation, with the key names of 2023-08 or those since.

    Raises CheckpointError: something in it has no counterpart.
    """

    def value(*names: str) -> Any:
        for name in names:
            if config.get(name) is not None:
                return config[name]
        raise CheckpointError(f"{where} lacks {names[0]}. Is it the config.json of the checkpoint? Download it again.")

    if "visual" in config or "audio" in config:
        raise CheckpointError(
            f"{where} describes a model that reads images or sound (Qwen-VL, Qwen-Audio); only text is supported."
        )
    hidden, heads = value("hidden_size", "n_embd"), value("num_attention_heads", "n_head")
    unlike = {
        "rotary_pct": config.get("rotary_pct", 1.0) != 1.0,
        "kv_channels": config.get("kv_channels", hidden // heads) * heads != hidden,
        "scale_attn_weights": config.get("scale_attn_weights") is False,
    }
    for name, is_unlike in unlike.items():
        if is_unlike:
            raise CheckpointError(
                f"{where}: {name} = {config[name]} is not the published Qwen architecture and not supported."
            )
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": max(value("vocab_size", "padded_vocab_size"), config.get("padded_vocab_size") or 0),
        "hidden_size": hidden,
        # ffn_hidden_size counts both halves of the gated layer
        "intermediate_size": value("intermediate_size", "ffn_hidden_size") // 2,
        "num_hidden_layers": value("num_hidden_layers", "n_layer"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "hidden_act": "silu",
        # Beyond it logn scaling and dynamic NTK would begin.
        "max_position_embeddings": value("seq_length"),
        "rms_norm_eps": value("layer_norm_epsilon"),
        "rope_theta": float(value("rotary_emb_base")),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_sliding_window": False,
        "torch_dtype": _dtype(config),
    }


def _dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype by `torch_dtype`, else by the three flags; all of them false: whatever the weights are stored in."""
    if config.get("torch_dtype"):
        return str(config["torch_dtype"])
    flags = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    return next((dtype for flag, dtype in flags.items() if config.get(flag) is True), None)


def translate(hidden: int, bits: int | None) -> Translate:
    """The names and pieces of a tensor; `hidden`: the model's width; `bits`: of a weight in a packed checkpoint."""

    def pieces(name: str) -> Iterable[Piece]:
        if name in _TOP:
            return [Piece(_TOP[name])]
        found = _LAYER.fullmatch(name)
        if found is None:
            return [Piece(name)]  # unknown: said so by its own name
        layer, module, leaf = found.groups()
        prefix = f"model.layers.{layer}"
        if module != "attn.c_attn":
            return [Piece(f"{prefix}.{_NAMES.get(module, module)}.{leaf}")]
        return [
            Piece(f"{prefix}.self_attn.{target}.{leaf}", _third(index, leaf, hidden, bits))
            for index, target in enumerate(("q_proj", "k_proj", "v_proj"))
        ]

    return pieces


def _third(index: int, leaf: str, hidden: int, bits: int | None) -> Cut | None:
    """One of query, key and value. `weight` and `bias` have outputs in rows; packed tensors have them in columns, the
    zeros 32 / bits of them in one integer; `g_idx` is of the inputs, which all three share."""
    if leaf == "g_idx":
        return None
    if leaf in ("weight", "bias"):
        return lambda tensor: tensor[index * hidden : (index + 1) * hidden]
    width = hidden * (bits or 32) // 32 if leaf == "qzeros" else hidden

    def columns(tensor: Tensor) -> Tensor:
        return tensor[:, index * width : (index + 1) * width]

    return columns
