"""Notes through the service: searches find by them, and nobody reads or quotes them."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.rag.conftest import rag_env, wait, wait_for_index
from tests.rag.test_change import put, search
from tests.rag.test_notes import RULES, sentence
from tests.rag.test_store import eventually
from tests.support.http_stand_in import events, models, serving
from tests.support.servers import Service, start_service

LAMP = "The Fresnel assembly on the northern headland is dismantled and polished every quarter by two keepers."
NOTE = "How often do workers wipe the big bulb?\nWhose job is scrubbing glassware?"
ONLY_IN_NOTE = "wipe bulb scrubbing glassware"
OTHERS = [f"Rule {n}: the harbour master of district {n} counts the ships before noon, and signs." for n in range(8)]


class StandIn:
    """An OpenAI-compatible model service that keeps what it is asked. It says NOTE of LAMP, and to questions as well."""

    def __init__(self) -> None:
        self.note_calls: list[str] = []  # the chunks
        self.questions: list[str] = []  # whole prompts
        self.go = threading.Event()  # notes come once it is set
        self.go.set()

    def answer(self, messages: list[dict[str, str]]) -> str:
        if messages[0]["content"] not in [rules for _, rules in RULES.values()]:
            self.questions.append(json.dumps(messages))
            return "The assembly is polished every quarter. Workers wipe the big bulb with glassware."
        self.note_calls.append(messages[-1]["content"])
        assert self.go.wait(60)
        return NOTE if messages[-1]["content"] == LAMP else "Who signs when the day is half over?"

    def answers(self, path: str, body: Any) -> tuple[int, object]:
        if body is None:
            return 200, models()
        if not path.endswith("/chat/completions"):
            return 404, {"error": {"message": "no such route", "type": "x"}}
        text = self.answer(body["messages"])
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if body.get("stream"):
            return 200, events({**choice, "delta": {"content": text}})
        message = {"role": "assistant", "content": text}
        return 200, {
            "id": "c",
            "object": "chat",
            "created": 0,
            "model": "m",
            "choices": [{**choice, "message": message}],
        }


@pytest.fixture(scope="module")
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture(scope="module")
def env(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with serving(stand_in.answers) as url:
        yield rag_env(url, tmp_path_factory.mktemp("noted") / "data", RAG_REFUSAL_THRESHOLD="0")
        stand_in.go.set()


@pytest.fixture(scope="module")
def rag(env: dict[str, str]) -> Iterator[Service]:
    with start_service("services.rag", env) as rag:
        yield rag


def connect(rag: Service) -> httpx.Client:
    return httpx.Client(base_url=rag.url, timeout=30, trust_env=False)


@pytest.fixture
def client(rag: Service) -> Iterator[httpx.Client]:
    with connect(rag) as client:
        yield client


def put_noted(client: httpx.Client, name: str, text: str) -> str:
    """The document's id, once all its notes are searched."""
    id_ = put(client, name, text, notes="on")
    eventually(lambda: (counts := shown(client, id_)["notes"])["done"] == counts["total"] > 0)
    eventually(lambda: verified(client))
    return id_


def shown(client: httpx.Client, id_: str) -> dict[str, Any]:
    return client.get(f"/documents/{id_}").json()


def verified(client: httpx.Client) -> bool:
    return bool(client.get("/index/verify", params={"files": True}).json()["ok"])


def named(client: httpx.Client, query: str) -> list[str]:
    """The documents that words alone find."""
    return [passage["document_id"] for passage in search(client, query, "lexical")]


@pytest.fixture(scope="module")
def lamp(rag: Service) -> str:
    """The id of a document with notes, beside one without."""
    with connect(rag) as client:
        put(client, "others.txt", "\n\n".join(OTHERS))
        return put_noted(client, "lamp.txt", LAMP)


def test_a_document_is_found_by_its_note_which_is_never_shown(client: httpx.Client, lamp: str) -> None:
    assert shown(client, lamp)["notes"] == {"done": 1, "total": 1, "kept": 1, "error": None}
    assert [d["notes"] for d in client.get("/documents").json()["documents"] if d["filename"] == "others.txt"] == [None]
    assert named(client, ONLY_IN_NOTE) == [lamp]
    for mode in ("lexical", "hybrid", "dense"):
        passages = search(client, ONLY_IN_NOTE, mode)
        assert (passages[0]["document_id"], passages[0]["text"]) == (lamp, LAMP)
        assert not [word for word in ONLY_IN_NOTE.split() if word in json.dumps(passages)]


def test_a_changed_choice_takes_the_notes_out_and_brings_them_back(
    client: httpx.Client, lamp: str, stand_in: StandIn
) -> None:
    calls, with_note = list(stand_in.note_calls), search(client, ONLY_IN_NOTE)[0]["score"]
    assert put(client, "lamp.txt", LAMP, notes="off") == lamp
    assert shown(client, lamp)["notes"] is None
    eventually(lambda: named(client, ONLY_IN_NOTE) == [] and verified(client))
    [score] = [p["score"] for p in search(client, ONLY_IN_NOTE) if p["document_id"] == lamp]
    assert score < with_note
    assert put_noted(client, "lamp.txt", LAMP) == lamp
    assert named(client, ONLY_IN_NOTE) == [lamp]
    assert stand_in.note_calls == calls


@pytest.mark.parametrize("value", ["maybe", "ON", "true"])
def test_another_choice_than_on_and_off_is_refused(client: httpx.Client, value: str) -> None:
    response = client.post("/documents", files={"file": ("a.txt", b"refused")}, data={"notes": value})
    assert response.status_code == 400, response.text
    assert "notes" in response.json()["error"]["message"]
    assert "refused" not in client.get("/documents").text


def test_a_new_index_has_the_notes_too(client: httpx.Client, lamp: str, stand_in: StandIn) -> None:
    calls, before = list(stand_in.note_calls), search(client, ONLY_IN_NOTE)
    assert client.post("/index/rebuild").json()["state"] == "rebuilding"
    wait_for_index(client)
    assert verified(client)
    assert named(client, ONLY_IN_NOTE) == [lamp]
    assert search(client, ONLY_IN_NOTE) == before
    assert stand_in.note_calls == calls


def test_notes_come_back_from_the_trash_and_are_purged_with_it(client: httpx.Client, stand_in: StandIn) -> None:
    text, query = sentence(20), "day half over"
    tide = put_noted(client, "tide.txt", text)
    assert named(client, query) == [tide]
    client.delete(f"/documents/{tide}").raise_for_status()
    assert named(client, query) == []
    assert wait(client, client.post(f"/trash/{tide}/restore").json()["job_id"])["state"] == "indexed"
    eventually(lambda: named(client, query) == [tide])
    assert stand_in.note_calls.count(text) == 1
    client.delete(f"/documents/{tide}").raise_for_status()
    client.delete(f"/trash/{tide}").raise_for_status()
    assert named(client, query) == []
    eventually(lambda: verified(client))
    # Nothing is left of it: the model is asked anew.
    assert put_noted(client, "tide.txt", text) == tide
    assert stand_in.note_calls.count(text) == 2


def test_a_backup_holds_the_notes_and_a_lost_index_gets_them_back(
    client: httpx.Client, lamp: str, stand_in: StandIn, env: dict[str, str], tmp_path: Path
) -> None:
    put(client, "off.txt", sentence(30), notes="off")
    archive = client.get("/backup").content
    calls = stand_in.note_calls.count(LAMP)
    env = env | {"RAG_DATA_DIR": str(tmp_path / "data"), "RAG_NOTES": "on"}
    for life in (1, 2):
        with start_service("services.rag", env) as rag, connect(rag) as other:
            if life == 1:
                assert other.post("/restore", content=archive).status_code == 200
            eventually(lambda: other.get("/jobs", params={"state": "open"}).json()["jobs"] == [])
            eventually(lambda: len(named(other, ONLY_IN_NOTE)) == 1 and verified(other))
            found = {d["filename"]: d["notes"] for d in other.get("/documents").json()["documents"]}
            assert found["lamp.txt"]["kept"] == 1
            assert found["off.txt"] is None
            # What has no choice of its own has notes here.
            eventually(lambda: named(other, "day half over") != [])
        for path in (tmp_path / "data").glob("lexical*"):
            path.unlink()
    assert stand_in.note_calls.count(LAMP) == calls
    assert sentence(30) not in stand_in.note_calls


def ask(client: httpx.Client, question: str) -> dict[str, Any]:
    response = client.post("/rag/invoke", json={"input": {"question": question}})
    assert response.status_code == 200, response.text
    output: dict[str, Any] = response.json()["output"]
    return output


def test_a_question_is_answered_at_once_and_the_note_made_afterwards(
    client: httpx.Client, lamp: str, stand_in: StandIn
) -> None:
    text = sentence(40)
    stand_in.go.clear()
    try:
        id_ = put(client, "long.txt", text, notes="on")
        eventually(lambda: text in stand_in.note_calls)
        assert ask(client, "How often is the Fresnel assembly polished?")["answerable"]
        interrupted = 'docduet_rag_notes_total{result="interrupted"} '
        eventually(lambda: interrupted in client.get("/metrics").text)
        assert shown(client, id_)["notes"] == {"done": 0, "total": 1, "kept": 0, "error": None}
    finally:
        stand_in.go.set()
    eventually(lambda: shown(client, id_)["notes"]["kept"] == 1)
    assert stand_in.note_calls.count(text) == 2


def test_a_note_is_neither_read_by_the_model_that_answers_nor_quoted(
    client: httpx.Client, lamp: str, stand_in: StandIn
) -> None:
    output = ask(client, "How often do workers wipe the big bulb?")
    assert output["citations"]
    for citation in output["citations"]:
        assert citation["document_id"] == lamp
        assert citation["quote"] in LAMP
    # What only the note says is borne out by nothing.
    assert "glassware.[?]" in output["answer"]
    assert LAMP in stand_in.questions[-1]
    assert not [prompt for prompt in stand_in.questions if "scrubbing" in prompt]
