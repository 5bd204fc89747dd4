"""Tiny Qwen checkpoints with random weights, in Hugging Face's layout: real files, real code, milliseconds a forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEXT = ["the quick brown fox jumps over the lazy dog and the other one", "to be or not to be that is the question"]


def make_tokenizer(vocab_size: int = 320) -> Tokenizer:
    """Byte-level BPE: the 256 bytes, a few merges, the control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in CONTROL])
    return tokenizer


def make_checkpoint(
    folder: Path, kind: Literal["qwen2", "qwen3"] = "qwen2", *, seed: int = 0, **overrides: Any
) -> Path:
    """Writes a checkpoint of 2 layers, 4 heads over 2 KV heads; `overrides` go into its config. Returns the folder."""
    tokenizer = make_tokenizer()
    end = tokenizer.token_to_id("<|im_end|>")
    values = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,  # large: the logits differ, so equal texts are no accident
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": None,
        **({"head_dim": 32} if kind == "qwen3" else {}),
        **overrides,
    }
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**values)) if kind == "qwen2" else Qwen3ForCausalLM(Qwen3Config(**values))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
