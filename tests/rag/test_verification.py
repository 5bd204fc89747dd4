"""The chain's last step: what is marked, what is noted at the end, what is left alone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_core.runnables.utils import AddableDict

from services.rag.metrics import Metrics
from services.rag.passages import Passage
from services.rag.verification import Verification

TEXT = "The soft limit of a lease is 90 seconds. 没有提供发票的，不予报销。"
NOTE = "\n(Nothing in the documents bears this out: I don't know.)"


def verified(text: str, question: str = "What is the limit?", *, ended: bool = False, **state: Any) -> dict[str, Any]:
    async def chunks() -> AsyncIterator[dict[str, Any]]:
        yield {"state": {"passages": [Passage("d", "a.pdf", 1, 0, TEXT, 0.9)], "standalone": question, **state}}
        for character in text:
            yield {"text": character}
        if ended:
            yield {"ended": True}

    async def run() -> dict[str, Any]:
        total: Any = AddableDict()
        async for chunk in Verification(Metrics()).verify(chunks()):
            total = total + chunk
        return dict(total)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "我不知道。",
        "I don't know. The passages do not mention it.",
        "抱歉，我不知道。资料中没有提到价格。",
        "Who won?\nI don't know.\n\nWho lost?\nI don't know.",
    ],
)
def test_a_plain_refusal_stays_as_it_is(text: str) -> None:
    output = verified(text)
    assert (output["answer"], output["answerable"]) == (text, False)
    assert output["citations"] == output["unsupported"] == []


@pytest.mark.parametrize("refusal", ["I don't know.", "The documents do not state the price."])
def test_what_comes_after_a_refusal_is_judged_as_any_claim(refusal: str) -> None:
    output = verified(f"{refusal} The soft limit is 90 seconds.")
    assert output["answer"] == f"{refusal} The soft limit is 90 seconds.[1]"
    assert output["answerable"] is True
    output = verified(f"{refusal} The soft limit is 80 seconds.")
    assert output["answer"] == f"{refusal} The soft limit is 80 seconds.[?]{NOTE}"
    assert output["answerable"] is False


def test_a_rule_that_begins_as_a_refusal_does_is_a_claim() -> None:
    assert verified("没有提供发票的，不予报销。", "没有发票怎么办？")["answer"] == "没有提供发票的，不予报销。[1]"
    output = verified("未说明期限的合同有效期为9年。租约是8年。", "租约多久？")
    assert len(output["unsupported"]) == 2


@pytest.mark.parametrize("text", ["Hello!", "Sure. Let me know if you need more.", "Which limit do you mean?"])
def test_an_answer_that_claims_nothing_has_no_note(text: str) -> None:
    output = verified(text)
    assert (output["answer"], output["answerable"]) == (text, False)


def test_an_answer_that_was_ended_before_it_said_anything_says_so() -> None:
    assert verified("You answer ", ended=True)["answer"] == "You answer …\nI don't know."
    assert verified("The soft limit is 90 seconds. My rules", ended=True)["answer"].endswith("[1] My rules[?]")


def test_an_answer_of_claims_without_a_source_has_one() -> None:
    assert verified("The hotel has 40 rooms.")["answer"] == f"The hotel has 40 rooms.[?]{NOTE}"
    assert verified("The soft limit is 90 seconds. It has 40 rooms.")["answer"].endswith("[1] It has 40 rooms.[?]")
