"""What a PDF page draws, as PDFium sees it: words with their places, pictures, ruling lines, and what cannot be seen.

PDFium's own text order is the order of drawing. Here each word gets its box, so that `_layout.py` can read columns and
tables by place. Only the first and the last character of a word are asked for their boxes: two calls for a word instead
of one for each character keeps this at the speed of PDFium itself.
"""

import ctypes
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pypdfium2 as pdfium
import pypdfium2.raw as c

# Bounds for hostile pages; a dense page of a newspaper has about 20,000 characters and 5,000 objects.
MAX_CHARACTERS = 400_000
MAX_OBJECTS = 40_000
MAX_DEPTH = 6
# A picture (or several) over this share of the page makes the page a picture, a scan as a rule.
PICTURE_SHARE = 0.6
# Text smaller than this, in points, cannot be read on paper.
MIN_HEIGHT = 1.0

_FAR = 1e6  # points; what lies farther away, or nowhere, is not on any page

Box = tuple[float, float, float, float]  # x0, y0, x1, y1
Matrix = tuple[float, float, float, float, float, float]
_IDENTITY: Matrix = (1, 0, 0, 1, 0, 0)
# The hyphen that PDFium saw at the end of a line stands as U+FFFE, with nothing between it and the next line.
_WORD = re.compile("[^\\s\ufffe]+\ufffe?|\ufffe")
_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_WIDE = re.compile("[\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


class Word(NamedTuple):
    """A run of characters without a space. Points; x to the right, y down, in the direction the word is read in."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    glued: bool = False  # no space between the word before and this one


@dataclass
class Drawn:
    """One page. ``words`` are those that can be seen, by direction ("R" left to right, "D" downwards, "U", "L")."""

    width: float
    height: float
    words: dict[str, list[Word]] = field(default_factory=dict)
    horizontal: list[Box] = field(default_factory=list)  # ruling lines, in the coordinates of "R"
    vertical: list[Box] = field(default_factory=list)
    picture: float = 0.0  # share of the page that pictures cover
    objects: int = 0  # things drawn that are not text
    hidden: int = 0  # characters that cannot be seen and were left out
    layer: bool = False  # the words are the text layer of a scan
    characters: int = 0  # characters that are not space, hidden ones left out
    unmapped: int = 0  # characters whose font does not say what they are
    unmapped_text: str = ""
    cut: bool = False  # the page has more characters than are read


def _fast(function: Any, result: Any, *arguments: Any) -> Callable[..., Any]:
    """The same C function without ctypes' conversions, which cost more than the call; pointers are integers."""
    return ctypes.PYFUNCTYPE(result, *arguments)(_pointer(function))


def _pointer(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


_P, _I = ctypes.c_void_p, ctypes.c_int
_loose_box = _fast(c.FPDFText_GetLooseCharBox, _I, _P, _I, _P)
_unicode = _fast(c.FPDFText_GetUnicode, ctypes.c_uint, _P, _I)
_has_map_error = _fast(c.FPDFText_HasUnicodeMapError, _I, _P, _I)
_object_of = _fast(c.FPDFText_GetTextObject, _P, _P, _I)
_object_type = _fast(c.FPDFPageObj_GetType, _I, _P)
_page_object = _fast(c.FPDFPage_GetObject, _P, _P, _I)
_form_object = _fast(c.FPDFFormObj_GetObject, _P, _P, ctypes.c_ulong)
_form_count = _fast(c.FPDFFormObj_CountObjects, _I, _P)
_bounds = _fast(c.FPDFPageObj_GetBounds, _I, _P, _P, _P, _P, _P)
_matrix = _fast(c.FPDFPageObj_GetMatrix, _I, _P, _P)
_fill = _fast(c.FPDFPageObj_GetFillColor, _I, _P, _P, _P, _P, _P)
_draw_mode = _fast(c.FPDFPath_GetDrawMode, _I, _P, _P, _P)
_render_mode = _fast(c.FPDFTextObj_GetTextRenderMode, _I, _P)


@dataclass
class _Objects:
    """What the walk over a page's objects finds out. Boxes are in the page's own space (y up)."""

    pictures: list[Box] = field(default_factory=list)
    horizontal: list[Box] = field(default_factory=list)
    vertical: list[Box] = field(default_factory=list)
    other: int = 0
    unpainted: set[int] = field(default_factory=set)  # text objects that paint nothing
    suspect: set[int] = field(default_factory=set)  # text objects that may have the colour of what is under them
    under: set[int] = field(default_factory=set)  # text objects that a page-filling picture covers


def read_page(page: pdfium.PdfPage) -> Drawn:
    """The page's words, pictures and lines.

    Raises:
        pdfium.PdfiumError: PDFium cannot load the page's text.
    """
    left, bottom, right, top = page.get_bbox()
    rotation = page.get_rotation()
    view = _View((left, bottom, right, top), rotation)
    drawn = Drawn(view.width, view.height)
    objects = _walk(page, (left, bottom, right, top))
    drawn.picture = _share(objects.pictures, (left, bottom, right, top))
    drawn.objects = objects.other + len(objects.pictures)
    if rotation in (0, 180):
        drawn.horizontal = [view.box(b) for b in objects.horizontal]
        drawn.vertical = [view.box(b) for b in objects.vertical]
    else:
        drawn.horizontal = [view.box(b) for b in objects.vertical]
        drawn.vertical = [view.box(b) for b in objects.horizontal]
    textpage = page.get_textpage()
    try:
        _read_words(page, textpage, objects, view, drawn)
    finally:
        textpage.close()
    return drawn


class _View:
    """From the page's own space (y up, not rotated) to what a person sees (y down)."""

    def __init__(self, box: Box, rotation: int) -> None:
        self._x0, self._y0, self._x1, self._y1 = box
        self._rotation = rotation
        # The usual case, for the loop over words: what to take off x, and what to take y from.
        self.upright = (box[0], box[3]) if rotation == 0 else None
        wide, high = max(box[2] - box[0], 1e-3), max(box[3] - box[1], 1e-3)
        self.width, self.height = (wide, high) if rotation in (0, 180) else (high, wide)

    def box(self, b: Box) -> Box:
        if self._rotation == 90:
            return b[1] - self._y0, b[0] - self._x0, b[3] - self._y0, b[2] - self._x0
        if self._rotation == 180:
            return self._x1 - b[2], b[1] - self._y0, self._x1 - b[0], b[3] - self._y0
        if self._rotation == 270:
            return self._y1 - b[3], self._x1 - b[2], self._y1 - b[1], self._x1 - b[0]
        return b[0] - self._x0, self._y1 - b[3], b[2] - self._x0, self._y1 - b[1]


def _read_words(page: pdfium.PdfPage, textpage: Any, objects: _Objects, view: _View, drawn: Drawn) -> None:
    handle = _pointer(textpage.raw)
    count = textpage.count_chars()
    drawn.cut = count > MAX_CHARACTERS
    text = _characters(textpage, handle, min(count, MAX_CHARACTERS))
    unmapped = _unmapped(handle, text)
    right_to_left = bool(_RTL.search(text))
    hides = objects.unpainted | objects.suspect | objects.under
    buffer = (ctypes.c_float * 4)()
    address = ctypes.addressof(buffer)

    upright = view.upright

    def box_of(index: int) -> Box | None:
        # FS_RECTF is left, top, right, bottom.
        if not _loose_box(handle, index, address):
            return None
        x0, y1, x1, y0 = buffer
        if not (-_FAR < x0 <= x1 < _FAR and -_FAR < y0 <= y1 < _FAR):
            return None
        if upright is not None:
            return x0 - upright[0], upright[1] - y1, x1 - upright[0], upright[1] - y0
        return view.box((x0, y0, x1, y1))

    checks: list[tuple[str, Word, int]] = []  # words to look for on the picture of the page
    hidden_unpainted: list[tuple[str, Word]] = []
    previous_end, direction = -1, "R"
    for match in _WORD.finditer(text):
        start, end = match.span()
        final = end - 1 if text[end - 1] != "\ufffe" or end - start == 1 else end - 2
        first = box_of(start)
        last = first if final == start else box_of(final)
        if first is None or last is None:
            continue
        string = match.group().replace("\ufffe", "-")
        if unmapped:
            string = _only_mapped(string, start, unmapped)
            if not string:
                continue
        if right_to_left and _RTL.search(string):
            string = _logical(string, [box_of(i) for i in range(start, start + len(string))])
        direction = _direction(first, last, string, direction)
        x0, y0, x1, y1 = first if first == last else _extent(first, last, direction)
        if y1 - y0 < MIN_HEIGHT or x1 < 0 or y1 < 0 or x0 > view.width or y0 > view.height:
            drawn.hidden += len(string)
            continue
        glued = previous_end >= 0 and " " not in text[previous_end:start] and "\u00a0" not in text[previous_end:start]
        previous_end = end
        if direction != "R":
            x0, y0, x1, y1 = _turn((x0, y0, x1, y1), direction)
        word = Word(string, x0, y0, x1, y1, glued)
        if hides and (owner := _object_of(handle, start)) in hides:
            if owner in objects.suspect:
                checks.append((direction, word, len(drawn.words.setdefault(direction, []))))
            else:
                hidden_unpainted.append((direction, word))
                continue
        drawn.words.setdefault(direction, []).append(word)
    if checks or hidden_unpainted:
        _look(page, drawn, checks, hidden_unpainted)
    drawn.characters = sum(len(w.text) for words in drawn.words.values() for w in words)
    drawn.unmapped = len(unmapped)
    drawn.unmapped_text = "".join(text[i] if i in unmapped else " " for i in range(len(text))) if unmapped else ""


def _characters(textpage: Any, handle: int, count: int) -> str:
    """One character for each of PDFium's. Its bulk call leaves some out; then they are asked for one by one."""
    if not count:
        return ""
    buffer = ctypes.create_string_buffer(2 * (count + 1))
    written = c.FPDFText_GetText(textpage.raw, 0, count, ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)))
    text = buffer.raw[: 2 * max(written - 1, 0)].decode("utf-16-le", errors="replace")
    if len(text) == count:
        return text
    codes = (_unicode(handle, i) for i in range(count))
    return "".join(chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd" for code in codes)


def _unmapped(handle: int, text: str) -> set[int]:
    """Characters that stand for a glyph number, because the font has no way from its glyphs to Unicode."""
    # A font has this for all of its characters, so a sample tells whether to look at every one.
    if not any(_has_map_error(handle, i) == 1 for i in range(0, len(text), 3)):
        return set()
    return {i for i in range(len(text)) if _has_map_error(handle, i) == 1 and not text[i].isspace()}


def _only_mapped(string: str, start: int, unmapped: set[int]) -> str:
    """Without the characters that are surely wrong; plain ASCII may be right and is judged with the whole page."""
    return "".join(ch for i, ch in enumerate(string, start) if i not in unmapped or " " < ch < "\x7f")


def _direction(first: Box, last: Box, string: str, before: str) -> str:
    """Where the word runs. A single character goes where its neighbour went."""
    if first is last:
        return before
    across = (last[0] + last[2] - first[0] - first[2]) / 2
    down = (last[1] + last[3] - first[1] - first[3]) / 2
    if abs(across) < 0.1 and abs(down) < 0.1:
        return before
    if abs(down) > 2 * abs(across):
        return "D" if down > 0 else "U"
    return "L" if across < 0 and not _RTL.search(string) and not _WIDE.search(string) else "R"


def _extent(first: Box, last: Box, direction: str) -> Box:
    """The word's box; its height is the taller end's, so that an exponent does not make the line thick."""
    if direction in "RL":
        tall = first if first[3] - first[1] >= last[3] - last[1] else last
        return min(first[0], last[0]), tall[1], max(first[2], last[2]), tall[3]
    wide = max(first, last, key=lambda b: b[2] - b[0])
    return wide[0], min(first[1], last[1]), wide[2], max(first[3], last[3])


def _turn(b: Box, direction: str) -> Box:
    """Into coordinates where the word runs to the right and the next line is below."""
    if direction == "D":  # vertical writing, or a page lying on its side: lines go from right to left
        return b[1], -b[2], b[3], -b[0]
    if direction == "U":
        return -b[3], b[0], -b[1], b[2]
    if direction == "L":
        return -b[2], -b[3], -b[0], -b[1]
    return b


def _turn_back(word: Word, direction: str) -> Box:
    x0, y0, x1, y1 = word.x0, word.y0, word.x1, word.y1
    if direction == "D":
        return -y1, x0, -y0, x1
    if direction == "U":
        return y0, -x1, y1, -x0
    if direction == "L":
        return -x1, -y1, -x0, -y0
    return x0, y0, x1, y1


def _logical(string: str, boxes: list[Box | None]) -> str:
    """A right-to-left word in the order it is read.

    PDFium turns such words around, which is right for glyphs and wrong for replacement text (/ActualText), where all
    characters share one box and were in reading order already.
    """
    out: list[str] = []
    for _, run in itertools.groupby(range(len(string)), key=boxes.__getitem__):
        part = "".join(string[i] for i in run)
        out.append(part[::-1] if _RTL.search(part) else part)
    return "".join(out)


def _look(page: pdfium.PdfPage, drawn: Drawn, checks: list[Any], unpainted: list[tuple[str, Word]]) -> None:
    """Decide on words that may not show, by looking at the page's picture where they stand.

    Text in the colour of its ground is hidden. Text that paints nothing is hidden too, unless it is the text layer of
    a scan: pictures fill the page, and for most of the layer's words there is something to see at their place. An
    instruction hidden on an ordinary page, or on the blank part of a scan, fails that.
    """
    if not checks and drawn.picture < PICTURE_SHARE:
        drawn.hidden += sum(len(word.text) for _, word in unpainted)
        return
    image = _picture(page, drawn)

    def shows(direction: str, word: Word) -> bool:
        scale = image.shape[1] / drawn.width
        x0, y0, x1, y1 = (int(v * scale) for v in _turn_back(word, direction))
        patch = image[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1]
        return patch.size > 0 and int(patch.max()) - int(patch.min()) > 24

    for direction, word, at in sorted(checks, key=lambda check: -check[2]):
        if not shows(direction, word):
            del drawn.words[direction][at]
            drawn.hidden += len(word.text)
    if unpainted:
        seen = sum(shows(direction, word) for direction, word in unpainted)
        if drawn.picture >= PICTURE_SHARE and seen >= 0.7 * len(unpainted):
            drawn.layer = True
            for direction, word in unpainted:
                drawn.words.setdefault(direction, []).append(word)
        else:
            drawn.hidden += sum(len(word.text) for _, word in unpainted)


def _picture(page: pdfium.PdfPage, drawn: Drawn) -> npt.NDArray[np.uint8]:
    scale = min(1.0, math.sqrt(1.5e6 / (drawn.width * drawn.height)), 8000 / max(drawn.width, drawn.height))
    bitmap = page.render(scale=scale, grayscale=True)
    try:
        array: npt.NDArray[np.uint8] = bitmap.to_numpy().copy()
    finally:
        bitmap.close()
    return array.reshape(array.shape[0], array.shape[1])


def _walk(page: pdfium.PdfPage, box: Box) -> _Objects:
    found = _Objects()
    area = max((box[2] - box[0]) * (box[3] - box[1]), 1e-6)
    numbers = [ctypes.c_float() for _ in range(4)]
    places = [ctypes.addressof(n) for n in numbers]
    colours = [ctypes.c_uint() for _ in range(4)]
    colour_places = [ctypes.addressof(n) for n in colours]
    texts: list[tuple[int, tuple[int, ...]]] = []
    grounds: set[tuple[int, ...]] = set()
    shaded = False

    def colour(handle: int) -> tuple[int, ...] | None:
        return tuple(n.value for n in colours) if _fill(handle, *colour_places) else None

    for handle, matrix in _each(page):
        kind = _object_type(handle)
        if kind == c.FPDF_PAGEOBJ_TEXT:
            mode, paint = _render_mode(handle), colour(handle)
            if mode in (3, 7) or (mode == 0 and paint is not None and paint[3] == 0):
                found.unpainted.add(handle)
            elif mode in (0, 4) and paint is not None:
                texts.append((handle, paint[:3]))
            continue
        if not _bounds(handle, *places):
            continue
        x0, y0, x1, y1 = (n.value for n in numbers)
        b = _apply(matrix, (x0, y0, x1, y1)) if matrix is not _IDENTITY else (x0, y0, x1, y1)
        wide, high = b[2] - b[0], b[3] - b[1]
        if kind == c.FPDF_PAGEOBJ_IMAGE:
            found.pictures.append(b)
            inside = max(0.0, min(b[2], box[2]) - max(b[0], box[0])) * max(0.0, min(b[3], box[3]) - max(b[1], box[1]))
            if inside >= PICTURE_SHARE * area:
                found.under.update(text for text, _ in texts)
            continue
        found.other += 1
        shaded = shaded or kind == c.FPDF_PAGEOBJ_SHADING
        if kind != c.FPDF_PAGEOBJ_PATH:
            continue
        if high <= 2.5 and wide >= 8:
            found.horizontal.append(b)
        elif wide <= 2.5 and high >= 6:
            found.vertical.append(b)
        elif wide >= 8 and high >= 6:
            if _filled(handle) and (paint := colour(handle)) is not None and paint[3]:
                grounds.add(paint[:3])
            # A cell may be drawn as a box: its sides are lines.
            if wide * high < 0.5 * area:
                x0, y0, x1, y1 = b
                found.horizontal += [(x0, y0, x1, y0), (x0, y1, x1, y1)]
                found.vertical += [(x0, y0, x0, y1), (x1, y0, x1, y1)]
    plain = not (found.pictures or shaded or any(min(g) < 235 for g in grounds))
    for handle, rgb in texts:
        if min(rgb) >= 235 and plain:
            found.unpainted.add(handle)  # white on nothing but white
        elif min(rgb) >= 235 or any(max(abs(a - b) for a, b in zip(rgb, g, strict=True)) < 20 for g in grounds):
            found.suspect.add(handle)
    return found


def _filled(path: int) -> bool:
    mode, stroke = ctypes.c_int(), ctypes.c_int()
    return bool(_draw_mode(path, ctypes.addressof(mode), ctypes.addressof(stroke)) and mode.value)


def _each(page: pdfium.PdfPage) -> Iterator[tuple[int, Matrix]]:
    """Every object of the page and of the forms in it, with the matrix that brings its box to the page."""
    left = MAX_OBJECTS
    top = _pointer(page.raw)
    stack: list[tuple[int, int, int, Matrix]] = [(0, c.FPDFPage_CountObjects(page.raw), 0, _IDENTITY)]
    while stack and left > 0:
        form, count, at, matrix = stack.pop()
        while at < count and left > 0:
            handle = _form_object(form, at) if form else _page_object(top, at)
            at += 1
            left -= 1
            if not handle:
                continue
            if _object_type(handle) != c.FPDF_PAGEOBJ_FORM:
                yield handle, matrix
            elif len(stack) < MAX_DEPTH:
                stack.append((form, count, at, matrix))
                form, count, at, matrix = handle, _form_count(handle), 0, _times(_matrix_of(handle), matrix)


def _matrix_of(handle: int) -> Matrix:
    values = c.FS_MATRIX()
    if not _matrix(handle, ctypes.addressof(values)):
        return _IDENTITY
    return values.a, values.b, values.c, values.d, values.e, values.f


def _times(m: Matrix, n: Matrix) -> Matrix:
    return (
        m[0] * n[0] + m[1] * n[2],
        m[0] * n[1] + m[1] * n[3],
        m[2] * n[0] + m[3] * n[2],
        m[2] * n[1] + m[3] * n[3],
        m[4] * n[0] + m[5] * n[2] + n[4],
        m[4] * n[1] + m[5] * n[3] + n[5],
    )


def _apply(m: Matrix, b: Box) -> Box:
    xs = [m[0] * x + m[2] * y + m[4] for x in (b[0], b[2]) for y in (b[1], b[3])]
    ys = [m[1] * x + m[3] * y + m[5] for x in (b[0], b[2]) for y in (b[1], b[3])]
    return min(xs), min(ys), max(xs), max(ys)


def _share(boxes: list[Box], page: Box) -> float:
    """The share of the page that the boxes cover together, on a grid of 48 by 48."""
    grid = np.zeros((48, 48), dtype=bool)
    wide, high = max(page[2] - page[0], 1e-6), max(page[3] - page[1], 1e-6)
    for x0, y0, x1, y1 in boxes[:2000]:
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            continue
        across = [min(max(round((x - page[0]) / wide * 48), 0), 48) for x in (x0, x1)]
        up = [min(max(round((y - page[1]) / high * 48), 0), 48) for y in (y0, y1)]
        grid[up[0] : up[1], across[0] : across[1]] = True
    return float(grid.mean())
