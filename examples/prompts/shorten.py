"""Shorten a text: say what to do, and mark where the text begins and ends.   python examples/prompts/shorten.py

The triple backquotes tell the model which words are material and which are the task; nothing in them is an instruction.
"""

from client import ask, in_chinese

TEXT = """\
我跟你说，学生们盼了好久了：图书馆从九月起延长开放时间。之前每天晚上八点就关门，好多人书看到一半就被请出去了，
只好到食堂接着看。现在平时开到晚上十一点，周末开到九点，听说连楼梯上都坐着人。"""

PROMPT = f"""用一句话概括三重反引号里的文字，不超过30个字。

```
{TEXT}
```"""


def main() -> None:
    short = ask(PROMPT, max_tokens=100)
    print(f"原文（{len(TEXT)}字）：\n{TEXT}\n\n缩写（{len(short)}字）：\n{short}")
    assert in_chinese(short)
    assert len(short) < len(TEXT)


if __name__ == "__main__":
    main()
