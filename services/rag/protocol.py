"""What goes into the chain and comes out of it, and the options of a call."""

from typing import Annotated, Any, Literal

from langchain_core.runnables import RunnableConfig, RunnableSerializable
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from services.rag.config import COLLECTION_PATTERN, DEFAULT_COLLECTION
from services.rag.errors import InvalidRequest
from services.rag.history import MAX_TURN_CHARACTERS, MAX_TURNS, turns
from services.rag.retrieval import MAX_QUERY_CHARACTERS, Mode
from services.rag.sessions import SESSION_PATTERN


def _none_is(empty: Any) -> BeforeValidator:
    # Not `| None`: the playground's form cannot draw a field that may be null. A null that is sent counts as empty.
    return BeforeValidator(lambda value: empty if value is None else value)


class RagInput(BaseModel):
    """A question, with the conversation before it."""

    question: str = Field(description="The question, in Chinese or English.")
    chat_history: Annotated[list[tuple[str, str]], BeforeValidator(turns)] = Field(
        default_factory=list,
        description=(
            "Earlier turns, oldest first, as [human, ai] pairs; or as messages, OpenAI's (role and content) or LangChain's. "
            f"The newest {MAX_TURNS} turns count, and {MAX_TURN_CHARACTERS} characters of each text."
        ),
        json_schema_extra={"widget": {"type": "chat", "input": "question"}},
    )
    session_id: Annotated[str, _none_is("")] = Field(
        default="",
        pattern=rf"{SESSION_PATTERN}|^$",
        description="Instead of chat_history: the service remembers the turns of this id, which you choose.",
    )
    collection: str = Field(default=DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)
    filter: Annotated[dict[str, Any], _none_is({})] = Field(
        default_factory=dict,
        description="Only documents with this document_id, filename or metadata; each a value, or a list of them.",
    )


class SamePlace(BaseModel):
    document_id: str
    filename: str
    page: int = Field(description="1-based.")


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
    also: list[SamePlace] = Field(description="Other places that say the same.")


class Unsupported(BaseModel):
    """A sentence of the answer that claims something and that no passage bears out; ``[?]`` stands after it."""

    text: str
    start: int = Field(description="Offset of the sentence in the answer, in code points.")
    end: int
    reason: Literal["no_source", "number"] = Field(
        description="number: a passage has the sentence's words, but not its numbers."
    )
    numbers: list[str] = Field(description="Numbers of the sentence that no source has, as they are written.")


class RagOutput(BaseModel):
    answer: str = Field(
        description="With a marker after each checked sentence: [n] a citation, [?] nothing bears it out."
    )
    answerable: bool = Field(description="Whether anything of the answer has a source.")
    citations: list[Citation]
    unsupported: list[Unsupported]
    standalone_question: str


K = Annotated[int, Field(ge=1, le=20)]
Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
MaxTokens = Annotated[int, Field(ge=16, le=4096)]


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
        if checked.chat_history and checked.session_id:
            raise InvalidRequest(
                "chat_history and session_id are both given: send the history, or let the service remember it",
                param="session_id",
            )
        return {
            "question": question,
            "history": checked.chat_history,
            "session_id": checked.session_id,
            "collection": checked.collection,
            "filter": checked.filter,
            "options": self.model_dump(include={"k", "temperature", "max_tokens", "mode"}),
        }
