"""What of an answer's sentence is a claim, that a document can bear out. Pure text."""

import re

from services.rag.answer_text import Sentence
from services.rag.denials import words
from services.rag.prompts import is_refusal
from services.rag.quantities import quantities

# What opens a sentence and says nothing: the claim comes after it.
_LEAD = re.compile(
    r"^\W*(?:(?:根据|依据|按照|从)[^，,。]{0,20}(?:资料|文档|文件|内容|信息|上文)[^，,。]{0,8}[，,：:]\s*|(?:因此|所以|总之|综上所述|综上|此外|另外|首先|其次|最后|答案是?|答)[，,：:]\s*"
    r"|(?:according to|based on|as (?:stated|described|mentioned) in)(?: the| this| your)?(?: provided| given)?"
    r" (?:passages?|documents?|text|context|information|materials?)(?: provided| above| below)?[,:]\s*"
    r"|(?:therefore|thus|so|in summary|in short|in conclusion|to summarize|additionally|also|however|first(?:ly)?|second(?:ly)?|"
    r"finally|answer)[,:]\s*)+",
    re.IGNORECASE,
)
_NOTHING = re.compile(r"[?？]\W*$|[:：]\W*$|^\*\*[^*]+\*\*[:：]?$")
_POLITE = re.compile(
    r"^\W*(?:你好|您好|好的|当然|没问题|不客气|谢谢|感谢|抱歉|对不起|很抱歉|希望[^。]{0,20}(?:帮助|帮到|有用)"
    r"|如[果有][^。]{0,30}(?:问题|需要|疑问)|请(?:告诉|提供|随时|问)|以下是|以上是|作为(?:一个)?(?:AI|人工智能|文档问答)"
    r"|hello|hi\b|hey\b|sure\b|of course|certainly|you(?:'re| are) welcome|thank|sorry|i hope|let me know"
    r"|please (?:let|feel|provide|tell)|if you (?:have|need|want)|feel free|here (?:is|are)\b[^.]*$|as an ai\b)",
    re.IGNORECASE,
)
# Words that point at the source or at the answer, and are not what is claimed.
_HOLLOW = re.compile(
    r"资料|文档|文件|内容|信息|根据|提到|指出|显示|表明|以下|如下|因此|所以|此外|另外|总之|综上所述|答案|回答|问题|是的|没错|不是"
    r"|\b(?:passages?|documents?|context|information|according|based|provided|mentioned|stated|answer|question|yes|no|therefore"
    r"|thus|also|however|following)\b",
    re.IGNORECASE,
)
_TURN = re.compile(
    r"[，,；;:：—-]\s*(?:但是?|不过|不過|然而|可是|只是|but|however|although|though|only)[\s，,]*", re.IGNORECASE
)
_PAGE_WORDS = frozenset("第 页 page pages p pdf docx xlsx pptx html md txt csv".split())


def claims(sentence: Sentence, names: frozenset[str] = frozenset()) -> bool:
    """Whether a sentence states something that a document could bear out.

    Headings, the first row of a table, questions, greetings, "I don't know", what introduces a list, and a line that only
    names one of the documents (``names``: their terms) do not.
    """
    text = without_lead(sentence.text).strip()
    if sentence.kind in ("head", "code") and not (sentence.kind == "code" and quantities(text)):
        return False
    if not text or _NOTHING.search(text) or is_refusal(text) or _POLITE.match(text):
        return False
    terms = claimed_words(text)
    named = bool(terms & names) and terms <= names | _PAGE_WORDS | {t for t in terms if t.isdigit()}
    return bool(terms) and not named


def without_lead(text: str) -> str:
    """Without what opens a sentence and claims nothing: "According to the documents,"."""
    return _LEAD.sub("", text)


def after_refusal(text: str) -> str:
    """Of "I don't know …, but …" what comes after it; any other text whole."""
    turn = _TURN.search(text) if is_refusal(text) else None
    return text[turn.end() :] if turn else text


def claimed_words(text: str) -> frozenset[str]:
    """The words of ``text`` but for those that point at a source or at the answer."""
    return words(_HOLLOW.sub(" ", text))
