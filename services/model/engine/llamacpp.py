"""llama.cpp, in this process, for GGUF files on a CPU or on a GPU that the installed xllamacpp wheel was built for.

xllamacpp generates through `Server.handle_completions`, but reaches the tokenizer only through the HTTP server that llama.cpp
opens beside it. That door is kept shut to everyone else: it is a Unix socket in a directory that only this user can enter,
removed at exit, and it asks for a random key (on systems without Unix sockets: a loopback port, with the key).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

if "OMP_WAIT_POLICY" not in os.environ:
    # libgomp reads this once, when it is loaded. Its threads wait for each other by spinning for about a millisecond, which
    # costs nothing on an idle machine. Beside another busy process (the RAG service embedding a document) the spinning takes
    # the core that the awaited thread needs: prefill was 2 times and decode up to 4 times slower than with this.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from xllamacpp import xllamacpp

from services.model.engine.base import (
    Candidate,
    Event,
    Finish,
    GenerationRequest,
    ModelInfo,
    Progress,
    Report,
    Sampling,
    Token,
    TokenLogprob,
)
from services.model.engine.gguf import read_gguf
from services.model.engine.lark import Watch, render
from services.model.errors import CheckpointError, EngineFailed

log = logging.getLogger("docduet.model")

DEFAULT_CONTEXT = 8192
# Blocks of a cached prompt that moved (passages in another order) are shifted into place instead of being read again, from
# this many tokens on: reading a RAG prompt takes about half as long, with the same answers.
CACHE_REUSE = 32
_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp's own mark for "draw one"


@dataclass(frozen=True)
class LlamaCppOptions:
    """See the settings of the same names. None: derived from the checkpoint or the machine."""

    context: int | None = None
    kv_tokens: int | None = None
    parallel: int = 4
    batch: int = 128
    prompt_cache_mb: int = 128
    threads: int = 2
    device: str = "auto"


class LlamaCppEngine:
    """`locate` gives the path of the GGUF file, after fetching it where needed; it may block."""

    def __init__(self, locate: Callable[[Report], Path], options: LlamaCppOptions) -> None:
        self._locate = locate
        self._options = options
        self._server: Any = None
        self._door: httpx.Client | None = None
        self._socket_dir: Path | None = None
        self._closing = threading.Event()
        # A generation blocks its thread; the scheduler admits no more than there are threads.
        self._threads = ThreadPoolExecutor(options.parallel, thread_name_prefix="llamacpp")

    def load(self, report: Report) -> ModelInfo:
        path = self._locate(report)
        report(f"loading {path.name}")
        facts = read_gguf(path)
        context = min(self._options.context or DEFAULT_CONTEXT, facts.context_length)
        if self._options.context and self._options.context > context:
            log.warning(
                "MODEL_CONTEXT=%d is more than %s was trained for; using %d", self._options.context, path.name, context
            )
        kv_tokens = max(self._options.kv_tokens or 2 * context, context)
        key = secrets.token_hex(32)
        params = self._params(path, kv_tokens, key)
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise CheckpointError(
                f"llama.cpp could not load {path}: {error}. Is there enough memory for the file and a KV cache of {kv_tokens} "
                "tokens (MODEL_CONTEXT, MODEL_KV_TOKENS), and does this llama.cpp know the architecture "
                f"{facts.architecture!r}?"
            ) from error
        self._door = self._open_door(key)
        return ModelInfo(
            context=context,
            kv_tokens=kv_tokens,
            vocab_size=facts.vocab_size,
            chat_template=facts.chat_template,
            special_tokens=facts.control_tokens,
            bos_token=facts.bos_token,
            eos_token=facts.eos_token,
            # Its kernels differ by the number of rows, and its attention by where in the cache a sequence lies.
            batch_invariant=False,
        )

    def _params(self, path: Path, kv_tokens: int, key: str) -> Any:
        options = self._options
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = kv_tokens
        params.n_parallel = options.parallel
        params.kv_unified = True  # one cache for all requests: each takes what it needs, not a fixed share
        # A block is also how long a cancelled prompt keeps the machine, and sizes the compute buffers. 128 reads 4 % slower
        # than 2048; 64 reads 10 % slower.
        params.n_batch = params.n_ubatch = options.batch
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        if options.device == "cpu":
            params.n_gpu_layers = 0
        params.n_cache_reuse = CACHE_REUSE
        params.cache_ram_mib = options.prompt_cache_mb  # llama.cpp's own default is 8 GiB
        params.warmup = False
        params.ui = False
        params.endpoint_slots = params.endpoint_metrics = params.endpoint_props = False
        params.verbosity = 0
        params.api_keys = [key]
        if hasattr(socket, "AF_UNIX"):
            self._socket_dir = Path(tempfile.mkdtemp(prefix="docduet-"))  # mode 0700
            params.hostnames = [str(self._socket_dir / "llamacpp.sock")]
        else:
            params.hostnames = ["127.0.0.1"]
            params.port = 0
        return params

    def _open_door(self, key: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"}
        if self._socket_dir is None:
            return httpx.Client(base_url=self._server.listening_address, headers=headers, timeout=60, trust_env=False)
        transport = httpx.HTTPTransport(uds=str(self._socket_dir / "llamacpp.sock"))
        return httpx.Client(base_url="http://llamacpp", headers=headers, timeout=60, transport=transport)

    def tokenize(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        if not text and not add_bos:
            return []
        body = {"content": text, "add_special": add_bos, "parse_special": special}
        ids: list[int] = self._ask("/tokenize", body, "tokens")
        return ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return str(self._ask("/detokenize", {"tokens": list(token_ids)}, "content"))

    def _ask(self, path: str, body: dict[str, Any], wanted: str) -> Any:
        if self._door is None:
            raise EngineFailed("the tokenizer is not loaded")
        try:
            response = self._door.post(path, json=body)
            response.raise_for_status()
            return json.loads(response.content)[wanted]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            size = len(next(iter(body.values())))
            log.exception("llama.cpp's tokenizer failed at %s on %d", path, size)
            raise EngineFailed(f"the tokenizer failed on a text of length {size}; the log says why") from error

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        cancelled = threading.Event()

        def send(event: Event | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(events.put_nowait, event)

        def on_chunk(chunk: dict[str, Any]) -> bool:
            # Runs in the engine's thread with the GIL, once a token: True stops the generation.
            if cancelled.is_set() or self._closing.is_set():
                return True
            event = _event(chunk, request.logprobs)
            if event is not None:
                send(event)
            return False

        def work() -> None:
            try:
                self._server.handle_completions(_payload(request), on_chunk)
                send(EngineFailed("the engine ended without finishing the answer"))  # not read after a Finish
            except Exception as error:
                log.exception("llama.cpp failed")
                send(EngineFailed(f"the engine failed: {type(error).__name__}; the log says more"))

        # llama.cpp answers without any grammar when its copy of the library does not take the one that it is given.
        watch = await asyncio.to_thread(Watch, render(request.constraint)) if request.constraint else None
        running = loop.run_in_executor(self._threads, work)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if watch is not None and _strays(event, watch):
                    raise EngineFailed("the engine left the schema that the answer has to fit; the log says which")
                yield event
                if type(event) is Finish:
                    return
        finally:
            cancelled.set()
            await _settled(running)

    def close(self) -> None:
        self._closing.set()
        # Waits for the threads: freeing the weights under a running generation would crash the process.
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._door is not None:
            self._door.close()
            self._door = None
        self._server = None
        self.remove_door()

    def remove_door(self) -> None:
        """Removes the socket's directory; also for exits that cannot wait for `close`."""
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)


def _strays(event: Event, watch: Watch) -> bool:
    if isinstance(event, Token) and not watch.fits(event.text):
        log.error("llama.cpp did not keep to a grammar; it begins: %.500s", watch.grammar)
        return True
    return isinstance(event, Finish) and event.reason == "stop" and not watch.complete


async def _settled(future: asyncio.Future[None]) -> None:
    """Waits for the engine's thread even when this task is cancelled (again): its place must not be given away earlier."""
    interrupted = False
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            interrupted = True
    if interrupted:
        raise asyncio.CancelledError


def _payload(request: GenerationRequest) -> dict[str, Any]:
    """llama.cpp's completion request. Every sampling field is explicit: its defaults (top_k 40, min_p 0.05) are not OpenAI's."""
    sampling: Sampling = request.sampling
    penalised = sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1
    payload: dict[str, Any] = {
        "prompt": request.token_ids,
        "n_predict": request.max_tokens,
        "stream": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": _seed(sampling.seed),
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        # All the text so far; llama.cpp's -1 for that is not accepted here.
        "repeat_last_n": len(request.token_ids) + request.max_tokens if penalised else 0,
        "ignore_eos": sampling.ignore_eos and request.constraint is None,  # a grammar's end is the end
        "cache_prompt": not request.alone,
        "timings_per_token": True,  # the exact number of tokens, also where several make one character
        "return_progress": True,  # a callback for each block of the prompt: the only chance to cancel there
    }
    if sampling.logit_bias:
        payload["logit_bias"] = [[token_id, bias] for token_id, bias in sampling.logit_bias.items()]
    if request.logprobs is not None:
        payload["n_probs"] = max(1, request.logprobs)
    if request.constraint is not None:
        payload["grammar"] = render(request.constraint)
    return payload


def _logprobs(found: dict[str, Any] | None, text: str, alternatives: int) -> tuple[TokenLogprob, ...]:
    """llama.cpp's list of drawn tokens; one that only ends a character stands for the whole of it."""
    entries = (found or {}).get("content", [])
    whole = text.encode()
    return tuple(
        TokenLogprob(
            Candidate(whole if len(entries) == 1 else bytes(entry["bytes"]), _finite(entry["logprob"])),
            tuple(
                Candidate(bytes(top["bytes"]), _finite(top["logprob"])) for top in entry["top_logprobs"][:alternatives]
            ),
        )
        for entry in entries
    )


def _finite(logprob: float) -> float:
    return max(logprob, -9999.0)  # as OpenAI writes "impossible"; -inf is not JSON


def _seed(seed: int | None) -> int:
    """OpenAI's seeds are 64 bit and may be negative, llama.cpp's 32 bit; equal seeds stay equal."""
    if seed is None:
        return _RANDOM_SEED
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF if seed >= 1 << 32 else seed & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else 0


def _event(chunk: dict[str, Any], alternatives: int | None) -> Event | Exception | None:
    if "error" in chunk:
        error = chunk["error"]
        log.error("llama.cpp refused a request: %s", error)
        return EngineFailed(f"the engine refused the request: {error.get('message', error)}")
    progress = chunk.get("prompt_progress")
    if progress is not None:
        return Progress(progress["processed"], progress["total"], progress["cache"])
    choices = chunk.get("choices")
    if not choices:
        return None
    choice = choices[0]
    timings = chunk.get("timings", {})
    reason = choice["finish_reason"]
    if reason is None:
        text = choice["text"]
        # Without text it is the end of the turn, or part of a character of which llama.cpp reports the last token alone.
        entries = () if alternatives is None or not text else _logprobs(choice["logprobs"], text, alternatives)
        return Token(text, timings.get("predicted_n", 0), entries)
    usage = chunk["usage"]
    return Finish(
        "stop" if reason == "stop" else "length",
        usage["prompt_tokens"],
        usage.get("prompt_tokens_details", {}).get("cached_tokens", 0),
        usage["completion_tokens"],
    )
