"""A message that asks nothing of the documents (a greeting, thanks, a farewell), and the reply to it. Pure text."""

import re
import unicodedata
from typing import Literal

_HELLO: dict[str, str] = {
    "zh": "你好！我根据已上传的文档回答问题，并注明出处。你想了解什么？",
    "en": "Hello! I answer questions about your documents and name the page. What would you like to know?",
}
_THANKS: dict[str, str] = {"zh": "不客气！还有别的问题可以继续问。", "en": "You're welcome! Ask on whenever you like."}
_BYE: dict[str, str] = {"zh": "再见！", "en": "Goodbye!"}
_FINE: dict[str, str] = {"zh": "好的。还有别的问题可以继续问。", "en": "All right. Ask on whenever you like."}

# Whole messages only: "thanks" is small talk, "thanks, and what is the limit?" is a question.
_KINDS: list[tuple[str, dict[str, str]]] = [
    (
        r"(?:你|您)们?好[呀啊吗嘛]?|大家好|哈[喽啰囉罗]|嗨+|(?:早上|上午|中午|下午|晚上)好|早安?|晚安|在[吗嗎么]|有人[吗嗎]"
        r"|h(?:i+|ello|ey)(?: there| everyone| all)?|good (?:morning|afternoon|evening|day)|greetings|yo|howdy"
        r"|(?:你|您)是[谁誰](?:[呀啊])?|(?:你|您)(?:能|会|會|可以)(?:做|干|幹)(?:什么|什麼|啥)|who are you|what can you do(?: for me)?"
        r"|(?:你|您)叫(?:什么|什麼)(?:名字)?|what(?:s| is) your name|how are you(?: doing)?(?: today)?|help|帮助|幫助",
        _HELLO,
    ),
    (
        r"(?:非常|十分|多)?(?:谢谢|謝謝|感谢|感謝|多谢|多謝)(?:你|您|了|啦|你们)?(?:的(?:帮助|幫助|回答))?|辛苦了?|thx|ty|cheers"
        r"|(?:ok(?:ay)? )?(?:many )?thank(?:s| you)(?: (?:so|very) much| a lot)?(?: for (?:your|the) (?:help|answer))?",
        _THANKS,
    ),
    (r"再[见見](?:了|啦)?|拜+|拜拜|(?:good)?bye(?: ?bye)?|see you(?: later)?|good night", _BYE),
    (
        r"好的?[呀啊吧]?|行|嗯+|哦+|喔+|知道了|明白了?|了解了?|ok(?:ay)?|k|great|nice|cool|got it|i see|test|测试|測試",
        _FINE,
    ),
]
_PATTERNS = [(re.compile(pattern), replies) for pattern, replies in _KINDS]


def small_talk(message: str, language: Literal["zh", "en"]) -> str | None:
    """The reply to a message that is nothing but small talk, in ``language``; None for a question."""
    if len(message) > 60:
        return None
    words = unicodedata.normalize("NFKC", message).casefold().replace("'", "").replace("’", "")
    # What is said twice ("你好，谢谢") is judged piece by piece; every piece must be small talk. Emoji and marks say nothing.
    pieces = [" ".join(p.split()) for p in re.split(r"[^\w\s]+", words) if p.strip()]
    found = [next((r for pattern, r in _PATTERNS if pattern.fullmatch(piece)), None) for piece in pieces]
    if not found or None in found:
        return None
    return (found[-1] or _HELLO)[language]
