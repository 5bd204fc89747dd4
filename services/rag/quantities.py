"""Numbers as they are compared: 1,000 and 一千, 三十 and 30, 500万 and 5 million, 2 小时 and two hours. Pure text.

An answer's number counts as borne out only where the source has the same value with a unit that may be the same.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from services.rag.documents.reflow import CJK
from services.rag.terms import content_terms


@dataclass(frozen=True)
class Quantity:
    text: str  # as it is written, full width folded
    value: str  # in digits, without group separators
    unit: str  # a measure's name, or the next word or character; "" where none follows
    claimed: bool = True  # False for what may be a figure of speech: two reasons, 一般


# Name of a measure → how it is written. One spelling may belong to two measures.
_SPELLED: dict[str, str] = {
    "century": "世纪 century centuries",
    "year": "年 岁 year years yr yrs",
    "month": "个月 月 月份 month months",
    "week": "周 星期 礼拜 week weeks",
    "day": "天 日 号 day days",
    "hour": "小时 个小时 钟头 个钟头 时 点 hour hours hr hrs h",
    "minute": "分钟 分 minute minutes min mins",
    "second": "秒 秒钟 second seconds sec secs s",
    "millisecond": "毫秒 millisecond milliseconds ms",
    "microsecond": "微秒 microsecond microseconds us µs",
    "byte": "字节 byte bytes b",
    "kilobyte": "kb kib k kilobyte kilobytes",
    "megabyte": "mb mib m 兆 megabyte megabytes",
    "gigabyte": "gb gib g gigabyte gigabytes",
    "terabyte": "tb tib t terabyte terabytes",
    "bit": "位 比特 bit bits",
    "percent": "% 个百分点 百分点 percent per\u00a0cent",
    "yuan": "元 块 块钱 人民币 yuan rmb cny",
    "dollar": "美元 美金 dollar dollars usd",
    "euro": "欧元 euro euros eur",
    "metre": "米 m metre metres meter meters",
    "kilometre": "公里 千米 km kilometre kilometres kilometer kilometers",
    "centimetre": "厘米 cm centimetre centimetres centimeter centimeters",
    "millimetre": "毫米 mm millimetre millimetres millimeter millimeters",
    "mile": "英里 mile miles",
    "foot": "英尺 foot feet ft",
    "square kilometre": "平方公里 平方千米 km2",
    "square metre": "平方米 m2",
    "gram": "克 g gram grams",
    "kilogram": "公斤 千克 kg kilogram kilograms",
    "ton": "吨 t ton tons tonne tonnes",
    "degree": "度 摄氏度 ℃ ° °c degree degrees",
    "fold": "倍 times x fold",
    "time": "次 遍 回 times time",
    "person": "人 名 位 people persons person",
    "page": "页 page pages",
    "chapter": "章 chapter chapters",
    "section": "节 section sections",
}
_MEASURES: dict[str, set[str]] = {}
for _name, _words in _SPELLED.items():
    for _word in _words.split(" "):
        _MEASURES.setdefault(_word.replace("\u00a0", " "), set()).add(_name)
_CJK_MEASURES = sorted((w for w in _MEASURES if not w[0].isascii()), key=len, reverse=True)

_SIMPLIFIED = str.maketrans(
    "萬億兩個點時鐘歲頁號週節分秒幾餘倍負壹贰叁肆伍陆柒捌玖拾佰仟貳參陸廿ıİ",
    "万亿两个点时钟岁页号周节分秒几余倍负一二三四五六七八九十百千二三六廿ii",  # a search takes ı for i, a dictionary does not
)
_RAISED = {ord(c): f"^{n}" for n, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
# A number in a circle numbers an item; a comma between two numbers that are not full width separates them.
_ENCIRCLED = re.compile("[\u2460-\u24ff\u2776-\u2793]")
_WIDE_COMMA = re.compile("(?<![０-９])，|，(?![０-９])")

_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_POWERS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_SCALES = _POWERS | {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_WORDS = {
    w: n
    for n, w in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen".split()
    )
} | {w: 10 * n for n, w in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
MONTHS = {
    name: str(n)
    for n, names in enumerate(
        "january jan|february feb|march mar|april apr|may|june jun|july jul|august aug|september sep sept|october oct|"
        "november nov|december dec".split("|"),
        1,
    )
    for name in names.split()
}

_WORD = "|".join(sorted([*_WORDS, "hundred", "thousand", "million", "billion", "trillion"], key=len, reverse=True))
# Numerals are bounded: nobody writes longer ones, and a machine may not be able to.
_NUMBER = re.compile(
    r"(?P<minus>零下\s?|(?<![\d胜])负|\bminus\s|[-\u2212\u2013])?"
    r"(?:(?P<sign>[$€£¥]\s?)?(?P<digits>(?<!\d)\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)*)"
    r"(?:\s?(?P<scale>[百千万亿]{1,4}(?!米|克|分)|(?:hundred|thousand|million|billion|trillion)\b))?"
    r"|百分之(?P<percent>\d+(?:\.\d+)?|[零〇一二三四五六七八九十百两]{1,40}(?:点[零〇一二三四五六七八九]{1,40})?)"
    r"|(?P<chinese>(?<![\d.])[零〇一二三四五六七八九十百千万亿两]{1,40}(?:点[零〇一二三四五六七八九]{1,40}(?!分))?)"
    rf"|\b(?P<words>(?:{_WORD})(?:(?:[\s-]|\sand\s)(?:{_WORD})){{0,20}})\b)"
    rf"|\b(?P<month>{'|'.join(sorted(MONTHS, key=len, reverse=True))})\b\.?",
    re.IGNORECASE,
)
# A hyphen is a minus where nothing stands before it that makes it a range (5-10, 6月-8月) or a name (COVID-19).
_BEFORE_MINUS = re.compile(rf"(?:^|[\s(\[{{\"'“‘「『（【|=<>≤≥:：,，、;；/~～{CJK}])$")
_BEFORE_RANGE = re.compile(rf"[\d零一二三四五六七八九十百千万亿]\s?(?:{'|'.join(_CJK_MEASURES)}|[{CJK}])?\s*$")
_LATIN_UNIT = re.compile(r"[\s-]?(per cent|[A-Za-zµ]+2?|[%°℃]c?)", re.IGNORECASE)
_CJK_UNIT = re.compile(rf"\s?[多余几来]?([{CJK}]{{1,4}})")
_ONE_OF = re.compile(r"\b(?:an?|each|every|per|one)\s+([a-z]+)\b|[每]([\u4e00-\u9fff]{1,2})", re.IGNORECASE)
# Counters that go with anything: 两个原因 may be a count that the writer made.
_COUNTERS = frozenset("个种点项类条步方部份些者")
_IDIOMS = frozenset(["万一", "千万", "一一", "百万", "亿万", "万千", "三三两两", "一二", "百", "千", "万", "亿", "十"])
_DASHES = "-\u2212\u2013"
_YEAR = re.compile(r"1\d{3}|20\d\d")
_DIGIT = re.compile(r"\d")


def quantities(text: str) -> list[Quantity]:
    """The numbers of ``text``, in order: in digits, in Chinese or English words, months by name."""
    return [quantity for _, quantity in _quantities(_folded(text))]


def without(text: str) -> str:
    """``text``, its width folded, without the numbers that it claims: its words."""
    folded = _folded(text)
    for span, quantity in reversed(list(_quantities(folded))):
        if quantity.claimed:
            folded = f"{folded[: span[0]]} {folded[span[1] :]}"
    return folded


def _folded(text: str) -> str:
    folded = _ENCIRCLED.sub(" ", text.translate(_RAISED))
    return unicodedata.normalize("NFKC", _WIDE_COMMA.sub("， ", folded)).translate(_SIMPLIFIED)


def held(found: Iterable[Quantity]) -> dict[str, set[str]]:
    """Value → the units it has, for :func:`missing`."""
    out: dict[str, set[str]] = {}
    for q in found:
        out.setdefault(q.value, set()).add(q.unit)
        if _is_decimal(q):
            out.setdefault(_plain(Decimal(q.value)), set()).add(q.unit)
    return out


def held_ones(text: str) -> set[str]:
    """Measures of which ``text`` has one without a number: an hour, 每小时."""
    return {word.lower() for pair in _ONE_OF.findall(text) for word in pair if word.lower() in _MEASURES}


def measures(unit: str) -> set[str]:
    """The names of the measures that ``unit`` may spell; none for another word."""
    return _MEASURES.get(unit, set())


def is_year(q: Quantity) -> bool:
    """Whether it may be a year of the calendar: 2019, 2019年, "in 2019 the"."""
    known = measures(q.unit)
    return bool(_YEAR.fullmatch(q.value)) and ("year" in known if known else not content_terms(q.unit))


def missing(needed: Iterable[Quantity], given: Mapping[str, set[str]]) -> list[Quantity]:
    """Those of ``needed`` that are claimed and that ``given`` does not hold."""
    return [q for q in needed if q.claimed and not _is_held(q, given)]


def _is_held(q: Quantity, given: Mapping[str, set[str]]) -> bool:
    values = {q.value}
    if _is_decimal(q):
        values.add(_plain(Decimal(q.value)))
    return any(_may_be_same(q, unit) for value in values for unit in given.get(value, ()))


def _is_decimal(q: Quantity) -> bool:
    """2.50 元 is 2.5 元; but version 3.10 is not 3.1, and 3.2.1 节 is no number at all."""
    return q.unit in _MEASURES and q.value.count(".") == 1


def _may_be_same(q: Quantity, other: str) -> bool:
    unit, digits = q.unit, len(q.value.lstrip("-"))
    if not unit or not other or unit == other:
        return True
    known, other_known = _MEASURES.get(unit), _MEASURES.get(other)
    if known and other_known:
        return bool(known & other_known)
    if known or other_known:
        # Any word may stand after 1968: what follows a short number is more likely its unit. An answer may end in a word.
        return not known and (digits > 2 or (len(unit) > 2 and other.startswith(unit)))
    # Any noun may follow a number. One of several digits speaks for itself; 2 may be anything's number.
    if digits > 1 or unit.isascii() != other.isascii():
        return True
    return unit.startswith(other) or other.startswith(unit) or not {unit[0], other[0]}.isdisjoint(_COUNTERS)


def _quantities(text: str) -> Iterator[tuple[tuple[int, int], Quantity]]:
    for match in _NUMBER.finditer(text):
        if (quantity := _quantity(text, match)) is None:
            continue
        start, end = match.span()
        if minus := match["minus"]:
            if minus in _DASHES and not _is_minus(text[max(0, start - 12) : start]):
                quantity = replace(quantity, text=quantity.text.removeprefix(minus))
                start += len(minus)
            else:
                quantity = replace(quantity, value=f"-{quantity.value}")
        yield (start, end), quantity


def _is_minus(before: str) -> bool:
    return bool(_BEFORE_MINUS.search(before) and not _BEFORE_RANGE.search(before))


def _quantity(text: str, match: re.Match[str]) -> Quantity | None:
    unit = _unit(text, match.end())
    if digits := match["digits"]:
        return _from_digits(match, digits, unit)
    if percent := match["percent"]:
        value = percent if _DIGIT.search(percent) else _chinese(percent)
        return Quantity(match[0], value, "%") if value else None
    if chinese := match["chinese"]:
        value = _chinese(chinese)
        claimed = _claims(chinese, unit) or bool(match["minus"])
        return Quantity(match[0], value, unit, claimed) if value else None
    if month := match["month"]:
        # May is a verb, too, and so is march.
        dated = re.search(r"\d[\s,]*(?:of\s)?$", text[: match.start()]) or re.match(r",?\s*\d", text[match.end() :])
        return Quantity(match[0], MONTHS[month.lower()], "月") if dated else None
    if (words := match["words"]) and (number := _english(words)) is not None:
        return Quantity(match[0], str(number), unit, unit in _MEASURES or number > 12)
    return None


def _from_digits(match: re.Match[str], digits: str, unit: str) -> Quantity:
    value = digits.replace(",", "")
    if scale := match["scale"]:
        factor = 1
        for part in [scale.lower()] if scale.isascii() else scale:
            factor *= _SCALES[part]
        if value.count(".") <= 1:
            value = _plain(Decimal(value) * factor)
    elif value.isdecimal() and len(value) == 2:
        value = str(int(value))  # 2019-03-05
    if match["sign"]:
        unit = {"$": "dollar", "€": "euro", "¥": "yuan"}.get(match["sign"][0], "")
    elif unit == "s" and re.fullmatch(r"[12]\d\d0", value):
        unit = ""  # the 1990s
    return Quantity(match[0].strip(), value, unit)


def _unit(text: str, at: int) -> str:
    if match := _CJK_UNIT.match(text, at):
        for measure in _CJK_MEASURES:
            if match[1].startswith(measure):
                return measure
        return "" if match[1][0] in _DIGITS or match[1][0] in _POWERS else match[1][0]
    if match := _LATIN_UNIT.match(text, at):
        return match[1].lower()
    return ""


def _claims(chinese: str, unit: str) -> bool:
    """Whether a numeral in characters states a number, and is no figure of speech."""
    if chinese in _IDIOMS:
        return unit in _MEASURES and f"{chinese}{unit}" != "十分"
    if chinese in ("一", "二"):
        return unit in _MEASURES and (len(unit) > 1 or unit in "秒米岁元倍页章")
    return len(chinese) > 1 or unit in _MEASURES


def _chinese(text: str) -> str | None:
    """The value of a Chinese numeral: 三十五, 一百零二, 二〇一九, 三点五."""
    whole, _, fraction = text.partition("点")
    if fraction:
        decimals = "".join(str(_DIGITS[c]) for c in fraction if c in _DIGITS)
        head = _chinese(whole)
        return f"{head}.{decimals}" if head is not None else None
    if all(c in _DIGITS for c in whole):
        return "".join(str(_DIGITS[c]) for c in whole) or None
    total = section = 0
    digit: int | None = None
    last = 1
    for c in whole:
        if c in _DIGITS:
            digit = _DIGITS[c]
            if c in "零〇":
                last = 10
            continue
        power = _POWERS[c]
        if power >= 10**4:
            section = (section + (digit or 0) or 1) * power
            total, section = (total * power + section if power == 10**8 and total else total + section), 0
        else:
            section += (1 if digit is None else digit) * power
        digit, last = None, power
    if digit is not None:
        section += digit * (last // 10 if last > 10 else 1)  # 二百五 is 250, 二百零五 is 205
    return str(total + section)


def _english(words: str) -> int | None:
    """The value of an English numeral: twenty-five, two hundred and six. None for a bare "hundred" or "million"."""
    total = current = 0
    seen = False
    for word in re.split(r"[\s-]+", words.lower()):
        if word == "and":
            continue
        if word in _WORDS:
            current, seen = current + _WORDS[word], True
        elif not seen:
            return None
        elif word == "hundred":
            current *= 100
        else:
            total, current = total + current * _SCALES[word], 0
    return total + current


def _plain(value: Decimal) -> str:
    text = format(value.normalize(), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
