"""From the blocks of a text that flows (headings, paragraphs, tables, code) to pages that a citation can name.

A DOCX, an HTML page or a Markdown file has no pages of its own, so a page is a section: what stands under a heading,
called by its heading path ("2 Leases › 2.1 Limits"), and cut at paragraphs where it is long.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from services.rag.documents.pages import Options, PageText, ReadError
from services.rag.documents.reflow import clean

PAGE_CHARS = 8000
_SEPARATOR = " › "
# Text that cleaning leaves as it is: most cells and many paragraphs, of which a document may have a million.
_PLAIN = re.compile(r"[ -~]*|[!-~\u4e00-\u9fff，。！？；：、（）]*")
_HEADING_CHARS = 80  # a label is a name, not the text of a paragraph that was styled as a heading


@dataclass(frozen=True)
class Block:
    """A heading (``level`` from 1), a paragraph, a table of Markdown rows, or code whose indentation counts."""

    text: str
    kind: Literal["text", "table", "code"] = "text"
    level: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    label: str
    text: str
    notes: tuple[str, ...] = ()


def tidy(block: Block) -> str:
    """The text of a block as it is indexed."""
    if _PLAIN.fullmatch(block.text) and "  " not in block.text:
        return block.text.strip()
    text = block.text.replace("\u00ad", "")  # a soft hyphen splits a word that people search for whole
    if block.kind == "code":
        lines = text.expandtabs(4).splitlines()
        return "\n".join(" " * (len(line) - len(line.lstrip(" "))) + clean(line) for line in lines).rstrip()
    return clean(text)


def sections(blocks: Iterable[Block], limit: int = PAGE_CHARS) -> Iterator[Section]:
    """The sections of a document, each at most ``limit`` characters; together they hold the text of all blocks.

    A heading with nothing under it goes to the section after it. One block is in memory at a time, beside the section.
    """
    path: list[tuple[int, str]] = []
    parts: list[str] = []  # pieces of the open section, the headings above it first
    headings = 0  # how many of `parts` are headings
    notes: dict[str, None] = {}
    size = 0
    label = ""
    seen: dict[str, int] = {}

    def close() -> Section:
        nonlocal parts, headings, size
        name = label or "part"
        seen[name] = count = seen.get(name, 0) + 1
        shown = f"part {count}" if not label else label if count == 1 else f"{label} ({count})"
        section = Section(shown, "\n".join(parts), tuple(notes))
        parts, headings, size = [], 0, 0
        notes.clear()
        return section

    for block in blocks:
        text = tidy(block)
        if block.level and text:
            if len(parts) > headings:
                yield close()
            text = " ".join(text.split())
            path = [*[(level, t) for level, t in path if level < block.level], (block.level, _clip(text))]
            label = _SEPARATOR.join(t for _, t in path[-4:])
        notes.update(dict.fromkeys(block.notes))
        for piece in _pieces(text, block.kind, limit) if text else ():
            if parts and size + len(piece) + 1 > limit:
                yield close()
            parts.append(piece)
            size += len(piece) + 1
        headings += bool(block.level and text and parts)
    if parts:
        yield close()


def pages(parts: Iterable[Section], options: Options) -> Iterator[PageText]:
    """Number the sections; those before ``options.first_page`` are passed over.

    Raises:
        ReadError: there is no text at all.
    """
    number = 0
    for part in parts:
        if not any(c.isalnum() for c in part.text):
            continue
        number += 1
        if number >= options.first_page:
            yield PageText(number, number, part.text, part.label, notes=part.notes)
    if number == 0:
        raise ReadError("the file has no text that can be searched")


def split(text: str, limit: int) -> Iterator[str]:
    """Cut a long text where it hurts least: at a blank line, a line end, a sentence end, a space; else anywhere."""
    while len(text) > limit:
        window = text[:limit]
        cut = 0
        for pattern in (r"\n\n", r"\n", r"[。！？；.!?;](?:\s|(?<=[。！？；]))", r"\s"):
            cut = max((m.end() for m in re.finditer(pattern, window)), default=0)
            if cut >= limit // 2:
                break
        cut = cut or limit
        if piece := text[:cut].strip("\n"):
            yield piece
        text = text[cut:].lstrip("\n")
    if text:
        yield text


def _pieces(text: str, kind: str, limit: int) -> Iterator[str]:
    if len(text) <= limit or kind != "table":
        yield from split(text, limit)
        return
    # A table that goes on repeats its header, or its rows say nothing.
    lines = text.split("\n")
    header = "\n".join(lines[:2]) if len(lines) > 2 and lines[1].startswith("| ---") else ""
    header = "" if len(header) > limit // 4 else header
    open_lines: list[str] = []
    size = 0
    for line in lines[2 if header else 0 :]:
        for piece in split(line, limit - len(header) - 1):
            if open_lines and size + len(piece) + 1 > limit - len(header) - 1:
                yield "\n".join([header, *open_lines] if header else open_lines)
                open_lines, size = [], 0
            open_lines.append(piece)
            size += len(piece) + 1
    if open_lines:
        yield "\n".join([header, *open_lines] if header else open_lines)


def _clip(text: str) -> str:
    return text if len(text) <= _HEADING_CHARS else text[: _HEADING_CHARS - 1].rstrip() + "…"
