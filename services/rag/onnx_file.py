"""Writes an ONNX file: nodes, constants, one protobuf message.

The ``onnx`` package would do the same for 33 MB in every installation; what is used of the format (github.com/onnx/onnx,
onnx/onnx.proto3) fits on this page, and onnxruntime checks the result when it loads it.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

OPSET = 21
MICROSOFT = "com.microsoft"  # onnxruntime's own operators
_KINDS = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}
INT64 = _KINDS["int64"]
_FLOAT, _INT4 = _KINDS["float32"], 22


class Graph:
    """A graph under construction; every method returns the name of a value."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: dict[str, bytes] = {}

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: int | float) -> str:
        """The first (usually the only) result of an operator."""
        return self.nodes(kind, *inputs, results=1, domain=domain, **attributes)[0]

    def nodes(
        self, kind: str, *inputs: str, results: int, domain: str = "", **attributes: int | float
    ) -> tuple[str, ...]:
        """All results of an operator."""
        outputs = tuple(f"{kind}_{len(self._nodes)}_{i}" for i in range(results))
        fields = [_text(1, name) for name in inputs] + [_text(2, name) for name in outputs] + [_text(4, kind)]
        for name, value in attributes.items():
            number = _bytes(2, struct.pack("<f", value), 5) if isinstance(value, float) else _number(3, value)
            fields.append(_bytes(5, _text(1, name) + number + _number(20, 1 if isinstance(value, float) else 2)))
        self._nodes.append(b"".join([*fields, _text(7, domain)]))
        return outputs

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """``value`` (float32, uint8, int8 or int64) under ``name``, which is used once."""
        value = np.ascontiguousarray(value)
        self._constants[name] = _tensor(name, value.shape, _KINDS[value.dtype.name], value.tobytes())
        return name

    def constant_int4(self, name: str, value: npt.NDArray[np.int8]) -> str:
        """Values from -8 to 7, an even number of them in the last dimension, at four bits each."""
        nibbles = value.reshape(-1, 2).view(np.uint8) & 0x0F
        packed = nibbles[:, 0] | nibbles[:, 1] << 4
        self._constants[name] = _tensor(name, value.shape, _INT4, packed.tobytes())
        return name

    def write(self, path: Path, inputs: dict[str, tuple[int, tuple[str | int, ...]]], outputs: tuple[str, ...]) -> None:
        """Writes the model; ``inputs`` by name: element kind and shape, where a string names a size left open."""
        parts = [_bytes(1, node) for node in self._nodes] + [_text(2, "docduet")]
        parts += [_bytes(5, constant) for constant in self._constants.values()]
        parts += [_bytes(11, _value(name, kind, shape)) for name, (kind, shape) in inputs.items()]
        parts += [_bytes(12, _value(name, _FLOAT, None)) for name in outputs]
        opsets = [_text(1, domain) + _number(2, version) for domain, version in (("", OPSET), (MICROSOFT, 1))]
        model = [_number(1, 10), _text(2, "docduet"), _bytes(7, b"".join(parts)), *(_bytes(8, o) for o in opsets)]
        path.write_bytes(b"".join(model))


def _value(name: str, kind: int, shape: tuple[str | int, ...] | None) -> bytes:
    tensor = _number(1, kind)
    if shape is not None:
        sizes = (_text(2, size) if isinstance(size, str) else _number(1, size) for size in shape)
        tensor += _bytes(2, b"".join(_bytes(1, size) for size in sizes))
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _tensor(name: str, shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    return b"".join([*(_number(1, size) for size in shape), _number(2, kind), _text(8, name), _bytes(9, data)])


# Protobuf: a field is its number and wire type (0 varint, 2 bytes with a length, 5 four bytes), then its value.


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes, wire: int = 2) -> bytes:
    return _varint(field << 3 | wire) + (_varint(len(value)) if wire == 2 else b"") + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
