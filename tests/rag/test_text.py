"""Pure text logic: reflow, sentences, chunks."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.documents.chunking import CHUNK_TOKENS, chunk, estimate_tokens, sentences
from services.rag.documents.reflow import clean, join, reflow

TEXT = st.text(alphabet=st.sampled_from("租约的限制是小时。！？；，.?! ab12\n“”()、-"), max_size=600)


def pieces(text: str) -> list[str]:
    return [text[s.start : s.end] for s in sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("软限制是 90 秒。硬限制是 2 小时！", ["软限制是 90 秒。", "硬限制是 2 小时！"]),
        ("他说：“完成了。”然后离开。", ["他说：“完成了。”", "然后离开。"]),
        ("Version 2.5 is out. It costs $3.50.", ["Version 2.5 is out.", "It costs $3.50."]),
        ("See example.com for more. Done", ["See example.com for more.", "Done"]),
        ("一行\n二行", ["一行", "二行"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


@given(TEXT)
def test_sentences_cover_the_text(text: str) -> None:
    assert "".join("".join(pieces(text)).split()) == "".join(text.split())


@given(TEXT, st.integers(8, 60))
def test_chunks_cover_the_text_in_order_within_the_limit(text: str, limit: int) -> None:
    spans = chunk(text, limit=limit, overlap=limit // 4)
    covered = {i for s in spans for i in range(s.start, s.end)}
    assert all(text[i].isspace() for i in range(len(text)) if i not in covered)
    assert all(estimate_tokens(text[s.start : s.end]) <= limit + 8 for s in spans)
    assert [s.start for s in spans] == sorted({s.start for s in spans})
    assert all(text[s.start : s.end] == text[s.start : s.end].strip() != "" for s in spans)


def test_a_long_text_makes_several_chunks_that_overlap() -> None:
    text = "".join(f"第{i}条规定租约的硬限制由管理员确定，不得超过两小时。" for i in range(40))
    spans = chunk(text)
    assert len(spans) > 3
    assert all(b.start < a.end for a, b in itertools.pairwise(spans))
    assert all(estimate_tokens(text[s.start : s.end]) <= CHUNK_TOKENS for s in spans)


def test_reflow_joins_what_the_margin_cut() -> None:
    chinese = "租约由主控节点管理，客户端在写文件之前必须先取得租约，租约的软限制是九十\n秒，硬限制是两小时。\n下一段从这里开始。"
    assert reflow(chinese).split("\n")[0].endswith("九十秒，硬限制是两小时。")
    english = (
        "The logger records the temperature every five minutes and keeps the measure-\n"
        "ments for ninety days in its internal memory before it overwrites them."
    )
    assert "measurements for ninety days" in reflow(english)


def test_reflow_keeps_lines_that_are_lines() -> None:
    table = "级别 条件 响应时间\n一级 主控失联 5 分钟\n二级 副本不足 30 分钟"
    assert reflow(table) == table
    items = (
        "下面是取得租约之前必须满足的全部条件，缺少任何一个都会被拒绝：\n"
        "1. 客户端已经通过认证并且持有有效的令牌，令牌没有过期；\n2. 文件没有被锁定。"
    )
    assert reflow(items).count("\n") == 2


def test_reflow_takes_out_the_spaces_of_fonts_that_add_them() -> None:
    assert reflow("租 约 的 硬 限 制 是 2 小 时 。") == "租约的硬限制是 2 小时。"
    assert reflow("级别 条件 响应时间") == "级别 条件 响应时间"


@given(st.text(alphabet=st.characters(max_codepoint=0x9FFF), max_size=300))
def test_reflow_never_fails_and_loses_no_digit(text: str) -> None:
    assert [c for c in reflow(text) if c in "0123456789"] == [c for c in text if c in "0123456789"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a meas-", "ure of it"], "a measure of it"),
        (["a meas\u00ad", "ure of it"], "a measure of it"),
        (["an open-", "source base, as open-source goes"], "an open-source base, as open-source goes"),
        (["a Non-", "English word"], "a Non-English word"),
        (["AD 2018–", "23–51"], "AD 2018–23–51"),
        (["see https://", "www.example.org"], "see https://www.example.org"),
        (["one -", "two"], "one - two"),
        (["租约的软限制是九十", "秒"], "租约的软限制是九十秒"),
        (["see", "1. the first", "2. the second"], "see\n1. the first\n2. the second"),
        (["under 14 CFR", "11.43 and more"], "under 14 CFR 11.43 and more"),
        (["a line", "| a | b |", "| c | d |", "the text"], "a line\n| a | b |\n| c | d |\nthe text"),
        (["these are:", "the text"], "these are:\nthe text"),
    ],
)
def test_join_mends_what_the_margin_cut(lines: list[str], expected: str) -> None:
    assert join((line, True) for line in lines) == expected


def test_lines_that_were_not_cut_stay_lines() -> None:
    assert join([("a heading", False), ("the text", False)]) == "a heading\nthe text"


def test_clean_takes_presentation_forms_apart_and_leaves_writing_as_it_is() -> None:
    assert clean("\ufb01nd the o\ufb03ce") == "find the office"
    assert clean("\ufef3\ufe8e") == "\u064a\u0627"
    assert clean("２０２４年Ａ") == "2024年A"
    for text in ("軟體與软件", "「引號」，全形！", "x² ½ ℃ ①"):
        assert clean(text) == text


@given(st.lists(st.tuples(st.text(alphabet="ab-租。|: 1.A", max_size=12), st.booleans()), max_size=8))
def test_join_loses_nothing_but_hyphens(lines: list[tuple[str, bool]]) -> None:
    kept = "".join("".join(join(lines).split())).replace("-", "")
    assert kept == "".join("".join(text.split()) for text, _ in lines).replace("-", "")
