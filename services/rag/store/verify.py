"""Compares the catalog with the files and the indexes, and names each difference."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from services.rag.store.catalog import Catalog
from services.rag.store.index import Index
from services.rag.store.records import ATTACHED, NOTE, Document

Kind = Literal[
    "missing_file",
    "wrong_file",
    "orphan_file",
    "wrong_text",
    "missing_vectors",
    "orphan_vectors",
    "missing_words",
    "orphan_words",
    "missing_notes",
    "orphan_notes",
]


@dataclass(frozen=True)
class Difference:
    kind: Kind
    detail: str
    document_id: str = ""
    filename: str = ""


@dataclass
class IndexState:
    """What one generation lacks and has too much of, in one collection: chunk ids by document."""

    missing_vectors: dict[str, list[str]] = field(default_factory=dict)
    missing_words: dict[str, list[str]] = field(default_factory=dict)
    orphan_vectors: dict[str, list[str]] = field(default_factory=dict)
    orphan_words: dict[str, list[str]] = field(default_factory=dict)
    missing_notes: dict[str, list[str]] = field(default_factory=dict)
    orphan_notes: dict[str, list[str]] = field(default_factory=dict)


def compare(catalog: Catalog, index: Index, collection_id: str) -> IndexState:
    """The index beside the catalog. A document on its way in or out may have rows of either kind: it is not looked at."""
    state = IndexState()
    vectors = list(index.vectors.ids(collection_id, attached=True))
    words = list(index.lexical.ids(collection_id, attached=True))
    expected = catalog.chunk_ids(collection_id)
    moving = {job.document_id for job in catalog.open_jobs()} | {id_ for id_, _ in catalog.removals()}
    for found, missing, orphans in (
        (vectors, state.missing_vectors, state.orphan_vectors),
        (words, state.missing_words, state.orphan_words),
    ):
        present = _by_document((id_, document_id) for id_, document_id in found if ATTACHED not in id_)
        for document_id, ids in expected.items():
            lacking = [id_ for id_ in ids if id_ not in present.get(document_id, ())]
            if lacking and document_id not in moving:
                missing[document_id] = lacking
        for document_id, there in present.items():
            surplus = there - set(expected.get(document_id, ()))
            if surplus and document_id not in moving:
                orphans[document_id] = sorted(surplus)
    noted = catalog.noted_chunks(collection_id)
    for rows, needed in ((vectors, index.embedder is not None), (words, True)):
        notes = _by_document(row for row in rows if ATTACHED in row[0])
        for document_id in {*noted, *notes} - moving:
            there, wanted = notes.get(document_id, set()), {id_ + NOTE for id_ in noted.get(document_id, ())}
            if wanted - there and needed:
                state.missing_notes[document_id] = sorted(wanted - there)
            if there - wanted:
                state.orphan_notes[document_id] = sorted(there - wanted | set(state.orphan_notes.get(document_id, ())))
    return state


def _by_document(rows: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    out: dict[str, set[str]] = {}
    for id_, document_id in rows:
        out.setdefault(document_id, set()).add(id_)
    return out


def differences(catalog: Catalog, index: Index, *, files: bool) -> Iterator[Difference]:
    """Every difference; ``files`` also reads each file and compares its SHA-256."""
    documents = catalog.documents()
    names = {d.id: d.filename for d in documents}
    yield from _files(catalog, [*documents, *catalog.trash()], files)
    for document in documents:
        if document.status == "indexed":
            yield from _text(catalog, document)
    for collection_id in sorted({c.id for c in catalog.collections()} | set(index.lexical.collections())):
        state = compare(catalog, index, collection_id)
        # Notes of a document that are still being made go into the index one by one.
        noted = {id_ for id_, count in catalog.note_counts().items() if count.done == count.total}
        missing_notes = {id_: ids for id_, ids in state.missing_notes.items() if id_ in noted}
        found: tuple[tuple[Kind, dict[str, list[str]], str], ...] = (
            ("missing_vectors", state.missing_vectors, "chunks have no vector"),
            ("missing_words", state.missing_words, "chunks are not in the lexical index"),
            ("orphan_vectors", state.orphan_vectors, "vectors belong to no chunk of an indexed document"),
            ("orphan_words", state.orphan_words, "lexical rows belong to no chunk of an indexed document"),
            ("missing_notes", missing_notes, "notes are not in the index"),
            ("orphan_notes", state.orphan_notes, "notes in the index belong to no chunk that has one"),
        )
        for kind, by_document, what in found:
            for document_id, ids in by_document.items():
                yield Difference(kind, f"{len(ids)} {what}: {ids[0]} …", document_id, names.get(document_id, ""))


def _files(catalog: Catalog, documents: list[Document], read: bool) -> Iterator[Difference]:
    for document in documents:
        path = catalog.file_path(document)
        if not path.is_file():
            yield Difference("missing_file", f"{path} is not there", document.id, document.filename)
        elif path.stat().st_size != document.size:
            detail = f"{path} has {path.stat().st_size} bytes, not {document.size}"
            yield Difference("wrong_file", detail, document.id, document.filename)
        elif read:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != document.sha256:
                detail = f"{path} has SHA-256 {digest}, not {document.sha256}"
                yield Difference("wrong_file", detail, document.id, document.filename)
    known = {document.sha256 for document in documents}
    for path in catalog.files_dir.iterdir():
        if path.name not in known:
            yield Difference("orphan_file", f"{path} belongs to no document")


def _text(catalog: Catalog, document: Document) -> Iterator[Difference]:
    chunks = catalog.chunks_of(document.id)
    if len(chunks) != document.chunks:
        detail = f"it has {len(chunks)} chunks, not {document.chunks}"
        yield Difference("wrong_text", detail, document.id, document.filename)
    pages = catalog.pages_of(document.id)
    for chunk in chunks:
        page = pages.get(chunk.page)
        if page is None or page.text[chunk.start : chunk.end] != chunk.text:
            detail = f"chunk {chunk.ordinal} is not what page {chunk.page} says at {chunk.start}"
            yield Difference("wrong_text", detail, document.id, document.filename)
