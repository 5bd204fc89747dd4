"""Reads a picture (PNG, JPEG, TIFF, WebP, BMP, GIF) by OCR. A TIFF's frames are pages; of an animation the first frame counts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from services.rag.documents import ocr
from services.rag.documents.pages import Options, Page, PageFailure, PageText, ReadError
from services.rag.documents.reflow import reflow

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
MOST_PIXELS = 80_000_000  # A3 at 600 dpi is 70 million; decoded, a pixel takes four bytes
OFF = f"a picture can be read by OCR only, which is off or not installed: set RAG_OCR to auto and {ocr.INSTALL}"


def read(path: Path, options: Options) -> Iterator[Page]:
    """The frames of the picture in order, with their text or the reason why there is none.

    Raises:
        ReadError: the file is not a picture that can be opened, or OCR is off or not installed.
    """
    if not options.ocr:
        raise ReadError(OFF)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is checked here, and of odd metadata
        with _open(path) as image:
            total = _frames(image)
            reader = ocr.Ocr()
            for number in range(options.first_page, total + 1):
                yield _page(image, number, total, reader)


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ReadError(_too_big()) from error
    except UnidentifiedImageError as error:
        raise ReadError("the file is not a readable picture (PNG, JPEG, TIFF, WebP, BMP or GIF)") from error
    except Exception as error:  # a hostile header can raise anything
        raise ReadError(f"the picture cannot be opened ({type(error).__name__}: {error})"[:300]) from error


def _frames(image: Image.Image) -> int:
    if image.format != "TIFF":
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception as error:
        raise ReadError(f"the pages of the TIFF cannot be counted ({type(error).__name__}: {error})"[:300]) from error


def _page(image: Image.Image, number: int, total: int, reader: ocr.Ocr) -> Page:
    try:
        if number > 1:
            image.seek(number - 1)
        if image.width * image.height > MOST_PIXELS:
            return PageFailure(number, total, _too_big(image.size))
        pixels = _pixels(image)
    except Exception as error:
        return PageFailure(number, total, f"the picture cannot be decoded ({type(error).__name__}: {error})"[:300])
    try:
        result = reader.read(pixels)
    except ReadError as error:
        return PageFailure(number, total, str(error))
    if not result.readable:
        return PageFailure(number, total, ocr.unreadable(result))
    return PageText(number, total, reflow(result.text), method="ocr")


def _pixels(image: Image.Image) -> ocr.Pixels:
    """RGB of shape (h, w, 3), upright, on white, at most as big as OCR can use."""
    import numpy as np  # starts threads: not in a process that is to be forked

    scale = math.sqrt(ocr.READ_PIXELS / (image.width * image.height))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scale < 1:
        image.draft(
            "RGB", size
        )  # a JPEG decodes to a half, a quarter or an eighth of its size at a fraction of the cost
    flat = _rgb(image)
    if scale < 1:
        flat = flat.resize(size, Image.Resampling.BOX)
    orientation = image.getexif().get(0x0112, 1)  # Pillow turns a TIFF upright by itself, and then says so here
    if orientation != 1:
        flat.getexif()[0x0112] = orientation
        flat = ImageOps.exif_transpose(flat)
    return np.asarray(flat, np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    import numpy as np

    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        # Pillow would cut deep greys at 255, which is white; a scanner's 12 bits in 16 would be black.
        deep = np.asarray(image, np.float32)
        low, high = float(deep.min()), float(deep.max())
        grey = (
            np.full(deep.shape, 255, np.uint8)
            if high <= low
            else ((deep - low) * (255 / (high - low))).astype(np.uint8)
        )
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGB", clear.size, "white")
        white.paste(clear, mask=clear.getchannel("A"))
        return white
    return image.convert("RGB")


def _too_big(size: tuple[int, int] | None = None) -> str:
    what = f"the picture has {size[0]} × {size[1]} pixels" if size else "the picture has too many pixels"
    return f"{what}; at most {MOST_PIXELS // 1_000_000} million are read: scale it down and upload it again"
