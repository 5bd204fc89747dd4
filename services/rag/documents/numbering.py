"""The numbers that Word draws before headings and list items; a DOCX holds only the rule for them (ECMA-376, 17.9).

People cite "第三条" and "2.1 Limits" by the number they see, so it has to be in the text.
"""

import re
from dataclasses import dataclass, field

from lxml import etree

from services.rag.documents.office import attribute, child

_DIGITS = "零一二三四五六七八九"
_ROMAN = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL")]
_ROMAN += [(10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]


@dataclass(frozen=True)
class Level:
    start: int
    format: str
    text: str  # "%1.%2"
    style: str | None  # the paragraph style that is numbered by this level


@dataclass
class _List:
    levels: dict[int, Level]
    counts: dict[int, int] = field(default_factory=dict)


class Numbering:
    """Counts the numbered paragraphs of a document, in order."""

    def __init__(self, root: etree._Element | None) -> None:
        self._lists: dict[str, _List] = {}
        if root is None:
            return
        shared: dict[str, _List] = {}
        for abstract in root.iterchildren("{*}abstractNum"):
            levels = {_number(level, "ilvl"): _level(level) for level in abstract.iterchildren("{*}lvl")}
            shared[attribute(abstract, "abstractNumId") or ""] = _List(levels)
        for num in root.iterchildren("{*}num"):
            base = shared.get(attribute(child(num, "abstractNumId"), "val") or "")
            if base is None:
                continue
            overrides = list(num.iterchildren("{*}lvlOverride"))
            if overrides:  # a list of its own, with other starts or formats
                levels = dict(base.levels)
                for override in overrides:
                    at, own = _number(override, "ilvl"), child(override, "lvl")
                    if own is not None:
                        levels[at] = _level(own)
                    if at in levels and (start := attribute(child(override, "startOverride"), "val")) is not None:
                        old = levels[at]
                        levels[at] = Level(_int(start, 1), old.format, old.text, old.style)
                base = _List(levels)
            self._lists[attribute(num, "numId") or ""] = base

    def next(self, num: str, level: int | None, style: str | None = None) -> str:
        """The number of the next paragraph of list ``num`` ("2.1", "第三条", "-"); "" if it has none.

        Without a ``level``, it is the one that belongs to the paragraph's ``style``.
        """
        numbered = self._lists.get(num)
        if numbered is None:
            return ""
        if level is None:
            level = next((i for i, lv in numbered.levels.items() if lv.style and lv.style == style), 0)
        rule = numbered.levels.get(level)
        if rule is None:
            return ""
        counts = numbered.counts
        counts[level] = counts[level] + 1 if level in counts else rule.start
        for deeper in [i for i in counts if i > level]:
            del counts[deeper]
        if rule.format == "bullet":
            return "-"
        if rule.format == "none":
            return ""

        def value(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            other = numbered.levels.get(at, rule)
            return _written(counts.setdefault(at, other.start), other.format)

        return re.sub(r"%(\d)", value, rule.text).strip()


def _level(element: etree._Element) -> Level:
    return Level(
        _int(attribute(child(element, "start"), "val"), 1),
        attribute(child(element, "numFmt"), "val") or "decimal",
        attribute(child(element, "lvlText"), "val") or "",
        attribute(child(element, "pStyle"), "val"),
    )


def _written(value: int, form: str) -> str:
    if form in ("lowerLetter", "upperLetter") and value > 0:
        letters = chr(ord("a") + (value - 1) % 26) * ((value - 1) // 26 % 10 + 1)
        return letters.upper() if form == "upperLetter" else letters
    if form in ("lowerRoman", "upperRoman") and 0 < value < 4000:
        out = ""
        for size, letters in _ROMAN:
            out += letters * (value // size)
            value %= size
        return out if form == "upperRoman" else out.lower()
    if form.startswith(("chineseCounting", "japaneseCounting", "ideographDigital", "taiwaneseCounting")):
        return chinese(value)
    if form == "decimalEnclosedCircleChinese" or form == "decimalEnclosedCircle":
        return chr(0x2460 + value - 1) if 0 < value <= 20 else str(value)
    if form == "ideographTraditional" and 0 < value <= 10:
        return "甲乙丙丁戊己庚辛壬癸"[value - 1]
    if form == "decimalZero":
        return f"{value:02}"
    return str(value)


def chinese(value: int) -> str:
    """A number below 10,000 as it is counted in Chinese: 12 is 十二, 105 is 一百零五."""
    if not 0 < value < 10_000:
        return str(value)
    out, gap = "", False
    for size, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // size % 10
        if digit:
            out += ("零" if gap and out else "") + _DIGITS[digit] + unit
        gap = not digit
    return out.removeprefix("一") if out.startswith("一十") else out


def _number(element: etree._Element, name: str) -> int:
    return _int(attribute(element, name), 0)


def _int(text: str | None, default: int) -> int:
    try:
        return int(text) if text is not None else default
    except ValueError:
        return default
