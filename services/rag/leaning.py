"""Does a question lean on the conversation before it? Decided from its words alone, in Chinese and English. Pure.

Condensing costs a call of the model and may carry an old topic into a new one, so only a question that cannot be
understood alone is condensed. What makes a question lean, in the order of certainty: it opens as a continuation or a
correction ("那…", "what about", "no, I meant"); it has a pronoun or demonstrative without an antecedent of its own; it
is an ellipsis ("P2 呢？", "Overseas?"); it compares with nothing; or too few words of its own are left to search with.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

import rjieba

from services.rag.documents.reflow import CJK
from services.rag.prompts import language_of

# How a question opens, as far as it tells about the turn before.
Opening = Literal["none", "aside", "continuation", "correction"]

# Function words only: enough to read traditional text by the same patterns.
_SIMPLIFIED = str.maketrans(
    "這個麼嗎們還對問說錯換種樣處後時間兩幾頁頭條項類辦與誰裡裏從來應該會動長麽於關請為爲剛纔話題實無開點數據講須給讓見過並",
    "这个么吗们还对问说错换种样处后时间两几页头条项类办与谁里里从来应该会动长么于关请为为刚才话题实无开点数据讲须给让见过并",
)


# Whoever pastes more than this asks about what is pasted.
_READ = 500


@dataclass(frozen=True)
class Opened:
    """A question without its opening words: ``body`` is the exact rest of it."""

    opening: Opening
    body: str


def leans(question: str, history: Any) -> bool:
    """Whether ``question`` needs the turns of ``history`` to be understood; never with an empty history."""
    if not history or not question.strip():
        return False
    opened = open_question(question)
    text = _folded(opened.body[:_READ])
    if not re.search(r"\w", text):
        return opened.opening in ("continuation", "correction")
    return (_chinese if language_of(question) == "zh" else _english)(text, opened.opening)


def open_question(question: str) -> Opened:
    """``question`` split into how it opens and its body. Thanks and "by the way" are no part of the question either."""
    body, opening = question.strip(), "none"
    patterns = _OPENINGS["zh" if re.search(f"[{CJK}]", question) else "en"]
    found = True
    while found:
        found = False
        for kind, pattern in patterns:
            # Folding changes no length here, so an offset in the folded text is one in the question.
            text = body.translate(_SIMPLIFIED).lower() if len(body.lower()) == len(body) else body
            match = pattern.match(text)
            if match and match.end() and ("says" not in match.groupdict() or _ends_word(text, match)):
                body, found = body[match.end() :].lstrip(" ,，、。.!！:：—-"), True
                if _STRENGTH.index(kind) > _STRENGTH.index(opening):
                    opening = kind
                break
    return Opened(opening, body)  # type: ignore[arg-type]


def _ends_word(text: str, match: re.Match[str]) -> bool:
    """Whether the opening that says what is meant ends where a word ends: "我指的年假", not "我指定的联系人"."""
    if match["says"] is None:
        return True
    at = 0
    for word in rjieba.cut(text[: match.end() + 8]):
        at += len(word)
        if at >= match.end():
            break
    return at == match.end()


def weight(text: str) -> float:
    """How much of ``text`` says what it is about: one for a word; function words count nothing."""
    total = 0.0
    for run in re.findall(f"[{CJK}]+|[a-z0-9][a-z0-9.'_+#-]*", _folded(text)):
        if re.match(f"[{CJK}]", run):
            total += sum(len(word) / 2 for word in rjieba.cut(run) if word not in _EMPTY_ZH)
        elif run.strip(".'-") not in _EMPTY_EN:
            total += 1
    return total


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).translate(_SIMPLIFIED).lower().split())


# -- openings -------------------------------------------------------------------------------------------------------

_STRENGTH: list[str] = ["none", "aside", "continuation", "correction"]
_END = r"(?=[\s,，、。.!！?？:：—-]|$)"
# Behind a word that may as well be the question's own: "No smoking areas", "No-show fee", "No. 5", "Well water".
_PAUSE = r"(?=\s*(?:[,，、。!！?？:：;；—–]|\.(?!\s*\d)|-+\s|$))"
_PAUSE_ZH = r"(?=\s*(?:[,，。、!！?？:：;；—]|$))"

_OPENINGS: dict[str, list[tuple[str, re.Pattern[str]]]] = {
    "zh": [
        (
            "correction",
            re.compile(
                r"(?:不是(?:的|这个|那个|这样)?(?=[,，。、\s]|我(?:是?[问说指想要]|的意思))|不对(?=[,，。、\s]|我)|不(?=[,，。])"
                r"|(?:你?(?:搞|弄|理解|答|说))?错了"
                + _PAUSE_ZH
                + r"|我(?:刚才|刚刚)?(?:是问|是说|是指|是想问|要问|问|说|指|想问)的是"
                r"|我(?:刚才|刚刚)?(?:是问|是说|是指|是想问|指)(?P<says>)|我的意思是|应该是(?![谁哪几多怎什])"
                r"|no(?:" + _PAUSE + r"|(?=\s*我)))"
            ),
        ),
        (
            "aside",
            re.compile(
                r"(?:另外|此外|对了|顺便(?:问(?:一下|一句)?)?|换个(?:话题|问题)|再?(?:另)?问(?:你)?(?:一个|个)(?:别的|其他)?问题"
                r"|还有(?:一个|个)(?:别的|其他)?问题|下一个问题|谢谢(?:你|您)?|多谢|好的?(?=[,，。、\s])|明白了?|知道了|了解了?(?=[,，。])"
                r"|嗯+|哦+|噢|请问(?:一下)?|我(?:还)?想(?:问|知道)(?:一下)?(?!的)|ok(?:ay)?\b|thanks\b)"
            ),
        ),
        (
            "continuation",
            re.compile(
                r"(?:那么|那(?![个些种样里儿边时次位款台])|还有(?=[,，、\s]|.{1,8}呢)|然后(?:呢)?|接着|所以|但是|可是|不过|而(?![且已])"
                r"|要是|再(?=[,，])|以及|改成|换成|and\b|what about\b|how about\b)"
            ),
        ),
    ],
    "en": [
        (
            "correction",
            re.compile(
                r"(?:(?:no|nope|wrong|incorrect|sorry)"
                + _PAUSE
                + r"|(?:no|nope|sorry)(?=\s+i\b(?:'m)?\s+(?:actually |really )?(?:mean|meant|ask|asked|asking|was|am)\b)"
                # What was not meant, and at once what was.
                r"|not (?:that|this|the)\b(?:(?!\bbut\b)[^,.;—])*+[,.;—]+(?=\s*(?:but )?(?:the|that|those|a|an|i mean|i meant)\b(?!.*[,:]))"
                r"|actually(?:"
                + _PAUSE
                + r"|(?=\s+(?:i|it|make|the|what|who|when|where|which|why|how|is|are|do|does|can)\b))"
                r"|i (?:actually |really )?(?:mean|meant|was asking(?: about)?|am asking(?: about)?|asked(?: about| for))\b"
                r"|i asked(?=\s+(?:what|who|when|where|which|why|how|if|whether)\b)"
                r"|i'm asking(?: about)?\b|(?:that's|that is|it's) not what i (?:asked|meant)|make that\b|i was talking about\b)"
            ),
        ),
        (
            "aside",
            re.compile(
                r"(?:by the way|btw\b|thanks(?: a lot)?|thank you|(?:great|good|i see)"
                + _PAUSE
                + r"|ok(?:ay)?"
                + _END
                + r"|got it"
                r"|(?:another|next|new|one more|different|unrelated) (?:question|topic|thing)|on another (?:note|topic)"
                r"|(?:unrelated|separately)"
                + _PAUSE
                + r"|please\b|could you (?:please )?tell me\b|can you tell me\b|tell me\b)"
            ),
        ),
        (
            "continuation",
            re.compile(
                r"(?:and\b|but\b|so\b|or\b|also\b|then\b|well"
                + _PAUSE
                + r"|now\b,?|what about\b|how about\b|what if\b|in that case\b)"
            ),
        ),
    ],
}

# -- Chinese ----------------------------------------------------------------------------------------------------------

_EMPTY_ZH = frozenset(
    "的 了 和 是 在 吗 呢 吧 啊 嘛 么 就 都 而 及 与 或 个 中 为 以 于 上 下 也 有 这 那 其 它 他 她 们 它们 他们 "
    "她们 被 把 对 从 到 由 给 让 跟 同 按 按照 要 会 能 可 可以 能够 能不能 不能 可不可以 会不会 要不要 是不是 是否 "
    "有没有 没有 没 不 需要 需 应该 应 该 应当 必须 得 什么 怎么 怎样 怎么样 怎么办 如何 多少 多久 多大 多长 多高 "
    "多快 多远 多重 多 久 哪些 哪个 哪里 哪儿 哪 哪种 哪一 谁 几 几个 几次 几天 几种 几台 何时 为何 为什么 什么时候 "
    "多长时间 时间 时候 请问 请 一下 一个 一 两 次 天 台 种 时 之后 以后 之前 以前 后 前 里 里面 内 外 最 最多 最少 "
    "最长 最短 最大 最小 至少 最高 最低 默认 通常 一般 大概 具体 详细 还 还有 再 又 才 只 只有 则 都有 夜间 晚上 "
    "白天 周末 平时 每天 每周 每月 每年 现在 今后 去年 今年 明年 修改 改 处理 办 做 使用 用 进行 发生 开始 结束 完成 "
    "设置 允许 支持 包括 属于 保留 保存 持续 花 费 放 算 行 来 去 说 讲 问 看 找 写 页 第几页 第几 哪一页 出自 手册 "
    "文档 文件里 原文 出处 章 节 章节 段 提到 写明 例子 举例 举 解释 说明 意思 原因 继续 展开 点 一点 这个 那个 这些 "
    "那些 这种 那种 这样 那样 上述 前者 后者 刚才 刚刚 前面 上面 下面 同样 一样 真的 确定 每 每隔 每次 次数 第二 "
    "第三 第一".split()
)
# Nouns that are always of something: alone they say nothing.
_RELATIONAL_ZH = (
    r"(?:上限|下限|限制|期限|时限|限额|额度|数量|大小|价格|费用|单价|默认值|最大值|最小值|阈值|间隔|频率|周期|地址|原因|条件|步骤|流程|例外|后果"
    r"|区别|差别|单位|范围|期间|有效期|宽限期|响应时间|通知方式|负责人|含义|比例|标准|要求|带宽|速度|内存|磁盘|端口|编码|错误码|命令|参数|方式|人数)"
)
_POINTS_BACK_ZH = re.compile(
    r"它|他们?的?(?![国人乡])|她|"
    r"(?<![a-z0-9_”\"』」])(?<![a-z0-9_”\"』」] )这(?![份本篇部](?:手册|文档|资料|说明书|文章|报告)?"
    r"|个?(?:手册|文档|资料|说明书|系统|产品))|"
    r"那(?:个|些|种|样|里|儿|边|时|次|位|款|台)|"
    r"(?<![尤极])其(?!他|它|中|实|余|次)|其[他它余]|(?<![级类性分])别的|另一|另外一?[个种条项]|"
    r"(?:^|[,，在对于给把由从])该(?!怎|如何|不该|不|找|联系|去|先|用|做|是|由|向|在)|"
    r"(?<![因如])此(?!外)|"
    r"^其中|上述|前述|前者|后者|刚才|刚刚|之前(?:说|提|讲|问)|前面(?:说|提|讲|那|的)|上面(?:说|提|讲|那|的)|两者|二者|同上|"
    r"第[一二三四五六七八九十两\d]+[个种项条步类点](?=呢|是|怎|要|会|的?[?？]|$|有|能|需|如何|什么|的呢)"
)
_ASKS_ZH = re.compile(
    r"是|有|[吗么]|什么|怎|如何|多少|多久|多[大长高快远重]|几|谁|哪|为何|能|可以|会|需|要|何时|请|列出|介绍|解释|比较"
)
_WH_ZH = re.compile(r"什么|怎|如何|多少|多久|多[大长高快远重]|几|谁|哪|为何|何时|(.)[不没]\1|吗$")
_SUBJECTLESS_ZH = re.compile(
    r"(?:请)?(?:夜间|晚上|白天|周末|平时|每[天周月年]|现在|以前|今后|去年|今年|明年)?(?:可以|可不可以|能|会|要|需|应|必须|是否|是不是|有没有|有什么|有哪些|有几|有多|怎|如何|为什么|为何|多久|多长|多少|多大|多快|几|谁|由谁|哪|什么"
    r"|最[多少长短大小高低迟晚早]|至少|每隔|保留|保存|持续|到期|过期|超时|超过|失败|到了|如果|万一|要是|在哪|从哪|放在|出自|出处|来源|属于|包括|还|也|在第)"
)
_COMPARES_ZH = re.compile(
    r"(?<!变)更(?![换新改正替名衣年])|相比|区别|差别|不同|不一样|差多少|比较[大小长短高低快慢好]|哪个[大小长短高低快慢好多少]"
)
_COMPARED_ZH = re.compile(r"比(?!较|例|如|率|重)|[和与跟同及]|之间|还是")


def _chinese(text: str, opening: Opening) -> bool:
    ends = text.rstrip("?？。.!！~ ")
    body = ends.removesuffix("呢")
    asks = bool(_ASKS_ZH.search(body))
    own = weight(body)
    if opening == "correction":
        return not asks or own < 2 or bool(_POINTS_BACK_ZH.search(text)) or bool(re.match("是", text))
    if opening == "continuation" and own <= 2.5:
        return True
    if ends.endswith("呢") and (not _WH_ZH.search(body) or own <= 1):
        return True
    if _POINTS_BACK_ZH.search(text):
        return True
    if re.search(r"也(?!就是|许)", text) and own <= 3:
        return True
    if _COMPARES_ZH.search(text) and not _COMPARED_ZH.search(text) and own <= 2:
        return True
    if own == 0:
        return True
    if own <= 1.5 and re.search(_RELATIONAL_ZH + r"$|^" + _RELATIONAL_ZH, _core_zh(body)):
        return own - _relational_weight(body) <= 0.5
    if own <= 1.5 and _SUBJECTLESS_ZH.match(text):
        return True
    return not asks and (own <= 1.5 or (own <= 2.5 and bool(re.search(r"[?？]$", text))))


def _core_zh(body: str) -> str:
    return re.sub(r"(?:是|有|为)?(?:多少|什么|几\w?|多[大长高快久]|怎么\w*|谁)$", "", body)


def _relational_weight(body: str) -> float:
    return sum(len(m) / 2 for m in re.findall(_RELATIONAL_ZH, body))


# -- English ------------------------------------------------------------------------------------------------------------

_AUX = (
    "is are was were be been being do does did can could will would should shall must may might has have had isn't aren't "
    "don't doesn't didn't can't couldn't won't shouldn't what's who's where's how's it's that's there's"
)
_EMPTY_EN = frozenset(
    f"{_AUX} "
    "a an the of to in on at for and or but so if then than as with by from about into over under after before during until "
    "without within between not no yes too also either else instead again still only just even more most less least very much "
    "many long often far big large soon fast high old few little several any some each every all both other others another same one "
    "ones it its they them their theirs this that these those he she him her his here there i you we me my our your us which what "
    "who whom whose when where why how page pages section chapter manual document source say says said written mentioned mean means "
    "meant get gets got take takes make makes need needs happen happens happened work works go goes come comes know think tell show "
    "give use used using please sure really explain elaborate details detail example examples continue thing things case right "
    "maximum minimum default exactly first second third last next sorry ok okay thanks hello hi time times kind".split()
)
_RELATIONAL_EN = frozenset(
    "limit limits maximum minimum default value price cost charge fee deadline reason unit range difference penalty period "
    "interval threshold answer amount number rate size length capacity duration consequence consequences exception exceptions "
    "requirement requirements condition conditions step steps procedure alternative alternatives delay tolerance quota "
    "owner purpose result colour color".split()
)
_DETERMINER = r"(?:the|an?|my|our|your|each|every|any|some|one)"
_THIRD = re.compile(r"\b(it|its|itself|they|them|their|theirs|themselves|he|him|his|she|her|hers)\b")
_EXPLETIVE = re.compile(
    r"\b(?:(?:does|do|will|did|would|can|could) it (?:usually |typically |normally )?(?:take|cost|mean|matter|help|happen|need)"
    r"(?: \w+)? (?:to|when|if|that|for)\b"
    r"|(?:is|was|isn't) it (?:still |ever |also )?(?:\w+ )?(?:possible|necessary|safe|ok|okay|allowed|true|required"
    r"|recommended|advisable|permitted|legal|normal|better|best|worth|important|mandatory|good|bad|enough"
    r"|fine|dangerous) (?:to|that|if|for|when|\w+ing)\b"
    r"|it (?:takes|costs|is (?:possible|necessary|safe|allowed)) )"
)
_POINTS_BACK_EN = re.compile(
    r"\b(?:the (?:former|latter|aforementioned|above|previous|other|others|same)\b(?! \w+ (?:as|than)\b)(?! as\b)"
    r"|(?:this|these)\b(?! (?:manual|document|guide|handbook|book|pdf|file|product|system|year|month|week|quarter|season|century)s?\b)"
    r"|those\b(?! (?:who|that|which|with|of|in)\b)"
    r"|(?:anything|something|what|who|where|anyone|nothing) else\b|as you (?:said|mentioned)|you (?:just )?(?:said|mentioned)"
    r"|(?:from|in|over|stay|be|get) there\b"
    r"|(?:which|that|this|the|other|another|the \S+|an? \S+|first|second|third|last|next|bigger|smaller) ones?"
    r"(?= (?:is|are|was|were|has|have|had|do|does|can|should|will|would|for|in|on|at|lasts?|needs?|costs?|takes?|should|must)\b|\W*$)"
    r")|\b(?:too|as well|either|instead|again|then)\W*$|^(?:the )?(?:first|second|third|last|next|other)\W*$"
)
_THAT = re.compile(
    r"(?:^|\b(?:is|are|was|does|do|did|can|could|will|would|should|may|might|if|when|why|how|after|before|during|for|in|of|on|at|to"
    r"|with|without|from|by|about|than|like|outside|inside|within|under|over|and|or|but|because|change|explain|call|contact|use)\b )that\b"
    r"(?! (?:the|a|an|all|every|each|my|our|your|there)\b)"
)
_WH = re.compile(r"\b(?:what|which|who|whom|whose|when|where|why|how)\b")
_OBJECTLESS = re.compile(r"^(?:where|when|how|whom?) (?:do|can|should|must|may|did|could) (?:i|we|you|one) (\w+)\W*$")
_HAS_AUX = re.compile(r"\b(?:" + "|".join(map(re.escape, _AUX.split())) + r")\b")
_COMPARATIVE_EN = re.compile(
    r"\b(?:better|worse|longer|shorter|larger|bigger|smaller|higher|lower|heavier|lighter|cheaper|faster|slower|older|newer|stronger"
    r"|weaker|safer|warmer|colder|louder|more (?:expensive|accurate|precise|reliable)|less (?:expensive|accurate)|differ|differs"
    r"|difference|differences|different|compare|compares)\b"
)
_COMPARED_EN = re.compile(r"\b(?:than|between|from|to|with|or|of|and|as)\b")


def _english(text: str, opening: Opening) -> bool:
    own = weight(text)
    asks = bool(_WH.search(text) or _HAS_AUX.search(text) or re.match(r"(?:list|name|describe|explain|show)\b", text))
    if opening == "correction":
        return not asks or own < 2 or _points_back(text)
    if opening == "continuation" and (own <= 2 or not asks):
        return True
    if _points_back(text):
        return True
    compares = _COMPARATIVE_EN.search(text)
    if compares and not _COMPARED_EN.search(text[compares.end() :]) and own - 1 <= 1:
        return True
    if own == 0:
        return True
    words = [w for w in re.findall(r"[a-z0-9][a-z0-9.'_+#-]*", text) if w.strip(".'-") not in _EMPTY_EN]
    if own == 1 and words and words[0].rstrip(".") in _RELATIONAL_EN:
        return True
    if not asks:
        return own <= 1 or (
            own <= 3
            and bool(
                re.match(r"(?:the|an?|for|in|on|at|with|without|by|from|to|of|after|before)\b", text)
                or text.endswith("?")
            )
        )
    # "Where do I apply?": to what?
    return own <= 1 and (not _HAS_AUX.search(text) or bool(_OBJECTLESS.search(text)))


def _points_back(text: str) -> bool:
    if _POINTS_BACK_EN.search(text) or _THAT.search(text):
        return True
    clear = _EXPLETIVE.sub(" ", text)
    return any(not _has_antecedent(clear[: match.start()], match.group()) for match in _THIRD.finditer(clear))


def _has_antecedent(before: str, pronoun: str) -> bool:
    """Whether a noun phrase that agrees in number stands earlier in the same question."""
    plural = pronoun.startswith("th")
    # "Refunds policy: what does it cover?" names its topic itself.
    if ":" in before and weight(before.split(":")[0]) >= 1:
        return True
    for phrase in re.finditer(rf"\b{_DETERMINER} ((?:[a-z0-9.'-]+ ?){{1,3}})", before):
        head = [w for w in phrase.group(1).split() if w not in _EMPTY_EN]
        if head and any((w.endswith("s") and not w.endswith(("ss", "us", "is"))) == plural for w in head):
            return True
    return plural and any(
        w.endswith("s") and not w.endswith(("ss", "us", "is")) and w not in _EMPTY_EN
        for w in re.findall(r"[a-z]+", before)
    )
