"""The picture of a page, with a quote marked on it. Runs inside the reading process, never in the service.

The page's text is not what PDFium gives: hyphens are mended, running heads taken out, columns and tables put in order. So a
quote is found by its letters and digits, piece by piece, each piece as long as PDFium has it in one run.
"""

import base64
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from services.rag.documents.pages import Options, ReadError
from services.rag.documents.reflow import folded_letters

if TYPE_CHECKING:  # the service knows the names in this file, and no parser
    import pypdfium2 as pdfium

    from services.rag.documents.readers._words import Box

PICTURED = ("pdf", "image")
NARROWEST, WIDEST = 200, 2400  # pixels
MAX_PIXELS = 9_000_000  # A4 at the widest has 8.1 million
MAX_BYTES = 10_000_000  # as a message it is a third longer
MAX_QUOTE = 2_000  # characters; more than a page of them is no quote
CONTEXT = 120  # characters before and after the quote that tell it from the same words elsewhere on the page
_YELLOW = (255, 236, 110)
# A shorter piece stands anywhere on a page: it must follow the piece before it.
_TELLING = 5

Highlight = Literal["none", "exact", "partial"]
Pixels = npt.NDArray[np.uint8]  # RGB, (height, width, 3)


@dataclass(frozen=True)
class View:
    """What is to be seen: a page, ``width`` pixels wide, with ``quote`` marked; ``before`` and ``after`` stand around it."""

    page: int  # 1-based
    width: int = 1200
    quote: str = ""
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Picture:
    data: bytes
    media_type: str
    highlight: Highlight


def render(path: Path, format: str, view: View) -> dict[str, Any]:
    """A :class:`Picture` as a message.

    Raises:
        ReadError: there is no picture of this page; the message says why.
    """
    if format == "pdf":
        pixels, highlight = _pdf(path, view)
        data, media_type = _png(pixels), "image/png"
        while len(data) > MAX_BYTES:
            pixels = pixels[::2, ::2]
            data = _png(pixels)
    elif format == "image":
        data, media_type, highlight = *_image(path, view), "none"
    else:
        raise ReadError(f"there is no picture of a page of a {format} file")
    return {"data": base64.b64encode(data).decode(), "media_type": media_type, "highlight": highlight}


def _pdf(path: Path, view: View) -> tuple[Pixels, Highlight]:
    import pypdfium2 as pdfium

    from services.rag.documents.readers.pdf import _open

    document = _open(path, Options())
    if document is None:
        raise ReadError("the PDF is too broken to be drawn")
    try:
        if not 1 <= view.page <= len(document):
            raise ReadError(f"the PDF has {len(document)} pages, and no page {view.page}")
        try:
            page = document[view.page - 1]
        except pdfium.PdfiumError as error:
            raise ReadError(f"page {view.page} cannot be loaded ({error})") from error
        width, height = (max(v, 1.0) for v in page.get_size())
        # A strip is as wide as its area allows.
        scale = min(view.width / width, (MAX_PIXELS / (width * height)) ** 0.5, 16_000 / height)
        bitmap = page.render(scale=scale, rev_byteorder=True)
        pixels: Pixels = bitmap.to_numpy()[:, :, :3].copy()
        boxes, highlight = _find(page, view) if view.quote else ([], "none")
        convert = bitmap.get_posconv(page)
        for x0, y0, x1, y1 in boxes:
            (a, b), (c, d) = convert.to_bitmap(x0, y0), convert.to_bitmap(x1, y1)
            left, right, top, bottom = min(a, c), max(a, c), min(b, d), max(b, d)
            patch = pixels[max(top, 0) : max(bottom, 0) + 1, max(left, 0) : max(right, 0) + 1]
            patch[:] = (patch.astype(np.uint16) * np.array(_YELLOW, np.uint16) // 255).astype(np.uint8)
        return pixels, highlight
    finally:
        document.close()


def _find(page: "pdfium.PdfPage", view: View) -> tuple[list["Box"], Highlight]:
    """Rectangles around the quote, a line each, in the page's own space; and whether all of it was found."""
    from services.rag.documents.readers import _words

    textpage = page.get_textpage()
    try:
        count = min(textpage.count_chars(), _words.MAX_CHARACTERS)
        letters, places = folded_letters(_words._characters(textpage, _words._pointer(textpage.raw), count))
        wanted = [folded_letters(part)[0] for part in (view.before, view.quote, view.after)]
        found = locate("".join(wanted), letters)[len(wanted[0]) : len(wanted[0]) + len(wanted[1])]
        marked = [places[at] for at in found if at is not None]
        boxes = [textpage.get_charbox(at, loose=True) for at in dict.fromkeys(marked)]
    finally:
        textpage.close()
    if not marked:
        return [], "none"
    return lines_of(boxes), "exact" if len(marked) == len(found) else "partial"


def locate(text: str, stream: str) -> list[int | None]:
    """For each character of ``text`` its place in ``stream``, which has the same characters in runs of another order."""
    out: list[int | None] = []
    at, last = 0, -1
    while at < len(text):
        low, high = 0, len(text) - at
        while low < high:  # what begins a run that is there is there, too
            middle = (low + high + 1) // 2
            if text[at : at + middle] in stream:
                low = middle
            else:
                high = middle - 1
        piece = text[at : at + low]
        if piece and stream.startswith(piece, last + 1) and last >= 0:
            place = last + 1
        elif low >= _TELLING or (piece and stream.count(piece) == 1):
            place = _nearest(piece, stream, last)
        elif piece and 0 <= (near := stream.find(piece, last + 1)) - last <= 40:
            place = near
        else:
            out.append(None)
            at += 1
            continue
        out += range(place, place + low)
        at, last = at + low, place + low - 1
    return out


def _nearest(piece: str, stream: str, last: int) -> int:
    after, before = stream.find(piece, last + 1), stream.rfind(piece, 0, max(last, 0))
    if after < 0 or before < 0:
        return max(after, before, stream.find(piece))
    return after if after - last <= last - before else before


def lines_of(boxes: list["Box"]) -> list["Box"]:
    """Boxes of characters, in reading order, joined along their lines (x0, y0, x1, y1; y up)."""
    out: list[Box] = []
    for x0, y0, x1, y1 in boxes:
        if not (x1 > x0 and y1 > y0):
            continue
        if out:
            a0, b0, a1, b1 = out[-1]
            size = max(min(y1 - y0, b1 - b0), 1.0)
            aside = min(y1, b1) - max(y0, b0) > 0.5 * size and max(x0, a0) - min(x1, a1) < 3 * size
            below = min(x1, a1) - max(x0, a0) > 0.8 * max(x1 - x0, a1 - a0) and max(y0, b0) - min(y1, b1) < 0.5 * size
            if aside or below:  # vertical writing goes down
                out[-1] = (min(x0, a0), min(y0, b0), max(x1, a1), max(y1, b1))
                continue
        out.append((x0, y0, x1, y1))
    return out


def _png(pixels: Pixels) -> bytes:
    """Pillow is not everywhere that PDFs are read; a PNG is a zlib stream with lengths."""
    height, width, _ = pixels.shape
    # Each line as the difference from the one above: most of a page is white.
    lines = np.empty((height, width * 3 + 1), np.uint8)
    flat = pixels.reshape(height, width * 3)
    lines[:, 0] = 2
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", body) + part(b"IEND", b"")


def _image(path: Path, view: View) -> tuple[bytes, str]:
    """A photograph or scan, upright, no wider than it is."""
    import io
    import warnings

    try:
        from PIL import Image
    except ImportError as error:
        raise ReadError("pictures cannot be opened: Pillow is not installed") from error
    from services.rag.documents.readers import image as reader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with reader._open(path) as image:
            if not 1 <= view.page <= reader._frames(image):
                raise ReadError(f"the picture has no page {view.page}")
            try:
                image.seek(view.page - 1)
                if image.width * image.height > reader.MOST_PIXELS:
                    raise ReadError(reader._too_big(image.size))
                upright = Image.fromarray(reader._pixels(image))
            except (OSError, ValueError, EOFError, SyntaxError) as error:
                raise ReadError(f"the picture cannot be decoded ({error})"[:300]) from error
    scale = min(1.0, view.width / upright.width, (MAX_PIXELS / (upright.width * upright.height)) ** 0.5)
    size = (max(1, round(upright.width * scale)), max(1, round(upright.height * scale)))
    shown = upright.resize(size, Image.Resampling.LANCZOS) if scale < 1 else upright
    out = io.BytesIO()
    shown.save(out, "JPEG", quality=88)
    return out.getvalue(), "image/jpeg"
