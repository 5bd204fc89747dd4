"""Real weights, real embedder, real Chroma, real HTTP: does the main job run?"""

import json
import re

import httpx
import pytest

from tests.e2e.conftest import RealPair
from tests.rag.conftest import sse
from tests.support.servers import ROOT

pytestmark = pytest.mark.weights

QUESTIONS = json.loads((ROOT / "samples" / "questions.json").read_text())
PLAIN = [q for q in QUESTIONS if q["answerable"] and not q.get("history")]


def squeeze(text: str) -> str:
    return "".join(text.split()).lower()


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_gold_page_is_found(client: httpx.Client, language: str) -> None:
    """Retrieval does not depend on the small model: nearly every gold answer must be in the passages it would read."""
    wanted = [q for q in PLAIN if q["lang"] == language]
    missed = []
    for q in wanted:
        passages = client.post("/search", json={"query": q["question"], "k": 4}).json()["passages"]
        if not any((p["filename"], p["page"]) == (q["document"], q["page"]) for p in passages):
            missed.append(q["id"])
    assert len(missed) <= len(wanted) // 10, missed


@pytest.mark.parametrize(
    ("question", "filename", "page", "holds"),
    [
        ("租约的软限制和硬限制分别是多久？", "qingshi-storage-handbook.zh.pdf", 2, "2小时"),
        ("How long does the battery of the Harrow H2 last?", "harrow-h2-manual.en.pdf", 3, "26months"),
    ],
)
def test_an_answer_is_streamed_with_its_page(
    client: httpx.Client, question: str, filename: str, page: int, holds: str
) -> None:
    pieces, citations, answerable = [], [], None
    with client.stream("POST", "/rag/stream", json={"input": {"question": question}}) as response:
        for event, data in sse(response):
            assert event != "error", data
            if event == "data":
                pieces += [data["answer"]] if data.get("answer") else []
                citations += data.get("citations", [])
                answerable = data.get("answerable", answerable)
    assert len(pieces) > 3
    assert answerable is True
    assert holds in squeeze("".join(pieces))
    [first, *_] = citations
    assert (first["filename"], first["page"]) == (filename, page)
    assert holds in squeeze("".join(c["quote"] for c in citations))
    text = client.get(f"/documents/{first['document_id']}/pages/{first['page']}").json()["text"]
    assert text[first["start"] : first["end"]] == first["quote"]


def test_what_is_not_in_the_documents_is_not_answered_with_a_citation(client: httpx.Client) -> None:
    question = "Who won the football world championship in 1998?"
    output = client.post("/rag/invoke", json={"input": {"question": question}}).json()["output"]
    assert output["answerable"] is False
    assert output["citations"] == []
    assert "I don't know" in output["answer"]


def test_a_follow_up_finds_the_page_of_what_it_means(client: httpx.Client) -> None:
    history = [["租约的软限制是多久？", "租约的软限制是 90 秒。"]]
    body = {"input": {"question": "那它的硬限制呢？", "chat_history": history}}
    output = client.post("/rag/invoke", json=body).json()["output"]
    assert output["standalone_question"] != "那它的硬限制呢？"
    assert re.search("租约|硬限制", output["standalone_question"])
    assert [c["page"] for c in output["citations"]] == [2]


def test_the_second_question_on_the_same_passages_reuses_the_prompt(real_pair: RealPair, client: httpx.Client) -> None:
    def cached() -> float:
        [line] = [
            ln
            for ln in real_pair.model.get("/metrics").text.splitlines()
            if re.match(r"\w+prompt_tokens_cached_total\b", ln)
        ]
        return float(line.split()[-1])

    question = {"input": {"question": "租约的硬限制是多久？"}, "config": {"configurable": {"max_tokens": 16}}}
    client.post("/rag/invoke", json=question)
    before = cached()
    client.post("/rag/invoke", json=question)
    assert cached() - before > 200
