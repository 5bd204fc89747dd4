"""GPTQ weights: layers whose matrices are packed integers, run by gptqmodel's kernels, on CUDA and on CPU alike.

A packed layer of `in` inputs and `out` outputs has, instead of `weight`: `qweight` (in * bits / 32, out), `qzeros`
(groups, out * bits / 32), `scales` (groups, out) and `g_idx` (in), the group of each input. transformers would build
these layers through a further package (optimum); the functions of gptqmodel that it calls are called here directly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.model.errors import CheckpointError

_INSTALL = "pip install 'docduet[gptq]'"


@dataclass(frozen=True)
class Packing:
    """How a checkpoint's layers are packed. `group_size`: inputs that share a scale, -1 for all of them."""

    bits: int
    group_size: int
    desc_act: bool
    sym: bool


def read_packing(config: Mapping[str, Any], folder: Path) -> Packing | None:
    """From `config.json`, or the `quantize_config.json` beside it; None: the weights are not packed.

    Raises CheckpointError for every other way of packing.
    """
    where, values = folder / "config.json", config.get("quantization_config")
    if values is None:
        where = folder / "quantize_config.json"
        if not where.is_file():
            return None
        try:
            values = json.loads(where.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{where} cannot be read: {error}. Download the file again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: the quantization is not a JSON object. Download the file again.")
    method = str(values.get("quant_method", "gptq")).lower()
    layout = str(values.get("checkpoint_format") or values.get("format") or "gptq").lower()
    if method != "gptq" or layout != "gptq" or values.get("dynamic"):
        found = method if method != "gptq" else layout if layout != "gptq" else "gptq with rules for each layer"
        raise CheckpointError(
            f"{where}: the weights are packed as {found}. Use the GPTQ version of the model (the name ends in GPTQ-Int4), its "
            "unpacked weights, or a GGUF file."
        )
    try:
        packing = Packing(
            bits=int(values["bits"]),
            group_size=int(values.get("group_size", 128)),
            desc_act=bool(values.get("desc_act", False)),
            sym=bool(values.get("sym", True)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: the quantization cannot be read ({error!r}). Download the file again."
        ) from error
    if packing.bits not in (4, 8):
        raise CheckpointError(
            f"{where}: {packing.bits}-bit GPTQ is not supported. Use the Int4 or Int8 version of the model."
        )
    return packing


def require_gptqmodel() -> None:
    """Raises CheckpointError where gptqmodel, a heavy extra of its own, is not installed."""
    try:
        import logbar

        # Its banner and its progress would drown our log.
        logbar.LogBar.shared().setLevel("ERROR")
        import gptqmodel  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            f"the checkpoint is packed with GPTQ, which needs gptqmodel ({error}). Install it with: {_INSTALL}. Or use the "
            "unpacked weights of the model, or a GGUF file, which need nothing more."
        ) from error


def make_packed_layers(
    model: nn.Module, names: Iterable[str], packing: Packing, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Replaces the linear layers `names` of `model` by empty packed ones. Raises CheckpointError: no kernel for them."""
    for name in names:
        try:
            linear = model.get_submodule(name)
        except AttributeError:
            linear = None
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(
                f"the checkpoint has packed weights for {name}, which is no linear layer of its config.json."
            )
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, _packed_layer(name, linear, packing, device, dtype))


def finish_packed_layers(model: nn.Module, packing: Packing) -> None:
    """Brings the filled layers into the form that their kernels read. Raises CheckpointError."""
    from gptqmodel.utils.model import hf_convert_gptq_v1_to_v2_format, hf_gptqmodel_post_init

    try:
        # Files have the zeros less one ("v1"); most kernels want them as they are.
        hf_convert_gptq_v1_to_v2_format(model, packing.bits, None, "gptq", None)
        hf_gptqmodel_post_init(model, use_act_order=packing.desc_act)
        model.eval()
        # The kernels rearrange their weights, and on CUDA compile, at the first use: now, not in somebody's request.
        with torch.inference_mode():
            model(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device), use_cache=False)
    except Exception as error:  # kernels fail in many ways: no compiler, an old GPU
        raise CheckpointError(
            f"gptqmodel cannot run these weights here ({type(error).__name__}: {error}). Use MODEL_DEVICE=cpu, the unpacked "
            "weights of the model, or a GGUF file."
        ) from error


def _packed_layer(
    name: str, linear: nn.Linear, packing: Packing, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    from gptqmodel.utils.importer import hf_select_quant_linear_v2

    common: dict[str, Any] = {
        "bits": packing.bits,
        "group_size": packing.group_size,
        "desc_act": packing.desc_act,
        "sym": packing.sym,
    }
    # The kernels name 16-bit types only; those for the CPU take and give float32 as well.
    compute = dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    problem: Exception | None = None
    # The fastest for this device; where a shape does not suit it, plain torch, which takes all.
    backends = ("gptq_torch",) if device.type == "cuda" and dtype is torch.float32 else ("auto", "gptq_torch")
    for backend in backends:
        try:
            kernel = hf_select_quant_linear_v2(
                **common,
                format="gptq",
                quant_method="gptq",
                dtype=compute,
                pack=False,
                device_map={"": str(device)},
                backend=backend,
            )
            layer: nn.Module = kernel(
                **common,
                in_features=linear.in_features,
                out_features=linear.out_features,
                bias=linear.bias is not None,
                pack_dtype=torch.int32,
                dtype=compute,
                register_buffers=True,
                name=name,
                lm_head_name="lm_head",
            )
            # gptqmodel would compile some kernels with torch.compile, which needs a C++ compiler on the machine.
            layer.optimized = True  # type: ignore[assignment]
            return layer
        except (NotImplementedError, ValueError, ImportError) as error:
            problem = error
    raise CheckpointError(
        f"gptqmodel has no kernel for {name} ({linear.in_features} x {linear.out_features}, {packing.bits} bits, groups of "
        f"{packing.group_size}) on {device}: {problem}"
    )
