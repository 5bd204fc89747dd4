"""The blocks of an HTML text: what a person sees of it, in order.

Parsed by lexbor as a browser would, so broken markup loses nothing; walked without recursion, so nesting has no limit.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from selectolax.lexbor import LexborHTMLParser, LexborNode

from services.rag.documents.rows import table
from services.rag.documents.sections import Block

HIDDEN = "hidden text is left out"
MENUS = "menus, sidebars and footers are left out"
# A browser's parser looks through all open elements at many a tag, so a hundred thousand open ones take a minute.
MAX_DEPTH = 500
_NEVER = set(
    "script style template noscript svg canvas iframe object embed select datalist audio video map rt rp head".split()
)
_FURNITURE = {"nav", "footer", "aside"}
_BLOCKS = set(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form header hgroup hr html legend li main menu nav ol option p pre section summary table tbody td textarea "
    "tfoot th thead title tr ul".split()
)
_HEADINGS = {f"h{i}": i for i in range(1, 7)}
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>")
# Elements that HTML closes by itself, or that are never open.
_CLOSED = set(
    "p li td th tr tbody thead tfoot dt dd option optgroup colgroup col br hr img input meta link area base embed source "
    "track wbr param rt rp".split()
)
_STYLE_HIDDEN = re.compile(
    r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|opacity\s*:\s*0*\.?0+\s*(?:;|!|$)"
    r"|font-size\s*:\s*0*\.?0+[a-z%]*\s*(?:;|!|$)|text-indent\s*:\s*-\d{3,}|(?:left|top)\s*:\s*-\d{4,})"
)
_ZERO_SIZE = re.compile(r"(?:^|;)\s*(?:max-)?(?:width|height)\s*:\s*0(?:px|em|%|pt)?\s*(?:;|!|$)")
_WHITE = re.compile(r"(?:^|;)\s*color\s*:\s*(?:white|#fff|#ffffff|rgb\(\s*255\s*,\s*255\s*,\s*255\s*\))\s*(?:;|!|$)")
_BACKGROUND = re.compile(r"(?:^|;)\s*background(?:-color)?\s*:\s*([^;]+)")
_WHITES = {"white", "#fff", "#ffffff", "transparent", "none", "inherit"}


def blocks(html: str, *, page: bool = True) -> Iterator[Block]:
    """The visible blocks of ``html``. ``page``: it is a whole web page, whose menus, sidebars and footers are left out."""
    document = LexborHTMLParser(_shallow(html))
    found = list(_Walk(document, page).blocks())
    if page and not any(block.text.strip() for block in found):
        found = list(_Walk(document, False).blocks())  # all of it stands in what looked like furniture
    yield from found


class _Walk:
    def __init__(self, document: LexborHTMLParser, page: bool) -> None:
        self._document = document
        self._page = page
        self._inline: list[str] = []
        self._notes: dict[str, None] = {}
        self._lists: list[int] = []  # of each open list: the next number, or -1 for bullets
        self._pre = 0
        self._mark = ""  # of the list item that begins
        self._styled = document.css_first("style, link[rel=stylesheet]") is not None

    def blocks(self) -> Iterator[Block]:
        title = self._document.css_first("head > title") if self._page else None
        name = " ".join((title.text() if title is not None else "").split())
        first = self._document.css_first("h1")
        if name and (first is None or " ".join(first.text().split()) != name):
            yield Block(name, level=1)
        root = self._document.root
        if root is None:
            return
        yield from self._visit(root)
        yield from self._flush()

    def _visit(self, top: LexborNode) -> Iterator[Block]:
        """Depth first by the tree's own links: Python's stack, or selectolax's traverse(), would not bear deep trees."""
        node: LexborNode | None = top
        while node is not None:
            below = None
            if node.is_text_node:
                self._text(node.text_content or "")
            elif node.is_element_node:
                tag = node.tag or ""
                if tag == "table" and self._seen(node, tag) and (rows := _data_rows(node, self._seen)) is not None:
                    yield from self._flush()
                    yield Block(table(rows), "table", notes=self._take_notes())
                elif self._seen(node, tag):
                    yield from self._enter(node, tag)
                    below = node.first_child
                    if below is None:
                        yield from self._leave(tag)
            else:
                below = node.first_child
            while below is None and node is not None:
                if node is top or node.mem_id == top.mem_id:
                    return
                below = node.next
                if below is None:
                    node = node.parent
                    if node is not None and node.is_element_node:
                        yield from self._leave(node.tag or "")
            node = below

    def _seen(self, node: LexborNode, tag: str) -> bool:
        if tag in _NEVER:
            return False
        attributes = node.attributes
        if not attributes and tag not in _FURNITURE:
            return True
        if self._page and (tag in _FURNITURE or attributes.get("role") in ("navigation", "contentinfo")):
            self._notes[MENUS] = None
            return False
        if _is_hidden(node, attributes, self._styled):
            self._notes[HIDDEN] = None
            return False
        return True

    def _enter(self, node: LexborNode, tag: str) -> Iterator[Block]:
        if tag in _BLOCKS or tag in _HEADINGS:
            # What stands in a list item's first paragraph stays on the line of its mark.
            if not (self._mark and not "".join(self._inline).strip()):
                yield from self._flush()
            elif self._notes:
                yield Block("", notes=self._take_notes())
        match tag:
            case "br":
                self._inline.append("\n")
            case "ul" | "menu":
                self._lists.append(-1)
            case "ol":
                start = node.attributes.get("start") or "1"
                self._lists.append(int(start) if start.isdigit() and len(start) < 7 else 1)
            case "li":
                at = self._lists[-1] if self._lists else -1
                self._mark = "- " if at < 0 else f"{at}. "
                if at >= 0:
                    self._lists[-1] += 1
            case "pre" | "textarea":
                self._pre += 1

    def _leave(self, tag: str) -> Iterator[Block]:
        if tag in _HEADINGS:
            yield from self._flush(_HEADINGS[tag])
        elif tag in _BLOCKS:
            yield from self._flush()
        if tag in ("ul", "menu", "ol") and self._lists:
            self._lists.pop()
        elif tag in ("pre", "textarea"):
            self._pre -= 1
        if tag == "li":
            self._mark = ""

    def _text(self, text: str) -> None:
        self._inline.append(text if self._pre else re.sub(r"[ \t\r\n\f]+", " ", text))

    def _flush(self, level: int = 0) -> Iterator[Block]:
        text = "".join(self._inline)
        self._inline = []
        if not text.strip():
            return
        mark, self._mark = self._mark, ""
        if self._pre and not level:
            yield Block(text.strip("\n"), "code", notes=self._take_notes())
        else:
            text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text)).strip()
            yield Block(mark + text, level=level, notes=self._take_notes())

    def _take_notes(self) -> tuple[str, ...]:
        notes = tuple(self._notes)
        self._notes.clear()
        return notes


def _data_rows(node: LexborNode, seen: Callable[[LexborNode, str], bool]) -> list[list[str]] | None:
    """The cells of a table; None if it is a frame for a layout: it holds tables, headings or lists of its own."""
    if node.css_first("td table, th table, td h1, td h2, td h3, td pre, td ul, td ol") is not None:
        return None
    rows: list[list[str]] = []
    pending: dict[int, int] = {}  # column -> rows that a cell above still covers
    caption = node.css_first("caption")
    for tr in node.css("tr"):
        if not seen(tr, "tr"):
            continue
        cells: list[str] = []

        def skip(cells: list[str] = cells) -> None:
            while pending.get(len(cells), 0) > 0:
                pending[len(cells)] -= 1
                cells.append("")

        for item in tr.iter():
            if item.tag not in ("td", "th") or not seen(item, item.tag):
                continue
            skip()
            columns, down = _span(item, "colspan"), _span(item, "rowspan")
            for i in range(columns):
                if down > 1:
                    pending[len(cells)] = down - 1
                cells.append(_cell_text(item, seen) if i == 0 else "")
        skip()
        rows.append(cells)
    if max(map(len, rows), default=0) < 2:
        return None
    return [[caption.text()], *rows] if caption is not None and caption.text().strip() else rows


def _cell_text(top: LexborNode, seen: Callable[[LexborNode, str], bool]) -> str:
    out: list[str] = []
    stack = [top.first_child]
    while stack:
        node = stack.pop()
        while node is not None:
            if node.is_text_node:
                out.append(node.text_content or "")
            elif node.is_element_node:
                tag = node.tag or ""
                if tag == "br" or tag in _BLOCKS:
                    out.append(" ")
                if seen(node, tag) and node.first_child is not None:
                    stack.append(node.next)
                    node = node.first_child
                    continue
            node = node.next
    return "".join(out)


def _span(node: LexborNode, name: str) -> int:
    value = node.attributes.get(name) or ""
    return max(1, min(int(value), 100)) if value.isdigit() and len(value) < 5 else 1


def _is_hidden(node: LexborNode, attributes: dict[str, str | None], styled: bool) -> bool:
    if "hidden" in attributes or (attributes.get("aria-hidden") or "").lower() == "true":
        return True
    style = (attributes.get("style") or "").lower()
    if not style:
        return False
    if _STYLE_HIDDEN.search(style) or ("overflow" in style and _ZERO_SIZE.search(style)):
        return True
    return _WHITE.search(style) is not None and _on_white(node, styled)


def _on_white(node: LexborNode, styled: bool) -> bool:
    """Whether the background behind white text is white too, as far as the markup itself tells."""
    at: LexborNode | None = node
    for _ in range(MAX_DEPTH):
        if at is None or not at.is_element_node:
            break
        attributes: dict[str, Any] = at.attributes
        background = attributes.get("bgcolor")
        if found := _BACKGROUND.search((attributes.get("style") or "").lower()):
            background = found[1]
        if background is not None:
            return background.strip().lower().removesuffix("!important").strip() in _WHITES
        at = at.parent
    return not styled  # a style sheet may give it a dark ground


def _shallow(html: str) -> str:
    """The same text without the tags that are nested deeper than any page needs."""
    if html.count("<") <= MAX_DEPTH:
        return html
    depth = dropped = 0

    def keep(match: re.Match[str]) -> str:
        nonlocal depth, dropped
        if match[2].lower() in _CLOSED or match[0].endswith("/>"):
            return match[0]
        if match[1]:
            if dropped:
                dropped -= 1
                return " "
            depth = max(0, depth - 1)
        elif depth >= MAX_DEPTH:
            dropped += 1
            return " "
        else:
            depth += 1
        return match[0]

    return _TAG.sub(keep, html)
