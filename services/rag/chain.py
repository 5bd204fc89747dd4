"""The conversational chain: condense (where the question leans on its history) → retrieve → answer → verify citations. Plain
LCEL runnables.

Input and output are the dictionaries of :class:`RagInput` and :class:`RagOutput`. Streamed, the output comes as
dictionaries that add up to the invoked one: first ``standalone_question``, then pieces of ``answer``, each marker with its entry
of ``citations`` or ``unsupported``, at the end ``answerable``.

Between the steps flows a state: ``question``, ``history``, ``collection``, ``filter``, ``options`` (from :class:`Options`),
``standalone`` (from :class:`Conversation`, with ``leans`` False where the history has nothing to do with the question),
``passages`` in the order that the model reads them and ``parts``, the questions in it with whether anything was found for
each. ``reply`` stands for a whole answer that needs neither search nor model, and nothing to check.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from itertools import zip_longest
from typing import Any

from langchain_core.runnables import ConfigurableField, Runnable, RunnableGenerator, RunnableLambda
from langchain_core.runnables.utils import AddableDict

from services.rag.budget import Budget
from services.rag.config import Settings
from services.rag.conflicts import conflict, untold
from services.rag.conversation import Conversation
from services.rag.documents.reflow import folded_letters
from services.rag.doubt import doubt, names_with_i, refuses
from services.rag.guard import Guard
from services.rag.metrics import Metrics
from services.rag.model_client import ModelClient
from services.rag.parts import leaning, parts
from services.rag.passages import Passage
from services.rag.prompts import RULES, UNKNOWN, answer_messages, disagreement, is_refusal, language_of, within
from services.rag.protocol import K, MaxTokens, Options, RagInput, RagOutput, Temperature
from services.rag.retrieval import MAX_QUERY_CHARACTERS, Mode, Retriever
from services.rag.sessions import Sessions
from services.rag.smalltalk import small_talk
from services.rag.verification import Verification

log = logging.getLogger("docduet.rag")

# Between the answers to two questions of one message.
NEXT_PART = "\n\n"
# Words with a capital I that are looked at.
_NAMES = 32
_STOP = {"zh": "{}。", "en": "{}."}


class Chain:
    """Builds the runnables around their collaborators."""

    def __init__(
        self,
        retriever: Callable[[], Retriever],
        model: ModelClient,
        settings: Settings,
        metrics: Metrics,
        sessions: Sessions,
    ) -> None:
        self._retriever = retriever
        self._model = model
        self._settings = settings
        self._metrics = metrics
        self._conversation = Conversation(model, metrics, sessions)
        self._verification = Verification(metrics, lambda text, spans: retriever().nearness(text, spans))
        self._budget = Budget(model, settings.passage_tokens)

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
            | RunnableGenerator(self._conversation.remembering(self._verification.verify), name="verify_citations")
        )
        return chain.with_types(input_type=RagInput, output_type=RagOutput).with_config(run_name="rag")

    async def _condense(self, state: dict[str, Any]) -> dict[str, Any]:
        if reply := small_talk(state["question"], language_of(state["question"])):
            state = {**state, "reply": reply}
        state = await self._conversation.condense(state)
        return state if state.get("leans", True) else {**state, "history": []}

    async def _retrieve(self, state: dict[str, Any]) -> dict[str, Any]:
        if "reply" in state:
            return {**state, "passages": [], "parts": []}
        asked = parts(state["standalone"][:MAX_QUERY_CHARACTERS])
        with self._metrics.stage("retrieve"):
            rankings = await asyncio.gather(*(self._search(query, state) for query in _queries(asked)))
        best = [max((f.score for f in ranking), default=-1.0) for ranking in rankings]
        found = [score >= self._settings.refusal_threshold for score in best]
        fitted = await self._budget.fit(
            state,
            _best(r for r, any_found in zip(rankings, found, strict=True) if any_found),
            [_prompt(state["standalone"], asked, at) for at, any_found in enumerate(found) if any_found],
        )
        return {**state, **fitted, "parts": list(zip(asked, found, best, strict=True))}

    async def _search(self, query: str, state: dict[str, Any]) -> list[Passage]:
        return await asyncio.to_thread(
            self._retriever().search,
            query[:MAX_QUERY_CHARACTERS],
            state["options"]["k"],
            collection=state["collection"],
            filter=state["filter"],
            mode=state["options"]["mode"],
        )

    async def _answer(self, states: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """Yields the state once, then ``{"text": piece}`` as the model writes; ``{"ended": True}`` where the guard ended it.

        Several questions are answered one after the other, each under its own words.
        """
        async for state in states:
            yield AddableDict(state=state)
            if "reply" in state:
                yield AddableDict(text=state["reply"])
            if not state["passages"]:
                return
            asked = [part for part, _, _ in state["parts"]]
            language = language_of(state["standalone"])
            for at, (part, found, relevance) in enumerate(state["parts"]):
                if len(asked) > 1:
                    yield AddableDict(text=f"{NEXT_PART if at else ''}{part}\n")
                if not found:
                    yield AddableDict(text=_STOP[language].format(UNKNOWN[language]))
                    continue
                question = _prompt(state["standalone"], asked, at)
                said, guard = "", _guard(state, question)
                async with aclosing(self._written(state, question, relevance, guard)) as pieces:
                    async for text in pieces:
                        said += text
                        yield AddableDict(text=text)
                if guard.leaked:
                    yield AddableDict(ended=True)
                if not said.strip():
                    yield AddableDict(text=_STOP[language].format(UNKNOWN[language]))
                elif _asks_back(said, part):
                    yield AddableDict(text="\n" + _STOP[language].format(UNKNOWN[language]))
                elif not is_refusal(said) and (told := conflict(part, state["passages"])) and untold(said, told):
                    one, other = ((s.passage.filename, s.quote) for s in told)
                    yield AddableDict(text=disagreement(one, other, language))

    async def _written(
        self, state: dict[str, Any], question: str, relevance: float, guard: Guard
    ) -> AsyncGenerator[str, None]:
        """What the model writes, but for what no answer may hold; that it does not know where it all but said so."""
        options, language = state["options"], language_of(question)
        messages = answer_messages(question, state["passages"], state["history"])
        doubted = 0.0

        def opening(first: Mapping[str, float]) -> None:
            nonlocal doubted
            doubted = doubt(first, language)

        with self._metrics.stage("answer"):
            stream = self._model.stream(
                messages,
                max_tokens=options["max_tokens"],
                temperature=options["temperature"],
                opening=opening if self._settings.doubt_threshold < 1 else None,
            )
            async with aclosing(stream):
                async for text in stream:
                    if refuses(doubted, relevance, self._settings.doubt_threshold):
                        if await self._doubts(question, state["passages"]):
                            yield _STOP[language].format(UNKNOWN[language])
                            return
                        doubted = 0.0
                    if shown := guard.feed(text):
                        yield shown
                    if guard.leaked:
                        log.warning("an answer began to read out the service's rules; it was ended there")
                        return
        if shown := guard.flush():
            yield shown

    async def _doubts(self, question: str, passages: Iterable[Passage]) -> bool:
        """Whether what looks like "I …" is that, and not the first token of a name."""
        if language_of(question) != "en":
            return True
        names = names_with_i([question, *(p.text for p in passages)])
        return not any(await asyncio.gather(*(self._model.parts_first(name) for name in names[:_NAMES])))


def _queries(asked: list[str]) -> list[str]:
    """What is searched for each question: a part that leans is searched with the one before it."""
    return [f"{asked[at - 1]} {part}" if leaning(asked, at) else part for at, part in enumerate(asked)]


def _prompt(message: str, asked: list[str], at: int) -> str:
    """What the model is asked for a part: by itself, or, where it leans on those before it, as a part of ``message``."""
    return within(message, asked[at], language_of(message)) if leaning(asked, at) else asked[at]


def _asks_back(said: str, question: str) -> bool:
    """Whether all of an answer is the question, which small models repeat where they see none."""
    return said.rstrip().endswith(("?", "？")) and folded_letters(said)[0] == folded_letters(question)[0]


def _guard(state: dict[str, Any], question: str) -> Guard:
    known = [*(p.text for p in state["passages"]), *(human for human, _ in state["history"]), question]
    return Guard(RULES[language_of(question)], known)


def _best(rankings: Iterable[list[Passage]]) -> list[Passage]:
    """One ranking out of several: the first of each, then the second of each; no passage twice."""
    found: dict[tuple[str, int, int], Passage] = {}
    for row in zip_longest(*rankings):
        for passage in row:
            if passage is not None:
                found.setdefault((passage.document_id, passage.page, passage.start), passage)
    return list(found.values())


def _control(name: str, annotation: Any, description: str) -> ConfigurableField:
    # The annotation carries the bounds into config_schema, so LangServe refuses a value outside them by name.
    return ConfigurableField(id=name, name=name, description=description, annotation=annotation)
