"""Each format through the service as people use it: uploaded, indexed, found by a sentence, and named by its place."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw, ImageFont

from services.rag.documents import ocr
from services.rag.documents.detect import FORMATS
from tests.rag.conftest import upload, wait
from tests.support.files import make_epub, make_xlsx, make_zip
from tests.support.pdfs import make_pdf

WITH_OCR = pytest.mark.skipif(not ocr.available(), reason="needs the extra ocr")


@dataclass(frozen=True)
class Case:
    """A file, a question about one place in it, and that place."""

    name: str
    make: Callable[[Path], object]
    format: str
    query: str
    sentence: str  # stands on the page in exactly these characters
    page: int
    label: str
    pages: int  # of the whole document
    method: str = "text"


def docx(path: Path) -> None:
    from docx import Document

    document = Document()
    document.add_paragraph("This handbook is for the keepers of the reservoir.")
    document.add_heading("2 Sluices", 1)
    document.add_paragraph("A sluice is opened by two keepers.")
    document.add_heading("2.1 Winter", 2)
    document.add_paragraph("In winter every sluice is greased with tallow on Mondays.")
    table = document.add_table(rows=0, cols=2)
    for cells in (("sluice", "keeper"), ("north", "Ottilie"), ("south", "Barnaby")):
        for cell, text in zip(table.add_row().cells, cells, strict=True):
            cell.text = text
    document.add_heading("3 Boats", 1)
    document.add_paragraph("Boats stay in the shed.")
    document.save(str(path))


def pptx(path: Path) -> None:
    from pptx import Presentation

    slides = Presentation()
    for title, body, notes in (
        ("Apiary", "A report for the members.", ""),
        ("Losses", "Four colonies were lost to mites.", ""),
        ("Harvest", "The heather honey weighed 310 kilograms.", "Thank the volunteers who carried the frames."),
    ):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = body
        if notes:
            slide.notes_slide.notes_text_frame.text = notes
    slides.save(str(path))


def xlsx(path: Path) -> None:
    tide = [(f"harbour {n}", n / 4, f"pilot {n}") for n in range(2, 152)]
    tide[128] = ("Quillhaven", 7.25, "Marguerite")  # row 130
    make_xlsx(path, {"About": [["Tide tables of the coast"]], "Tides": [("harbour", "metres", "pilot"), *tide]})


def rows(path: Path) -> None:
    lines = ["item;price;shelf", *(f"bolt {n};{n},50;A{n}" for n in range(2, 152))]
    lines[119] = "Brass astrolabe;1.250,00;Z9"  # row 120
    path.write_text("\n".join(lines), "utf-8")


def html(path: Path) -> None:
    path.write_text(
        "<!doctype html><html><head><meta charset=utf-8><title>Observatory</title><style>p{color:red}</style></head><body>"
        "<nav><a href=/>Home</a><a href=/news>News</a></nav><h1>Observatory</h1><p>Visitors are welcome.</p>"
        "<h2>Opening of the dome</h2><p>The dome is opened <b>forty minutes</b> after\nsunset.</p>"
        "<script>var hidden = 'never indexed';</script></body></html>",
        "utf-8",
    )


def markdown(path: Path) -> None:
    path.write_text(
        "# Ferry\n\nTimes of the ferry.\n\n## Sundays\n\nOn Sundays the ferry leaves from the *eastern*\npier at noon.\n\n"
        "## Dogs\n\nDogs travel free.\n",
        "utf-8",
    )


def lines(codec: str, line: str, sentence: str) -> Callable[[Path], None]:
    """More lines than a page has, the sentence in the 210th."""

    def make(path: Path) -> None:
        text = [line.format(n) for n in range(1, 241)]
        text[209] = sentence
        path.write_bytes("\n".join(text).encode(codec))

    return make


def epub(path: Path) -> None:
    make_epub(
        path,
        {
            "one.xhtml": "<h1>The Arrival</h1><p>The steamer came in at dawn.</p>",
            "two.xhtml": "<h1>The Lamp Room</h1><p>Aurelia trimmed the wick with silver scissors.</p>",
        },
        toc={"one.xhtml": "The Arrival", "two.xhtml": "The Lamp Room"},
    )


def picture(path: Path) -> None:
    drawn = Image.new("RGB", (1100, 200), "white")
    for row, line in enumerate(("Bakery of the old town", "The rye bread rests for eleven hours.")):
        ImageDraw.Draw(drawn).text((40, 30 + 70 * row), line, font=ImageFont.load_default(34), fill="black")
    drawn.save(path)


PDF = [
    "The museum keeps clocks and barometers.",
    "The great carillon is wound by hand every ninth day. Nobody else may touch it.",
    "Photographs are allowed without flash.",
]
CASES = [
    Case(
        "museum.pdf",
        lambda path: make_pdf(path, PDF),
        "pdf",
        "How often is the carillon wound?",
        "The great carillon is wound by hand every ninth day.",
        2,
        "",
        3,
    ),
    Case(
        "handbook.docx",
        docx,
        "docx",
        "When are sluices greased with tallow?",
        "In winter every sluice is greased with tallow on Mondays.",
        3,
        "2 Sluices › 2.1 Winter",
        4,
    ),
    Case(
        "apiary.pptx",
        pptx,
        "pptx",
        "How much did the heather honey weigh?",
        "The heather honey weighed 310 kilograms.",
        3,
        "slide 3",
        3,
    ),
    Case(
        "tides.xlsx",
        xlsx,
        "xlsx",
        "Who is the pilot of Quillhaven?",
        "| Quillhaven | 7.25 | Marguerite |",
        3,
        "Tides, rows 102-151",
        3,
    ),
    Case(
        "prices.csv",
        rows,
        "csv",
        "What does the brass astrolabe cost?",
        "| Brass astrolabe | 1.250,00 | Z9 |",
        2,
        "rows 102-151",
        2,
    ),
    Case(
        "observatory.html",
        html,
        "html",
        "When is the dome opened after sunset?",
        "The dome is opened forty minutes after sunset.",
        2,
        "Observatory › Opening of the dome",
        2,
    ),
    Case(
        "ferry.md",
        markdown,
        "markdown",
        "Where does the ferry leave from on Sundays?",
        "On Sundays the ferry leaves from the *eastern* pier at noon.",
        2,
        "Ferry › Sundays",
        3,
    ),
    Case(
        "log.txt",
        lines("utf-8", "Entry {}: all quiet.", "The café’s façade was painted ultramarine."),
        "text",
        "What colour is the façade of the café?",
        "The café’s façade was painted ultramarine.",
        2,
        "lines 201-240",
        2,
    ),
    Case(
        "日志.txt",
        lines("gb18030", "第{}条：一切正常。", "值班员在凌晨四点更换了柴油滤清器。"),
        "text",
        "值班员几点更换柴油滤清器？",
        "值班员在凌晨四点更换了柴油滤清器。",
        2,
        "lines 201-240",
        2,
    ),
    Case(
        "紀錄.txt",
        lines("big5", "第{}則：沒有異狀。", "颱風過後必須檢查纜繩的磨損。"),
        "text",
        "颱風過後要檢查什麼？",
        "颱風過後必須檢查纜繩的磨損。",
        2,
        "lines 201-240",
        2,
    ),
    Case(
        "notes.txt",
        lines("utf-16", "Note {}: nothing new.", "The gardener grafts the quince in February — 榅桲在二月嫁接。"),
        "text",
        "When does the gardener graft the quince?",
        "The gardener grafts the quince in February — 榅桲在二月嫁接。",
        2,
        "lines 201-240",
        2,
    ),
    Case(
        "novel.epub",
        epub,
        "epub",
        "With what did Aurelia trim the wick?",
        "Aurelia trimmed the wick with silver scissors.",
        2,
        "The Lamp Room",
        2,
    ),
    Case(
        "bakery.png",
        picture,
        "image",
        "How long does the rye bread rest?",
        "The rye bread rests for eleven hours.",
        1,
        "",
        1,
        "ocr",
    ),
]
PARAMETERS = [
    pytest.param(case, id=f"{case.format}-{case.name}", marks=[WITH_OCR] if case.method == "ocr" else [])
    for case in CASES
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.fixture(scope="module")
def documents(client: httpx.Client, folder: Path) -> dict[str, dict[str, Any]]:
    """Name → job end state, all files uploaded before the first is waited for."""
    jobs = {}
    for case in CASES:
        case.make(folder / case.name)
        jobs[case.name] = upload(client, folder / case.name)["job_id"]
    return {name: wait(client, job) for name, job in jobs.items()}


def search(client: httpx.Client, query: str, **more: Any) -> list[dict[str, Any]]:
    response = client.post("/search", json={"query": query, **more})
    assert response.status_code == 200, response.text
    return list(response.json()["passages"])


def page_of(client: httpx.Client, passage: dict[str, Any]) -> dict[str, Any]:
    response = client.get(f"/documents/{passage['document_id']}/pages/{passage['page']}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_every_format_has_its_case() -> None:
    assert {case.format for case in CASES} | {"zip"} == set(FORMATS)


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_file_is_indexed_whole(client: httpx.Client, documents: dict[str, dict[str, Any]], case: Case) -> None:
    job = documents[case.name]
    assert job["state"] == "indexed", job
    document = client.get(f"/documents/{job['document_id']}").json()
    assert (document["filename"], document["format"], document["status"]) == (case.name, case.format, "indexed")
    assert (document["pages"], document["failed_pages"]) == (case.pages, [])
    assert document["chunks"] >= case.pages


@pytest.mark.parametrize("mode", ["hybrid", "lexical"])
@pytest.mark.parametrize("case", PARAMETERS)
def test_a_question_finds_the_sentence_in_its_place(
    client: httpx.Client, documents: dict[str, dict[str, Any]], case: Case, mode: str
) -> None:
    best = search(client, case.query, k=4, mode=mode)[0]
    assert best["document_id"] == documents[case.name]["document_id"]
    assert (best["filename"], best["page"], best["label"]) == (case.name, case.page, case.label)
    assert case.sentence in best["text"]
    page = page_of(client, best)
    assert (page["page"], page["label"], page["method"]) == (case.page, case.label, case.method)
    assert page["text"][best["start"] : best["start"] + len(best["text"])] == best["text"]


@pytest.mark.parametrize("case", PARAMETERS)
def test_the_original_comes_back_byte_for_byte(
    client: httpx.Client, documents: dict[str, dict[str, Any]], folder: Path, case: Case
) -> None:
    response = client.get(f"/documents/{documents[case.name]['document_id']}/file")
    assert response.content == (folder / case.name).read_bytes()
    assert response.headers["content-type"].split(";")[0] == FORMATS[case.format].media_type
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_header_of_a_long_table_stands_above_each_of_its_pages(
    client: httpx.Client, documents: dict[str, dict[str, Any]]
) -> None:
    for name, header, pages in (
        ("tides.xlsx", "| harbour | metres | pilot |\n| --- | --- | --- |\n", (2, 3)),
        ("prices.csv", "| item | price | shelf |\n| --- | --- | --- |\n", (1, 2)),
    ):
        for number in pages:
            page = client.get(f"/documents/{documents[name]['document_id']}/pages/{number}").json()
            assert page["text"].startswith(header), page["text"][:100]


def test_what_nobody_sees_is_not_found_and_what_is_spoken_is(
    client: httpx.Client, documents: dict[str, dict[str, Any]]
) -> None:
    of_html = {"document_id": documents["observatory.html"]["document_id"]}
    whole = "".join(client.get(f"/documents/{of_html['document_id']}/pages/{n}").json()["text"] for n in (1, 2))
    assert "hidden" not in whole
    assert "color" not in whole
    assert "News" not in whole
    [spoken, *_] = search(client, "Who carried the frames?")
    assert (spoken["filename"], spoken["label"]) == ("apiary.pptx", "slide 3")
    assert "Speaker notes:\nThank the volunteers who carried the frames." in spoken["text"]


def test_a_cell_of_a_word_table_is_found_in_its_row(client: httpx.Client, documents: dict[str, dict[str, Any]]) -> None:
    [best, *_] = search(client, "Who keeps the south sluice? Barnaby?", filter={"filename": "handbook.docx"})
    assert (best["page"], best["label"]) == (3, "2 Sluices › 2.1 Winter")
    assert "| south | Barnaby |" in best["text"]


def test_members_of_a_zip_are_documents_of_their_own(client: httpx.Client, tmp_path: Path) -> None:
    """Its folders are in their names; what cannot be read is named with the reason, and keeps nothing else out."""
    docx(tmp_path / "a.docx")
    xlsx(tmp_path / "b.xlsx")
    make_pdf(tmp_path / "c.pdf", PDF)
    nested = io.BytesIO()
    make_zip(nested, {"x.txt": "too deep"})  # type: ignore[arg-type]
    archive = make_zip(
        tmp_path / "bundle.zip",
        {
            "手册/a.docx": (tmp_path / "a.docx").read_bytes(),
            "figures/2024/b.xlsx": (tmp_path / "b.xlsx").read_bytes(),
            "c.pdf": (tmp_path / "c.pdf").read_bytes(),
            "notes.txt": "船长在六月三日修理了罗盘。".encode("gb18030"),
            "empty.txt": "",
            "nested.zip": nested.getvalue(),
            "program.bin": b"\x7fELF" + bytes(200),
            "__MACOSX/._c.pdf": "left by a Mac",
        },
    )
    assert client.post("/collections", json={"name": "bundle"}).status_code == 201
    taken = upload(client, archive, collection="bundle")["documents"]
    errors = {member["filename"]: member["error"] for member in taken if "error" in member}
    assert errors.keys() == {"bundle.zip/empty.txt", "bundle.zip/nested.zip", "bundle.zip/program.bin"}
    assert "empty" in errors["bundle.zip/empty.txt"]
    assert "a ZIP archive inside the archive: unpack it first" in errors["bundle.zip/nested.zip"]
    assert "a program (ELF)" in errors["bundle.zip/program.bin"]
    ends = {m["filename"]: wait(client, m["job_id"])["state"] for m in taken if "job_id" in m}
    assert ends == dict.fromkeys(
        ("bundle.zip/手册/a.docx", "bundle.zip/figures/2024/b.xlsx", "bundle.zip/c.pdf", "bundle.zip/notes.txt"),
        "indexed",
    )
    for query, name, page, label, sentence in (
        (CASES[0].query, "bundle.zip/c.pdf", 2, "", CASES[0].sentence),
        (CASES[1].query, "bundle.zip/手册/a.docx", 3, "2 Sluices › 2.1 Winter", CASES[1].sentence),
        (CASES[3].query, "bundle.zip/figures/2024/b.xlsx", 3, "Tides, rows 102-151", CASES[3].sentence),
        ("船长哪天修理了罗盘？", "bundle.zip/notes.txt", 1, "line 1", "船长在六月三日修理了罗盘。"),
    ):
        [best, *_] = search(client, query, collection="bundle")
        assert (best["filename"], best["page"], best["label"]) == (name, page, label)
        page_text = page_of(client, best)["text"]
        assert page_text[best["start"] : best["start"] + len(best["text"])] == best["text"]
        assert sentence in best["text"]


def test_a_sentence_of_a_long_page_is_shown_where_it_stands(client: httpx.Client, tmp_path: Path) -> None:
    """``start`` is no formality: the passage lies in the middle of a page of many chunks, among wide characters."""
    draw = random.Random(7)  # noqa: S311 — which words, not a secret
    words = "港口 灯塔 潮汐 🐚 缆绳 harbour tide buoy pilot chart".split()
    filler = [" ".join(draw.choice(words) for _ in range(12)) + "。" for _ in range(60)]
    sentence = "The cartographer Wilhelmina engraves sea charts on zinc."
    text = "\n".join([*filler[:40], sentence, *filler[40:]])
    (tmp_path / "long.md").write_text(f"# 海图 🗺\n\n{text}\n", "utf-8")
    job = upload(client, tmp_path / "long.md")
    assert wait(client, job["job_id"])["state"] == "indexed"
    [best, *_] = search(client, "On what does Wilhelmina engrave sea charts?")
    assert best["document_id"] == job["document_id"]
    assert best["start"] > 1000
    page = page_of(client, best)
    assert page["label"] == best["label"] == "海图 🗺"
    assert page["text"][best["start"] : best["start"] + len(best["text"])] == best["text"]
    assert sentence in best["text"]
