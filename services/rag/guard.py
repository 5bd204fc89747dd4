"""What no answer may hold, taken out of the model's text as it streams. Pure text.

A document may carry instructions, and a model may follow them. Two things that such an instruction wants can be told from
the text alone: the service's own rules read out, and an address that carries something out of the conversation (a picture
that a client loads by itself, a link that is in no document).
"""

import html
import re
from collections.abc import Iterable

from services.rag.documents.reflow import CJK, CJK_PUNCTUATION

# A run shared with the rules is a leak from here on; a CJK character weighs three Latin ones. "The passages do not contain the
# answer" and "资料里没有答案" are shared with them by right, and are shorter.
LEAK_WEIGHT = 60
# Shorter common runs ("the passages") pass at once, so the stream does not stutter.
_HELD_WEIGHT = 12
_HELD_CHARACTERS = 600

_CJK_CHARACTER = re.compile(f"[{CJK}]")
_NET = ("https://", "http://", "ftps://", "ftp://", "wss://", "ws://")
_OTHER = ("file:", "data:", "javascript:")
_SCHEME = r"(?:https?|ftps?|wss?|file|data|javascript)"
# "metadata:title" has no scheme. Text in Chinese goes on behind an address without a space, and a mark of Markdown ends one,
# but for a "*" with more of an address behind it.
_START = rf"(?:(?<![A-Za-z]){_SCHEME}:|{'|'.join(_NET)})"
_ADDRESS = rf"{_START}(?:[^\s<>\"'`*|\[\]{CJK}{CJK_PUNCTUATION}«»–•→]|\*+(?=[A-Za-z0-9?=&/%#]))++"
_OUTWARD = rf"(?:{_SCHEME}:|[/\\]{{2}}|www\.)"
_LEADS_OUT = re.compile(_OUTWARD, re.IGNORECASE)
# Tags that load something as soon as they are shown; and any tag, since a style may.
_LOADS = frozenset(
    "img image picture source iframe frame embed object video audio track link script style svg use input base meta portal".split()
)
_RUNS = frozenset(("script", "style"))  # by what stands behind them
_LOADING = re.compile(r"[/\\]{2}|url\s*\(|\bon\w+\s*=|&#", re.IGNORECASE)
# Nothing here is tried twice: what is repeated gives nothing back.
_MARKUP = re.compile(
    r"(?P<picture>!?)\[(?P<text>[^\[\]\n]*+)\]"
    r"\(\s*+<?(?P<address>[^\s<>()]*+(?:\([^\s<>()]*+\)[^\s<>()]*+)*+)>?[^()\n]*+\)"
    # "Well![1][2]" is a picture of nothing.
    r"|!\[(?P<alt>(?!\d+\])[^\[\]\n]*+)\]\[[^\[\]\n]*+\]"
    # A link with brackets in its text or in its title, or without an end; what a reference stands for.
    rf"|(?P<hung>\]\(\s*+<?|\]:\s*+<?(?=[/\\]{{2}}|www\.))(?P<there>{_OUTWARD}[^\s<>()]++)|(?P<gap>\]\(\s{{40}})"
    r"|<(?P<tag>[A-Za-z][A-Za-z0-9-]*+)(?=[\s/>])(?P<inner>[^<>]*+)(?P<end>>?)"
    rf"|(?P<bare>{_ADDRESS})",
    re.IGNORECASE,
)
# What may still become one of these when more comes.
_PARTIAL, _PARTIAL_WORD = (
    "|".join(sorted({s[:n] for s in schemes for n in range(1, len(s) + 1)}, key=len, reverse=True))
    for schemes in (_NET, _OTHER)
)
_PENDING = re.compile(
    r"(?:!|!?\[[^\[\]\n]*+|!\[[^\[\]\n]*+\]\[[^\[\]\n]*+"
    r"|(?:!?\[[^\[\]\n]*+)?\](?:\(\s*+[^()\n]*+(?:\([^()\n]*+\)[^()\n]*+)*+(?:\([^()\n]*+)?|:\s*+\S*+)?"
    rf"|<(?:[A-Za-z][A-Za-z0-9-]*+(?:[\s/][^<>]*+)?)?|{_ADDRESS}\**+|{_START}\**+|{_PARTIAL}|(?<![A-Za-z])(?:{_PARTIAL_WORD}))\Z",
    re.IGNORECASE,
)
_BEGINS_ADDRESS = re.compile(rf"(?<![A-Za-z])(?:{_PARTIAL}|{_PARTIAL_WORD})\Z", re.IGNORECASE)
# What may stand behind an address and is no part of it; a slash at its end tells nothing.
_BEHIND = ".,;:!?)*_\\"
_TWO = re.compile(rf"([{re.escape(_BEHIND)}]+)(?={_SCHEME}:)", re.IGNORECASE)


class Guard:
    """Lets a stream of text pass, but for the rules in it and for addresses that stand in no document.

    ``rules`` is the system text, ``known`` what the answer may quote: the passages and the question. A passage that holds
    the rules, as this project's own documentation may, can be quoted.
    """

    def __init__(self, rules: str, known: Iterable[str]) -> None:
        self._rules, _ = _folded(rules)
        texts = list(known)
        self._known = "\n".join(_folded(text)[0] for text in texts)
        self._addresses = "\n".join("".join(text.split()) for text in texts).casefold()
        self._text = ""  # all of it, for a run of the rules may have begun in what was passed on
        self._passed = 0
        self._before = ""  # the last character that was passed on
        self._markup = ""
        self.leaked = False

    def feed(self, text: str) -> str:
        """The text that can be shown now. After a leak nothing more is."""
        if self.leaked:
            return ""
        self._text += text
        return self._links(self._unleaked())

    def flush(self) -> str:
        """What was held back, at the end of the stream."""
        if self.leaked:
            return ""
        rest, self._passed = self._text[self._passed :], len(self._text)
        return self._links(rest, final=True)

    def _unleaked(self) -> str:
        # Enough of the end to hold a leak with its spaces and marks; what is before has been looked at.
        begin = max(0, self._passed - 2 * LEAK_WEIGHT)
        folded, places = _folded(self._text[begin:])
        # From each place, how far the text goes on as the rules do.
        held = len(folded)
        for start in range(len(folded)):
            if folded[start : start + 4] and folded[start : start + 4] not in self._rules:
                continue
            end = _common(folded, start, self._rules)
            run = folded[start:end]
            weight = _weight(run)
            if weight >= LEAK_WEIGHT and run[: _leak_length(run)] not in self._known:
                self.leaked = True
                held = min(held, start)
                break
            if end == len(folded) and weight >= _HELD_WEIGHT:
                held = min(held, start)
                break
        until = begin + places[held] if held < len(folded) else len(self._text)
        out = self._text[self._passed : until] if until > self._passed else ""
        self._passed = max(self._passed, until)
        return out

    def _links(self, text: str, *, final: bool = False) -> str:
        text = self._before + self._markup + text
        begin = len(self._before)
        found = list(_MARKUP.finditer(text, begin))
        at = len(text) if final or self.leaked else _undecided(text, begin, found)
        shown = self._harmless(text[:at], begin, (match for match in found if match.start() < at))
        self._before, self._markup = text[:at][-1:], text[at:]
        return shown

    def _harmless(self, text: str, begin: int = 0, found: Iterable[re.Match[str]] | None = None) -> str:
        out: list[str] = []
        for match in _MARKUP.finditer(text) if found is None else found:
            out += text[begin : match.start()], self._replaced(match)
            begin = match.end()
        return "".join([*out, text[begin:]])

    def _replaced(self, match: re.Match[str]) -> str:
        if match["bare"]:
            return self._address(match["bare"])
        if match["tag"]:
            return self._tag(match)
        if match["hung"]:
            known = self._is_known(match["there"])
            return match[0] if known else match["hung"].replace("](", "] (").rstrip("<") + "…"
        if match["gap"]:  # longer than what can be held back
            return "] ("
        text = match["alt"] if match["alt"] is not None else match["text"]
        shown = self._harmless(text)
        if match["alt"] is not None or match["picture"] or self._leads_out(match["address"]):
            # What is left makes no address of what stands around it: "ht![tp](x)://".
            joined = re.match(r"[\w)>]", match.string[match.start() - 1 : match.start()])
            return ("…" if joined else "") + shown + ("…" if _BEGINS_ADDRESS.search(shown) else "")
        # Behind the address may stand what makes it no link, and then counts by itself.
        return f"[{shown}{self._harmless(match[0][1 + len(text) :])}"

    def _address(self, written: str) -> str:
        if self._is_known(written):
            return written
        # There may be two, with nothing but a comma between.
        pieces = _TWO.split(written)
        return "".join(
            piece if at % 2 or self._is_known(piece) else "…" + piece[len(piece.rstrip(_BEHIND)) :]
            for at, piece in enumerate(pieces)
        )

    def _tag(self, match: re.Match[str]) -> str:
        inner, loads = match["inner"], match["tag"].lower() in _LOADS
        if not match["end"]:  # it may go on beyond what can be held back
            rest = match["tag"] + self._harmless(inner)
            return rest if loads else "<" + rest
        if match["tag"].lower() in _RUNS or (loads and "=" in inner):
            return "…"
        if _LOADING.search(inner) and not (match["tag"].lower() == "a" and self._is_link(inner)):
            return "…"
        return f"<{match['tag']}{self._harmless(inner)}>"

    def _is_link(self, inner: str) -> bool:
        """Whether the attributes of a tag are an address that is known, and nothing else."""
        found = re.fullmatch(r"\s+href\s*=\s*[\"']?([^\s\"'<>]+)[\"']?\s*", inner, re.IGNORECASE)
        return found is not None and not self._leads_out(found[1])

    def _leads_out(self, address: str) -> bool:
        """Whether a link goes to where no document points. Entities and escapes are read as a browser does."""
        read = re.sub(r"\\(?=[!-/:-@\[-`{-~])", "", html.unescape(address)).strip()
        return any(_LEADS_OUT.match(a) and not self._is_known(a) for a in (address, read))

    def _is_known(self, address: str) -> bool:
        address = address.rstrip(_BEHIND + "/").casefold()
        return bool(address) and address in self._addresses


def _undecided(text: str, begin: int, found: Iterable[re.Match[str]]) -> int:
    """Where in ``text`` something begins that more text may change."""
    pending = _PENDING.search(text, max(begin, len(text) - _HELD_CHARACTERS))
    for match in found:
        # What is inside of a whole thing is decided.
        if pending and match.start() < pending.start() < match.end():
            pending = _PENDING.search(text, match.end())
    return pending.start() if pending else len(text)


def _folded(text: str) -> tuple[str, list[int]]:
    """Letters, digits and CJK characters in lower case, words one space apart; and the place of each in ``text``."""
    out: list[str] = []
    places: list[int] = []
    for at, character in enumerate(text):
        if character.isalnum():
            low = character.lower()
            out.append(low if len(low) == 1 else character)
        elif out and out[-1] != " ":
            out.append(" ")
        else:
            continue
        places.append(at)
    joined = "".join(out)
    # Between CJK characters a space or a mark means nothing, and a model changes them freely.
    keep = [
        i
        for i, c in enumerate(joined)
        if c != " " or (0 < i < len(joined) - 1 and joined[i - 1].isascii() and joined[i + 1].isascii())
    ]
    return "".join(joined[i] for i in keep), [places[i] for i in keep]


def _common(text: str, start: int, rules: str) -> int:
    """The end of the longest run from ``start`` that the rules hold too."""
    low, high = start, len(text)
    while low < high:  # a run that is in the rules has all its beginnings in them
        middle = (low + high + 1) // 2
        if text[start:middle] in rules:
            low = middle
        else:
            high = middle - 1
    return low


def _weight(run: str) -> int:
    return len(run) + 2 * len(_CJK_CHARACTER.findall(run))


def _leak_length(run: str) -> int:
    total = 0
    for length, character in enumerate(run, start=1):
        total += 3 if _CJK_CHARACTER.match(character) else 1
        if total >= LEAK_WEIGHT:
            return length
    return len(run)
