"""Every script of examples/prompts/ runs on the small embedded model, and what it prints has the promised form.

The scripts assert their forms themselves; here the output is read again, as a reader sees it. What a small model says within
the form is not judged, except where the prompt was chosen so that it says it rightly.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.servers import ROOT, Service

pytestmark = pytest.mark.weights

LANGUAGES = {"Chinese", "English", "French", "German", "Japanese", "Spanish"}
HAN = "[\u4e00-\u9fff]"


@pytest.fixture
def run(real_model: Service) -> Callable[[str], str]:
    # Without MODEL_NAME: the scripts find the model by themselves.
    foreign = ("MODEL_NAME", "MODEL_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env |= {"MODEL_URL": real_model.url + "/v1", "PYTHONIOENCODING": "utf-8"}

    def call(name: str) -> str:
        done = subprocess.run(
            [sys.executable, f"examples/prompts/{name}"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            encoding="utf-8",
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def after(label: str, output: str) -> str:
    """The rest of the line that begins with the label."""
    found = re.findall(rf"^{label}[：:] ?(.+)$", output, re.MULTILINE)
    assert len(found) == 1, output
    return str(found[0])


def test_every_script_has_a_test_and_a_line_in_the_cookbook() -> None:
    names = {path.name for path in (ROOT / "examples" / "prompts").glob("*.py")} - {"client.py"}
    source = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in names if f'run("{name}")' not in source} == set()
    rows = re.findall(r"^\| \[(\w+\.py)\]\(\1\) \| \S", cookbook(), re.MULTILINE)
    assert sorted(rows) == sorted(names)


def cookbook() -> str:
    return (ROOT / "examples" / "prompts" / "README.md").read_text(encoding="utf-8")


def test_shorten(run: Callable[[str], str]) -> None:
    output = run("shorten.py")
    original, short = re.split(r"缩写（\d+字）：\n", output)
    assert re.search(HAN, short)
    assert len(short.strip()) < len(original) - 10


def test_json_output(run: Callable[[str], str]) -> None:
    shops = json.loads(run("json_output.py"))
    assert [list(shop) for shop in shops] == [["店名", "城市", "商品"]] * 3
    assert all(isinstance(value, str) and value for shop in shops for value in shop.values())


def test_steps_or_the_exact_sentence(run: Callable[[str], str]) -> None:
    tea, lake = run("steps.py").strip().split("\n\n")
    steps = tea.splitlines()[1:]
    assert len(steps) >= 2
    for number, step in enumerate(steps, 1):
        assert re.fullmatch(rf"第{number}步：[^，。；、]{{2,20}}", step)
    assert lake.splitlines()[1:] == ["文段无任何步骤"]


def test_style(run: Callable[[str], str]) -> None:
    answer = run("style.py").rpartition("师傅：")[2].strip()
    assert re.search(HAN, answer)


def test_several_questions(run: Callable[[str], str]) -> None:
    output = run("questions.py")
    assert "青河" in after("问题1", output)
    assert len(after("问题2", output)) <= 10
    assert after("问题3", output) in set("0123456789")
    assert after("问题4", output) in ("小梅", "爷爷")


def test_summaries_of_thirty_characters(run: Callable[[str], str]) -> None:
    summaries = re.findall(r"^(.+)（(\d+)字）：(.+)$", run("summary.py"), re.MULTILINE)
    assert [reader for reader, _, _ in summaries] == ["所有人", "物流部门", "产品部门"]
    for _, count, summary in summaries:
        assert len(summary) == int(count) <= 30
        assert summary.endswith("。")


def test_sentiment_in_five_forms(run: Callable[[str], str]) -> None:
    output = run("sentiment.py")
    assert re.search(HAN, after("一句话", output))
    assert after("一个词", output) == "正面"
    words = after("最多五个词", output).split("、")
    assert 1 <= len(words) <= 5
    assert all(re.fullmatch(HAN + "{2,4}", word) for word in words)
    assert after("生气吗", output) in ("是", "否")
    found = json.loads(after("JSON", output))
    assert list(found) == ["Sentiment", "Anger", "Item", "Brand"]
    assert found["Sentiment"] in ("positive", "negative")
    assert type(found["Anger"]) is bool
    assert found["Item"]
    assert found["Brand"]


def test_translate(run: Callable[[str], str]) -> None:
    output = run("translate.py")
    _, english, _, chinese = output.strip().splitlines()
    assert english.isascii()
    assert "station" in english
    assert "图书馆" in chinese


def test_name_the_language(run: Callable[[str], str]) -> None:
    named = [line.partition(": ")[0] for line in run("language.py").strip().splitlines()]
    assert len(named) == 5
    assert set(named) <= LANGUAGES
    assert len(set(named)) >= 3  # not one name for everything


def test_formal_and_informal(run: Callable[[str], str]) -> None:
    output = run("formal.py")
    assert re.fullmatch(f"尊敬的经理，您好！({HAN}|，){{8,40}}。此致敬礼！", after("正式", output))
    assert re.fullmatch(f"嘿，({HAN}|，){{4,30}}[！～]", after("随意", output))


def test_support_queue(run: Callable[[str], str]) -> None:
    tickets = [json.loads(line) for line in run("support_queue.py").strip().splitlines()]
    assert len(tickets) == 4
    for ticket in tickets:
        assert list(ticket) == ["message", "language", "chinese", "english"]
        assert ticket["language"] in LANGUAGES
        assert re.fullmatch(f"({HAN}|[，、])+[。！？]", ticket["chinese"])
        assert re.fullmatch(r"[A-Z][ -~]+[.!?]", ticket["english"])


def test_replies_in_the_tone_of_the_mail(run: Callable[[str], str]) -> None:
    output = run("reply.py")
    mails = re.findall(r"^来信（(正面|负面)）：.+\n回信：\n([^来]*(?:来(?!信（)[^来]*)*)", output, re.MULTILINE)
    assert [sentiment for sentiment, _ in mails] == ["正面", "负面"]
    thanks, apology = (letter for _, letter in mails)
    assert "感谢" in thanks
    assert "抱歉" in apology or "道歉" in apology or "歉意" in apology
