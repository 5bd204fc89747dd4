"""Searches over HTTP: what is found, in which order, and what bad input gets."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.cli import main
from services.rag.embeddings import HashEmbedder
from services.rag.errors import RagError
from services.rag.retrieval import MAX_FILTER_VALUES, MAX_K, MAX_QUERY_CHARACTERS, Retriever
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from tests.rag.conftest import Pair, upload, wait

TEXTS = {
    "lease.txt": "The soft limit of a lease is 90 seconds. A client renews its lease every 20 seconds while it writes.",
    "rack.txt": "Every block has three replicas. Replicas are placed on different racks of the cluster.",
    "lamp.txt": "The lamp of the lighthouse is cleaned twice a week, and its lens every month.",
    "灯塔.txt": "灯塔的灯每周清洁两次。透镜每个月清洁一次,由值班员记录在日志里。",
    "缓存.txt": "缓存命中率低于百分之八十时,系统会自动扩容,并且通知管理员。",
    "燈.txt": "颱風來臨之前,值班員必須檢查備用發電機的燃料。",
}


@pytest.fixture(scope="module")
def library(client: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> httpx.Client:
    folder: Path = tmp_path_factory.mktemp("texts")
    jobs = []
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
        jobs.append(
            upload(client, folder / name, metadata=json.dumps({"words": len(text), "draft": name == "lamp.txt"}))
        )
    assert {wait(client, job["job_id"])["state"] for job in jobs} == {"indexed"}
    return client


def search(client: httpx.Client, query: str, **more: Any) -> list[dict[str, Any]]:
    response = client.post("/search", json={"query": query, **more})
    assert response.status_code == 200, response.text
    return list(response.json()["passages"])


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("How often is the lens of the lighthouse cleaned?", "lamp.txt"),
        ("Where are the replicas of a block placed?", "rack.txt"),
        ("灯塔的透镜多久清洁一次?", "灯塔.txt"),
        ("台風來臨之前要檢查什麼?", "燈.txt"),
    ],
)
def test_every_mode_finds_the_passage(library: httpx.Client, query: str, name: str, mode: str) -> None:
    assert search(library, query, mode=mode)[0]["filename"] == name


@pytest.mark.parametrize("mode", ["hybrid", "lexical"])
def test_a_question_in_simplified_characters_finds_a_traditional_text(library: httpx.Client, mode: str) -> None:
    assert search(library, "台风来临之前要检查什么?", mode=mode)[0]["filename"] == "燈.txt"


def test_a_single_mode_ranks_by_that_search_alone(library: httpx.Client) -> None:
    query = "lease seconds lens"
    lexical = search(library, query, mode="lexical", k=10)
    # Only what holds a word of the question; the others find everything that is there.
    assert {p["filename"] for p in lexical} == {"lease.txt", "lamp.txt"}
    assert len(search(library, query, mode="dense", k=10)) == len(search(library, query, k=10)) == len(TEXTS)


@pytest.mark.parametrize("query", ["lease seconds lens", "灯塔的灯", "how often is a block cleaned?"])
def test_dense_ranks_by_cosine_alone(library: httpx.Client, query: str) -> None:
    embedder = HashEmbedder()
    vectors = embedder.embed_documents(list(TEXTS.values()))
    cosines = dict(zip(TEXTS, (vectors @ embedder.embed_query(query)).tolist(), strict=True))
    found = [p["filename"] for p in search(library, query, mode="dense", k=10)]
    assert found == sorted(cosines, key=lambda name: -cosines[name])


def test_scores_are_probabilities_that_fall(library: httpx.Client) -> None:
    scores = [p["score"] for p in search(library, "How often does a client renew its lease?", k=10)]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    unrelated = search(library, "Who won the chess tournament in Reykjavik?", k=1)
    assert unrelated[0]["score"] < scores[0]


def test_the_same_search_gives_the_same(library: httpx.Client) -> None:
    assert search(library, "灯塔", k=10) == search(library, "灯塔", k=10)


def test_filters_select_documents(library: httpx.Client) -> None:
    names = {p["filename"] for p in search(library, "灯塔的灯", k=10, filter={"filename": ["灯塔.txt", "燈.txt"]})}
    assert names == {"灯塔.txt", "燈.txt"}
    assert search(library, "lease", filter={"filename": "nothing.txt"}) == []
    assert [p["filename"] for p in search(library, "lease", k=10, filter={"draft": True})] == ["lamp.txt"]
    assert search(library, "lease", filter={"words": True}) == []  # true is no number
    everything = ["x" * 24] * (MAX_FILTER_VALUES - 1) + [p["document_id"] for p in search(library, "lease", k=1)]
    assert len(search(library, "lease", k=10, filter={"document_id": everything})) == 1


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
@pytest.mark.parametrize(
    "query",
    [
        "🦜" * 40,
        "?!…—",
        "的了吗呢",
        "\x00lease\x00",
        "lease \ud800 limit",
        '" OR * NEAR( ^ : {chunks} --',
        "a" * MAX_QUERY_CHARACTERS,
        "灯塔" * (MAX_QUERY_CHARACTERS // 2),
        "\u202e\u200b\ufeff lease",
        "e" + "\u0301" * 500,
    ],
    ids=[
        "emoji",
        "punctuation",
        "stop words",
        "NUL",
        "half a pair",
        "syntax",
        "one word",
        "long",
        "invisible",
        "accents",
    ],
)
def test_odd_queries_are_answered(library: httpx.Client, query: str, mode: str) -> None:
    body = json.dumps({"query": query, "mode": mode})  # ASCII, with escapes: half of a pair can be sent so
    response = library.post("/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text
    assert all(0 <= p["score"] <= 1 for p in response.json()["passages"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"query": ""}, "empty"),
        ({"query": " \n\t\u3000"}, "empty"),
        ({"query": "x" * 100_000}, f"at most {MAX_QUERY_CHARACTERS}"),
        ({"query": "x", "k": 0}, f"between 1 and {MAX_K}"),
        ({"query": "x", "k": -1}, f"between 1 and {MAX_K}"),
        ({"query": "x", "k": 10**6}, f"between 1 and {MAX_K}"),
        ({"query": "x", "k": 10**400}, "k"),
        ({"query": "x", "k": 2.5}, "k"),
        ({"query": None}, "query"),
        ({}, "query"),
        ({"query": ["x"]}, "query"),
        ({"query": "x", "mode": "magic"}, "mode"),
        ({"query": "x", "depth": 3}, "depth"),
        ({"query": "x", "collection": "../etc"}, "collection"),
        ({"query": "x", "filter": []}, "filter"),
        ({"query": "x", "filter": {"author": "me"}}, "author"),
        ({"query": "x", "filter": {"\ud800": "me"}}, "unknown fields"),
        ({"query": "x", "filter": {"filename": []}}, "filter.filename"),
        ({"query": "x", "filter": {"filename": None}}, "filter.filename"),
        ({"query": "x", "filter": {"filename": 3}}, "filter.filename"),
        ({"query": "x", "filter": {"filename": {"$ne": "a"}}}, "filter.filename"),
        ({"query": "x", "filter": {"filename": [["lease.txt"]]}}, "filter.filename"),
        ({"query": "x", "filter": {"words": {"$gt": 1}}}, "filter.words"),
        ({"query": "x", "filter": {"words": [1] * (MAX_FILTER_VALUES + 1)}}, "at most"),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:40],
)
def test_bad_input_is_refused_by_name(library: httpx.Client, body: dict[str, Any], said: str) -> None:
    response = library.post("/search", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]["message"]


def test_odd_filter_values_find_nothing(library: httpx.Client) -> None:
    for value in ("\ud800", "\x00", "x" * 100_000, "lease.txt'; --"):
        body = json.dumps({"query": "lease", "filter": {"filename": value}})
        response = library.post("/search", content=body, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()) == (200, {"passages": []})


def test_an_unknown_collection_is_not_found(library: httpx.Client) -> None:
    response = library.post("/search", json={"query": "x", "collection": "nowhere"})
    assert response.status_code == 404
    assert "nowhere" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'"x"', b"[" * 50_000, b'{"query": "\xff"}', b'{"k": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_request_is_refused(library: httpx.Client, content: bytes) -> None:
    response = library.post("/search", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text


def test_a_collection_without_documents_finds_nothing(client: httpx.Client) -> None:
    assert client.post("/collections", json={"name": "bare"}).status_code in (200, 201)
    for mode in ("hybrid", "dense", "lexical"):
        assert search(client, "lease", collection="bare", mode=mode) == []


# -- docduet calibrate


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 questions about 60 lighthouses, each told in a paragraph of its own, in SQuAD's format."""
    things = ("lamp", "lens", "siren", "door", "mast", "boat")
    places = ("Skagen", "Kullen", "Hanko", "Utö", "Lyngvig", "Bengtskär", "Anholt", "Kronborg", "Hirtshals", "Söderarm")
    paragraphs = [
        {
            "context": f"The {thing} of {place} is looked after every {7 + n} days. The keeper of {place} writes it down.",
            "qas": [{"id": f"{n}", "question": f"How often is the {thing} of {place} looked after?", "answers": []}],
        }
        for n, (thing, place) in enumerate((t, p) for p in places for t in things)
    ]
    path = tmp_path_factory.mktemp("questions") / "lighthouses.json"
    path.write_text(json.dumps({"data": [{"title": "lighthouses", "paragraphs": paragraphs}]}))
    return path


def test_calibrate_measures_and_changes_nothing_when_told_so(
    pair: Pair, client: httpx.Client, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = client.get("/calibration").json()
    assert before["source"] == "default"
    assert main(["calibrate", str(questions), "--url", pair.rag.url, "--dry-run", "--keep"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "60 questions" in said
    assert "RAG_REFUSAL_THRESHOLD=0." in said
    assert client.get("/calibration").json() == before


def test_a_calibration_is_used_at_once_and_given_up_again(
    pair: Pair, client: httpx.Client, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = next(c["name"] for c in client.get("/collections").json()["collections"] if "lighthouses" in c["name"])
    query = "How often is the siren of Hanko looked after?"
    before = search(client, query, collection=collection)
    assert main(["calibrate", str(questions), "--url", pair.rag.url]) == 0
    assert client.get("/calibration").json()["source"] == "own"
    after = search(client, query, collection=collection)
    assert "siren of Hanko" in after[0]["text"]
    assert [p["score"] for p in after] != [p["score"] for p in before]
    assert main(["calibrate", "--url", pair.rag.url, "--reset"]) == 0
    assert "any embedding model" in " ".join(capsys.readouterr().out.split())
    assert search(client, query, collection=collection) == before


def test_too_few_questions_to_calibrate_with_are_refused(
    pair: Pair, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(questions), "--url", pair.rag.url, "--questions", "5"]) == 1
    assert "too few" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "list.json").write_text(json.dumps([{"question": "what?", "document": "nothing.txt"}]))
    assert main(["calibrate", str(tmp_path / "list.json"), "--url", pair.rag.url]) == 2
    assert main(["calibrate", "--url", pair.rag.url]) == 2


@pytest.mark.parametrize(
    "body",
    [
        {"sets": []},
        {"sets": [{"questions": []}]},
        {"sets": [{"questions": [{"question": "x"}]}]},
        {"sets": [{"questions": [{"question": "x", "document_id": "y", "pages": ["z"]}]}]},
        {"sets": [{"questions": [{"question": "x", "document_id": "y"}]}], "false_refusals": 0.9},
        {"sets": [{"questions": [{"question": "x", "document_id": "y"}] * 5001}]},
        {"sets": [{"collection": "../x", "questions": [{"question": "x", "document_id": "y"}]}]},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_a_bad_request_to_calibrate_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/calibration", json=body).status_code == 400


def test_questions_about_an_unknown_collection_are_not_found(client: httpx.Client) -> None:
    body = {"sets": [{"collection": "nowhere", "questions": [{"question": "x", "document_id": "y"}]}]}
    assert client.post("/calibration", json=body).status_code == 404


def test_a_failing_embedder_is_not_taken_for_a_broken_index(tmp_path: Path) -> None:
    class Failing(HashEmbedder):
        def embed_query(self, text: str) -> Any:
            raise MemoryError("no room")

    catalog = Catalog(tmp_path)
    indexes = Indexes(catalog, Indexes.open_chroma(tmp_path, None), Failing(), None)
    retriever = Retriever(catalog, indexes)
    with pytest.raises(RagError, match=r"embedding model failed on the question \(MemoryError: no room\)") as refused:
        retriever.search("lease", 4, collection="default")
    assert refused.value.status == 500
    assert retriever.search("lease", 4, collection="default", mode="lexical") == []
    retriever.close()
    indexes.close()
    catalog.close()
