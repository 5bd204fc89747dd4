"""What no answer may hold, taken out of the model's text as it streams. Pure text.

A document may carry instructions, and a model may follow them. Two things that such an instruction wants can be told from
the text alone: the service's own rules read out, and an address that carries something out of the conversation (a picture
that a client loads by itself, a link that is in no document).
"""

import re
from collections.abc import Iterable

from services.rag.documents.reflow import CJK

# A run shared with the rules is a leak from here on; a CJK character weighs three Latin ones. "The passages do not contain the
# answer" and "资料里没有答案" are shared with them by right, and are shorter.
LEAK_WEIGHT = 60
# Shorter common runs ("the passages") pass at once, so the stream does not stutter.
_HELD_WEIGHT = 12
_HELD_CHARACTERS = 600

_CJK_CHARACTER = re.compile(f"[{CJK}]")
_SCHEME = r"(?:https?|ftps?|wss?|file|data|javascript)"
_ADDRESS = rf"{_SCHEME}:[^\s<>\"'`，。；、！？（）“”‘’《》【】\[\]]+"
_MARKUP = re.compile(
    rf"(?P<picture>!?)\[(?P<text>[^\[\]\n]*)\]\(\s*<?(?P<address>[^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?[^()\n]*\)"
    rf"|(?P<bare>{_ADDRESS})",
    re.IGNORECASE,
)
_LEADS_OUT = re.compile(rf"{_SCHEME}:|//|\\\\|www\.", re.IGNORECASE)
# What may still become one of these when more comes.
_PENDING = re.compile(
    rf"(?:!|!?\[[^\[\]\n]*(?:\](?:\([^\n]*)?)?|{_ADDRESS}|(?<![A-Za-z])(?:{_SCHEME}:?|h|ht|htt|f|ft|w|ws|fi|fil|d|da|dat|j|ja|jav|java"
    r"|javas|javasc|javascr|javascri|javascrip))\Z",
    re.IGNORECASE,
)


class Guard:
    """Lets a stream of text pass, but for the rules in it and for addresses that stand in no document.

    ``rules`` is the system text, ``known`` what the answer may quote: the passages and the question. A passage that holds
    the rules, as this project's own documentation may, can be quoted.
    """

    def __init__(self, rules: str, known: Iterable[str]) -> None:
        self._rules, _ = _folded(rules)
        texts = list(known)
        self._known = "\n".join(_folded(text)[0] for text in texts)
        self._addresses = "\n".join("".join(text.split()) for text in texts)
        self._text = ""  # all of it, for a run of the rules may have begun in what was passed on
        self._passed = 0
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
        text = self._markup + text
        pending = None if final or self.leaked else _PENDING.search(text)
        at = pending.start() if pending and len(text) - pending.start() <= _HELD_CHARACTERS else len(text)
        self._markup = text[at:]
        return _MARKUP.sub(self._harmless, text[:at])

    def _harmless(self, match: re.Match[str]) -> str:
        if match["bare"]:
            address = match["bare"].rstrip(".,;:!?)")
            return match[0] if self._is_known(address) else "…" + match["bare"][len(address) :]
        leads_out = _LEADS_OUT.match(match["address"]) and not self._is_known(match["address"])
        return match["text"] if match["picture"] or leads_out else match[0]

    def _is_known(self, address: str) -> bool:
        return bool(address) and address in self._addresses


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
