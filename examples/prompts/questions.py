"""Several questions over one text, in one prompt.   python examples/prompts/questions.py

One answer for each question, and each with the form that suits it: a number is a number, a choice is one of the choices.
"""

from client import ask, fields, one_of, text

TEXT = """\
周日上午，小梅和爷爷去青河边放风筝。风筝是爷爷用竹子和纸做的，样子像一只燕子。
风很大，线忽然断了，风筝落在对岸的树上。小梅急得要哭，爷爷笑着说：“没关系，我们回家再做一只。”"""

PROMPT = f"""读文段，回答四个问题。

文段：
{TEXT}

问题：
1. 他们去哪里放风筝？
2. 风筝像什么动物？
3. 文段里有几个人？
4. 风筝是谁做的？"""

SCHEMA = fields(
    问题1=text(at_most=15),
    问题2=text(at_most=10),
    问题3={"type": "integer", "minimum": 0, "maximum": 9},
    问题4=one_of("小梅", "爷爷"),
)


def main() -> None:
    answers = ask(PROMPT, SCHEMA)
    print(PROMPT, end="\n\n")
    for question, answer in answers.items():
        print(f"{question}：{answer}")
    assert list(answers) == ["问题1", "问题2", "问题3", "问题4"]


if __name__ == "__main__":
    main()
