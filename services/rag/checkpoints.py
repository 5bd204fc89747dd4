"""Where a model's files are, an embedder's or a reranker's: a folder, the cache, a hub. Fetches what is missing, or says what to do.

Nothing here loads a model; the hub is asked at most once for each, and never again once its files are on disk.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from services.wheels import FetchError, Progress

_T = TypeVar("_T")
HUB_TIMEOUT = 4.0  # seconds for the hub's first answer; without a network the user is to know quickly
_OFFLINE_BY_USER = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
NOTE = "docduet.json"  # in a folder that this project made: it is complete, and which weights it has


class EmbeddingError(Exception):
    """The model cannot be loaded; the message says what, why and what to set."""


@dataclass(frozen=True)
class Setting:
    """Which setting names a model, and what it may be set to where there is no hub: for messages."""

    name: str
    instead: str


EMBEDDING = Setting("RAG_EMBEDDING_MODEL", "`embedded` (a small model that comes from PyPI)")
RERANKER = Setting("RAG_RERANKER_MODEL", "nothing (searches do without)")


def find_folder(
    model_id: str,
    cache_dir: Path,
    progress: Progress | None,
    *,
    quantized: bool = False,
    setting: Setting = EMBEDDING,
) -> Path:
    """The folder with the model's files, fetched if need be; ``quantized`` asks for the embedded model's 8-bit form."""
    if model_id == "embedded" and setting is EMBEDDING:
        from services.rag import e5

        try:
            return (e5.quantized_folder if quantized else e5.model_folder)(cache_dir, progress)
        except FetchError as error:
            raise EmbeddingError(f"RAG_EMBEDDING_MODEL=embedded: {error}") from error
        except (OSError, ValueError) as error:
            raise EmbeddingError(
                f"RAG_EMBEDDING_MODEL=embedded cannot be prepared in {cache_dir}: {error}. It needs about 600 MB there "
                "and the right to write (RAG_CACHE_DIR)."
            ) from error
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if not _weight_files(folder):
            raise EmbeddingError(
                f"{setting.name}={model_id} is a folder without weights (model.safetensors or pytorch_model.bin)."
            )
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model_id) or model_id[0] in "./~":
        raise EmbeddingError(
            f"{setting.name}={model_id}: there is no such folder, and it is not a Hugging Face id (owner/name)."
        )
    set_environment()
    kept = cache_dir / "hub" / model_id.replace("/", "--")
    if (kept / NOTE).exists():
        return kept
    return _in_hub_cache(model_id) or _download(model_id, kept, progress, setting)


def _in_hub_cache(model_id: str) -> Path | None:
    """The model in the hub's own cache (HF_HOME), if it is there with its weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model_id, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return folder if (folder / "config.json").exists() and _weight_files(folder) else None


def _download(model_id: str, folder: Path, progress: Progress | None, setting: Setting) -> Path:
    """Downloads the model from the hub into ``folder``; its note is written last."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    if _OFFLINE_BY_USER:
        raise _not_here(setting, model_id, "HF_HUB_OFFLINE is set")
    set_offline(False)
    api = HfApi(endpoint=endpoint)
    try:
        # One question first: the client's downloads try again and again where there is no network.
        info = _within(3 * HUB_TIMEOUT, lambda: api.model_info(model_id, files_metadata=True, timeout=HUB_TIMEOUT))
        files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise EmbeddingError(
            f"{setting.name}={model_id}: {endpoint} has no such model, or it asks for a login (HF_TOKEN). Check "
            f"the name, or set it to {setting.instead}."
        ) from error
    except Exception as error:  # httpx, OSError and hub errors, by the kind of trouble
        raise _not_here(setting, model_id, f"{endpoint} cannot be reached: {_first_line(error)}") from error
    wanted = _wanted_files(files)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if (folder / NOTE).exists():
                return folder
            with _watch(folder, sum(files[name] for name in wanted), progress):
                api.snapshot_download(model_id, revision=info.sha, local_dir=folder, allow_patterns=wanted)
            if not _weight_files(folder):
                raise EmbeddingError(f"{setting.name}={model_id} has no weights that can be loaded at {endpoint}.")
            note = {"repository": model_id, "revision": info.sha, "weights": weights_digest(folder)}
            (folder / NOTE).write_text(json.dumps(note), "utf-8")
    except EmbeddingError:
        raise
    except Exception as error:
        raise EmbeddingError(
            f"{setting.name}={model_id}: the download from {endpoint} into {folder} broke off: "
            f"{_first_line(error)}. Start again to go on with it, or set HF_ENDPOINT to a mirror."
        ) from error
    return folder


def _wanted_files(files: dict[str, int]) -> list[str]:
    """Of a repository's files those that are loaded: one format of the weights, the settings, the tokenizer."""
    # Top level and numbered module folders; "onnx", "openvino" and the like hold further copies of the weights.
    names = [name for name in files if re.match(r"([0-9]+_\w+/)?[^/]+$", name)]
    weights = [name for name in names if name.endswith(".safetensors")]
    if not any("/" not in name or name.startswith("0_") for name in weights):
        weights += [name for name in names if re.search(r"(^|/)pytorch_model[^/]*\.bin$", name)]
    return weights + [name for name in names if name.endswith((".json", ".txt", ".model"))]


@contextlib.contextmanager
def _watch(folder: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Reports the bytes below ``folder`` while the body downloads into it."""
    if progress is None or total <= 0:
        yield
        return
    stop = threading.Event()

    def report() -> None:
        most = 0
        while not stop.wait(0.2):
            done = 0
            for path in folder.rglob("*"):
                with contextlib.suppress(OSError):  # the client renames files while we look
                    done += path.stat().st_size if path.is_file() else 0
            if min(done, total) > most:
                most = min(done, total)
                progress(most, total)

    thread = threading.Thread(target=report, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress(total, total)


def _not_here(setting: Setting, model_id: str, reason: str) -> EmbeddingError:
    return EmbeddingError(
        f"{setting.name}={model_id}: its weights are not on this machine, and {reason}. Set {setting.name} "
        f"to {setting.instead} or to a folder that holds a model, or HF_ENDPOINT to a mirror of the hub."
    )


def refuse_code(model_id: str, folder: Path, setting: Setting = EMBEDDING) -> None:
    """Lets in only sentence-transformers' own modules.

    sentence-transformers 5 imports any class that the modules.json of a local folder names, and with it code that came
    along with the weights; 6 asks for ``trust_remote_code`` first.
    """
    try:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        kinds = [str(module["type"]) for module in modules]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{setting.name}={model_id}: {folder / 'modules.json'} is damaged.") from error
    for kind in kinds:
        if not kind.startswith("sentence_transformers."):
            raise EmbeddingError(
                f"{setting.name}={model_id} brings its own code ({kind}), which is never run here: choose a "
                "model made of sentence-transformers' own modules."
            )


def weights_digest(folder: Path) -> str:
    """A digest of the weights in ``folder``: from its note where this project wrote one, else of their bytes."""
    if known := noted(folder, "weights"):
        return known
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def noted(folder: Path, what: str) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / NOTE).read_text("utf-8"))[what])
    return ""


def _weight_files(folder: Path) -> list[Path]:
    """The weight files that are loaded: of two formats of the same weights, safetensors."""
    # A module of its own folder ("0_Transformer", "2_Dense") counts; "onnx" and "openvino" are other copies.
    found = [*folder.glob("*.safetensors"), *folder.glob("[0-9]*/*.safetensors")]
    if not any(path.name.startswith("model") for path in found):
        found += [*folder.glob("pytorch_model*.bin"), *folder.glob("[0-9]*/pytorch_model*.bin")]
    return sorted(found)


def set_environment() -> None:
    """Before the first import of huggingface_hub and torch, which read these once; what the user set stays."""
    # OpenMP's threads otherwise wait for each other by spinning, which with the model service on the same two cores
    # halves the passages a second and makes the slowest queries four times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "15")
    # The batches are small; the tokenizers' own threads would only warn about the reader's child processes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def set_offline(offline: bool) -> None:
    """Once a model is on disk nothing may ask the hub about it."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = offline
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    else:
        os.environ.pop("HF_HUB_OFFLINE", None)


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """The call's result, or TimeoutError: a name server that does not answer ignores the client's own timeouts."""
    result: Future[_T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # handed to the caller
            result.set_exception(error)

    # A daemon, so that a thread that hangs does not keep the process from ending.
    threading.Thread(target=run, name="hub-question", daemon=True).start()
    try:
        return result.result(seconds)
    except FutureTimeout:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:300].rstrip(".")
