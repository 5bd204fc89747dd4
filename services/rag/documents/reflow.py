"""From the lines a PDF draws to the sentences a reader sees.

A PDF has no paragraphs: a sentence is cut wherever the line ended. Chunking, quoting and matching all want the
sentence whole, so a line that was cut by the margin is joined with the next. Pure text; offsets kept elsewhere in the
project refer to the text that this module returns.
"""

import re
import unicodedata

CJK = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
CJK_PUNCTUATION = "\u3000-\u3004\u3008-\u3020\uff00-\uffef“”‘’—…·"
_WIDE = re.compile(f"[{CJK}{CJK_PUNCTUATION}]")
_SPACED_CJK = re.compile(f"(?<=[{CJK}{CJK_PUNCTUATION}]) (?=[{CJK}{CJK_PUNCTUATION}])")
_ADJACENT_CJK = re.compile(f"(?<=[{CJK}])(?=[{CJK}])")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ufffe\uffff\ud800-\udfff]")
_SENTENCE_END = re.compile(r"[。！？!?.:：；;…][”’\"')）」』】]*$")
# A list item or numbered heading starts a line of its own even after a full line.
_ITEM = re.compile(
    r"^\s*(?:[-•●▪◆*·]\s|\(?\d{1,3}[.)、．]\s*\S|[（(]?[一二三四五六七八九十]{1,3}[)）、.]|第.{1,4}[章节条]|【)"
)


def clean(text: str) -> str:
    """NFKC for presentation forms only (ligatures), control characters out, spaces normalised, lines stripped."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(
        unicodedata.normalize("NFKC", c) if "\ufb00" <= c <= "\ufb06" or "⺀" <= c <= "⿟" else c for c in text
    )
    # Some fonts (CFF ones in particular) come out of the PDF with a space after every character.
    spaced, adjacent = len(_SPACED_CJK.findall(text)), len(_ADJACENT_CJK.findall(text))
    if spaced > adjacent:
        text = _SPACED_CJK.sub("", text)
    lines = (re.sub(r"[ \t\u00a0\u2000-\u200b]+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def reflow(text: str) -> str:
    """Join the lines that the margin cut. Paragraphs, headings, list items and table rows stay lines."""
    lines = clean(text).split("\n")
    widest = max((_width(line) for line in lines), default=0)
    out: list[str] = []
    open_line = False  # the last line of `out` was cut by the margin
    for line in lines:
        if out and open_line and line and not _ITEM.match(line):
            out[-1] = _join(out[-1], line)
        else:
            out.append(line)
        open_line = bool(line) and widest >= 24 and _cut_by_margin(line, _width(line) / widest)
    return "\n".join(out)


def _cut_by_margin(line: str, fullness: float) -> bool:
    """Whether a line that fills ``fullness`` of the measure goes on in the next one.

    A paragraph's last line is shorter than the measure; a cut line is within a word of it. A completely full line that
    ends with a full stop may still go on, and joining two sentences does no harm, except after a colon.
    """
    if fullness >= 0.9:
        return not line.endswith((":", "："))
    return fullness >= 0.75 and not _SENTENCE_END.search(line)


def _join(left: str, right: str) -> str:
    if re.search(r"[A-Za-z]-$", left) and re.match(r"[a-z]", right):
        return left[:-1] + right
    if _WIDE.match(left[-1]) or _WIDE.match(right[0]):
        return left + right
    return f"{left} {right}"


def _width(line: str) -> int:
    """Columns: a wide character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)
