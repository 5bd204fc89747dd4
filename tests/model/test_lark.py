"""Constraints as grammars, and the watch over engines that are to keep to them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.model.engine.base import Constraint, JsonSchema
from services.model.engine.lark import Watch, render

CITY = JsonSchema({"type": "object", "properties": {"城市": {"type": "string"}}, "required": ["城市"]})
CALLS = Constraint((('\n{"name": "f", "arguments": ', CITY, "}\n</tool_call>"),), "\n<tool_call>")
CALL = '\n{"name": "f", "arguments": {"城市": "北京 😀"}}\n</tool_call>'


@given(st.lists(st.integers(0, len(CALL)), max_size=6))
def test_a_watch_follows_text_however_it_is_cut(cuts: list[int]) -> None:
    watch = Watch(render(CALLS))
    places = sorted({0, len(CALL), *cuts})
    for start, end in pairwise(places):
        assert not watch.complete
        assert watch.fits(CALL[start:end])
    assert watch.complete


def test_a_watch_sees_what_does_not_fit() -> None:
    assert not Watch(render(CALLS)).fits("Sure, here is the JSON")
    assert not Watch(render(CALLS)).fits(CALL.replace("城市", "city"))
    again = Watch(render(CALLS))
    assert again.fits(CALL + "\n<tool_call>")
    assert not again.complete
    assert again.fits(CALL)
    single = Watch(render(Constraint(CALLS.options)))
    assert single.fits(CALL)
    assert not single.fits("\n<tool_call>")


def test_only_the_first_call_is_bound_to_what_it_began_as() -> None:
    f, g = (f'\n{{"name": "{name}", "arguments": ' for name in "fg")
    end = "}\n</tool_call>"
    grammar = render(Constraint(((f, CITY, end), (g, CITY, end)), "\n<tool_call>", ((f, CITY, end),)))
    assert not Watch(grammar).fits(CALL.replace('"f"', '"g"'))
    assert Watch(grammar).fits(CALL + "\n<tool_call>" + CALL.replace('"f"', '"g"'))
