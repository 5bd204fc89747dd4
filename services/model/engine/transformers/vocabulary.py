"""The two tokenizers of Qwen, as ids and bytes: `tokenizer.json` (Qwen2 and later) and `qwen.tiktoken` (first generation).

Both are byte-level BPE over text in Unicode's NFC. A *control* token steers the model (`<|im_end|>`): its text is never
part of an answer, and only a template may write it. Other added tokens (`<tool_call>`, `<think>`) are ordinary text that
happens to be one token.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import tiktoken
from tokenizers import Tokenizer

from services.model.errors import CheckpointError

# How both generations cut text before merging, from their `tokenization_qwen.py` and `tokenizer.json`.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EXTRAS = 205


class _Vocabulary:
    """What both have in common. `control`: text -> id; `pieces`: id -> bytes of all other tokens."""

    def __init__(self, size: int, pieces: Mapping[int, bytes], control: Mapping[str, int], where: Path) -> None:
        largest = max((*pieces, *control.values()), default=-1)
        if largest >= size:
            raise CheckpointError(
                f"{where} has the token id {largest}, but config.json says vocab_size {size}. The files are of different "
                "checkpoints: download it again."
            )
        self.size = size
        self.special_tokens = dict(control)
        self._bytes = [pieces.get(token_id, b"") for token_id in range(size)]

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < self.size else b""

    def all_bytes(self) -> list[bytes]:
        found = list(self._bytes)
        for text, token_id in self.special_tokens.items():
            found[token_id] = b"\xff" + text.encode()  # 0xff is in no UTF-8 text: the grammar can never choose it
        return found


class JsonVocabulary(_Vocabulary):
    """`tokenizer.json`, read by Hugging Face's tokenizers library."""

    def __init__(self, path: Path, size: int, *, bos: str = "") -> None:
        """`bos`: the text of the token that `add_bos` puts in front, where the checkpoint wants one. Raises CheckpointError."""
        try:
            text = path.read_text(encoding="utf-8")
            model = json.loads(text)["model"]
            self._with_control, self._plain = Tokenizer.from_str(text), Tokenizer.from_str(text)
            pieces = {token_id: _byte_level(token) for token, token_id in model["vocab"].items()}
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(
                f"{path} cannot be read as the tokenizer of a Qwen checkpoint: {error}. Download the file again."
            ) from error
        for tokenizer in (self._with_control, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._plain.encode_special_tokens = True
        control: dict[str, int] = {}
        for token_id, token in self._plain.get_added_tokens_decoder().items():
            pieces.pop(token_id, None)
            if token.special:
                control[token.content] = token_id
            else:
                pieces[token_id] = token.content.encode()
        self._bos = [control[bos]] if bos in control else []
        super().__init__(size, pieces, control, path)

    def encode(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        tokenizer = self._with_control if special else self._plain
        ids: list[int] = tokenizer.encode(_interchangeable(text), add_special_tokens=False).ids
        return self._bos + ids if add_bos else ids


class TiktokenVocabulary(_Vocabulary):
    """`qwen.tiktoken`: a line for each token, its bytes in base64 and its rank. The control tokens follow the ranks."""

    def __init__(self, path: Path, size: int) -> None:
        """Raises CheckpointError."""
        try:
            lines = [line.split() for line in path.read_bytes().splitlines() if line]
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
            if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
                raise ValueError(f"its {len(ranks)} ranks are not 0, 1, 2 and so on")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}. Download the file again.") from error
        names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(_EXTRAS))]
        control = {name: len(ranks) + index for index, name in enumerate(names)}
        super().__init__(size, {rank: token for token, rank in ranks.items()}, control, path)
        self._control = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        self._encoding = tiktoken.Encoding(
            "qwen",
            pat_str=_PATTERN,
            mergeable_ranks=ranks,
            special_tokens=control,
            explicit_n_vocab=len(ranks) + len(names),
        )

    def encode(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        # Control tokens are cut out before normalising: NFC would merge their last character with an accent after it.
        parts = self._control.split(_interchangeable(text)) if special else [_interchangeable(text)]
        ids: list[int] = []
        for part in parts:
            if special and part in self.special_tokens:
                ids.append(self.special_tokens[part])
            else:
                ids += self._encoding.encode_ordinary(unicodedata.normalize("NFC", part))
        return ids


def _interchangeable(text: str) -> str:
    """`text` without lone surrogates, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE[character] for character in token)
    except KeyError as error:
        raise ValueError(f"the token {token!r} is not byte-level BPE") from error
