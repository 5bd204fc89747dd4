"""From the lines a PDF draws to the sentences a reader sees.

A PDF has no paragraphs: a sentence is cut wherever the line ended. Chunking, quoting and matching all want the
sentence whole, so a line that was cut by the margin is joined with the next. Pure text; offsets kept elsewhere in the
project refer to the text that this module returns.
"""

import re
import unicodedata
from collections.abc import Iterable

CJK = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
CJK_PUNCTUATION = "\u3000-\u3004\u3008-\u3020\uff00-\uffef“”‘’—…·"
_WIDE = re.compile(f"[{CJK}{CJK_PUNCTUATION}]")
# Forms of letters that exist for drawing only: ligatures, Arabic and Hebrew shapes, radicals, half and full width Latin.
# Full-width punctuation, traditional and simplified characters stay as they are written.
_PRESENTATION = re.compile(
    "[\ufb00-\ufdff\ufe30-\ufefc\u2e80-\u2fd5\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff61-\uffdc]"
)
_SPACED_CJK = re.compile(f"(?<=[{CJK}{CJK_PUNCTUATION}]) (?=[{CJK}{CJK_PUNCTUATION}])")
_ADJACENT_CJK = re.compile(f"(?<=[{CJK}])(?=[{CJK}])")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ufffe\uffff\ud800-\udfff]")
_SENTENCE_END = re.compile(r"[。！？!?.:：；;…][”’\"')）」』】]*$")
# A list item or numbered heading starts a line of its own even after a full line.
_ITEM = re.compile(
    r"^\s*(?:[-•●▪◆*·]\s|\(?\d{1,3}[.)、．]\s*(?!\d)\S|[（(]?[一二三四五六七八九十]{1,3}[)）、.]|第.{1,4}[章节条]|【)"
)


_ROW = "| "  # how a table row begins
_HYPHENATED = re.compile(r"[^\W\d_]+-[^\W\d_]+")
_BROKEN = re.compile(r"([^\W\d_]+)([-\u2010\u00ad])$")
_LOWER = re.compile(r"[^\W\d_A-Z]+")
# Nothing is put between what a dash or slash without a space before it joins: 2018–/23, https:///www.
_TIGHT = re.compile(r"\S[-\u2010\u2013/]$")


def clean(text: str) -> str:
    """NFKC for presentation forms only (ligatures), control characters out, spaces normalised, lines stripped."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _PRESENTATION.sub(lambda m: unicodedata.normalize("NFKC", m.group()), text)
    # Some fonts (CFF ones in particular) come out of the PDF with a space after every character.
    spaced, adjacent = len(_SPACED_CJK.findall(text)), len(_ADJACENT_CJK.findall(text))
    if spaced > adjacent:
        text = _SPACED_CJK.sub("", text)
    lines = (re.sub(r"[ \t\u00a0\u2000-\u200b]+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def reflow(text: str) -> str:
    """Join the lines that the margin cut. Paragraphs, headings, list items and table rows stay lines."""
    lines = clean(text).split("\n")
    widest = max((_width(line) for line in lines if not line.startswith(_ROW)), default=0)
    return join((line, widest >= 24 and _cut_by_margin(line, _width(line) / widest)) for line in lines)


def join(lines: Iterable[tuple[str, bool]]) -> str:
    """Lines as sentences: each comes with whether the margin cut it. List items and table rows stay lines all the same."""
    out: list[str] = []
    open_line = False  # the last line of `out` was cut by the margin
    # A word that is written with its hyphen elsewhere keeps it where the line ends, too.
    lines = list(lines)
    hyphenated = {m.lower() for text, _ in lines for m in _HYPHENATED.findall(text)}
    for line, cut in lines:
        if out and open_line and line and not line.startswith(_ROW) and not _ITEM.match(line):
            out[-1] = _join(out[-1], line, hyphenated)
        else:
            out.append(line)
        open_line = bool(line) and cut and not line.endswith((":", "：")) and not line.startswith(_ROW)
    return "\n".join(out)


def _cut_by_margin(line: str, fullness: float) -> bool:
    """Whether a line that fills ``fullness`` of the measure goes on in the next one.

    A paragraph's last line is shorter than the measure; a cut line is within a word of it. A completely full line that
    ends with a full stop may still go on, and joining two sentences does no harm, except after a colon.
    """
    if fullness >= 0.9:
        return not line.endswith((":", "："))
    return fullness >= 0.75 and not _SENTENCE_END.search(line[-12:])


def _join(left: str, right: str, hyphenated: set[str]) -> str:
    if broken := _BROKEN.search(left[-60:]):
        rest = _LOWER.match(right)
        # 2018-/23 and Non-/English keep what is a hyphen.
        if rest is None or (broken[2] != "\u00ad" and f"{broken[1]}-{rest[0]}".lower() in hyphenated):
            return left + right
        return left[: -len(broken[2])] + right
    if _TIGHT.search(left[-2:]) or _WIDE.match(left[-1]) or _WIDE.match(right[0]):
        return left + right
    return f"{left} {right}"


def _width(line: str) -> int:
    """Columns: a wide character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def folded_letters(text: str) -> tuple[str, list[int]]:
    """Letters and digits, folded; and the place of each: how the same text is found in two forms of it."""
    out: list[str] = []
    places: list[int] = []
    for at, character in enumerate(text):
        for c in unicodedata.normalize("NFKC", character).casefold():
            if c.isalnum():
                out.append(c)
                places.append(at)
    return "".join(out), places
