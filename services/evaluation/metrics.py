"""What is measured of a ranking and of an answer, as pure functions of text and numbers.

Answers are compared after folding width (NFKC), case, and traditional to simplified characters: a right answer in the
other script is right.
"""

import functools
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

Language = Literal["zh", "en"]

_CJK = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af\U00020000-\U0003ffff"
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
# A CJK character, a number with its point, or a word: "90秒" and "90 秒" are the same two tokens, "308" does not hold "30".
_TOKEN = re.compile(rf"[{_CJK}]|\d+(?:\.\d+)*|[^\W\d_{_CJK}]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_LATIN_TOKEN = re.compile(r"\w+|[^\w\s]")


# -- rankings


def first_rank(found: Sequence[tuple[str, int]], gold: Callable[[tuple[str, int]], bool]) -> int | None:
    """The rank, from 1, of the first gold page among (document, page), each page counted once; None: it is not there."""
    return next((rank for rank, page in enumerate(dict.fromkeys(found), 1) if gold(page)), None)


def recall(rank: int | None, k: int) -> float:
    """Whether a gold page is among the first ``k``."""
    return float(rank is not None and rank <= k)


def reciprocal_rank(rank: int | None, k: int = 10) -> float:
    return 1 / rank if rank is not None and rank <= k else 0.0


def ndcg(rank: int | None, k: int = 10) -> float:
    """Normalised discounted cumulative gain where one page is enough, so that the ideal gain is 1."""
    return 1 / math.log2(1 + rank) if rank is not None and rank <= k else 0.0


# -- answers


@functools.cache
def _simplify() -> Callable[[str], str] | None:
    try:
        from opencc import OpenCC
    except ImportError:  # the command line alone is installed
        return None
    convert: Callable[[str], str] = OpenCC("t2s").convert
    return convert


def folds_traditional() -> bool:
    """Whether traditional characters can be folded: OpenCC is installed with the RAG service, not with the command alone."""
    return _simplify() is not None


@functools.lru_cache(maxsize=4096)
def fold(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode()).casefold()
    simplify = _simplify()
    return simplify(text) if simplify and _CJK_CHARACTER.search(text) else text


def language_of(text: str) -> Language:
    """Chinese when there is any CJK character, else English."""
    return "zh" if _CJK_CHARACTER.search(text) else "en"


def contains(answer: str, golds: Iterable[str]) -> bool:
    """Whether one of the gold answers stands in ``answer``, whole tokens long."""
    held = _spaced(answer)
    for gold in golds:
        if wanted := _spaced(gold).strip():
            if f" {wanted} " in held:
                return True
        elif gold.strip() and fold(gold.strip()) in fold(answer):  # a sign such as "%"
            return True
    return False


def _spaced(text: str) -> str:
    return f" {' '.join(_TOKEN.findall(_THOUSANDS.sub('', fold(text))))} "


def f1(answer: str, golds: Iterable[str], language: Language) -> float:
    """The best F1 over the gold answers: by characters for Chinese, by words for English; 0.0 without a gold answer."""
    one = _chinese_f1 if language == "zh" else _english_f1
    return max((one(fold(answer), fold(gold)) for gold in golds), default=0.0)


def _chinese_f1(answer: str, gold: str) -> float:
    """As CMRC 2018's own evaluation has it: over the longest common run of characters (words, for Latin script).

    Source: cmrc2018_evaluate.py of ymcui/cmrc2018; words of Latin script are cut by a pattern instead of NLTK.
    """
    a, g = _mixed(answer), _mixed(gold)
    common = _longest_run(a, g)
    return 2 * common / (len(a) + len(g)) if common else 0.0


def _mixed(text: str) -> list[str]:
    """CJK characters and Latin words; punctuation of either script is left out."""
    out: list[str] = []
    latin = ""
    for c in text:
        if _CJK_CHARACTER.match(c):
            out += _LATIN_TOKEN.findall(latin)
            latin = ""
            out.append(c)
        elif not unicodedata.category(c).startswith("P"):
            latin += c
    return out + _LATIN_TOKEN.findall(latin)


def _longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    best = 0
    row = [0] * (len(b) + 1)
    for x in a:
        above = 0
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], above + 1 if x == y else 0
            best = max(best, row[j])
    return best


def _english_f1(answer: str, gold: str) -> float:
    """As SQuAD's own evaluation has it: over the bag of words without punctuation and articles."""
    a, g = _words(answer), _words(gold)
    if not a or not g:
        return float(a == g)
    common = sum((Counter(a) & Counter(g)).values())
    return 2 * common / (len(a) + len(g)) if common else 0.0


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", "".join(c for c in text if c not in _PUNCTUATION)).split()


def without_markers(answer: str, indexes: Iterable[int]) -> str:
    """The answer as it was written: the citations' ``[n]`` taken out."""
    numbers = "|".join(str(i) for i in set(indexes))
    return re.sub(rf"\s*\[(?:{numbers})\]", "", answer) if numbers else answer


# -- times


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest; ``share`` is 0 to 1.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
