"""Fetches a checkpoint from the Hugging Face hub, or a mirror of it (HF_ENDPOINT), into a folder on this machine.

Only data files: weights as safetensors, and the texts beside them. The code of a checkpoint is not even downloaded.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.model.errors import CheckpointError

Progress = Callable[[int, int], None]  # (bytes so far, bytes in all)

_FILES = ["*.safetensors", "*.json", "*.tiktoken", "*.txt", "*.jinja"]


def cache_folder(hub_id: str, cache_dir: Path) -> Path:
    """Where the hub's client keeps its checkpoints: its own cache where HF_HOME or HF_HUB_CACHE names it or where `hub_id`
    is there already, else `hub` in ours (MODEL_CACHE_DIR), which in a container is the volume."""
    named = any(os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"))
    usual = _client().constants.HF_HUB_CACHE
    return Path(usual) if named or (Path(usual) / _folder_name(hub_id)).is_dir() else cache_dir / "hub"


def is_cached(hub_id: str, cache_dir: Path) -> bool:
    """Whether all files of some version are here already; asks no network. False where there is no hub client."""
    try:
        client = _client()
        where = cache_folder(hub_id, cache_dir)
        client.snapshot_download(hub_id, allow_patterns=_FILES, cache_dir=where, local_files_only=True)
    except (CheckpointError, OSError, ValueError):
        return False
    return True


def fetch(hub_id: str, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The folder with all files of `hub_id` (owner/name); what is there already is not fetched again, and without a network
    it is used as it is. Blocks. Raises CheckpointError."""
    client = _client()
    where = cache_folder(hub_id, cache_dir)
    options: dict[str, Any] = {"allow_patterns": _FILES, "cache_dir": where, "tqdm_class": _bars(client, progress)}
    elsewhere = (
        f"Or download it on another machine (`hf download {hub_id} --local-dir FOLDER`), copy the folder here, and set MODEL_ID "
        "to it."
    )
    try:
        return Path(client.snapshot_download(hub_id, **options))
    except client.errors.GatedRepoError as error:
        raise CheckpointError(
            f"MODEL_ID={hub_id} is only given to those who accepted its terms on the hub. Accept them there, and set HF_TOKEN."
        ) from error
    except client.errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"MODEL_ID={hub_id} is neither a folder here nor a model on the hub ({_endpoint(client)}), or it is a private one. "
            "Check the name; for a private model set HF_TOKEN."
        ) from error
    except client.errors.LocalEntryNotFoundError as error:
        reason = (
            "HF_HUB_OFFLINE is set" if client.constants.HF_HUB_OFFLINE else f"{_endpoint(client)} cannot be reached"
        )
        raise CheckpointError(
            f"MODEL_ID={hub_id} is not complete in {where}, and {reason}. Check the network (HF_ENDPOINT names a mirror of the "
            f"hub, HF_HUB_OFFLINE=1 keeps to what is here). {elsewhere}"
        ) from error
    except Exception as error:  # the client, its transport and the disk each have their own
        raise CheckpointError(
            f"MODEL_ID={hub_id} could not be fetched from {_endpoint(client)} into {where}: {type(error).__name__}: "
            f"{_first_line(error)}. What was fetched is kept: start again. {elsewhere}"
        ) from error


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise CheckpointError(
            f"a Hugging Face id needs huggingface_hub, which cannot be imported ({error}). Install it with: "
            "pip install 'docduet[torch]', or set MODEL_ID to a folder."
        ) from error
    return huggingface_hub


def _folder_name(hub_id: str) -> str:
    return "models--" + hub_id.replace("/", "--")


def _endpoint(client: Any) -> str:
    return str(client.constants.ENDPOINT)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else "no reason given"


def _bars(client: Any, progress: Progress | None) -> type:
    """The client draws its own progress with a class of tqdm's kind; this one tells `progress` the bytes, and draws none."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    lock = threading.Lock()
    most = 0

    class Bytes(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = False  # a disabled bar does not count
            kwargs.pop("name", None)
            super().__init__(*args, **kwargs)

        def display(self, *args: Any, **kwargs: Any) -> None:
            pass

        def update(self, n: float | None = 1) -> Any:
            nonlocal most
            with lock:
                drawn = super().update(n)
                # Two bars count bytes, those received and those written; the one that is ahead is told.
                if progress is not None and self.unit == "B" and self.total and self.n > most:
                    most = int(self.n)
                    progress(min(most, int(self.total)), int(self.total))
            return drawn

    return Bytes
