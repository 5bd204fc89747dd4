"""Which block of the KV cache holds what: reference counts, shared prefixes, and what is forgotten first.

A block holds the keys and values of `block_size` neighbouring tokens. A full one is known by a digest of its tokens and of
all before them, so that an equal prefix is found again, also after the request that computed it is gone. Blocks that nobody
uses but whose digest is known are kept until their room is needed, the longest unused first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

_EVICT = 16  # blocks at a time: neighbours in time are often neighbours in place, and attention likes runs


class OutOfBlocks(Exception):
    """Every block is in use."""


def block_digest(before: bytes, token_ids: Sequence[int]) -> bytes:
    """Of a full block. Cryptographic: a prompt made to collide with another's would be answered with its content."""
    return hashlib.blake2b(array("q", token_ids).tobytes(), key=before, digest_size=16).digest()


class BlockPool:
    """Counts only; the tensors are `attention.KVCache`. Used from one thread."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._references = [0] * blocks
        self._digests: list[bytes | None] = [None] * blocks
        self._known: dict[bytes, int] = {}
        self._free = set(range(blocks))  # hold nothing of use
        self._idle: OrderedDict[int, None] = OrderedDict()  # used by nobody, content known; longest unused first

    @property
    def available(self) -> int:
        """Blocks that a request could get now."""
        return len(self._free) + len(self._idle)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def take(self, after: int | None = None) -> int:
        """A block for new content, the one behind `after` where possible: attention reads a run of blocks in place and has to
        copy a scattered sequence together. Raises OutOfBlocks."""
        if not self._free:
            for _ in range(min(_EVICT, len(self._idle))):
                block, _nothing = self._idle.popitem(last=False)
                self._forget(block)
                self._free.add(block)
        if not self._free:
            raise OutOfBlocks
        block = after + 1 if after is not None and after + 1 in self._free else self._roomiest()
        self._free.remove(block)
        self._references[block] = 1
        return block

    def find(self, digest: bytes) -> int | None:
        """The block with this content, one reference more on it; or None."""
        block = self._known.get(digest)
        if block is not None:
            self._references[block] += 1
            self._idle.pop(block, None)
        return block

    def publish(self, block: int, digest: bytes) -> None:
        """`block` is full, and others may use it. Of two with the same content the first is kept."""
        if digest not in self._known:
            self._known[digest] = block
            self._digests[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Gives one reference of each back. A sequence's later blocks are forgotten first: they are useless without the
        earlier ones."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._digests[block] is None:
                    self._free.add(block)
                else:
                    self._idle[block] = None

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._known[digest]
            self._digests[block] = None

    def _roomiest(self) -> int:
        """The middle of the longest run of free blocks, so that the sequence before it and the new one both have room; its
        start, where nothing is before it."""
        best, length, start = 0, 0, 0
        for block in range(self.blocks + 1):
            if block not in self._free:
                if block - start > length:
                    best, length = start, block - start
                start = block + 1
        return best if best == 0 or self._references[best - 1] == 0 else best + length // 2
