"""Hugging Face checkpoints on torch, on a CPU or a CUDA GPU: continuous batching over a paged KV cache.

One thread owns the model. Requests come to it through a queue, and all events of a step go back to the event loop together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.model.engine.base import Event, Finish, GenerationRequest, ModelInfo, Report
from services.model.engine.transformers.attention import BLOCK_SIZE, KVCache, install
from services.model.engine.transformers.batching import Batcher
from services.model.engine.transformers.cache import BlockPool
from services.model.engine.transformers.checkpoint import Loaded
from services.model.engine.transformers.grammar import Grammars, Matcher
from services.model.engine.transformers.linear import pack_linears
from services.model.engine.transformers.sampler import Sampler
from services.model.engine.transformers.sequence import Sequence
from services.model.errors import EngineFailed, InvalidRequest

log = logging.getLogger("docduet.model")

DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class TransformersOptions:
    """See the settings of the same names. None: derived from the checkpoint or the machine."""

    context: int | None = None
    kv_tokens: int | None = None
    parallel: int = 4
    batch: int = 128
    threads: int = 2
    device: str = "auto"  # auto, cpu, gpu (or cuda)
    dtype: str = "auto"  # auto, float32, bfloat16, float16


def _load(folder: Path, *, device: str, dtype: str, report: Report) -> Loaded:
    from services.model.engine.transformers.loading import load

    return load(folder, device=device, dtype=dtype, report=report)


class TransformersEngine:
    """`locate` gives the checkpoint's folder, after fetching it where needed; it may block. `load` reads it."""

    def __init__(
        self,
        locate: Callable[[Report], Path],
        options: TransformersOptions,
        *,
        load: Callable[..., Loaded] = _load,
    ) -> None:
        self._locate = locate
        self._options = options
        self._load = load
        self._loaded: Loaded | None = None
        self._vocab_size = 0
        self._grammars: Grammars | None = None
        self._worker: Worker | None = None

    def load(self, report: Report) -> ModelInfo:
        options = self._options
        folder = self._locate(report)
        torch.set_num_threads(options.threads)  # of this thread, which converts the weights
        loaded = self._load(folder, device=options.device, dtype=options.dtype, report=report)
        context = min(options.context or DEFAULT_CONTEXT, loaded.context)
        if options.context and options.context > context:
            log.warning("MODEL_CONTEXT=%d is more than %s was trained for; using %d", options.context, folder, context)
        kv_tokens = max(options.kv_tokens or 2 * context, context)
        model: Any = loaded.model
        install(model, folder.name)
        report("laying out the weights")
        pack_linears(model)
        report(f"making room for a KV cache of {kv_tokens} tokens")
        # The scheduler counts tokens, not blocks: the unfilled part of each running request's last block comes on top.
        blocks = -(-kv_tokens // BLOCK_SIZE) + options.parallel
        config = model.config
        cache = KVCache(config, blocks, model.device, model.dtype)
        pool = BlockPool(blocks, BLOCK_SIZE)
        batcher = Batcher(model, cache, pool, batch=options.batch)
        self._vocab_size = config.vocab_size
        self._grammars = Grammars(loaded.vocabulary, loaded.eos_ids, self._vocab_size)
        self._loaded = loaded
        self._worker = Worker(batcher, pool, options.threads)
        return ModelInfo(
            context=context,
            kv_tokens=kv_tokens,
            vocab_size=self._vocab_size,
            chat_template=loaded.chat_template,
            special_tokens=loaded.special_tokens,
            bos_token=loaded.bos_token,
            eos_token=loaded.eos_token,
            defaults=loaded.defaults,
            tool_style=loaded.tool_style,
        )

    def tokenize(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        if self._loaded is None:
            raise EngineFailed("the tokenizer is not loaded")
        return self._loaded.vocabulary.encode(text, special=special, add_bos=add_bos)

    def detokenize(self, token_ids: Iterable[int]) -> str:
        if self._loaded is None:
            raise EngineFailed("the tokenizer is not loaded")
        vocabulary, control = self._loaded.vocabulary, self._loaded.special_tokens
        names = {token_id: text.encode() for text, token_id in control.items()}
        data = b"".join(names.get(token_id) or vocabulary.token_bytes(token_id) for token_id in token_ids)
        return data.decode("utf-8", "replace")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        loaded, worker, grammars = self._loaded, self._worker, self._grammars
        if loaded is None or worker is None or grammars is None:
            raise EngineFailed("the model is not loaded")
        self._check(request)
        matcher: Matcher | None = None
        if request.constraint is not None:
            matcher = await asyncio.to_thread(grammars.matcher, request.constraint)
        channel = Channel(asyncio.get_running_loop())

        def start() -> Sequence:  # in the worker's thread, which owns the device
            sampler = Sampler(
                request,
                vocab_size=self._vocab_size,
                eos_ids=loaded.eos_ids,
                matcher=matcher,
                device=worker.device,
            )
            return Sequence(request, sampler, loaded, channel.send)

        worker.submit(channel, start)
        try:
            while True:
                event = await channel.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if type(event) is Finish:
                    return
        finally:
            worker.cancel(channel)
            await channel.released()

    def _check(self, request: GenerationRequest) -> None:
        ids = [*request.token_ids, *request.sampling.logit_bias]
        if not request.token_ids or min(ids) < 0 or max(ids) >= self._vocab_size:
            raise InvalidRequest(f"a prompt is one or more token ids from 0 to {self._vocab_size - 1}")

    @property
    def free_blocks(self) -> int:
        """Blocks of the KV cache that no running request holds."""
        return self._worker.pool.available if self._worker else 0

    @property
    def forward_tokens(self) -> int:
        """Tokens computed since the start; those that were shared are not among them."""
        return self._worker.batcher.forward_tokens if self._worker else 0

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = self._grammars = self._loaded = None


class Channel:
    """The way from the worker's thread to the task that waits for one request's events."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.outbox: list[Event | Exception] = []  # of the step that runs
        self.sequence: Sequence | None = None
        self.cancelled = False
        self._released = asyncio.Event()

    def send(self, event: Event | Exception) -> None:
        self.outbox.append(event)

    def deliver(self, events: list[Event | Exception], *, last: bool) -> None:
        """In the loop's thread."""
        for event in events:
            self.events.put_nowait(event)
        if last:
            self._released.set()

    async def released(self) -> None:
        """Waits until the worker has let go of the request, also when this task is cancelled (again): its place must not be
        given away earlier."""
        interrupted = False
        while not self._released.is_set():
            try:
                await self._released.wait()
            except asyncio.CancelledError:
                interrupted = True
        if interrupted:
            raise asyncio.CancelledError


class Worker:
    """The thread that owns the model: takes requests in, steps while there are any, and hands their events out."""

    def __init__(self, batcher: Batcher, pool: BlockPool, threads: int) -> None:
        self.batcher = batcher
        self.pool = pool
        self.device = batcher.device
        self._threads = threads
        self._wake = threading.Condition()
        self._arrived: list[tuple[Channel, Callable[[], Sequence]]] = []
        self._left = False  # whether a channel was cancelled since the last look
        self._closing = False
        self._channels: list[Channel] = []  # of the running sequences
        self._thread = threading.Thread(target=self._work, name="transformers", daemon=True)
        self._thread.start()

    def submit(self, channel: Channel, start: Callable[[], Sequence]) -> None:
        with self._wake:
            if self._closing:
                raise EngineFailed("the engine is stopping")
            self._arrived.append((channel, start))
            self._wake.notify()

    def cancel(self, channel: Channel) -> None:
        with self._wake:
            channel.cancelled = self._left = True
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # a setting of each thread
        with torch.inference_mode():
            while self._take_in():
                try:
                    self.batcher.step()
                except Exception:
                    log.exception("the engine failed outside of a forward")
                    self.batcher.fail_all(EngineFailed("the engine failed; the log says more"))
                self._hand_out()
            self.batcher.fail_all(EngineFailed("the engine is stopping"))
            self._hand_out()

    def _take_in(self) -> bool:
        """Waits for something to do; False: the end."""
        with self._wake:
            while not (self._arrived or self._left or self._closing) and self.batcher.idle:
                self._wake.wait()
            arrived, self._arrived = self._arrived, []
            left, self._left = self._left, False
            closing = self._closing
        for channel, start in arrived:
            self._channels.append(channel)
            if closing:
                channel.send(EngineFailed("the engine is stopping"))
                continue
            if channel.cancelled:
                continue
            try:
                channel.sequence = start()
                self.batcher.add(channel.sequence)
            except Exception as error:
                log.exception("a request could not be taken in")
                channel.send(EngineFailed(f"the engine failed: {type(error).__name__}; the log says more"))
        if left:
            for channel in self._channels:
                if channel.cancelled and channel.sequence is not None:
                    self.batcher.remove(channel.sequence)
        if arrived or left:
            self._hand_out()  # before the step: a request is accepted without waiting for it
        return not closing

    def _hand_out(self) -> None:
        """One call into the event loop for all events of the step."""
        deliveries: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        running = []
        for channel in self._channels:
            last = channel.sequence is None or channel.sequence.finished
            if channel.outbox or last:
                events, channel.outbox = channel.outbox, []
                deliveries.setdefault(channel.loop, []).append(_delivery(channel, events, last))
            if not last:
                running.append(channel)
        self._channels = running
        for loop, calls in deliveries.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(_call_all, calls)


def _delivery(channel: Channel, events: list[Event | Exception], last: bool) -> Callable[[], None]:
    return lambda: channel.deliver(events, last=last)


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()
