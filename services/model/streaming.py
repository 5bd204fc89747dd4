"""The OpenAI answer formats: whole objects, and the server-sent events of a stream.

Most chunks of a stream differ in one string, so everything around it is written once; per token only that string is encoded.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from services.model.deltas import CallArguments, CallStart, Content, Delta, Reasoning
from services.model.engine.base import Candidate, TokenLogprob

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": ping\n\n"  # a comment, which every SSE client skips
SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the whole stream first
}
# JSON leaves these as they are, but many clients split lines at them.
_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass
class AnswerFormat:
    """How one request is answered: `chat` (messages and deltas) or `text` (the older completions)."""

    kind: Literal["chat", "text"]
    model: str
    with_usage: bool = False  # stream_options.include_usage
    with_logprobs: bool = False
    legacy_calls: bool = False  # `function_call` instead of `tool_calls`
    request_id: str | None = None
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.id:
            self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + secrets.token_hex(12)
        head = json.dumps(self._head(stream=True), ensure_ascii=False)[:-1]
        self._before = "data: " + head + ',"choices":[{"index":'
        self._middle = ',"delta":{"content":' if self.kind == "chat" else ',"text":'
        after = "}" if self.kind == "chat" else ""
        tail = ',"usage":null}' if self.with_usage else "}"
        self._after = after + ',"logprobs":null,"finish_reason":null}]' + tail + "\n\n"
        self._offsets: dict[int, int] = {}  # text completions give each token's place in the text

    def _head(self, stream: bool) -> dict[str, Any]:
        chat = "chat.completion.chunk" if stream else "chat.completion"
        name = chat if self.kind == "chat" else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    # --- streams ------------------------------------------------------------------------------------------------------

    def first(self, index: int) -> bytes:
        """The event that opens a choice: a chat's role; nothing in a text stream."""
        if self.kind == "text":
            return b""
        return self._event([_choice(index, {"delta": {"role": "assistant", "content": ""}})])

    def delta(self, index: int, part: Delta) -> bytes:
        """One part of the answer. Lean for plain content: it runs once a token."""
        if type(part) is Content and not self.with_logprobs:
            encoded = json.dumps(part.text, ensure_ascii=False)
            if not part.text.isascii():
                encoded = encoded.translate(_LINE_BREAKS)
            return (self._before + str(index) + self._middle + encoded + self._after).encode()
        if isinstance(part, Content):
            content = {"text": part.text} if self.kind == "text" else {"delta": {"content": part.text}}
            return self._event([_choice(index, content, self._logprobs(index, part))])
        return self._event([_choice(index, {"delta": self._delta(part)})])

    def _delta(self, part: Reasoning | CallStart | CallArguments) -> dict[str, Any]:
        if isinstance(part, Reasoning):
            return {"reasoning_content": part.text}
        if isinstance(part, CallStart):
            function = {"name": part.name, "arguments": ""}
            if self.legacy_calls:
                return {"function_call": function}
            call = {"index": part.index, "id": part.id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        if self.legacy_calls:
            return {"function_call": {"arguments": part.text}}
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}

    def last(self, index: int, finish_reason: str) -> bytes:
        """The event that closes a choice."""
        empty: dict[str, Any] = {"delta": {}} if self.kind == "chat" else {"text": ""}
        return self._event([_choice(index, empty, None, finish_reason)])

    def end(self, usage: Usage) -> bytes:
        """The end of the stream: the usage where asked for, and the end mark."""
        return (self._event([], usage.as_dict()) if self.with_usage else b"") + DONE

    @staticmethod
    def error(body: dict[str, Any]) -> bytes:
        """An error after the stream began; the status line is gone, so the stream ends with this instead of the end mark."""
        return ("data: " + json.dumps(body) + "\n\n").encode()

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        body = self._head(stream=True) | {"choices": choices}
        if self.with_usage:
            body["usage"] = usage
        return ("data: " + json.dumps(body, ensure_ascii=False).translate(_LINE_BREAKS) + "\n\n").encode()

    # --- whole answers ------------------------------------------------------------------------------------------------

    def choice(self, index: int, parts: Sequence[Delta], finish_reason: str) -> dict[str, Any]:
        """A choice of an answer that does not stream."""
        content = Content("".join(part.text for part in parts if isinstance(part, Content)))
        content.logprobs = [entry for part in parts if isinstance(part, Content) for entry in part.logprobs]
        logprobs = self._logprobs(index, content) if self.with_logprobs else None
        if self.kind == "text":
            return _choice(index, {"text": content.text}, logprobs, finish_reason)
        calls = _calls(parts)
        message: dict[str, Any] = {"role": "assistant", "content": content.text, "refusal": None}
        if calls and not content.text:
            message["content"] = None
        if reasoning := "".join(part.text for part in parts if isinstance(part, Reasoning)):
            message["reasoning_content"] = reasoning
        if calls and self.legacy_calls:
            message["function_call"] = calls[0]["function"]
        elif calls:
            message["tool_calls"] = calls
        return _choice(index, {"message": message}, logprobs, finish_reason)

    def whole(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        return self._head(stream=False) | {"choices": choices, "usage": usage.as_dict()}

    # --- logprobs -----------------------------------------------------------------------------------------------------

    def _logprobs(self, index: int, content: Content) -> dict[str, Any]:
        if self.kind == "chat":
            entries = [
                _candidate(entry.drawn) | {"top_logprobs": [*map(_candidate, entry.top)]} for entry in content.logprobs
            ]
            return {"content": entries, "refusal": None}
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(content.text)
        found = _text_logprobs(content.logprobs, offset, content.text)
        return found


def _choice(
    index: int, content: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index} | content | {"logprobs": logprobs, "finish_reason": finish_reason}


def _calls(parts: Sequence[Delta]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, CallStart):
            calls.append({"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}})
        elif isinstance(part, CallArguments):
            calls[-1]["function"]["arguments"] += part.text
    return calls


def _candidate(candidate: Candidate) -> dict[str, Any]:
    text = candidate.data.decode("utf-8", "replace")
    return {"token": text, "logprob": candidate.logprob, "bytes": list(candidate.data)}


def _text_logprobs(entries: Sequence[TokenLogprob], offset: int, text: str) -> dict[str, Any]:
    """The older completions' four parallel lists. Offsets count characters; a token inside a character has its start."""
    tokens, offsets = [], []
    data = b""
    for entry in entries:
        tokens.append(entry.drawn.data.decode("utf-8", "replace"))
        offsets.append(offset + min(len(data.decode("utf-8", "ignore")), len(text)))
        data += entry.drawn.data
    return {
        "tokens": tokens,
        "token_logprobs": [entry.drawn.logprob for entry in entries],
        "top_logprobs": [
            {other.data.decode("utf-8", "replace"): other.logprob for other in entry.top} for entry in entries
        ],
        "text_offset": offsets,
    }
