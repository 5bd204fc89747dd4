"""What a file is, by its content; and which encoding a text is in."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.documents import delimiters, encoding
from services.rag.documents.detect import FORMATS, detect
from services.rag.documents.pages import ReadError
from tests.support.files import PNG, encrypt, make_docx, make_epub, make_xlsx, make_zip, paragraph

DATA = Path(__file__).parents[2].parent / "shared" / "data"
FRAGMENT = b"9 0 obj<</Type/XRef/Size 0>>stream\nendstream\nendobj\nstartxref\n3\n%%EOF\n"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.txt", b"%PDF-1.7\n...", "pdf"),
        ("x.pdf", PNG, "image"),
        ("x", b"\xff\xd8\xff\xe0" + bytes(9), "image"),
        ("x.txt", b"<!DOCTYPE html><p>hi", "html"),
        ("x", b"<p>one</p><p>two</p><div>three</div>", "html"),
        ("notes", b"# Title\n\n## Part\n\n**bold** text", "markdown"),
        ("readme.md", b"nothing special", "markdown"),
        ("data", b"name,city,age\nann,rome,3\nbob,oslo,4\n", "csv"),
        ("data", "姓名\t城市\t年龄\n张三\t北京\t3\n李四\t上海\t4\n".encode("gb18030"), "csv"),
        ("data.csv", b"just one column\nof words\n", "text"),
        ("data.csv", b"a;b\n1;2\n", "csv"),
        ("list.txt", b"name,city,age\nann,rome,3\nbob,oslo,4\n", "text"),
        ("prose", b"First, there was a word.\nThen, later, came others, many.\nIt ended.\n", "text"),
        ("x.docx", b"plain words in a file with a wrong name", "text"),
        ("x.txt", "租约的软限制是九十秒。".encode("utf-16-le"), "text"),
        ("x.txt", b"The header of a PDF is %PDF-1.7 and so on.", "text"),
        ("x.pdf", b"oops.\n", "text"),
        ("x.pdf", b"A letter to the harbour master.\n", "text"),
        ("x.pdf", b"<!DOCTYPE html><p>An object is written 1 0 obj << >>, a file ends in %%EOF.", "html"),
        ("x.pdf", FRAGMENT, "pdf"),
        ("x.pdf", b"junk " + FRAGMENT, "pdf"),
        ("x.pdf", FRAGMENT.replace(b"endstream", b"\0\x9c\xff\x01\nendstream"), "pdf"),
        ("x.pdf", b"startxref\n9\n%%EOF\n", "pdf"),
        ("upload", FRAGMENT, "pdf"),
        ("upload", b"An object: " + FRAGMENT, "text"),
        ("x.md", b"# Objects\n\nEvery object is written as\n\n```\n" + FRAGMENT + b"```\n", "markdown"),
        ("x.txt", FRAGMENT, "text"),
        ("MZ.txt", b"MZ are two letters that programs begin with.", "text"),
    ],
)
def test_a_file_is_what_it_holds(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / "upload").write_bytes(content)
    assert detect(tmp_path / "upload", name) == expected


def test_packages_are_told_apart_by_what_they_declare(tmp_path: Path) -> None:
    assert detect(make_docx(tmp_path / "a", paragraph("x")), "a.zip") == "docx"
    assert detect(make_xlsx(tmp_path / "b.bin", {"S": [["x"]]})) == "xlsx"
    assert detect(make_epub(tmp_path / "c", {"c.xhtml": "<p>x</p>"})) == "epub"
    assert detect(make_zip(tmp_path / "d", {"a.txt": "x"})) == "zip"
    assert detect(encrypt(make_xlsx(tmp_path / "e.xlsx", {"S": [["x"]]}), "pw")) == "xlsx"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (OLE + "WordDocument".encode("utf-16-le"), r"save it as \.docx"),
        (OLE + "Workbook".encode("utf-16-le"), r"save it as \.xlsx"),
        (OLE + "PowerPoint Document".encode("utf-16-le"), r"save it as \.pptx"),
        (b"{\\rtf1 hello}", r"rich text.*save it as \.docx"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(20), "7-Zip"),
        (b"Rar!\x1a\x07\x00" + bytes(20), "RAR"),
        (b"\x7fELF\x02" + bytes(60), "program"),
        (b"MZ\x90\x00" + bytes(60), "program"),
        (bytes(range(256)) * 4, "binary"),
        (b"PK\x03\x04 and then nothing", "damaged"),
        (bytes(4) + b"ftypheic" + bytes(20), "HEIC"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.docx").write_bytes(content)
    with pytest.raises(ReadError, match=said):
        detect(tmp_path / "x.docx")


def test_an_open_document_is_named(tmp_path: Path) -> None:
    odt = make_zip(tmp_path / "x.odt", {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": "<x/>"})
    with pytest.raises(ReadError, match=r"OpenDocument document: save it as \.docx"):
        detect(odt)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_format_or_a_reason(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    try:
        found = detect(path)
    except ReadError:
        return
    assert found in FORMATS


@pytest.mark.parametrize(
    ("file", "codec"),
    [
        ("zh_qa/xquad.zh.json", "gb18030"),
        ("zh_qa/xquad.zh.json", "utf-8"),
        ("zh_qa/xquad.zh.json", "utf-16-le"),
        ("zh_qa/xquad.zh.json", "utf-16-be"),
        ("zh_qa/xquad.zh.json", "utf-16"),
        ("zh_qa/DRCD_dev.json", "cp950"),
        ("zh_qa/DRCD_dev.json", "gb18030"),
        ("en_qa/xquad.en.json", "utf-16-le"),
        ("en_qa/xquad.en.json", "cp1252"),
    ],
)
def test_the_encoding_of_a_short_text_is_found(file: str, codec: str) -> None:
    """Of pieces of 30 characters of real text, at least 95 in a hundred decode to what was written."""
    pieces = list(_pieces(file, codec, 30, 100))
    right = [data for text, data in pieces if (encoding.decode(data) or "").removeprefix("\ufeff") == text]
    assert len(right) >= 0.95 * len(pieces)


def _pieces(file: str, codec: str, length: int, count: int) -> Iterator[tuple[str, bytes]]:
    if not (DATA / file).exists():
        pytest.skip(f"{DATA / file} is not here")
    data = json.loads((DATA / file).read_text(encoding="utf-8"))["data"]
    text = "".join(p["context"] for article in data for p in article["paragraphs"])
    step = len(text) // count
    for at in range(0, step * count, step):
        piece = text[at : at + length]
        try:
            yield piece, piece.encode(codec)
        except UnicodeEncodeError:
            continue  # a character this encoding has not got


HANZI = st.text(
    alphabet="的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工", min_size=20
)


@given(HANZI, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"]))
def test_everyday_chinese_survives_any_encoding(text: str, codec: str) -> None:
    decoded = encoding.decode(text.encode(codec))
    assert decoded is not None
    assert decoded.removeprefix("\ufeff") == text


def test_a_long_beginning_in_ascii_does_not_hide_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"ascii only\n" * 40_000 + "租约的软限制是九十秒，硬限制是两小时。".encode("gb18030"))
    with encoding.open_text(path) as file:
        assert file.read().endswith("硬限制是两小时。")


def test_a_wrong_declaration_does_not_win() -> None:
    assert encoding.decode("租约的软限制".encode(), "iso-8859-1") == "租约的软限制"
    assert encoding.decode("租约的软限制".encode("gb18030"), "gb2312") == "租约的软限制"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b,c\n1,2,3\n4,5,6\n", ","),
        ("a;b;c\n1,5;2;3\n4,5;5;6\n7,5;5;6", ";"),
        ('a\tb\tc\n"x\ny"\t2\t3\n4\t5\t6\n', "\t"),
        ("a|b|c\n1|2|3\n4|5|6\n", "|"),
        ("One, two, three.\nThen four.\nAnd, at last, five, six, seven.\n", None),
        (
            "Whoever writes a file has to hold the lease of that file, which is granted by the master of the cluster.\n"
            * 6,
            None,
        ),
        ("", None),
    ],
)
def test_delimiters(text: str, expected: str | None) -> None:
    assert delimiters.find(text) == expected
