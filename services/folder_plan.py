"""What makes a collection like a folder: a comparison of two lists, without any I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MARK = "watched"  # the metadata key: which watch sent a document

Document = Mapping[str, Any]


@dataclass
class Plan:
    """What makes the collection like the folder. To be done in this order."""

    deletes: list[Document] = field(default_factory=list)
    renames: list[tuple[Document, str]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)  # name → why it is left alone


def plan(
    local: Mapping[str, str], unsettled: Iterable[str], documents: Iterable[Document], mark: str, prefix: str
) -> Plan:
    """Compare a folder with a collection.

    ``local``: name → SHA-256 of each file that can be sent; ``unsettled``: names of files that are there with unknown
    or unusable content: what the collection has under such a name stays. Only documents that carry ``mark`` and lie
    under ``prefix`` are deleted or renamed; the folder's own names are replaced by upload, as any client would do it.
    """
    made = Plan()
    kept = set(unsettled)
    documents = list(documents)
    by_content = {str(d["sha256"]): d for d in documents}
    by_name: dict[str, list[Document]] = {}
    for d in documents:
        by_name.setdefault(str(d["filename"]), []).append(d)
    paths: dict[str, list[str]] = {}
    for name in sorted(local):
        paths.setdefault(local[name], []).append(name)

    def ours(d: Document) -> bool:
        return (d.get("metadata") or {}).get(MARK) == mark and str(d["filename"]).startswith(prefix + "/")

    renames: dict[str, str] = {}
    for content, names in paths.items():
        document = by_content.get(content)
        if document is None:
            if why := _taken(names[0], [d for d in by_name.get(names[0], []) if not ours(d)], paths):
                made.conflicts[names[0]] = why
            else:
                made.uploads.append(names[0])
        elif ours(document) and document["filename"] not in names and document["filename"] not in kept:
            renames[str(document["id"])] = names[0]

    for d in documents:
        if not ours(d) or d["sha256"] in paths or d["filename"] in kept or d["filename"] in made.uploads:
            continue
        successor = by_content.get(local.get(str(d["filename"]), ""))
        if successor is not None and successor["filename"] == d["filename"] and successor.get("status") != "indexed":
            continue  # a new version is being indexed: the service swaps the two, or keeps the one that works
        made.deletes.append(d)

    gone = {str(d["id"]) for d in made.deletes}
    _order_renames(made, renames, [d for d in documents if str(d["id"]) not in gone], prefix)
    return made


def _taken(name: str, holders: Iterable[Document], paths: Mapping[str, list[str]]) -> str:
    """Why ``name`` cannot be uploaded, or nothing: what people uploaded under the name of a file is replaced by it."""
    for d in holders:
        if other := (d.get("metadata") or {}).get(MARK):
            return f"another watch ({other}) keeps a document of this name"
        if there := paths.get(str(d["sha256"])):
            # Replacing it would take away what that other file needs, and has from somebody else.
            return (
                f"a document that was uploaded by hand has this name and the content of {there[0]}: rename or delete it"
            )
    return ""


def _order_renames(made: Plan, wanted: dict[str, str], documents: list[Document], prefix: str) -> None:
    """So that no document takes a name that another one still has; a ring of them is opened by a name in between."""
    by_id = {str(d["id"]): d for d in documents}
    holder = {str(d["filename"]): str(d["id"]) for d in documents}
    left = dict(wanted)
    for document_id, name in wanted.items():
        held = holder.get(name)
        if held is not None and held not in wanted:
            made.conflicts[name] = "another document has this name and is not this watch's"
            del left[document_id]
    named = {str(d["id"]): str(d["filename"]) for d in documents}

    def rename(document_id: str, name: str) -> None:
        made.renames.append((by_id[document_id], name))
        if holder.get(named[document_id]) == document_id:  # two versions of a document share its name for a while
            del holder[named[document_id]]
        holder[name], named[document_id] = document_id, name

    while left:
        free = next((i for i, name in left.items() if name not in holder), None)
        if free is not None:
            rename(free, left.pop(free))
        elif ring := next((i for i, name in left.items() if holder[name] in left), None):
            rename(ring, f"{prefix}/.{ring}.moving")
        else:
            made.conflicts |= dict.fromkeys(left.values(), "another document keeps this name")
            return
