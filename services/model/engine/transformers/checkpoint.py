"""What a Hugging Face checkpoint is once it is loaded: what `loading.py` makes and the engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch


class Vocabulary(Protocol):
    """The tokenizer, as ids and bytes. Every method may be called from any thread."""

    size: int  # rows of the logits: at least one more than the largest id

    def encode(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        """`special`: whether the text of a control token becomes that token. `add_bos`: where the checkpoint wants one."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the answer's text, not always complete UTF-8; b"" for a control token or an unused id."""

    def all_bytes(self) -> list[bytes]:
        """The bytes of all `size` ids for the grammar; a control token is b"\\xff" and its name, an unused id b""."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    model: torch.nn.Module  # a *ForCausalLM of transformers: eval mode, on its device, in its dtype
    vocabulary: Vocabulary
    context: int  # the checkpoint's own limit, in tokens
    chat_template: str | None
    special_tokens: Mapping[str, int]  # control tokens
    bos_token: str
    eos_token: str
    eos_ids: frozenset[int]  # end the turn
    defaults: Mapping[str, float] = field(default_factory=dict)  # generation_config.json's sampling
    tool_style: Literal["hermes", "react"] = "hermes"
