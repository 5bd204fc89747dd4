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

# Unicode noncharacters, which no text interchange may contain: one of them marks what the client wrote.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]

Tokenize = Callable[..., list[int]]  # Engine.tokenize


@dataclass(frozen=True)
class Message:
    role: str
    content: str


class ChatTemplate:
    """A compiled chat template. `special_tokens` are the strings that only the template itself may turn into control tokens."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, int], *, bos_token: str = "", eos_token: str = ""
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
        self._variables = {"bos_token": bos_token, "eos_token": eos_token, "tools": None, "documents": None}

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt as text. Raises InvalidRequest when the template refuses these messages."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=add_generation_prompt, **self._variables)
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

    def tokenize(
        self, messages: Sequence[Message], tokenize: Tokenize, *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The prompt as token ids. The text of a control token in a message stays text: nobody can end their own turn and
        speak as the system."""
        if self._special is None or not any(self._special.search(message.content) for message in messages):
            return tokenize(self.render(messages, add_generation_prompt=add_generation_prompt), special=True)
        return self._tokenize_apart(messages, tokenize, add_generation_prompt)

    def _tokenize_apart(
        self, messages: Sequence[Message], tokenize: Tokenize, add_generation_prompt: bool
    ) -> list[int]:
        """The messages contain the text of control tokens. Those are broken by a mark before rendering, so that what is left
        to match in the prompt is the template's own; the text between is tokenized as plain text, which is also how a
        tokenizer treats it: control tokens cut the text first."""
        assert self._special is not None  # for the type checker; the caller has looked
        mark = next((mark for mark in _MARKS if not any(mark in message.content for message in messages)), None)
        if mark is None:
            raise InvalidRequest("a message contains every Unicode noncharacter; remove them", param="messages")
        marked = []
        for message in messages:
            content = message.content
            while self._special.search(content):  # again, for those that overlapped a broken one
                content = self._special.sub(lambda found: found[0][0] + mark + found[0][1:], content)
            marked.append(Message(message.role, content))
        prompt = self.render(marked, add_generation_prompt=add_generation_prompt)
        ids: list[int] = []
        at = 0
        for found in self._special.finditer(prompt):
            ids += tokenize(prompt[at : found.start()].replace(mark, ""), special=False)
            ids.append(self._special_tokens[found[0]])
            at = found.end()
        return ids + tokenize(prompt[at:].replace(mark, ""), special=False)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
