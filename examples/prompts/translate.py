"""Translate, both ways.   python examples/prompts/translate.py

The instruction is in the language of the answer: a small model goes on in the language it was addressed in.
"""

from client import ask, in_chinese

CHINESE = "请问去火车站应该坐几路公共汽车？"
ENGLISH = "The library is closed on public holidays."


def main() -> None:
    english = ask(f"Translate the sentence to English. Write only the translation.\n\n{CHINESE}", max_tokens=80)
    print(f"中译英：{CHINESE}\n{english}")
    chinese = ask(f"把下面的句子翻译成中文，只写译文。\n\n{ENGLISH}", max_tokens=80)
    print(f"英译中：{ENGLISH}\n{chinese}")
    assert english.isascii()
    assert in_chinese(chinese)


if __name__ == "__main__":
    main()
