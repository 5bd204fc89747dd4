"""The sample PDFs, and the questions that the evaluation asks about them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
PDFS = {"zh": "qingshi-storage-handbook.zh.pdf", "en": "harrow-h2-manual.en.pdf"}
QUESTIONS: list[dict[str, Any]] = json.loads((SAMPLES / "questions.json").read_text(encoding="utf-8"))
LAY: list[dict[str, Any]] = json.loads((SAMPLES / "questions-lay.json").read_text(encoding="utf-8"))
ANSWERABLE = [question for question in QUESTIONS if question["answerable"]]
CJK = "[一-鿿，。；：（）“”]"


@cache
def pages(document: str) -> list[str]:
    return [page.extract_text() for page in PdfReader(SAMPLES / document).pages]


def squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def pages_with(answer: str, document: str) -> list[int]:
    """The 1-based pages an answer occurs on; "5 分钟" does not occur in "25 分钟", nor "200 marks" in "1,200 marks"."""
    wanted = re.escape(squeeze(answer))
    if answer[0].isdigit():
        wanted = r"(?<![\d.,])" + wanted
    return [number for number, text in enumerate(pages(document), start=1) if re.search(wanted, squeeze(text))]


@pytest.mark.parametrize("question", ANSWERABLE, ids=lambda question: question["id"])
def test_answer_is_on_its_page_and_on_no_other(question: dict[str, Any]) -> None:
    assert pages_with(question["answer"], question["document"]) == [question["page"]]


@pytest.mark.parametrize("question", LAY, ids=lambda question: question["id"])
def test_a_question_in_lay_words_has_its_answer_on_its_page_and_hardly_a_word_of_it(question: dict[str, Any]) -> None:
    assert question["document"] == PDFS[question["lang"]]
    assert question["page"] in pages_with(question["answer"], question["document"])
    assert squeeze(question["answer"]) not in squeeze(question["question"])


def test_questions_are_complete() -> None:
    assert len({question["id"] for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        assert question["document"] == PDFS[question["lang"]]
        assert question["question"].strip()
        assert question["answerable"] == (question["page"] is not None) == (question["answer"] is not None)
        assert ("history" in question) == ("standalone" in question)
        for human, ai in question.get("history", []):
            assert human
            assert ai


def test_both_languages_have_enough_questions() -> None:
    plain = Counter(question["lang"] for question in ANSWERABLE if "history" not in question)
    follow_ups = Counter(question["lang"] for question in ANSWERABLE if "history" in question)
    unanswerable = Counter(question["lang"] for question in QUESTIONS if not question["answerable"])
    for lang in PDFS:
        assert plain[lang] >= 14
        assert follow_ups[lang] >= 3
        assert unanswerable[lang] >= 4


@pytest.mark.parametrize("document", PDFS.values())
def test_pdf_has_embedded_fonts_and_a_moderate_size(document: str) -> None:
    reader = PdfReader(SAMPLES / document)
    assert 6 <= len(reader.pages) <= 8
    assert (SAMPLES / document).stat().st_size < 400_000
    for page in reader.pages:
        fonts = page["/Resources"]["/Font"]
        assert fonts
        for reference in fonts.values():
            font = reference.get_object()
            assert "/ToUnicode" in font
            descriptor = font["/DescendantFonts"][0].get_object()["/FontDescriptor"]
            assert {"/FontFile2", "/FontFile3"} & set(descriptor)


@pytest.mark.parametrize("lang", PDFS)
def test_every_page_says_where_it_is(lang: str) -> None:
    for number, text in enumerate(pages(PDFS[lang]), start=1):
        assert text.splitlines()[-1].strip() == (f"第 {number} 页" if lang == "zh" else f"Page {number}")


def test_chinese_text_has_no_stray_spaces() -> None:
    for text in pages(PDFS["zh"]):
        for line in text.splitlines():
            if line.endswith("。"):
                assert not re.search(rf"{CJK} +{CJK}", line), line
    assert "租约的软限制是 90 秒，硬限制是 2 小时。" in pages(PDFS["zh"])[1]


def test_english_words_are_kept_apart() -> None:
    text = " ".join(pages(PDFS["en"])[2].split())
    assert "With a recording interval of 10 minutes the battery lasts 26 months." in text
    assert "  " not in pages(PDFS["en"])[2]


def make(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("fpdf")
    command = [sys.executable, str(ROOT / "scripts" / "make_samples.py"), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_samples_can_be_remade(tmp_path: Path) -> None:
    first = make(tmp_path / "first")
    if "no font at" in first.stderr:
        pytest.skip(first.stderr.strip())
    assert first.returncode == 0, first.stderr
    assert make(tmp_path / "second").returncode == 0
    for name in PDFS.values():
        made = tmp_path / "first" / name
        assert made.read_bytes() == (tmp_path / "second" / name).read_bytes()
        # the bytes and the line ends depend on the versions of the fonts and the libraries; the words do not
        assert [squeeze(page.extract_text()) for page in PdfReader(made).pages] == [*map(squeeze, pages(name))]


def test_a_missing_font_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.ttf"
    done = make(tmp_path / "out", "--font-zh", str(missing))
    assert done.returncode == 1
    assert str(missing) in done.stderr
    assert "fonts-noto-cjk" in done.stderr
    assert "Traceback" not in done.stderr
