"""PowerPoint presentations (.pptx): a page a slide, shapes in reading order, with the speaker's notes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lxml import etree

from services.rag.documents import rows
from services.rag.documents.office import Package, attribute, child, local, opened
from services.rag.documents.pages import Options, PageFailure, PageText, ReadError
from services.rag.documents.sections import Block, tidy

NOTES = "Speaker notes:"
_FURNITURE = {"sldNum", "dt", "ftr", "hdr", "sldImg"}  # the same on every slide
_SAME_LINE = 0.5  # of the lower shape's height: two shapes that overlap by this stand beside each other


def read(path: Path, options: Options) -> Iterator[PageText | PageFailure]:
    """One page a slide, by its place in the presentation.

    Raises:
        ReadError: it is damaged or encrypted, or has no slides.
    """
    with opened(path, options) as package:
        main = next(iter(package.related("", "officeDocument")), "ppt/presentation.xml")
        root = package.xml(main)
        if local(root) != "presentation":
            raise ReadError(f"inside, the file is not a presentation ({local(root)!r}): give it the right ending")
        relations = package.relations(main)
        ids = [attribute_of_relation(item) for item in root.iter("{*}sldId")]
        slides = [relations[i].target for i in ids if i in relations and relations[i].target in package]
        if not slides:
            raise ReadError("the presentation has no slides")
        for number, name in enumerate(slides[options.first_page - 1 :], options.first_page):
            try:
                yield _slide(package, name, number, len(slides))
            except ReadError as error:
                yield PageFailure(number, len(slides), f"the slide cannot be read: {error}"[:300], f"slide {number}")


def attribute_of_relation(item: etree._Element) -> str:
    """An element's relation is its ``id`` in a namespace; the plain one is another number."""
    return next((str(value) for key, value in item.items() if str(key).endswith("}id")), "")


@dataclass
class _Shape:
    top: float
    left: float
    bottom: float
    text: str
    title: bool = False


@dataclass
class _Slide:
    package: Package
    name: str
    places: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # of the layout's placeholders
    pictures: int = 0
    notes: dict[str, None] = field(default_factory=dict)


def _slide(package: Package, name: str, number: int, total: int) -> PageText | PageFailure:
    root = package.xml(name)
    slide = _Slide(package, name)
    for layout in package.related(name, "slideLayout"):
        for upper in [*package.related(layout, "slideMaster"), layout]:
            for item in package.xml(upper).iter("{*}sp"):
                if (place := _place(item)) is not None:
                    slide.places.update(dict.fromkeys(_keys(item), place))
    if attribute(root, "show") in ("0", "false"):
        slide.notes["the slide is hidden"] = None
    texts = [shape.text for shape in _ordered(_shapes(child(root, "cSld", "spTree"), slide))]
    spoken = [text for part in package.related(name, "notesSlide") for text in _spoken(package, part)]
    body = _searchable("\n\n".join(texts))
    notes = _searchable("\n".join(spoken))
    label = f"slide {number}"
    if not body and not notes:
        return PageFailure(number, total, "only a picture" if slide.pictures else "the slide is empty", label)
    if slide.pictures:
        slide.notes["pictures are not read"] = None
    # However long it is: a slide has one number, so it cannot be two pages, and nothing of it is to be lost.
    text = f"{body}\n\n{NOTES}\n{notes}".strip() if notes else body
    return PageText(number, total, text, label, notes=tuple(slide.notes))


def _searchable(text: str) -> str:
    text = tidy(Block(text))
    return text if any(c.isalnum() for c in text) else ""


def _shapes(tree: etree._Element | None, slide: _Slide) -> Iterator[_Shape]:
    for item in tree.iterchildren() if tree is not None else ():
        kind = local(item)
        if kind == "AlternateContent":
            choice = child(item, "Choice")
            yield from _shapes(choice if choice is not None else child(item, "Fallback"), slide)
            continue
        if kind not in ("sp", "grpSp", "graphicFrame", "pic", "cxnSp"):
            continue
        place = _place(item)
        keys = _keys(item)
        if place is None:
            place = next((slide.places[key] for key in keys if key in slide.places), (0.0, 0.0, 0.0))
        drawing = next((part for part in item.iterchildren() if local(part).startswith("nv")), None)
        if attribute(child(drawing, "cNvPr"), "hidden") in ("1", "true"):
            slide.notes["hidden text is left out"] = None
            continue
        if kind == "pic" or child(item, "spPr", "blipFill") is not None:
            slide.pictures += 1
        if kind == "grpSp":
            # A group's own coordinates order its parts; its frame orders it among the others.
            text = "\n".join(shape.text for shape in _ordered(_shapes(item, slide)))
        elif kind == "graphicFrame":
            text = _graphic(item, slide)
        elif keys and keys[-1] in _FURNITURE:
            continue
        else:
            text = _paragraphs(child(item, "txBody"))
        if text.strip():
            yield _Shape(*place, text, bool(keys) and keys[-1] in ("title", "ctrTitle"))


def _ordered(shapes: Iterator[_Shape]) -> list[_Shape]:
    """The title, then from the top; shapes that stand beside each other from the left."""
    todo = sorted(shapes, key=lambda s: (not s.title, s.top, s.left))
    out: list[_Shape] = []
    while todo:
        first = todo[0]
        line = [first]
        for other in todo[1:]:
            overlap = min(first.bottom, other.bottom) - max(first.top, other.top)
            height = min(first.bottom - first.top, other.bottom - other.top)
            if not first.title and height > 0 and overlap > _SAME_LINE * height:
                line.append(other)
        out.extend(sorted(line, key=lambda s: s.left))
        taken = set(map(id, line))
        todo = [s for s in todo if id(s) not in taken]
    return out


def _place(item: etree._Element) -> tuple[float, float, float] | None:
    """Top, left and bottom in EMU; None if the layout says where it is."""
    frame = next((f for f in (child(item, p, "xfrm") for p in ("spPr", "grpSpPr")) if f is not None), None)
    frame = frame if frame is not None else child(item, "xfrm")
    offset, extent = child(frame, "off"), child(frame, "ext")
    try:
        top, left = float(attribute(offset, "y") or ""), float(attribute(offset, "x") or "")
        return top, left, top + float(attribute(extent, "cy") or 0)
    except ValueError:
        return None


def _keys(item: etree._Element) -> list[str]:
    """What finds a placeholder in the layout: its index, then its type (which stands last). Empty for other shapes."""
    place = next((e for part in item.iterchildren() for e in part.iter("{*}ph") if local(part).startswith("nv")), None)
    if place is None:
        return []
    index = attribute(place, "idx")
    return [*([f"#{index}"] if index else []), attribute(place, "type") or "obj"]


def _paragraphs(body: etree._Element | None) -> str:
    lines = []
    for paragraph in body.iterchildren("{*}p") if body is not None else ():
        text = ""
        for part in paragraph.iter():
            if local(part) == "t":
                text += part.text or ""
            elif local(part) in ("br", "tab"):
                text += "\n" if local(part) == "br" else " "
        lines.append(text)
    return "\n".join(lines)


def _graphic(item: etree._Element, slide: _Slide) -> str:
    """A table, a chart's figures, or the words of a diagram."""
    grid = next(item.iter("{*}tbl"), None)
    if grid is not None:
        merged = ("hMerge", "vMerge")
        return rows.table(
            [
                [
                    ""
                    if any(attribute(cell, m) in ("1", "true") for m in merged)
                    else _paragraphs(child(cell, "txBody"))
                    for cell in row.iterchildren("{*}tc")
                ]
                for row in grid.iterchildren("{*}tr")
            ]
        )
    relations = slide.package.relations(slide.name)
    for part in item.iter("{*}chart", "{*}relIds"):
        key = next((str(v) for k, v in part.items() if str(k).endswith(("}id", "}dm"))), "")
        relation = relations.get(key)
        if relation is None or relation.target not in slide.package:
            continue
        root = slide.package.xml(relation.target)
        if local(part) == "chart":
            return _chart(root)
        return "\n".join(filter(None, (_paragraphs(child(p, "t")) for p in root.iter("{*}pt"))))
    return ""


def _chart(root: etree._Element) -> str:
    title = "".join(t.text or "" for t in root.iter("{*}t")) if next(root.iter("{*}title"), None) is not None else ""
    columns: list[list[str]] = []
    for series in root.iter("{*}ser"):
        if not columns:
            columns.append(["", *_values(child(series, "cat"))])
        name = _values(child(series, "tx"))
        values = child(series, "val")
        columns.append([" ".join(name), *_values(values if values is not None else child(series, "yVal"))])
    height = max(map(len, columns), default=0)
    lines = [[c[i] if i < len(c) else "" for c in columns] for i in range(height)]
    return "\n".join(filter(None, [title, rows.table(lines)]))


def _values(element: etree._Element | None) -> list[str]:
    return [v.text or "" for v in element.iter("{*}v")] if element is not None else []


def _spoken(package: Package, part: str) -> Iterator[str]:
    for item in package.xml(part).iter("{*}sp"):
        keys = _keys(item)
        if not keys or keys[-1] not in _FURNITURE:
            text = _paragraphs(child(item, "txBody"))
            if text.strip():
                yield text
