"""Linear layers for a float32 CPU, with weights laid out once for oneDNN.

torch's own layer gives the plain matrix to MKL, which packs it again at every call as soon as there are about four rows: a
step of eight answers then takes three times as long as one of a single answer. Laid out beforehand it takes a third more.
oneDNN also computes a row in the same order of additions whatever the number of rows, from two on: a request's numbers are the
same, to the last bit, alone and beside others.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from typing import Any

import torch
from torch import nn

log = logging.getLogger("docduet.model")

_ROWS = 8  # that the layout is chosen for; any number can be multiplied


class PackedLinear(nn.Module):
    """A linear layer that no longer has the plain matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]"""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return product


def pack_linears(model: Any) -> int:
    """Replaces the plain float32 layers of a model on a CPU; returns how many. Each matrix is freed as its copy is made (one
    that is shared with the token embeddings stays beside it)."""
    known: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if model.device.type != "cpu" or not known:
        return 0
    packed = 0
    for module in [module for module in model.modules() if type(module) is not nn.Linear]:
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.dtype == torch.float32:
                try:
                    setattr(module, name, PackedLinear(child))  # replacing a value does not disturb the iteration
                except (RuntimeError, NotImplementedError, AttributeError) as error:  # a processor oneDNN does not know
                    log.warning(
                        "the weights cannot be laid out for oneDNN, decoding together will be slower: %s", error
                    )
                    return packed
                packed += 1
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(
            0
        )  # the plain matrices' memory goes back to the system: a quarter of it all
    return packed
