"""From chat messages to prompt tokens: the checkpoint's own template, in a sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.model.errors import InvalidRequest
from services.model.folding import fold_hermes, fold_react
from services.model.messages import Message
from services.model.reading import END_THINK, THINK, Thinking
from services.model.tools import Tool

# Unicode noncharacters, which no text interchange may contain: one of them marks what the client wrote.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]

Tokenize = Callable[..., list[int]]  # Engine.tokenize


@dataclass(frozen=True)
class Prompt:
    """`thinking`: how the answer begins. `in_thought`: the prompt ends with a ReAct `Thought:`."""

    token_ids: list[int]
    thinking: Thinking = "no"
    in_thought: bool = False


class ChatTemplate:
    """A compiled chat template. `special_tokens` are the strings that only the template itself may turn into control tokens."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, int],
        *,
        bos_token: str = "",
        eos_token: str = "",
        tool_style: str = "hermes",
    ) -> None:
        """Raises jinja2.TemplateError when the template cannot be compiled."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens
        # One character cannot be broken by a mark, and none is a control token in any known vocabulary.
        longest_first = sorted((text for text in special_tokens if len(text) > 1), key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(text) for text in longest_first)) if longest_first else None
        self._variables = {"bos_token": bos_token, "eos_token": eos_token, "documents": None}
        self._react = tool_style == "react"
        self._knows_tools = "tool_call" in source and not self._react
        self.thinks = THINK in source  # a model without it has no thinking to switch off

    def tokenize(
        self,
        messages: Sequence[Message],
        tokenize: Tokenize,
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt. The text of a control token in a message stays text: nobody can end their own turn and speak as the
        system. Raises InvalidRequest when the template refuses the messages."""
        try:
            given = self._given(messages, tools)
            apart = self._special is not None and self._contained(given)
        except RecursionError:
            raise InvalidRequest(
                "the messages or tools hold JSON that is nested too deeply", param="messages"
            ) from None
        if apart:
            text, ids = self._tokenize_apart(given, tokenize, add_generation_prompt, variables)
        else:
            text = self._render(given, add_generation_prompt, variables)
            ids = tokenize(text, special=True)
        return Prompt(ids, self._thinking(text) if add_generation_prompt else "no", bool(given["opened"]))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text, for people. Raises InvalidRequest when the template refuses the messages."""
        return self._render(self._given(messages, tools), add_generation_prompt, variables)

    def _given(self, messages: Sequence[Message], tools: Sequence[Tool]) -> dict[str, Any]:
        """What the template is given, and what the open turn already says after it."""
        opened = ""
        if self._react:
            messages, opened = fold_react(messages, tools)
        elif not self._knows_tools:
            messages = fold_hermes(messages, tools)
        declared = [tool.declared() for tool in tools] if tools and self._knows_tools else None
        return {"turns": [_turn(message) for message in messages], "declared": declared, "opened": opened}

    def _render(
        self, given: Mapping[str, Any], add_generation_prompt: bool, variables: Mapping[str, Any] | None
    ) -> str:
        try:
            prompt = self._template.render(
                **(variables or {}),
                **self._variables,
                messages=given["turns"],
                tools=given["declared"],
                add_generation_prompt=add_generation_prompt,
            )
            return prompt + str(given["opened"])
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages", code="template_error"
            ) from error
        except Exception as error:  # a template is a program of the checkpoint; it can fail in any way
            raise InvalidRequest(
                f"the model's chat template failed on these messages ({type(error).__name__}: {error})",
                param="messages",
                code="template_error",
            ) from error

    def _tokenize_apart(
        self,
        given: dict[str, Any],
        tokenize: Tokenize,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
    ) -> tuple[str, list[int]]:
        """The messages contain the text of control tokens. Those are broken by a mark before rendering, so that what is left
        to match in the prompt is the template's own; the text between is tokenized as plain text, which is also how a
        tokenizer treats it: control tokens cut the text first."""
        assert self._special is not None  # for the type checker; the caller has looked
        special = self._special
        mark = next((mark for mark in _MARKS if not any(mark in text for text in _strings(given))), None)
        if mark is None:
            raise InvalidRequest("a message contains every Unicode noncharacter; remove them", param="messages")

        def broken(text: str) -> str:
            while special.search(text):  # again, for those that overlapped a broken one
                text = special.sub(lambda found: found[0][0] + mark + found[0][1:], text)
            return text

        prompt = self._render(_mapped(given, broken), add_generation_prompt, variables)
        ids: list[int] = []
        at = 0
        for found in special.finditer(prompt):
            ids += tokenize(prompt[at : found.start()].replace(mark, ""), special=False)
            ids.append(self._special_tokens[found[0]])
            at = found.end()
        return prompt, ids + tokenize(prompt[at:].replace(mark, ""), special=False)

    def _contained(self, given: Any) -> bool:
        assert self._special is not None
        return any(self._special.search(text) for text in _strings(given))

    def _thinking(self, prompt: str) -> Thinking:
        """Whether the answer may begin with a thought. A template switches it off by writing an empty one into the prompt,
        and on for good by opening it there."""
        if not self.thinks:
            return "no"
        tail = prompt.rstrip()
        if tail.endswith(END_THINK):
            return "no"
        return "inside" if tail.endswith(THINK) else "maybe"


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.parsed()}}
            for call in message.tool_calls
        ]
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.role == "tool" and message.name:
        turn["name"] = message.name
    return turn


def _strings(value: Any) -> list[str]:
    """Every string in a JSON-like value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in _strings(part)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return value


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
