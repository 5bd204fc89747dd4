"""An answer that the model all but refused, against a stand-in that tells how it might have begun."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.doubt import doubt, names_with_i, refuses
from tests.rag.conftest import LEASES, rag_env, upload, wait
from tests.support.http_stand_in import events, models, serving
from tests.support.pdfs import make_pdf
from tests.support.servers import start_service

QUESTION = "What is the hard limit of a lease?"
VAGUE = "When does a hard limit end?"  # search is less sure of the same page
ANSWER = "The hard limit of a lease is 2 hours."


@pytest.mark.parametrize(
    ("first", "language", "expected"),
    [
        ({"I": 0.3, "The": 0.7}, "en", 0.3),
        ({"I don": 0.2, "Sorry": 0.1, "In": 0.7}, "en", 0.2),
        ({"我不知道": 0.2, "不知": 0.1, "不": 0.6, "我": 0.1}, "zh", 0.3),
        ({"It": 1.0}, "en", 0.0),
        ({"不可": 1.0}, "zh", 0.0),
        ({"": 0.5, " ": 0.5}, "zh", 0.0),
        ({}, "en", 0.0),
    ],
)
def test_doubt_is_the_share_of_the_openings_of_a_refusal(
    first: dict[str, float], language: Any, expected: float
) -> None:
    assert math.isclose(doubt(first, language), expected, abs_tol=1e-9)


@given(st.dictionaries(st.text(max_size=8), st.floats(0, 1), max_size=20), st.sampled_from(["zh", "en"]))
def test_doubt_is_no_more_than_all_there_is(first: dict[str, float], language: Any) -> None:
    assert 0 <= doubt(first, language) <= sum(first.values()) + 1e-9


@pytest.mark.parametrize(
    ("doubted", "relevance", "threshold", "expected"),
    [
        (0.06, 0.5, 0.05, True),
        (0.04, 0.5, 0.05, False),
        (0.06, 0.9, 0.05, False),  # 1 to 16 against 9 to 19
        (0.04, 0.3, 0.05, True),
        (0.0, 0.0, 0.05, False),  # nothing is known
        (0.6, 1.0, 0.05, True),  # it is likelier than not
        (0.4, 1.0, 0.05, False),
        (1.0, 0.1, 1.0, False),
    ],
)
def test_hesitation_weighs_against_what_search_thinks(
    doubted: float, relevance: float, threshold: float, expected: bool
) -> None:
    assert refuses(doubted, relevance, threshold) is expected


@given(*[st.floats(0, 1)] * 3, st.floats(0.001, 1))
def test_more_hesitation_and_less_relevance_never_answer_more(
    doubted: float, more: float, relevance: float, threshold: float
) -> None:
    if refuses(min(doubted, more), relevance, threshold):
        assert refuses(max(doubted, more), relevance, threshold)
        assert refuses(min(doubted, more), relevance * 0.9, threshold)


def test_names_that_begin_with_i_are_found_once() -> None:
    assert names_with_i(["Iqbal met Indira. I, Iqbal", "in 租约 Iqbal的 McIver"]) == ["Indira", "Iqbal"]


@dataclass
class StandIn:
    """Answers ``ANSWER``, and tells that it might have begun with these texts."""

    first: dict[str, float] = field(default_factory=dict)
    names: bool = False  # each character is a token
    refuses: bool = False  # a server that knows no logprobs
    asked: list[dict[str, Any]] = field(default_factory=list)

    def answers(self, path: str, body: Any) -> tuple[int, object]:
        if body is None:
            return 200, models()
        if path.endswith("/tokenize"):
            text = str(body.get("prompt", body.get("messages")))
            return 200, {"count": len(text) if self.names else 1 + len(text) // 8, "max_model_len": 8192}
        self.asked.append(body)
        if body.get("logprobs") and self.refuses:
            return 400, {"error": {"message": "logprobs is not supported", "type": "x"}}
        choice: dict[str, Any] = {"index": 0, "delta": {"content": ANSWER}, "finish_reason": "stop"}
        if body.get("logprobs"):
            top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in self.first.items()]
            token = {"token": "The", "logprob": -0.1, "bytes": None, "top_logprobs": top}
            choice["logprobs"] = {"content": [token]}
        return 200, events(choice)


@pytest.fixture(scope="module")
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture(scope="module")
def client(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp("doubt")
    with (
        serving(stand_in.answers) as url,
        start_service("services.rag", rag_env(url, folder / "data")) as rag,
        httpx.Client(base_url=rag.url, timeout=30, trust_env=False) as client,
    ):
        page = f"{LEASES} Iqbal wrote it."
        assert wait(client, upload(client, make_pdf(folder / "manual.pdf", [page]))["job_id"])["state"] == "indexed"
        yield client


def ask(client: httpx.Client, question: str = QUESTION) -> dict[str, Any]:
    response = client.post("/rag/invoke", json={"input": {"question": question}})
    assert response.status_code == 200, response.text
    output: dict[str, Any] = response.json()["output"]
    return output


@pytest.mark.parametrize(
    ("first", "names", "question", "answered"),
    [
        ({"The": 0.97, "I": 0.03}, False, QUESTION, True),
        ({"The": 0.97, "I": 0.03}, False, VAGUE, False),
        ({"The": 0.9995, "I": 0.0005}, False, VAGUE, True),
        ({"The": 0.9, "I": 0.1}, False, QUESTION, False),
        ({"The": 0.9, "I": 0.1}, True, QUESTION, True),  # it may have begun with Iqbal
        ({"The": 0.9}, False, QUESTION, True),
        ({}, False, QUESTION, True),
    ],
)
def test_an_answer_that_was_all_but_refused_is_refused(
    client: httpx.Client, stand_in: StandIn, first: dict[str, float], names: bool, question: str, answered: bool
) -> None:
    stand_in.first, stand_in.names = first, names
    output = ask(client, question)
    assert output["answerable"] is answered
    assert output["answer"] == (f"{ANSWER}[1]" if answered else "I don't know.")


def test_a_server_that_tells_no_probabilities_is_asked_without_them(client: httpx.Client, stand_in: StandIn) -> None:
    stand_in.first, stand_in.refuses = {"I": 0.9}, True
    stand_in.asked.clear()
    try:
        assert [ask(client)["answer"] for _ in range(2)] == [f"{ANSWER}[1]"] * 2
        assert [bool(body.get("logprobs")) for body in stand_in.asked] == [True, False, False]
    finally:
        stand_in.refuses = False
