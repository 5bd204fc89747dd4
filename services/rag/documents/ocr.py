"""Text from the picture of a page: PP-OCRv6 (small) through ``rapidocr`` and ``onnxruntime``, on the CPU, offline.

The models find lines anywhere on the page, at any angle; this module bounds their work and memory, turns the page upright
and puts the lines into reading order. An ``Ocr`` belongs to the reading process that made it: nothing heavy is imported
before ``Ocr()``, so that a warm process can fork one reader a file. Why these models and numbers:
docs/decisions/0016-ocr-with-the-models-in-the-wheel.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.rag.documents.lines import Corners, Line, arrange
from services.rag.documents.pages import ReadError

if TYPE_CHECKING:  # numpy starts threads, which a process that forks must not have
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

INSTALL = "install it with: pip install 'docduet[ocr]'"
MODELS = {
    "Det": "PP-OCRv6_det_small.onnx",
    "Cls": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "Rec": "PP-OCRv6_rec_small.onnx",
}
THREADS = 2  # it runs beside the embedder
READ_PIXELS = 12_000_000  # a bigger picture is made smaller before anything else
SMALL_PIXELS = (
    600_000  # a smaller one is made bigger, up to three times each way: small print has too few pixels to find
)
FIND_PIXELS = (
    1_200_000  # lines are found at about 110 dpi of A4: bigger joins lines across a gutter, and costs the memory
)
LONG_PAGE = 2.5  # height to width from which a picture is looked at in strips: a receipt, a long screenshot
THINNEST = 100.0  # longer side to shorter: beyond it a picture is a rule
SQUEEZE = 0.8  # of a line's width, before it is read: a fifth of the time saved, nothing lost
LONGEST = 80.0  # width to height of a line, about 200 letters: its memory grows with its length
TALL = 1.5  # height to width from which a line runs up or down
LINE_SCORE = 0.5  # a line that the model itself doubts is a picture, a rule or a stamp
READABLE = 0.80  # below it a page is more errors than text


@dataclass(frozen=True)
class OcrResult:
    """What a picture says."""

    text: str  # in reading order, a line each; a blank line where the page leaves one
    confidence: float  # 0..1: the model's own, the mean over characters; 0 when nothing is found

    @property
    def readable(self) -> bool:
        """Whether the text may be searched. Under the threshold it would be garbage in the index."""
        return self.confidence >= READABLE and any(c.isalnum() for c in self.text)


def available() -> bool:
    """Whether the extra ``ocr`` is installed. Cheap: nothing is imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("rapidocr", "onnxruntime", "cv2"))


def absent() -> str:
    """Why a page is not read by OCR, where it is not to be."""
    return "OCR is off" if available() else f"OCR is not installed: {INSTALL}"


def unreadable(result: OcrResult) -> str:
    """The reason of a page whose picture gave no text worth searching."""
    if not any(c.isalnum() for c in result.text):
        return "OCR found no text in the picture of the page"
    return (
        f"OCR could not read the picture of the page well enough (confidence {result.confidence:.2f}, "
        f"needed {READABLE:.2f}): scan it again, sharper or at a higher resolution"
    )


class Ocr:
    """The loaded models. Made in the process that reads; not for several threads at once."""

    def __init__(self) -> None:
        """Load the models from the installed wheel; nothing is downloaded or written.

        Raises:
            ReadError: the extra is not installed or is broken.
        """
        if not available():
            raise ReadError(f"OCR is not installed; {INSTALL}")
        # OpenCV's OpenBLAS would reserve memory for every core of the machine; it has no work to do here.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # Before the import: onnxruntime, since 1.29, otherwise writes an id under HOME and calls its maker.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import numpy as np

            self._np = np
            self._cv2: Any = importlib.import_module("cv2")
            rapidocr: Any = importlib.import_module("rapidocr")
            self._cut: Any = importlib.import_module("rapidocr.utils.process_img").get_rotate_crop_image
            folder = Path(rapidocr.__file__).parent / "models"
            self._cv2.setNumThreads(1)
            self._find = _engine(rapidocr, folder, "Det", THREADS)
            self._turn = _engine(rapidocr, folder, "Cls", 1)
            self._spell = _engine(rapidocr, folder, "Rec", 1)
            for engine in (
                self._find,
                self._turn,
                self._spell,
            ):  # a model loads on first use; let it fail here if it must
                engine(np.full((64, 64, 3), 255, np.uint8))
        except Exception as error:
            raise ReadError(f"OCR cannot start ({type(error).__name__}: {error})"[:250] + f"; {INSTALL}") from error

    def read(self, image: Pixels) -> OcrResult:
        """The text of ``image``, RGB of shape (h, w, 3), upright or turned by a quarter or a half.

        Raises:
            ReadError: the models failed on this picture, which is to say: there was not enough memory for it.
        """
        height, width = image.shape[:2]
        if not height or not width or max(height, width) > THINNEST * min(height, width):
            return OcrResult("", 0.0)
        try:
            return self._result(self._sized(image))
        except Exception as error:
            why = (str(error).strip().splitlines() or [""])[-1]
            raise ReadError(f"OCR failed on the picture ({type(error).__name__}: {why})"[:300]) from error

    def _result(self, image: Pixels) -> OcrResult:
        places = self._places(image)
        turns = self._turns(image, places)
        if turns:
            places = [_turned(place, turns, image.shape[1], image.shape[0]) for place in places]
            image = self._np.ascontiguousarray(self._np.rot90(image, turns))
        # One line at a time on each thread: a batch pads every line to the longest, and takes more memory for no less time.
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda place: self._line(image, place), places))
        characters = sum(len(text) for text, _ in found)
        if not characters:
            return OcrResult("", 0.0)
        confidence = sum(len(text) * score for text, score in found) / characters
        kept = [Line(text, at) for at, (text, score) in zip(places, found, strict=True) if text and score >= LINE_SCORE]
        return OcrResult(arrange(kept), confidence)

    def _sized(self, image: Pixels) -> Pixels:
        """In BGR, which the models know, neither too big nor too small."""
        bgr = self._shrunk(self._np.ascontiguousarray(image[:, :, ::-1]), READ_PIXELS)
        scale = min(3.0, math.sqrt(SMALL_PIXELS / (bgr.shape[0] * bgr.shape[1])))
        if scale <= 1:
            return bgr
        big: Pixels = self._cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=self._cv2.INTER_CUBIC)
        return big

    def _shrunk(self, image: Pixels, pixels: int) -> Pixels:
        height, width = image.shape[:2]
        scale = math.sqrt(pixels / (height * width))
        return image if scale >= 1 else self._resized(image, round(width * scale), round(height * scale))

    def _resized(self, image: Pixels, width: int, height: int) -> Pixels:
        small: Pixels = self._cv2.resize(image, (max(1, width), max(1, height)), interpolation=self._cv2.INTER_AREA)
        return small

    def _places(self, image: Pixels) -> list[Corners]:
        """Where the lines are, in the pixels of ``image``."""
        places = []
        for top, bottom in self._strips(image):
            strip = image[top:bottom]
            small = self._shrunk(strip, FIND_PIXELS)
            boxes = self._find(small).boxes
            across, down = strip.shape[1] / small.shape[1], strip.shape[0] / small.shape[0]
            for box in () if boxes is None else boxes.tolist():
                place = tuple((x * across, y * down + top) for x, y in box)
                if min(_size(place)) >= 4:
                    places.append(place)
        return places

    def _strips(self, image: Pixels) -> Iterator[tuple[int, int]]:
        """Top and bottom of the stretches to look at: whole, or, if it is long, cut where there is least to cut through."""
        height, width = image.shape[:2]
        top = 0
        while height - top > LONG_PAGE * width:
            first, last = top + round(1.5 * width), top + round(2 * width) + 1
            bottom = first + int(image[first:last].std(axis=(1, 2)).argmin())
            yield top, bottom
            top = bottom
        yield top, height

    def _turns(self, image: Pixels, places: Sequence[Corners]) -> int:
        """How many quarter turns, counter-clockwise, make the page upright: the vote of its longest lines."""
        votes = [0.0] * 4
        for place in sorted(places, key=lambda at: -max(_size(at)))[:24]:
            width, height = _size(place)
            upside_down, score = self._upside_down(self._crop(image, place))
            votes[(1 if height >= TALL * width else 0) + (2 if upside_down else 0)] += score * max(width, height)
        return votes.index(max(votes))

    def _crop(self, image: Pixels, place: Corners) -> Pixels:
        """One line, straight; one that runs up or down comes with a quarter turn, counter-clockwise."""
        crop: Pixels = self._cut(image, self._np.array(place, self._np.float32))
        return crop

    def _upside_down(self, crop: Pixels) -> tuple[bool, float]:
        label, score = self._turn(crop).cls_res[0]
        return "180" in label, float(score)

    def _line(self, image: Pixels, place: Corners) -> tuple[str, float]:
        """The text of one line and the model's confidence in it."""
        crop = self._crop(image, place)
        width, height = _size(place)
        if height >= TALL * width and self._upside_down(crop)[0]:  # in the margin of an upright page
            crop = self._np.ascontiguousarray(self._np.rot90(crop, 2))
        height, width = crop.shape[:2]
        result = self._spell(self._resized(crop, round(min(SQUEEZE * width, LONGEST * height)), height))
        return result.txts[0].strip(), float(result.scores[0])


def _engine(rapidocr: Any, folder: Path, task: str, threads: int) -> Any:
    """One model, by its path: with a path rapidocr never looks for, checks or downloads anything."""
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_det": task == "Det",
            "Global.use_cls": task == "Cls",
            "Global.use_rec": task == "Rec",
            "Global.use_vertical_padding": False,  # it would square a long strip: gigabytes
            "Global.use_preprocess_img": False,  # sizes are bounded here, by area: a long receipt stays legible
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.limit_side_len": 32,
            "Det.use_dilation": False,
            "Rec.rec_batch_num": 1,
            "Rec.rec_img_shape": [3, 48, 96],
            f"{task}.model_path": str(folder / MODELS[task]),
        }
    )


def _size(place: Corners) -> tuple[float, float]:
    """Width and height of a box, in pixels, along its own axes."""
    top_left, top_right, _, bottom_left = place
    return math.dist(top_left, top_right), math.dist(top_left, bottom_left)


def _turned(place: Corners, turns: int, width: float, height: float) -> Corners:
    """The box on the page after ``turns`` quarter turns, counter-clockwise, of a page of that size."""
    for _ in range(turns):
        turned = [(y, width - 1 - x) for x, y in place]
        place = (*turned[1:], turned[0])  # what was the top right corner is now the top left
        width, height = height, width
    return place
