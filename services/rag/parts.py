"""The questions of a message that asks several. Pure text.

A small model answers the first question of a message and forgets the rest, and cannot say "I don't know" to one of them. So
each is searched and answered by itself; they share the prompt's head, which the engine has in its cache after the first.
"""

import re

from services.rag.documents.chunking import sentences
from services.rag.documents.reflow import CJK, CJK_PUNCTUATION
from services.rag.leaning import leans
from services.rag.terms import content_terms

# More than this in one message is a list to be worked through, not a question; it goes to the model whole.
MAX_PARTS = 5

_ASKS = re.compile(r"[?？][”’\"'）)」』?？]*$")
# What is quoted, a title and an address are words of the question, whatever marks are in them. A quotation mark behind a
# figure is inches.
_WHOLE = re.compile(
    r"“[^“”\n]{1,200}”|‘[^‘’\n]{1,200}’|「[^「」\n]{1,200}」|『[^『』\n]{1,200}』|《[^《》\n]{1,200}》|〈[^〈〉\n]{1,200}〉"
    r"|«[^«»\n]{1,200}»|`[^`\n]{1,200}`|(?<![A-Za-z0-9])\"[^\"\n]{1,200}\""
    rf"|(?:[A-Za-z][A-Za-z0-9+.-]{{1,15}}://|www\.)[^\s<>\"{CJK}{CJK_PUNCTUATION}]*[^\s<>\"{CJK}{CJK_PUNCTUATION}.,;:!?)]"
)
_ITEM = re.compile(r"\s*(?:[-•*·]|[（(]?(?:\d{1,2}|[一二三四五])[)）.、．:：])\s*")


def parts(message: str) -> list[str]:
    """The questions of ``message`` in order; the message itself, alone, where it is one question or none or too many.

    Each is an exact slice. What stands outside the questions ("I have the H2, firmware 3.") may be needed for each of
    them: then the message stays whole.
    """
    found: list[str] = []
    masked = _WHOLE.sub(lambda whole: "x" * len(whole[0]), message)
    for span in sentences(masked):
        item = _ITEM.match(masked, span.start, span.end)
        start = item.end() if item else span.start
        sentence = message[start : span.end]
        if not re.search(r"\w", sentence):
            continue
        if not _ASKS.search(masked, start, span.end) or not content_terms(sentence):
            return [message]
        found.append(sentence)
    return found if 2 <= len(found) <= MAX_PARTS else [message]


def leaning(asked: list[str], at: int) -> bool:
    """Whether the part at ``at`` needs those before it to be understood."""
    return leans(asked[at], [(before, "") for before in asked[:at]])
