"""However the text of a model is cut into pieces, the answer is the same: content, reasoning, calls, and where it stops."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.model.calling import HermesText, ReactText, Redirect, hermes_opening
from services.model.deltas import CallArguments, CallStart, Content, Reasoning
from services.model.engine.base import Candidate, Constraint, JsonSchema, TokenLogprob
from services.model.reading import AnswerReader, Thinking
from services.model.schema import ANY_OBJECT
from services.model.tools import Tool, ToolUse

NAMES = ["get_weather", "search.web", "f"]
TOOLS = tuple(Tool(name, "", {"type": "object"}, ANY_OBJECT) for name in NAMES)
USE = ToolUse(TOOLS)
Style = Literal["none", "hermes", "react"]


@dataclass
class Case:
    """What a model says, and how it goes on where it is made to start again. `held`: its answer is to be an object."""

    text: str
    style: Style = "none"
    thinking: Thinking = "no"
    stops: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    held: bool = False

    def reader(self) -> AnswerReader:
        free = {"none": lambda: None, "hermes": lambda: HermesText(USE), "react": lambda: ReactText(USE)}[self.style]()
        held_to = Redirect("", Constraint(((JsonSchema({}),),))) if self.held else None
        return AnswerReader(stops=self.stops, thinking=self.thinking, free=free, held_to=held_to)

    def rest(self) -> str:
        """What the grammar of the calls lets the engine write after a redirect."""
        if self.style == "react":
            return "".join(f" {name}\nAction Input: {arguments}" for name, arguments in self.calls[:1])
        written = [f'\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>' for name, arguments in self.calls]
        return "\n<tool_call>".join(written)


@dataclass
class Read:
    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    restarted: tuple[str, str] | None = None  # what was kept, and the tail
    stopped: bool = False
    called: bool = False

    def add(self, deltas: list[Any]) -> None:
        for delta in deltas:
            match delta:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case CallStart(index, _, name):
                    self.indexes.append(index)
                    self.calls.append([name, ""])
                case CallArguments(index, text):
                    self.calls[index][1] += text
            assert isinstance(delta, CallStart) or delta.text, "an empty part"


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


def read(case: Case, cuts: list[int]) -> Read:
    """As the service does it: what comes after a redirect is the engine's second run."""
    reader, found = case.reader(), Read()
    text = pieces(case.text, cuts)
    while text and not reader.stopped:
        found.add(reader.feed(text.pop(0)))
        if reader.redirect is not None:
            assert found.restarted is None, "redirected twice"
            found.restarted = (reader.redirect.kept, reader.redirect.tail)
            text = pieces('{"a": 1}' if case.held else case.rest(), cuts)
            reader.redirected()
    found.stopped = reader.stopped
    found.add(reader.finish())
    found.called = reader.called
    return found


# --- answers ------------------------------------------------------------------------------------------------------------

WORDS = [
    "Yes. ",
    "停",
    "a",
    " ",
    "\n",
    "\n\n",
    "END",
    "EN",
    "<",
    "{",
    "{{",
    "`",
    '{"name": "other"',
    '"name": "f"',
    "é",
]
MARKS = [
    "<tool_call",
    "<think>",
    "</think",
    "```",
    "```json\n",
    "<tools>\n",
    "Action",
    "\nFinal",
    "Thought",
    "Action Input:",
]
said = st.lists(st.sampled_from(WORDS + MARKS), max_size=8).map("".join)
plain = st.text("ab 停\n", max_size=12)  # nothing in it can be taken for a mark
values = st.recursive(
    st.text('}"\\]{[é停', max_size=4) | st.integers(-9, 9), lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
arguments = st.dictionaries(st.text('a"}', max_size=3), values, max_size=2).map(json.dumps)
calls = st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3)
cut_lists = st.lists(st.integers(0, 160), max_size=12)
stop_lists = st.lists(st.sampled_from(["END", "停", "\n\n", "\n", "a ", "<t", "s. E"]), max_size=2, unique=True)
thoughts = st.sampled_from(["", "hm", " let me\nsee \n", "<think> again", "{"])


def opening(style: Style, form: str, name: str) -> str:
    """How a model begins a call by itself."""
    if style == "react":
        return f"Action: {name}\nAction Input: "
    head = f'{{"name": "{name}", "arguments": {{'
    return {"tag": "<tool_call>\n", "bare": "", "fence": "```json\n", "tools": "<tools>\n"}[form] + head


@st.composite
def answers(draw: st.DrawFn) -> Case:
    style = draw(st.sampled_from(["none", "hermes", "react"]))
    thinking = draw(st.sampled_from(["no", "maybe", "inside"]))
    text = draw(said)
    made = draw(calls) if style != "none" and draw(st.booleans()) else []
    if made:
        form = draw(st.sampled_from(["tag", "bare", "fence", "tools"]))
        text += draw(st.sampled_from(["", "\n", "\n\n", " \n"])) + opening(style, form, made[0][0]) + draw(said)
    if style == "react":
        text = draw(st.sampled_from(["", "Thought: ", "Thought:I know\nFinal Answer: ", "Final Answer:"])) + text
    if thinking == "inside" or (thinking == "maybe" and draw(st.booleans())):
        before = "<think>" if thinking == "maybe" else ""
        text = before + draw(thoughts) + draw(st.sampled_from(["</think>", "</think>\n\n", ""])) + text
    # Without an opening in the text the calls are what a model would go on with where the text is taken for one.
    return Case(
        text, style, thinking, draw(stop_lists), made or [("f", "{}")], held=draw(st.booleans()) and style == "none"
    )


@settings(max_examples=600)
@given(answers(), cut_lists)
def test_every_split_of_an_answer_gives_the_same(case: Case, cuts: list[int]) -> None:
    whole = read(case, [])
    assert read(case, cuts) == whole
    assert read(case, list(range(400))) == whole


# --- and it is the right answer -----------------------------------------------------------------------------------------


@given(plain, calls, st.sampled_from(["tag", "bare", "fence", "tools"]), cut_lists)
def test_hermes_calls_come_out_whole_and_their_marks_do_not(
    text: str, made: list[tuple[str, str]], form: str, cuts: list[int]
) -> None:
    before = text + "\n" if text else ""
    found = read(Case(before + opening("hermes", form, made[0][0]), "hermes", calls=made), cuts)
    assert found.content == text.rstrip()
    assert found.calls == [list(call) for call in made]
    assert found.indexes == list(range(len(made)))
    assert found.restarted == (before, "<tool_call>")
    assert found.called
    assert not found.stopped  # another call may follow


@given(plain, calls, cut_lists)
def test_a_single_call_ends_the_answer(text: str, made: list[tuple[str, str]], cuts: list[int]) -> None:
    body = hermes_opening(ToolUse(TOOLS, parallel=False)).body
    assert body is not None
    reader = AnswerReader(held_to=Redirect("", Constraint(()), body), stops=["停"])
    found = Read()
    for piece in pieces(Case("", "hermes", calls=made).rest() + text, cuts):
        found.add(reader.feed(piece))
        if reader.stopped:
            break
    assert reader.stopped
    assert found.calls == [list(made[0])]
    assert found.content == ""


@given(plain, plain, arguments, st.sampled_from(NAMES), cut_lists)
def test_a_react_thought_is_reasoning_and_its_action_a_call(
    thought: str, more: str, given_: str, name: str, cuts: list[int]
) -> None:
    text = f"Thought: {thought}\n{opening('react', '', name)}{more}"
    found = read(Case(text, "react", calls=[(name, given_)]), cuts)
    assert found.reasoning == thought.lstrip()
    assert (found.content, found.calls) == ("", [[name, given_]])
    assert found.stopped


@given(plain, plain, cut_lists)
def test_a_react_answer_is_content(thought: str, answer: str, cuts: list[int]) -> None:
    found = read(Case(f"Thought: {thought}\nFinal Answer: {answer}", "react"), cuts)
    assert (found.reasoning, found.content, found.calls) == (thought.lstrip(), answer.lstrip(), [])


@given(plain, plain, st.booleans(), st.sampled_from([[], ["停"], ["b\n", "ab"]]), cut_lists)
def test_thoughts_are_apart_and_stop_strings_are_not_sought_in_them(
    thought: str, answer: str, inside: bool, stops: list[str], cuts: list[int]
) -> None:
    text = ("" if inside else "<think>\n") + thought + "</think>\n\n" + answer
    found = read(Case(text, thinking="inside" if inside else "maybe", stops=stops), cuts)
    assert found.reasoning == thought.strip()
    ends = [answer.lstrip().find(stop) for stop in stops]
    if all(end < 0 for end in ends):
        assert found.content == answer.lstrip()
    else:
        assert found.stopped
        assert not any(stop in found.content for stop in stops)
        assert answer.lstrip().startswith(found.content)


@given(thoughts.filter(lambda thought: "<" not in thought), st.sampled_from(["", "\n\n", "\n\nSure, "]), cut_lists)
@example("hm", "", [])
def test_what_was_promised_begins_when_the_thought_ends(thought: str, after: str, cuts: list[int]) -> None:
    """Also where the model would end its turn there."""
    found = read(Case(f"<think>{thought}</think>{after}", thinking="maybe", held=True), cuts)
    assert found.content == '{"a": 1}'
    assert found.reasoning == thought.strip()
    assert found.restarted == (f"<think>{thought}</think>\n\n", "")


@pytest.mark.parametrize(
    "text", ['{"name": "other", "arguments": {}}', 'say {"name": "f"', "<tool_calls", "``` {name: f"]
)
def test_what_only_resembles_a_call_is_content(text: str) -> None:
    found = read(Case(text, "hermes"), list(range(100)))
    assert (found.content, found.calls) == (text, [])


def test_a_model_that_only_thinks_still_owes_what_it_is_held_to() -> None:
    held_to = Redirect("", Constraint(((JsonSchema({"type": "object"}),),)))
    reader = AnswerReader(thinking="maybe", held_to=held_to)
    assert reader.feed("<think>\nhm") == [Reasoning("hm")]
    reader.ended()
    assert reader.redirect is not None
    assert reader.redirect.kept == "<think>\nhm</think>\n\n"
    reader.redirected()
    assert reader.feed("{}") == [Content("{}")]
    silent = AnswerReader(thinking="maybe", held_to=held_to)
    silent.ended()
    assert silent.redirect is not None
    assert silent.redirect.kept == ""


def test_the_log_probability_of_a_token_without_text_comes_with_the_character() -> None:
    def entry(data: bytes) -> TokenLogprob:
        return TokenLogprob(Candidate(data, -1.0))

    reader = AnswerReader()
    assert reader.feed("", [entry(b"\xe4\xbd")]) == []
    (content,) = reader.feed("你", [entry(b"\xa0")])
    assert isinstance(content, Content)
    assert [found.drawn.data for found in content.logprobs] == [b"\xe4\xbd", b"\xa0"]


def test_a_tag_inside_an_object_that_was_asked_for_is_text() -> None:
    text = HermesText(USE, bare=False)
    said = "".join(
        part.text
        for piece in '{"text": "write <tool_call> to call"}'
        for part in text.feed(piece)
        if isinstance(part, Content)
    )
    assert said == '{"text": "write <tool_call> to call"}'
    assert text.redirect is None
    called = HermesText(USE, bare=False)
    called.feed("<tool_call>")
    assert called.redirect is not None


def test_the_labels_of_react_never_reach_the_content() -> None:
    text = ReactText(USE)
    parts = (
        text.feed("Sure.\nThought: I need it.\nFinal Answer: 42\nObservation: made up\nThought: more") + text.flush()
    )
    content = "".join(part.text for part in parts if isinstance(part, Content))
    assert content == "Sure.42"
    assert "".join(part.text for part in parts if isinstance(part, Reasoning)) == "I need it."
