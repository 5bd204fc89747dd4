"""The pieces of an answer, in the order in which they leave, whatever form they are sent in."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.model.engine.base import TokenLogprob


@dataclass(slots=True)
class Content:
    text: str
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class Reasoning:
    text: str


@dataclass(slots=True)
class CallStart:
    """A call of a function; its arguments follow. `index` counts the calls of one answer from 0."""

    index: int
    id: str
    name: str


@dataclass(slots=True)
class CallArguments:
    """More of the arguments' JSON text."""

    index: int
    text: str


Delta = Content | Reasoning | CallStart | CallArguments
