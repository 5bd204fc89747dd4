"""The chain of ``/chat``: messages in, the answer as text out."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda
from pydantic import BaseModel, Field, PlainValidator

from services.rag.errors import InvalidRequest
from services.rag.history import said
from services.rag.prompts import language_of

# What stands under an answer some of whose sentences have no source; it has one of its own where none has.
_UNSUPPORTED = {"zh": "[?] 文档中没有找到依据", "en": "[?] nothing in the documents bears this out"}
_SOURCES = re.compile(r"\n\n(?:\[(?:\d+|\?)\] .+\n?)+$")


def _typed(messages: Any) -> list[BaseMessage]:
    """Messages in any of the forms of ``chat_history``, each as the class of its role.

    Raises:
        ValueError: with the place of what is no message.
    """
    if not isinstance(messages, list):
        raise ValueError("must be a list of messages")
    kinds: dict[str, type[BaseMessage]] = {"human": HumanMessage, "ai": AIMessage, "": SystemMessage}
    return [kinds[role](content=text) for role, text in (said(message, at) for at, message in enumerate(messages))]


class ChatInput(BaseModel):
    """The chat playground's input."""

    # Plain: of several message classes Pydantic would try each on each message, and theirs do not take one another.
    messages: Annotated[
        list[HumanMessage | AIMessage | SystemMessage],
        PlainValidator(_typed, json_schema_input_type=list[HumanMessage | AIMessage | SystemMessage]),
    ] = Field(
        description="The conversation; the last message is the question.",
        json_schema_extra={"widget": {"type": "chat", "input": "messages"}},
    )


def chat_chain(rag: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """The chain of ``/chat``: messages in, the answer as text out, its sources listed at the end."""

    def to_input(value: Any) -> dict[str, Any]:
        messages = value.messages if isinstance(value, ChatInput) else value["messages"]
        return messages_to_input(messages)

    async def to_text(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
        citations: list[dict[str, Any]] = []
        unsupported = False
        question = ""
        async for chunk in chunks:
            question += chunk.get("standalone_question", "")
            if text := chunk.get("answer"):
                yield text
            citations += chunk.get("citations", ())
            unsupported = unsupported or bool(chunk.get("unsupported"))
        if citations:
            lines = [f"[{c['index']}] {c['filename']}, {c['label'] or 'p. {}'.format(c['page'])}" for c in citations]
            yield "\n\n" + "\n".join([*lines, _UNSUPPORTED[language_of(question)]] if unsupported else lines)

    chain = RunnableLambda(to_input, name="to_input") | rag | RunnableGenerator(to_text, name="to_text")
    return chain.with_types(input_type=ChatInput, output_type=str).with_config(run_name="chat")


def messages_to_input(messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """The last human message is the question; those before it make the history."""
    spoken = [m for m in messages if isinstance(m, HumanMessage | AIMessage)]
    if not spoken or not isinstance(spoken[-1], HumanMessage):
        raise InvalidRequest("the last message must be a human message: it is the question", param="messages")
    # Our own list of sources at the end is not part of what was said.
    history = [
        {
            "type": m.type,
            "content": _SOURCES.sub("", m.text) if m.type == "ai" else m.text,
        }
        for m in spoken[:-1]
    ]
    return {"question": spoken[-1].text, "chat_history": history}
