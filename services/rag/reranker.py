"""The optional cross-encoder (``RAG_RERANKER_MODEL``), which reads question and text together, through sentence-transformers.

torch and sentence-transformers are imported only where one is set. Code that a model brings along is never run.
"""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from services.rag.checkpoints import (
    RERANKER,
    EmbeddingError,
    find_folder,
    refuse_code,
    set_environment,
    set_offline,
)
from services.rag.config import Settings
from services.rag.errors import StartupError
from services.wheels import console_progress

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

# Question and text together. A chunk has at most some 200 tokens; the models that are meant here were trained on 512
# (bge-reranker-v2-m3 could take 8192), and the time goes with the length.
MAX_TOKENS = 512
# As the embedder: on a CPU padding costs more than a larger batch gains.
CPU_BATCH, ACCELERATOR_BATCH = 4, 32


def load_reranker(settings: Settings) -> "CrossEncoderReranker | None":
    """The model that ``RAG_RERANKER_MODEL`` names, on ``RAG_EMBEDDING_DEVICE``; None where it names none.

    Takes seconds, and minutes on a first fetch, which goes below ``RAG_CACHE_DIR``.

    Raises:
        StartupError: with the setting to change; within 15 seconds if there is no network.
    """
    model_id = settings.reranker_model
    if not model_id:
        return None
    try:
        with console_progress("reranker") as progress:
            folder = find_folder(model_id, settings.cache_dir / "rerankers", progress, setting=RERANKER)
        refuse_code(model_id, folder, RERANKER)
    except EmbeddingError as error:
        raise StartupError(str(error)) from error
    _refuse_others(model_id, folder)
    try:
        return CrossEncoderReranker(_load(folder, settings.embedding_device))
    except ImportError as error:
        raise StartupError(
            f"{RERANKER.name} needs sentence-transformers: pip install 'docduet[rag]' ({error})"
        ) from error
    except Exception as error:  # torch, transformers and safetensors each raise their own kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise StartupError(
            f"{RERANKER.name}={model_id} cannot be loaded from {folder}: {reason}. If its files are damaged, remove that "
            f"folder and start again; otherwise choose another model, or set it to {RERANKER.instead}."
        ) from error


class CrossEncoderReranker:
    """A sentence-transformers ``CrossEncoder`` with one label, as a ``Reranker``. One caller at a time; others wait."""

    def __init__(self, model: "CrossEncoder") -> None:
        self._model = model
        self._batch = CPU_BATCH if model.device.type == "cpu" else ACCELERATOR_BATCH
        self._lock = threading.Lock()
        model.eval()
        self.score("warm-up", ["warm-up"])

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers ``query``; higher is better. Of a long pair the longer side is cut first."""
        import torch

        pairs = [(_readable(query), _readable(text)) for text in texts]
        if not pairs:
            return []
        with self._lock:
            # Without the sigmoid, which in half precision makes all good ones equal.
            scores = self._model.predict(
                pairs, batch_size=self._batch, activation_fn=torch.nn.Identity(), show_progress_bar=False
            )
        return [float(score) for score in scores]


def _load(folder: Path, device: str) -> "CrossEncoder":
    set_environment()
    import torch
    from sentence_transformers import CrossEncoder
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    set_offline(True)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    model: CrossEncoder = CrossEncoder(
        str(folder),
        device=device,
        local_files_only=True,
        trust_remote_code=False,
        # A CPU computes in half precision too, but slower.
        model_kwargs={"dtype": torch.float16 if device.startswith("cuda") else torch.float32},
    )
    model.max_seq_length = min(MAX_TOKENS, model.max_seq_length or MAX_TOKENS)
    return model


def _refuse_others(model_id: str, folder: Path) -> None:
    """Lets in only cross-encoders: an embedding model would be given a head of random weights, and would only log that."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        kind = str((config.get("architectures") or [""])[0])
        labels = len(config.get("id2label") or ()) or int(config.get("num_labels", 2))
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise StartupError(f"{RERANKER.name}={model_id}: {folder / 'config.json'} is missing or damaged.") from error
    if not kind.endswith("ForSequenceClassification") or labels != 1:
        raise StartupError(
            f"{RERANKER.name}={model_id} is no cross-encoder with one score ({kind or 'no architecture'}, {labels} "
            f"labels): choose one, such as BAAI/bge-reranker-v2-m3, or set it to {RERANKER.instead}."
        )


def _readable(text: str) -> str:
    """No longer than could be read, which spares the tokenizer the rest; and half of a surrogate pair would stop it."""
    return text[: 8 * MAX_TOKENS].encode("utf-8", "replace").decode("utf-8")
