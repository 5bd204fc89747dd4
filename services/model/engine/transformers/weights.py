"""Safetensors into an empty model, one tensor at a time: a checkpoint is never held twice.

What is where is read and compared first, from the files' headers alone, so that a broken download is named before
gigabytes are read. Pickled weights (`.bin`, `.pt`) are never opened: reading them can run code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from services.model.engine.base import Report
from services.model.errors import CheckpointError

Cut = Callable[[Tensor], Tensor]  # a view or a copy; must work on meta tensors


@dataclass(frozen=True)
class Piece:
    """A tensor of the model, and how it comes out of a tensor of the file."""

    name: str
    cut: Cut | None = None  # None: all of it


Placed = tuple[Piece, tuple[int, ...]]  # with its shape in the model
Translate = Callable[[str], Iterable[Piece]]  # from a tensor's name in the file to the model's


def same_name(name: str) -> Iterable[Piece]:
    return (Piece(name),)


# Buffers that old versions of the model code saved and that are computed today.
_COMPUTED = re.compile(r"(\.rotary_emb\.inv_freq|\.attn\.masked_bias|\.attn\.bias)$")


class Weights:
    """The headers of a folder's safetensors files. `shapes`: every tensor; `files`: which file has it."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError: no file, one missing, cut short, or pickled weights only."""
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.files: dict[Path, list[str]] = {}
        listed, paths = _find_files(folder)
        for path in paths:
            names = self._read_header(path)
            self.files[path] = [name for name in names if listed is None or listed.get(name) == path.name]
        if listed is not None and (lost := sorted(set(listed) - set(self.shapes))):
            raise CheckpointError(
                f"{folder / listed[lost[0]]} lacks tensors that the index lists ({_some(lost)}). Download the file again."
            )

    def _read_header(self, path: Path) -> list[str]:
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                for name in names:
                    part = file.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), str(part.get_dtype())
                return names
        except (SafetensorError, OSError, ValueError) as error:
            advice = "The file is cut short or damaged: download it again."
            if path.is_file() and path.open("rb").read(24).startswith(b"version https://git-lfs"):
                advice = "It is only a Git LFS pointer: run `git lfs pull` in the folder."
            raise CheckpointError(f"{path} cannot be read ({error}). {advice}") from error

    def stored_dtype(self) -> torch.dtype:
        """What most of the weights that are not packed are stored in."""
        names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        sizes: dict[torch.dtype, int] = {}
        for name, shape in self.shapes.items():
            if self.dtypes[name] in names:
                dtype = names[self.dtypes[name]]
                sizes[dtype] = sizes.get(dtype, 0) + math.prod(shape)
        return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)

    def fill(
        self, model: nn.Module, translate: Translate, *, device: torch.device, dtype: torch.dtype, report: Report
    ) -> None:
        """Puts the tensors into `model`, which is on the meta device; floating ones become `dtype`.

        A bias that the model has no place for is dropped where it is zero: the tools that packed GPTQ checkpoints wrote one
        for every layer. Raises CheckpointError: tensors that are missing, unknown or of another shape; too little memory.
        """
        plan = self._plan(model, translate)
        counts = {source: sum(math.prod(shape) for _, shape in pieces) for source, pieces in plan.items()}
        needed = sum(count * self._bytes_each(source, dtype) for source, count in counts.items())
        _check_memory(needed, device, dtype, self.folder)
        done, total, shown = 0, max(1, sum(counts.values())), -1
        for path, names in self.files.items():
            try:
                with safe_open(path, framework="pt") as file:
                    for source in names:
                        if source in plan:
                            self._place(model, source, file.get_tensor(source), plan[source], device, dtype)
                            done += counts[source]
                        if done * 100 // total > shown:
                            shown = done * 100 // total
                            report(f"loading the weights: {shown} %")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} cannot be read ({error}). Check the disk, or download the file again."
                ) from error

    def _place(
        self,
        model: nn.Module,
        source: str,
        tensor: Tensor,
        pieces: list[Placed],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if not pieces and torch.count_nonzero(tensor):
            raise CheckpointError(
                f"{self.folder} has the bias {source}, which is not zero and has no place in the model. This checkpoint is of "
                "an architecture that is not supported."
            )
        for piece, _ in pieces:
            part = tensor if piece.cut is None else piece.cut(tensor)
            kept = dtype if part.is_floating_point() else part.dtype
            # A copy, also where nothing changes: a view would keep the whole file mapped.
            _assign(model, piece.name, part.to(device, kept, copy=True).contiguous())

    def _bytes_each(self, source: str, dtype: torch.dtype) -> int:
        return dtype.itemsize if self.dtypes[source] in ("F64", "F32", "F16", "BF16") else 4

    def _plan(self, model: nn.Module, translate: Translate) -> dict[str, list[Placed]]:
        """Which pieces each tensor of the files becomes; an empty list: a bias that must be zero."""
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
        plan: dict[str, list[Placed]] = {}
        found: set[str] = set()
        for source, shape in self.shapes.items():
            if _COMPUTED.search(source):
                continue
            pieces = list(translate(source))
            if all(piece.name in tied for piece in pieces):
                continue
            if all(piece.name not in expected and piece.name.endswith(".bias") for piece in pieces):
                plan[source] = []
                continue
            plan[source] = []
            whole = torch.empty(shape, device="meta")
            for piece in pieces:
                cut = tuple((whole if piece.cut is None else piece.cut(whole)).shape)
                if piece.name not in expected:
                    raise CheckpointError(
                        f"{self.folder} has the tensor {source}, for which the model of its config.json has no place. Is "
                        "config.json of another checkpoint, or the model of an architecture that is not supported?"
                    )
                if cut != expected[piece.name]:
                    raise CheckpointError(
                        f"{self.folder}: {source} has the shape {list(shape)}, which gives {list(cut)} for {piece.name}, "
                        f"but config.json asks for {list(expected[piece.name])}. Is config.json of another checkpoint?"
                    )
                plan[source].append((piece, cut))
                found.add(piece.name)
        if missing := sorted(set(expected) - found - tied):
            raise CheckpointError(
                f"{self.folder} lacks {len(missing)} tensors of the model ({_some(missing)}). Download it again, all files."
            )
        return plan


def _find_files(folder: Path) -> tuple[Mapping[str, str] | None, list[Path]]:
    """The index, where there is one (tensor -> file name), and the files to read."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            listed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(listed.values()))
            if any(not isinstance(name, str) or Path(name).name != name for name in names):
                raise ValueError("it names a file outside the folder")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} cannot be read: {error}. Download the file again.") from error
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(
                f"{folder} lacks {len(absent)} of the {len(names)} files that its index lists ({_some(absent)}). Download "
                "what is missing."
            )
        return listed, [folder / name for name in names]
    single = folder / "model.safetensors"
    paths = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if len(paths) > 1:
        raise CheckpointError(
            f"{folder} has {len(paths)} safetensors files and no model.safetensors.index.json. Download the index, too."
        )
    if paths:
        return None, paths
    pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    if pickled:
        raise CheckpointError(
            f"{folder} has pickled weights only ({_some(pickled)}). Reading those can run code, so only safetensors are read: "
            "download the safetensors version of the model, or convert it once where you trust it."
        )
    raise CheckpointError(f"{folder} has no weights: no *.safetensors file. Download them into the folder.")


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _check_memory(needed: int, device: torch.device, dtype: torch.dtype, folder: Path) -> None:
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
            available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        except (OSError, StopIteration, ValueError):  # not Linux
            return
    if needed > available:
        raise CheckpointError(
            f"{folder} needs {needed / 1e9:.1f} GB as {str(dtype).removeprefix('torch.')} and {available / 1e9:.1f} GB of "
            f"{device.type} memory are free. Use a smaller model, a GPTQ-Int4 version of it, or 16-bit weights."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
