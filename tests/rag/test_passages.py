"""Passages: what is made of the chunks that a search found. The last part over HTTP."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.documents.chunking import chunk, estimate_tokens, sentences
from services.rag.passages import Passage, Place, joined, stable_order
from services.rag.terms import fold
from tests.rag.conftest import upload, wait

# What makes cutting hard: ends of sentences of both scripts, decimal points, blanks, lines, and letters to tell apart.
PIECES = st.sampled_from(
    ["灯塔", "每周", "清洁", "lamp ", "lens ", "3.5", " 7", "。", "！", ". ", "\n", "  ", "，", "e.g. "]
)
# Characters that are not taken for each other.
DIFFERENT = [c for c in map(chr, range(0x4E00, 0x6000)) if fold(c) == c]
PAGE = st.lists(PIECES, min_size=1, max_size=120).map("".join)


def hit(page: str, start: int, end: int, *, name: str = "a", number: int = 1, score: float = 0.5) -> Passage:
    return Passage(name, f"{name}.txt", number, start, page[start:end], score)


def whole(page: str, name: str, sequence: int = 0, number: int = 1) -> Passage:
    """A page that is one chunk."""
    return Passage(name, f"{name}.txt", number, 0, page, 0.5, sequence=sequence)


def find(hits: Sequence[Passage], pages: dict[tuple[str, int], str], k: int, tokens: int = 400) -> list[Passage]:
    def around(numbers: Sequence[int]) -> list[tuple[int, str]]:
        out = []
        for h in (hits[n] for n in numbers):
            start = max(0, h.start - 5 * tokens)
            out.append((start, pages[h.document_id, h.page][start : h.end + 5 * tokens]))
        return out

    return joined(hits, k, around, tokens=tokens)


def read(*pages: str, k: int = 10) -> list[Passage]:
    """Pages of documents a, b, …, each newer than the one before, all found, in this order."""
    names = [chr(ord("a") + n) for n in range(len(pages))]
    found = [whole(page, name, n) for n, (page, name) in enumerate(zip(pages, names, strict=True))]
    return find(found, {(name, 1): page for name, page in zip(names, pages, strict=True)}, k)


Search = tuple[list[Passage], dict[tuple[str, int], str], int]


@st.composite
def searches(draw: st.DrawFn, repeats: bool = True) -> Search:
    """Chunks of some pages as a search ranks them, the pages, and a limit of tokens."""
    limit = draw(st.integers(4, 40))
    pages = {(name, number): draw(PAGE) for name in ("a", "b") for number in (1, 2)}
    if not repeats:
        characters = iter(DIFFERENT)
        pages = {at: re.sub(r"\w", lambda _: next(characters), page) for at, page in pages.items()}
    hits = [
        hit(page, span.start, span.end, name=name, number=number)
        for (name, number), page in pages.items()
        for span in chunk(page, limit=max(2, limit // 2), overlap=limit // 8)
    ]
    return draw(st.permutations(hits)), pages, limit


@given(searches(), st.integers(1, 12))
def test_passages_are_slices_of_pages_and_no_two_overlap(search: Search, k: int) -> None:
    hits, pages, limit = search
    found = find(hits, pages, k, limit)
    assert len(found) == k or (len(found) < k and found == find(hits, pages, 1000, limit))
    covered: set[tuple[str, int, int]] = set()
    for p in found:
        assert pages[p.document_id, p.page][p.start : p.end] == p.text == p.text.strip() != ""
        assert estimate_tokens(p.text) <= max(limit, *(estimate_tokens(h.text) for h in hits))
        places = {(p.document_id, p.page, at) for at in range(p.start, p.end)}
        assert not places & covered
        covered |= places


@given(searches(repeats=False), st.integers(1, 12))
def test_what_was_found_is_there_best_first(search: Search, k: int) -> None:
    hits, pages, limit = search
    assert all(hits[0].text in p.text for p in find(hits, pages, k, limit)[:1])
    found = find(hits, pages, 1000, limit)
    there = {(p.document_id, p.page, at) for p in found for at in range(p.start, p.end)}
    for h in hits:
        assert {(h.document_id, h.page, h.start + n) for n, c in enumerate(h.text) if not c.isspace()} <= there
    ranks = [next(rank for rank, h in enumerate(hits) if _overlap(h, p)) for p in found]
    assert ranks == sorted(ranks)
    assert not any(p.also for p in found)


def _overlap(one: Passage, other: Passage) -> bool:
    same_page = (one.document_id, one.page) == (other.document_id, other.page)
    return same_page and one.start < other.end and other.start < one.end


@given(PAGE, st.integers(20, 60))
def test_a_passage_grows_by_whole_sentences(page: str, limit: int) -> None:
    spans = list(sentences(page))
    for span in spans:
        (found,) = find([hit(page, span.start, span.end)], {("a", 1): page}, 1, limit)
        assert found.start in {s.start for s in spans}
        assert found.end in {s.end for s in spans}
        # Nothing that would have fitted was left: neither neighbour does.
        for s in spans:
            more = page[min(found.start, s.start) : max(found.end, s.end)]
            if s.start >= found.end or s.end <= found.start:
                assert estimate_tokens(more) > limit


def test_the_sentence_that_follows_is_taken_first() -> None:
    page = "Before it. The lamp is lit. After it. And more."
    (found,) = find([hit(page, 11, 27)], {("a", 1): page}, 1, tokens=7)
    assert found.text == "The lamp is lit. After it."


@pytest.mark.parametrize(
    "page",
    [
        "灯塔的灯每周清洁两次。透镜每月清洁一次。警笛每天试一次。",
        "The lamp is cleaned twice a week. The lens every month. The siren is tried every day.",
        "灯塔 (lighthouse) 每周清洁。The lens 每月一次. 警笛 siren 每天试一次。",
    ],
)
def test_neighbours_are_one_passage(page: str) -> None:
    hits = [hit(page, s.start, s.end, score=0.3 + n / 10) for n, s in enumerate(sentences(page))]
    (found,) = find(hits, {("a", 1): page}, 4)
    assert (found.text, found.start, found.score) == (page, 0, hits[-1].score)


def test_what_is_joined_makes_room_for_more() -> None:
    page, other = "灯塔的灯每周清洁两次。透镜每月清洁一次。", "警笛每天试一次。"
    one, two = sentences(page)
    hits = [hit(page, one.start, one.end), hit(page, two.start, two.end), whole(other, "b")]
    found = find(hits, {("a", 1): page, ("b", 1): other}, 2)
    assert [p.text for p in found] == [page, other]


def test_pages_and_documents_are_never_joined() -> None:
    pages = {("a", 1): "The lamp is lit.", ("a", 2): "The lens is clean.", ("b", 1): "The siren is loud."}
    hits = [hit(text, 0, len(text), name=name, number=number) for (name, number), text in pages.items()]
    assert [p.text for p in find(hits, pages, 4)] == list(pages.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("灯塔的灯，每周清洁两次！", "灯塔的灯,每周清洁两次!"),
        ("颱風來臨之前,值班員必須檢查發電機。", "台风来临之前,值班员必须检查发电机。"),
        ("The Lamp is cleaned\ntwice a week.", "the lamp is cleaned twice a week"),
        ("ＡＢＣ１２３ 每年检查。", "abc123每年检查。"),
        ("The limit is 1.5 hours — no more.", "The limit is 1.5 hours, no more."),
        ("- The lamp is lit.\n- The lens is clean.", "The lamp is lit. The lens is clean."),
    ],
    ids=["punctuation", "traditional", "case and lines", "width", "dash", "list"],
)
def test_what_says_the_same_is_shown_once_and_named(one: str, other: str) -> None:
    (found,) = read(one, other)
    assert found.text == other  # the newer
    assert found.also == (Place("a", "a.txt", 1),)
    (found,) = read(other, one, other)
    assert found.also == (Place("b", "b.txt", 1), Place("a", "a.txt", 1))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("灯塔的灯每周清洁两次,最多 90 秒。", "灯塔的灯每周清洁两次,最多 60 秒。"),
        ("The temperature is -5 degrees.", "The temperature is 5 degrees."),
        ("The dose is 1.5 mg.", "The dose is 15 mg."),
        ("The dose is 1 5 mg.", "The dose is 15 mg."),
        ("See item 1. 5 hours later it ends.", "See item 1.5 hours later it ends."),
        ("1 _ 5", "15"),
        ("The share is 5%.", "The share is 5."),
        ("The price is $5.", "The price is 5."),
        ("It holds that a < b.", "It holds that a > b."),
        ("C++ is used here.", "C is used here."),
        ("The limit is 5", "The limit is 50 seconds, and no more."),
        ("The limit is 5.", "The limit is 5.5 hours."),
        ("0 seconds is the limit.", "10 seconds is the limit."),
        ("Allowed in the garden: dogs.", "Not allowed in the garden: dogs."),
        ("The lamp is lit", "The lamp is lit by nobody."),
        ("灯塔可以参观", "灯塔可以参观吗?"),
        ("不得超过一小时。", "得超过一小时。"),
        ("The lamp of Hanko is lit.", "The lamp of Utö is lit."),
        ("3\n5 apples", "35 apples"),
    ],
)
def test_what_differs_in_a_number_a_sign_or_a_word_is_shown_twice(one: str, other: str) -> None:
    assert [p.text for p in read(one, other)] == [one, other]
    assert [p.text for p in read(other, one)] == [other, one]


def test_two_editions_that_part_later_are_both_shown() -> None:
    common = "租约由主节点授予。客户端在写入时续约。"
    old, new = common + "软限制为 90 秒。", common + "软限制为 60 秒。"
    end = len(common)  # the same words are found in both
    hits = [Passage(n, n, 1, 0, common, 0.5, sequence=s) for s, n in enumerate("ab")]
    found = find(hits, {("a", 1): old, ("b", 1): new}, 4)
    assert [p.text for p in found] == [old, new]
    assert found[0].text[:end] == found[1].text[:end]


def test_a_part_of_another_is_shown_with_it() -> None:
    long = "灯塔建于一八七零年。灯每周清洁两次。透镜每月清洁一次。"
    (found,) = read(long, "灯每周清洁两次。")
    assert (found.text, [p.document_id for p in found.also]) == (long, ["b"])


def test_what_repeats_another_makes_room_for_more() -> None:
    same, other = "The lamp is lit.", "The lens is clean."
    assert [p.text for p in read(same, same, same, other, k=2)] == [same, other]


@given(st.lists(PAGE.filter(lambda page: any(c.isalnum() for c in page)), min_size=1, max_size=4), st.data())
def test_a_copy_in_another_width_and_spacing_adds_no_passage(pages: list[str], data: st.DataObject) -> None:
    pages = [page.strip() for page in pages]
    page = pages[data.draw(st.integers(0, len(pages) - 1))]
    copy = page.translate({ord(c): ord(c) + 0xFEE0 for c in "lampensg"})
    copy = re.sub(r"(?<=[^\W\d])，(?=[^\W\d])", " ， ", copy)
    assert len(read(*pages, copy)) == len(read(*pages))


def test_marks_that_a_text_holds_itself_do_no_harm() -> None:
    page = "\ufdd0The lamp\ufdd1 is\ufdd1 lit.\ufdd0"
    assert [p.text for p in read(page, page)] == [page]


def test_no_hits_make_no_passages() -> None:
    assert read() == []


# -- the order in which the model reads


@given(searches())
def test_a_stable_order_is_of_the_set(search: Search) -> None:
    hits, pages, _ = search
    ordered = stable_order(hits)
    assert ordered == stable_order(reversed(hits))
    assert all(pages[p.document_id, p.page][p.start : p.end] == p.text for p in ordered)
    for one, other in itertools.pairwise(ordered):
        if (one.document_id, one.page) == (other.document_id, other.page):
            assert one.end < other.start


# -- over HTTP

LAMPS = "\n\n".join(
    f"The lamp of {place} is cleaned every {n} days. Its lens is polished by the keeper. {'It is an old lamp. ' * 12}"
    for n, place in enumerate(("Skagen", "Kullen", "Hanko", "Utö", "Lyngvig", "Anholt", "Kronborg"), 3)
)


def put(client: httpx.Client, path: Path, text: str, collection: str) -> str:
    path.parent.mkdir()
    path.write_text(text)
    client.post("/collections", json={"name": collection})
    job = upload(client, path, collection=collection)
    assert wait(client, job["job_id"])["state"] == "indexed"
    return str(job["document_id"])


def test_a_search_finds_exact_slices_of_pages_of_its_own_collection(client: httpx.Client, tmp_path: Path) -> None:
    north = {put(client, tmp_path / "1" / "lamps.txt", LAMPS, "north")}
    south = {
        put(client, tmp_path / "2" / "lamps.txt", LAMPS, "south"),
        put(client, tmp_path / "3" / "other.txt", LAMPS.replace("4 days", "9 days"), "south"),
        put(client, tmp_path / "4" / "copy.txt", LAMPS.upper().replace(". ", "!  "), "south"),
    }
    for collection, documents in (("north", north), ("south", south)):
        body = {"query": "How often is the lamp of Kullen cleaned?", "k": 20, "collection": collection}
        passages = client.post("/search", json=body).json()["passages"]
        assert len(passages) > 1
        for p in passages:
            page = client.get(f"/documents/{p['document_id']}/pages/{p['page']}").json()["text"]
            assert page[p["start"] : p["start"] + len(p["text"])] == p["text"]
            assert estimate_tokens(p["text"]) <= 400
        places = sorted((p["document_id"], p["page"], p["start"], p["start"] + len(p["text"])) for p in passages)
        for one, other in itertools.pairwise(places):
            assert one[:2] != other[:2] or one[3] <= other[2]
        also = {a["document_id"] for p in passages for a in p["also"]}
        assert {p["document_id"] for p in passages} | also == documents
        assert bool(also) == (collection == "south")
        text = " ".join(p["text"].lower() for p in passages)
        told = {days for days in ("4 days", "9 days") if f"kullen is cleaned every {days}" in text}
        assert told == ({"4 days"} if collection == "north" else {"4 days", "9 days"})
