"""Citations are found and checked by code, however the stream is split."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from services.rag.citations import MarkerFilter, Passage, SentenceSplitter, numbers, support


def passage(text: str, *, page: int = 1, start: int = 0, score: float = 0.9) -> Passage:
    return Passage("doc", "手册.pdf", page, start, text, score)


LEASE = passage(
    "租约由主控节点管理。租约的软限制是 90 秒，硬限制是 2 小时。超过硬限制后文件被强制关闭。", page=3, start=100
)
REPLICA = passage("默认的副本数是 3，最少为 2。副本分布在不同的机架上。", page=5)


def cuts(text: str, at: list[int]) -> list[str]:
    points = sorted({min(p, len(text)) for p in at} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(points)]


SPLITS = st.lists(st.integers(0, 80), max_size=12)


@given(SPLITS)
def test_markers_leave_the_stream_wherever_they_are_split(at: list[int]) -> None:
    text = "硬限制是 2 小时[1]。软限制[1, 2]是 90 秒【3】，见列表 [a] 和数组 x[0]… [ 12 ] 完"
    markers = MarkerFilter()
    out = "".join(markers.feed(part) for part in cuts(text, at)) + markers.flush()
    assert out == "硬限制是 2 小时。软限制是 90 秒，见列表 [a] 和数组 x… 完"


@given(st.text(alphabet="[]【】 ,12a。", max_size=40), SPLITS)
def test_the_marker_filter_does_not_depend_on_the_split(text: str, at: list[int]) -> None:
    whole, split = MarkerFilter(), MarkerFilter()
    one = whole.feed(text) + whole.flush()
    many = "".join(split.feed(part) for part in cuts(text, at)) + split.flush()
    # What one pass takes out may bring the halves of another marker together; nothing else may differ.
    assert one == many or "[" in many or "【" in many


@given(st.text(alphabet="租约是。！ .a1\n”", max_size=60), SPLITS)
def test_the_splitter_loses_nothing_and_finds_the_same_sentences(text: str, at: list[int]) -> None:
    def run(parts: list[str]) -> tuple[str, str]:
        splitter, shown, sentences = SentenceSplitter(), "", ""
        for part in parts:
            for piece, sentence in splitter.feed(part):
                shown += piece
                sentences += sentence or ""
        return shown, sentences + (splitter.flush() or "")

    shown, sentences = run(cuts(text, at))
    assert shown == text
    assert sentences.strip() == text.strip()


def test_a_supported_sentence_gets_the_exact_span() -> None:
    found = support("租约的硬限制是2小时。", [REPLICA, LEASE], "租约的硬限制是多久？")
    assert found is not None
    assert found.passage is LEASE
    assert found.quote == "租约的软限制是 90 秒，硬限制是 2 小时。"
    assert LEASE.text[found.start - LEASE.start :].startswith(found.quote)


def test_a_wrong_number_is_not_supported() -> None:
    assert support("租约的硬限制是 3 小时。", [LEASE, REPLICA], "租约的硬限制是多久？") is None


def test_a_number_counts_with_its_unit() -> None:
    text = "The soft limit of lease 1 is 90 seconds. The soft limit of lease 2 is 90 seconds."
    assert support("The hard limit of a lease is 2 hours.", [passage(text)], "What is the hard limit?") is None
    assert support("The soft limit of lease 2 is 90 seconds.", [passage(text)]) is not None
    assert support("硬限制是 2 天。", [LEASE], "租约的硬限制是多久？") is None
    assert support("The battery lasts 26 months.", [passage("It has a 26-month battery, which lasts 26 months.")])


def test_an_invented_sentence_is_not_supported() -> None:
    assert support("张伟是这家公司的首席执行官。", [LEASE, REPLICA]) is None
    assert support("The warranty covers water damage.", [LEASE]) is None


def test_a_repeated_question_is_no_answer() -> None:
    assert support("租约的硬限制是多久？", [LEASE], "租约的硬限制是多久？") is None


def test_a_sentence_without_content_is_not_supported() -> None:
    assert support("。", [LEASE]) is None
    assert support("", [LEASE]) is None


def test_numbers_are_compared_as_numbers() -> None:
    assert numbers("共 1,024 个，约 2.50%") == {"1024", "2.50"}
    assert numbers("硬限制是两小时") == {"2"}


@given(st.text(max_size=200), st.text(max_size=200))
def test_support_never_fails_and_quotes_exactly(sentence: str, text: str) -> None:
    found = support(sentence, [passage(text)])
    assert found is None or text[found.start : found.start + len(found.quote)] == found.quote
