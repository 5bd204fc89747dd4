"""Follow the style: show one example, and the answer comes in its manner.   python examples/prompts/style.py"""

from client import ask, in_chinese

PROMPT = """徒弟：什么是耐心？
师傅：滴水能穿石头，不是因为水的力气大，而是因为水一直在滴。

徒弟问：“什么是谦虚？”请模仿师傅的风格，用一个比喻回答，只写一句话。"""


def main() -> None:
    answer = ask(PROMPT, max_tokens=120)
    print(f"{PROMPT}\n\n师傅：{answer}")
    assert in_chinese(answer)


if __name__ == "__main__":
    main()
