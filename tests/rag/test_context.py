"""Titles and headings: what of them is searched beside a chunk's text."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.context import contexts, embedded, heading_at, headings
from services.rag.documents.chunking import chunk
from services.rag.documents.pages import Options, PageText
from services.rag.documents.readers import pdf
from services.rag.store.records import Chunk, Document, Metadata, Page

DOCUMENT = Document(
    *("d", "default", "default", "lease_rules-2024.pdf", "pdf", "0" * 64, 1, "indexed", None, 1, 1, "1"),
    *({}, 1, None, None, 0.0, None, None),
)
MANUAL = Path(__file__).parents[2].parent / "shared" / "data" / "pdf_real" / "zh_alibaba_java_manual_huangshan.pdf"


def paths(*pages: str) -> list[list[str]]:
    return [[path for _, path in found] for found in headings(pages)]


def test_numbered_headings_make_a_path_that_goes_on_over_pages() -> None:
    assert paths(
        "序\n一、编程规约\n(一) 命名风格\n1.【强制】不能以下划线开始。", "正例：ali\n(二) 常量定义\n二、异常日志"
    ) == [
        ["", "一、编程规约", "一、编程规约 › (一) 命名风格"],
        ["一、编程规约 › (一) 命名风格", "一、编程规约 › (二) 常量定义", "二、异常日志"],
    ]


def test_a_decimal_heading_stands_only_under_its_own_number() -> None:
    assert paths("3 Alignment\n3.1 Data\n4.1 Code\n第二章 租约\n2.1 限制\n2.1.1 硬限制")[0][1:] == [
        "3 Alignment",
        "3 Alignment › 3.1 Data",
        "4.1 Code",
        "第二章 租约",
        "第二章 租约 › 2.1 限制",
        "第二章 租约 › 2.1 限制 › 2.1.1 硬限制",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "1. Turn the key",
        "3.5 million people live there, most of them in towns.",
        "一、编程规约........4",
        "2.1 Limits 17",
        "100 Nodes and more of them are in the cluster that was set up for the test of the whole system last year",
        "(一) 不允许任何魔法值直接出现在代码中。",
        "",
    ],
)
def test_items_sentences_and_tables_of_contents_are_no_headings(line: str) -> None:
    assert paths(line) == [[""]]


def context(label: str = "", text: str = "The limit is an hour.", metadata: Metadata | None = None) -> tuple[str, str]:
    document = dataclasses.replace(DOCUMENT, metadata=metadata or {})
    piece = Chunk("d:0", "d", 0, 1, 0, len(text), text)
    found = contexts(document, {1: Page(1, text, label)}, [piece])["d:0"]
    return found.words, found.heading


def test_name_title_and_label_are_searched_and_the_innermost_heading_is_embedded() -> None:
    assert context("2 Leases › 2.1 Limits (2)") == ("lease rules 2024 2 Leases › 2.1 Limits", "2.1 Limits")
    assert context(metadata={"title": "Rules of leases"}) == ("Rules of leases lease rules 2024", "")
    assert context(metadata={"title": 7}) == ("lease rules 2024", "")


@pytest.mark.parametrize("label", ["lines 2-40", "line 7", "slide 3", "part 2 (3)"])
def test_a_place_is_no_heading(label: str) -> None:
    assert context(label) == ("lease rules 2024", "")


def test_a_sheets_name_is_a_heading_and_its_rows_are_not() -> None:
    assert context("Sales, rows 2-101")[1] == "Sales"


def test_a_heading_is_embedded_once() -> None:
    found = contexts(
        DOCUMENT, {1: Page(1, "一、总则\n租约为一小时。")}, [Chunk("d:0", "d", 0, 1, 5, 12, "租约为一小时。")]
    )
    assert embedded("租约为一小时。", found["d:0"]) == "一、总则\n租约为一小时。"
    assert embedded("一、总则\n租约为一小时。", found["d:0"]) == "一、总则\n租约为一小时。"
    assert embedded("租约为一小时。", None) == "租约为一小时。"


def test_a_chunk_of_a_page_that_is_not_there_has_the_documents_names() -> None:
    assert contexts(DOCUMENT, {}, [Chunk("d:0", "d", 0, 4, 0, 1, "x")])["d:0"].words == "lease rules 2024"


@given(st.lists(st.text(st.sampled_from("一二、(). 第章12Aa租约\n")), max_size=4))
def test_every_place_of_every_page_has_a_path(pages: list[str]) -> None:
    found = headings(pages)
    assert len(found) == len(pages)
    carried = ""
    for text, on_page in zip(pages, found, strict=True):
        assert on_page[0] == (0, carried)
        for start in range(len(text) + 1):
            heading = heading_at(on_page, start).rpartition(" › ")[2]
            assert not heading or heading in "\n".join(pages)
        carried = on_page[-1][1]


@pytest.mark.skipif(not MANUAL.exists(), reason="the manual is not beside this checkout")
def test_the_headings_of_a_real_manual() -> None:
    pages = [p for p in pdf.read(MANUAL, Options()) if isinstance(p, PageText)]
    found = headings(p.text for p in pages)
    place = next(
        (on_page, span.start)
        for page, on_page in zip(pages, found, strict=True)
        for span in chunk(page.text)
        if "超过三个表禁止 join" in page.text[span.start : span.end]
    )
    assert heading_at(*place) == "五、MySQL 数据库 › (二) 索引规约"
