"""A page's text and picture over HTTP, the quote marked on it, against a real process."""

import io
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pypdfium2 as pdfium
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from services.rag.documents.chunking import sentences
from services.rag.documents.pages import Options, PageText, ReadError
from services.rag.documents.readers import pdf
from services.rag.documents.reading import Limits, ReadingProcess
from services.rag.documents.reflow import folded_letters
from services.rag.documents.rendering import CONTEXT, View, _find, _png, lines_of, locate
from tests.rag.conftest import Pair, upload, wait
from tests.support.pdfs import make_columns, make_pdf
from tests.support.servers import ROOT

DATA = ROOT.parent / "shared" / "data"


def picture(response: httpx.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(response.content)).convert("RGB")


def yellow(image: Image.Image) -> np.ndarray:
    """Where it is marked: (height, width), bool."""
    pixels = np.asarray(image).astype(int)
    return (pixels[:, :, 0] > 200) & (pixels[:, :, 2] < 150)


def under(path: Path, page: PageText, start: int, end: int) -> tuple[str, str, str]:
    """(letters of the text from start to end, letters under the marked rectangles, how much was found)."""
    text = page.text
    view = View(
        page.number,
        quote=text[start:end],
        before=text[max(0, start - CONTEXT) : start],
        after=text[end : end + CONTEXT],
    )
    with closing(pdfium.PdfDocument(path)) as document:
        drawn = document[page.number - 1]
        boxes, highlight = _find(drawn, view)
        textpage = drawn.get_textpage()
        seen = "".join(folded_letters(textpage.get_text_bounded(*box))[0] for box in boxes)
    return folded_letters(text[start:end])[0], seen, highlight


def alike(one: str, other: str) -> float:
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / max(len(one) + len(other), 1)


# -- where a quote stands ----------------------------------------------------------------------------------------------


@given(
    st.lists(st.text(alphabet="abcdefghij", min_size=6, max_size=12), min_size=1, max_size=6, unique=True), st.randoms()
)
def test_what_is_drawn_in_another_order_is_found(lines: list[str], order: random.Random) -> None:
    drawn = list(lines)
    order.shuffle(drawn)
    stream, text = "".join(drawn), "".join(lines)
    assert all(at is None or stream[at] == c for c, at in zip(text, locate(text, stream), strict=True))
    assert None not in locate(text, text)


@given(st.text(alphabet="ab12", max_size=30), st.text(alphabet="ab12", max_size=30))
def test_a_place_has_the_character_that_was_looked_for(text: str, stream: str) -> None:
    found = locate(text, stream)
    assert len(found) == len(text)
    assert all(at is None or stream[at] == c for c, at in zip(text, found, strict=True))


def test_boxes_become_lines() -> None:
    line = [(10.0 * n, 700.0, 10.0 * n + 9, 712.0) for n in range(5)]
    assert lines_of([*line, (0.0, 680.0, 9.0, 692.0)]) == [(0.0, 700.0, 49.0, 712.0), (0.0, 680.0, 9.0, 692.0)]
    assert lines_of([(0.0, 0.0, 0.0, 5.0)]) == []


def test_a_quote_in_one_column_is_marked_there(tmp_path: Path) -> None:
    left = " ".join(f"Left column sentence {n} names pier {n * 7}." for n in range(20))
    right = " ".join(f"Right column sentence {n} names berth {n * 11}." for n in range(20))
    path = make_columns(tmp_path / "two.pdf", [[left, right]])
    [page] = [p for p in pdf.read(path, Options()) if isinstance(p, PageText)]
    for sentence in ("Right column sentence 13 names berth 143.", "Left column sentence 7 names pier 49."):
        start = page.text.index(sentence)
        wanted, seen, highlight = under(path, page, start, start + len(sentence))
        assert (seen, highlight) == (wanted, "exact")


def test_the_same_words_twice_are_told_apart_by_what_is_around_them(tmp_path: Path) -> None:
    path = make_pdf(
        tmp_path / "twice.pdf", ["Alpha begins here. The value is seven.\nOmega begins here. The value is seven."]
    )
    [page] = [p for p in pdf.read(path, Options()) if isinstance(p, PageText)]
    tops = []
    with closing(pdfium.PdfDocument(path)) as document:
        for start in (page.text.index("The value"), page.text.rindex("The value")):
            end = start + len("The value is seven.")
            view = View(1, quote=page.text[start:end], before=page.text[:start], after=page.text[end:])
            [box] = _find(document[0], view)[0]
            tops.append(box[3])
    assert tops[0] > tops[1]


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared/data beside the checkout")
@pytest.mark.parametrize("name", ["en_federal_register", "en_multicolumn", "zh_alibaba_java_manual_huangshan"])
def test_quotes_of_real_files_are_marked(name: str) -> None:
    """Three columns, two columns, Chinese: of random sentences nearly all have their own text under the marks."""
    path = DATA / "pdf_real" / f"{name}.pdf"
    pages = []
    with closing(pdf.read(path, Options())) as read:
        for page in read:
            if isinstance(page, PageText):
                pages.append(page)
            if len(pages) == 8:
                break
    spans = [(page, s) for page in pages for s in sentences(page.text) if 8 <= s.end - s.start <= 400]
    chosen = random.Random(3).sample(spans, min(40, len(spans)))  # noqa: S311
    right = sum(alike(*under(path, page, s.start, s.end)[:2]) > 0.9 for page, s in chosen)
    assert right >= 0.95 * len(chosen)


# -- drawing -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_the_png_is_the_pixels(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(_png(pixels)))), pixels)


@pytest.fixture(scope="module")
def process() -> Iterator[ReadingProcess]:
    with ReadingProcess(Limits(page_seconds=10, file_seconds=10)) as process:
        yield process


def test_a_file_that_cannot_be_drawn_is_said_to_be(process: ReadingProcess, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.4\nnothing")
    locked = make_pdf(tmp_path / "locked.pdf", ["secret"], password="pass")
    manual = make_pdf(tmp_path / "manual.pdf", ["one page"])
    for path, format, page, reason in (
        (broken, "pdf", 1, "too broken"),
        (locked, "pdf", 1, "password"),
        (manual, "pdf", 9, "no page 9"),
        (manual, "image", 1, "not a readable picture"),
        (manual, "docx", 1, "no picture"),
    ):
        with pytest.raises(ReadError, match=reason):
            process.render(path, format, View(page))
    assert process.render(manual, "pdf", View(1, 300)).data.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "answer",
    [
        {"picture": {"data": "!", "media_type": "image/png", "highlight": "none"}},
        {"picture": {"data": ""}},
        {"page": {}},
    ],
)
def test_what_is_no_picture_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "hijacked.py").write_text(f"def render(path, format, view):\n    return {answer!r}['picture']\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with (
        ReadingProcess(Limits(), readers={"render": "hijacked"}) as process,
        pytest.raises(ReadError, match="cannot be drawn"),
    ):
        process.render(folder / "hijacked.py", "pdf", View(1))


def test_a_renderer_that_hangs_or_crashes_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "hangs.py").write_text("import time\ndef render(path, format, view):\n    time.sleep(60)\n")
    (folder / "dies.py").write_text("import os\ndef render(path, format, view):\n    os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for module, reason in (("hangs", "took longer than 1 s"), ("dies", "SIGABRT")):
        with (
            ReadingProcess(Limits(page_seconds=1), readers={"render": module}) as process,
            pytest.raises(ReadError, match=reason),
        ):
            process.render(folder / "dies.py", "pdf", View(1))


# -- over HTTP ---------------------------------------------------------------------------------------------------------


def test_a_citation_is_marked_on_its_page(client: httpx.Client, indexed: str) -> None:
    page = f"/documents/{indexed}/pages/1"
    text = client.get(page).json()
    assert {**text, "text": ""} == {"document_id": indexed, "page": 1, "label": "", "method": "text", "text": ""}
    start = text["text"].index("The hard limit")
    end = text["text"].index("A client renews")
    plain = client.get(f"{page}/image")
    marked = client.get(f"{page}/image", params={"start": start, "end": end})
    assert (plain.headers["x-docduet-highlight"], marked.headers["x-docduet-highlight"]) == ("none", "exact")
    assert (marked.headers["content-type"], picture(marked).width) == ("image/png", 1200)
    assert not yellow(picture(plain)).any()
    share = yellow(picture(marked)).mean()
    assert 0.001 < share < 0.02  # a sentence of a page, and no more


def test_the_picture_has_the_width_that_was_asked_for(client: httpx.Client, indexed: str) -> None:
    for width in (200, 800, 2400):
        response = client.get(f"/documents/{indexed}/pages/2/image", params={"width": width})
        assert abs(picture(response).width - width) <= 1


def test_what_is_unchanged_is_not_drawn_again(client: httpx.Client, indexed: str) -> None:
    page = f"/documents/{indexed}/pages/1/image"
    tag = client.get(page).headers["etag"]
    again = client.get(page, headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    for other in ({"width": 300}, {"start": 0, "end": 5}):
        assert client.get(page, params=other, headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "named"),
    [
        ("pages/1/image?width=100", 400, "width"),
        ("pages/1/image?width=9999", 400, "width"),
        ("pages/1/image?start=5&end=5", 400, "span"),
        ("pages/1/image?start=9&end=2", 400, "span"),
        ("pages/1/image?start=0&end=99999", 400, "characters"),
        ("pages/1/image?start=99999", 400, "characters"),
        ("pages/1/image?start=-1", 400, "start"),
        ("pages/1/image?start=x", 400, "start"),
        ("pages/0/image", 400, "page"),
        ("pages/x/image", 400, "page"),
        ("pages/99999999999999999999", 400, "page"),
        ("pages/77/image", 404, "page"),
        ("pages/77", 404, "page"),
    ],
)
def test_a_bad_request_is_named(client: httpx.Client, indexed: str, path: str, status: int, named: str) -> None:
    response = client.get(f"/documents/{indexed}/{path}")
    assert response.status_code == status, response.text
    assert named in response.json()["error"]["message"]


def test_what_is_not_there_has_no_picture(client: httpx.Client) -> None:
    assert client.get("/documents/unknown/pages/1/image").status_code == 404


def test_other_formats_say_where_their_text_is(client: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("The tide turns at noon in the old harbour.")
    document = upload(client, path)
    assert wait(client, document["job_id"])["state"] == "indexed"
    refused = client.get(f"/documents/{document['document_id']}/pages/1/image")
    assert refused.status_code == 415
    where = f"/documents/{document['document_id']}/pages/1"
    assert where in refused.json()["error"]["message"]
    assert "tide" in client.get(where).json()["text"]


def test_an_encrypted_file_says_that_its_password_is_not_kept(client: httpx.Client, tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "locked.pdf", ["The vault opens at nine in the morning on weekdays."], password="pass")
    document = upload(client, path, password="pass")
    assert wait(client, document["job_id"])["state"] == "indexed"
    refused = client.get(f"/documents/{document['document_id']}/pages/1/image")
    assert refused.status_code == 415
    assert "password, which is not kept" in refused.json()["error"]["message"]


def test_many_at_once_are_drawn_or_told_to_wait(pair: Pair, indexed: str) -> None:
    import concurrent.futures

    def get(n: int) -> int:
        with pair.client() as client:
            response = client.get(f"/documents/{indexed}/pages/1/image", params={"width": 300 + n})
            assert response.status_code == 200 or int(response.headers["retry-after"]) > 0
            return response.status_code

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(get, range(24)))
    assert set(statuses) <= {200, 503}
    assert statuses[200] >= 8


def test_a_photograph_is_shown_as_it_is(process: ReadingProcess, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    image = Image.new("RGB", (1600, 900), "white")
    ImageDraw.Draw(image).rectangle((100, 100, 700, 400), fill="red")
    image.save(path)
    drawn = process.render(path, "image", View(1, 800, quote="red"))
    assert (drawn.media_type, drawn.highlight) == ("image/jpeg", "none")
    shown = Image.open(io.BytesIO(drawn.data))
    assert shown.size == (800, 450)
    red, green, _ = shown.convert("RGB").getpixel((200, 120))  # type: ignore[misc]
    assert red > 200 > green
    with pytest.raises(ReadError, match="no page 2"):
        process.render(path, "image", View(2))
