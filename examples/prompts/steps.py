"""Check a condition first: the steps of a text, or exactly 文段无任何步骤.   python examples/prompts/steps.py

A model that is told to list steps finds some in a poem, too, even when it is told what to say if there are none. A question
of its own, with a choice between two things that a text can be, is answered rightly by a small model as well.
"""

from client import ask, fields, one_of

TEXTS = [
    "先把水烧开，用开水烫热茶杯。然后放一小勺茶叶，倒入热水，盖上盖子等三分钟。最后把茶叶滤出来，就可以喝了。",
    "今天的阳光很好，湖面像镜子一样平静。岸边的柳树轻轻摇着枝条，几只野鸭游过，留下长长的水纹。",
]
NONE = "文段无任何步骤"

# A step is a short clause without punctuation in it, so that no item holds two of them.
STEP = {"type": "string", "pattern": "^[^，。；、]{2,20}$"}
STEPS = fields(步骤={"type": "array", "items": STEP, "minItems": 2, "maxItems": 9})


def steps(passage: str) -> str:
    """One line a step, or NONE."""
    question = f"文段：\n{passage}\n\n文段是做一件事的步骤，还是对景物的描写？"
    if ask(question, fields(kind=one_of("步骤", "描写")))["kind"] == "描写":
        return NONE
    found = ask(f"文段：\n{passage}\n\n逐条写出文段里的步骤，一步一条。", STEPS)["步骤"]
    return "\n".join(f"第{number}步：{step}" for number, step in enumerate(found, 1))


def main() -> None:
    for passage in TEXTS:
        answer = steps(passage)
        print(f"文段：{passage}\n{answer}\n")
        assert answer == NONE or all(line.startswith("第") for line in answer.splitlines())


if __name__ == "__main__":
    main()
