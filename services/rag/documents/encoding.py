"""Which encoding a text file is written in: its BOM, UTF-8 if it is valid, UTF-16 by its characters, else chardet."""

import codecs
import io
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TextIO

from services.rag.documents.pages import ReadError

# What people's files are written in. Fewer candidates make fewer mistakes on a short text: with all of chardet's, ten
# French words are Cyrillic. Each name is the widest of its family, so that it decodes what lies beyond the sample.
LEGACY = "gb18030 big5hkscs cp950 cp932 euc_jis_2004 iso2022_jp_2 cp949 cp1252 cp1250 cp1251 koi8-r".split()
SAMPLE_BYTES = 1 << 18
_BOMS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
_ODD_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")


def guess(data: bytes) -> str | None:
    """The Python codec that ``data`` (the beginning of a text, 10 characters and more) is written in.

    None if it is not text in any encoding known here.
    """
    for bom, name in _BOMS:
        if data.startswith(bom):
            return name
    if not _NOT_ASCII.search(data) and not _ODD_CONTROL.search(data):
        return "iso2022_jp_2" if b"\x1b$" in data else "utf-8"
    if _is_utf8(data):
        return "utf-8"
    if wide := _utf16(data):
        return wide
    if b"\x00" in data or len(_ODD_CONTROL.findall(data)) > len(data) / 100:
        return None
    import chardet

    found = chardet.detect(data, include_encodings=LEGACY, prefer_superset=True, compat_names=False)["encoding"]
    # Cyrillic text is Cyrillic in most of its letters; a few high bytes among Latin letters are accents.
    if found in ("cp1251", "koi8-r") and len(re.findall(rb"[A-Za-z]", data)) > 2 * len(_NOT_ASCII.findall(data)):
        found = "cp1252"
    return codecs.lookup(found).name if found else None


def guess_file(path: Path) -> str | None:
    """As ``guess``, for a file; a long beginning in ASCII does not hide what comes after it."""
    with path.open("rb") as file:
        head = file.read(SAMPLE_BYTES)
        sample = head
        while sample and not _NOT_ASCII.search(sample):
            sample = file.read(SAMPLE_BYTES)
    found = guess(head)
    if sample is head or not sample or found != "utf-8":
        return found
    first = _NOT_ASCII.search(sample)
    assert first is not None
    line = sample.rfind(b"\n", 0, first.start()) + 1
    return guess(sample[line:])


def decode(data: bytes, declared: str | None = None) -> str | None:
    """The text of ``data``: in the ``declared`` encoding (of a meta tag) if that fits without a fault, else by content.

    None if it is not text.
    """
    name = guess(data[:SAMPLE_BYTES])
    if declared and not any(data.startswith(bom) for bom, _ in _BOMS) and name != "utf-8":
        try:
            # A page that says GB2312 means its superset, and "latin-1" has meant Windows-1252 on the web for ever.
            widest = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "iso8859-1": "cp1252"}
            codec = codecs.lookup(declared).name
            return data.decode(widest.get(codec, codec))
        except (LookupError, ValueError):
            pass  # a wrong declaration is common; the content decides
    return None if name is None else data.decode(name, errors="replace")


def open_text(path: Path) -> TextIO:
    """The file as text, with its line ends as they are; bytes that do not fit become U+FFFD.

    Raises:
        ReadError: it is not text.
    """
    name = guess_file(path)
    if name is None:
        raise ReadError("the file is not text in any known encoding: save it as UTF-8")
    return io.TextIOWrapper(path.open("rb"), encoding=name, errors="replace", newline="")


def _is_utf8(data: bytes) -> bool:
    """Valid UTF-8, but for a character cut at the end and the rare broken byte of an otherwise good text."""
    text = data.decode("utf-8", errors="replace")
    broken = text.count("\ufffd")
    if broken and len(data) - data.rfind(text[-1:].encode()) <= 4 and text.endswith("\ufffd"):
        broken -= 1
    wide = sum(c > "\x7f" for c in text) - text.count("\ufffd")
    return "\x00" not in text and (broken == 0 or wide >= 50 * broken)


def _utf16(data: bytes) -> str | None:
    """UTF-16 without a BOM: nearly all of its characters are common ones, which they are not in any other reading."""
    even = data[: len(data) & ~1][: SAMPLE_BYTES // 4]
    if len(even) < 4 or (len(data) % 2 and len(data) < SAMPLE_BYTES):
        return None
    shares = {}
    for name in ("utf-16-le", "utf-16-be"):
        text = even.decode(name, errors="replace")
        shares[name] = sum(c in _common() for c in text) / len(text)
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= 0.85 else None


@cache
def _common() -> frozenset[str]:
    """The characters that texts are made of: ASCII, Latin letters, kana, punctuation, everyday hanzi and hangul."""
    blocks: list[tuple[range, Iterable[int], str]] = [
        (range(0xB0, 0xD8), range(0xA1, 0xFF), "gb2312"),  # its level 1: 3,755 hanzi in everyday use
        (range(0xA4, 0xC7), [*range(0x40, 0x7F), *range(0xA1, 0xFF)], "big5"),  # 5,401 of traditional Chinese
        (range(0xB0, 0xC9), range(0xA1, 0xFF), "euc_kr"),
        (range(0xB0, 0xD0), range(0xA1, 0xFF), "euc_jp"),
    ]
    chars = "".join(
        bytes([a, b]).decode(codec, errors="ignore") for high, low, codec in blocks for a in high for b in low
    )
    plain = "".join(map(chr, [9, 10, 13, *range(32, 127), *range(0xC0, 0x180), *range(0x3000, 0x3100)]))
    return frozenset(chars + plain + "，。！？；：（）“”‘’—…·《》、％－～．０１２３４５６７８９")
