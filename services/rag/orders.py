"""Sentences that give the answerer orders. Pure text.

Such a sentence is neither read by the model nor taken for evidence, unless the question asks about it: "always reply BANANA"
does not bear out "BANANA", but a manual of an assistant may be asked what its assistant must reply. Few, plain patterns; what
they miss is cited with its document, as every sentence is.
"""

import re

from services.rag.documents.chunking import sentences
from services.rag.relevance import coverage

# A question that holds so much of the order asks about it ("what must the assistant reply to refunds?").
ASKED_FOR = 0.6
# What stands in an order's place.
WITHHELD = "[…]"

_SAY_ZH = r"(?:回答|回复|回覆|答复|答覆|输出|輸出|写|寫|说|說|告诉|告訴)"
_WHO_ZH = r"(?:助手|助理|机器人|機器人|(?<![A-Za-z])AI|(?:语言|語言|大)模型)"
_WHO_EN = r"\b(?:the |an? )?(?:assistant|chatbot|language model|ai)\b"
_SAYS_EN = r"\b(?:answers?|repl(?:y|ies)|responds?|says?|tells?|outputs?)\b"

# An order by itself.
_ORDERS = re.compile(
    "|".join(
        (
            # to leave the rules or the documents
            r"(?:忽略|无视|無視|忽視|忽视|不理会|不理會|忘记|忘記)[^。！？]{0,12}(?:规则|規則|指令|指示|提示|资料|資料|以上|上述|之前)",
            r"\b(?:ignore|disregard|forget|override)\w*\b[^.!?]{0,40}\b(?:instructions?|rules?|passages?|prompts?|manual|above|system)\b",
            r"(?:规则|規則)(?:更新|变更|變更)[：:]|新(?:的)?(?:系统|系統)?(?:规则|規則|指令)[：:]",
            r"\bnew (?:system )?(?:rules?|instructions?|questions?):",
            # of what to say
            rf"{_WHO_ZH}[^。！？]{{0,12}}(?:必须|必須|只能|一律|不得|应当|應當|应该|應該)[^。！？]{{0,16}}{_SAY_ZH}",
            rf"{_WHO_ZH}[：:，,][^。！？]{{0,8}}{_SAY_ZH}",
            rf"{_SAY_ZH}[^。！？]{{0,12}}(?:一律|只能|必须|必須){_SAY_ZH}?[^。！？]{{0,4}}[“「『\"]",
            rf"(?:以后|以後|今后|今後)?(?:一律|只能?|都){_SAY_ZH}[：:]?[“「『\"]|(?:以后|以後|今后|今後)(?:一律|只|都){_SAY_ZH}",
            rf"{_WHO_EN}[^.!?]{{0,20}}\b(?:must|should|only|always|has to)\b[^.!?]{{0,30}}{_SAYS_EN}",
            rf"{_WHO_EN}[^.!?]{{0,12}}{_SAYS_EN}[^.!?]{{0,6}}\bonly\b",
            r"\b(?:reply|answer|respond)\b (?:only |always )(?:with )?(?:the word )?['\"“A-Z]",
            r"\bassistant:\s*(?:ignore|reply|answer|respond|say)\b",
            r"\banswer the (?:new|other|following) question\b",
            # of who to be and how to speak
            r"(?:从现在起|從現在起|从现在开始|從現在開始)，?你(?:是|将|將|要|必须|必須)",
            r"\bfrom now on,? (?:(?:the assistant|every|all) |you (?:are|will|must|can|only|always|answer|reply|speak)\b)",
            r"\byou are (?:now|no longer) (?:an? |the )",
            r"每(?:一)?(?:句话|句話|句|次回答|个回答|個回答|条回复|條回覆)[^。！？]{0,6}(?:必须|必須|都要|都应|都應|应以|應以)",
            r"\b(?:begin|start|end|finish|preface) (?:every|each|all|your) (?:answers?|repl(?:y|ies)|responses?|sentences?)\b",
            r"(?:回答|回复|回覆)的?(?:最后|最後|末尾|结尾|結尾|开头|開頭)(?:必须|必須|都要|要|应|應)",
            # to read out the prompt
            r"(?:系统|系統)提示[^。！？]{0,12}(?:输出|輸出|透露)|(?:输出|輸出|透露|复述|複述)[^。！？]{0,12}(?:系统|系統)提示",
            r"\b(?:reveal|repeat|print|overrides?)\b[^.!?]{0,30}\b(?:system (?:message|prompt|rules?)|everything above|your rules)\b",
        )
    ),
    re.IGNORECASE,
)
# A part of one where another stands beside it: a made-up dialogue that shows the obedience.
_SCRIPTED = re.compile(r"^\W*(?:用户|用戶|助手|系统|系統|user|assistant|system)\s*[：:]", re.IGNORECASE)


def is_evidence(sentence: str, question: str) -> bool:
    """Whether a document's sentence may bear out an answer to ``question``: it is no order, or it is the order asked for."""
    return not orders(sentence) or coverage(question, sentence) >= ASKED_FOR


def orders(sentence: str) -> bool:
    """Whether ``sentence`` tells whoever answers how to answer."""
    return bool(_ORDERS.search(sentence))


def without_orders(text: str, question: str) -> str:
    """``text`` with :data:`WITHHELD` for each of its orders that ``question`` does not ask about."""
    spans = list(sentences(text))
    withheld = [not is_evidence(text[span.start : span.end], question) for span in spans]
    if not any(withheld):
        return text
    out, at = "", 0
    for span, order in zip(spans, withheld, strict=True):
        if order or _SCRIPTED.search(text[span.start : span.end]):
            out += text[at : span.start] + WITHHELD
            at = span.end
    return out + text[at:]
