"""The rewrite of a question that leans on its conversation: what the model is asked, what of its reply is taken, and what
stands in for a reply that cannot be taken. Pure text."""

import re
import unicodedata
from collections.abc import Sequence

from services.rag.documents.reflow import CJK
from services.rag.leaning import leans, open_question, weight
from services.rag.prompts import HISTORY_CHARACTERS, HISTORY_TURNS, Language, Message, Turn, language_of

_CONDENSE: dict[Language, str] = {
    "zh": (
        "把对话中用户的最后一句话改写成不看上文也能懂的完整问题：把“它”“那里”“这个”等换成上文里的名称，补上省略的部分；用户纠正时，换成他要问的。"
        "只输出改写后的一个问题，不要回答，不要重复上一个问题。"
    ),
    "en": (
        "Rewrite the user's last message as one complete question that can be understood without the conversation: replace "
        "pronouns with the names they stand for, add what was left out, and where the user corrects himself ask what he meant. "
        "Output only the rewritten question. Do not answer it, do not repeat an earlier question."
    ),
}
# As turns of their own: a small model goes on with what it has done three times sooner than it follows a description.
_EXAMPLES: dict[Language, list[tuple[str, str, str, str]]] = {
    "zh": [
        ("NameNode 的心跳间隔是多少？", "心跳间隔是 3 秒。", "那超时呢？", "NameNode 的心跳超时是多少？"),
        ("婚假有几天？", "婚假有 10 天。", "不是，我问的是产假。", "产假有几天？"),
        ("年假有几天？", "年假有 10 天。", "它可以累积到下一年吗？", "年假可以累积到下一年吗？"),
        ("报销要在几天内提交？", "报销要在 30 天内提交。", "由谁审批？", "报销由谁审批？"),
    ],
    "en": [
        (
            "What is the heartbeat interval of the NameNode?",
            "The interval is 3 seconds.",
            "And the timeout?",
            "What is the heartbeat timeout of the NameNode?",
        ),
        (
            "How many days of marriage leave are there?",
            "There are 10 days.",
            "No, I meant maternity leave.",
            "How many days of maternity leave are there?",
        ),
        (
            "How many days of annual leave are there?",
            "There are 10 days.",
            "Can they be carried over?",
            "Can days of annual leave be carried over?",
        ),
        (
            "When must an expense claim be handed in?",
            "Within 30 days.",
            "Who approves it then?",
            "Who approves an expense claim?",
        ),
    ],
}

_LABELS: dict[Language, tuple[str, str, str]] = {
    "zh": ("用户：", "助手：", "改写："),
    "en": ("User: ", "Assistant: ", "Rewritten: "),
}


def condense_messages(question: str, history: Sequence[Turn]) -> list[Message]:
    """The messages that ask for the standalone form of ``question``; all but the last are the same for every question."""
    language = language_of(question)
    messages: list[Message] = [("system", _CONDENSE[language])]
    for human, ai, asked, rewritten in _EXAMPLES[language]:
        messages += [("human", _conversation([(human, ai)], asked, language)), ("ai", rewritten)]
    return [*messages, ("human", _conversation(history[-HISTORY_TURNS:], question, language))]


def _conversation(history: Sequence[Turn], question: str, language: Language) -> str:
    user, assistant, rewritten = _LABELS[language]
    lines = [
        line
        for human, ai in history
        for line in (user + human[:HISTORY_CHARACTERS], assistant + ai[:HISTORY_CHARACTERS])
    ]
    return "\n".join([*lines, user + question, rewritten.strip()])


# -- what of the reply is taken -----------------------------------------------------------------------------------------

MAX_REWRITE_CHARACTERS = 200
# Of a question's own words a rewrite may lose or inflect some (a verb, an ending), never a name or a number.
_KEPT = 0.6
# Words that nobody said are allowed as far as a name needs its kind ("the H2-P" → "the model H2-P").
_ADDED = 0.3
_ASKS = re.compile(r"[?？]$|[吗呢么嗎麼]$")


def accepted(reply: str, question: str, history: Sequence[Turn]) -> str | None:
    """The standalone question in the model's ``reply``, or None when it cannot be trusted.

    A small model answers, repeats an earlier question, keeps the pronoun or adds what nobody said. Taken is only one
    question that stands alone, keeps what this question asks about and adds nothing that the conversation has not.
    """
    lines = [line.strip() for line in reply.strip().splitlines() if line.strip()]
    line = lines[0] if lines else ""
    line = re.sub(r"^(?:改写(?:后的问题)?|rewritten(?: question)?|用户|user)\s*[:：]\s*", "", line, flags=re.IGNORECASE)
    line = line.strip(" *`")
    if re.fullmatch(r"“[^“”]*”|\"[^\"]*\"|'[^']*'|「[^「」]*」", line):
        line = line[1:-1].strip()
    if not line or len(line) > max(MAX_REWRITE_CHARACTERS, 3 * len(question)):
        return None
    if not _ASKS.search(line) and _ASKS.search(question.strip()):
        return None
    if len(re.findall(r"[?？]+", line)) > max(1, len(re.findall(r"[?？]+", question))):
        return None
    if leans(line, history) or any(_same(line, human) for human, _ in history):
        return None
    body = open_question(question).body
    own, said = (
        _words(body),
        _words(" ".join([question, *(text for turn in history[-HISTORY_TURNS:] for text in turn)])),
    )
    asked = _words(" ".join([question, *(human for human, _ in history[-HISTORY_TURNS:])]))
    now = _words(line)
    exact = {w for w in own if _is_exact(w)}
    if not exact <= now:
        return None
    if own and sum(_known(w, now) for w in own) < _KEPT * len(own):
        return None
    added = {w for w in now if not _known(w, said)}
    if any(_is_exact(w) for w in added) or len(added) > _ADDED * len(now):
        return None
    # A number that only an answer named is the start of an answer.
    if any(w.isdigit() and w not in asked for w in now):
        return None
    return line


def _same(a: str, b: str) -> bool:
    return re.sub(r"\W", "", _folded(a)) == re.sub(r"\W", "", _folded(b))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _words(text: str) -> set[str]:
    """Words of Latin script, numbers, and single CJK characters that say something."""
    words = {w.strip(".'-") for w in re.findall(r"[a-z0-9][a-z0-9.'_+#-]*", _folded(text))}
    characters = set(re.findall(f"[{CJK}]", _folded(text)))
    return {w for w in words if weight(w)} | {c for c in characters if c not in _LIGHT}


_LIGHT = frozenset(
    "的了和是在吗呢吧啊嘛么就都而及与或个中为以于上下也有这那其它他她们被把对从到由给要会能可什怎样多少久哪谁几请问一不没需应该时间候"
)


def _is_exact(word: str) -> bool:
    return bool(re.search(r"\d", word)) or (word.isascii() and bool(re.search(r"[._+#-]", word)))


def _known(word: str, words: set[str]) -> bool:
    """Whether ``words`` has ``word``, an inflected form of it included."""
    if word in words or not word.isascii() or _is_exact(word):
        return word in words
    stem = word[: max(4, len(word) - 3)]
    return any(
        other.startswith(stem) or (len(other) >= 4 and word.startswith(other[: max(4, len(other) - 3)]))
        for other in words
    )


# -- without the model --------------------------------------------------------------------------------------------------

# What names one of a kind: letters with digits or with a joint in them ("P2", "H2-S", "lease.hard").
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_.-])(?=[A-Za-z]+[-_.]?[A-Za-z0-9])(?=[A-Za-z]*[-_.0-9])[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*"
    r"(?![A-Za-z0-9_-])"
)
# How far back a chain of leaning questions is followed to the one that stands alone.
_FOLLOWED = 8


def recast(question: str, history: Sequence[Turn]) -> str:
    """``question`` made to stand alone without the model: by putting its name into the last question where the two are of
    one kind ("P2 呢？" after a question about P1), else by joining the two.

    The last question may lean itself, so the chain is followed back to one that stands alone.
    """
    base = ""
    for human, _ in history[-_FOLLOWED:]:
        if human:
            base = _merged(base, human) if base and leans(human, [(base, "")]) else open_question(human).body or base
    return _merged(base, question) if base and leans(question, history) else question


def swapped(question: str, history: Sequence[Turn]) -> str | None:
    """The question that needs no model to be rewritten: the last one, about another name of the same kind."""
    if not history:
        return None
    base = recast(history[-1][0], history[:-1])
    return _swapped(base, open_question(question).body)


def _merged(base: str, question: str) -> str:
    body = open_question(question).body or question
    if swapped := _swapped(base, body):
        return swapped
    # No question mark in the middle: it is one question.
    base = base[-HISTORY_CHARACTERS:].rstrip(" ?？。.!！")
    return f"{base}，{body}" if language_of(base + body) == "zh" else f"{base}, {body}"


def _swapped(base: str, body: str) -> str | None:
    """``base`` about the one name that ``body`` is about; None when there is not exactly one of a kind in both."""
    names = set(_TOKEN.findall(body))
    if len(names) != 1:
        return None
    name = names.pop()
    if weight(body.replace(name, " ")):
        return None
    like = [m for m in _TOKEN.finditer(base) if _shape(m.group()) == _shape(name)]
    if len({m.group() for m in like}) != 1 or like[0].group() == name:
        return None
    return base.replace(like[0].group(), name)


def _shape(name: str) -> str:
    return re.sub(r"[a-z]+", "a", re.sub(r"[A-Z]+", "A", re.sub(r"\d+", "0", name)))
