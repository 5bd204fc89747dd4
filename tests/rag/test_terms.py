"""The words of a text as they are matched. What must hold: a question and a page that say the same have the same terms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.terms import content_terms, fold, index_terms, indexed, query_terms, split, terms, version

_MIXED = st.text(st.sampled_from("租約约硬限制的中国國什么么麼台臺裡里 abcéÀ１ａＡ+#_.-'，。\n"), max_size=40)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("租約的硬限制", "租约的硬限制"),
        ("ＮａｍｅＮｏｄｅ 的心跳", "namenode 的心跳"),
        ("Café Zürich", "CAFE ZURICH"),
        ("臺灣、台湾", "台灣、台湾"),
        ("看著天空", "看着天空"),
        ("瞭解後回覆", "了解后回复"),
        ("乾坤", "干坤"),
        ("① ½", "1 1⁄2"),
        ("ﬁle", "file"),
        ("The limits were exceeded", "the limit was exceeding"),
    ],
)
def test_two_spellings_are_found_by_each_other(one: str, other: str) -> None:
    shared = set(index_terms(other))
    assert set(query_terms(one)) <= shared
    assert query_terms(one)


@pytest.mark.parametrize("text", ["尼日利亚的石油", "存在程序故障", "建立在山上的影片", "理查德·费曼"])
def test_simplified_text_stays_as_it_is(text: str) -> None:
    assert fold(text) == text


@pytest.mark.parametrize("traditional", "著乾於藉覆畫裡臺後麵髮鐘衝")
def test_a_character_that_stands_alone_is_folded_as_well(traditional: str) -> None:
    assert len(index_terms(traditional)) == 1
    assert index_terms(traditional) == index_terms(fold(traditional))


def test_words_that_every_question_has_are_taken_out_as_words() -> None:
    assert query_terms("什么是租约？") == ["租", "约", "租约"]
    assert "中国" in query_terms("在中国是什么时候")
    assert query_terms("what is the limit of a lease?") == ["limit", "leas"]
    assert query_terms("是什么？") == []
    assert "约硬" not in query_terms("租约的硬限制")  # what stood between them is not forgotten
    assert "的" not in content_terms("NameNode 的心跳")


def test_identifiers_are_found_whole_and_in_parts() -> None:
    assert terms("v2.5 api_key") == ["v2.5", "v2", "5", "api_key", "api", "key"]
    assert index_terms("C++ C#") == ["c++", "c", "c#", "c"]
    assert "привет" in terms("Привет, мир")
    assert index_terms("東京タワー")[:2] == ["东", "京"]


def test_words_are_not_stemmed_where_they_are_compared_with_a_quote() -> None:
    assert terms("limits") == ["limits"]
    assert index_terms("limits") == ["limit"]


@given(_MIXED | st.text())
def test_a_question_asks_for_nothing_that_it_does_not_say(text: str) -> None:
    assert set(query_terms(text)) <= set(index_terms(text))
    assert set(content_terms(text)) <= set(terms(text))


@given(_MIXED | st.text(st.characters()))
def test_terms_are_words_and_what_the_index_keeps_gives_them_again(text: str) -> None:
    kept = indexed(text)
    assert split(kept) == index_terms(text)
    assert all(term and not any(c.isspace() for c in term) for term in [*index_terms(text), *terms(text)])


@given(st.text(st.characters(categories=["Cs", "Lo", "Cc"])))
def test_broken_text_has_terms_too(text: str) -> None:
    for cut in (terms, index_terms, query_terms):
        " ".join(cut(text)).encode()


def test_a_nul_ends_no_text() -> None:
    assert "灯塔" in index_terms("\0 灯塔")
    assert "燈塔" in terms("before \0 燈塔") or "灯塔" in terms("before \0 燈塔")


def test_the_version_fits_sqlites_user_version() -> None:
    assert 0 < version() < 2**31
