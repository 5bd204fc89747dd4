"""Markdown: sections by headings. The text keeps its marks, which a language model reads; wrapped lines are joined."""

import re
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from services.rag.documents import markup
from services.rag.documents.encoding import open_text
from services.rag.documents.pages import Options, PageFailure, PageText
from services.rag.documents.reflow import CJK, CJK_PUNCTUATION
from services.rag.documents.sections import Block, pages, sections

_FRONT_MATTER = re.compile(r"\A\ufeff?(---|\+\+\+)[ \t]*\n(.*?\n)\1[ \t]*(?:\n|\Z)", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_WIDE = f"[{CJK}{CJK_PUNCTUATION}]"
_SOFT_BREAK = re.compile(r"(?<! {2})(?<!\\)\n")
_WIDE_BREAK = re.compile(f"(?<={_WIDE})(?<!\\\\)\n(?={_WIDE})")


def read(path: Path, options: Options) -> Iterator[PageText | PageFailure]:
    """One page a section.

    Raises:
        ReadError: it is not text, or empty.
    """
    with open_text(path) as file:
        text = re.sub(r"\r\n?", "\n", file.read()).removeprefix("\ufeff")
    yield from pages(sections(blocks(text)), options)


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a Markdown text at its outermost level, as they are written."""
    if found := _FRONT_MATTER.match(text):
        yield Block(found[2])
        text = text[found.end() :]
    # markdown-it replaces NUL, and counts lines as split does.
    lines = text.split("\n")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for i, token in enumerate(tokens):
        if token.level or not token.map or token.nesting < 0:
            continue
        source = "\n".join(lines[token.map[0] : token.map[1]])
        match token.type:
            case "heading_open":
                yield Block(_plain(tokens[i + 1]), level=int(token.tag[1]))
            case "paragraph_open":
                source = _COMMENT.sub("", source)
                yield Block(_SOFT_BREAK.sub(" ", _WIDE_BREAK.sub("", source)))
            case "html_block":
                yield from markup.blocks(source, page=False)
            case "fence" | "code_block":
                yield Block(source, "code")
            case "table_open":
                yield Block(source, "table")
            case "hr":
                pass
            case _:  # lists and quotes keep their lines and their indentation
                yield Block(source, "code")


def _plain(inline: Token) -> str:
    """A heading without its marks."""
    return "".join(
        child.content if child.type in ("text", "code_inline") else " " if child.type == "softbreak" else ""
        for child in inline.children or ()
    )
