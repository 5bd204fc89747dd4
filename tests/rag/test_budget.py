import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.budget import (
    MIN_ANSWER_TOKENS,
    MIN_PASSAGE_TOKENS,
    Budget,
    Priced,
    excerpt,
    fill,
    recent,
)
from services.rag.documents.chunking import estimate_tokens
from services.rag.errors import InvalidRequest, ModelRejected
from services.rag.passages import Passage
from services.rag.prompts import Message, answer_messages

QUESTION = "What is the hard limit of a lease?"
SENTENCES = [
    "A lease is granted by the master to a client.",
    "Blocks are copied to three racks of the cluster.",
    "The hard limit of a lease is 2 hours.",
    "Nobody knows the colour of the racks.",
]


class Model:
    """A model service that counts a token a word, and how often it was asked."""

    def __init__(self, context: int | None) -> None:
        self.context = context
        self.texts: list[str] = []
        self.prompts = 0

    async def model_name(self) -> str:
        return "m"

    async def count_text(self, text: str) -> int:
        self.texts.append(text)
        return len(text.split())

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        self.prompts += 1
        return sum(len(text.split()) + 4 for _, text in messages)


def passage(n: int, text: str, score: float = 0.9) -> Passage:
    return Passage(f"d{n}", f"{n}.txt", 1, 10 * n, text, score)


def fit(
    model: Model, found: Sequence[Passage], *, tokens: int = 1000, max_tokens: int = 512, **more: Any
) -> dict[str, Any]:
    state = {"standalone": QUESTION, "history": [], "options": {"max_tokens": max_tokens, "k": 4}, **more}
    return asyncio.run(Budget(model, tokens).fit(state, found))  # type: ignore[arg-type]


def used(fitted: dict[str, Any]) -> int:
    messages = answer_messages(QUESTION, fitted["passages"], fitted["history"])
    return asyncio.run(Model(None).count_tokens(messages))


def test_all_that_fits_is_read_in_a_stable_order() -> None:
    found = [passage(n, " ".join(SENTENCES)) for n in (3, 1, 2)]
    fitted = fit(Model(8192), found)
    assert [p.document_id for p in fitted["passages"]] == ["d1", "d2", "d3"]
    assert fitted["options"]["max_tokens"] == 512
    assert fit(Model(8192), found[::-1])["passages"] == fitted["passages"]


def test_the_best_are_whole_and_the_last_is_cut_to_what_bears_on_the_question() -> None:
    long = " ".join(
        [*["Nobody reads this sentence about the weather."] * 30, *SENTENCES, *["It rains on the racks today."] * 30]
    )
    best = passage(2, " ".join(SENTENCES))
    fitted = fit(Model(8192), [best, passage(1, long), passage(3, "Too late.")], tokens=140)
    cut, whole = fitted["passages"]
    assert whole == best
    assert cut.text in long
    assert long[cut.start - 10 : cut.end - 10] == cut.text
    assert "hard limit of a lease is 2 hours" in cut.text
    assert len(cut.text) < len(long) / 2


def test_a_passage_is_counted_once() -> None:
    model = Model(8192)
    budget = Budget(model, 1000)  # type: ignore[arg-type]
    state = {"standalone": QUESTION, "history": [], "options": {"max_tokens": 64}}
    found = [passage(n, SENTENCES[n]) for n in range(4)]
    for _ in range(3):
        asyncio.run(budget.fit(state, found))
    assert len(model.texts) == 4
    assert model.prompts == 3  # the question and the rules


@pytest.mark.parametrize("context", [300, 400, 600, 1000, 4096, None])
@pytest.mark.parametrize("max_tokens", [16, 512, 4096])
@pytest.mark.parametrize("turns", [0, 50])
def test_prompt_and_answer_never_exceed_the_context(context: int | None, max_tokens: int, turns: int) -> None:
    found = [passage(n, " ".join(SENTENCES * 12)) for n in range(6)]
    history = [("How long is the soft limit? " * 20, "It is 90 seconds. " * 40)] * turns
    fitted = fit(Model(context), found, tokens=3000, max_tokens=max_tokens, history=history)
    assert fitted["passages"]
    assert used(fitted) + fitted["options"]["max_tokens"] <= (context or 4096)
    assert fitted["options"]["max_tokens"] >= min(max_tokens, MIN_ANSWER_TOKENS // 2)


def test_a_context_that_is_too_small_says_what_to_do() -> None:
    with pytest.raises(ModelRejected, match="MODEL_CONTEXT"):
        fit(Model(200), [passage(1, SENTENCES[0])])


def test_a_question_that_fills_the_context_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as refused:
        fit(Model(4096), [passage(1, SENTENCES[0])], standalone="lease " * 4000)
    assert refused.value.param == "question"


@pytest.mark.parametrize("max_tokens", [64, 1024, 4096])
def test_there_is_room_for_the_longest_of_several_prompts(max_tokens: int) -> None:
    found = [passage(n, " ".join(SENTENCES * 12)) for n in range(6)]
    asked = ["How long?", f"The user says: {QUESTION * 20} Answer only this: And why? " + "so " * 300, "Warum 租约？"]
    state = {"standalone": QUESTION, "history": [], "options": {"max_tokens": max_tokens}}
    model = Model(1600)
    fitted = asyncio.run(Budget(model, 1000).fit(state, found, asked))  # type: ignore[arg-type]
    for question in (QUESTION, *asked):
        messages = answer_messages(question, fitted["passages"], fitted["history"])
        assert asyncio.run(model.count_tokens(messages)) + fitted["options"]["max_tokens"] <= 1600


def test_nothing_found_costs_nothing() -> None:
    model = Model(8192)
    assert fit(model, []) == {"passages": []}
    assert (model.texts, model.prompts) == ([], 0)


TEXTS = st.text(alphabet="ab 租约。.\n3", max_size=80)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=8), st.integers(1, 200))
def test_history_keeps_its_newest_turns_within_the_share(history: list[tuple[str, str]], tokens: int) -> None:
    kept = recent(history, tokens)
    assert sum(estimate_tokens(h) + estimate_tokens(a) for h, a in kept) <= tokens + 2
    assert len(kept) <= len(history)
    # All but the oldest that is kept are whole, and they are the last ones.
    assert kept[1:] == history[len(history) - len(kept) + 1 :] if len(kept) > 1 else True
    if history and tokens > 100:
        assert kept


@given(st.lists(st.integers(1, 300), max_size=8), st.integers(0, 600))
def test_filling_takes_the_best_that_fit(costs: list[int], room: int) -> None:
    found = [Priced(passage(n, "x"), cost) for n, cost in enumerate(costs)]
    chosen, rest = fill(found, room)
    assert chosen == found[: len(chosen)]
    assert sum(p.tokens for p in chosen) <= room
    if rest is not None:
        assert rest == found[len(chosen)]
        assert room - sum(p.tokens for p in chosen) >= MIN_PASSAGE_TOKENS


@given(
    st.lists(st.sampled_from([*SENTENCES, "租约的硬限制是两小时。", "3.14 is a number.\n"]), min_size=1, max_size=40),
    st.integers(50, 400),
)
def test_an_excerpt_is_an_exact_slice(pieces: list[str], tokens: int) -> None:
    text = " ".join(pieces)
    whole = passage(1, text)
    cut = excerpt(whole, QUESTION, tokens, estimate_tokens(text) + 16)
    if cut is not None:
        assert text[cut.start - whole.start : cut.end - whole.start] == cut.text
        assert estimate_tokens(cut.text) <= tokens
