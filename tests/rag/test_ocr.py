"""OCR, reading order and the reader of pictures. The models are the real ones, from the installed wheel."""

import difflib
import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from services.rag.documents import ocr
from services.rag.documents.lines import Line, arrange
from services.rag.documents.ocr import Ocr
from services.rag.documents.pages import Options, Page, PageFailure, PageText, ReadError
from services.rag.documents.readers import image as reader

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
LEASE = [
    "The soft limit of a lease is 90 seconds.",
    "The hard limit of a lease is 2 hours.",
    "Renew it every 20 seconds.",
]
ON = Options(ocr=True)
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def models() -> Ocr:
    return Ocr()


def drawn(
    lines: list[str], size: tuple[int, int] = (900, 260), ink: str = "black", paper: str = "white"
) -> Image.Image:
    picture = Image.new("RGB", size, paper)
    for row, line in enumerate(lines):
        ImageDraw.Draw(picture).text((40, 30 + 60 * row), line, font=ImageFont.load_default(30), fill=ink)
    return picture


def pixels(picture: Image.Image) -> Pixels:
    return np.asarray(picture.convert("RGB"), np.uint8)


def rendered(name: str, page: int) -> tuple[Pixels, str]:
    """A page of a real document at 200 dpi, and the text that it holds."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    import pypdfium2

    found = pypdfium2.PdfDocument(path)[page]
    text = found.get_textpage().get_text_bounded()
    return np.ascontiguousarray(found.render(scale=200 / 72).to_numpy()[:, :, 2::-1]), text


def folded(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum())


def agreement(truth: str, text: str) -> float:
    """The share of the letters of ``truth`` that stand in ``text`` in the same order."""
    a, b = folded(truth), folded(text)
    return sum(m.size for m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()) / len(a)


class TestOcr:
    def test_reads_lines_in_order(self, models: Ocr) -> None:
        result = models.read(pixels(drawn(LEASE)))
        assert [line for line in result.text.split("\n") if line] == LEASE
        assert result.readable

    @pytest.mark.parametrize("turns", [1, 2, 3])
    def test_turned_page(self, models: Ocr, turns: int) -> None:
        assert agreement(" ".join(LEASE), models.read(np.rot90(pixels(drawn(LEASE)), turns)).text) == 1

    @pytest.mark.parametrize("degrees", [-4, 4])
    def test_skewed_page(self, models: Ocr, degrees: float) -> None:
        skewed = drawn(LEASE).rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
        assert agreement(" ".join(LEASE), models.read(pixels(skewed)).text) > 0.97

    def test_white_on_black(self, models: Ocr) -> None:
        assert agreement(" ".join(LEASE), models.read(pixels(drawn(LEASE, ink="white", paper="black"))).text) > 0.97

    def test_one_short_word_in_a_small_picture(self, models: Ocr) -> None:
        picture = Image.new("RGB", (60, 20), "white")
        ImageDraw.Draw(picture).text((2, 1), "Lease", font=ImageFont.load_default(14), fill="black")
        assert models.read(pixels(picture)).text == "Lease"

    def test_long_screenshot(self, models: Ocr) -> None:
        lines = [f"Entry number {n} of the list" for n in range(100, 130)]
        result = models.read(pixels(drawn(lines, size=(520, 1860))))
        assert agreement(" ".join(lines), result.text) > 0.97

    @pytest.mark.parametrize(
        "picture",
        [
            np.full((700, 500, 3), 255, np.uint8),
            np.random.default_rng(0).integers(0, 255, (500, 700, 3), dtype=np.uint8),
            np.zeros((1, 1, 3), np.uint8),
            np.zeros((0, 5, 3), np.uint8),
            np.full((10, 50_000, 3), 255, np.uint8),
            np.full((50_000, 600, 3), 255, np.uint8)[::10],
        ],
        ids=["white", "noise", "one pixel", "no pixel", "rule", "long"],
    )
    def test_nothing_to_read(self, models: Ocr, picture: Pixels) -> None:
        result = models.read(picture)
        assert result.text == ""
        assert result.confidence == 0
        assert not result.readable
        assert ocr.unreadable(result) == "OCR found no text in the picture of the page"

    @pytest.mark.parametrize("turns", [0, 1])
    def test_a_chinese_page(self, models: Ocr, turns: int) -> None:
        picture, truth = rendered("pdf_real/zh_alibaba_java_manual_huangshan.pdf", 10)
        result = models.read(np.rot90(picture[:700], turns))  # the upper third: a whole page takes its time
        assert result.readable
        assert len(folded(result.text)) > 300
        assert agreement(result.text, truth) > 0.98
        assert "说明：POJO类属性没有初值是提醒使用者在需要使用时，必须自己显式地进行赋值" in result.text.replace(
            " ", ""
        )

    def test_columns_of_a_page(self, models: Ocr) -> None:
        picture, _ = rendered("pdf_real/en_multicolumn.pdf", 0)
        text = models.read(picture[:1250]).text  # two columns of which one ends in the middle of the page
        assert len(folded(text)) > 600
        left, right = text.index("mauris. Nam arcu libero"), text.index("pellentesque ante")
        assert left < right

    def test_a_scan_that_is_too_coarse_does_not_count_as_read(self, models: Ocr) -> None:
        picture, _ = rendered("pdf_real/zh_alibaba_java_manual_huangshan.pdf", 30)
        coarse = Image.fromarray(picture).resize((298, 421), Image.Resampling.BOX)
        result = models.read(pixels(coarse))
        assert not result.readable
        assert "confidence" in ocr.unreadable(result)

    def test_fits_the_limits_of_the_reading_process(self, tmp_path: Path) -> None:
        """Offline, silent, within the default address space, and without leaving a file behind."""
        drawn(LEASE * 8, size=(1654, 2339)).save(tmp_path / "page.png")
        home = tmp_path / "home"
        home.mkdir()
        script = """
import resource, sys
def watch(event, _):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.send")): raise AssertionError(event)
sys.addaudithook(watch)
resource.setrlimit(resource.RLIMIT_AS, (2048 << 20, 2048 << 20))
from pathlib import Path
from services.rag.documents.pages import Options
from services.rag.documents.readers import image
[page] = image.read(Path(sys.argv[1]), Options(ocr=True))
assert "soft limit of a lease" in page.text
"""
        env = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", script, str(tmp_path / "page.png")]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=home, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert list(home.iterdir()) == []

    def test_nothing_heavy_is_imported_before_it_is_needed(self) -> None:
        heavy = "{'numpy', 'cv2', 'onnxruntime', 'rapidocr'} & set(sys.modules)"
        script = f"import sys; from services.rag.documents.readers import image; assert image.ocr.available(); print({heavy})"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "set()", done.stderr

    def test_says_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ocr, "available", lambda: False)
        with pytest.raises(ReadError, match=r"pip install 'docduet\[ocr\]'"):
            Ocr()


def line(text: str, x: float, y: float, width: float | None = None, height: float = 20) -> Line:
    right = x + (width if width is not None else 10.0 * len(text))
    return Line(text, ((x, y), (right, y), (right, y + height), (x, y + height)))


class TestArrange:
    def test_nothing(self) -> None:
        assert arrange([]) == ""

    def test_columns_under_a_title_and_over_a_footer(self) -> None:
        left = [line(f"left line {n} of prose", 0, 100 + 24 * n, 300) for n in range(4)]
        right = [line(f"right line {n} of prose", 330, 104 + 24 * n, 300) for n in range(4)]
        title, footer = line("A title over both", 100, 20, 430), line("A footer over both columns", 50, 260, 530)
        mixed = [part for pair in zip(left, right, strict=True) for part in pair]
        order = [part for part in arrange([footer, *mixed, title]).split("\n") if part]
        assert order == [part.text for part in [title, *left, *right, footer]]

    def test_a_table_is_read_by_rows(self) -> None:
        cells = [
            line(text, 200 * column, 30 * row, 60)
            for row, texts in enumerate(["abc", "def", "ghi", "jkl"])
            for column, text in enumerate(texts)
        ]
        assert arrange(cells).split() == list("abcdefghijkl")
        assert arrange(cells).split("\n")[0] == "a b c"

    def test_pieces_of_a_line(self) -> None:
        assert arrange([line("租约的", 0, 0, 60), line("软限制", 62, 1, 60)]) == "租约的软限制"
        assert arrange([line("姓名", 0, 0, 40), line("张三", 200, 1, 40)]) == "姓名 张三"
        assert arrange([line("soft", 0, 0, 40), line("limit", 45, 1, 50)]) == "soft limit"

    def test_a_gap_is_a_paragraph(self) -> None:
        assert arrange([line("first", 0, 0), line("second", 0, 22), line("third", 0, 80)]) == "first\nsecond\n\nthird"

    @given(
        st.lists(
            st.tuples(*[st.integers(0, 1000)] * 2, st.integers(1, 900), st.integers(1, 80), st.integers(-40, 40)),
            max_size=40,
        )
    )
    def test_every_piece_stands_once(self, places: list[tuple[int, int, int, int, int]]) -> None:
        lines = []
        for n, (x, y, width, height, slant) in enumerate(places):
            at = ((x, y), (x + width, y + slant), (x + width, y + slant + height), (x, y + height))
            lines.append(Line(f"w{n}", at))
        assert sorted(arrange(lines).split()) == sorted(part.text for part in lines)


def saved(folder: Path, picture: Image.Image, name: str, **options: object) -> Path:
    picture.save(folder / name, **options)  # type: ignore[arg-type]
    return folder / name


def one(path: Path) -> Page:
    [page] = reader.read(path, ON)
    return page


def says_lease(page: Page) -> bool:
    return isinstance(page, PageText) and page.method == "ocr" and agreement(" ".join(LEASE), page.text) > 0.97


class TestReader:
    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.webp", "a.bmp", "a.gif"])
    def test_formats(self, tmp_path: Path, name: str) -> None:
        page = one(saved(tmp_path, drawn(LEASE), name))
        assert says_lease(page)
        assert (page.number, page.total) == (1, 1)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "YCbCr"])
    def test_colours(self, tmp_path: Path, mode: str) -> None:
        if mode == "I;16":  # twelve bits of sixteen, as scanners give them
            deep = np.asarray(drawn(LEASE).convert("L"), np.uint16) * 16
            picture = Image.fromarray(deep)
        else:
            picture = drawn(LEASE).convert(mode)
        assert says_lease(one(saved(tmp_path, picture, "a.tiff")))

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
    def test_transparent_paper_is_white(self, tmp_path: Path, mode: str) -> None:
        clear = Image.new("RGBA", (900, 260), (0, 0, 0, 0))  # black wherever transparency is forgotten
        clear.paste((0, 0, 0, 255), mask=Image.eval(drawn(LEASE).convert("L"), lambda v: 255 - v))
        picture = clear.quantize(16) if mode == "PA" else clear.convert(mode)
        assert says_lease(one(saved(tmp_path, picture, "a.png")))

    @pytest.mark.parametrize("orientation", [3, 6, 8])
    @pytest.mark.parametrize("name", ["a.jpg", "a.tiff"])
    def test_exif_orientation(self, tmp_path: Path, orientation: int, name: str) -> None:
        """As decoded, the picture is upright: OCR would turn it anyway, so the pixels are compared."""
        turned = drawn(LEASE).transpose(
            {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
        )
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(saved(tmp_path, turned, name, exif=exif)) as picture:
            upright = reader._pixels(picture)
        expected = pixels(drawn(LEASE)).astype(int)
        assert upright.shape == expected.shape
        assert np.abs(upright - expected).mean() < 3

    def test_frames_of_a_tiff_are_pages(self, tmp_path: Path) -> None:
        blank = Image.new("RGB", (300, 300), "white")
        path = tmp_path / "a.tiff"
        drawn(LEASE).save(path, save_all=True, append_images=[blank, drawn(["The third page"])])
        first, second, third = reader.read(path, ON)
        assert says_lease(first)
        assert second == PageFailure(2, 3, "OCR found no text in the picture of the page")
        assert isinstance(third, PageText)
        assert (third.number, third.total, third.text) == (3, 3, "The third page")
        assert list(reader.read(path, Options(ocr=True, first_page=3))) == [third]

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.webp", "a.bmp", "a.gif"])
    def test_truncated(self, tmp_path: Path, name: str) -> None:
        path = saved(tmp_path, drawn(LEASE), name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        try:
            page = one(path)
        except ReadError as error:
            assert "picture" in str(error) or "TIFF" in str(error)  # noqa: PT017  # which of the two depends on the format
        else:
            assert isinstance(page, PageFailure)
            assert "cannot be decoded" in page.reason

    def test_not_a_picture(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
        with pytest.raises(ReadError):
            list(reader.read(path, ON))

    @pytest.mark.parametrize("side", [9_500, 60_000])
    def test_decompression_bomb(self, tmp_path: Path, side: int) -> None:
        small = io.BytesIO()
        Image.new("1", (8, 8)).save(small, "BMP")
        head = bytearray(small.getvalue())
        head[18:26] = side.to_bytes(4, "little") * 2
        path = tmp_path / "a.bmp"
        path.write_bytes(head)
        try:
            [page] = reader.read(path, ON)
        except ReadError as error:
            reason = str(error)
        else:
            assert isinstance(page, PageFailure)
            reason = page.reason
        assert "at most 80 million are read" in reason

    def test_without_ocr(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = saved(tmp_path, drawn(LEASE), "a.png")
        with pytest.raises(ReadError, match=r"RAG_OCR.*pip install 'docduet\[ocr\]'"):
            list(reader.read(path, Options(ocr=False)))
        monkeypatch.setattr(ocr, "available", lambda: False)
        with pytest.raises(ReadError, match=r"pip install 'docduet\[ocr\]'"):
            list(reader.read(path, ON))
