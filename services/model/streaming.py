"""The OpenAI answer formats: whole objects, and the server-sent events of a stream.

A stream's chunks differ in one string, so everything around it is written once; per token only that string is encoded.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

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
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.id:
            self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + secrets.token_hex(12)
        tail = ',"usage":null}' if self.with_usage else "}"
        if self.kind == "chat":
            before = ',"choices":[{"index":0,"delta":{"content":'
            after = '},"logprobs":null,"finish_reason":null}]'
        else:
            before = ',"choices":[{"index":0,"text":'
            after = ',"logprobs":null,"finish_reason":null}]'
        head = json.dumps(self._head(stream=True), ensure_ascii=False)[:-1]
        self._before = "data: " + head + before
        self._after = after + tail + "\n\n"

    def _head(self, stream: bool) -> dict[str, Any]:
        chat = "chat.completion.chunk" if stream else "chat.completion"
        name = chat if self.kind == "chat" else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def first(self) -> bytes:
        """The event that opens a stream: a chat's role; nothing in a text stream."""
        if self.kind == "text":
            return b""
        return self._event([self._choice({"delta": {"role": "assistant", "content": ""}}, None)])

    def delta(self, text: str) -> bytes:
        """One piece of the answer. Lean: it runs once a token."""
        encoded = json.dumps(text, ensure_ascii=False)
        if not text.isascii():
            encoded = encoded.translate(_LINE_BREAKS)
        return (self._before + encoded + self._after).encode()

    def last(self, finish_reason: str, usage: Usage) -> bytes:
        """The closing events: finish_reason, the usage where asked for, and the end mark."""
        empty: dict[str, Any] = {"delta": {}} if self.kind == "chat" else {"text": ""}
        events = self._event([self._choice(empty, finish_reason)])
        if self.with_usage:
            events += self._event([], usage.as_dict())
        return events + DONE

    def whole(self, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        if self.kind == "chat":
            content: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            content = {"text": text}
        return self._head(stream=False) | {"choices": [self._choice(content, finish_reason)], "usage": usage.as_dict()}

    @staticmethod
    def error(body: dict[str, Any]) -> bytes:
        """An error after the stream began; the status line is gone, so the stream ends with this instead of the end mark."""
        return ("data: " + json.dumps(body) + "\n\n").encode()

    def _choice(self, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0} | content | {"logprobs": None, "finish_reason": finish_reason}

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        body = self._head(stream=True) | {"choices": choices}
        if self.with_usage:
            body["usage"] = usage
        return ("data: " + json.dumps(body, ensure_ascii=False) + "\n\n").encode()
