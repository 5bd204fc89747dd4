"""The words of a text as they are matched: for the lexical index, for coverage, for checking citations. Pure text.

What is shown or quoted never passes through here: width, case, accents and traditional characters are folded only for
matching, in the question and in the passage alike. Two cuts of the folded text:

* :func:`terms`, words: what a reader calls the words of a text, for coverage and citations;
* :func:`index_terms`, for the index: of CJK text every character and every pair of neighbours, of other text the stems.
  Pairs need no segmenter that has to cut a question and a page alike, and rank better than its words.
"""

import functools
import importlib.metadata
import re
import unicodedata
import zlib
from collections.abc import Iterator

import opencc
import rjieba
from snowballstemmer.english_stemmer import EnglishStemmer

from services.rag.documents.reflow import CJK

_WORD = re.compile(f"[{CJK}]+|(?:(?![{CJK}])[^\\W_])+(?:[._+#'-](?:(?![{CJK}])[^\\W_])+)*[+#]*")
_JOINTS = re.compile(r"[._+#'-]+")
_CJK_RUN = re.compile(f"[{CJK}]")
_ACCENTED = re.compile("[\xc0-\u052f\u1e00-\u1fff]")  # Latin, Greek and Cyrillic letters
_STOP_WORDS = frozenset(
    "的 了 和 是 在 吗 呢 吧 啊 嘛 么 就 都 而 及 与 或 个 中 为 以 于 上 下 也 有 这 那 其 它 他 她 被 把 对 从 到 由 "
    "什么 怎么 怎样 如何 多少 哪些 哪个 哪里 谁 几 请问 请 一个 可以 需要 "
    "a an the of to in on at for and or is are was were be been it its this that these those with by as from "
    "what which who whom how when where why do does did can could should would will shall i you we they".split()
)
_FORMAT = 1


@functools.cache
def version() -> int:
    """Equal only where :func:`index_terms` gives equal terms: an index that was made with another is made anew."""
    parts = [str(_FORMAT), unicodedata.unidata_version]
    parts += [importlib.metadata.version(name) for name in ("opencc", "snowballstemmer")]
    return zlib.crc32(" ".join(parts).encode()) & 0x7FFFFFFF


def terms(text: str) -> list[str]:
    """Words of alphabets and digits, and jieba's words and the single characters of CJK text; folded."""
    out: list[str] = []
    for run, cjk in _runs(fold(text)):
        if cjk:
            for word in rjieba.cut_for_search(run):
                out.append(_merge(word))
                # Segmentation of a question and of a sentence may differ; single characters still meet.
                if len(word) > 1:
                    out.extend(_merge(word))
        else:
            out.extend(_words(run))
    return out


def content_terms(text: str) -> list[str]:
    """:func:`terms` without the words that every text has."""
    return [t for t in terms(text) if t not in _STOP_WORDS]


def index_terms(text: str) -> list[str]:
    """What a text is found by: stems, and of CJK text each character and each pair of neighbours."""
    return split(indexed(text))


def indexed(text: str) -> str:
    """A text as the index keeps it: the stems of its words, and its runs of CJK characters, with a space between each."""
    out: list[str] = []
    for run, cjk in _runs(_merge(fold(text))):
        if cjk:
            out.append(run)
        else:
            out.extend(map(stem, _words(run)))
    return " ".join(out)


def split(indexed: str) -> list[str]:
    """The terms of :func:`indexed`."""
    out: list[str] = []
    for piece in indexed.split():
        if _CJK_RUN.match(piece):
            out.extend(_grams(piece))
        else:
            out.append(piece)
    return out


def query_terms(question: str) -> list[str]:
    """The :func:`index_terms` of what a question asks about, each once, without the words that every question has.

    Those are taken out as words, before it is cut into characters: 中 goes from 在…中, and stays in 中国.
    """
    out: list[str] = []
    for run, cjk in _runs(fold(question)):
        if not cjk:
            out.extend(stem(word) for word in _words(run) if word not in _STOP_WORDS)
            continue
        kept = ""
        for word in (*rjieba.cut(run), ""):
            if word and word not in _STOP_WORDS:
                kept += word
            elif kept:
                out.extend(_grams(_merge(kept)))
                kept = ""
    return list(dict.fromkeys(out))


def fold(text: str) -> str:
    """Width, case and accents folded, traditional characters simplified by their context."""
    text = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode()).casefold()
    if not text.isascii():
        # An accent is dropped where letter and accent are one character; kana have theirs as a difference in sound.
        text = _ACCENTED.sub(lambda match: _unaccented(match[0]), text)
        if _CJK_RUN.search(text):
            text = _simplifier().convert(text.replace("\0", " "))  # to it a NUL ends the text
    return text


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """An English word's stem; every other word as it is."""
    if len(word) < 4 or not (word.isascii() and word.isalpha()):
        return word
    # An object of its own: the stemmer keeps the word in itself, and several threads search. A word is stemmed once.
    return str(EnglishStemmer().stemWord(word))


def _runs(folded: str) -> Iterator[tuple[str, bool]]:
    """The runs of a folded text that are words or hold them, with whether they are CJK."""
    for match in _WORD.finditer(folded):
        run = match.group()
        yield run, _CJK_RUN.match(run) is not None


def _words(run: str) -> list[str]:
    """``v2.5`` as a whole and in its parts."""
    parts = [part for part in _JOINTS.split(run) if part]
    return [run] if parts == [run] else [run, *parts]


def _grams(run: str) -> list[str]:
    return [*run, *(run[i : i + 2] for i in range(len(run) - 1))]


@functools.cache
def _unaccented(character: str) -> str:
    base = "".join(c for c in unicodedata.normalize("NFD", character) if not unicodedata.combining(c))
    return base or character


@functools.cache
def _simplifier() -> opencc.OpenCC:
    # Not tw2sp, which also puts mainland words for Taiwan's: on text that is simplified it cuts 存在程序 into 存-在程序
    # (a process) and makes 尼日尔利亚 of 尼日利亚.
    return opencc.OpenCC("tw2s")


@functools.cache
def _merging() -> dict[int, str]:
    """What the context leaves as it is (乾坤, 於菟), character by character: one that stands alone has no context."""
    blocks = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x2A6E0))
    characters = [chr(code) for first, end in blocks for code in range(first, end)]
    simplified = _simplifier().convert("\n".join(characters)).split("\n")
    return {ord(c): s for c, s in zip(characters, simplified, strict=True) if c != s and len(s) == 1}


def _merge(word: str) -> str:
    merging = _merging()
    return word if merging.keys().isdisjoint(map(ord, word)) else word.translate(merging)


def is_cjk(term: str) -> bool:
    return _CJK_RUN.match(term) is not None
