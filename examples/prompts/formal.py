"""Formal and informal: the same message to a manager and to a friend.   python examples/prompts/formal.py

The patterns give each letter its opening and its end, as a form does; between them the model writes.
"""

from client import ask, fields

MESSAGE = "明天的会我去不了，东西我晚上发你。"

PROMPT = f"""意思：{MESSAGE}

把这个意思写成两条消息：正式的写给经理，随意的发给好朋友。"""

SCHEMA = fields(
    正式={"type": "string", "pattern": "^尊敬的经理，您好！[\u4e00-\u9fff，]{8,40}。此致敬礼！$"},
    随意={"type": "string", "pattern": "^嘿，[\u4e00-\u9fff，]{4,30}[！～]$"},
)


def main() -> None:
    messages = ask(PROMPT, SCHEMA)
    print(f"意思：{MESSAGE}")
    for manner, message in messages.items():
        print(f"{manner}：{message}")
    assert messages["正式"].startswith("尊敬的经理，您好！")
    assert messages["随意"].startswith("嘿，")


if __name__ == "__main__":
    main()
