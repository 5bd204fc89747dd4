"""Summaries of at most 30 characters, each for another reader.   python examples/prompts/summary.py

A number in the prompt is a wish: models do not count. A schema is a limit, and `maxLength: 30` would do; but it cuts where
it falls. The pattern allows one or two clauses and a full stop, 29 characters at most, so what comes is a sentence.
"""

from client import ask, fields

REVIEW = "给女儿买的生日礼物，一只毛绒小熊，她走到哪里都抱着。手感很软，脸也可爱，只是比想象的小一点。快递比说好的早到了一天。"

SENTENCE = {"type": "string", "pattern": "^[^，。]{2,14}(，[^，。]{2,13})?。$"}
READERS = {"所有人": "", "物流部门": "，只说快递", "产品部门": "，只说小熊的大小"}


def main() -> None:
    print(f"评价：{REVIEW}\n")
    for reader, focus in READERS.items():
        prompt = f"评价：{REVIEW}\n\n用十五个字左右的一句话概括这条评价{focus}。"
        summary = ask(prompt, fields(概括=SENTENCE))["概括"]
        print(f"{reader}（{len(summary)}字）：{summary}")
        assert len(summary) <= 30


if __name__ == "__main__":
    main()
