"""How near the model was to saying that it does not know. Pure.

A small model answers from what is about the right thing and does not hold the answer, but not without hesitation: "I don't know"
is then among the ways it might have begun, far more probable than where the answer stands before it. That is told by the
probabilities of what could have come first, which every OpenAI-compatible server gives with an answer (`logprobs`).

What search thinks of its best passage is the other witness. The odds of both are weighed together: little hesitation is
enough over a passage that search was not sure of, and much is needed over one that it was.
"""

import math
import re
from collections.abc import Iterable, Mapping

from services.rag.prompts import Language

_REFUSALS: dict[Language, tuple[str, ...]] = {
    "zh": ("我不知道", "我不清楚", "我无法回答", "不知道", "抱歉", "很抱歉"),
    "en": ("I don't know", "I do not know", "I'm sorry"),
}
# A character that much else begins with (不可以) tells nothing.
_SHORTEST: dict[Language, int] = {"zh": 2, "en": 1}
_I_WORD = re.compile(r"\bI[A-Za-z]+")


def doubt(first: Mapping[str, float], language: Language) -> float:
    """The probability, 0 to 1, of the openings of "I don't know" among what could have come ``first``."""
    return sum(p for text, p in first.items() if _opens(text.strip(), language))


def refuses(doubted: float, relevance: float, threshold: float) -> bool:
    """Whether an answer that was begun with this ``doubt`` is none.

    ``relevance`` is the probability, 0 to 1, that search gave its best passage. ``threshold`` is the doubt that is too much
    where that is as likely as not; 1 is never reached. What is likelier said than not is too much over any passage.
    """
    if doubted <= 0 or threshold >= 1:
        return False
    return _odds(doubted) >= min(_odds(threshold) * _odds(relevance), 1.0)


def _odds(probability: float) -> float:
    return probability / (1.0 - probability) if probability < 1.0 else math.inf


def _opens(text: str, language: Language) -> bool:
    return len(text) >= _SHORTEST[language] and any(refusal.startswith(text) for refusal in _REFUSALS[language])


def names_with_i(texts: Iterable[str]) -> list[str]:
    """The words that an answer may begin with and whose first token may be "I", which is then no doubt: Iqbal."""
    return sorted({word for text in texts for word in _I_WORD.findall(text)})
