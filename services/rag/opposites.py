"""Words that say the opposite of each other: sales that rose are not borne out by sales that fell. Pure text.

A short list of those that turn what a document states: direction, bounds, comparison, leave, outcome. Pairs that a true paraphrase
swaps (before and after, buy and sell) are not in it.
"""

import re

from services.rag.denials import CLAUSES, words

_PAIRS = [
    (re.compile(one, re.IGNORECASE), re.compile(other, re.IGNORECASE))
    for one, other in (
        (
            r"上升|上涨|上調|上调|增加|增长|增長|提高|提升|增多|增大|扩大|擴大|升高|走高|攀升|涨至|涨到"
            r"|\b(?:rose|risen|rise|rises|rising|increas(?:e|es|ed|ing)|grew|grown?|growing|growth|climb(?:s|ed|ing)?|went up|gained)\b",
            r"下降|下跌|下調|下调|减少|減少|降低|下滑|缩小|縮小|减小|回落|走低|降至|降到|跌至|跌到"
            r"|\b(?:fell|fallen|falls?|falling|decreas(?:e|es|ed|ing)|declin(?:e|es|ed|ing)|dropp?(?:s|ed|ing)?|shrank|shrunk"
            r"|reduc(?:e|es|ed|ing|tion)|went down)\b",
        ),
        (
            r"最多|至多|不超过|不超過|不多于|不多於|不得超过|不高于|不大于|上限|以内"
            r"|\b(?:at most|at the most|no more than|not more than|maximum|up to|upper limit)\b",
            r"最少|至少|不少于|不少於|不低于|不低於|不得少于|不小于|起码|下限"
            r"|\b(?:at least|no less than|not less than|no fewer than|minimum|lower limit)\b",
        ),
        (
            r"(?<![不未得])(?:高于|高於|大于|大於|多于|多於|超过|超過|超出)"
            r"|(?<!\bno )(?<!\bnot )\b(?:more than|greater than|above|exceed(?:s|ed|ing)?)\b",
            r"(?<![不未得])(?:低于|低於|小于|小於|少于|少於|不足|未满|未滿)|(?<!\bno )(?<!\bnot )\b(?:less than|fewer than|below)\b",
        ),
        (
            r"最高|最大|最长|最早|\b(?:highest|largest|biggest|greatest|longest|earliest)\b",
            r"最低|最小|最短|最晚|最迟|\b(?:lowest|smallest|shortest|latest)\b",
        ),
        (
            r"(?<![不未])(?:允许|允許|准许)|(?<!\bnot )\b(?:allowed|permitted)\b",
            r"禁止|严禁|不得|不允许|不准|\b(?:forbidden|prohibit(?:s|ed)?|banned|must not|not allowed|not permitted)\b",
        ),
        (
            r"必须|必須|必填|强制|\b(?:mandatory|compulsory|required)\b",
            r"可选|选填|自愿|自願|\b(?:optional|voluntary)\b",
        ),
        (r"盈利|盈余|\bprofits?\b", r"亏损|虧損|\bloss(?:es)?\b"),
        (
            r"赞成|贊成|同意|批准|\b(?:approv(?:e|es|ed)|accept(?:s|ed)?)\b",
            r"反对|反對|拒绝|拒絕|否决|\b(?:reject(?:s|ed)?|oppos(?:e|es|ed)|refus(?:e|es|ed))\b",
        ),
        (r"成功|\b(?:succeed(?:s|ed)?|success(?:ful)?)\b", r"失败|失敗|\b(?:fail(?:s|ed|ure)?|unsuccessful)\b"),
        (r"进口|進口|\bimport(?:s|ed|ing)?\b", r"出口|\bexport(?:s|ed|ing)?\b"),
    )
]


def opposed(claim: str, source: str) -> bool:
    """Whether a clause of ``claim`` says the opposite of that clause of ``source`` that shares most of its words."""
    clauses = [(clause, words(clause)) for clause in CLAUSES.split(source)]
    return any(
        _turned(part, max(clauses, key=lambda c: len(c[1] & said))[0])
        for part, said in ((part, words(part)) for part in CLAUSES.split(claim))
        if said
    )


def _turned(one: str, other: str) -> bool:
    """A word stands in only one of them, its opposite only in the other: of a text with both it is not told which says what."""
    for first, second in _PAIRS:
        ones = bool(first.search(one)), bool(second.search(one))
        others = bool(first.search(other)), bool(second.search(other))
        if ones != others and sum(ones) == sum(others) == 1:
            return True
    return False
