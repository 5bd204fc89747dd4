"""Answer a customer's mail in the tone that it asks for.   python examples/prompts/reply.py

Two prompts, one after the other: the first finds the sentiment, the second writes the letter that fits it.
"""

from client import ask, fields, in_chinese, one_of

MAILS = [
    "谢谢你们！蛋糕又新鲜又好吃，孩子们都很高兴，下次还来买。",
    "等了一个星期，寄来的茶杯是碎的，打电话也没人接，太气人了！",
]
TASKS = {
    "正面": "先感谢，再欢迎下次光临。",
    "负面": "先道歉，再答应免费换货。",
}
SENTIMENT = """来信的情绪是正面还是负面？

来信：饭菜很香，服务员也很热情。
情绪：正面

来信：排队两个小时，还被骂了一顿！
情绪：负面

来信：{}
情绪："""


def main() -> None:
    for mail in MAILS:
        sentiment = ask(SENTIMENT.format(mail), fields(情绪=one_of(*TASKS)))["情绪"]
        letter = ask(f"顾客来信：{mail}\n\n替网店的客服写两三句话的回信：{TASKS[sentiment]}", max_tokens=150)
        print(f"来信（{sentiment}）：{mail}\n回信：\n{letter}\n")
        assert sentiment in TASKS
        assert in_chinese(letter)


if __name__ == "__main__":
    main()
