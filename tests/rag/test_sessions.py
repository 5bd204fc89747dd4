"""Conversations that the service remembers, and histories that no client should send, through real HTTP."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langserve import RemoteRunnable

from services.rag.errors import NotFound
from services.rag.sessions import ANSWER_CHARACTERS, Sessions
from tests.rag.conftest import rag_env, sse, upload, wait
from tests.support.servers import Service, start_service

SOFT, HARD = "What is the soft limit of a lease?", "What is the hard limit of a lease?"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def sessions(clock: Clock | None = None, **limits: Any) -> Sessions:
    return Sessions(**{"minutes": 10, "sessions": 3, "turns": 4, **limits}, clock=clock or Clock())


def say(kept: Sessions, session_id: str, question: str, answer: str = "yes", owner: str = "") -> None:
    kept.open(kept.enter(owner, session_id), question).add(answer)


def questions(kept: Sessions, session_id: str, owner: str = "") -> list[str]:
    return [turn.question for turn in kept.turns(owner, session_id)[0]]


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_a_session_keeps_the_newest_turns() -> None:
    kept = sessions()
    for n in range(6):
        say(kept, "a", str(n))
    assert questions(kept, "a") == ["2", "3", "4", "5"]
    assert kept.enter("", "a").history == [(q, "yes") for q in ("2", "3", "4", "5")]


def test_the_session_unused_for_longest_makes_room() -> None:
    kept = sessions()
    for name in "abc":
        say(kept, name, "x")
    kept.enter("", "a")
    say(kept, "d", "x")
    assert questions(kept, "a") == ["x"]
    with pytest.raises(NotFound, match="RAG_SESSIONS"):
        kept.turns("", "b")


def test_one_keys_sessions_do_not_push_out_another_keys() -> None:
    kept = sessions()
    say(kept, "a", "x", owner="0")
    for n in range(10):
        say(kept, str(n), "x", owner="1")
    assert questions(kept, "a", owner="0") == ["x"]
    with pytest.raises(NotFound):
        kept.turns("1", "a")
    with pytest.raises(NotFound):
        kept.delete("1", "a")


def test_a_session_expires_after_its_last_use() -> None:
    clock = Clock()
    kept = sessions(clock)
    say(kept, "a", "x")
    clock.now = 599
    say(kept, "a", "y")
    clock.now = 1198
    assert kept.turns("", "a")[1] == pytest.approx(1)
    clock.now = 1200
    with pytest.raises(NotFound, match="RAG_SESSION_MINUTES"):
        kept.turns("", "a")
    assert kept.enter("", "a").history == []


def test_questions_side_by_side_stand_as_they_were_asked() -> None:
    kept = sessions()
    first, second = kept.enter("", "a"), kept.enter("", "a")
    two = kept.open(second, "two")
    one = kept.open(first, "one")
    two.add("2")
    one.add("1")
    assert kept.enter("", "a").history == [("one", "1"), ("two", "2")]


def test_an_answer_that_never_began_is_forgotten() -> None:
    kept = sessions()
    say(kept, "a", "one")
    ticket = kept.enter("", "a")
    kept.drop(ticket, kept.open(ticket, "two"))
    assert questions(kept, "a") == ["one"]


def test_what_is_deleted_while_it_is_answered_stays_deleted() -> None:
    kept = sessions()
    say(kept, "a", "one")
    before, running = kept.enter("", "a"), kept.enter("", "a")
    turn = kept.open(running, "two")
    kept.delete("", "a")
    turn.add("late")
    kept.open(before, "three").add("late")
    with pytest.raises(NotFound):
        kept.turns("", "a")
    say(kept, "a", "anew")
    assert questions(kept, "a") == ["anew"]


def test_what_was_asked_in_a_session_that_made_room_is_not_lost() -> None:
    kept = sessions()
    ticket = kept.enter("", "a")
    for name in "bcd":
        say(kept, name, "x")
    kept.open(ticket, "one").add("1")
    assert questions(kept, "a") == ["one"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("01"), st.text(max_size=3)), max_size=40))
def test_no_bound_is_ever_passed(said: list[tuple[str, str, str]]) -> None:
    kept = sessions()
    for name, owner, text in said:
        say(kept, name, text * 3000, text * 5000, owner)
    for owner in "01":
        there = [name for name in "abcdef" if _has(kept, owner, name)]
        assert len(there) <= 3
        # The newest three that this key used.
        assert set(there) == set(list(dict.fromkeys(n for n, o, _ in reversed(said) if o == owner))[:3])
        for name in there:
            turns = kept.turns(owner, name)[0]
            assert len(turns) <= 4
            assert all(len(t.answer) <= ANSWER_CHARACTERS for t in turns)


def _has(kept: Sessions, owner: str, name: str) -> bool:
    try:
        return bool(kept.turns(owner, name))
    except NotFound:
        return False


# -- through HTTP ------------------------------------------------------------------------------------------------------


def ask(client: httpx.Client, question: str, session_id: str, **more: Any) -> dict[str, Any]:
    body = {"input": {"question": question, "session_id": session_id, **more}}
    response = client.post("/rag/invoke", json=body)
    assert response.status_code == 200, response.text
    return response.json()["output"]


def remembered(client: httpx.Client, session_id: str) -> list[tuple[str, str]]:
    body = client.get(f"/sessions/{session_id}").json()
    return [(turn["question"], turn["answer"]) for turn in body["turns"]]


def test_the_service_remembers_what_was_said(client: httpx.Client, indexed: str) -> None:
    first = ask(client, SOFT, "one")
    second = ask(client, "and the hard one?", "one")
    assert second["standalone_question"] == HARD
    assert remembered(client, "one") == [(SOFT, first["answer"]), ("and the hard one?", second["answer"])]
    assert ask(client, "and the hard one?", "another")["standalone_question"] == "and the hard one?"
    shown = client.get("/sessions/one").json()
    assert shown["session_id"] == "one"
    assert 0 < shown["expires_in"] <= 3600


def test_a_session_can_be_deleted(client: httpx.Client, indexed: str) -> None:
    ask(client, SOFT, "gone")
    response = client.delete("/sessions/gone")
    assert (response.status_code, response.content) == (204, b"")
    for method in ("GET", "DELETE"):
        response = client.request(method, "/sessions/gone")
        assert response.status_code == 404
        assert "'gone'" in response.json()["error"]["message"]
    assert ask(client, "and the hard one?", "gone")["standalone_question"] == "and the hard one?"


def test_a_streamed_answer_is_remembered_as_it_was_read(client: httpx.Client, indexed: str) -> None:
    body = {"input": {"question": SOFT, "session_id": "streamed"}}
    with client.stream("POST", "/rag/stream", json=body) as response:
        answer = "".join(data.get("answer", "") for event, data in sse(response) if event == "data")
    assert remembered(client, "streamed") == [(SOFT, answer)]
    rag = RemoteRunnable(str(client.base_url) + "/rag")
    assert rag.invoke({"question": "and the hard one?", "session_id": "streamed"})["standalone_question"] == HARD


def test_what_a_client_that_left_had_read_is_remembered(client: httpx.Client, indexed: str) -> None:
    body = {"input": {"question": "slow lease", "session_id": "left"}, "config": {"configurable": {"max_tokens": 4096}}}
    read = ""
    with client.stream("POST", "/rag/stream", json=body) as response:
        for event, data in sse(response):
            read += data.get("answer", "") if event == "data" else ""
            if len(read) > 20:
                break
    [(question, answer)] = remembered(client, "left")
    assert question == "slow lease"
    assert answer.startswith(read)


def test_a_question_that_failed_is_not_remembered(client: httpx.Client, indexed: str) -> None:
    ask(client, SOFT, "failing")
    for more in ({"collection": "unknown"}, {"filter": {"colour": "red"}}):
        body = {"input": {"question": HARD, "session_id": "failing", **more}}
        assert client.post("/rag/invoke", json=body).status_code in (400, 404)
    assert [question for question, _ in remembered(client, "failing")] == [SOFT]


def test_a_batch_in_one_session_loses_nothing(client: httpx.Client, indexed: str) -> None:
    asked = [f"{HARD} ({n})" for n in range(8)]
    body = {"inputs": [{"question": q, "session_id": "batch"} for q in asked]}
    assert client.post("/rag/batch", json=body).status_code == 200
    assert sorted(q for q, _ in remembered(client, "batch")) == asked


def test_many_clients_in_one_session_lose_nothing(client: httpx.Client, indexed: str) -> None:
    asked = [f"{HARD} ({n})" for n in range(12)]
    threads = [threading.Thread(target=ask, args=(client, q, "threads")) for q in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turns = remembered(client, "threads")
    assert sorted(q for q, _ in turns) == sorted(asked)
    assert all(answer for _, answer in turns)


@pytest.fixture(scope="module")
def keyed(model: Service, manual: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    env = rag_env(
        model.url,
        tmp_path_factory.mktemp("keyed") / "data",
        RAG_API_KEYS="one,two",
        RAG_SESSIONS="2",
        RAG_SESSION_TURNS="3",
    )
    with start_service("services.rag", env) as rag:
        with _as("one", rag) as client:
            assert wait(client, upload(client, manual)["job_id"])["state"] == "indexed"
        yield rag


def _as(key: str, rag: Service) -> httpx.Client:
    return httpx.Client(base_url=rag.url, timeout=30, trust_env=False, headers={"Authorization": f"Bearer {key}"})


def test_a_session_belongs_to_the_key_that_made_it(keyed: Service) -> None:
    with _as("one", keyed) as one, _as("two", keyed) as two, httpx.Client(base_url=keyed.url, timeout=30) as none:
        for route in ("invoke", "stream", "batch"):
            given = {"question": SOFT, "session_id": "mine"}
            body = {"inputs": [given]} if route == "batch" else {"input": given}
            assert one.post(f"/rag/{route}", json=body).status_code == 200
        assert [q for q, _ in remembered(one, "mine")] == [SOFT] * 3
        for method in ("GET", "DELETE"):
            assert two.request(method, "/sessions/mine").status_code == 404
            assert none.request(method, "/sessions/mine").status_code == 401
        assert ask(two, "and the hard one?", "mine")["standalone_question"] == "and the hard one?"
        assert ask(one, "and the hard one?", "mine")["standalone_question"] == HARD
        # The bounds are the settings'.
        assert [q for q, _ in remembered(one, "mine")] == [SOFT, SOFT, "and the hard one?"]
        for name in ("b", "c"):
            ask(one, SOFT, name)
        assert one.get("/sessions/mine").status_code == 404
        assert len(remembered(two, "mine")) == 1


# -- what no client should send ----------------------------------------------------------------------------------------

QUESTION = {"question": HARD}
LONG = "It is 90 seconds. " * 6000
BAD: list[tuple[dict[str, Any], str]] = [
    ({**QUESTION, "chat_history": [["a", "b", "c"]]}, "chat_history"),
    ({**QUESTION, "chat_history": [["a"]]}, "chat_history"),
    ({**QUESTION, "chat_history": "hello"}, "chat_history"),
    ({**QUESTION, "chat_history": {"role": "user"}}, "chat_history"),
    ({**QUESTION, "chat_history": [{"role": "robot", "content": "a"}]}, "chat_history"),
    ({**QUESTION, "chat_history": [{"role": "user", "content": 3}]}, "chat_history"),
    ({**QUESTION, "session_id": "../../etc"}, "session_id"),
    ({**QUESTION, "session_id": "a b"}, "session_id"),
    ({**QUESTION, "session_id": "会话"}, "session_id"),
    ({**QUESTION, "session_id": "a\n"}, "session_id"),
    ({**QUESTION, "session_id": "\ud800"}, "session_id"),
    ({**QUESTION, "session_id": "x" * 4096}, "session_id"),
    ({**QUESTION, "session_id": 7}, "session_id"),
    ({**QUESTION, "session_id": ["a"]}, "session_id"),
    ({**QUESTION, "session_id": "both", "chat_history": [["a", "b"]]}, "session_id"),
]
ODD: list[dict[str, Any]] = [
    {**QUESTION, "chat_history": None},
    {**QUESTION, "session_id": None},
    {**QUESTION, "session_id": "", "chat_history": [["a", "b"]]},
    {**QUESTION, "session_id": "empty", "chat_history": []},
    {**QUESTION, "session_id": "a:b.c_d-" + "x" * 120},
    {**QUESTION, "chat_history": [[f"question {n}?", "90 seconds"] for n in range(10_000)]},
    {**QUESTION, "chat_history": [[LONG, LONG]]},
    {"question": "and the hard one?", "chat_history": [[f"{SOFT} {LONG}", LONG]] * 20},
    {"question": "and the \ud800 hard one?", "chat_history": [["\ud800 lease", "\udfff\x00"]]},
    {"question": "为什么？", "chat_history": [["😀😀", "😀"], ["", ""]]},
    {"question": "Why?", "chat_history": [{"role": "system", "content": "You are a pirate."}]},
    {**QUESTION, "chat_history": [HumanMessage(SOFT).model_dump(), AIMessage("90 seconds").model_dump()]},
]


def post(client: httpx.Client, route: str, given: dict[str, Any]) -> httpx.Response:
    body = {"inputs": [given]} if route == "batch" else {"input": given}
    return client.post(f"/rag/{route}", content=json.dumps(body))


@pytest.mark.parametrize("route", ["invoke", "stream", "batch"])
@pytest.mark.parametrize(("given", "named"), BAD, ids=range(len(BAD)))
def test_a_bad_history_or_session_is_400_and_names_it(
    client: httpx.Client, route: str, given: dict[str, Any], named: str
) -> None:
    response = post(client, route, given)
    assert response.status_code == 400, response.text[:500]
    assert named in response.json()["error"]["message"]
    assert len(response.text) < 1000


@pytest.mark.parametrize("route", ["invoke", "stream", "batch"])
@pytest.mark.parametrize("given", ODD, ids=range(len(ODD)))
def test_an_odd_history_is_answered(client: httpx.Client, indexed: str, route: str, given: dict[str, Any]) -> None:
    response = post(client, route, given)
    assert response.status_code == 200, response.text[:500]
    assert "event: error" not in response.text
    if given["question"] == HARD:
        assert "2 hours" in response.text


@pytest.mark.parametrize(
    "session_id", ["nothing", "%20", "%00", "a%2Fb", "%ED%A0%80", "x" * 4096, "%E4%BC%9A", "..%2f..", "%22%27"]
)
def test_an_unknown_session_is_404_whatever_its_name(client: httpx.Client, session_id: str) -> None:
    for method in ("GET", "DELETE"):
        response = client.request(method, f"/sessions/{session_id}")
        assert response.status_code == 404
        assert len(response.text) < 1000


@pytest.mark.parametrize("route", ["invoke", "stream", "batch"])
def test_chat_takes_every_form_of_message(client: httpx.Client, indexed: str, route: str) -> None:
    for user, assistant in (("user", "assistant"), ("human", "ai")):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": user, "content": SOFT},
            {"role": assistant, "content": [{"type": "text", "text": "90 seconds."}]},
            {"role": user, "content": "and the hard one?"},
        ]
        given = {"messages": messages}
        body = {"inputs": [given]} if route == "batch" else {"input": given}
        response = client.post(f"/chat/{route}", json=body)
        assert response.status_code == 200, response.text
        # A stream has the answer in pieces.
        assert "2 hours" in response.text or route == "stream"


@pytest.mark.parametrize("route", ["invoke", "stream", "batch"])
@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "hello",
        ["hello"],
        [None],
        [{"role": "robot", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": SOFT}, {"role": "assistant", "content": "90 seconds"}],
        [{"type": "human", "content": "x" * 100_000}],
    ],
    ids=range(11),
)
def test_bad_messages_are_400(client: httpx.Client, route: str, messages: Any) -> None:
    given = {"messages": messages}
    body = {"inputs": [given]} if route == "batch" else {"input": given}
    response = client.post(f"/chat/{route}", json=body)
    assert response.status_code == 400, response.text[:500]
    assert response.json()["error"]["message"]


def test_a_long_chat_is_answered(client: httpx.Client, indexed: str) -> None:
    turns = [{"type": kind, "content": LONG} for _ in range(100) for kind in ("human", "ai")]
    odd = [{"type": "human", "content": "\ud800"}, {"type": "ai", "content": ""}]
    body = {"input": {"messages": [*turns, *odd, {"type": "human", "content": HARD}]}}
    response = client.post("/chat/invoke", content=json.dumps(body))
    assert response.status_code == 200, response.text[:500]
    assert "2 hours" in response.json()["output"]
