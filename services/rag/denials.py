"""What a sentence denies, and what an answer of a bare yes or no says. Pure text.

A source that says "not" bears out no claim without it, nor the other way round, if the "not" is said of the claim's words.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from services.rag.parts import parts
from services.rag.quantities import quantities
from services.rag.terms import content_terms, stem

# They tell how a thing is said, not what: a claim shares them with every denial.
NOT_WORDS = frozenset("no not never none cannot n't 不 没 没有 无 未 非 勿".split())
# Of what is denied, more than this in a claim is the same said the other way round.
_MOST_DENIED = 0.66
# A bare reply repeats one word of the question at most: so many CJK characters.
_BARE = 3

CLAUSES = re.compile(r"[，；]|[,;]\s|\s(?:and|while|but|whereas)\s|而且|并且|同时|以及|而(?![且言])", re.IGNORECASE)
_SENTENCES = re.compile(r"(?<=[。！？!?])|(?<=\.)\s+|\n+")

# Said of either side, broadly: a claim with "not" wants a source with some "not".
_NEGATED = re.compile(
    r"[不没沒無无未非勿莫]|禁止|严禁|嚴禁|避免|除外|缺[少乏失]|\b(?:missing|no|not|never|none|neither|nor|without|cannot|unable|fail(?:s|ed)?|lacks?|except|only|refus\w+|"
    r"den(?:y|ies|ied)|prohibit\w*|forbid\w*|un\w{4,}|non-?\w{3,}|in(?:valid|active|complete)\w*)\b|n[’']t\b",
    re.IGNORECASE,
)
# 不 as a part of another word: 不断, 不锈钢.
_NO_NOT = (
    "同|过|過|断|斷|仅|僅|只|但|单|單|光|久|少|论|論|管|等|锈|鏽|时|時|止|料|禁|惜|愧|妨|免|幸|朽|错|錯|已|由|了|动产|動產|得不|得已|可分|可或缺"
    "|可思议|可思議|约而同|約而同"
)
# And where nothing is denied: 不足三人, 不良.
_NO_DENIAL = f"{_NO_NOT}|良|法|安|满|滿|足|到|利|便|明|及|如"
_PREFIXED = (
    r"\bnon-?(?P<non>[a-z]{3,})|\bun-?(?!less|like|til|der|ion|iq|ivers)(?P<un>[a-z]{4,})"
    r"|\bin(?P<in>(?:valid|active|complete|eligible|correct|sufficient)\w*)"
)
_NON = r"(?<![除南北西东東中莫岂豈并並绝絕])非(?!常|洲|但|凡|得|要|遗|遺|典|议|議)"
_NO = r"\bno\b(?! more| less| later| earlier| fewer| doubt| matter|\.?\s?\d)"
_SAYS_NOT = re.compile(
    rf"不(?!{_NO_NOT})|没有|沒有|並非|并非|无法|無法|无需|無需|无须|無須|未曾|尚未|禁止|{_NON}"
    rf"|\b(?:not|never|cannot|no longer)\b|{_NO}|\bnon-?[a-z]{{3,}}|n[’']t\b",
    re.IGNORECASE,
)
# Strictly: "not", as opposed to "not only", "not exceed" and their like, which set bounds.
_DENIES = re.compile(
    r"不(?:得(?!不)|能(?!超|高|低|多|少|大|小|晚)|可以?(?!以|分|或缺|少|超|高于|低于)|许|許|允许|允許|应(?!超|高|低|少|大|小)|應|要|会|會|予|准|宜|再|必|需|须|須|适用|適用|支持|包括|包含|含|属于|屬於|是(?!只|仅))"
    r"|禁止|严禁|嚴禁|没有|沒有|并非|並非|无法|無法|无需|無需|无须|無須|未曾|尚未|从未|從未|切勿|请勿|請勿"
    r"|\b(?:not(?! only| just| more| less| fewer| exceed| later| earlier| until| necessarily)|never|cannot|no longer)\b"
    r"|\bno (?!more|less|later|earlier|fewer|doubt|matter)|n[’']t\b",
    re.IGNORECASE,
)
# These deny the one word that follows, or that they are a part of: 不防水, 不超过, 非防水, non-refundable.
_DENIES_WORD = re.compile(
    rf"不(?!{_NO_DENIAL})|(?<![沉淹埋出覆吞湮])[没沒](?!收|落|错|錯|有)|未(?!来|來|经|經|必|免|婚|满|滿|达|達|名|央|知|遂|曾)|{_NON}|{_PREFIXED}"
    r"|\bnot?\s(?=(?:more|less|fewer|later|earlier)\b|exceed)",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"未经|未經|除非|未|若不|如不|否则|否則|\b(?:unless|without|until|except|if|only)\b", re.IGNORECASE
)
# 能不能 and 有没有 ask, and deny nothing.
_WHETHER = re.compile(r"(.)[不没沒]\1")


@dataclass(frozen=True)
class Denied:
    words: tuple[str, ...]
    alone: str = ""  # where only one word is denied: the characters that follow the "not"


def words(text: str) -> frozenset[str]:
    """The content words of ``text``, those of Latin script as stems."""
    return frozenset(_sequence(text))


def negated(text: str) -> bool:
    """Whether there is any "not" in ``text``."""
    return bool(_NEGATED.search(_WHETHER.sub(r"\1", text)))


def says_not(text: str) -> bool:
    """Whether ``text`` denies what it speaks of."""
    return bool(_SAYS_NOT.search(_WHETHER.sub(r"\1", _REPLIED.sub("", text))))


def denied(text: str) -> Iterator[Denied]:
    """The words after each "not" in its clause, without those that another clause affirms."""
    clauses = [(clause, _DENIES.search(clause)) for clause in CLAUSES.split(text)]
    affirmed = [clause if no is None else clause[: no.start()] for clause, no in clauses]
    elsewhere = words("\n".join(affirmed))
    for at, (clause, no) in enumerate(clauses):
        if no is None:
            yield from _denied_word(clause, "\n".join(affirmed[:at] + affirmed[at + 1 :]))
        # Two make a condition: "not without approval".
        elif len(_DENIES.findall(clause)) == 1 and not _CONDITION.search(clause[: no.start()]):
            after = (t for t in _sequence(clause[no.end() :]) if t not in elsewhere)
            if found := tuple(dict.fromkeys(after)):
                yield Denied(found)


def _denied_word(clause: str, others: str) -> Iterator[Denied]:
    found = list(_DENIES_WORD.finditer(clause))
    if len(found) != 1:
        return
    [no] = found
    rest = clause[no.end() :]
    word, affirmed = next(filter(None, no.groups()), ""), f"{others}\n{clause[: no.start()]}"
    after = _sequence(word or rest)
    if after and after[0] not in words(f"{affirmed}\n{rest}" if word else affirmed):
        yield Denied(tuple(after[:1]), word or rest[:2])


def denies(found: Iterable[Denied], text: str, said: frozenset[str], either: bool = False) -> bool:
    """Whether what is denied is what ``text``, with the words ``said``, affirms; or (``either``) a part of it."""
    for one in found:
        if one.alone:
            # A single character stands in many words: the next one must follow, too.
            if one.words[0] in said and (len(one.words[0]) > 1 or one.alone in text):
                return True
        elif one.words[0] in said:
            return True
        else:
            both = sum(term in said for term in one.words)
            if both > _MOST_DENIED * (min(len(one.words), len(said)) if either else len(one.words)):
                return True
    return False


def denied_elsewhere(texts: Iterable[str], weights: Mapping[str, float]) -> bool:
    """Whether the sentence of ``texts`` that has most of a claim's words has its "not", if any, in a clause that adds none.

    "Pets are allowed, smoking is not allowed" does not say that pets are not allowed.
    """
    shares = [(sum(weights.get(t, 0.0) for t in words(text)), text) for text in texts]
    most = max(share for share, _ in shares)
    for _, text in (s for s in shares if s[0] == most):
        clauses = [(words(c) & weights.keys(), negated(c)) for s in _SENTENCES.split(text) for c in CLAUSES.split(s)]
        plain = [said for said, no in clauses if not no]
        if any(no and not any(said < other for other in plain) for said, no in clauses):
            return False
    return True


def _sequence(text: str) -> list[str]:
    return [stem(t) if t.isascii() and t.isalpha() else t for t in content_terms(text)]


# -- yes and no --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """A bare yes or no: the question's own words are what it claims."""

    statement: str
    negative: bool
    hollow: bool  # nothing but "yes" or "no"


_ASKS_ZH = re.compile(r"[吗嗎]\s*[?？]*\s*$|是否|能否|可否|(.)[不没沒]\1")
_ASKS_EN = re.compile(
    r"^\W*(?:is|are|was|were|am|do|does|did|can|could|may|might|must|should|shall|will|would|has|have|had)(?:n[’']t)?\b",
    re.IGNORECASE,
)
_ASKS_MORE = re.compile(r"什么|什麼|哪|谁|誰|[几幾]|多少|怎|如何|为何|為何|何时|何時|还是|還是|\bor\b", re.IGNORECASE)
_FRAME = re.compile(
    r"请问|請問|[吗嗎]|是否|能否|可否|可以|能够|能夠|应该|應該|需要|[能会會]|\b(?:can|could|may|might|must|should|shall|will|would|has|have|had|there|any|ever)\b",
    re.IGNORECASE,
)
# "No, …" answers; what follows says.
_REPLIED = re.compile(r"^\W*(?:yes|no|不|是的?|对的?|對的?)\s*[,，]\s*(?=\S)", re.IGNORECASE)
_HOLLOW = re.compile(
    r"(?:是的?|对的?|對的?|没错|沒錯|不是的?|不|否|yes|yeah|no|nope|correct|[,，]?\s*(?:it|they|he|she|you|that|there|this|one|we|i)\s+"
    r"(?:is|are|was|were|do|does|did|can|could|may|must|should|will|would|has|have|had)(?:\s+not|n[’']t|not)?|[\W_])+",
    re.IGNORECASE,
)
_REPLIES = re.compile(
    r"没错|沒錯|当然|當然|可以|能够|能夠|应该|應該|需要|允许|允許|必须|必須|[是的对對能可会會有行要得了不没沒否无無未]"
    r"|\b(?:yes|yeah|yep|no|nope|correct|true|indeed|of course|certainly|sure|it|they|he|she|you|that|there|this|one|we|i|is|are|was|were"
    r"|be|been|do|does|did|can|could|may|must|should|will|would|has|have|had|not|cannot)\b|n[’']t\b",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"[不否无無未]|[没沒](?!错|錯)|\b(?:no|nope|not|cannot|never|false)\b|n[’']t\b", re.IGNORECASE)


def reply(question: str, answer: str) -> Reply | None:
    """What ``answer`` says where it is a bare yes or no to ``question``: "Yes.", "不提供。"; None where it is not."""
    if len(answer) > 60 or not asks_whether(question) or quantities(answer):
        return None
    rest = "".join(c for c in _REPLIES.sub(" ", answer) if c.isalnum() or c == " ").strip()
    statement = _FRAME.sub(" ", _WHETHER.sub(r"\1", question)).strip(" \t\n?？。")
    wide = not rest.isascii()
    if not any(c.isalnum() for c in answer) or (len(rest) > _BARE if wide else len(rest.split()) > 1):
        return None
    if not words(rest) <= words(question) or not words(statement):
        return None
    return Reply(statement, bool(_NEGATIVE.search(answer)), bool(_HOLLOW.fullmatch(answer)))


def asks_whether(question: str) -> bool:
    asked = question.strip()
    if _ASKS_MORE.search(asked) or len(parts(asked)) > 1:
        return False
    return bool(_ASKS_ZH.search(asked) or _ASKS_EN.match(asked))
