"""From a parsed request to the generations that answer it: one choice for each answer that is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from services.model.calling import (
    REACT_ANSWER,
    FreeText,
    HermesText,
    ReactText,
    Redirect,
    hermes_opening,
    react_opening,
)
from services.model.chat import Prompt
from services.model.engine.base import Constraint, GenerationRequest, JsonSchema
from services.model.errors import UnsupportedParameter
from services.model.protocol import ChatRequest, CompletionRequest
from services.model.reading import AnswerReader
from services.model.service import ModelService
from services.model.tools import ToolUse


@dataclass
class Choice:
    """One answer: what the engine is asked, and how its text is read. `echo`: the text that the answer begins with.

    `named`: the one function that had to be called, for which OpenAI's finish_reason is "stop". `first`: the first of its
    prompt, the one whose prompt tokens count.
    """

    index: int
    request: GenerationRequest
    reader: AnswerReader = field(default_factory=AnswerReader)
    echo: str = ""
    named: bool = False
    first: bool = True


async def chat_choices(service: ModelService, wanted: ChatRequest) -> list[Choice]:
    """Raises InvalidRequest, ContextLengthExceeded and UnsupportedParameter."""
    if wanted.thinking and not service.thinks:
        raise UnsupportedParameter(
            f"{service.names[0]} cannot think before it answers; leave reasoning_effort and enable_thinking out",
            param="reasoning_effort",
        )
    variables = dict(wanted.template_variables)
    if wanted.thinking is not None and service.thinks:
        variables["enable_thinking"] = wanted.thinking
    use = wanted.tools
    prompt = await service.chat_prompt(wanted.messages, tools=use.tools if use else (), variables=variables)
    if wanted.thinking is False and prompt.thinking == "inside":
        raise UnsupportedParameter(
            f"{service.names[0]} always thinks before it answers; leave reasoning_effort and enable_thinking out",
            param="reasoning_effort",
        )
    if prompt.in_thought and (use is None or wanted.schema is not None):
        # After a result, with nothing more to call or a form to keep to: what follows is the answer.
        use, prompt = None, await _answering(service, prompt)
        wanted = replace(wanted, tools=None)
    held_to = _held_to(service, wanted, prompt)
    token_ids, constraint = prompt.token_ids, None
    if held_to is not None and prompt.thinking == "no":
        constraint = held_to.constraint
        if held_to.tail:
            token_ids = token_ids + await asyncio.to_thread(service.engine.tokenize, held_to.tail, special=True)
    plan = replace(service.plan(token_ids, wanted.options, "messages"), constraint=constraint)
    choices = []
    for index, request in enumerate(_repeated(plan, wanted.options.n)):
        reader = AnswerReader(
            stops=wanted.options.stops,
            thinking=prompt.thinking,
            free=_free(service, use, wanted, prompt),
            held_to=_held_to(service, wanted, prompt),  # it holds the reading of a call: one for each answer
        )
        choices.append(Choice(index, request, reader, named=bool(use and use.named), first=index == 0))
    return choices


async def completion_choices(service: ModelService, wanted: CompletionRequest) -> list[Choice]:
    """Raises InvalidRequest and ContextLengthExceeded. Prompts come one after the other, each with its n answers."""
    choices: list[Choice] = []
    for prompt in wanted.prompts:
        token_ids = prompt if isinstance(prompt, list) else await service.text_tokens(prompt)
        plan = service.plan(token_ids, wanted.options, "prompt")
        echo = ""
        if wanted.echo:
            echo = prompt if isinstance(prompt, str) else await asyncio.to_thread(service.engine.detokenize, prompt)
        for number, request in enumerate(_repeated(plan, wanted.options.n)):
            reader = AnswerReader(stops=wanted.options.stops)
            choices.append(Choice(len(choices), request, reader, echo, first=number == 0))
    return choices


async def _answering(service: ModelService, prompt: Prompt) -> Prompt:
    said = await asyncio.to_thread(service.engine.tokenize, REACT_ANSWER, special=False)
    return Prompt(prompt.token_ids + said)


def _repeated(plan: GenerationRequest, n: int) -> list[GenerationRequest]:
    """The same request n times: with a seed, each has its own, or they would all say the same."""
    seed = plan.sampling.seed
    if seed is None or n == 1:
        return [plan] * n
    return [replace(plan, sampling=replace(plan.sampling, seed=seed + number)) for number in range(n)]


def _held_to(service: ModelService, wanted: ChatRequest, prompt: Prompt) -> Redirect | None:
    """What the answer must be from its first word on, if anything."""
    use = wanted.tools
    if use is not None and use.choice == "required":
        return _opening(service, use, prompt)
    if wanted.schema is None:
        return None
    options: tuple[tuple[str | JsonSchema, ...], ...] = ((wanted.schema,),)
    if use is not None:  # an answer that fits, or a call
        opening = _opening(service, use, prompt)
        options += tuple((opening.tail, *option) for option in opening.constraint.options)
    return Redirect("", Constraint(options))


def _opening(service: ModelService, use: ToolUse, prompt: Prompt) -> Redirect:
    if service.tool_style == "react":
        return react_opening(use, tail="\nAction:" if prompt.in_thought else "Action:")
    return hermes_opening(use)


def _free(service: ModelService, use: ToolUse | None, wanted: ChatRequest, prompt: Prompt) -> FreeText | None:
    if use is None or use.choice == "required":
        return None
    if service.tool_style == "react":
        return ReactText(use, thinking=prompt.in_thought)
    return HermesText(use, bare=wanted.schema is None)
