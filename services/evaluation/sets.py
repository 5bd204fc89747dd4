"""Question sets as files: SQuAD's format, or a list of questions about documents that are in the service already."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Turn = tuple[str, str]


class SetError(Exception):
    """The file is no question set; the message names the place."""


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    answers: tuple[str, ...] = ()
    document: str = ""  # file name of the gold document
    pages: tuple[int, ...] = ()  # gold pages, 1-based; () for any page of the document
    answerable: bool = True
    history: tuple[Turn, ...] = ()
    standalone: str = ""  # the question as it can be understood without the history

    @property
    def query(self) -> str | None:
        """What is searched for; None for a follow-up whose standalone form is not known."""
        return self.standalone or (None if self.history else self.text)


@dataclass(frozen=True)
class QuestionSet:
    name: str
    digest: str  # SHA-256 of the file
    questions: tuple[Question, ...]
    documents: Mapping[str, str] = field(default_factory=dict)  # name → text, of a set that brings its own
    blank: int = 0  # questions without a word: published sets have some


def read(path: Path) -> QuestionSet:
    """The set at ``path``.

    SQuAD's format (``data[].paragraphs[].{context, qas[]}``) brings its documents: one of one page a paragraph. The other
    is a JSON list, or JSON lines, of ``{"question", "document", "page"?, "answers"?, "answerable"?, "chat_history"?,
    "standalone"?, "id"?}``.

    Raises:
        SetError: it cannot be read, is no JSON, has another shape or no question.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SetError(f"{path} cannot be read: {error.strerror or error}") from error
    parsed = _parse(path, content)
    documents: dict[str, str] = {}
    if isinstance(parsed, dict):
        questions = list(_squad(path, parsed, documents))
    else:
        questions = [_own(path, number, entry) for number, entry in enumerate(parsed, 1)]
    if not questions:
        raise SetError(f"{path} holds no question")
    name = path.name.removesuffix(".jsonl").removesuffix(".json") or path.name
    asked = [q for q in questions if q.text]
    if not asked:
        raise SetError(f"{path} holds no question that has a word")
    digest = hashlib.sha256(content).hexdigest()
    return QuestionSet(name, digest, tuple(_unique(asked)), documents, len(questions) - len(asked))


def part(of: QuestionSet, number: int, parts: int) -> QuestionSet:
    """The ``number``-th (from 1) of ``parts`` equal parts of the questions, as they stand in the file; the documents stay whole.

    What was fitted on one part is judged by another.

    Raises:
        SetError: there are fewer questions than parts.
    """
    bounds = [len(of.questions) * n // parts for n in (number - 1, number)]
    if bounds[0] == bounds[1]:
        raise SetError(f"{of.name} has too few questions for part {number}/{parts}")
    return replace(of, questions=of.questions[slice(*bounds)])


def order(questions: Sequence[Question], seed: int) -> list[Question]:
    """Shuffled; the first n of it are the sample of n, so a larger sample holds the smaller one."""
    shuffled = list(questions)
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    return shuffled


def _parse(path: Path, content: bytes) -> dict[str, Any] | list[Any]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SetError(f"{path} is not UTF-8: {error}") from error
    if not text.strip():
        raise SetError(f"{path} is empty")
    try:
        parsed = json.loads(text)
    except RecursionError as error:
        raise SetError(f"{path} is nested too deeply for a question set") from error
    except ValueError as whole:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        entries = []
        for number, line in lines:
            try:
                entries.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                reason = f"line {number}: {error}" if entries else str(whole)
                raise SetError(f"{path} is neither JSON nor JSON lines ({reason})") from error
        return entries
    if isinstance(parsed, dict) and "data" not in parsed and "question" in parsed:
        return [parsed]  # JSON lines of one line
    if not isinstance(parsed, dict | list):
        raise SetError(f"{path} holds neither SQuAD's 'data' nor a list of questions")
    return parsed


def _squad(path: Path, parsed: Mapping[str, Any], documents: dict[str, str]) -> Iterator[Question]:
    names: dict[str, str] = {}
    for a, article in enumerate(_list(path, parsed, "data", "")):
        for p, paragraph in enumerate(_list(path, article, "paragraphs", f"data[{a}]")):
            at = f"data[{a}].paragraphs[{p}]"
            context = _text(path, paragraph, "context", at)
            if not context:
                raise SetError(f"{path}: {at}: 'context' is blank")
            name = names.setdefault(context, f"{len(names) + 1:05}.txt")
            documents[name] = context
            for q, entry in enumerate(_list(path, paragraph, "qas", at)):
                where = f"{at}.qas[{q}]"
                text = _text(path, entry, "question", where)
                given = entry.get("answers") or []
                if not isinstance(given, list) or not all(
                    isinstance(x, dict) and isinstance(x.get("text"), str) for x in given
                ):
                    raise SetError(f"{path}: {where}.answers is no list of objects with 'text'")
                answers = tuple(dict.fromkeys(x["text"] for x in given if x["text"].strip()))
                yield Question(
                    id=str(entry.get("id") or where),
                    text=text,
                    answers=answers,
                    document=name,
                    answerable=not entry.get("is_impossible", False),
                )


def _own(path: Path, number: int, entry: Any) -> Question:
    where = f"question {number}"
    text = _text(path, entry, "question", where)
    if not text:
        raise SetError(f"{path}: {where}: 'question' is blank")
    given = entry["answers"] if entry.get("answers") is not None else entry.get("answer")
    answers = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise SetError(f"{path}: {where}: 'answers' is no list of strings")
    answerable = entry.get("answerable", True)
    document = entry.get("document")
    if not isinstance(answerable, bool):
        raise SetError(f"{path}: {where}: 'answerable' is neither true nor false")
    if (answerable or document is not None) and (not isinstance(document, str) or not document.strip()):
        raise SetError(f"{path}: {where}: 'document' must be the file name of a document in the service")
    page = entry.get("page")
    pages = [] if page is None else page if isinstance(page, list) else [page]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pages):
        raise SetError(f"{path}: {where}: 'page' must be a page number from 1, or a list of such")
    history = entry.get("chat_history") or entry.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn) for turn in history
    ):
        raise SetError(f"{path}: {where}: 'chat_history' must be a list of [question, answer] pairs")
    standalone = entry.get("standalone") or ""
    if not isinstance(standalone, str):
        raise SetError(f"{path}: {where}: 'standalone' is no text")
    return Question(
        id=str(entry.get("id") or number),
        text=text,
        answers=tuple(a for a in answers if a.strip()),
        document=document or "",
        pages=tuple(pages),
        answerable=answerable,
        history=tuple((human, ai) for human, ai in history),
        standalone=standalone.strip(),
    )


def _list(path: Path, holder: Any, key: str, where: str) -> list[Any]:
    found = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(found, list):
        raise SetError(f"{path}: {where}{'.' if where else ''}{key} is no list: is this SQuAD's format?")
    return found


def _text(path: Path, holder: Any, key: str, where: str) -> str:
    found = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(found, str):
        raise SetError(f"{path}: {where}: {key!r} is missing or no text")
    return found.encode("utf-8", "replace").decode().strip()


def _unique(questions: Sequence[Question]) -> Iterator[Question]:
    seen: set[str] = set()
    for number, q in enumerate(questions, 1):
        name = q.id
        while name in seen:
            name = f"{name}#{number}"
        seen.add(name)
        yield q if name == q.id else Question(**{**vars(q), "id": name})
