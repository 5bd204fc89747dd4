"""The 8-bit form of the embedded model: the ONNX file, the graph beside transformers' own BERT, threads and turns."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.rag.embeddings import Embedder, load_embedder
from services.rag.onnx_file import INT64, MICROSOFT, Graph
from services.rag.quantized import MODEL_FILE, QuantizedEmbedder, usable_cores, write_graph
from tests.rag.test_embeddings import TEXTS, is_unit
from tests.support.bert import make_bert


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, inputs)[0]
    return result


# -- the file


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 200), columns=st.integers(1, 40), kind=st.sampled_from(["float32", "uint8", "int8", "int64"])
)
def test_constants_come_back(rows: int, columns: int, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    values = np.random.default_rng(rows).integers(-128, 256, (rows, columns)).astype(kind)
    graph = Graph()
    picked = graph.node("Gather", graph.constant("values", values), "ids", axis=0)
    # 1: float, the kind of every output
    graph.write(path, {"ids": (INT64, ("n",))}, (graph.node("Cast", picked, to=1),))
    ids = np.arange(rows)[::-1].copy()
    assert np.array_equal(run(path, ids=ids), values[::-1].astype(np.float32))


def test_four_bits_and_attributes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-8, 8, (50, 64)).astype(np.int8)
    scales = np.random.default_rng(1).random((50, 2)).astype(np.float32)
    graph = Graph()
    words = graph.node(
        "GatherBlockQuantized",
        *(graph.constant_int4("values", values), "ids", graph.constant("scales", scales)),
        domain=MICROSOFT,
        gather_axis=0,
        quantize_axis=1,
        block_size=32,
    )
    # A real attribute, and one whose integer is negative.
    ones, zeros = graph.constant("w", np.ones(64, np.float32)), graph.constant("b", np.zeros(64, np.float32))
    graph.write(
        tmp_path / "model.onnx",
        {"ids": (INT64, (1, "n"))},
        (graph.node("LayerNormalization", words, ones, zeros, axis=-1, epsilon=0.25),),
    )
    expected = (values.reshape(50, 2, 32) * scales[:, :, None]).reshape(50, 64)[[[7, 0, 49]]]
    centred = expected - expected.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.25)
    assert np.allclose(run(tmp_path / "model.onnx", ids=np.array([[7, 0, 49]])), expected, atol=1e-5)


# -- the model


def quantize_table(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 32 with 16 levels, as the embedded model's file has them."""
    blocks = table.reshape(len(table), -1, 32)
    scales = np.abs(blocks).max(-1) / 7 + 1e-12
    values = np.round(blocks / scales[:, :, None]).astype(np.int8)
    return values.reshape(table.shape), scales.astype(np.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Embedder, QuantizedEmbedder]:
    """A random BERT in float32, and the same in 8 bits."""
    from safetensors.numpy import load_file, save_file
    from transformers import AutoTokenizer

    prompts = {"query": "查询: ", "document": "结果: "}
    folder = make_bert(tmp_path_factory.mktemp("models") / "float", prompts=prompts)
    tensors = load_file(folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    values, scales = quantize_table(tensors.pop(name))
    exact = (values.reshape(len(values), -1, 32) * scales[:, :, None]).reshape(values.shape)
    save_file({name: exact, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})

    quantized = folder.with_name("int8")
    quantized.mkdir()
    write_graph(quantized / MODEL_FILE, tensors, (values, scales), heads=2)
    AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(quantized / "tokenizer.json"))
    note: dict[str, Any] = {"weights": "random", "settings": "", "prompts": prompts, "max_tokens": 64}
    (quantized / "docduet.json").write_text(json.dumps(note), "utf-8")
    return load_embedder(str(folder), folder, device="cpu"), QuantizedEmbedder("tiny", quantized)


def test_eight_bits_agree_with_float32(pair: tuple[Embedder, QuantizedEmbedder]) -> None:
    exact, quantized = pair
    expected, found = exact.embed_documents(TEXTS), quantized.embed_documents(TEXTS)
    assert is_unit(found)
    assert (expected * found).sum(1).min() > 0.99
    for text in TEXTS[:10]:
        assert exact.embed_query(text) @ quantized.embed_query(text) > 0.99
    # Agreement means something only where texts differ.
    assert np.quantile(expected @ expected.T, 0.01) < 0.95


def test_a_vector_does_not_depend_on_its_neighbours(pair: tuple[Embedder, QuantizedEmbedder]) -> None:
    _, quantized = pair
    together = quantized.embed_documents(TEXTS)
    alone = np.stack([quantized.embed_documents([text])[0] for text in TEXTS])
    assert np.array_equal(together, alone)
    assert quantized.embed_documents([]).shape == (0, quantized.dimension)


@pytest.mark.parametrize("text", ["", "   ", "\ud83d\udc00 lone \udcff", "\x00\x01", "很长" * 5000, "\u0301" * 50])
def test_any_text_has_a_vector(text: str, pair: tuple[Embedder, QuantizedEmbedder]) -> None:
    _, quantized = pair
    assert is_unit(quantized.embed_query(text))
    assert is_unit(quantized.embed_documents([text, "年假"]))


def test_threads_share_a_model(pair: tuple[Embedder, QuantizedEmbedder]) -> None:
    _, quantized = pair
    documents, query = quantized.embed_documents(TEXTS), quantized.embed_query("年假")
    results: list[bool] = []

    def work() -> None:
        results.append(np.array_equal(quantized.embed_documents(TEXTS), documents))
        results.append(np.array_equal(quantized.embed_query("年假"), query))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_there_is_a_core() -> None:
    assert usable_cores() >= 1
