"""The conversational chain: condense (only with history) → retrieve → answer → verify citations. Plain LCEL runnables.

Input and output are the dictionaries of :class:`RagInput` and :class:`RagOutput`. Streamed, the output comes as
dictionaries that add up to the invoked one: first ``standalone_question``, then pieces of ``answer``, at the end
``answerable`` and ``citations``.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableConfig,
    RunnableGenerator,
    RunnableLambda,
    RunnableSerializable,
)
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from services.rag.citations import MarkerFilter, Passage, SentenceSplitter, Support, support
from services.rag.config import COLLECTION_PATTERN, DEFAULT_COLLECTION, Settings
from services.rag.errors import InvalidRequest, ModelRejected
from services.rag.metrics import Metrics
from services.rag.model_client import ModelClient
from services.rag.prompts import (
    UNKNOWN,
    Turn,
    accept_condensed,
    answer_messages,
    condense_messages,
    is_refusal,
    language_of,
)
from services.rag.retrieval import MAX_QUERY_CHARACTERS, Found, Mode, Retriever

MAX_HISTORY_TURNS = 1000
CONDENSE_MAX_TOKENS = 96
# Where the model service does not tell its context.
ASSUMED_CONTEXT = 4096
MIN_ANSWER_TOKENS = 64


class RagInput(BaseModel):
    """A question, with the conversation before it."""

    question: str = Field(description="The question, in Chinese or English.")
    chat_history: list[tuple[str, str]] = Field(
        default_factory=list,
        description="Earlier turns as [human, ai] pairs, oldest first.",
        json_schema_extra={"widget": {"type": "chat", "input": "question"}},
    )
    collection: str = Field(default=DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)
    # Not `| None`: the playground's form cannot draw a field that may be null. A null that is sent counts as empty.
    filter: Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)] = Field(
        default_factory=dict, description="Only documents with this document_id or filename."
    )


class Citation(BaseModel):
    index: int = Field(description="The n of the marker [n] in the answer, from 1.")
    document_id: str
    filename: str
    page: int = Field(description="1-based.")
    label: str = Field(
        description="What a person calls the page: a slide, a sheet's rows, a heading; empty for a printed page."
    )
    quote: str = Field(description="An exact span of the page's text.")
    start: int = Field(description="Offset of the quote in the page's text, in code points.")
    end: int
    score: float = Field(description="Probability, 0 to 1, that the passage bears on the question.")


class RagOutput(BaseModel):
    answer: str
    answerable: bool
    citations: list[Citation]
    standalone_question: str


K = Annotated[int, Field(ge=1, le=20)]
Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
MaxTokens = Annotated[int, Field(ge=16, le=4096)]


def _control(name: str, annotation: Any, description: str) -> ConfigurableField:
    # The annotation carries the bounds into config_schema, so LangServe refuses a value outside them by name.
    return ConfigurableField(id=name, name=name, description=description, annotation=annotation)


class Options(RunnableSerializable[dict[str, Any], dict[str, Any]]):
    """The chain's first step: checks the input and notes the options of this call (``config.configurable``)."""

    model_config = ConfigDict(extra="forbid")

    k: K = 4
    temperature: Temperature = 0.0
    max_tokens: MaxTokens = 512
    mode: Mode = "hybrid"

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        values = input.model_dump() if isinstance(input, BaseModel) else input
        try:
            checked = RagInput.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "input"
            raise InvalidRequest(f"{where}: {first['msg']}", param=where) from error
        question = checked.question.encode("utf-8", "replace").decode().strip()
        if not question:
            raise InvalidRequest("the question is empty", param="question")
        if len(question) > MAX_QUERY_CHARACTERS:
            raise InvalidRequest(
                f"the question has {len(question)} characters, at most {MAX_QUERY_CHARACTERS} are taken",
                param="question",
            )
        if len(checked.chat_history) > MAX_HISTORY_TURNS:
            raise InvalidRequest(
                f"chat_history has {len(checked.chat_history)} turns, at most {MAX_HISTORY_TURNS} are taken",
                param="chat_history",
            )
        history = [(_clean(human), _clean(ai)) for human, ai in checked.chat_history]
        return {
            "question": question,
            "history": [turn for turn in history if any(turn)],
            "collection": checked.collection,
            "filter": checked.filter,
            "options": self.model_dump(include={"k", "temperature", "max_tokens", "mode"}),
        }


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().strip()


class Chain:
    """Builds the runnables around their collaborators."""

    def __init__(
        self, retriever: Callable[[], Retriever], model: ModelClient, settings: Settings, metrics: Metrics
    ) -> None:
        self._retriever = retriever
        self._model = model
        self._settings = settings
        self._metrics = metrics

    def build(self) -> Runnable[Any, Any]:
        """The chain of ``/rag``."""
        options = Options(k=self._settings.k, max_tokens=self._settings.max_tokens).configurable_fields(
            k=_control("k", K, "Passages that the model reads (1 to 20)"),
            temperature=_control("temperature", Temperature, "0 quotes, more invents (0 to 2)"),
            max_tokens=_control("max_tokens", MaxTokens, "Length of the answer (16 to 4096)"),
            mode=_control("mode", Mode, "hybrid, dense or lexical"),
        )
        # LangServe documents and checks with these models; what flows are plain dictionaries.
        chain: Runnable[Any, Any] = (
            options
            | RunnableLambda(self._condense, name="condense")
            | RunnableLambda(self._retrieve, name="retrieve")
            | RunnableGenerator(self._answer, name="answer")
            | RunnableGenerator(self._verify, name="verify_citations")
        )
        return chain.with_types(input_type=RagInput, output_type=RagOutput).with_config(run_name="rag")

    async def _condense(self, state: dict[str, Any]) -> dict[str, Any]:
        question, history = state["question"], state["history"]
        if not history:
            return {**state, "standalone": question}
        with self._metrics.stage("condense"):
            reply = await self._model.complete(condense_messages(question, history), max_tokens=CONDENSE_MAX_TOKENS)
        return {**state, "standalone": accept_condensed(reply, question, history)}

    async def _retrieve(self, state: dict[str, Any]) -> dict[str, Any]:
        options = state["options"]
        with self._metrics.stage("retrieve"):
            found = await asyncio.to_thread(
                self._retriever().search,
                state["standalone"][:MAX_QUERY_CHARACTERS],
                options["k"],
                collection=state["collection"],
                filter=state["filter"],
                mode=options["mode"],
            )
        if not any(f.score >= self._settings.refusal_threshold for f in found):
            found = []
        return {**state, **await self._fit(state, found)}

    async def _fit(self, state: dict[str, Any], found: list[Found]) -> dict[str, Any]:
        """As many of the best passages as the model's context holds, in a stable order.

        Where not even one leaves room for a whole answer, the answer may only be as long as what is left.
        """
        options, context = state["options"], 0
        chosen = found
        while chosen:
            passages = stable_order(chosen)
            messages = answer_messages(state["standalone"], _shown(passages), state["history"])
            used = await self._model.count_tokens(messages)
            context = self._model.context or ASSUMED_CONTEXT
            if used + options["max_tokens"] <= context:
                return {"passages": passages}
            if len(chosen) == 1 and context - used >= MIN_ANSWER_TOKENS:
                return {"passages": passages, "options": {**options, "max_tokens": context - used}}
            chosen = chosen[:-1]
        if found:
            raise ModelRejected(
                f"the model's context of {context} tokens does not hold one passage, the question and an answer: raise "
                "MODEL_CONTEXT, or send less history"
            )
        return {"passages": []}

    async def _answer(self, states: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """Yields the state once, then ``{"text": piece}`` as the model writes."""
        async for state in states:
            yield AddableDict(state=state)
            if not state["passages"]:
                return
            options = state["options"]
            messages = answer_messages(state["standalone"], _shown(state["passages"]), state["history"])
            with self._metrics.stage("answer"):
                stream = self._model.stream(
                    messages, max_tokens=options["max_tokens"], temperature=options["temperature"]
                )
                async with aclosing(stream):
                    async for text in stream:
                        yield AddableDict(text=text)

    async def _verify(self, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """Passes the answer on, each finished sentence followed by the marker of the span that bears it out."""
        state: dict[str, Any] | None = None
        citer: _Citer | None = None
        markers, splitter = MarkerFilter(), SentenceSplitter()
        async for chunk in chunks:
            if "state" in chunk:
                state = chunk["state"]
                citer = _Citer(state["passages"], state["standalone"])
                yield AddableDict(standalone_question=state["standalone"])
            assert citer is not None
            # Invoked instead of streamed, the answer step's chunks arrive added up: state and text in one.
            for piece, sentence in splitter.feed(markers.feed(chunk.get("text", ""))):
                if text := piece + (citer.marker(sentence) if sentence else ""):
                    yield AddableDict(answer=text)
        assert state is not None
        assert citer is not None
        tail = "".join(
            piece + (citer.marker(sentence) if sentence else "") for piece, sentence in splitter.feed(markers.flush())
        )
        if sentence := splitter.flush():
            tail += citer.marker(sentence)
        language = language_of(state["question"])
        if not citer.written.strip():
            tail = UNKNOWN[language]
        elif not citer.citations and not is_refusal(citer.written):
            tail += _UNSUPPORTED[language]
        if tail:
            yield AddableDict(answer=tail)
        answerable = bool(citer.citations)
        self._metrics.answers.labels(answerable=str(answerable).lower()).inc()
        yield AddableDict(answerable=answerable, citations=[c.model_dump() for c in citer.citations])


_UNSUPPORTED: dict[Literal["zh", "en"], str] = {
    "zh": "\n（在文档中没有找到支持以上内容的原文：我不知道。）",
    "en": "\n(Nothing in the documents bears this out: I don't know.)",
}


class _Citer:
    """Numbers the citations of one answer in order of appearance."""

    def __init__(self, passages: list[Passage], question: str) -> None:
        self._passages = passages
        self._question = question
        self.citations: list[Citation] = []
        self.written = ""

    def marker(self, sentence: str) -> str:
        """``[n]`` for a sentence that a passage bears out, else nothing. A refusal is never cited."""
        first, self.written = not self.written.strip(), self.written + sentence
        if first and is_refusal(sentence):
            self._passages = []
        found = support(sentence, self._passages, self._question)
        return f"[{self._index(found)}]" if found else ""

    def _index(self, found: Support) -> int:
        for known in self.citations:
            if (known.document_id, known.page, known.start, known.quote) == (
                found.passage.document_id,
                found.passage.page,
                found.start,
                found.quote,
            ):
                return known.index
        self.citations.append(
            Citation(
                index=len(self.citations) + 1,
                document_id=found.passage.document_id,
                filename=found.passage.filename,
                page=found.passage.page,
                label=found.passage.label,
                quote=found.quote,
                start=found.start,
                end=found.start + len(found.quote),
                score=found.passage.score,
            )
        )
        return len(self.citations)


def stable_order(found: list[Found]) -> list[Passage]:
    """Passages by document and place, overlapping chunks joined: the same set always makes the same prompt."""
    out: list[Passage] = []
    for f in sorted(found, key=lambda f: (f.document.id, f.chunk.page, f.chunk.start)):
        last = out[-1] if out else None
        chunk = f.chunk
        if (
            last is not None
            and (last.document_id, last.page) == (f.document.id, chunk.page)
            and chunk.start <= last.start + len(last.text)
        ):
            overlap = last.start + len(last.text) - chunk.start
            out[-1] = Passage(
                last.document_id,
                last.filename,
                last.page,
                last.start,
                last.text + chunk.text[max(overlap, 0) :],
                max(last.score, f.score),
                last.label,
            )
        else:
            out.append(
                Passage(f.document.id, f.document.filename, chunk.page, chunk.start, chunk.text, f.score, f.label)
            )
    return out


def _shown(passages: list[Passage]) -> list[tuple[str, int, str]]:
    return [(p.filename, p.page, p.text) for p in passages]


class ChatInput(BaseModel):
    """The chat playground's input."""

    messages: list[HumanMessage | AIMessage | SystemMessage] = Field(
        description="The conversation; the last message is the question.",
        json_schema_extra={"widget": {"type": "chat", "input": "messages"}},
    )


def chat_chain(rag: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """The chain of ``/chat``: messages in, the answer as text out, its sources listed at the end."""

    def to_input(value: Any) -> dict[str, Any]:
        messages = value.messages if isinstance(value, ChatInput) else value["messages"]
        return messages_to_input(messages)

    async def to_text(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
        async for chunk in chunks:
            if text := chunk.get("answer"):
                yield text
            if citations := chunk.get("citations"):
                yield "\n\n" + "\n".join(f"[{c['index']}] {c['filename']}, p. {c['page']}" for c in citations)

    chain = RunnableLambda(to_input, name="to_input") | rag | RunnableGenerator(to_text, name="to_text")
    return chain.with_types(input_type=ChatInput, output_type=str).with_config(run_name="chat")


def messages_to_input(messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """The last human message is the question; those before it make the history."""
    spoken = [m for m in messages if isinstance(m, HumanMessage | AIMessage)]
    if not spoken or not isinstance(spoken[-1], HumanMessage):
        raise InvalidRequest("the last message must be a human message: it is the question", param="messages")
    history: list[Turn] = []
    for message in spoken[:-1]:
        if isinstance(message, HumanMessage):
            history.append((message.text, ""))
        elif history:
            # Our own list of sources at the end is not part of what was said.
            said = re.sub(r"\n\n(?:\[\d+\] .+, p\. \d+\n?)+$", "", message.text)
            history[-1] = (history[-1][0], (history[-1][1] + said).strip())
    return {"question": spoken[-1].text, "chat_history": history}
