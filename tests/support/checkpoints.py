"""Tiny checkpoints in Hugging Face's layout, made from scratch: random weights, a byte-level tokenizer without merges."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
GENERATION = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """`tokenizer.json`: ids 0-255 are bytes, 256-258 control tokens, 259 `<tool_call>`, which is not one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": CHAT_TEMPLATE, "add_bos_token": False},
    )


def write_tiktoken(folder: Path) -> None:
    """`qwen.tiktoken` with the 256 bytes and two merges; control tokens begin at 258."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"he", "中".encode()]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")


def write_weights(folder: Path, tensors: Mapping[str, Tensor], *, shards: int = 1) -> list[Path]:
    """Safetensors, in one file or in several with their index."""
    names = sorted(tensors)
    if shards == 1:
        save_file({name: tensors[name].contiguous() for name in names}, folder / "model.safetensors")
        return [folder / "model.safetensors"]
    weight_map: dict[str, str] = {}
    paths = []
    for shard in range(shards):
        path = folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[shard::shards]
        save_file({name: tensors[name].contiguous() for name in mine}, path)
        weight_map |= dict.fromkeys(mine, path.name)
        paths.append(path)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return paths


def random_weights(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Fills `model` with numbers of a size that makes its logits differ clearly, and returns a copy of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            scale = 0.5 / tensor.shape[-1] ** 0.5 if tensor.dim() > 1 else 0.3
            offset = 1.0 if "norm" in name else 0.0
            tensor.copy_(offset + torch.randn(tensor.shape, generator=generator) * (2 * scale))
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def write_checkpoint(
    folder: Path, model: nn.Module, config: Mapping[str, Any], *, shards: int = 1, eos: int | Sequence[int] = (258, 256)
) -> dict[str, Tensor]:
    """A whole folder for a Qwen2 or Qwen3 `model`, with random weights, which are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_weights(model)
    stored = {
        name: tensor for name, tensor in tensors.items() if not (config["tie_word_embeddings"] and "lm_head" in name)
    }
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json", GENERATION | {"eos_token_id": eos if isinstance(eos, int) else list(eos)}
    )
    write_tokenizer(folder)
    write_weights(folder, stored, shards=shards)
    return tensors
