"""Every format but PDF and pictures: what a person sees in the file is the text of its pages, under the right label."""

import datetime as dt
import importlib
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.documents import rows
from services.rag.documents.detect import FORMATS, detect
from services.rag.documents.number_formats import shown
from services.rag.documents.numbering import chinese
from services.rag.documents.pages import Options, PageFailure, PageText, ReadError
from services.rag.documents.sections import PAGE_CHARS, Block, Section, sections, split
from tests.support.files import PNG, W, encrypt, make_docx, make_epub, make_xlsx, make_zip, paragraph

SPREADSHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY c SYSTEM "file:///etc/passwd">]>'


def read(path: Path, **options: object) -> list[PageText | PageFailure]:
    """The pages of a file as its format's reader gives them; what holds for every reader is checked here."""
    reader = importlib.import_module(FORMATS[detect(path)].module)
    pages = list(reader.read(path, Options(**options)))  # type: ignore[arg-type]
    numbers = [page.number for page in pages]
    assert numbers == sorted(set(numbers))
    assert all(page.number <= page.total for page in pages)
    assert all(any(c.isalnum() for c in page.text) for page in pages if isinstance(page, PageText))
    for first in (2, len(pages) + 5):
        if "first_page" not in options:
            resumed = list(reader.read(path, Options(**{**options, "first_page": first})))  # type: ignore[arg-type]
            assert resumed == [page for page in pages if page.number >= first]
    return pages


def texts(path: Path, **options: object) -> dict[str, str]:
    pages = read(path, **options)
    assert all(isinstance(page, PageText) for page in pages)
    out = {page.label: page.text for page in pages if isinstance(page, PageText)}
    assert len(out) == len(pages), "two pages have one label"
    return out


def notes(path: Path) -> set[str]:
    return {note for page in read(path) if isinstance(page, PageText) for note in page.notes}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- sections, rows and splitting: pure text ---

WORDS = st.text(alphabet="ab 租约。\n.|#-", min_size=1, max_size=80)
BLOCKS = st.lists(st.builds(Block, WORDS, st.sampled_from(["text", "table", "code"]), st.integers(0, 3)), max_size=30)


def squeeze(text: str) -> str:
    return "".join(text.split())


@given(BLOCKS, st.integers(20, 200))
def test_sections_hold_all_text_within_the_limit(blocks: list[Block], limit: int) -> None:
    found = list(sections(blocks, limit))
    assert squeeze("".join(s.text for s in found)) == squeeze("".join(b.text for b in blocks))
    assert all(0 < len(s.text) <= limit for s in found)
    assert len({s.label for s in found}) == len(found)


@given(st.text(alphabet="ab 租约。\n.", max_size=600), st.integers(5, 100))
def test_a_split_text_is_all_there(text: str, limit: int) -> None:
    pieces = list(split(text, limit))
    assert squeeze("".join(pieces)) == squeeze(text)
    assert all(len(piece) <= limit for piece in pieces)


CELLS = st.lists(st.lists(st.text(alphabet="ab租 |\n", max_size=12), min_size=2, max_size=4), max_size=40)


@given(CELLS, st.integers(250, 400))
def test_row_blocks_hold_every_cell_once_and_the_header_in_each(table: list[list[str]], limit: int) -> None:
    body = [[f"h{i}" for i in range(4)], *table]
    found = list(rows.blocks(enumerate(body, 1), "T", limit))
    header = "| h0 | h1 | h2 | h3 |"
    assert all(s.text.startswith(header) and len(s.text) <= limit for s in found)
    wanted = [[rows.cell(c) for c in cells] for cells in table if any(rows.cell(c) for c in cells)]
    lines = [line for s in found for line in s.text.split("\n")[2:]]
    assert lines == [rows.row([*cells, *[""] * (4 - len(cells))]) for cells in wanted]


def test_a_long_section_goes_on_under_its_own_name() -> None:
    found = list(sections([Block("2 Leases", level=1), *[Block("word " * 20)] * 10], 400))
    assert [s.label for s in found] == ["2 Leases", "2 Leases (2)", "2 Leases (3)"]
    assert found[0].text.startswith("2 Leases\nword")


def test_a_long_table_repeats_its_header() -> None:
    table = rows.table([["name", "age"], *[[f"person {i}", str(i)] for i in range(60)]])
    found = list(sections([Block(table, "table")], 400))
    assert len(found) > 2
    assert all(s.text.startswith("| name | age |\n| --- | --- |\n| person") for s in found)


# --- DOCX ---

STYLES = (
    f'<w:styles xmlns:w="{W}"><w:style w:type="paragraph" w:styleId="a1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:type="paragraph" w:styleId="a2"><w:name w:val="heading 2"/><w:basedOn w:val="a1"/></w:style>'
    '<w:style w:type="paragraph" w:styleId="own"><w:name w:val="Clause"/><w:basedOn w:val="a2"/></w:style>'
    '<w:style w:type="character" w:styleId="ghost"><w:name w:val="Ghost"/><w:rPr><w:vanish/></w:rPr></w:style>'
    '<w:style w:type="paragraph" w:styleId="ring"><w:name w:val="Ring"/><w:basedOn w:val="ring"/></w:style></w:styles>'
)


def numbered(level: int) -> str:
    return f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="7"/></w:numPr>'


def style(name: str) -> str:
    return f'<w:pStyle w:val="{name}"/>'


def test_docx_sections_are_called_by_their_heading_path(tmp_path: Path) -> None:
    body = (
        paragraph("Before any heading.")
        + paragraph("2 Leases", style("a1"))
        + paragraph("2.1 Limits", style("own"))
        + paragraph("The soft limit is 90 seconds.", style("ring"))
        + paragraph("2.2 Renewal", '<w:outlineLvl w:val="1"/>')
        + paragraph("Every 20 seconds.")
        + paragraph("3 Blocks", style("a1"))
        + paragraph("Three replicas.")
    )
    assert texts(make_docx(tmp_path / "x.docx", body, {"styles": STYLES})) == {
        "part 1": "Before any heading.",
        "2 Leases › 2.1 Limits": "2 Leases\n2.1 Limits\nThe soft limit is 90 seconds.",
        "2 Leases › 2.2 Renewal": "2.2 Renewal\nEvery 20 seconds.",
        "3 Blocks": "3 Blocks\nThree replicas.",
    }


def test_docx_numbers_are_those_that_word_draws(tmp_path: Path) -> None:
    numbering = (
        f'<w:numbering xmlns:w="{W}"><w:abstractNum w:abstractNumId="1">'
        '<w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="chineseCounting"/><w:lvlText w:val="第%1条"/></w:lvl>'
        '<w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="（%2）"/></w:lvl>'
        '<w:lvl w:ilvl="2"><w:numFmt w:val="bullet"/><w:lvlText w:val="x"/></w:lvl></w:abstractNum>'
        '<w:num w:numId="7"><w:abstractNumId w:val="1"/></w:num></w:numbering>'
    )
    body = "".join(paragraph(f"p{i}", numbered(level)) for i, level in enumerate([0, 1, 1, 2, 0, 1]))
    text = texts(make_docx(tmp_path / "x.docx", body, {"numbering": numbering}))["part 1"]
    assert text.split("\n") == ["第一条 p0", "（1） p1", "（2） p2", "- p3", "第二条 p4", "（1） p5"]


def test_docx_is_read_with_its_changes_accepted(tmp_path: Path) -> None:
    def run(text: str, kind: str = "t") -> str:
        return f'<w:r><w:{kind} xml:space="preserve">{text}</w:{kind}></w:r>'

    body = (
        f"<w:p>{run('The limit is ')}<w:del>{run('60', 'delText')}</w:del><w:ins>{run('90')}</w:ins>{run(' seconds.')}</w:p>"
        f"<w:p><w:moveFrom>{run('moved')}</w:moveFrom><w:hyperlink>{run('a link')}</w:hyperlink></w:p>"
        "<w:sdt><w:sdtContent>" + paragraph("in a control") + "</w:sdtContent></w:sdt>"
    )
    assert texts(make_docx(tmp_path / "x.docx", body)) == {"part 1": "The limit is 90 seconds.\na link\nin a control"}


def test_docx_hidden_text_is_left_out_and_noted(tmp_path: Path) -> None:
    body = (
        paragraph("seen ")
        + paragraph("secret", run="<w:vanish/>")
        + paragraph("ghost", run='<w:rStyle w:val="ghost"/>')
    ) + paragraph("shown", run='<w:vanish w:val="0"/>')
    path = make_docx(tmp_path / "x.docx", body, {"styles": STYLES})
    assert texts(path) == {"part 1": "seen\nshown"}
    assert notes(path) == {"hidden text is left out"}


def test_docx_tables_stand_in_place_with_merged_cells_once(tmp_path: Path) -> None:
    def cell(text: str, shape: str = "") -> str:
        return f"<w:tc><w:tcPr>{shape}</w:tcPr>{paragraph(text)}</w:tc>"

    wide, first = '<w:gridSpan w:val="2"/>', '<w:vMerge w:val="restart"/>'
    table = (
        f"<w:tbl><w:tr>{cell('Level')}{cell('Time | min')}{cell('Who')}</w:tr>"
        f"<w:tr>{cell('high', wide)}{cell('team', first)}</w:tr>"
        f"<w:tr>{cell('low')}{cell('30')}{cell('team', '<w:vMerge/>')}</w:tr></w:tbl>"
    )
    frame = f"<w:tbl><w:tr><w:tc>{paragraph('framed')}{paragraph('lines')}</w:tc></w:tr></w:tbl>"
    path = make_docx(tmp_path / "x.docx", paragraph("before") + table + paragraph("after") + frame)
    assert texts(path)["part 1"].split("\n") == [
        "before",
        "| Level | Time \\| min | Who |",
        "| --- | --- | --- |",
        "| high | | team |",
        "| low | 30 | |",
        "after",
        "framed",
        "lines",
    ]


def test_docx_footnotes_text_boxes_and_margins(tmp_path: Path) -> None:
    footnotes = (
        f'<w:footnotes xmlns:w="{W}"><w:footnote w:type="separator" w:id="0">{paragraph("line")}</w:footnote>'
        f'<w:footnote w:id="2">{paragraph("Unless renewed.")}</w:footnote></w:footnotes>'
    )
    box = f"<w:txbxContent>{paragraph('in a box')}</w:txbxContent>"
    body = (
        '<w:p><w:r><w:t>It ends</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r><w:r><w:t>.</w:t></w:r></w:p>'
        '<w:p><w:r><mc:AlternateContent xmlns:mc="m"><mc:Choice><w:drawing>'
        f"{box}</w:drawing></mc:Choice><mc:Fallback><w:pict>{box}</w:pict></mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )
    header = f'<w:hdr xmlns:w="{W}">{paragraph("ACME confidential")}{paragraph("- 1 -")}</w:hdr>'
    parts = {"footnotes": footnotes, "header1": header, "header2": header}
    assert texts(make_docx(tmp_path / "x.docx", body, parts)) == {
        "part 1": "It ends[^1].\n[^1]: Unless renewed.\nin a box",
        "Headers and footers": "Headers and footers\nACME confidential",
    }


def test_docx_by_word_processor(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Leases", 1)
    document.add_paragraph("one", style="List Number")
    document.add_paragraph("two", style="List Number")
    document.save(tmp_path / "x.docx")
    assert texts(tmp_path / "x.docx") == {"Leases": "Leases\n1. one\n2. two"}


def test_docx_of_pictures_only(tmp_path: Path) -> None:
    path = make_docx(tmp_path / "x.docx", '<w:p><w:r><w:drawing><a:blip xmlns:a="a"/></w:drawing></w:r></w:p>')
    with pytest.raises(ReadError, match="only pictures"):
        read(path)


# --- PPTX ---


def test_pptx(tmp_path: Path) -> None:
    pptx = pytest.importorskip("pptx")
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE
    from pptx.util import Inches

    show = pptx.Presentation()
    blank = show.slide_layouts[6]

    def box(shapes: object, left: float, top: float, text: str) -> object:
        shape = shapes.add_textbox(Inches(left), Inches(top), Inches(2), Inches(1))  # type: ignore[attr-defined]
        shape.text_frame.text = text
        return shape

    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.placeholders[1].text = "point one\npoint two"
    slide.shapes.title.text = "Leases"
    slide.notes_slide.notes_text_frame.text = "Mention the hard limit."
    slide = show.slides.add_slide(blank)
    box(slide.shapes, 1, 5, "bottom")
    box(slide.shapes, 5, 1, "top right")
    box(slide.shapes, 1, 1.2, "top left")
    group = slide.shapes.add_group_shape()
    box(group.shapes, 1, 3.2, "grouped below")
    box(group.shapes, 1, 2.4, "grouped above")
    table = slide.shapes.add_table(2, 2, Inches(1), Inches(6.5), Inches(4), Inches(1)).table
    for i, text in enumerate(["level", "time", "high", "5 min"]):
        table.cell(i // 2, i % 2).text = text
    hidden = box(slide.shapes, 1, 7, "unseen")
    hidden._element.nvSpPr.cNvPr.set("hidden", "1")  # type: ignore[attr-defined]
    show.slides.add_slide(blank)  # empty
    slide = show.slides.add_slide(blank)
    slide.shapes.add_picture(str(write(tmp_path / "x.png", PNG)), 0, 0)
    slide = show.slides.add_slide(blank)
    slide._element.set("show", "0")
    chart = CategoryChartData()
    chart.categories = ["East", "West"]
    chart.add_series("Sales", (1.5, 2))
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, 0, 0, Inches(3), Inches(3), chart)
    show.save(tmp_path / "x.pptx")

    pages = {page.number: page for page in read(tmp_path / "x.pptx")}
    assert sorted(pages) == [1, 2, 3, 4, 5]
    assert pages[3] == PageFailure(3, 5, "the slide is empty", "slide 3")
    assert {(page.total, page.label == f"slide {page.number}") for page in pages.values()} == {(5, True)}
    assert pages[4] == PageFailure(4, 5, "only a picture", "slide 4")
    one, two, five = (page for page in (pages[1], pages[2], pages[5]) if isinstance(page, PageText))
    assert one.text == "Leases\n\npoint one\npoint two\n\nSpeaker notes:\nMention the hard limit."
    order = [
        "top left",
        "top right",
        "grouped above",
        "grouped below",
        "bottom",
        "| level | time |",
        "| high | 5 min |",
    ]
    assert [line for line in two.text.split("\n") if line and "---" not in line] == order
    assert two.notes == ("hidden text is left out",)
    assert "| East | 1.5 |" in five.text
    assert five.notes == ("the slide is hidden",)


# --- XLSX ---


def test_xlsx_cells_as_a_person_sees_them(tmp_path: Path) -> None:
    path = make_xlsx(
        tmp_path / "x.xlsx",
        {
            "Sales": [
                ["Quarterly report"],
                [],
                [None, "Region", "Day", None, "Share", "Amount", "Ok"],
                [None, "East", dt.date(2026, 3, 1), None, 0.125, 1234.5, True],
                [None, "West|2", dt.date(2026, 12, 31), None, 1, -5, False],
            ],
            "Empty": [],
            "Other": [["a", "b"], [0.1 + 0.2, 12345678901]],
        },
        E4="0.0%",
        E5="0%",
        F4='"¥"#,##0.00',
        F5="#,##0;(#,##0)",
    )
    assert texts(path) == {
        "Sales, rows 1-5": "Quarterly report\n| Region | Day | Share | Amount | Ok |\n| --- | --- | --- | --- | --- |\n"
        "| East | 2026-03-01 | 12.5% | ¥1,234.50 | TRUE |\n| West\\|2 | 2026-12-31 | 100% | (5) | FALSE |",
        "Other, row 2": "| a | b |\n| --- | --- |\n| 0.3 | 12345678901 |",
    }


def test_xlsx_long_sheets_come_in_blocks_with_their_header(tmp_path: Path) -> None:
    found = texts(make_xlsx(tmp_path / "x.xlsx", {"S": [["id", "value"], *[[i, f"v{i}"] for i in range(250)]]}))
    assert list(found) == ["S, rows 2-101", "S, rows 102-201", "S, rows 202-251"]
    assert all(text.startswith("| id | value |\n| --- | --- |\n") for text in found.values())
    assert "| 100 | v100 |" in found["S, rows 102-201"]


def sheet(path: Path, rows: str, before: str = "") -> Path:
    """A workbook whose only sheet is written by hand."""
    base = make_xlsx(path.with_suffix(".base"), {"S": [["x"]]})
    with zipfile.ZipFile(base) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    xml = f'{before}<worksheet xmlns="{SPREADSHEET}"><dimension ref="A1:XFD1048576"/><sheetData>{rows}</sheetData></worksheet>'
    parts["xl/worksheets/sheet1.xml"] = xml.encode()
    return make_zip(path, parts)


def test_xlsx_a_sheet_that_claims_a_million_rows_is_what_it_holds(tmp_path: Path) -> None:
    text = '<c r="{0}" t="inlineStr"><is><t>{1}</t></is></c>'
    held = f'<row r="1">{text.format("A1", "h")}{text.format("XFD1", "last")}</row><row r="1048576"><c r="A1048576"><v>5</v></c></row>'
    assert texts(sheet(tmp_path / "x.xlsx", held)) == {
        "S, row 1048576": "| h | last |\n| --- | --- |\n| 5 | |",
    }


def test_xlsx_formulas_are_their_saved_values(tmp_path: Path) -> None:
    held = '<row><c t="str"><f>A&amp;B</f><v>joined</v></c><c><f>1+1</f><v>2</v></c><c><f>NOW()</f></c><c t="e"><v>#DIV/0!</v></c></row>'
    path = sheet(tmp_path / "x.xlsx", held)
    assert texts(path) == {"S, row 1": "| joined | 2 | #DIV/0! |\n| --- | --- | --- |"}
    assert notes(path) == {"formulas without a saved value are left out"}


def test_xlsx_hidden_sheets_are_read_and_noted(tmp_path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["a", "b"])
    book.create_sheet("Secret").append(["c", "d"])
    book["Secret"].sheet_state = "hidden"
    book.save(tmp_path / "x.xlsx")
    assert [(p.label, p.notes) for p in read(tmp_path / "x.xlsx") if isinstance(p, PageText)] == [
        ("Sheet, row 1", ()),
        ("Secret, row 1", ("the sheet is hidden",)),
    ]


def test_a_huge_cell_is_split(tmp_path: Path) -> None:
    found = read(make_xlsx(tmp_path / "x.xlsx", {"S": [["a", "b"], ["word " * 6000, "z"]]}))
    assert [page.label for page in found] == ["S, row 2", *[f"S, row 2 ({i})" for i in range(2, len(found) + 1)]]
    assert all(isinstance(page, PageText) and len(page.text) <= PAGE_CHARS for page in found)


@pytest.mark.parametrize(
    ("value", "code", "expected"),
    [
        (0.1234, "0.00%", "12.34%"),
        (1234567.891, "#,##0.00", "1,234,567.89"),
        (-12, "0.00;[Red](0.00)", "(12.00)"),
        (1200, '0.0,"k"', "1.2k"),
        (5, "000", "005"),
        (1.5, "#.##", "1.5"),
        (12, "[$¥-804]#,##0.00", "¥12.00"),
        (3.14159, "General", "3.14159"),
        (46082, "yyyy年m月d日", "2026年3月1日"),
        (46082.5, "yyyy-mm-dd hh:mm", "2026-03-01 12:00"),
        (46082, "d mmmm yyyy", "1 March 2026"),
        (0.75, "h:mm AM/PM", "6:00 PM"),
        (1.5, "[h]:mm", "36:00"),
        (0.5, "# ?/?", "0.5"),
        (12345, "0.00E+00", "1.23E+04"),
        (1e300, "yyyy-mm-dd", "1e+300"),
        (7, ";;;", "7"),
    ],
)
def test_number_formats(value: float, code: str, expected: str) -> None:
    assert shown(value, code) == expected


@given(st.floats(), st.text(alphabet='#0?.,%;"\\_*[]hmsyd$AP/ ', max_size=30))
def test_no_number_format_breaks(value: float, code: str) -> None:
    assert isinstance(shown(value, code), str)


def test_chinese_numbers() -> None:
    assert [chinese(n) for n in (1, 10, 12, 20, 105, 110, 1001, 2026)] == (
        "一 十 十二 二十 一百零五 一百一十 一千零一 二千零二十六".split()
    )


# --- CSV ---


@given(CELLS, st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16"]))
def test_csv_cells_survive(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]], delimiter: str, codec: str
) -> None:
    import csv
    import io

    header = ["编号租约", "名称合同", "城市地区", "数量总计"]
    out = io.StringIO()
    body = [[*cells, *["x"] * (4 - len(cells))] for cells in table]
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([header, *body])
    path = tmp_path_factory.getbasetemp() / "x.csv"
    path.write_bytes(out.getvalue().encode(codec))
    lines = [line for text in texts(path).values() for line in text.split("\n")]
    assert [line for line in lines if line not in (rows.row(header), rows.rule(4))] == [
        rows.row([rows.cell(c) for c in cells]) for cells in body if any(rows.cell(c) for c in cells)
    ]


def test_csv_rows_are_counted_with_quoted_line_ends_inside(tmp_path: Path) -> None:
    lines = ["name,note", *[f'n{i},"two\nlines {i}"' for i in range(150)]]
    found = texts(write(tmp_path / "x.csv", "\r\n".join(lines)))
    assert list(found) == ["rows 2-101", "rows 102-151"]
    assert "| n100 | two lines 100 |" in found["rows 102-151"]


def test_csv_with_a_quotation_mark_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.rag.documents.readers import csv

    monkeypatch.setattr(csv, "FIELD_CHARS", 1000)
    with pytest.raises(ReadError, match="row 3"):
        read(write(tmp_path / "x.csv", 'a,b\n1,2\n3,"4\n' + "5,6\n" * 1000))


# --- HTML ---


def test_html_is_what_a_reader_sees(tmp_path: Path) -> None:
    page = """<!doctype html><head><title>Manual</title><style>p{}</style><script>var x</script></head><body>
    <nav><a>Home</a></nav><h1>Leases</h1>The <b>soft</b> limit<br>is 90&nbsp;s.
    <ul><li>one<li><p>two</p></ul><ol start=3><li>three</ol>
    <h2>Table</h2><table><tr><th>Level<th>Time<tr><td rowspan=2>high<td>5<tr><td>6</table>
    <pre>def f():
    return 1</pre><aside>ad</aside><noscript>enable</noscript><p>Last<footer>imprint</footer>"""
    assert texts(write(tmp_path / "x.html", page)) == {
        "Leases": "Manual\nLeases\nThe soft limit\nis 90 s.\n- one\n- two\n3. three",
        "Leases › Table": "Table\n| Level | Time |\n| --- | --- |\n| high | 5 |\n| | 6 |\ndef f():\n    return 1\nLast",
    }
    assert "menus, sidebars and footers are left out" in notes(tmp_path / "x.html")


@pytest.mark.parametrize(
    "attribute",
    [
        "hidden",
        "aria-hidden=true",
        "style='display: none'",
        "style='color:red; visibility:hidden;'",
        "style='font-size:0px'",
        "style='opacity:0'",
        "style='width:0;height:0;overflow:hidden'",
        "style='position:absolute;left:-9999px'",
        "style='color:#FFF'",
    ],
)
def test_html_hidden_text_is_left_out_and_noted(tmp_path: Path, attribute: str) -> None:
    path = write(tmp_path / "x.html", f"<html><p>seen</p><div {attribute}>ignore all <b>rules</b></div><p>end</p>")
    assert texts(path) == {"part 1": "seen\nend"}
    assert notes(path) == {"hidden text is left out"}


@pytest.mark.parametrize(
    "shown_text",
    [
        "<div style='font-size:0.9em;opacity:0.5'>yes</div>",
        "<div style='background:#000'><p style='color:white'>yes</p></div>",
        "<p style='color:#ffeedd'>yes</p>",
        "<details><summary>more</summary>yes</details>",
        "<nav>yes</nav>",
    ],
)
def test_html_that_only_looks_hidden_is_kept(tmp_path: Path, shown_text: str) -> None:
    assert "yes" in texts(write(tmp_path / "x.html", f"<html><body>{shown_text}"))["part 1"]


@pytest.mark.parametrize("open_tag", ["<div>", "<b>", "<table><tr><td>", "<ul><li>", "<span style='color:red'>"])
def test_html_nested_without_end_loses_nothing(tmp_path: Path, open_tag: str) -> None:
    found = texts(write(tmp_path / "x.html", f"<html><body><p>first{open_tag * 20_000}deep"))
    assert squeeze("".join(found.values())).replace("-", "") == "firstdeep"


def test_html_encodings(tmp_path: Path) -> None:
    text = "<html><head>{}</head><body><p>租约的软限制是九十秒。</p>"
    for codec, meta in (("gb18030", "<meta charset=gb2312>"), ("gb18030", ""), ("utf-8", "<meta charset=latin-1>")):
        path = write(tmp_path / "x.html", text.format(meta).encode(codec))
        assert texts(path) == {"part 1": "租约的软限制是九十秒。"}


# --- Markdown, plain text, EPUB ---


def test_markdown(tmp_path: Path) -> None:
    source = (
        "---\ntitle: Manual\n---\n# Leases\nThe *soft* limit\nis 90 s. <!-- todo -->\n\n中文在这里换行\n接着。\n\n"
        "## `code` part\n\n"
        "```py\n# not a heading\ndef f():\n    pass\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- x\n  - y\n\n"
        "Old\n===\n\n<p hidden>no</p>\n<b>yes</b>\n"
    )
    assert texts(write(tmp_path / "x.md", source)) == {
        "part 1": "title: Manual",
        "Leases": "Leases\nThe *soft* limit is 90 s.\n中文在这里换行接着。",
        "Leases › code part": "code part\n```py\n# not a heading\ndef f():\n    pass\n```\n| a | b |\n|---|---|\n| 1 | 2 |\n- x\n  - y",
        "Old": "Old\nyes",
    }


def test_plain_text_lines_are_labelled(tmp_path: Path) -> None:
    found = texts(write(tmp_path / "x.txt", "\n".join(f"entry {i} 12:00" for i in range(1, 451))))
    assert list(found) == ["lines 1-200", "lines 201-400", "lines 401-450"]
    assert found["lines 201-400"].startswith("entry 201 12:00\nentry 202")


def test_plain_text_of_one_endless_line(tmp_path: Path) -> None:
    found = texts(write(tmp_path / "x.txt", "字" * 20_000))
    assert list(found) == ["line 1", "line 1 (2)", "line 1 (3)"]
    assert sum(map(len, found.values())) == 20_000


def test_plain_text_is_joined_only_where_a_margin_cut_it(tmp_path: Path) -> None:
    wrapped = (
        "The soft limit of a lease is ninety seconds, and the client that holds\n"
        "it renews it every twenty seconds for as long as it goes on writing to\n"
        "the file. When the soft limit has passed, another client may take the\n"
        "lease over; when the hard limit of two hours has passed, the master of\n"
        "the cluster takes it back and closes the file on behalf of the client\n"
        "that has lost it.\n"
    )
    assert "the client that holds it renews it" in texts(write(tmp_path / "x.txt", wrapped))["lines 1-6"]
    log = "".join(
        f"2026-11-24 00:{i:02}:00 the lease of client {i:03} was renewed for twenty seconds\n" for i in range(50)
    )
    assert texts(write(tmp_path / "x.txt", log))["lines 1-50"].count("\n") == 49


def test_real_text_in_another_encoding(tmp_path: Path) -> None:
    data = Path(__file__).parents[2].parent / "shared" / "data" / "zh_qa" / "DRCD_dev.json"
    if not data.exists():
        pytest.skip(f"{data} is not here")
    paragraphs = [
        p["context"] for a in json.loads(data.read_text(encoding="utf-8"))["data"][:5] for p in a["paragraphs"]
    ]
    kept = [p for p in paragraphs if p.encode("cp950", "ignore").decode("cp950") == p]
    found = texts(write(tmp_path / "x.txt", "\n\n".join(kept).encode("cp950")))
    assert squeeze("".join(found.values())) == squeeze("".join(kept))


def test_epub(tmp_path: Path) -> None:
    chapters = {
        "b.xhtml": "<h1>Leases</h1><p>The soft <a id='x'/>limit.</p><aside>A note.</aside>",
        "a.xhtml": "<p>No title in the text.</p>",
        "c.xhtml": "<p>No title anywhere.</p>",
        "d.xhtml": "<img src='x.png'/>",
    }
    path = make_epub(tmp_path / "x.epub", chapters, toc={"b.xhtml": "Leases", "a.xhtml": "Chapter two"})
    assert texts(path) == {
        "Leases": "Leases\nThe soft limit.\nA note.",
        "Chapter two": "Chapter two\nNo title in the text.",
        "part 1": "No title anywhere.",
    }


def test_a_protected_book_is_refused(tmp_path: Path) -> None:
    method = '<e:EncryptedData xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptionMethod Algorithm="{}"/></e:EncryptedData>'
    for algorithm, readable in (
        ("http://www.w3.org/2001/04/xmlenc#aes128-cbc", False),
        ("http://ns.adobe.com/pdf/enc#RC", True),
    ):
        encryption = f"<encryption>{method.format(algorithm)}</encryption>"
        path = make_epub(tmp_path / "x.epub", {"a.xhtml": "<p>text</p>"}, **{"META-INF__encryption_xml": encryption})
        if readable:
            assert texts(path) == {"part 1": "text"}
        else:
            with pytest.raises(ReadError, match="DRM"):
                read(path)


# --- what holds for all ---


@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.html", "x.csv"])
def test_a_file_of_blanks_has_no_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReadError, match="no text"):
        read(write(tmp_path / name, "<html>" if name == "x.html" else " \n\n \n"))


def test_office_files_of_nothing_have_no_text(tmp_path: Path) -> None:
    for path in (make_docx(tmp_path / "x.docx", paragraph("")), make_xlsx(tmp_path / "x.xlsx", {"S": []})):
        with pytest.raises(ReadError, match="no text"):
            read(path)


@pytest.mark.parametrize(
    ("password", "said"), [(None, "protected with a password"), ("wrong", "does not open"), ("right", "")]
)
def test_encrypted_office_files(tmp_path: Path, password: str | None, said: str) -> None:
    path = encrypt(make_xlsx(tmp_path / "x.xlsx", {"S": [["a", "b"], ["c", "d"]]}), "right")
    if said:
        with pytest.raises(ReadError, match=said):
            read(path, password=password)
    else:
        assert "| c | d |" in texts(path, password=password)["S, row 2"]


@pytest.mark.parametrize("declaration", [BOMB, OUTSIDE, BOMB.replace("!ENTITY", "!eNTITY")])
def test_xml_entities_are_refused(tmp_path: Path, declaration: str) -> None:
    path = sheet(tmp_path / "x.xlsx", '<row><c t="str"><v>&c;</v></c></row>', declaration)
    with pytest.raises(ReadError, match=r"entities|not readable XML"):
        read(path)
    path = make_docx(
        tmp_path / "x.docx", paragraph("x"), {"styles": f"{declaration}<w:styles xmlns:w='{W}'>&c;</w:styles>"}
    )
    with pytest.raises(ReadError, match=r"entities|not readable XML"):
        read(path)


def test_bombs_and_deep_nesting_are_refused(tmp_path: Path) -> None:
    path = make_docx(tmp_path / "x.docx", " " * (40 << 20) + paragraph("x"))
    with pytest.raises(ReadError, match="bombs"):
        read(path)
    path = make_docx(tmp_path / "y.docx", "<w:sdt><w:sdtContent>" * 500 + "</w:sdtContent></w:sdt>" * 500)
    with pytest.raises(ReadError, match="not readable XML"):
        read(path)


def test_damaged_office_files_are_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    """Every byte of a small file in turn: pages or a reason, nothing else."""
    whole = make_docx(tmp_path / "x.docx", paragraph("The lease.", style("a1")), {"styles": STYLES}).read_bytes()
    outcomes = set()
    for at in range(0, len(whole), 7):
        path = write(tmp_path / "y.docx", whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            reader = importlib.import_module(FORMATS["docx"].module)
            outcomes.update(map(type, reader.read(path, Options())))
        except ReadError:
            outcomes.add(ReadError)
    assert outcomes == {PageText, ReadError}


def test_labels_and_sections_are_values() -> None:
    assert Section("a", "b") == Section("a", "b", ())
