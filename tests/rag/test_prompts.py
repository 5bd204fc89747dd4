import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.prompts import accept_condensed, answer_messages, condense_messages, is_refusal, language_of

HISTORY = [("租约的软限制是多久？", "软限制是 90 秒。")]


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("租约是什么？", "zh"),
        ("What is a lease?", "en"),
        ("HDFS 是什么", "zh"),
        ("What does “租约” mean?", "en"),
        ("", "en"),
    ],
)
def test_language_follows_the_question(question: str, language: str) -> None:
    assert language_of(question) == language


@pytest.mark.parametrize("text", ["我不知道", "我不知道。", "抱歉，我不知道答案。", "I don't know.", "I do not know"])
def test_refusals_are_recognised(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["硬限制是 2 小时。", "The limit is 2 hours.", "知道的人不多。", ""])
def test_answers_are_not_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_the_head_of_the_prompt_does_not_depend_on_the_question() -> None:
    passages = [("a.pdf", 1, "甲"), ("b.pdf", 2, "乙")]
    one, two = answer_messages("甲是什么？", passages), answer_messages("乙是什么？", passages)
    assert one[0] == two[0]
    assert one[-1] == ("human", "甲是什么？")


def test_condensing_sees_the_history_and_the_question() -> None:
    text = condense_messages("那它的硬限制呢？", HISTORY)[-1][1]
    assert "软限制是 90 秒" in text
    assert "那它的硬限制呢？" in text


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("租约的硬限制是多久？", "租约的硬限制是多久？"),
        ("改写：租约的硬限制是多久？\n解释：……", "租约的硬限制是多久？"),
        ("“租约的硬限制是多久？”", "租约的硬限制是多久？"),
        ("硬限制是 2 小时。", "租约的软限制是多久？ 那它的硬限制呢？"),
        ("", "租约的软限制是多久？ 那它的硬限制呢？"),
        ("问" * 500 + "？", "租约的软限制是多久？ 那它的硬限制呢？"),
    ],
)
def test_only_a_question_is_accepted_as_standalone(reply: str, expected: str) -> None:
    assert accept_condensed(reply, "那它的硬限制呢？", HISTORY) == expected


@given(st.text(max_size=200))
def test_accepting_a_reply_never_fails_and_never_gives_nothing(reply: str) -> None:
    assert accept_condensed(reply, "那它呢？", HISTORY).strip()
