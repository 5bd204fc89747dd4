"""A constraint as a grammar in llguidance's dialect of Lark, which both engines understand: torch through the llguidance
package, llama.cpp because xllamacpp is built with it. One text, one language of answers.

Format: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json

from llguidance import LLMatcher, LLTokenizer

from services.model.engine.base import Constraint, JsonSchema

HEADER = "%llguidance {}"  # by this line llama.cpp tells it from a grammar of its own
MAX_REPEATS = 7  # a small model may go on for ever
# Free white space is where a small model loses its way, and Qwen was taught JSON as Python writes it.
_LAYOUT = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}


def render(constraint: Constraint) -> str:
    """The grammar text. Rules: `start` the answer, `first` and `one` an option, `json_N` the Nth schema."""
    schemas: list[str] = []

    def alternatives(options: tuple[tuple[str | JsonSchema, ...], ...]) -> str:
        return " | ".join(" ".join(map(part, option)) for option in options)

    def part(item: str | JsonSchema) -> str:
        if isinstance(item, str):
            return _literal(item)
        text = json.dumps({**item.schema, **_LAYOUT})
        if text not in schemas:
            schemas.append(text)
        return f"json_{schemas.index(text)}"

    again = "" if constraint.separator is None else f" ({_literal(constraint.separator)} one){{0,{MAX_REPEATS}}}"
    rules = [HEADER, "start: first" + again, "first: " + alternatives(constraint.first or constraint.options)]
    if again:
        rules.append("one: " + alternatives(constraint.options))
    rules += [f"json_{index}: %json {text}" for index, text in enumerate(schemas)]
    return "\n".join(rules) + "\n"


class Watch:
    """Follows the text of an answer through its grammar, apart from the engine that enforces it: an engine that reads the
    grammar with another version of the library, or not at all, is found out at the first character that does not fit."""

    def __init__(self, grammar: str) -> None:
        self.grammar = grammar
        self._matcher = LLMatcher(_BYTES, grammar, log_level=0)

    def fits(self, text: str) -> bool:
        """Whether `text`, after all before it, can be the beginning of an answer."""
        return bool(self._matcher.consume_tokens(list(text.encode())))

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())


_BYTES = LLTokenizer("byte")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
