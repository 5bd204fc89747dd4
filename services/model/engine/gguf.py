"""Reads the metadata of a GGUF file: what must be known before, or beside, loading it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.model.errors import CheckpointError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte


@dataclass(frozen=True)
class GgufInfo:
    """The metadata that the service uses. `control_tokens`: text -> id of the tokens that steer the model."""

    architecture: str
    name: str
    context_length: int
    vocab_size: int
    chat_template: str | None
    control_tokens: dict[str, int]
    bos_token: str
    eos_token: str


def read_gguf(path: Path) -> GgufInfo:
    """Raises CheckpointError when the file is not a GGUF file, is cut short, or holds no language model."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            values = _Reader(data).metadata()
    except (OSError, ValueError, struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as a GGUF file: {error}. Is the download complete?") from error
    architecture = str(values.get("general.architecture", ""))
    context = values.get(f"{architecture}.context_length")
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(context, int) or not tokens:
        raise CheckpointError(
            f"{path} is a GGUF file without a language model (architecture {architecture or 'unknown'})."
        )
    kinds = values.get("tokenizer.ggml.token_type") or []

    def token(key: str) -> str:
        index = values.get(f"tokenizer.ggml.{key}_token_id")
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else ""

    return GgufInfo(
        architecture=architecture,
        name=str(values.get("general.name", "")),
        context_length=context,
        vocab_size=len(tokens),
        chat_template=values.get("tokenizer.chat_template"),
        control_tokens={tokens[i]: i for i, kind in enumerate(kinds) if kind == _CONTROL_TOKEN and tokens[i]},
        bos_token=token("bos"),
        eos_token=token("eos"),
    )


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def metadata(self) -> dict[str, Any]:
        if self._data[:4] != b"GGUF":
            raise ValueError(f"it begins with {self._data[:4]!r}, not with GGUF")
        self._at = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version} is not known here (2 and 3 are)")
        self._scalar("<Q")  # number of tensors
        count = self._scalar("<Q")
        return {self._string(): self._value(self._scalar("<I")) for _ in range(count)}

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._data, self._at)
        self._at += struct.calcsize(code)
        return value

    def _string(self) -> str:
        length = self._scalar("<Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("the file ends inside a string")
        return self._data[start : self._at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        item, count = self._scalar("<I"), self._scalar("<Q")
        if item in (_STRING, _ARRAY):
            return [self._value(item) for _ in range(count)]
        code = f"<{count}{_SCALARS[item][1]}"
        values = list(struct.unpack_from(code, self._data, self._at))
        self._at += struct.calcsize(code)
        return values
