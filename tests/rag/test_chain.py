"""The chain with a search and a model that say what the test wants; the steps between them are the real ones."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import pytest

from services.rag.chain import Chain
from services.rag.config import Settings
from services.rag.metrics import Metrics
from services.rag.passages import Passage
from services.rag.prompts import RULES, Message
from services.rag.sessions import Sessions

TEXTS = {
    "lease.pdf": "The soft limit of a lease is 90 seconds. The hard limit of a lease is 2 hours.",
    "block.pdf": "A block of the store holds 256 MB.",
    "handbook-2019.pdf": "The filter of the pump must be replaced every 6 months.",
    "handbook-2023.pdf": "The filter of the pump must be replaced every 9 months.",
}
LEASE, BLOCK, OLD, NEW = (Passage(name, name, 1, 0, text, 0.9) for name, text in TEXTS.items())


class Search:
    def __init__(self, found: Mapping[str, Sequence[Passage]]) -> None:
        self._found = found
        self.queries: list[str] = []

    def search(self, query: str, k: int, **_: Any) -> list[Passage]:
        self.queries.append(query)
        return [p for word, passages in self._found.items() if word in query.lower() for p in passages]


class Model:
    context = 4096

    def __init__(self, reply: Callable[[str], str]) -> None:
        self._reply = reply
        self.prompts: list[Sequence[Message]] = []
        self.asked: list[int] = []

    async def model_name(self) -> str:
        return "m"

    async def count_text(self, text: str) -> int:
        return len(text.split())

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(text.split()) for _, text in messages)

    async def complete(self, messages: Sequence[Message], **_: Any) -> str:
        raise AssertionError("there is nothing to condense")

    async def stream(self, messages: Sequence[Message], *, max_tokens: int, **_: Any) -> AsyncGenerator[str, None]:
        self.prompts.append(messages)
        self.asked.append(max_tokens)
        for character in self._reply(messages[-1][1]):
            yield character


SEARCH = {"lease": [LEASE], "block": [BLOCK], "pump": [OLD, NEW]}


def ask(
    question: str, reply: Callable[[str], str], *, configurable: dict[str, Any] | None = None, **more: Any
) -> tuple[dict[str, Any], Search, Model]:
    search, model = Search(SEARCH), Model(reply)
    sessions = Sessions(minutes=1, sessions=1, turns=1)
    settings = Settings(refusal_threshold=0.1, _env_file=None)  # type: ignore[call-arg]
    chain = Chain(lambda: search, model, settings, Metrics(), sessions).build()  # type: ignore[arg-type, return-value]

    async def streamed() -> dict[str, Any]:
        total: Any = None
        async for chunk in chain.astream({"question": question, **more}, {"configurable": configurable or {}}):
            total = chunk if total is None else total + chunk
        return dict(total)

    return asyncio.run(streamed()), search, model


def answers(prompt: str) -> str:
    if "block" in prompt:
        return "256 MB."
    return "The hard limit is 2 hours." if "hard" in prompt else "90 seconds."


@pytest.mark.parametrize("message", ["hello", "你好", "thanks!", "谢谢"])
def test_small_talk_needs_neither_search_nor_model(message: str) -> None:
    output, search, model = ask(message, lambda _: "never", chat_history=[["How long is a lease?", "90 seconds."]])
    assert output["answer"].strip()
    assert (output["answerable"], output["citations"]) == (False, [])
    assert "don't know" not in output["answer"]
    assert "不知道" not in output["answer"]
    assert (search.queries, model.prompts) == ([], [])


def test_one_question_is_one_prompt_with_the_question_last() -> None:
    output, search, model = ask("What is the soft limit of a lease?", answers)
    assert search.queries == ["What is the soft limit of a lease?"]
    [messages] = model.prompts
    assert messages[-1] == ("human", "What is the soft limit of a lease?")
    assert output["answer"] == "90 seconds.[1]"


def test_each_question_of_a_message_is_answered_under_its_own_words() -> None:
    output, _, model = ask("What is the soft limit of a lease? How large is a block?", answers)
    assert output["answer"] == (
        "What is the soft limit of a lease?\n90 seconds.[1]\n\nHow large is a block?\n256 MB.[2]"
    )
    assert [c["filename"] for c in output["citations"]] == ["lease.pdf", "block.pdf"]
    # The second finds the first one's prompt in the engine's cache.
    one, two = model.prompts
    assert one[0] == two[0]


def test_a_part_that_is_not_there_is_refused_without_the_model() -> None:
    output, _, model = ask("Who won the race of 1903? How large is a block?", answers)
    assert output["answer"] == "Who won the race of 1903?\nI don't know.\n\nHow large is a block?\n256 MB.[1]"
    assert output["answerable"] is True
    assert len(model.prompts) == 1


def test_a_part_that_leans_is_searched_and_asked_with_the_one_before() -> None:
    _, search, model = ask("What is the soft limit of a lease? And the hard one?", answers)
    assert sorted(search.queries) == [
        "What is the soft limit of a lease?",
        "What is the soft limit of a lease? And the hard one?",
    ]
    assert "And the hard one?" in model.prompts[1][-1][1]
    assert "soft limit of a lease" in model.prompts[1][-1][1]


def test_a_part_that_leans_leaves_room_for_its_answer() -> None:
    message = f"What is the soft limit of a lease that is {'really ' * 600}old? And the hard one?"
    _, _, model = ask(message, answers, configurable={"max_tokens": 4096})
    assert len(model.prompts) == 2
    for messages, asked in zip(model.prompts, model.asked, strict=True):
        assert asyncio.run(model.count_tokens(messages)) + asked <= model.context


def test_a_claim_after_a_refusal_is_judged() -> None:
    said = "The documents do not state the price. The soft limit is 90 seconds. The hard limit is 9 hours."
    output, _, _ = ask("What is the soft limit of a lease?", lambda _: said)
    assert output["answer"] == said.replace(" The hard", "[1] The hard") + "[?]"
    assert output["answerable"] is True


def test_nothing_found_for_any_part_is_one_refusal() -> None:
    output, _, model = ask("Who won the race? Who lost the race?", answers)
    assert (output["answer"], output["answerable"]) == ("I don't know", False)
    assert model.prompts == []


def test_documents_that_disagree_are_both_quoted() -> None:
    output, _, _ = ask("How often must the pump filter be replaced?", lambda _: "Every 9 months.")
    assert "handbook-2019.pdf: “The filter of the pump must be replaced every 6 months.”" in output["answer"]
    assert {c["filename"] for c in output["citations"]} == {"handbook-2019.pdf", "handbook-2023.pdf"}


def test_an_answer_that_tells_both_versions_is_left_alone() -> None:
    said = "Every 6 months in handbook-2019.pdf. Every 9 months in handbook-2023.pdf."
    output, _, _ = ask("How often must the pump filter be replaced?", lambda _: said)
    assert "disagree" not in output["answer"]


def test_a_refusal_is_not_made_a_disagreement() -> None:
    output, _, _ = ask("How often must the pump filter be replaced?", lambda _: "I don't know.")
    assert (output["answer"], output["answerable"]) == ("I don't know.", False)


def test_a_model_that_reads_out_its_rules_is_stopped() -> None:
    output, _, _ = ask("What is the soft limit of a lease?", lambda _: RULES["en"] + " 90 seconds.")
    assert "Copy numbers" not in output["answer"]
    assert output["answerable"] is False
    assert "I don't know" in output["answer"]


def test_an_empty_reply_is_no_answer() -> None:
    output, _, _ = ask("What is the soft limit of a lease?", lambda _: "")
    assert (output["answer"].rstrip("."), output["answerable"]) == ("I don't know", False)


def test_history_that_has_nothing_to_do_with_the_question_is_not_read() -> None:
    history = [["Who sings in the evening opera?", "Nobody sings."]]
    _, _, model = ask("What is the soft limit of a lease?", answers, chat_history=history)
    assert "opera" not in str(model.prompts)
