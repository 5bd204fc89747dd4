"""The model behind the routes: loading, readiness, and the steps from a parsed request to an admitted generation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from services.model.chat import ChatTemplate, Prompt
from services.model.config import Settings
from services.model.engine.base import Engine, GenerationRequest, ModelInfo, Sampling
from services.model.errors import (
    ContextLengthExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    StartupError,
)
from services.model.generation import Generation, Generator
from services.model.messages import Message
from services.model.metrics import Metrics
from services.model.protocol import Options
from services.model.scheduler import Scheduler
from services.model.tools import Tool

log = logging.getLogger("docduet.model")


class ModelService:
    """One engine and what guards it. `names`: what clients may call the model. `on_failed` is told when loading fails."""

    def __init__(self, settings: Settings, engine: Engine, names: Sequence[str]) -> None:
        self.settings = settings
        self.names = tuple(names)
        self.engine = engine
        self.metrics = Metrics()
        self.metrics.watch(
            lambda: self._scheduler.running if self._scheduler else 0,
            lambda: self._scheduler.waiting if self._scheduler else 0,
        )
        self.info: ModelInfo | None = None
        self.started = int(time.time())
        self.reason = "the service is starting"
        self.failure: StartupError | None = None
        self.on_failed: Callable[[], None] = lambda: None
        self.draining = False
        self.in_flight = 0  # requests with work in them, from their first byte to their last
        self._idle = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._scheduler: Scheduler | None = None
        self._generator: Generator | None = None
        self._template: ChatTemplate | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def start_loading(self) -> None:
        """Loads in a thread, so that the port answers meanwhile. The thread does not keep the process alive."""
        loop = asyncio.get_running_loop()

        def load() -> None:
            failure: StartupError | None = None
            info: ModelInfo | None = None
            began = time.perf_counter()
            try:
                info = self.engine.load(self._report)
            except StartupError as error:
                failure = error
            except Exception as error:
                log.exception("loading failed")
                failure = StartupError(
                    f"the model {self.names[0]} could not be loaded: {type(error).__name__}: {error}"
                )
            with contextlib.suppress(RuntimeError):  # the service stopped meanwhile
                loop.call_soon_threadsafe(self._loaded, info, failure, time.perf_counter() - began)

        self._thread = threading.Thread(target=load, name="model-loading", daemon=True)
        self._thread.start()

    @property
    def loading(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _report(self, doing: str) -> None:
        self.reason = doing

    def _loaded(self, info: ModelInfo | None, failure: StartupError | None, seconds: float) -> None:
        if info is None:
            self.failure = failure
            self.reason = f"loading failed: {failure}"
            self.on_failed()
            return
        if info.chat_template is not None:
            try:
                self._template = ChatTemplate(
                    info.chat_template,
                    info.special_tokens,
                    bos_token=info.bos_token,
                    eos_token=info.eos_token,
                    tool_style=info.tool_style,
                )
            except jinja2.TemplateError as error:
                log.error("the checkpoint's chat template cannot be used, so chat completions are refused: %s", error)
        settings = self.settings
        self._scheduler = Scheduler(places=settings.parallel, tokens=info.kv_tokens, queue=settings.queue)
        self._generator = Generator(self.engine, self._scheduler, self.metrics)
        self.info = info
        log.info(
            "ready after %.1f s: %s, context %d tokens, %d requests at a time",
            seconds,
            self.names[0],
            info.context,
            settings.parallel,
        )

    def start_draining(self) -> None:
        """From now on new work is refused; what runs or waits goes on."""
        self.draining = True

    def work_began(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def work_ended(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def idle(self) -> None:
        """Returns when no request is in flight."""
        if self.in_flight:
            await self._idle.wait()

    async def close(self) -> None:
        if self._generator is not None:
            await self._generator.settled()
        if not self.loading:  # an engine cannot be freed while it is being made; the process ends anyway
            await asyncio.to_thread(self.engine.close)

    # --- requests -----------------------------------------------------------------------------------------------------

    def require_ready(self) -> ModelInfo:
        """Raises Draining or NotReady when no new work can be taken."""
        if self.draining:
            raise Draining(
                "the service is stopping and takes no new requests; send this one to another, or try again soon"
            )
        if self.info is None:
            raise NotReady(f"the model {self.names[0]} is not ready: {self.reason}")
        return self.info

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises ModelNotFound."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise ModelNotFound(
                f"the model {name!r} is not served here; this is {' or '.join(self.names)}", param="model"
            )
        return name

    @property
    def thinks(self) -> bool:
        """Whether the model can think before it answers."""
        return self._template is not None and self._template.thinks

    @property
    def tool_style(self) -> str:
        return self.info.tool_style if self.info else "hermes"

    async def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt of a conversation. Raises InvalidRequest where the template refuses it."""
        template = self._template
        if template is None:
            raise InvalidRequest(
                f"the checkpoint of {self.names[0]} has no usable chat template; use /v1/completions", param="messages"
            )
        # In a thread: a template and a tokenizer may take a while on a long conversation.
        return await asyncio.to_thread(
            template.tokenize,
            messages,
            self.engine.tokenize,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )

    async def text_tokens(self, text: str, *, add_bos: bool = True) -> list[int]:
        """The tokens of a raw prompt, in which control tokens are the client's own business."""
        return await asyncio.to_thread(self.engine.tokenize, text, special=True, add_bos=add_bos)

    def plan(self, token_ids: list[int], options: Options, param: str) -> GenerationRequest:
        """Checks a prompt against the context. Raises ContextLengthExceeded with both numbers."""
        info = self.require_ready()
        count = len(token_ids)
        if count == 0:
            raise InvalidRequest(f"{param} has no tokens", param=param)
        if max(token_ids) >= info.vocab_size:
            raise InvalidRequest(f"{param} holds {max(token_ids)}; token ids end at {info.vocab_size - 1}", param=param)
        room = info.context - count
        if room < 1:
            raise ContextLengthExceeded(
                f"the context is {info.context} tokens, prompt and answer together, and the {param} alone take {count} tokens; "
                f"shorten the {param}",
                param=param,
            )
        if options.max_tokens is not None and options.max_tokens > room:
            raise ContextLengthExceeded(
                f"the context is {info.context} tokens, but this request asks for {count + options.max_tokens}: {count} in the "
                f"{param} and {options.max_tokens} for the answer ({options.max_tokens_param}); at most {room} are left",
                param=options.max_tokens_param,
            )
        beyond = [token_id for token_id in options.sampling.get("logit_bias", ()) if token_id >= info.vocab_size]
        if beyond:
            raise InvalidRequest(
                f"logit_bias holds {beyond[0]}; token ids end at {info.vocab_size - 1}", param="logit_bias"
            )
        sampling = Sampling(**{**info.defaults, **options.sampling})
        seeded = sampling.seed is not None and sampling.temperature > 0
        return GenerationRequest(
            token_ids,
            options.max_tokens or min(room, options.default_max_tokens or room),
            sampling,
            options.logprobs,
            alone=seeded and not info.batch_invariant and self.settings.seeded == "alone",
        )

    async def start(self, request: GenerationRequest, *, arrived: float) -> Generation:
        """Waits for a place. Raises QueueFull and EngineFailed."""
        if self._generator is None:
            raise EngineFailed("no model is loaded")
        return await self._generator.start(request, arrived=arrived)
