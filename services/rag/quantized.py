"""The embedded model on a CPU: 8-bit arithmetic by onnxruntime, without torch.

``write_graph`` makes the ONNX file, once; ``QuantizedEmbedder`` runs it. One text is one run on one thread, and as many
texts run beside each other as there are cores: nothing is padded or masked, no thread waits for another inside a text,
and a vector does not depend on what was embedded beside it.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.rag.onnx_file import INT64, MICROSOFT, Graph
from services.rag.turns import Turns

Vectors = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[np.float32]]

MODEL_FILE = "model.onnx"
# Raised when the vectors change.
FORMAT = 1
# Without VNNI, AVX2 adds two products of 8 bits in 16 and saturates; with 7 bits of weight it cannot. (Cosine to float32,
# worst of 80 texts: 0.9937 with 7 bits; the embedded weights have 16 levels a block, so the eighth bit is no loss.)
_LEVELS = 63
# A channel of these layers' inner activations is ten times as large as all others, and one scale must serve a text:
# left in float32, they raise that worst cosine to 0.997 (and are 6 % of the multiplications).
_FLOAT_LAYERS = (0, 4)


def write_graph(
    path: Path, tensors: Tensors, table: tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]], *, heads: int
) -> None:
    """Writes a BERT of ``heads`` attention heads with mean pooling as an ONNX file.

    ``tensors`` have Hugging Face's BertModel names; ``table`` is the word embeddings: values (vocabulary, hidden) from
    -8 to 7, and scales (vocabulary, hidden / block). Input ``ids`` (1, tokens); output (1, hidden), not normalised.
    """
    graph = Graph()
    values, scales = table
    block = values.shape[1] // scales.shape[1]
    x = graph.node(
        "GatherBlockQuantized",
        graph.constant_int4("words", values),
        "ids",
        graph.constant("words.scale", scales),
        domain=MICROSOFT,
        gather_axis=0,
        quantize_axis=1,
        block_size=block,
    )
    positions = tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
    zero, one = graph.constant("zero", np.array([0])), graph.constant("one", np.array([1]))
    length = graph.node("Shape", "ids", start=1, end=2)
    positioned = graph.node("Slice", graph.constant("positions", positions), zero, length, zero)
    x = _normalized(graph, tensors, "embeddings.LayerNorm", x, positioned)
    layers = sum(name.endswith("intermediate.dense.bias") for name in tensors)
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}"
        quantized = graph.nodes("DynamicQuantizeLinear", x, results=3)
        heads_in = [
            _linear(graph, tensors, f"{prefix}.attention.self.{part}", quantized) for part in ("query", "key", "value")
        ]
        mixed = graph.node("MultiHeadAttention", *heads_in, domain=MICROSOFT, num_heads=heads)
        mixed = _dense(graph, tensors, f"{prefix}.attention.output.dense", mixed)
        x = _normalized(graph, tensors, f"{prefix}.attention.output.LayerNorm", x, mixed)
        inner = _dense(graph, tensors, f"{prefix}.intermediate.dense", x)
        inner = graph.node("FastGelu", inner, domain=MICROSOFT)
        name = f"{prefix}.output.dense"
        if layer in _FLOAT_LAYERS:
            weight = graph.constant(f"{name}.weight", tensors[f"{name}.weight"].T)
            product = graph.node("MatMul", inner, weight)
            outer = graph.node("Add", product, graph.constant(f"{name}.bias", tensors[f"{name}.bias"]))
        else:
            outer = _dense(graph, tensors, name, inner)
        x = _normalized(graph, tensors, f"{prefix}.output.LayerNorm", x, outer)
    pooled = graph.node("ReduceMean", x, one, keepdims=0)
    graph.write(path, {"ids": (INT64, (1, "tokens"))}, (pooled,))


def _normalized(graph: Graph, tensors: Tensors, name: str, x: str, y: str) -> str:
    # onnxruntime's fused SkipLayerNormalization takes several times as long as these two on a CPU.
    weights = [graph.constant(f"{name}.{part}", tensors[f"{name}.{part}"]) for part in ("weight", "bias")]
    return graph.node("LayerNormalization", graph.node("Add", x, y), *weights, axis=-1, epsilon=1e-12)


def _dense(graph: Graph, tensors: Tensors, name: str, x: str) -> str:
    return _linear(graph, tensors, name, graph.nodes("DynamicQuantizeLinear", x, results=3))


def _linear(graph: Graph, tensors: Tensors, name: str, quantized: tuple[str, ...]) -> str:
    weight = tensors[f"{name}.weight"].T
    scale = (np.abs(weight).max(axis=0) / _LEVELS).astype(np.float32)
    scale[scale == 0] = 1
    values, values_scale, values_zero = quantized
    return graph.node(
        "MatMulIntegerToFloat",
        values,
        graph.constant(f"{name}.weight", np.round(weight / scale).astype(np.int8)),
        values_scale,
        graph.constant(f"{name}.scale", scale),
        values_zero,
        graph.constant(f"{name}.zero", np.zeros(len(scale), np.int8)),
        graph.constant(f"{name}.bias", tensors[f"{name}.bias"]),
        domain=MICROSOFT,
    )


class QuantizedEmbedder:
    """The model in ``folder`` (``model.onnx``, ``tokenizer.json``). An ``embeddings.Embedder``."""

    def __init__(self, model_id: str, folder: Path) -> None:
        import onnxruntime  # type: ignore[import-untyped]
        from tokenizers import Tokenizer

        note = json.loads((folder / "docduet.json").read_text("utf-8"))
        self.model_id = model_id
        self._query_prompt, self._document_prompt = note["prompts"]["query"], note["prompts"]["document"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(note["max_tokens"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # it would keep the most that any text ever took
        # The graph is written as it is to run; the higher levels would fuse what _normalized keeps apart.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = onnxruntime.InferenceSession(
            str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
        )
        threads = usable_cores()
        self._turns = Turns(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="embed")
        self.dimension = len(self.embed_query("warm-up"))
        digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()
        self.fingerprint = f"{folder.name}:{self.dimension}:{digest[:16]}"

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        out = np.empty((len(texts), self.dimension), np.float32)
        ids = self._tokens([self._document_prompt + text for text in texts])
        # The longest first, so that the threads end together.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        for i, vector in zip(order, self._pool.map(lambda i: self._document(ids[i]), order), strict=True):
            out[i] = vector
        return out

    def embed_query(self, text: str) -> Vectors:
        (ids,) = self._tokens([self._query_prompt + text])
        with self._turns.query():
            return self._run(ids)

    def _document(self, ids: list[int]) -> Vectors:
        with self._turns.document():
            return self._run(ids)

    def _run(self, ids: list[int]) -> Vectors:
        (vectors,) = self._session.run(None, {"ids": np.array([ids], np.int64)})
        vector: Vectors = vectors[0]
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        # Half of a surrogate pair, which broken PDFs yield, has no UTF-8.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(clean)]


def usable_cores() -> int:
    """How many threads are worth starting: CPU affinity, bounded by the container's CPU quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        count = os.cpu_count() or 1
    try:  # docker run --cpus=2 on a machine of 64: the affinity says 64, the quota 2
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, round(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, count)
