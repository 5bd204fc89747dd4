"""Questions through LangServe, against a real process and the scripted model."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.runnables.utils import AddableDict
from langserve import RemoteRunnable

from tests.rag.conftest import LEASES, Pair, rag_env, sse, upload, wait
from tests.support.pdfs import make_pdf
from tests.support.servers import Service, free_port, start_service

HARD = "What is the hard limit of a lease?"


def invoke(client: httpx.Client, question: str, **fields: object) -> dict[str, object]:
    response = client.post("/rag/invoke", json={"input": {"question": question, **fields}})
    assert response.status_code == 200, response.text
    return response.json()["output"]


def added(chunks: list[dict]) -> dict:
    """As LangChain adds them up."""
    total = AddableDict()
    for chunk in chunks:
        total = total + AddableDict(chunk)
    return dict(total)


def test_an_answer_names_file_page_and_quote(client: httpx.Client, indexed: str) -> None:
    output = invoke(client, HARD)
    assert output["answer"] == "The hard limit of a lease is 2 hours.[1]"
    assert output["answerable"] is True
    assert output["standalone_question"] == HARD
    [citation] = output["citations"]
    assert (citation["index"], citation["filename"], citation["page"]) == (1, "manual.pdf", 1)
    assert citation["quote"] == "The hard limit of a lease is 2 hours."
    page = client.get(f"/documents/{indexed}/pages/1").json()["text"]
    assert page[citation["start"] : citation["end"]] == citation["quote"]
    assert 0 < citation["score"] <= 1


def test_each_sentence_gets_its_own_citation(client: httpx.Client, indexed: str) -> None:
    output = invoke(client, "What is the soft limit of a lease?")
    assert output["answer"] == "The soft limit of a lease is 90 seconds.[1] It is renewed every 20 seconds.[2]"
    assert [c["index"] for c in output["citations"]] == [1, 2]


def test_an_invented_number_gets_no_citation_and_says_so(client: httpx.Client, indexed: str) -> None:
    output = invoke(client, "Tell a wrong number for the hard limit of a lease")
    assert output["citations"] == []
    assert output["answerable"] is False
    assert "I don't know" in output["answer"]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("Who invented the telescope in Holland?", "I don't know"),
        ("谁发明了望远镜？", "我不知道。"),
        ("Is the hard limit of a lease unknown 2 hours?", "I don't know."),
    ],
)
def test_what_the_documents_do_not_hold_is_refused(
    client: httpx.Client, indexed: str, question: str, says: str
) -> None:
    output = invoke(client, question)
    assert (output["answer"], output["answerable"], output["citations"]) == (says, False, [])


def test_a_follow_up_is_condensed_first(client: httpx.Client, indexed: str) -> None:
    history = [["What is the soft limit of a lease?", "90 seconds."]]
    output = invoke(client, "and the hard one?", chat_history=history)
    assert output["standalone_question"] == HARD
    assert output["citations"]


def test_no_documents_no_answer(client: httpx.Client) -> None:
    assert client.post("/collections", json={"name": "nothing-here"}).status_code == 201
    output = invoke(client, HARD, collection="nothing-here")
    assert (output["answer"], output["answerable"]) == ("I don't know", False)


@pytest.mark.parametrize("route", ["invoke", "stream"])
def test_an_unknown_collection_is_told(client: httpx.Client, route: str) -> None:
    response = client.post(f"/rag/{route}", json={"input": {"question": HARD, "collection": "unknown"}})
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "collection"


def test_a_filter_reaches_the_chain(client: httpx.Client, indexed: str) -> None:
    assert invoke(client, HARD, filter={"document_id": indexed})["answerable"] is True
    assert invoke(client, HARD, filter={"filename": "other.pdf"})["answerable"] is False


def test_the_stream_leaves_before_the_answer_is_complete(client: httpx.Client, pair: Pair, indexed: str) -> None:
    # The scripted model repeats itself until max_tokens or until the client leaves: an answer is never complete here.
    body = {
        "input": {"question": "Is the soft limit of a slow lease 90 seconds?"},
        "config": {"configurable": {"max_tokens": 4096}},
    }
    with client.stream("POST", "/rag/stream", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        pieces = []
        for event, data in sse(response):
            if event == "data" and data.get("answer"):
                pieces.append(data["answer"])
            if len(pieces) > 3:
                break
    assert "".join(pieces).startswith("The soft")
    # The connection is closed now: the generation in the other service ends.
    running = lambda: "docduet" in (text := pair.model.get("/metrics").text) and _metric(text, "running")  # noqa: E731
    for _ in range(2000):
        if running() == 0:
            break
    assert running() == 0


def _metric(text: str, name: str) -> float:
    [line] = [ln for ln in text.splitlines() if not ln.startswith("#") and name in ln.split(" ")[0].split("{")[0]]
    return float(line.rsplit(" ", 1)[1])


def test_the_stream_adds_up_to_the_invoked_answer(client: httpx.Client, indexed: str) -> None:
    with client.stream("POST", "/rag/stream", json={"input": {"question": HARD}}) as response:
        events = list(sse(response))
    assert events[0][0] == "metadata"
    assert added([data for event, data in events if event == "data"]) == invoke(client, HARD)


def test_remote_runnable(pair: Pair, indexed: str) -> None:
    rag = RemoteRunnable(pair.rag.url + "/rag")
    expected = rag.invoke({"question": HARD})
    assert expected["citations"][0]["page"] == 1
    assert added(list(rag.stream({"question": HARD}))) == expected
    both = rag.batch([{"question": HARD}, {"question": "Who invented the telescope?"}])
    assert [b["answerable"] for b in both] == [True, False]
    assert rag.invoke({"question": HARD}, config={"configurable": {"k": 1, "mode": "lexical"}})["answerable"] is True


MIXED = "What is the hard limit of a lease, and what is the soft limit of a lease?"


def patched(events: list[tuple[str, Any]]) -> dict[str, Any]:
    """What the operations of ``/stream_log`` build, as far as its output goes."""
    chunks = []
    for event, data in events:
        assert event != "error", data
        for op in data.get("ops", []) if event == "data" else []:
            if op["path"] == "/streamed_output/-":
                chunks.append(op["value"])
    return added(chunks)


def test_every_route_gives_the_same_structure(client: httpx.Client, pair: Pair, indexed: str) -> None:
    whole = invoke(client, MIXED)
    assert whole["answer"] == (
        "The soft limit of a lease is 90 seconds.[1] The hard limit of a lease is 7 hours.[?] "
        "The hard limit of a lease is 2 hours.[2]"
    )
    assert [c["index"] for c in whole["citations"]] == [1, 2]
    [flagged] = whole["unsupported"]
    assert (flagged["reason"], flagged["numbers"]) == ("number", ["7"])
    assert whole["answer"][flagged["start"] : flagged["end"]] == flagged["text"]
    body = {"input": {"question": MIXED}}
    with client.stream("POST", "/rag/stream", json=body) as response:
        chunks = [data for event, data in sse(response) if event == "data"]
    assert added(chunks) == whole
    # Each citation is there when its marker is, long before the end.
    for c in whole["citations"]:
        [carrier] = [chunk for chunk in chunks if c in chunk.get("citations", [])]
        assert f"[{c['index']}]" in carrier["answer"]
    assert len(chunks) > 5
    assert client.post("/rag/batch", json={"inputs": [body["input"]] * 2}).json()["output"] == [whole] * 2
    with client.stream("POST", "/rag/stream_log", json=body) as response:
        assert patched(list(sse(response))) == whole
    with client.stream("POST", "/rag/stream_events", json={**body, "version": "v2"}) as response:
        events = [data for event, data in sse(response) if event == "data"]
    ours = [e["data"]["chunk"] for e in events if e["event"] == "on_chain_stream" and e["name"] in ("/rag", "rag")]
    assert whole in (added(ours), added(ours[::2]))
    rag = RemoteRunnable(pair.rag.url + "/rag")
    assert rag.invoke(body["input"]) == whole
    assert added(list(rag.stream(body["input"]))) == whole
    assert rag.batch([body["input"]]) == [whole]

    async def asynchronously() -> tuple[Any, list[Any], list[Any]]:
        return (
            await rag.ainvoke(body["input"]),
            await rag.abatch([body["input"]]),
            [chunk async for chunk in rag.astream(body["input"])],
        )

    one, several, streamed = asyncio.run(asynchronously())
    assert one == whole
    assert several == [whole]
    assert added(streamed) == whole


@pytest.mark.parametrize(
    "path", ["/rag/input_schema", "/rag/output_schema", "/rag/config_schema", "/chat/input_schema"]
)
def test_the_schemas(client: httpx.Client, path: str) -> None:
    assert client.get(path).json()["type"] == "object"


def test_the_config_schema_has_the_bounded_controls(client: httpx.Client) -> None:
    schema = json.dumps(client.get("/rag/config_schema").json())
    for name in ("k", "temperature", "max_tokens", "mode"):
        assert f'"{name}"' in schema
    assert '"maximum": 20' in schema


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"input": {"question": ""}}, "question"),
        ({"input": {"question": "x" * 100_000}}, "question"),
        ({"input": {}}, "question"),
        ({"input": {"question": 3}}, "question"),
        ({"input": {"question": "x", "chat_history": [["a", "b", "c"]]}}, "chat_history"),
        ({"input": {"question": "x", "chat_history": [["a", "b", "c"]] * 10_000}}, "chat_history"),
        ({"input": {"question": "x", "collection": "../.."}}, "collection"),
        ({"input": {"question": "x", "filter": {"colour": "red"}}}, "filter"),
        ({"input": {"question": "x"}, "config": {"configurable": {"k": 0}}}, "k"),
        ({"input": {"question": "x"}, "config": {"configurable": {"k": 10**6}}}, "k"),
        ({"input": {"question": "x"}, "config": {"configurable": {"mode": "magic"}}}, "mode"),
        ({}, "input"),
    ],
)
@pytest.mark.parametrize("route", ["invoke", "stream"])
def test_bad_input_is_400_and_names_it(client: httpx.Client, route: str, body: object, named: str) -> None:
    response = client.post(f"/rag/{route}", json=body)
    assert response.status_code == 400, response.text
    assert named in response.json()["error"]["message"]


@pytest.mark.parametrize("route", ["invoke", "stream"])
def test_a_history_of_ten_thousand_turns_is_no_trouble(client: httpx.Client, indexed: str, route: str) -> None:
    body = {
        "input": {
            "question": "What is the soft limit of a lease?",
            "chat_history": [["What is a lease?", "A lease is a lock."]] * 10_000,
        }
    }
    response = client.post(f"/rag/{route}", json=body)
    assert response.status_code == 200, response.text
    assert "90" in response.text


def test_a_body_that_is_no_json(client: httpx.Client) -> None:
    for content in (b"{", b"", b"\xff\xfe"):
        assert client.post("/rag/invoke", content=content).status_code == 400
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("question", ["😀😀", "\ud800 lease", "lease \x00", "租约" * 2000])
def test_odd_questions_are_answered(client: httpx.Client, indexed: str, question: str) -> None:
    response = client.post("/rag/invoke", content=json.dumps({"input": {"question": question}}))
    assert response.status_code == 200, response.text


def test_chat_takes_messages_and_gives_text(client: httpx.Client, pair: Pair, indexed: str) -> None:
    messages = [
        {"type": "human", "content": "What is the soft limit of a lease?"},
        {"type": "ai", "content": "90 seconds."},
        {"type": "human", "content": "and the hard one?"},
    ]
    response = client.post("/chat/invoke", json={"input": {"messages": messages}})
    assert response.status_code == 200, response.text
    assert response.json()["output"] == "The hard limit of a lease is 2 hours.[1]\n\n[1] manual.pdf, p. 1"
    mixed = client.post("/chat/invoke", json={"input": {"messages": [{"type": "human", "content": MIXED}]}}).json()[
        "output"
    ]
    listed = "[1] manual.pdf, p. 1\n[2] manual.pdf, p. 1\n[?] nothing in the documents bears this out"
    assert mixed.partition("\n\n")[2] == listed
    refused = client.post("/chat/invoke", json={"input": {"messages": messages[:2]}})
    assert refused.status_code == 400


def test_a_model_that_breaks_in_the_middle_says_so_in_the_stream(client: httpx.Client, indexed: str) -> None:
    with client.stream(
        "POST", "/rag/stream", json={"input": {"question": "Is the hard limit of a lease that breaks 2 hours?"}}
    ) as response:
        events = list(sse(response))
    event, data = events[-1]
    assert event == "error"
    assert data["status_code"] in (502, 503)
    assert "model service" in data["message"]
    failed = client.post(
        "/rag/invoke", json={"input": {"question": "Is the hard limit of a lease that breaks 2 hours?"}}
    )
    assert failed.status_code in (502, 503)


def test_a_model_service_that_is_away_and_comes_back(manual: Path, tmp_path: Path) -> None:
    port = str(free_port())
    env = rag_env(f"http://127.0.0.1:{port}", tmp_path / "data")
    model_env = {"MODEL_ENGINE": "scripted", "MODEL_PORT": port}
    with (
        start_service("services.model", model_env) as model,
        start_service("services.rag", env) as rag,
        httpx.Client(base_url=rag.url, timeout=30) as client,
    ):
        assert wait(client, upload(client, manual)["job_id"])["state"] == "indexed"
        model.kill()
        for route in ("invoke", "stream", "batch"):
            body = {"inputs": [{"question": HARD}]} if route == "batch" else {"input": {"question": HARD}}
            response = client.post(f"/rag/{route}", json=body)
            assert response.status_code == 503, (route, response.text)
            assert "cannot be reached" in response.json()["error"]["message"]
        # These two tell about the run before anything can fail: the reason comes as the error event.
        for route in ("stream_log", "stream_events"):
            with client.stream("POST", f"/rag/{route}", json={"input": {"question": HARD}}) as response:
                event, data = list(sse(response))[-1]
            assert (event, data["status_code"]) == ("error", 503)
            assert "cannot be reached" in data["message"]
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert "model" in ready.json()["reasons"]
        assert client.post("/search", json={"query": "lease"}).status_code == 200
        with start_service("services.model", model_env):
            assert client.get("/ready").status_code == 200
            assert client.post("/rag/invoke", json={"input": {"question": HARD}}).status_code == 200


def test_a_slow_model_is_504_and_a_full_one_503(manual: Path, tmp_path: Path) -> None:
    script = tmp_path / "rules.json"
    script.write_text(json.dumps([{"match": ".", "reply": "a b c", "hold_after": 0}]))
    model_env = {"MODEL_ENGINE": "scripted", "MODEL_SCRIPT": str(script), "MODEL_PARALLEL": "1", "MODEL_QUEUE": "0"}
    with start_service("services.model", model_env) as model:
        env = rag_env(model.url, tmp_path / "data", RAG_MODEL_TIMEOUT="1")
        with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
            assert wait(client, upload(client, manual)["job_id"])["state"] == "indexed"
            late = client.post("/rag/invoke", json={"input": {"question": HARD}})
            assert late.status_code == 504
            assert "RAG_MODEL_TIMEOUT" in late.json()["error"]["message"]
            hold = {"model": model.get("/v1/models").json()["data"][0]["id"], "stream": True}
            hold["messages"] = [{"role": "user", "content": "hold"}]
            with httpx.stream("POST", model.url + "/v1/chat/completions", json=hold, timeout=30):
                full = client.post("/rag/invoke", json={"input": {"question": HARD}})
            assert full.status_code == 503
            assert "full" in full.json()["error"]["message"]
            assert int(full.headers["retry-after"]) > 0


def test_a_small_context_shortens_the_answer_or_says_so(tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "long.pdf", [" ".join([LEASES] * 4)])
    for context, status in (("512", 200), ("256", 502)):
        with start_service("services.model", {"MODEL_ENGINE": "scripted", "MODEL_CONTEXT": context}) as model:
            env = rag_env(model.url, tmp_path / context)
            with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
                wait(client, upload(client, path)["job_id"])
                response = client.post("/rag/invoke", json={"input": {"question": HARD}})
                assert response.status_code == status, response.text
                assert ("MODEL_CONTEXT" in response.text) == (status == 502)


def test_a_wrong_key_for_the_model_is_named(manual: Path, tmp_path: Path) -> None:
    with start_service("services.model", {"MODEL_ENGINE": "scripted", "MODEL_API_KEYS": "right"}) as model:
        env = rag_env(model.url, tmp_path / "data", RAG_MODEL_API_KEY="right")
        with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
            assert client.get("/ready").status_code == 200
            wait(client, upload(client, manual)["job_id"])
            assert client.post("/rag/invoke", json={"input": {"question": HARD}}).status_code == 200


def test_an_answer_that_only_repeats_the_question_is_none(client: httpx.Client, indexed: str) -> None:
    question = "How long is the soft limit of a lease?"  # the scripted model has no rule for it, and says it again
    output = invoke(client, question)
    assert output["answer"] == f"{question}\nI don't know."
    assert output["answerable"] is False


def test_metrics_count_requests_answers_and_documents(client: httpx.Client, indexed: str) -> None:
    invoke(client, HARD)
    text = client.get("/metrics").text
    assert 'docduet_rag_requests_total{method="POST",route="/rag/invoke",status="200"}' in text
    assert 'docduet_rag_answers_total{answerable="true"}' in text
    assert 'docduet_rag_documents{status="indexed"}' in text


def test_sigterm_ends_well(model: Service, tmp_path: Path) -> None:
    service = start_service("services.rag", rag_env(model.url, tmp_path / "data"))
    assert service.stop() == 0
