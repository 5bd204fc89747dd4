"""The reranker: a tiny random cross-encoder run by the real library, a scripted one for the order, and what start-up refuses."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from services.rag.config import Settings
from services.rag.embeddings import HashEmbedder
from services.rag.errors import StartupError
from services.rag.reranker import MAX_TOKENS, CrossEncoderReranker, load_reranker
from services.rag.retrieval import RERANKED, Retriever
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from tests.rag.conftest import rag_env, upload, wait
from tests.rag.test_store import add
from tests.support.bert import make_bert
from tests.support.servers import Service, ServiceDidNotStart, start_service

TEXTS = ["员工每年享有十五天带薪年假。", "How do I reset the password of my router?", "年假", "灯塔 lamp " * 200]


def make_cross_encoder(folder: Path, *, labels: int = 1, positions: int = 64) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    make_bert(folder, positions=positions)
    config = BertConfig.from_pretrained(folder, num_labels=labels, initializer_range=0.5)  # so that scores differ
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def settings(model: object, folder: Path, **more: Any) -> Settings:
    return Settings(reranker_model=str(model), cache_dir=folder / "cache", _env_file=None, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("models") / "tiny-reranker")


@pytest.fixture(scope="module")
def reranker(folder: Path) -> CrossEncoderReranker:
    loaded = load_reranker(settings(folder, folder))
    assert loaded
    return loaded


# -- a real cross-encoder


def test_none_is_none(tmp_path: Path) -> None:
    assert load_reranker(settings("", tmp_path)) is None


def test_scores_are_the_models(reranker: CrossEncoderReranker, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    model, tokenizer = BertForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    query, expected = "年假有几天?", []
    for text in TEXTS:
        pair = tokenizer(query, text, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            expected.append(float(model.eval()(**pair).logits[0, 0]))
    assert np.allclose(reranker.score(query, TEXTS), expected, atol=1e-3)
    assert np.ptp(expected) > 0.1


def test_a_batch_does_not_matter(reranker: CrossEncoderReranker) -> None:
    together = reranker.score("年假", TEXTS * 5)
    assert np.allclose(together, [reranker.score("年假", [text])[0] for text in TEXTS] * 5, atol=1e-3)
    assert reranker.score("年假", []) == []


@pytest.mark.parametrize("text", ["", "  ", "\ud83d\udc00 lone \udcff", "\x00", "很长" * 4000, "🦜" * 4000])
def test_any_text_has_a_score(reranker: CrossEncoderReranker, text: str) -> None:
    assert np.isfinite(reranker.score(text, ["年假", text])).all()
    assert np.isfinite(reranker.score("年假", [text])).all()


def test_a_model_that_could_read_more_is_held_to_a_limit(tmp_path: Path) -> None:
    folder = make_cross_encoder(tmp_path / "long", positions=MAX_TOKENS + 200)
    loaded = load_reranker(settings(folder, tmp_path))
    assert loaded
    # What stands beyond the limit has no say.
    text = "灯" * (MAX_TOKENS + 50)
    assert loaded.score("年假", [text + "塔" * 10]) == loaded.score("年假", [text])
    assert loaded.score("年假", ["灯" * 300]) != loaded.score("年假", ["灯" * 301])


def test_threads_share_a_model(reranker: CrossEncoderReranker) -> None:
    expected = reranker.score("年假", TEXTS)
    same: list[bool] = []
    threads = [
        threading.Thread(target=lambda: same.append(np.allclose(reranker.score("年假", TEXTS), expected, atol=1e-3)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 4


def test_nothing_is_asked_of_the_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a local model opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = load_reranker(settings(folder, folder))
    assert loaded
    assert loaded.score("年假", ["年假"])


# -- what start-up refuses


def no_folder(path: Path) -> Path:
    return path / "nothing"


def no_weights(path: Path) -> Path:
    (path / "bare").mkdir()
    return path / "bare"


def an_embedder(path: Path) -> Path:
    return make_bert(path / "embedder")


def two_labels(path: Path) -> Path:
    return make_cross_encoder(path / "classifier", labels=3)


def damaged_weights(path: Path) -> Path:
    folder = make_cross_encoder(path / "damaged")
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    return folder


def damaged_config(path: Path) -> Path:
    folder = make_cross_encoder(path / "config")
    (folder / "config.json").write_text("[1]")
    return folder


def own_code(path: Path) -> Path:
    folder = make_cross_encoder(path / "code")
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]))
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_folder, "no such folder"),
        (no_weights, "without weights"),
        (an_embedder, "no cross-encoder"),
        (two_labels, "3 labels"),
        (damaged_weights, "cannot be loaded"),
        (damaged_config, "missing or damaged"),
        (own_code, "own code"),
    ],
)
def test_what_is_no_reranker_is_refused_with_the_setting(
    make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    with pytest.raises(StartupError, match=said) as refused:
        load_reranker(settings(make(tmp_path), tmp_path))
    assert str(refused.value).startswith("RAG_RERANKER_MODEL=")
    assert "RAG_EMBEDDING_MODEL" not in str(refused.value)


def test_without_a_hub_the_service_says_so_and_ends(tmp_path: Path) -> None:
    env = rag_env("http://127.0.0.1:9", tmp_path / "data", RAG_RERANKER_MODEL="BAAI/bge-reranker-v2-m3")
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "RAG_CACHE_DIR": str(tmp_path / "cache")}
    with pytest.raises(ServiceDidNotStart, match="RAG_RERANKER_MODEL=BAAI/bge-reranker-v2-m3: its weights are not"):
        start_service("services.rag", env)


# -- searches


class Scripted:
    """Scores by a function of the text; remembers what it was asked."""

    def __init__(self, score: Callable[[str], float]) -> None:
        self._score = score
        self.asked: list[tuple[str, list[str]]] = []

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        self.asked.append((query, list(texts)))
        return [self._score(text) for text in texts]


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Of a reranker: the names that a search finds, best first, in 30 documents that all hold the question's words."""
    catalog = Catalog(tmp_path / "data")
    indexes = Indexes(catalog, Indexes.open_chroma(catalog.data_dir, None), HashEmbedder(), None)
    for n in range(30):
        add(
            catalog, indexes, f"The lamp of lighthouse number {n} is lit. {'It is seen from afar. ' * n}", f"{n:02}.pdf"
        )
    retrievers = []

    def names(reranker: Any, k: int = 30, **more: Any) -> list[str]:
        retrievers.append(Retriever(catalog, indexes, reranker=reranker))
        passages = retrievers[-1].search("When is the lamp lit?", k, collection="default", **more)
        assert all(0 <= p.score <= 1 for p in passages)
        return [p.filename for p in passages]

    yield names
    for retriever in retrievers:
        retriever.close()
    catalog.close()


def test_the_best_are_ordered_anew_and_the_rest_stay(search: Callable[..., list[str]]) -> None:
    plain = search(None)
    assert len(plain) == 30
    longest_first = Scripted(len)
    found = search(longest_first)
    assert found[RERANKED:] == plain[RERANKED:]
    assert found[:RERANKED] == sorted(plain[:RERANKED], reverse=True) != plain[:RERANKED]
    ((query, texts),) = longest_first.asked
    assert query == "When is the lamp lit?"
    assert len(texts) == RERANKED
    assert search(longest_first, 3) == found[:3]
    assert search(Scripted(lambda _: 0.0)) == plain  # equals keep their order


@pytest.mark.parametrize("mode", ["dense", "lexical"])
def test_a_single_search_is_not_reranked(search: Callable[..., list[str]], mode: str) -> None:
    reranker = Scripted(len)
    assert search(reranker, mode=mode) == search(None, mode=mode)
    assert reranker.asked == []


class Broken:
    def score(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        raise RuntimeError("CUDA error: out of memory")


class TooFew:
    def score(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        return [1.0]


@pytest.mark.parametrize(
    "reranker", [Broken(), TooFew(), Scripted(lambda _: float("nan"))], ids=["raises", "few", "NaN"]
)
def test_a_reranker_that_fails_fails_no_search(
    search: Callable[..., list[str]], reranker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "docduet.rag"):
        assert search(reranker) == search(None)
    assert [r.getMessage() for r in caplog.records].count(
        "the reranker failed: searches keep the order they have without it"
    ) == 1


def test_a_failure_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalog = Catalog(tmp_path / "data")
    indexes = Indexes(catalog, Indexes.open_chroma(catalog.data_dir, None), HashEmbedder(), None)
    for text in ("The lamp is lit.", "The lamp is out."):
        add(catalog, indexes, text, f"{text}.pdf")
    retriever = Retriever(catalog, indexes, reranker=Broken())
    with caplog.at_level(logging.INFO, "docduet.rag"):
        for _ in range(3):
            assert len(retriever.search("lamp", 2, collection="default")) == 2
    assert len([r for r in caplog.records if "reranker failed" in r.getMessage()]) == 1
    retriever.close()
    catalog.close()


def test_a_service_reranks(model: Service, folder: Path, reranker: CrossEncoderReranker, tmp_path: Path) -> None:
    texts = {f"{n}.txt": f"The lamp of lighthouse number {n} is lit." for n in range(6)}
    with (
        start_service("services.rag", rag_env(model.url, tmp_path / "data", RAG_RERANKER_MODEL=str(folder))) as rag,
        httpx.Client(base_url=rag.url, timeout=30, trust_env=False) as client,
    ):
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            assert wait(client, upload(client, tmp_path / name)["job_id"])["state"] == "indexed"
        query = "When is the lamp lit?"
        answer = client.post("/search", json={"query": query, "k": 6})
        assert answer.status_code == 200, answer.text
        passages = answer.json()["passages"]
    scores = dict(zip(texts, reranker.score(query, list(texts.values())), strict=True))
    assert [p["filename"] for p in passages] == sorted(texts, key=lambda name: -scores[name])
