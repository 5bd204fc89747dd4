"""The rows of the catalog as the rest of the service sees them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

Scalar = str | int | float | bool
Metadata = Mapping[str, Scalar]

JobState = Literal["accepted", "reading", "embedding", "indexed", "failed", "cancelled"]
OPEN_STATES: tuple[JobState, ...] = ("accepted", "reading", "embedding")


@dataclass(frozen=True)
class Collection:
    """``name`` can change; ``id`` is what documents and indexes are filed under."""

    id: str
    name: str
    created_at: float
    documents: int = 0


@dataclass(frozen=True)
class Document:
    id: str
    collection_id: str
    collection: str
    filename: str
    format: str
    sha256: str
    size: int
    status: str  # a JobState, or deleted
    error: str | None
    pages: int | None
    chunks: int | None
    reader: str | None  # how its text was read; None: it has none yet
    metadata: Metadata
    sequence: int  # order of acceptance: of one name, the highest is the newest version
    replaces: str | None
    replaced_by: str | None
    created_at: float
    indexed_at: float | None
    deleted_at: float | None


@dataclass(frozen=True)
class PageReport:
    """What is to be said of a page: why it cannot be searched (``failed``), or what was left out of it."""

    page: int
    failed: bool
    message: str


@dataclass(frozen=True)
class Job:
    id: str
    document_id: str
    filename: str
    size: int
    state: JobState
    error: str | None
    page: int | None  # the page an error is about, 1-based
    pages_total: int | None
    pages_read: int
    chunks_total: int | None
    chunks_embedded: int
    password: str | None = field(repr=False)  # kept until the file is read
    created_at: float
    updated_at: float

    @property
    def done(self) -> bool:
        return self.state not in OPEN_STATES


@dataclass(frozen=True)
class Page:
    number: int  # 1-based
    text: str
    label: str = ""
    method: str = "text"


@dataclass(frozen=True)
class Chunk:
    """``text`` is exactly ``page.text[start:end]`` (offsets in code points)."""

    id: str
    document_id: str
    ordinal: int
    page: int
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class IndexRow:
    """One generation of the indexes. There is at most one of each state."""

    generation: int
    fingerprint: str
    model_id: str
    state: Literal["active", "building"]
    reason: str
    deleted: int  # vectors deleted from it since it was made
    created_at: float


# What belongs to a chunk without being its text (a note) is filed in the indexes under the chunk's id, this, and its own name.
ATTACHED = "#"
NOTE = f"{ATTACHED}note"


def document_id(collection_id: str, content_sha256: str) -> str:
    """The same content in the same collection is the same document."""
    return sha256(f"{collection_id}\0{content_sha256}".encode()).hexdigest()[:24]


def chunk_id(doc_id: str, ordinal: int, text: str) -> str:
    """Bound to the text: a chunk that reads otherwise is another chunk, and never meets the old one's vector."""
    return f"{doc_id}:{ordinal}:{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
