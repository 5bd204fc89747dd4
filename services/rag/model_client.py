"""The only file that knows the model service: an OpenAI-compatible server at ``RAG_MODEL_URL``, by langchain-openai.

Its failures become this service's errors: unreachable, loading or full → 503; no answer in time → 504.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import openai
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from services.rag.config import Settings
from services.rag.documents.chunking import estimate_tokens
from services.rag.errors import ModelRejected, ModelTimeout, ModelUnavailable
from services.rag.precedence import Precedence
from services.rag.prompts import Message

CONNECT_SECONDS = 5.0
PROBE_SECONDS = 3.0
# How long the answer to "which model, and how large is its context?" is believed.
PROBE_TTL = 10.0
# 20 is the most that OpenAI and vLLM allow.
_PROBABILITIES = {"logprobs": True, "top_logprobs": 20}


class ModelClient:
    def __init__(self, settings: Settings) -> None:
        self.url = str(settings.model_url).rstrip("/")
        self._root = self.url.removesuffix("/v1")
        self._name = settings.model_name
        self._timeout = settings.model_timeout
        key = settings.model_api_key.get_secret_value() or "none"
        # Read timeout: between two chunks, the first one included, so it bounds waiting in the queue and prefill.
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(settings.model_timeout, connect=CONNECT_SECONDS),
            headers={"Authorization": f"Bearer {key}"},
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=16),
            trust_env=False,  # a proxy of the environment must not see questions
        )
        self._key = key
        self._chat_for: tuple[str, ChatOpenAI] | None = None
        self._probed_at = -PROBE_TTL
        self._context: int | None = None
        self._tokenizes = True
        self._tells_probabilities = True
        self.precedence = Precedence()

    async def close(self) -> None:
        await self._http.aclose()

    async def model_name(self) -> str:
        """``RAG_MODEL_NAME``, or the first model that the server lists."""
        if self._name:
            return self._name
        if self._chat_for is None:
            return await self.probe()
        if time.monotonic() - self._probed_at < PROBE_TTL:
            return self._chat_for[0]
        try:
            return await self.probe()
        except ModelTimeout:  # it is busy: no reason to fail a question that it may yet answer
            self._probed_at = time.monotonic()
            return self._chat_for[0]

    async def probe(self) -> str:
        """The name of the model that answers; raises the error that a question would meet now."""
        with _Translated(self.url, f"within {PROBE_SECONDS:g} s to /models"):
            response = await self._http.get(f"{self.url}/models", timeout=PROBE_SECONDS)
        if response.status_code in (401, 403):
            raise ModelUnavailable(f"the model service at {self.url} refuses our key: set RAG_MODEL_API_KEY")
        if response.status_code != 200:
            raise ModelUnavailable(f"the model service at {self.url} answers {response.status_code} to /models")
        try:
            models = response.json()["data"]
            names = [m["id"] for m in models]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelUnavailable(
                f"what answers at {self.url} is not an OpenAI-compatible server: check RAG_MODEL_URL"
            ) from error
        if not names:
            raise ModelUnavailable(f"the model service at {self.url} serves no model yet")
        name = self._name or str(names[0])
        if self._name and self._name not in names:
            raise ModelUnavailable(
                f"the model service at {self.url} does not serve RAG_MODEL_NAME={self._name}; it serves {', '.join(names)}"
            )
        entry = models[names.index(name)]
        context = entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx")
        self._context = int(context) if context else None
        if self._chat_for is None or self._chat_for[0] != name:
            self._chat_for = (
                name,
                ChatOpenAI(
                    model=name,
                    base_url=self.url,
                    api_key=self._key,
                    http_async_client=self._http,
                    timeout=httpx.Timeout(self._timeout, connect=CONNECT_SECONDS),
                    max_retries=0,  # the caller hears at once; retrying under load makes the load
                    stream_usage=False,
                ),
            )
        self._probed_at = time.monotonic()
        return name

    async def ready(self) -> None:
        """Raise :class:`ModelUnavailable` with the reason while questions cannot be answered."""
        await self.probe()
        with _Translated(self.url, f"within {PROBE_SECONDS:g} s to /ready"):
            response = await self._http.get(f"{self._root}/ready", timeout=PROBE_SECONDS)
        if response.status_code == 503:
            raise ModelUnavailable(f"the model service at {self.url} is not ready: {_reason(response)}")

    @property
    def context(self) -> int | None:
        """The model's context in tokens, where the server tells it."""
        return self._context

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Prompt tokens of ``messages``, by the server's ``/tokenize``; estimated where it has none."""
        if self._tokenizes:
            body = {"model": await self.model_name(), "messages": [_wire(m) for m in messages]}
            with self._translated():
                response = await self._http.post(f"{self._root}/tokenize", json=body)
            if response.status_code == 200:
                payload = response.json()
                if isinstance(payload.get("max_model_len"), int):
                    self._context = payload["max_model_len"]
                if isinstance(payload.get("count"), int):
                    return int(payload["count"])
            if response.status_code in (404, 405, 501):
                self._tokenizes = False  # a stand-in server without the route
        return sum(estimate_tokens(text) + 8 for _, text in messages)

    async def count_text(self, text: str) -> int:
        """Tokens of ``text`` by itself, by the server's ``/tokenize``; estimated where it has none."""
        if self._tokenizes:
            body = {"model": await self.model_name(), "prompt": text, "add_special_tokens": False}
            with self._translated():
                response = await self._http.post(f"{self._root}/tokenize", json=body)
            if response.status_code == 200 and isinstance(count := response.json().get("count"), int):
                return count
            if response.status_code in (404, 405, 501):
                self._tokenizes = False
        return estimate_tokens(text)

    async def parts_first(self, word: str) -> bool:
        """Whether the first character of ``word`` may be a token by itself; True where the server does not tell."""
        if len(word) < 2:
            return True
        whole, first, rest = await asyncio.gather(*map(self.count_text, (word, word[0], word[1:])))
        return not self._tokenizes or whole == first + rest

    async def complete(self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0) -> str:
        """The whole reply."""
        with self.precedence.question():
            return await self._complete(messages, max_tokens, temperature)

    async def complete_aside(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """The whole reply, for work that nobody waits for.

        Raises:
            Interrupted: a question came; the connection is closed, which ends the generation.
        """
        return await self.precedence.work(self._complete(messages, max_tokens, 0.0))

    async def _complete(self, messages: Sequence[Message], max_tokens: int, temperature: float) -> str:
        chat = await self._chat()
        with self._translated():
            reply = await chat.ainvoke(_langchain(messages), max_tokens=max_tokens, temperature=temperature)
        return reply.text

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        opening: Callable[[Mapping[str, float]], None] | None = None,
    ) -> AsyncGenerator[str, None]:
        """The reply as it is generated. Closing the iterator closes the connection, which ends the generation.

        ``opening`` is told, before the first piece, the probabilities of the tokens that could have come first; it is not
        called where the server does not tell them.
        """
        chat = await self._chat()
        with self.precedence.question(), self._translated():
            asking: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
            if opening is not None and self._tells_probabilities:
                try:
                    async with aclosing(self._pieces(chat, messages, asking | _PROBABILITIES, opening)) as pieces:
                        async for text in pieces:
                            yield text
                    return
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    if "logprobs" not in str(error):
                        raise
                    self._tells_probabilities = False  # a server without them
            async with aclosing(self._pieces(chat, messages, asking, opening)) as pieces:
                async for text in pieces:
                    yield text

    async def _pieces(
        self,
        chat: ChatOpenAI,
        messages: Sequence[Message],
        asking: dict[str, Any],
        opening: Callable[[Mapping[str, float]], None] | None,
    ) -> AsyncGenerator[str, None]:
        stream = chat.astream(_langchain(messages), **asking)
        async with _closing(stream):
            while True:
                # Not httpx's timeout: a server's keep-alive comments during a long prefill reset that one.
                async with asyncio.timeout(self._timeout):
                    chunk = await anext(stream, None)
                if chunk is None:
                    return
                if opening is not None and (first := _first(chunk.response_metadata.get("logprobs"))):
                    opening(first)
                    opening = None
                if chunk.text:
                    yield chunk.text

    async def _chat(self) -> ChatOpenAI:
        await self.model_name()
        if self._chat_for is None:
            await self.probe()
        assert self._chat_for is not None
        return self._chat_for[1]

    def _translated(self) -> "_Translated":
        return _Translated(self.url, f"in time (RAG_MODEL_TIMEOUT is {self._timeout:g} s)")


class _Translated:
    """Context manager: errors of httpx and openai become ours."""

    def __init__(self, url: str, limit: str) -> None:
        self._url, self._limit = url, limit

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case openai.APITimeoutError() | httpx.TimeoutException() | TimeoutError():
                if isinstance(error, httpx.ConnectTimeout) or isinstance(error.__cause__, httpx.ConnectTimeout):
                    raise self._unreachable() from error
                raise ModelTimeout(
                    f"the model service at {self._url} did not answer {self._limit}: try again, or look at its load"
                ) from error
            case openai.APIConnectionError() | httpx.TransportError():
                raise self._unreachable() from error
            case openai.RateLimitError():
                after = error.response.headers.get("retry-after", "")
                raise ModelUnavailable(
                    f"the model service at {self._url} is full: try again later",
                    retry_after=int(after) if after.isdigit() else 5,
                ) from error
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                raise ModelUnavailable(
                    f"the model service at {self._url} refuses our key: set RAG_MODEL_API_KEY"
                ) from error
            case openai.APIStatusError() if error.status_code == 503:
                raise ModelUnavailable(
                    f"the model service at {self._url} is not ready: {_message(error)}", retry_after=5
                ) from error
            case openai.APIStatusError() if error.status_code == 504:
                raise ModelTimeout(f"the model service at {self._url} ran out of time: {_message(error)}") from error
            case openai.APIStatusError():
                raise ModelRejected(
                    f"the model service at {self._url} answered {error.status_code}: {_message(error)}"
                ) from error
            case openai.APIError():  # an error event in the middle of a stream
                raise ModelUnavailable(f"the model service at {self._url} stopped: {_message(error)}") from error

    def _unreachable(self) -> ModelUnavailable:
        return ModelUnavailable(
            f"the model service at {self._url} cannot be reached: start it (python -m services.model) or set RAG_MODEL_URL",
            retry_after=5,
        )


@asynccontextmanager
async def _closing(stream: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if hasattr(stream, "aclose"):
            await stream.aclose()


def _first(logprobs: Any) -> dict[str, float]:
    """The probabilities of what could have been the first token, by its text; empty where they are not told."""
    try:
        return {t["token"]: math.exp(t["logprob"]) for t in logprobs["content"][0]["top_logprobs"]}
    except (TypeError, KeyError, IndexError, OverflowError):
        return {}


def _message(error: openai.APIError) -> str:
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return str(error)


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
        return str(body.get("reason") or body["error"]["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:200]


def _wire(message: Message) -> dict[str, str]:
    role, text = message
    return {"role": {"system": "system", "human": "user", "ai": "assistant"}[role], "content": text}


def _langchain(messages: Sequence[Message]) -> list[BaseMessage]:
    kinds: dict[str, type[BaseMessage]] = {"system": SystemMessage, "human": HumanMessage, "ai": AIMessage}
    return [kinds[role](content=text) for role, text in messages]
