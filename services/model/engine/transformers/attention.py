"""Attention over a paged KV cache, as transformers' own models call it.

One forward takes the tokens of all sequences as one flat row. `Step` says where each token's keys and values are written and
which part of the row belongs to which sequence; the models hand it through to `paged_attention` as a keyword. What a sequence
attends to is computed for it alone (on a CPU), so that it does not depend on who else is in the step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from services.model.errors import CheckpointError

IMPLEMENTATION = "docduet_paged"
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Row:
    """A sequence's part of a step: `count` tokens from position `start` on, and the blocks of all tokens up to them."""

    start: int
    count: int
    blocks: Sequence[int]

    @property
    def length(self) -> int:
        return self.start + self.count


class KVCache:
    """Keys and values of every layer, each [KV heads, slots, head size]; slot = block x block size + offset."""

    def __init__(self, config: Any, blocks: int, device: torch.device, dtype: torch.dtype) -> None:
        self.kv_heads = config.num_key_value_heads
        heads = config.num_attention_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.groups = heads // self.kv_heads
        self.device = device
        shape = (self.kv_heads, blocks * BLOCK_SIZE, self.head_dim)
        self.size = config.num_hidden_layers * 2 * self.kv_heads * blocks * BLOCK_SIZE * self.head_dim * dtype.itemsize
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            if self.size > (free := _free_memory(device)):
                raise MemoryError(f"{free / 2**30:.1f} GiB")
            for _ in range(config.num_hidden_layers):
                # Written, not only reserved: memory is taken now, and a masked slot never holds a NaN.
                keys, values = (torch.empty(shape, device=device, dtype=dtype).zero_() for _ in range(2))
                self.layers.append((keys, values))
        except (RuntimeError, MemoryError) as error:
            raise CheckpointError(
                f"the KV cache of {blocks * BLOCK_SIZE} tokens takes {self.size / 2**30:.1f} GiB on {device}, and more "
                f"than is free there ({str(error).splitlines()[0]}). Set MODEL_KV_TOKENS or MODEL_CONTEXT to less."
            ) from None


def _free_memory(device: torch.device) -> float:
    """Bytes. Asked before, because Linux gives out more than it has, and then ends the process that uses it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")
    with contextlib.suppress(OSError, ValueError):  # a container's own limit, where it has one
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


class _Part:
    """What one sequence of a step reads, the same in all layers."""

    def __init__(self, row: Row, at: int, cache: KVCache, dtype: torch.dtype) -> None:
        self.at, self.end, self.count, self.length = at, at + row.count, row.count, row.length
        first, last = row.blocks[0], row.blocks[-1]
        self.first_slot = first * BLOCK_SIZE
        run = last - first == len(row.blocks) - 1 and all(b == first + i for i, b in enumerate(row.blocks))
        self.blocks = None if run else torch.tensor(row.blocks, device=cache.device)
        self.mask: torch.Tensor | None = None
        if row.count > 1 and row.start > 0:
            self.mask = torch.full((row.count, row.length), float("-inf"), device=cache.device, dtype=dtype).triu_(
                row.start + 1
            )

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        """[KV heads, length, head size], in place where the blocks follow each other."""
        if self.blocks is None:
            return stored[:, self.first_slot : self.first_slot + self.length]
        heads, _, size = stored.shape
        return (
            stored.view(heads, -1, BLOCK_SIZE, size)
            .index_select(1, self.blocks)
            .view(heads, -1, size)[:, : self.length]
        )


class _Decoding:
    """All sequences of a step that add one token, padded to the longest: few large kernels instead of many small ones."""

    def __init__(self, rows: Sequence[Row], cache: KVCache) -> None:
        self.count = len(rows)
        longest = max(len(row.blocks) for row in rows)
        table = [list(row.blocks) + [row.blocks[0]] * (longest - len(row.blocks)) for row in rows]
        self.blocks = torch.tensor(table, device=cache.device)
        lengths = torch.tensor([row.length for row in rows], device=cache.device)
        slots = torch.arange(longest * BLOCK_SIZE, device=cache.device)
        self.mask = (slots < lengths[:, None])[:, None, None, :]

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        """[sequences, KV heads, longest, head size]."""
        heads, _, size = stored.shape
        return (
            stored.view(heads, -1, BLOCK_SIZE, size)[:, self.blocks].view(heads, self.count, -1, size).transpose(0, 1)
        )


class Step:
    """One forward: rows of one token first. `padded`: whether those attend together."""

    def __init__(self, rows: Sequence[Row], cache: KVCache, dtype: torch.dtype, *, padded: bool) -> None:
        self.cache = cache
        slots = [
            row.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for row in rows
            for position in range(row.start, row.length)
        ]
        self.slots = torch.tensor(slots, device=cache.device)
        single = sum(1 for row in rows if row.count == 1)
        self.decoding = _Decoding(rows[:single], cache) if padded and single > 1 else None
        self.parts = []
        at = single if self.decoding else 0
        for row in rows[at:]:
            self.parts.append(_Part(row, at, cache, dtype))
            at += row.count


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    step: Step,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, tokens, head size], key and value [1, KV heads, tokens, head size] -> [1, tokens, heads, head size]."""
    cache = step.cache
    keys, values = cache.layers[module.layer_idx]  # type: ignore[index]
    written = len(step.slots)  # tokens behind these only fill the forward up
    keys.index_copy_(1, step.slots, key[0, :, :written])
    values.index_copy_(1, step.slots, value[0, :, :written])
    heads, tokens, size = query.shape[1:]
    kv_heads, groups = cache.kv_heads, cache.groups
    query = query[0].transpose(0, 1)  # [tokens, heads, head size]
    out = query.new_zeros(tokens, heads, size)
    if step.decoding is not None:
        count = step.decoding.count
        # The query heads that share a KV head stand where the query positions usually do: nothing is repeated.
        packed = query[:count].reshape(count, kv_heads, groups, size)
        k, v = step.decoding.read(keys), step.decoding.read(values)
        out[:count] = scaled_dot_product_attention(packed, k, v, attn_mask=step.decoding.mask, scale=scaling).reshape(
            count, heads, size
        )
    for part in step.parts:
        k, v = part.read(keys), part.read(values)
        if part.count == 1:
            packed = query[part.at].reshape(1, kv_heads, groups, size)
            out[part.at] = scaled_dot_product_attention(packed, k[None], v[None], scale=scaling).reshape(heads, size)
            continue
        # [KV heads, groups, count, head size]: keys and values are expanded, which copies nothing.
        spread = query[part.at : part.end].transpose(0, 1).reshape(kv_heads, groups, part.count, size)
        out[part.at : part.end] = (
            scaled_dot_product_attention(
                spread,
                k[:, None].expand(-1, groups, -1, -1),
                v[:, None].expand(-1, groups, -1, -1),
                attn_mask=part.mask,
                is_causal=part.mask is None,
                scale=scaling,
            )
            .reshape(heads, part.count, size)
            .transpose(0, 1)
        )
    return out[None], None


def install(model: Any, name: str) -> None:
    """Makes a loaded model use the paged cache. Raises CheckpointError where that would compute something else."""
    config = model.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise CheckpointError(
            f"{name} uses sliding window attention (use_sliding_window in its config.json), which this engine does not "
            "compute; use a checkpoint without it, or a GGUF file of it."
        )
    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    config._attn_implementation = IMPLEMENTATION
