"""The transformers engine on tiny checkpoints with random weights, beside transformers' own `generate`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from services.model.engine.base import (
    Constraint,
    Event,
    Finish,
    GenerationRequest,
    JsonSchema,
    Progress,
    Sampling,
    Token,
    TokenLogprob,
)
from services.model.engine.transformers.attention import BLOCK_SIZE, KVCache, Row, Step, install, paged_attention
from services.model.engine.transformers.cache import BlockPool, OutOfBlocks
from services.model.engine.transformers.checkpoint import Loaded
from services.model.engine.transformers.engine import TransformersEngine, TransformersOptions
from services.model.engine.transformers.loading import load
from services.model.engine.transformers.sampler import choose
from services.model.errors import CheckpointError, EngineFailed, InvalidRequest, OutOfMemory
from tests.support.tiny_qwen import make_checkpoint

GREEDY = Sampling(temperature=0)
LONGEST = {"ignore_eos": True}


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = {"vocab_size": 384} if request.param == "qwen3" else {}  # more rows than tokens, as the real ones have
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param, **more)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("qwen2"), "qwen2")


@contextlib.contextmanager
def running(
    folder: Path, prepare: Callable[[Loaded], None] = lambda loaded: None, **options: Any
) -> Iterator[TransformersEngine]:
    def load_prepared(where: Path, **how: Any) -> Loaded:
        loaded = load(where, **how)
        prepare(loaded)
        return loaded

    options = {"batch": 32, "parallel": 8, "context": 512, "threads": 1, "device": "cpu", **options}
    engine = TransformersEngine(lambda report: folder, TransformersOptions(**options), load=load_prepared)
    try:
        engine.load(lambda doing: None)
        yield engine
    finally:
        engine.close()


@dataclass
class Answer:
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def data(self) -> list[bytes]:
        return [token.drawn.data for token in self.tokens]


async def answer(
    engine: TransformersEngine, prompt: list[int], max_tokens: int = 12, sampling: Sampling = GREEDY, **request: Any
) -> Answer:
    got = Answer()
    request = {"logprobs": 0, **request}
    async for event in engine.generate(GenerationRequest(prompt, max_tokens, sampling, **request)):
        assert got.finish is None
        if isinstance(event, Progress):
            assert not got.tokens
            got.progress.append(event)
        elif isinstance(event, Token):
            got.text += event.text
            got.tokens += event.logprobs
            assert event.count == len(got.tokens)
        else:
            got.finish = event
    assert got.progress
    assert got.finish is not None
    return got


def prompt(length: int, seed: int = 0) -> list[int]:
    source = random.Random(seed * 1000 + length)  # noqa: S311
    return [source.randrange(300) for _ in range(length)]


class Reference:
    """What transformers itself computes for a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.vocabulary = load(folder, device="cpu", dtype="float32", report=lambda doing: None).vocabulary

    def generate(self, ids: list[int], max_tokens: int = 12, **how: Any) -> list[bytes]:
        inputs = torch.tensor([ids])
        made = self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
            **how,
        )
        eos = self.model.generation_config.eos_token_id
        return [self.vocabulary.token_bytes(token) for token in made[0, len(ids) :].tolist() if token != eos]

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits.log_softmax(-1)


# --- the same as transformers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [32, 50, 512])
async def test_answers_decoded_together_are_those_of_generate(folder: Path, batch: int) -> None:
    reference = Reference(folder)
    prompts = [prompt(length) for length in (1, 5, 16, 17, 40, 100, 33)]
    with running(folder, batch=batch) as engine:
        together = await asyncio.gather(*(answer(engine, ids) for ids in prompts))
        alone = [await answer(engine, ids) for ids in prompts]  # the prompts are in the cache by now
    for ids, one, other in zip(prompts, together, alone, strict=True):
        assert one.data == other.data == reference.generate(ids)


async def test_answers_do_not_depend_on_the_order_of_arrival(qwen2: Path) -> None:
    reference = Reference(qwen2)
    prompts = [prompt(length, seed=4) for length in (70, 3, 20)]
    expected = [reference.generate(ids, 20) for ids in prompts]
    with running(qwen2) as engine:
        for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
            started: dict[int, AsyncGenerator[Event, None]] = {}
            made: dict[int, list[bytes]] = {number: [] for number in order}
            for number in order:  # each joins when the one before has its first token
                events = started[number] = engine.generate(GenerationRequest(prompts[number], 20, GREEDY, logprobs=0))
                async for event in events:
                    if isinstance(event, Token):
                        made[number] += [token.drawn.data for token in event.logprobs]
                        break
            for number, events in started.items():
                async for event in events:
                    if isinstance(event, Token):
                        made[number] += [token.drawn.data for token in event.logprobs]
            assert [made[number] for number in range(3)] == expected


async def test_logprobs_are_those_of_the_model_before_everything(qwen2: Path) -> None:
    ids = prompt(20)
    sampling = Sampling(temperature=0.5, top_k=3, seed=1, frequency_penalty=1.0, logit_bias={5: 3.0}, **LONGEST)
    reference = Reference(qwen2)
    by_data: dict[bytes, int] = {}
    with running(qwen2) as engine:
        got = await answer(engine, ids, 8, sampling, logprobs=4)
    for token in range(reference.vocabulary.size):
        by_data.setdefault(reference.vocabulary.token_bytes(token), token)
    for token in got.tokens:
        expected = reference.logprobs(ids)[-1]
        best = expected.topk(4).values.tolist()
        assert [candidate.logprob for candidate in token.top] == pytest.approx(best, abs=1e-4)
        if not token.drawn.data:
            break  # a control token: its id is not told
        drawn = by_data[token.drawn.data]
        assert token.drawn.logprob == pytest.approx(float(expected[drawn]), abs=1e-4)
        ids = [*ids, drawn]
    assert len(ids) > 22


async def test_repetition_penalty_counts_the_whole_history(folder: Path) -> None:
    ids = prompt(30)
    expected = Reference(folder).generate(ids, 30, repetition_penalty=1.5)
    with running(folder) as engine:
        await answer(engine, ids)  # also where the prompt comes from the cache
        got = await answer(engine, ids, 30, Sampling(temperature=0, repetition_penalty=1.5))
        plain = await answer(engine, ids, 30)
    assert got.data == expected
    assert got.data != plain.data


async def test_presence_and_frequency_penalties_count_the_answer(qwen2: Path) -> None:
    ids, reference = prompt(25), Reference(qwen2)
    eos = reference.model.generation_config.eos_token_id
    history: list[int] = []
    for _ in range(25):
        scores = reference.logprobs(ids + history)[-1]
        for token in set(history):
            scores[token] -= 0.7 + 0.9 * history.count(token)
        scores[eos] = -float("inf")
        history.append(int(scores.argmax()))
    sampling = Sampling(temperature=0, presence_penalty=0.7, frequency_penalty=0.9, **LONGEST)
    with running(qwen2) as engine:
        got = await answer(engine, ids, 25, sampling)
        plain = await answer(engine, ids, 25, Sampling(temperature=0, **LONGEST))
    assert got.data == [reference.vocabulary.token_bytes(token) for token in history]
    assert got.data != plain.data


# --- sampling --------------------------------------------------------------------------------------------------------


async def test_a_seed_gives_the_same_text_alone_and_beside_others(folder: Path) -> None:
    ids = prompt(12)
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=-7, **LONGEST)
    with running(folder) as engine:
        alone = await answer(engine, ids, 30, sampling)
        others = [answer(engine, prompt(length), 40, Sampling(**LONGEST)) for length in (50, 3, 90)]
        beside, *_ = await asyncio.gather(answer(engine, ids, 30, sampling), *others)
        other_seed = await answer(engine, ids, 30, Sampling(temperature=1.0, top_p=0.95, seed=8, **LONGEST))
        unseeded = [await answer(engine, ids, 30, Sampling(**LONGEST)) for _ in range(2)]
    assert alone.data == beside.data
    assert alone.data != other_seed.data
    assert unseeded[0].data != unseeded[1].data


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40),
    st.floats(0.2, 2),
    st.integers(0, 12),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.3]),
)
@settings(max_examples=150, deadline=None)
def test_draws_follow_the_distribution_of_transformers(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    scores = torch.tensor(logits) + torch.arange(len(logits)) * 1e-3  # no ties, which the two cut differently
    warpers = LogitsProcessorList()
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), (scores / temperature)[None])[0].softmax(-1)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    places = 500
    drawn = torch.zeros(len(logits))
    for place in range(places):
        drawn[choose(scores, sampling, place / places)] += 1
    assert (drawn / places - expected).abs().max() <= 1.5 / places + 1e-4


async def test_bias_and_the_end_of_the_turn(qwen2: Path) -> None:
    with running(qwen2) as engine:
        end = engine.tokenize("<|im_end|>", special=True)
        assert len(end) == 1
        letter = engine.tokenize("Z", special=False)[0]
        ended = await answer(engine, prompt(9), 5, Sampling(logit_bias={end[0]: 100}))
        going_on = await answer(engine, prompt(9), 5, Sampling(logit_bias={end[0]: 100, letter: 50}, ignore_eos=True))
        with pytest.raises(InvalidRequest):
            await answer(engine, prompt(9), 5, Sampling(logit_bias={9999: 1}))
    assert (ended.text, ended.finish) == ("", Finish("stop", 9, 0, 1))  # the end is a token, one without text
    assert (going_on.text, going_on.finish) == ("ZZZZZ", Finish("length", 9, 0, 5))


# --- scheduling and the cache ----------------------------------------------------------------------------------------


async def test_a_short_request_overtakes_a_long_one(qwen2: Path) -> None:
    order: list[str] = []

    async def run(name: str, length: int, max_tokens: int, began: asyncio.Event) -> None:
        async for event in engine.generate(
            GenerationRequest(prompt(length, 5), max_tokens, Sampling(temperature=0, **LONGEST))
        ):
            if not isinstance(event, Progress) or event.processed:
                began.set()
        order.append(name)

    with running(qwen2, kv_tokens=2048) as engine:
        for long in ((10, 400), (500, 2)):  # long in its answer, long in its prompt
            began = asyncio.Event()
            task = asyncio.create_task(run("long", *long, began))
            await began.wait()
            await run("short", 6, 3, asyncio.Event())
            await task
    assert order == ["short", "long", "short", "long"]


async def test_a_shared_prefix_is_computed_once(folder: Path) -> None:
    shared = prompt(100)
    long, short = [*shared, *prompt(40, 1)], [*shared, *prompt(10, 2)]  # the short one would otherwise go first
    with running(folder) as engine:
        expected = [await answer(engine, ids, 1) for ids in (long, short)]
        assert engine.forward_tokens == 140 + 110 - 96  # whole blocks of 16 are shared
        assert expected[1].finish == Finish("length", 110, 96, 1)
        assert expected[1].progress[0] == Progress(96, 110, 96)
    with running(folder) as engine:
        together = await asyncio.gather(*(answer(engine, ids, 1) for ids in (long, short, long)))
        assert engine.forward_tokens == 140 + 110 - 96 + 140 - 128
        assert [one.data for one in together] == [expected[0].data, expected[1].data, expected[0].data]
        again = await answer(engine, long, 1)
        assert again.finish == Finish("length", 140, 128, 1)
        # A whole prompt that is known: its last block is computed again, for the logits of its last token.
        whole = [await answer(engine, shared[:96], 1) for _ in range(2)][1]
        assert whole.finish == Finish("length", 96, 80, 1)


async def test_a_conversation_goes_on_from_its_own_answer(qwen2: Path) -> None:
    ids, reference = prompt(20), Reference(qwen2)
    by_data = {reference.vocabulary.token_bytes(token): token for token in range(316)}
    with running(qwen2) as engine:
        got = await answer(engine, ids, 50, Sampling(temperature=0, logit_bias={0: 30}, **LONGEST))
        turn = [*ids, *(by_data[data] for data in got.data), *prompt(5)]
        following = await answer(engine, turn)
    assert following.finish is not None
    assert following.finish.cached_tokens == 64  # 69 of the 70 tokens had been computed
    assert following.data == reference.generate(turn)


async def test_old_prompts_make_room_for_new_ones(qwen2: Path) -> None:
    with running(qwen2, context=256, kv_tokens=256, parallel=1) as engine:
        free = engine.free_blocks
        old = await answer(engine, prompt(200, 1))
        await answer(engine, prompt(200, 2))
        assert engine.free_blocks == free
        again = await answer(engine, prompt(200, 1))
    assert again.data == old.data


async def test_cancelling_frees_the_blocks_before_it_returns(qwen2: Path) -> None:
    with running(qwen2) as engine:
        free = engine.free_blocks
        for stop_at in (Progress, Token):
            events = engine.generate(GenerationRequest(prompt(400, 3), 100, Sampling(temperature=0, **LONGEST)))
            async for event in events:
                if isinstance(event, stop_at):
                    break
            await events.aclose()
            assert engine.free_blocks == free
        task = asyncio.create_task(answer(engine, prompt(400, 4), 100))
        waiting = asyncio.create_task(answer(engine, prompt(400, 4), 5))  # for the blocks of the one before
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await waiting).finish is not None
        assert engine.free_blocks == free


async def test_without_a_free_block_one_request_fails(qwen2: Path) -> None:
    with running(qwen2, context=256, kv_tokens=256, parallel=2) as engine:  # 18 blocks, 288 tokens
        free = engine.free_blocks
        results = await asyncio.gather(
            answer(engine, prompt(100, 1), 100, Sampling(temperature=0, **LONGEST)),
            answer(engine, prompt(150, 2), 100, Sampling(temperature=0, **LONGEST)),
            return_exceptions=True,
        )
        failed = [result for result in results if isinstance(result, OutOfMemory)]
        finished = [result for result in results if isinstance(result, Answer)]
        assert (len(failed), len(finished)) == (1, 1)
        assert "MODEL_KV_TOKENS" in str(failed[0])
        assert finished[0].finish is not None
        assert finished[0].finish.completion_tokens == 100
        with pytest.raises(OutOfMemory):
            await answer(engine, prompt(300))
        assert engine.free_blocks == free


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), OutOfMemory),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (ValueError("a bug"), EngineFailed),
    ],
)
@pytest.mark.parametrize("when", ["prompt", "answer"])
async def test_a_failing_step_ends_only_the_request_that_fails_alone(
    qwen2: Path, error: Exception, expected: type[EngineFailed], when: str
) -> None:
    poison = 299

    def fail_on_poison(model: Any, args: Any, kwargs: Any) -> None:
        if poison in kwargs["input_ids"]:
            raise error

    prompts = [prompt(length, 8) for length in (5, 40, 20)]
    prompts = [[token % poison for token in ids] for ids in prompts]
    bad = [*prompt(10), poison] if when == "prompt" else prompts[0][:4]
    bias = {poison: 1000.0} if when == "answer" else {}
    reference = Reference(qwen2)
    with running(
        qwen2, lambda loaded: loaded.model.register_forward_pre_hook(fail_on_poison, with_kwargs=True) and None
    ) as engine:
        free = engine.free_blocks
        good = [Sampling(temperature=0, logit_bias={poison: -1000.0}) for _ in prompts]
        results = await asyncio.gather(
            *(answer(engine, ids, 20, sampling) for ids, sampling in zip(prompts, good, strict=True)),
            answer(engine, bad, 20, Sampling(temperature=0, logit_bias=bias)),
            return_exceptions=True,
        )
        assert type(results[-1]) is expected
        assert "bug" not in str(results[-1])  # the log has it, the client does not
        assert engine.free_blocks == free
        after = await answer(engine, prompts[1], 20, good[0])
    for ids, result in zip([*prompts, prompts[1]], [*results[:-1], after], strict=True):
        assert isinstance(result, Answer)
        assert result.data == reference.generate(ids, 20, suppress_tokens=[poison])


async def test_closing_ends_what_runs(qwen2: Path) -> None:
    with running(qwen2) as engine:
        events = engine.generate(GenerationRequest(prompt(5), 400, Sampling(temperature=0, **LONGEST)))
        await anext(events)
        engine.close()
        with pytest.raises(EngineFailed):
            async for _ in events:
                pass
        engine.close()
        with pytest.raises(EngineFailed):
            await answer(engine, prompt(5))


def test_a_cache_that_does_not_fit_is_refused_at_start(qwen2: Path) -> None:
    with pytest.raises(CheckpointError, match=r"GiB.*MODEL_KV_TOKENS"), running(qwen2, kv_tokens=10**13):
        pass


def test_a_sliding_window_is_refused() -> None:
    class Model:
        class config:
            layer_types = ("full_attention", "sliding_attention")

    with pytest.raises(CheckpointError, match="sliding window"):
        install(Model(), "some-checkpoint")


# --- constraints and text --------------------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 199},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


async def test_constrained_answers_fit(folder: Path) -> None:
    call = Constraint((('<call>{"a": ', JsonSchema(PERSON), "}</call>"), ("none",)), separator="\n")
    with running(folder) as engine:
        answers = await asyncio.gather(
            *(
                answer(engine, prompt(5), 300, Sampling(seed=seed, ignore_eos=seed % 2 == 0), constraint=call)
                for seed in range(8)
            )
        )
    found = 0
    for got in answers:
        assert got.finish is not None
        lines = got.text.split("\n")
        if got.finish.reason == "length":
            lines.pop()
        for line in lines:
            if line == "none":
                continue
            assert line.startswith("<call>")
            value = json.loads(line.removeprefix("<call>").removesuffix("</call>"))["a"]
            assert 0 <= value["age"] <= 199
            assert len(value["name"]) <= 12
            found += 1
    assert found
    assert any(got.finish and got.finish.reason == "stop" for got in answers)


async def test_an_answer_that_is_complete_ends(qwen2: Path) -> None:
    with running(qwen2) as engine:
        text = "héllo 😀 世界"
        whole = await answer(engine, prompt(5), 50, constraint=Constraint(((text,),)))
        count = len(whole.data)
        exact = await answer(engine, prompt(5), count, constraint=Constraint(((text,),)))
        assert b"".join(whole.data).decode() == whole.text == text
        assert whole.finish == Finish("stop", 5, 0, count)
        assert exact.finish == Finish("stop", 5, 0, count)
        # One token short, in the middle of the last character.
        short = await answer(engine, prompt(5), count - 1, constraint=Constraint(((text,),)))
        assert short.text == text[:-1] + "\N{REPLACEMENT CHARACTER}"
        assert short.finish == Finish("length", 5, 0, count - 1)


async def test_each_event_holds_whole_characters(qwen2: Path) -> None:
    text = "😀é世" * 3
    pieces: list[str] = []
    with running(qwen2) as engine:
        request = GenerationRequest(prompt(5), 99, GREEDY, constraint=Constraint(((text,),)))
        async for event in engine.generate(request):
            if isinstance(event, Token):
                pieces.append(event.text)
    assert "".join(pieces) == text
    assert len(pieces) == len(text.encode())  # one event a token, each a byte here


async def test_a_schema_that_cannot_be_enforced_is_refused_before_any_work(qwen2: Path) -> None:
    bad = Constraint(((JsonSchema({"type": "string", "pattern": "(?=lookahead)"}),),))
    with running(qwen2) as engine:
        with pytest.raises(InvalidRequest):
            await anext(engine.generate(GenerationRequest(prompt(5), 5, constraint=bad)))
        assert engine.forward_tokens == 0


# --- parts -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 70), min_size=1, max_size=5), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=30, deadline=None)
def test_attention_reads_scattered_blocks(lengths: list[int], source: random.Random, padded: bool) -> None:
    class config:
        num_key_value_heads, num_attention_heads, head_dim, num_hidden_layers, hidden_size = 2, 6, 8, 1, 48

    class module:
        layer_idx = 0

    torch.manual_seed(source.randrange(99))
    cache = KVCache(config, 32, torch.device("cpu"), torch.float32)
    order = source.sample(range(32), 32)
    rows, expected, parts = [], [], []
    lengths.sort(key=lambda length: length % 3 != 0)  # rows of one token first
    for length in lengths:
        blocks = [order.pop() for _ in range(-(-length // BLOCK_SIZE))]
        count = 1 if length % 3 == 0 else source.randint(2, length) if length > 1 else 1
        count = min(count, length)
        query, key, value = (torch.randn(heads, length, 8) for heads in (6, 2, 2))
        for place in range(length - count):
            slot = blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            cache.layers[0][0][:, slot], cache.layers[0][1][:, slot] = key[:, place], value[:, place]
        scores = query @ key.repeat_interleave(3, 0).transpose(1, 2) * 0.3
        scores += torch.full((length, length), -torch.inf).triu(1)
        expected.append((scores.softmax(-1) @ value.repeat_interleave(3, 0))[:, length - count :].transpose(0, 1))
        rows.append(Row(length - count, count, blocks))
        parts.append(tuple(tensor[:, length - count :] for tensor in (query, key, value)))
    together = sorted(range(len(rows)), key=lambda index: rows[index].count > 1)
    query, key, value = (torch.cat([parts[index][which] for index in together], 1)[None] for which in range(3))
    step = Step([rows[index] for index in together], cache, torch.float32, padded=padded)
    got, _ = paged_attention(module, query, key, value, None, scaling=0.3, step=step)  # type: ignore[arg-type]
    assert torch.allclose(got[0], torch.cat([expected[index] for index in together]), atol=1e-5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_pool_never_loses_or_shares_a_block_by_mistake(moves: list[tuple[int, int]]) -> None:
    pool = BlockPool(6, BLOCK_SIZE)
    held: list[int] = []
    content: dict[int, int] = {}  # of held blocks that were published
    for move, number in moves:
        digest = bytes([number])
        if move == 0:
            try:
                block = pool.take(held[-1] if held else None)
            except OutOfBlocks:
                assert pool.available == 0
                continue
            assert block not in held
            held.append(block)
        elif move == 1 and held:
            block = held[number % len(held)]
            if block not in content and number not in content.values():
                pool.publish(block, digest)
                content[block] = number
        elif move == 2:
            found = pool.find(digest)
            if found is not None:
                assert content.setdefault(found, number) == number
                held.append(found)
        elif move == 3 and held:
            block = held.pop(number % len(held))
            pool.release([block])
            if block not in held:
                content.pop(block, None)
        assert pool.available == 6 - len(set(held))
