"""The sentiment of a review, in five forms.   python examples/prompts/sentiment.py

From free to strict: a sentence, one word, at most five words, yes or no, and an object with four keys. For the last four the
form is in the schema, so a program can count on it. Two solved examples help a small model more than a long explanation.
"""

import json

from client import ask, fields, in_chinese, one_of, text

REVIEW = "在灯火牌网店买了一盏台灯，光很柔和，还送到了楼上。少了一颗螺丝，客服第二天就补寄来了，很满意。"

FREE = f"评价：{REVIEW}\n\n这条评价的情绪是怎样的？用一句话回答。"

EXAMPLES = """\
评价：饭菜很香，服务员也很热情。
回答：{0}

评价：排队两个小时，还被骂了一顿！
回答：{1}
"""
ONE_WORD = f"评价的情绪是正面还是负面？\n\n{EXAMPLES.format('正面', '负面')}\n评价：{REVIEW}\n回答："
YES_NO = f"顾客生气吗？\n\n{EXAMPLES.format('否', '是')}\n评价：{REVIEW}\n回答："
FIVE_WORDS = f"评价：{REVIEW}\n\n写出评价里的情绪，最多五个词，不要重复，例如：高兴、失望、感激。"
KEYS = f"""评价：{REVIEW}

从评价里找出：
Sentiment：情绪，positive 或 negative
Anger：顾客是否生气，true 或 false
Item：买的东西
Brand：牌子"""

WORD = {"type": "string", "pattern": "^[\u4e00-\u9fff]{2,4}$"}


def main() -> None:
    print(f"评价：{REVIEW}\n")

    free = ask(FREE, max_tokens=100)
    print(f"一句话：{free}")
    assert in_chinese(free)

    word = ask(ONE_WORD, fields(回答=one_of("正面", "负面")))["回答"]
    print(f"一个词：{word}")
    assert word in ("正面", "负面")

    words = ask(FIVE_WORDS, fields(情绪={"type": "array", "items": WORD, "minItems": 1, "maxItems": 5}))["情绪"]
    print(f"最多五个词：{'、'.join(words)}")
    assert 1 <= len(words) <= 5

    angry = ask(YES_NO, fields(回答=one_of("是", "否")))["回答"]
    print(f"生气吗：{angry}")
    assert angry in ("是", "否")

    keys = fields(
        Sentiment=one_of("positive", "negative"),
        Anger={"type": "boolean"},
        Item=text(at_most=12),
        Brand=text(at_most=12),
    )
    found = ask(KEYS, keys)
    print(f"JSON：{json.dumps(found, ensure_ascii=False)}")
    assert list(found) == ["Sentiment", "Anger", "Item", "Brand"]


if __name__ == "__main__":
    main()
