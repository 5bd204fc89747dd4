"""EPUB books: chapters in reading order. No library that reads them has a licence this project can ship."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from services.rag.documents import markup
from services.rag.documents.office import Package, opened
from services.rag.documents.pages import Options, PageFailure, PageText, ReadError
from services.rag.documents.readers.html import decode
from services.rag.documents.sections import Block, Section, pages, sections

_FONTS = (
    "http://www.idpf.org/2008/embedding",
    "http://ns.adobe.com/pdf/enc#RC",
)  # fonts are obscured in free books too
# XHTML closes any element in place; HTML takes `<title/>` for an open one, and the book for its title.
_SELF_CLOSED = re.compile(
    r"<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr)\b)([a-zA-Z][\w:-]*)((?:[^<>\"']|\"[^\"]*\"|'[^']*')*)/>",
    re.IGNORECASE,
)


def read(path: Path, options: Options) -> Iterator[PageText | PageFailure]:
    """One page a chapter, several for a long one.

    Raises:
        ReadError: it is damaged, protected against copying, or has no text.
    """
    with opened(path, options) as package:
        _refuse_protected(package)
        container = package.xml("META-INF/container.xml")
        rootfile = next((unquote(e.get("full-path") or "") for e in container.iter("{*}rootfile")), "")
        yield from pages(_chapters(package, rootfile), options)


def _refuse_protected(package: Package) -> None:
    if "META-INF/encryption.xml" in package:
        methods = package.xml("META-INF/encryption.xml").iter("{*}EncryptionMethod")
        if any(
            (method.get("Algorithm") or "") not in _FONTS
            for method in methods
            if (parent := method.getparent()) is not None and parent.tag.endswith("}EncryptedData")
        ):
            raise ReadError("the book is protected against copying (DRM): only a copy without protection can be read")


def _chapters(package: Package, rootfile: str) -> Iterator[Section]:
    book = package.xml(rootfile)
    folder = posixpath.dirname(rootfile)
    files = {
        item.get("id") or "": (_resolve(folder, item.get("href") or ""), item.get("properties") or "")
        for item in book.iter("{*}item")
    }
    spine = next(book.iter("{*}spine"), None)
    references = [item.get("idref") or "" for item in book.iter("{*}itemref")]
    contents = [name for name, properties in files.values() if "nav" in properties.split()]
    toc = files.get((spine.get("toc") or "") if spine is not None else "", ("", ""))[0]
    titles = _titles(package, [*contents, toc])
    seen: dict[str, int] = {}
    for reference in references:
        name, properties = files.get(reference, ("", ""))
        if name not in package or "nav" in properties.split():
            continue
        blocks = list(markup.blocks(_SELF_CLOSED.sub(r"<\1\2></\1>", decode(package.read(name))), page=False))
        title = titles.get(name) or next((" ".join(b.text.split()) for b in blocks if b.level), "")
        first = next((b.text for b in blocks if b.text.strip()), "")
        flat = [Block(b.text, b.kind, notes=b.notes) for b in blocks]
        if title and " ".join(first.split()) == title:
            flat = flat[next(i for i, b in enumerate(flat) if b.text == first) + 1 :]
        for section in sections([Block(title, level=1), *flat] if title else flat):
            # Chapters of the same title, and those of none, are told apart.
            label = section.label if title else "part"
            seen[label] = count = seen.get(label, 0) + 1
            shown = label if count == 1 and title else f"{label} {count}" if not title else f"{label} ({count})"
            yield Section(shown, section.text, section.notes)


def _titles(package: Package, names: list[str]) -> dict[str, str]:
    """Chapter titles by file, from the table of contents of EPUB 3, else of EPUB 2."""
    out: dict[str, str] = {}
    for name in names:
        if name not in package:
            continue
        try:
            root, folder = package.xml(name), posixpath.dirname(name)
        except ReadError:
            continue  # the chapters' own headings have to do
        links = [(e.get("href"), "".join(str(t) for t in e.itertext())) for e in root.iter("{*}a")]
        for point in root.iter("{*}navPoint"):
            source, label = next(point.iter("{*}content"), None), next(point.iter("{*}text"), None)
            if source is not None and label is not None:
                links.append((source.get("src"), label.text or ""))
        for target, text in links:
            if target and text.strip():
                out.setdefault(_resolve(folder, target.split("#")[0]), " ".join(text.split()))
    return out


def _resolve(folder: str, href: str) -> str:
    return posixpath.normpath(posixpath.join("/", folder, unquote(href))).lstrip("/")
