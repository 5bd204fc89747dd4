"""An engine without a model: it answers by rules, deterministically, at once. For tests, and for trying the API out.

Without rules it echoes the last user message (of a raw prompt: all of it). A rule is a JSON object; the first whose `match`
is found (a regular expression, `.` matches newlines) in the last user message, or else in the whole prompt, answers:

    [{"match": "hard limit", "reply": "It is 40 GB [1]."},
     {"match": "slow", "reply": "one two three", "token_delay_ms": 20},
     {"match": "Passage 1: (.*?)\\n", "reply": "I read: \\1", "expand": true},
     {"match": "hang", "reply": "a b c", "hold_after": 2},
     {"match": "fail", "reply": "half a", "fail_after": 1}]

A prompt that ends inside the assistant's turn is gone on with: the rest of the reply that began so, or, after the opening of
a tool call, the rest of the call in the reply. The engine enforces no grammar; its replies are what the script says.

`expand` fills groups of the match into the reply; `hold_after` waits after that many tokens until the request is cancelled;
`fail_after` raises an engine error there; `repeat` says the reply over and over until max_tokens.

A token is up to four ASCII characters or one other character, so counts resemble those of a real tokenizer, and every text
survives tokenize and detokenize. `cached_tokens` is the prefix shared with the prompt before, as in a real cache of one.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from services.model.engine.base import Event, Finish, GenerationRequest, ModelInfo, Progress, Report, Token
from services.model.errors import ConfigError, EngineFailed

TRAINED_CONTEXT = 32_768
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_WIDE = 1 << 31  # ids of single code points begin here; below are up to four ASCII bytes, big-endian
_SPECIAL = _WIDE + 0x110000
SPECIAL_TOKENS = {"<|im_start|>": _SPECIAL, "<|im_end|>": _SPECIAL + 1, "<|endoftext|>": _SPECIAL + 2}
_SPECIAL_TEXT = {token_id: text for text, token_id in SPECIAL_TOKENS.items()}
_PIECE = re.compile(r"[\x20-\x7e]{1,4}|.", re.DOTALL)
_WITH_SPECIAL = re.compile("(" + "|".join(re.escape(text) for text in SPECIAL_TOKENS) + ")")
_OPEN_TURN = re.compile(r"<\|im_start\|>assistant\n((?:(?!<\|im_(?:start|end)\|>).)*)\Z", re.DOTALL)
_USER_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Rule:
    match: str
    reply: str
    token_delay_ms: float = 0
    expand: bool = False
    repeat: bool = False
    hold_after: int | None = None
    fail_after: int | None = None


def load_rules(path: Path) -> list[Rule]:
    """Reads MODEL_SCRIPT. Raises ConfigError."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Rule)}
        for entry in entries:
            if unknown := set(entry) - known:
                raise ValueError(f"unknown key {sorted(unknown)[0]!r}; a rule has {', '.join(sorted(known))}")
            re.compile(entry["match"])
        return [Rule(**entry) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, re.error) as error:
        raise ConfigError(f"MODEL_SCRIPT={path}: {error!s} ({type(error).__name__})") from error


def encode(text: str, special: bool) -> list[int]:
    """Token ids of `text`; with `special`, control tokens in it become one id each."""
    ids: list[int] = []
    for part in _WITH_SPECIAL.split(text) if special else [text]:
        if special and part in SPECIAL_TOKENS:
            ids.append(SPECIAL_TOKENS[part])
            continue
        for piece in _PIECE.findall(part):
            plain = " " <= piece[0] <= "~"
            ids.append(int.from_bytes(piece.encode("ascii"), "big") if plain else _WIDE + ord(piece))
    return ids


def decode(ids: Sequence[int]) -> str:
    """The text of token ids; control tokens become their text."""
    return "".join(_decode_one(token_id) for token_id in ids)


def _decode_one(token_id: int) -> str:
    if token_id >= _SPECIAL:
        return _SPECIAL_TEXT.get(token_id, "")
    if token_id >= _WIDE:
        return chr(token_id - _WIDE)
    return token_id.to_bytes(4, "big").lstrip(b"\0").decode("ascii", "replace")


class ScriptedEngine:
    """`gate`, for tests in one process, is awaited with the number of tokens so far before each token is sent."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        *,
        context: int | None = None,
        kv_tokens: int | None = None,
        gate: Callable[[int], Awaitable[None]] | None = None,
        load_gate: threading.Event | None = None,
        chat_template: str = CHAT_TEMPLATE,
        tool_style: Literal["hermes", "react"] = "hermes",
    ) -> None:
        self._rules = list(rules)
        self._context = context or 8192
        self._kv_tokens = kv_tokens or 2 * self._context
        self._gate = gate
        self._load_gate = load_gate
        self._chat_template = chat_template
        self._tool_style: Literal["hermes", "react"] = tool_style
        self._previous: list[int] = []
        self.running = 0
        self.cancelled = 0

    def load(self, report: Report) -> ModelInfo:
        report("loading the script")
        if self._load_gate is not None:
            self._load_gate.wait()
        return ModelInfo(
            context=min(self._context, TRAINED_CONTEXT),
            kv_tokens=self._kv_tokens,
            vocab_size=_SPECIAL + len(SPECIAL_TOKENS),
            chat_template=self._chat_template,
            tool_style=self._tool_style,
            special_tokens=SPECIAL_TOKENS,
            eos_token="<|im_end|>",  # noqa: S106 (a token of text, not of access)
        )

    def tokenize(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        return encode(text, special)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return decode(token_ids)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        total = len(request.token_ids)
        cached = min(_common_prefix(self._previous, request.token_ids), total - 1)
        self._previous = request.token_ids
        prompt = decode(request.token_ids)
        rule, reply = self._answer(prompt)
        reply = _rest(reply, prompt)
        answer = encode(reply, special=False)
        if rule.repeat or request.sampling.ignore_eos:
            answer = (answer or encode(".", False)) * (request.max_tokens // max(1, len(answer)) + 1)
        count = 0
        done = False
        self.running += 1
        try:
            yield Progress(cached, total, cached)
            yield Progress(total, total, cached)
            for token_id in answer[: request.max_tokens]:
                await self._before_token(rule, count)
                count += 1
                yield Token(_decode_one(token_id), count)
            await self._before_token(rule, count)
            # Like a real engine, the end of the turn is a token, and needs room for one.
            length = len(answer) >= request.max_tokens
            done = True
            yield Finish("length" if length else "stop", total, cached, count if length else count + 1)
        finally:
            self.running -= 1
            self.cancelled += not done

    async def _before_token(self, rule: Rule, count: int) -> None:
        if rule.fail_after == count:
            raise EngineFailed("the script says that the engine fails here")
        if rule.hold_after == count:
            await asyncio.Event().wait()  # nobody sets it: only cancellation ends this
        if self._gate is not None:
            await self._gate(count)
        elif rule.token_delay_ms:
            await asyncio.sleep(rule.token_delay_ms / 1000)

    def _answer(self, prompt: str) -> tuple[Rule, str]:
        turns = _USER_TURN.findall(prompt)
        question = turns[-1] if turns else prompt
        for text in (question, prompt):
            for rule in self._rules:
                if found := re.search(rule.match, text, re.DOTALL):
                    return rule, found.expand(rule.reply) if rule.expand else rule.reply
        return Rule("", question), question

    def close(self) -> None:
        if self._load_gate is not None:
            self._load_gate.set()


def _rest(reply: str, prompt: str) -> str:
    """What of the reply is still to be said."""
    turn = _OPEN_TURN.search(prompt)
    said = turn[1] if turn else ""
    if reply.startswith(said):
        return reply[len(said) :]
    # The opening of a call in the service's own layout, where the script has another.
    for opening in ("<tool_call>", "Action:"):
        if said.endswith(opening):
            at = reply.find(opening)
            return reply[at + len(opening) :] if at >= 0 else "\n" + reply.strip("`\njson ") + "\n</tool_call>"
    return reply


def _common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared
