"""Numbers as a spreadsheet shows them: dates, percents, currencies, by the format of their cell (ECMA-376, 18.8.30)."""

import datetime as dt
import math
import re
from functools import lru_cache

# Formats that a workbook refers to without spelling them out. The date ones depend on the reader's country; ISO is read
# the same in each.
BUILTIN = {
    1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00", 9: "0%", 10: "0.00%", 11: "0.00E+00",
    14: "yyyy-mm-dd", 15: "d-mmm-yy", 16: "d-mmm", 17: "mmm-yy", 18: "h:mm AM/PM", 19: "h:mm:ss AM/PM", 20: "h:mm",
    21: "h:mm:ss", 22: "yyyy-mm-dd h:mm", 27: "yyyy年m月", 28: "m月d日", 29: "m月d日", 30: "yyyy-mm-dd", 31: "yyyy年m月d日",
    32: "h时mm分", 33: "h时mm分ss秒", 36: "yyyy年m月", 37: "#,##0", 38: "#,##0", 39: "#,##0.00", 40: "#,##0.00",
    41: "#,##0", 42: "#,##0", 43: "#,##0.00", 44: "#,##0.00", 45: "mm:ss", 46: "[h]:mm:ss", 47: "mm:ss",
    48: "0.0E+0", 50: "yyyy年m月", 51: "m月d日", 52: "yyyy年m月", 53: "m月d日", 54: "m月d日", 55: "yyyy年m月", 56: "m月d日",
    57: "yyyy年m月", 58: "m月d日",
}  # fmt: skip
_TOKEN = re.compile(
    r'"([^"]*)"|\\(.)|_.|\*.|\[(\$[^\]]*|[hms]+|[^\]]*)\]|(am/pm|a/p|上午/下午)|(y+|m+|d+|h+|s+)|([#0?][#0?,.]*|\.[#0?]+|[#0?])'
    r"|(e[+-]0+)|(general)|(%)|(.)",
    re.IGNORECASE | re.DOTALL,
)
_MONTHS = "January February March April May June July August September October November December".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def shown(value: float, code: str, *, epoch_1904: bool = False) -> str:
    """``value`` by the number format ``code``; plainly if the format is General or is not understood."""
    if not math.isfinite(value):
        return str(value)
    parts = _sections(code)
    part = parts[0]
    if value < 0 and len(parts) > 1:
        part, value = parts[1], -value
    elif value == 0 and len(parts) > 2:
        part = parts[2]
    tokens = _tokens(part)
    if any(kind == "date" for kind, _ in tokens):
        return _date(value, tokens, epoch_1904)
    if not any(kind in ("digits", "general") for kind, _ in tokens):
        # A format without digits hides the number (";;;"); what was hidden on purpose from the eye is still its value.
        return plain(value)
    return _number(value, tokens)


def plain(value: float) -> str:
    """Up to 15 significant digits, which is what spreadsheets keep: 0.1 + 0.2 is 0.3."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.15g}"


@lru_cache(maxsize=1024)
def _sections(code: str) -> list[str]:
    return re.findall(r'(?:[^;"\\]|"[^"]*"?|\\.?)+', code[:500]) or ["General"]


@lru_cache(maxsize=1024)
def _tokens(part: str) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for match in _TOKEN.finditer(part):
        quoted, escaped, bracket, noon, date, digits, exponent, general, percent, other = match.groups()
        if quoted is not None or escaped is not None:
            out.append(("text", quoted if quoted is not None else escaped))
        elif bracket is not None:
            if bracket.startswith("$"):  # [$¥-804]: a currency, and a country that is not needed
                out.append(("text", bracket[1:].split("-")[0]))
            elif re.fullmatch(r"h+|m+|s+", bracket, re.IGNORECASE):
                out.append(("date", f"[{bracket[0].lower()}]"))
        elif noon:
            out.append(("date", "noon"))
        elif date:
            out.append(("date", date.lower()))
        elif digits:
            out.append(("digits", digits))
        elif exponent:
            out.append(("exponent", exponent))
        elif general:
            out.append(("general", general))
        elif percent:
            out.append(("percent", percent))
        elif other:
            out.append(("text", other))
    return out


def _number(value: float, tokens: list[tuple[str, str]]) -> str:
    digits = next((text for kind, text in tokens if kind == "digits"), "")
    if sum(kind == "digits" for kind, _ in tokens) > 1 and any(text == "/" for _, text in tokens):
        return plain(value)  # a fraction
    percents = sum(kind == "percent" for kind, _ in tokens)
    value *= 100**percents
    if digits and not any(kind == "exponent" for kind, _ in tokens):
        scale = len(digits) - len(digits.rstrip(","))
        value /= 1000**scale
    whole, _, fraction = digits.rstrip(",").partition(".")
    places = min(len(fraction), 30)
    if not digits:
        body = plain(abs(value))
    elif any(kind == "exponent" for kind, _ in tokens):
        body = f"{abs(value):.{places}E}"
    else:
        body = f"{abs(value):{',' if ',' in whole else ''}.{places}f}"
        optional = len(fraction) - len(fraction.rstrip("#"))
        for _ in range(optional):
            body = body[:-1] if body.endswith("0") else body
        body = body.rstrip(".") if optional else body
        pad = whole.count("0")
        left, point, right = body.partition(".")
        body = left.zfill(pad) + point + right
    out, done = "", False
    for kind, text in tokens:
        if kind in ("digits", "general"):
            out += "" if done else body
            done = True
        elif kind in ("text", "percent"):
            out += text
    out = out.strip()
    return f"-{out}" if value < 0 and re.search("[1-9]", body) else out


def _date(value: float, tokens: list[tuple[str, str]], epoch_1904: bool) -> str:
    if any(text.startswith("[") for kind, text in tokens if kind == "date"):
        moment = dt.datetime(1900, 1, 1)
    else:
        # Excel counts 29 February 1900, which never was; the days before it are off by one there too.
        start = dt.datetime(1904, 1, 1) if epoch_1904 else dt.datetime(1899, 12, 30 if value >= 60 else 31)
        try:
            moment = start + dt.timedelta(milliseconds=round(value * 86_400_000))
        except OverflowError:
            return plain(value)
        if value < 0:
            return plain(value)
    if not any(text.startswith("[") or (text[0] == "s") for kind, text in tokens if kind == "date"):
        moment += dt.timedelta(milliseconds=500)
    seconds = round(value * 86400)
    noon = ("date", "noon") in tokens
    dates = [text for kind, text in tokens if kind == "date" and text != "noon"]
    out, at = "", -1
    for kind, text in tokens:
        if kind != "date":
            # "ss.000": the fraction of a second is not a number of its own
            out += text if kind == "text" and text != "@" else ""
            continue
        if text == "noon":
            out += "AM" if moment.hour < 12 else "PM"
            continue
        at += 1
        before, after = dates[at - 1][:2] if at else "", dates[at + 1][:1] if at + 1 < len(dates) else ""
        minutes = text[0] == "m" and len(text) <= 2 and (before[:1] == "h" or before in ("[h", "[m") or after == "s")
        match text[0]:
            case "[":
                unit = {"h": 3600, "m": 60, "s": 1}[text[1]]
                out += str(seconds // unit)
            case "y":
                out += f"{moment.year:04}" if len(text) > 2 else f"{moment.year % 100:02}"
            case "m" if minutes:
                minute = seconds // 60 % 60 if before[:1] == "[" else moment.minute
                out += f"{minute:02}" if len(text) == 2 or before else str(minute)
            case "m":
                name = _MONTHS[moment.month - 1]
                out += [str(moment.month), f"{moment.month:02}", name[:3], name][min(len(text), 4) - 1]
            case "d":
                name = _DAYS[moment.weekday()]
                out += [str(moment.day), f"{moment.day:02}", name[:3], name][min(len(text), 4) - 1]
            case "h":
                hour = (moment.hour - 1) % 12 + 1 if noon else moment.hour
                out += f"{hour:02}" if len(text) > 1 else str(hour)
            case _:
                second = seconds % 60 if any(d[0] == "[" for d in dates) else moment.second
                out += f"{second:02}" if len(text) > 1 else str(second)
    return out.strip()
