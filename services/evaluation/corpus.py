"""The documents of a question set in the service: put there, or found there."""

import contextlib
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.client import DONE, RagClient, ServiceError, persist
from services.evaluation.metrics import contains
from services.evaluation.sets import Question, QuestionSet

ARCHIVE = "paragraphs.zip"  # its members become documents named paragraphs.zip/00001.txt
_MEMBERS = 1000  # the service takes 2,000 in one archive
_LOOK_SECONDS = 0.5

Progress = Callable[[int, int], None]


@dataclass
class Corpus:
    """``ids`` are document ids by the names that the set's questions use; ``names`` the other way round."""

    collection: str
    ids: dict[str, str]
    everything: list[str]  # ids of all indexed documents of the collection
    names: dict[str, str] = field(default_factory=dict)
    created: bool = False
    failed: dict[str, str] = field(default_factory=dict)  # name → why it is not indexed
    pages: dict[str, int] = field(default_factory=dict)  # by id

    def __post_init__(self) -> None:
        self.names = {document_id: name for name, document_id in self.ids.items()} | self.names

    def others(self, document: str) -> list[str]:
        """The ids of all documents but one."""
        return [i for i in self.everything if i != self.ids[document]]


def collection_name(question_set: QuestionSet) -> str:
    """The same file always has the same collection."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", question_set.name).strip("-")[:40]
    return f"eval-{name}-{question_set.digest[:10]}" if name else f"eval-{question_set.digest[:10]}"


def put(client: RagClient, question_set: QuestionSet, collection: str, progress: Progress) -> Corpus:
    """Upload what is missing of the set's own documents, and wait until all are indexed.

    Raises:
        ServiceError: the service cannot be reached or takes none of them.
    """
    created = all(c["name"] != collection for c in persist(client.collections))
    if created:
        client.create_collection(collection)
    wanted = {f"{ARCHIVE}/{name}": name for name in question_set.documents}
    there = {str(d["filename"]): d for d in persist(lambda: client.documents(collection))}
    missing = [name for path, name in wanted.items() if there.get(path, {}).get("status") not in ("indexed", "failed")]
    for first in range(0, len(missing), _MEMBERS):
        _upload(client, collection, question_set.documents, missing[first : first + _MEMBERS])
    while True:
        documents = [d for d in persist(lambda: client.documents(collection)) if d["filename"] in wanted]
        ended = [d for d in documents if d["status"] in DONE]
        progress(len(ended), len(wanted))
        if len(ended) >= len(documents):
            break
        time.sleep(_LOOK_SECONDS)
    failed = {wanted[d["filename"]]: str(d.get("error") or d["status"]) for d in ended if d["status"] != "indexed"}
    indexed = {wanted[d["filename"]]: str(d["id"]) for d in ended if d["status"] == "indexed"}
    failed |= {name: "the service did not take it" for name in wanted.values() if name not in indexed | failed}
    if not indexed:
        reason = next(iter(failed.values()), "no reason is given")
        raise ServiceError(f"none of the {len(wanted)} documents of {question_set.name} was indexed: {reason}")
    corpus = find(client, question_set, collection)
    corpus.ids, corpus.created, corpus.failed = indexed, created, failed
    corpus.names |= {document_id: name for name, document_id in indexed.items()}
    return corpus


def _upload(client: RagClient, collection: str, texts: Mapping[str, str], names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="docduet-eval-") as folder:
        path = Path(folder) / ARCHIVE
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, texts[name])
        persist(lambda: client.upload(path, collection))


def find(client: RagClient, question_set: QuestionSet, collection: str) -> Corpus:
    """The documents that the set's questions name, among those of a collection.

    A name matches a document's whole name, or its last part if no other document has the same.

    Raises:
        ServiceError: the service cannot be reached, or there is no such collection.
    """
    if all(c["name"] != collection for c in persist(client.collections)):
        raise ServiceError(f"there is no collection {collection!r}: 'docduet collections' lists them")
    documents = persist(lambda: client.documents(collection, "indexed"))
    whole = {str(d["filename"]): str(d["id"]) for d in documents}
    last: dict[str, list[str]] = {}
    for name, document_id in whole.items():
        last.setdefault(name.rpartition("/")[2], []).append(document_id)
    ids: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in dict.fromkeys(q.document for q in question_set.questions if q.document):
        alike = last.get(name, [])
        if name in whole:
            ids[name] = whole[name]
        elif len(alike) == 1:
            ids[name] = alike[0]
        else:
            more = f"{len(alike)} documents are called so: give its whole name" if alike else "it is not there"
            failed[name] = more
    pages = {str(d["id"]): int(d.get("pages") or 0) for d in documents}
    names = {document_id: name for name, document_id in whole.items()}
    return Corpus(collection, ids, list(whole.values()), names, failed=failed, pages=pages)


def remove(client: RagClient, corpus: Corpus) -> None:
    """The collection is gone and so are its documents: they are not left in the trash.

    Raises:
        ServiceError: the service cannot be reached; what was deleted before is gone.
    """
    client.delete_collection(corpus.collection)
    for document_id in corpus.everything:
        with contextlib.suppress(ServiceError):  # it stays in the trash, where a purge finds it
            client.purge(document_id)


class Pages:
    """The texts of pages, each fetched once."""

    def __init__(self, client: RagClient) -> None:
        self._client = client
        self._texts: dict[tuple[str, int], str | None] = {}

    def text(self, document_id: str, page: int) -> str | None:
        """None where there is no such page.

        Raises:
            ServiceError: the service cannot be reached.
        """
        key = (document_id, page)
        if key not in self._texts:
            try:
                found = persist(lambda: self._client.page(document_id, page))
                self._texts[key] = str(found["text"])
            except ServiceError as error:
                if error.passing:
                    raise
                self._texts[key] = None
        return self._texts[key]


def gold_pages(corpus: Corpus, pages: Pages, question: Question) -> tuple[int, ...]:
    """The pages that count as found; () for any page of the document.

    A paragraph so long that the service made several pages of it counts only where an answer stands.
    """
    if question.pages or not question.document:
        return question.pages
    document_id = corpus.ids[question.document]
    count = corpus.pages.get(document_id, 1)
    if count < 2 or not question.answers:
        return ()
    held = [n for n in range(1, count + 1) if contains(pages.text(document_id, n) or "", question.answers)]
    return tuple(held)
