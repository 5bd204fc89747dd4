import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.conflicts import conflict, untold
from services.rag.parts import MAX_PARTS, leaning, parts
from services.rag.passages import Passage
from services.rag.prompts import (
    RULES,
    answer_messages,
    disagreement,
    is_refusal,
    language_of,
    name,
    neutral,
)
from services.rag.smalltalk import small_talk

HISTORY = [("租约的软限制是多久？", "软限制是 90 秒。")]


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("租约是什么？", "zh"),
        ("What is a lease?", "en"),
        ("HDFS 是什么", "zh"),
        ("What does “租约” mean?", "en"),
        ("What does 租约 mean in the handbook?", "en"),
        ("HDFS NameNode heartbeat interval 是多少", "zh"),
        ("Explain 数据块 and 副本", "en"),
        ("「lease」是什麼意思？", "zh"),
        ("NameNode 心跳", "zh"),
        ("會議室最多容納多少人？", "zh"),
        ("", "en"),
    ],
)
def test_language_follows_the_question(question: str, language: str) -> None:
    assert language_of(question) == language


@pytest.mark.parametrize(
    "text",
    [
        "我不知道",
        "我不知道。",
        "抱歉，我不知道答案。",
        "I don't know.",
        "I do not know",
        "**I don’t know**",
        "I'm sorry, but I don't know.",
        "The documents do not state the price. The limit is 5 days.",
        "There is no price in the documents.",
        "没有提到。",
        "没有相关信息。",
        "未提供该信息，我不知道。",
        "未提到租约的软限制。",
        "根据资料，没有提到。",
        "文件中未说明价格。",
        "资料里没有答案。",
        "很抱歉，资料中没有相关内容。",
    ],
)
def test_refusals_are_recognised(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "硬限制是 2 小时。",
        "The limit is 2 hours.",
        "知道的人不多。",
        "",
        "没有提供发票的，不予报销。",
        "没有提供发票的罚款9000元。",
        "未说明期限的合同有效期为9年。",
        "没有说明书时，可致电客服。",
        "未提供材料者取消资格。",
        "不知道密码的，请联系管理员。",
        "没有相关经验的，不予录用。",
    ],
)
def test_answers_are_not_refusals(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize("piece", ["-", "。", "“", "资料", "没有提到", "sorry ", "我不", " "])
def test_whether_it_is_a_refusal_is_told_at_once(piece: str) -> None:
    begun = time.process_time()
    assert not is_refusal(piece * 20_000)
    assert language_of("“" * 8_000 + piece) in RULES
    assert time.process_time() - begun < 1


def passage(text: str, filename: str = "a.pdf", page: int = 1, label: str = "") -> Passage:
    return Passage(filename, filename, page, 0, text, 0.9, label)


def test_the_head_of_the_prompt_does_not_depend_on_the_question() -> None:
    passages = [passage("甲"), passage("乙", "b.pdf", 2)]
    one, two = answer_messages("甲是什么？", passages), answer_messages("乙是什么？", passages, HISTORY)
    assert one[0] == two[0]
    assert one[0][1].startswith(RULES["zh"])
    assert one[-1] == ("human", "甲是什么？")
    assert two[1:-1] == [("human", HISTORY[0][0]), ("ai", HISTORY[0][1])]


def test_a_passage_tells_its_document_and_place() -> None:
    head = answer_messages("What?", [passage("甲", "手册.pdf", 7), passage("乙", "plan.xlsx", 2, "Sheet1, row 5")])[0][
        1
    ]
    assert '<document file="手册.pdf" place="page 7">\n甲\n</document>' in head
    assert '<document file="plan.xlsx" place="Sheet1, row 5">\n乙\n</document>' in head


CONTROL_WORDS = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]", "<<SYS>>", "</s>", "<start_of_turn>")


@given(
    st.lists(
        st.one_of(
            st.sampled_from([*CONTROL_WORDS, "</document>", "<document>", '"', "\n", "\u200b"]), st.text(max_size=5)
        )
    )
)
def test_a_document_cannot_leave_its_marks(pieces: list[str]) -> None:
    text = "".join(pieces)
    head = answer_messages("What?", [passage(text, filename=text, label=text)])[0][1].removeprefix(RULES["en"])
    assert head.count("<document ") == head.count("</document>") == 1
    assert head.endswith("\n</document>")
    assert not any(word in head for word in CONTROL_WORDS)
    assert head.count('"') - text.count('"') <= 4  # the name and the place bring none of their own
    assert "\u200b" not in head


@pytest.mark.parametrize(
    "text", ["a < b and b > c", "x |> f <| y", "[1] 见第 3 章", "<p>hello</p>", "if (a<b) { return a>>1; }"]
)
def test_ordinary_text_is_read_nearly_as_it_stands(text: str) -> None:
    assert neutral(text).replace(" ", "") == text.replace(" ", "")


@given(st.text(max_size=300))
def test_a_name_is_one_short_line(text: str) -> None:
    shown = name(text)
    assert len(shown) <= 80
    assert not set(shown) & set('\n\r<>"')


# What a message asks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "questions"),
    [
        ("租约的软限制是多久？数据块有多大？", ["租约的软限制是多久？", "数据块有多大？"]),
        ("How long is a lease? How large is a block?", ["How long is a lease?", "How large is a block?"]),
        ("1. 租约多久？\n2. 数据块多大？", ["租约多久？", "数据块多大？"]),
        ("- How long is a lease?\n- How large is a block?", ["How long is a lease?", "How large is a block?"]),
        ("租约的软限制和硬限制分别是多久？", None),
        ("What is a lease", None),
        ("I have the H2 with firmware 3. How do I reset it? How long does the battery last?", None),
        ("真的吗？？", None),
        ("", None),
        ("a1？" * (MAX_PARTS + 1), None),
        ("弹出“确定要删除吗？”怎么办？", None),
        ('What does "Are you sure?" mean?', None),
        ("《为什么？》的作者是谁？", None),
        ("https://a.b/c?d=1 是什么？", None),
        ('What happens on "Delete file? (y/n)"?', None),
        ("What does `ls ?; rm ?` do?", None),
        ("提示「是否保存？」时选哪个？多久超时？", ["提示「是否保存？」时选哪个？", "多久超时？"]),
        ("What is at http://a.b/c? How large is it?", ["What is at http://a.b/c?", "How large is it?"]),
        ('How wide is the 5" pipe? How wide is the 6" pipe?', ['How wide is the 5" pipe?', 'How wide is the 6" pipe?']),
    ],
)
def test_the_questions_of_a_message(message: str, questions: list[str] | None) -> None:
    assert parts(message) == (questions or [message])


@given(st.text(alphabet='ab租约？?。.\n 1、“”《》"`:/', max_size=60))
def test_parts_lose_no_question(message: str) -> None:
    found = parts(message)
    assert 1 <= len(found) <= MAX_PARTS
    assert all(part in message for part in found)


@pytest.mark.parametrize(
    ("part", "does"),
    [
        ("数据块有多大？", False),
        ("它有多大？", True),
        ("那硬限制呢？", True),
        ("How large is a block?", False),
        ("And why?", True),
    ],
)
def test_a_part_that_leans_on_the_one_before(part: str, does: bool) -> None:
    assert leaning(["租约的软限制是多久？", part], 1) is does
    assert not leaning([part, "租约的软限制是多久？"], 0)


@pytest.mark.parametrize(
    "message",
    [
        "hello",
        "Hello!",
        "你好",
        "您好！",
        "thanks",
        "Thank you very much.",
        "谢谢",
        "謝謝你",
        "你好，谢谢！",
        "bye",
        "👋 hi",
        "你是谁？",
    ],
)
def test_small_talk_gets_a_reply(message: str) -> None:
    for language in ("zh", "en"):
        assert small_talk(message, language)


@pytest.mark.parametrize(
    "message",
    [
        "你好，租约是多久？",
        "thanks, and the hard limit?",
        "hello world program",
        "谢谢这个词怎么写",
        "what",
        "",
        "😀",
        "hi" * 40,
    ],
)
def test_a_question_is_no_small_talk(message: str) -> None:
    assert small_talk(message, "en") is None


# Documents that disagree ---------------------------------------------------------------------------------------------

OLD = "The filter of the pump must be replaced every 6 months. It is grey."
NEW = "The filter of the pump must be replaced every 9 months. It is grey."


def test_two_editions_that_differ_in_a_figure_disagree() -> None:
    found = conflict(
        "How often must the pump filter be replaced?", [passage(OLD, "2019.pdf"), passage(NEW, "2023.pdf")]
    )
    assert found
    assert {s.quote for s in found} == {OLD[:55], NEW[:55]}
    assert untold("Every 9 months.", found)
    assert not untold("Every 6 months in 2019.pdf, every 9 months in 2023.pdf.", found)
    line = disagreement(*((s.passage.filename, s.quote) for s in found), "en")
    assert "2019.pdf" in line
    assert "9 months" in line


@pytest.mark.parametrize(
    ("question", "one", "other"),
    [
        ("How often must the pump filter be replaced?", (OLD, "a.pdf"), (NEW, "a.pdf")),  # one document
        (
            "What colour is the filter of the pump?",
            (OLD, "a.pdf"),
            ("The filter of the pump is green.", "b.pdf"),
        ),  # no figure
        (
            "How long does the battery of the H2 last?",
            ("The battery of the H2 lasts 26 months.", "a"),
            ("The battery of the X9 lasts 12 months.", "b"),
        ),
        (
            "What is the limit in version 2.1?",
            ("In version 2.1 the limit is 30 MB.", "a"),
            ("In version 2.0 the limit is 20 MB.", "b"),
        ),
        ("冷库的温度是多少？", ("冷库的温度是零下 18 度。", "a"), ("冷库的温度是零下 18 度，每 2 小时记录一次。", "b")),
        ("Who sings?", (OLD, "a.pdf"), (NEW, "b.pdf")),
    ],
)
def test_what_is_no_disagreement(question: str, one: tuple[str, str], other: tuple[str, str]) -> None:
    assert conflict(question, [passage(*one), passage(*other)]) is None


@pytest.mark.parametrize(
    ("question", "one", "other"),
    [
        ("开始日期？", "开始日期为2024年5月1日。", "开始日期为2024年05月01日。"),
        ("limit", "The limit is 50%.", "The limit is 50 %."),
        ("limit", "The limit is ５０ items.", "The limit is 50 items."),
        ("limit", "The limit is 5.0 items.", "The limit is 5 items."),
        ("时间？", "时间为10:00。", "时间为10：00。"),
        ("宽限期多久？", "宽限期为三十天。", "宽限期为30天。"),
        (
            "What is the limit of a lease?",
            "The limit of a lease in days is 7 days.",
            "The limit of a lease in days is 1 week.",
        ),
        ("What is the hard limit?", "3.1 The hard limit is 2 hours.", "4.2 The hard limit is 2 hours."),
        ("硬限制是多少？", "1. 硬限制是2小时。", "3. 硬限制是2小时。"),
        ("What is the warranty?", "The warranty is 24 months (section 3).", "The warranty is 24 months (section 5)."),
        ("保修期多久？", "保修期为24个月，见第3页。", "保修期为24个月，见第12页。"),
        ("What is the revenue?", "Revenue in 2022 was 5 million.", "Revenue in 2023 was 6 million."),
        (
            "How long is the window?",
            "The long window of Q1 lasts for about 5 days.",
            "The long window of Q2 lasts for about 7 days.",
        ),
    ],
)
def test_the_same_in_other_characters_and_another_year_are_no_disagreement(question: str, one: str, other: str) -> None:
    assert conflict(question, [passage(one, "a.pdf"), passage(other, "b.pdf")]) is None


@pytest.mark.parametrize(
    ("question", "one", "other"),
    [
        ("宽限期多久？", "宽限期为30天。", "宽限期为60天。"),
        ("宽限期多久？", "1. 宽限期为三十天。", "3. 宽限期为60天。"),
        ("When was it founded?", "The firm was founded in 1998.", "The firm was founded in 1999."),
        ("When does the contract end?", "The contract ends on May 1, 2024.", "The contract ends on June 2, 2025."),
        ("合同何时到期？", "合同于2024年5月1日到期。", "合同于2025年6月2日到期。"),
        ("What is the temperature?", "The temperature is -5 °C.", "The temperature is 5 °C."),
    ],
)
def test_other_figures_of_the_same_thing_disagree(question: str, one: str, other: str) -> None:
    assert conflict(question, [passage(one, "a.pdf"), passage(other, "b.pdf")])


def test_a_figure_is_told_in_whatever_characters() -> None:
    found = conflict("宽限期多久？", [passage("宽限期为30天。", "a.pdf"), passage("宽限期为60天。", "b.pdf")])
    assert found
    assert untold("三十天。", found)
    assert not untold("a.pdf说三十天，b.pdf说六十天。", found)
