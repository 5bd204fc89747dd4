"""``docduet eval``: the measures themselves, and the command against a real RAG service over the scripted model."""

import json
import math
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from services import cli
from services.client import RagClient, ServiceError
from services.evaluation import bootstrap, charts, report
from services.evaluation.corpus import collection_name
from services.evaluation.journal import Journal, JournalError
from services.evaluation.metrics import (
    contains,
    f1,
    first_rank,
    fold,
    folds_traditional,
    ndcg,
    percentile,
    recall,
    reciprocal_rank,
    without_markers,
)
from services.evaluation.sets import Question, QuestionSet, SetError, order, part, read
from tests.contract.test_boundaries import SERVICES, importers
from tests.rag.conftest import rag_env
from tests.support.servers import ROOT, Service, start_service

ranks = st.none() | st.integers(1, 30)
words = st.text("abc 数据库资料12.,，。", max_size=12)


# rankings


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3)), max_size=12), st.sampled_from("ab"))
def test_a_page_counts_once_and_the_first_gold_one_is_the_rank(found: list[tuple[str, int]], gold: str) -> None:
    rank = first_rank(found, lambda page: page[0] == gold)
    distinct: list[tuple[str, int]] = []
    for page in found:
        if page not in distinct:
            distinct.append(page)
    expected = next((i + 1 for i, page in enumerate(distinct) if page[0] == gold), None)
    assert rank == expected


@given(ranks)
def test_measures_of_a_rank(rank: int | None) -> None:
    assert recall(rank, 1) <= recall(rank, 4) <= recall(rank, 10)
    assert 0.0 <= reciprocal_rank(rank) <= ndcg(rank) <= recall(rank, 10)
    if rank is not None and rank <= 10:
        assert reciprocal_rank(rank) == 1 / rank
        assert ndcg(rank) == pytest.approx(math.log(2) / math.log(1 + rank))
    else:
        assert ndcg(rank) == 0.0


def test_a_duplicate_in_front_does_not_push_the_gold_page_down() -> None:
    found = [("a", 1), ("a", 1), ("a", 1), ("b", 2)]
    assert first_rank(found, lambda page: page == ("b", 2)) == 2


# answers


@pytest.mark.parametrize(
    ("answer", "golds", "expected"),
    [
        ("The soft limit is 90 seconds.", ["90 seconds"], True),
        ("The soft limit is 90 seconds.", ["9", "0 sec", "the hard limit"], False),
        ("软限制是90秒。", ["90 秒"], True),
        ("软限制是９０ 秒。", ["90秒"], True),
        ("一共1,000人", ["1000 人"], True),
        ("版本 3.5 发布", ["3.5"], True),
        ("版本 3.51 发布", ["3.5"], False),
        ("308分", ["30"], False),
        ("首集收视率为7.07，15岁", ["7.07"], True),
        ("It was the PANTHERS", ["Panthers"], True),
        ("Ｒ＆Ｄ", ["r & d"], True),
        ("百分之五十%", ["%"], True),
        ("anything", [], False),
        ("anything", ["", " "], False),
        ("", ["x"], False),
    ],
)
def test_an_answer_holds_a_gold_answer_whole_tokens_long(answer: str, golds: list[str], expected: bool) -> None:
    assert contains(answer, golds) is expected


@pytest.mark.skipif(not folds_traditional(), reason="OpenCC is not installed")
def test_traditional_and_simplified_meet() -> None:
    assert contains("梵語的學術研究由歐洲學者開創。", ["欧洲学者"])
    assert contains("由欧洲学者开创", ["歐洲學者"])
    assert f1("歐洲", ["欧洲"], "zh") == 1.0


def test_chinese_f1_is_over_the_longest_common_run() -> None:
    # 6 characters of 10 and of 6; punctuation is no character.
    assert f1("一共有二十五万人，左右", ["二十五万人"], "zh") == pytest.approx(2 * 5 / (10 + 5))
    # Runs do not add up: "北京" and "大学" are two, as in CMRC 2018's own evaluation.
    assert f1("北京的大学", ["北京大学"], "zh") == pytest.approx(2 * 2 / (5 + 4))
    assert f1("北京的大学", ["北京之大学"], "zh") == pytest.approx(2 * 2 / (5 + 5))
    assert f1("Windows 10 系统", ["windows 10"], "zh") == pytest.approx(2 * 2 / (4 + 2))
    assert f1("完全不同", ["别的"], "zh") == 0.0


def test_english_f1_is_over_words_without_articles() -> None:
    assert f1("The Denver Broncos.", ["Denver Broncos"], "en") == 1.0
    assert f1("Broncos, Denver won", ["the Denver Broncos"], "en") == pytest.approx(2 * 2 / (3 + 2))
    assert f1("nothing", ["something", "nothing at all"], "en") == pytest.approx(0.5)
    assert f1("nothing", [], "en") == 0.0


@given(words, st.lists(words, min_size=1, max_size=3), st.sampled_from(["zh", "en"]))
def test_f1_is_a_share_and_whole_for_the_same_text(answer: str, golds: list[str], language: Any) -> None:
    value = f1(answer, golds, language)
    assert 0.0 <= value <= 1.0
    assert value == max(f1(answer, [g], language) for g in golds)
    if any(c.isalnum() for c in answer.replace("a", "")):
        assert f1(answer, [answer], language) == 1.0


@given(st.text(max_size=30), st.lists(st.text(max_size=8), max_size=3))
def test_any_text_can_be_compared(answer: str, golds: list[str]) -> None:
    assert contains(answer, golds) in (True, False)
    f1(answer, golds, "zh")
    assert fold(fold(answer)) == fold(fold(fold(answer)))


def test_lone_surrogates_are_no_crash() -> None:
    assert contains("a \ud800 b", ["b"])


def test_markers_of_citations_are_no_words_of_the_answer() -> None:
    assert without_markers("Two hours.[1] Ninety [2]. [3] is a list", [1, 2]) == "Two hours. Ninety. [3] is a list"
    assert without_markers("a [1]", []) == "a [1]"


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_between_its_neighbours(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert min(values) <= found <= max(values) + 1e-6
    assert percentile(values, 0.0) == min(values)
    assert percentile(values, 1.0) == max(values)


def test_percentiles_are_linear_between() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


# how sure


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3).map(float)), min_size=1, max_size=20))
def test_an_interval_holds_its_figure_and_is_the_same_each_time(parts: list[tuple[float, float]]) -> None:
    found = bootstrap.figure(parts, 50)
    if found is None:
        assert sum(d for _, d in parts) == 0
        return
    assert found.low <= found.value <= found.high
    assert found == bootstrap.figure(parts, 50)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_that_all_agree_on_is_not_certain(value: float) -> None:
    found = bootstrap.figure([(value, 1.0)] * 30)
    assert found is not None
    # Clopper-Pearson: 30 of 30 is at least 88.4 %.
    assert (found.value, round(found.high - found.low, 3)) == (value, 0.116)
    assert found.low <= value <= found.high
    assert bootstrap.figure([(0.5, 1.0)] * 30) == bootstrap.Figure(0.5, 0.5, 0.5, 30)


def test_an_interval_is_as_wide_as_theory_has_it() -> None:
    found = bootstrap.figure([(float(i % 2), 1.0) for i in range(400)])
    assert found is not None
    half = 1.96 * math.sqrt(0.25 / 400)
    assert found.high - 0.5 == pytest.approx(half, rel=0.2)
    assert 0.5 - found.low == pytest.approx(half, rel=0.2)


def test_a_difference_is_significant_only_when_it_is_one() -> None:
    a = [(float(i % 3 == 0), 1.0) for i in range(90)]
    same = bootstrap.difference(a, a)
    assert same is not None
    assert (same.value, same.p, same.significant) == (0.0, 1.0, False)
    better = bootstrap.difference(a, [(min(1.0, n + (i % 4 == 0)), 1.0) for i, (n, _) in enumerate(a)])
    assert better is not None
    assert better.significant
    assert better.p < 0.05
    worse = bootstrap.difference([(1.0, 1.0)] * 20, [(0.0, 1.0)] * 20)
    assert worse is not None
    assert (worse.value, worse.low, worse.high, worse.significant) == (-1.0, -1.0, -1.0, True)
    with pytest.raises(ValueError, match="length"):
        bootstrap.difference(a, a[1:])


def test_the_share_of_citations_is_weighted_by_how_many_there_are() -> None:
    found = bootstrap.figure([(1.0, 1.0), (0.0, 3.0), (0.0, 0.0)])
    assert found is not None
    assert found.value == 0.25


def test_the_error_of_fusing_is_told_against_the_better_part() -> None:
    found = bootstrap.error_ratio([[0.5, 0.5], [0.9, 0.7]], [0.9, 0.9])
    assert found is not None
    assert found.value == pytest.approx(0.1 / 0.2)
    assert bootstrap.error_ratio([[1.0], [0.0]], [0.5]) is None  # nothing is left to be wrong
    assert bootstrap.quotient([0.0], [1.0]) is None


# sets


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def squad(*paragraphs: tuple[str, list[tuple[str, str]]]) -> dict[str, Any]:
    return {
        "version": "1",
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": f"{p}-{q}",
                                "question": question,
                                "answers": [{"text": answer, "answer_start": context.find(answer)}] if answer else [],
                                "is_impossible": not answer,
                            }
                            for q, (question, answer) in enumerate(qas)
                        ],
                    }
                    for p, (context, qas) in enumerate(paragraphs)
                ],
            }
        ],
    }


def test_a_squad_file_brings_a_document_a_paragraph(tmp_path: Path) -> None:
    content = squad(("One.", [("What?", "One")]), ("Two.", [("Which?", "")]), ("One.", [("What?", "One")]))
    found = read(write(tmp_path / "set.json", content))
    assert found.name == "set"
    assert found.documents == {"00001.txt": "One.", "00002.txt": "Two."}
    assert [(q.document, q.answerable, q.answers) for q in found.questions] == [
        ("00001.txt", True, ("One",)),
        ("00002.txt", False, ()),
        ("00001.txt", True, ("One",)),
    ]
    assert len({q.id for q in found.questions}) == 3
    assert re.fullmatch(r"eval-set-[0-9a-f]{10}", collection_name(found))


def test_blank_questions_of_published_sets_are_passed_over(tmp_path: Path) -> None:
    found = read(write(tmp_path / "set.json", squad(("One.", [("What?", "One"), (" ", "One")]))))
    assert (len(found.questions), found.blank) == (1, 1)
    with pytest.raises(SetError, match="has a word"):
        read(write(tmp_path / "blank.json", squad(("One.", [("", "One")]))))


@pytest.mark.parametrize(
    ("name", "questions", "documents"),
    [("zh_qa/cmrc2018_trial.json", 1000, 256), ("zh_qa/xquad.zh.json", 1190, 240), ("en_qa/xquad.en.json", 1190, 240)],
)
def test_published_sets_are_read_as_they_are(name: str, questions: int, documents: int) -> None:
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found = read(path)
    assert (len(found.questions), len(found.documents)) == (questions, documents)
    lost = [q.answers for q in found.questions if not contains(found.documents[q.document], q.answers)]
    assert len(lost) <= 1, lost  # a gold answer that begins or ends inside a word


def test_the_samples_are_a_set() -> None:
    found = read(ROOT / "samples" / "questions.json")
    first = found.questions[0]
    assert (first.document, first.pages, first.answers) == ("qingshi-storage-handbook.zh.pdf", (1,), ("256 MB",))
    assert not found.documents
    follow_ups = [q for q in found.questions if q.history]
    assert follow_ups
    assert all(q.query == q.standalone != q.text for q in follow_ups)
    assert any(not q.answerable for q in found.questions)


def test_json_lines_are_a_list(tmp_path: Path) -> None:
    lines = [
        {"question": "A?", "document": "a.pdf", "page": [2, 3], "answers": ["x", ""]},
        {"question": "B?", "answerable": False},
        {"question": "C?", "document": "a.pdf", "chat_history": [["A?", "x"]]},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\ufeff" + "\n".join(map(json.dumps, lines)) + "\n\n")
    one, two, three = read(path).questions
    assert (one.pages, one.answers, one.id) == ((2, 3), ("x",), "1")
    assert not two.answerable
    assert three.query is None  # what it is about stands in the history
    assert len(read(write(tmp_path / "one.jsonl", lines[0])).questions) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("no json", "neither JSON nor JSON lines"),
        ('{"question": "a", "document": "b"}\n{oops', "line 2"),
        ("[" * 100_000, "nested too deeply"),
        ("3", "neither SQuAD's 'data'"),
        ("[]", "holds no question"),
        ('{"data": []}', "holds no question"),
        ('{"data": {}}', "data is no list"),
        ('{"data": [3]}', r"data\[0\]\.paragraphs is no list"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\]\.paragraphs\[0\]: 'context' is missing"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": 1}]}]}]}', "'question' is missing"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": ["a"]}]}]}]}', "answers"),
        ('["text"]', "question 1: 'question' is missing"),
        ('[{"question": " ", "document": "d"}]', "question 1: 'question' is blank"),
        ('{"data": [{"paragraphs": [{"context": " ", "qas": []}]}]}', "'context' is blank"),
        ('[{"question": "q"}]', "question 1: 'document' must be"),
        ('[{"question": "q", "document": "d", "page": 0}]', "'page' must be a page number"),
        ('[{"question": "q", "document": "d", "page": true}]', "'page' must be"),
        ('[{"question": "q", "document": "d", "answers": [1]}]', "'answers' is no list"),
        ('[{"question": "q", "document": "d", "answerable": "yes"}]', "neither true nor false"),
        ('[{"question": "q", "document": "d", "chat_history": [["a"]]}]', "'chat_history' must be"),
    ],
)
def test_what_is_no_set_is_told_with_its_place(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(SetError, match=said):
        read(write(tmp_path / "bad.json", content))


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"data": "\xff"}')
    with pytest.raises(SetError, match="not UTF-8"):
        read(tmp_path / "latin.json")
    with pytest.raises(SetError, match="cannot be read"):
        read(tmp_path)


@given(st.integers(1, 40), st.integers(1, 10))
def test_the_parts_of_a_set_are_the_set(questions: int, parts: int) -> None:
    every = QuestionSet("set", "0", tuple(Question(str(n), f"what is {n}?") for n in range(questions)), {"a": "text"})
    if parts > questions:
        with pytest.raises(SetError, match="too few questions"):
            [part(every, number, parts) for number in range(1, parts + 1)]
        return
    found = [part(every, number, parts) for number in range(1, parts + 1)]
    assert tuple(q for one in found for q in one.questions) == every.questions
    assert all(one.documents == every.documents and one.digest == every.digest for one in found)
    assert max(sizes := [len(one.questions) for one in found]) - min(sizes) <= 1


def test_a_larger_sample_holds_the_smaller_one(tmp_path: Path) -> None:
    questions = read(ROOT / "samples" / "questions.json").questions
    assert order(questions, 0) == order(questions, 0)
    assert order(questions, 0) != order(questions, 1)
    assert sorted(q.id for q in order(questions, 0)) == sorted(q.id for q in questions)


# the journal


def test_a_journal_goes_on_and_a_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    identity = {"service": "1", "k": 20}
    with Journal(tmp_path / "run", identity) as journal:
        journal.add(("a", "b"), {"rank": 1})
        journal.add(("a", "c"), {"error": "away"})
    path = tmp_path / "run" / "rows.jsonl"
    path.write_text(path.read_text() + '{"key": ["a", "d"], "ra')
    with Journal(tmp_path / "run", identity) as journal:
        assert (journal.done(("a", "b")), journal.done(("a", "c")), journal.done(("a", "d"))) == (True, False, False)
        journal.add(("a", "d"), {"rank": None})
    with Journal(tmp_path / "run", identity) as journal:
        assert journal["a", "d"] == {"rank": None}
        with pytest.raises(JournalError, match="another run writes"):
            Journal(tmp_path / "run", identity)
    with pytest.raises(JournalError, match="k: 20, now 30"):
        Journal(tmp_path / "run", {"service": "1", "k": 30})
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(tmp_path / "file", identity)


# what it knows of the services


def test_an_evaluation_knows_the_services_by_http_alone() -> None:
    for package in ("services.rag", "services.model"):
        assert importers(package, SERVICES / "evaluation") == set()


# plots


def test_plots_are_well_formed_whatever_they_are_called() -> None:
    drawn = [
        charts.dots([('a "<&>', 0.5, 0.4, 0.6, 0), ("b", 1.0, 1.0, 1.0, 1)]),
        charts.lines({"one <": [(1, 0.2)], "two": [(1, 0.3), (2, 1.0)]}, x_label="k", y_label="y"),
        charts.lines({"flat": [(1, 1.0), (1, 1.0)]}, x_label="k", y_label="y"),
        charts.histogram([0.0, 0.05, 1.0], x_label="F1"),
        charts.histogram([], x_label="F1"),
    ]
    for svg in drawn:
        etree.fromstring(svg)
    bars = etree.fromstring(drawn[3])
    assert [t.text for t in bars.iter("text") if t.text in ("1", "2", "3")] == ["2", "1"]
    assert charts.lines({}, x_label="k", y_label="y") == ""


# the command, against a service

CONTEXTS = squad(
    (
        "A lease is granted by the master. The soft limit of a lease is 90 seconds. The hard limit of a lease is 2 hours.",
        [
            ("What is the soft limit of a lease?", "90 seconds"),
            ("What is the hard limit of a lease?", "2 hours"),
        ],
    ),
    (
        "Every block has 3 replicas by default. Replicas are placed on different racks of the cluster.",
        [
            ("How many replicas does a block have by default?", "3"),
            ('Where are <script>alert("replicas")</script> placed?', "different racks"),
        ],
    ),
    (
        "青石存储的心跳间隔是三秒。数据块的大小是二百五十六兆字节。",
        [
            ("青石存储的心跳间隔是多少？", "三秒"),
            ("青石存储的数据块有多大？", "二百五十六兆字节"),
            ("青石存储由谁发明？", ""),
        ],
    ),
    ("Bread is baked at 230 degrees in an oven of stone.", [("At how many degrees is bread baked?", "230")]),
)
RULES: list[dict[str, Any]] = [
    {"match": "^What is the soft limit", "reply": "The soft limit of a lease is 90 seconds."},
    {"match": "^What is the hard limit", "reply": "The hard limit of a lease is 2 hours."},
    {"match": "^How many replicas", "reply": "Every block has 3 replicas by default."},
    {"match": "心跳间隔", "reply": "青石存储的心跳间隔是三秒。"},
    {"match": "^At how many degrees", "reply": "half an answer", "fail_after": 0},
    {"match": "", "reply": "I don't know."},
]


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("evaluation")
    script = write(folder / "rules.json", RULES)
    with (
        start_service("services.model", {"MODEL_ENGINE": "scripted", "MODEL_SCRIPT": str(script)}) as model,
        start_service("services.rag", rag_env(model.url, folder / "data")) as service,
    ):
        yield service


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def docduet(rag: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``docduet eval``; (exit code, stdout, stderr)."""
    monkeypatch.setenv("DOCDUET_URL", rag.url)
    monkeypatch.delenv("DOCDUET_API_KEY", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main(["eval", *map(str, arguments)])
        except SystemExit as ended:
            code = int(str(ended.code))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def contexts(tmp_path: Path) -> Path:
    return write(tmp_path / "leases.json", CONTEXTS)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


class Balance(HTMLParser):
    """Every tag is closed, in order; what would be fetched is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [str(v) for name, v in attrs if name in ("src", "href", "data", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def parsed(path: Path) -> Balance:
    text = path.read_text()
    page = Balance()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.fetched == []
    assert "url(" not in text
    assert "@import" not in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        etree.fromstring(svg)
    return page


def test_a_set_is_measured_and_its_documents_are_gone_afterwards(
    docduet: Run, rag: Service, contexts: Path, tmp_path: Path
) -> None:
    out_dir = tmp_path / "out"
    code, out, err = docduet(contexts, "--answers", 6, "--unanswerable", 3, "--output", out_dir)
    assert code == 1, err  # one question cannot be answered
    assert "1 question failed" in err
    found = results(out_dir)
    assert found["complete"]
    assert found["service"]["embedder"].startswith("hashing")
    assert found["service"]["model"]
    (of,) = found["sets"]
    assert of["counts"]["documents"] == 4
    assert of["counts"]["searched"] == 6 + 1
    assert of["figures"]["search.lexical.recall@10"]["value"] > 0.8
    assert of["figures"]["search.lexical.recall@10"]["n"] == 7
    rows = {row["question"]: row for row in of["rows"] if row["kind"] == "answerable"}
    soft = rows["What is the soft limit of a lease?"]
    if "answer" in soft:  # which six of seven are asked is the seed's choice
        assert soft["answer"]["contains"]
    asked = [r for r in rows.values() if "f1" in r.get("answer", {})]
    good = [r for r in asked if r["answer"]["contains"]]
    assert good
    for row in good:
        assert row["answer"]["answerable"]
        (citation,) = row["answer"]["citations"]
        assert citation["exact"]
        assert citation["gold"]
        assert citation["document"] == row["document"]
    assert of["figures"]["answer.containment"]["value"] == pytest.approx(len(good) / len(asked))
    assert of["figures"]["answer.exact citations"]["value"] == 1.0
    assert of["figures"]["answer.citation precision"]["value"] == 1.0
    kinds = [row["kind"] for row in of["rows"]]
    assert kinds.count("unanswerable") == 1
    assert kinds.count("left out") == 2
    assert "answer.false refusals" in out
    assert of["milliseconds"]["answer"]["p50"] > 0
    page = parsed(out_dir / "report.html")
    assert "青石存储" in page.words
    assert '<script>alert("replicas")</script>' in page.words  # as text
    assert "script" not in page.tags
    client = RagClient(rag.url)
    assert [c["name"] for c in client.collections()] == ["default"]
    assert client.trash() == []
    client.close()


def test_a_question_that_is_left_out_does_not_see_its_document(
    docduet: Run, rag: Service, contexts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    ask = RagClient.ask

    def spy(self: RagClient, question: str, **fields: Any) -> Iterator[dict[str, Any]]:
        names = {d["id"]: d["filename"].rpartition("/")[2] for d in self.documents(fields["collection"])}
        allowed = fields.get("filter", {}).get("document_id")
        sent.append({"question": question, "names": None if allowed is None else {names[i] for i in allowed}})
        return ask(self, question, **fields)

    monkeypatch.setattr(RagClient, "ask", spy)
    assert docduet(contexts, "--mode", "lexical", "--answers", 0, "--unanswerable", 20, "--output", tmp_path)[0] in (
        0,
        1,
    )
    everything = {f"0000{n}.txt" for n in range(1, 5)}
    own = {q.text: q for q in read(contexts).questions}
    assert len(sent) == 8
    for asked in sent:
        question = own[asked["question"]]
        assert asked["names"] == (everything - {question.document} if question.answerable else None)
    for row in results(tmp_path)["sets"][0]["rows"]:
        if row["kind"] == "left out" and "error" not in row["answer"]:
            assert all(c["document"] != row["document"] for c in row["answer"]["citations"])


def test_an_interrupted_run_goes_on_where_it_was(
    docduet: Run, rag: Service, contexts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = RagClient.ask

    def interrupted(self: RagClient, question: str, **fields: Any) -> Iterator[dict[str, Any]]:
        asked.append(question)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(self, question, **fields)

    monkeypatch.setattr(RagClient, "ask", interrupted)
    options = (contexts, "--answers", 5, "--unanswerable", 0, "--output", tmp_path)
    code, _, err = docduet(*options)
    assert code == 130
    assert f"--output {tmp_path} goes on" in err.replace("\n", " ")
    first = results(tmp_path)
    assert not first["complete"]
    assert "was interrupted" in parsed(tmp_path / "report.html").words
    before = [r["key"] for r in first["sets"][0]["rows"] if "answer" in r]
    assert len(before) == 2
    searches: list[str] = []
    search = RagClient.search
    monkeypatch.setattr(
        RagClient, "search", lambda self, query, **fields: searches.append(query) or search(self, query, **fields)
    )
    code, out, _ = docduet(*options)
    assert code in (0, 1)
    assert "of an earlier run" in out
    assert searches == []  # all were there
    failed = [r for r in first["sets"][0]["rows"] if "error" in r.get("answer", {})]
    assert len(asked) == 3 + 3 + len(failed)
    assert sum("answer" in r for r in results(tmp_path)["sets"][0]["rows"]) == 5


def test_kept_documents_are_used_again(docduet: Run, rag: Service, contexts: Path, tmp_path: Path) -> None:
    options = ("--answers", 0, "--unanswerable", 0, "--mode", "lexical")
    assert docduet(contexts, *options, "--keep", "--output", tmp_path / "a")[0] == 0
    client = RagClient(rag.url)
    name = collection_name(read(contexts))
    ids = {d["id"] for d in client.documents(name)}
    assert len(ids) == 4
    assert docduet(contexts, *options, "--output", tmp_path / "b")[0] == 0
    assert {d["id"] for d in client.documents(name)} == ids  # it was there before: it stays
    # Two runs of the same are the same.
    code, out, _ = docduet("--compare", tmp_path / "a" / "results.json", tmp_path / "b")
    assert code == 0
    assert "+0.000" in out
    assert " *" not in out.rpartition("* chance")[0]
    assert "questions" in parsed(tmp_path / "b" / "comparison.html").words
    # A run that was worse is told as worse.
    worse = results(tmp_path / "b")
    for row in worse["sets"][0]["rows"]:
        row["search"]["lexical"]["rank"] = None
    write(tmp_path / "worse.json", worse)
    code, out, _ = docduet("--compare", tmp_path / "a", tmp_path / "worse.json", "--output", tmp_path / "c")
    assert code == 0
    recall_line = next(line for line in out.splitlines() if "recall@10" in line)
    assert "-1.000" in recall_line
    assert " *" in recall_line
    assert "worse" in parsed(tmp_path / "c" / "comparison.html").words
    client.delete_collection(name)


def test_own_questions_are_asked_of_documents_that_are_there(docduet: Run, rag: Service, tmp_path: Path) -> None:
    client = RagClient(rag.url)
    client.create_collection("own")
    for name, text in (("a/lease.txt", "The lease of a block is 40 minutes."), ("b/other.txt", "Ovens bake bread.")):
        path = write(tmp_path / "upload.txt", text)
        list(client.follow(client.upload(path, "own", name=name)["job_id"]))
    entries = [
        {
            "question": "How long is the lease of a block?",
            "document": "lease.txt",
            "page": 1,
            "answers": ["40 minutes"],
        },
        {"question": "And of a block?", "document": "a/lease.txt", "chat_history": [["x", "y"]]},
        {"question": "Who?", "document": "nowhere.txt"},
    ]
    path = write(tmp_path / "own.json", entries)
    options = ("--answers", 0, "--unanswerable", 0, "--collection", "own", "--output", tmp_path / "out")
    code, _, err = docduet(path, *options)
    assert code == 0
    assert "1 document of the sets are missing" in err
    (of,) = results(tmp_path / "out")["sets"]
    assert of["documents missing"] == {"nowhere.txt": "it is not there"}
    assert of["counts"]["searched"] == 1  # the follow-up alone says too little to search for
    assert of["figures"]["search.hybrid.recall@1"]["value"] == 1.0
    assert {c["name"] for c in client.collections()} >= {"own"}  # a collection of the user's is never removed
    client.delete_collection("own")


def test_what_makes_no_sense_is_told(docduet: Run, contexts: Path, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        code, _, err = docduet(*arguments)
        assert "Traceback" not in err
        assert code == 2, err
        return " ".join(err.split())

    assert "name a question set" in said()
    assert "neither JSON" in said(write(tmp_path / "bad.json", "no"))
    assert "same name" in said(contexts, contexts)
    assert "some of hybrid, dense, lexical" in said(contexts, "--mode", "best")
    assert "not a number from 1 to 100" in said(contexts, "--k", 0)
    own = write(tmp_path / "own.json", [{"question": "q", "document": "gone.pdf"}])
    assert "gone.pdf: it is not there" in said(own, "--output", tmp_path / "x")
    assert "no result of 'docduet eval'" in said("--compare", own, own)
    assert "cannot be read" in said("--compare", tmp_path / "a", tmp_path / "b")
    old = write(tmp_path / "old.json", {"kind": "docduet evaluation", "schema": 0, "sets": []})
    assert "another version" in said("--compare", old, old)
    (tmp_path / "taken").write_text("")
    assert "cannot be written" in said(contexts, "--output", tmp_path / "taken")


def test_what_the_service_cannot_do_is_told(docduet: Run, contexts: Path, tmp_path: Path) -> None:
    own = write(tmp_path / "own.json", [{"question": "q", "document": "a.pdf"}])
    code, _, err = docduet(own, "--collection", "nothing", "--output", tmp_path / "o")
    assert code == 1
    assert "there is no collection 'nothing'" in err
    code, _, err = docduet(contexts, "--url", "http://127.0.0.1:9", "--output", tmp_path / "p")
    assert code == 1
    assert "docduet up" in err


def test_questions_are_not_begun_while_the_model_is_away(
    docduet: Run, contexts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RagClient, "ready", lambda self: (False, "the model is loading"))
    code, _, err = docduet(contexts, "--output", tmp_path)
    assert code == 1
    assert "the model is loading" in err
    assert "--answers 0" in err


def test_a_service_that_fails_again_and_again_ends_the_run_with_what_there_is(
    docduet: Run, contexts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: RagClient, question: str, **fields: Any) -> Iterator[dict[str, Any]]:
        raise ServiceError("internal error")

    monkeypatch.setattr(RagClient, "ask", broken)
    code, _, err = docduet(contexts, "--answers", 5, "--output", tmp_path)
    assert code == 1
    assert "3 questions in a row failed" in err
    found = results(tmp_path)
    assert not found["complete"]
    assert found["sets"][0]["counts"]["errors"] == 2
    assert "internal error" in parsed(tmp_path / "report.html").words
    assert report.report(found)
