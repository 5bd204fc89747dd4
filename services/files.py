"""Which files of a folder are documents, and what they are called in a collection."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What a folder sends. The service itself goes by content; a file that is named on the command line is always sent.
DOCUMENT_SUFFIXES = frozenset(
    """.pdf .docx .docm .dotx .dotm .pptx .pptm .ppsx .ppsm .potx .potm .xlsx .xlsm .xltx .xltm .csv .tsv .tab
    .html .htm .xhtml .md .markdown .mdown .mkd .txt .text .log .rst .json .epub
    .png .jpg .jpeg .tif .tiff .webp .bmp .gif .zip
    .doc .ppt .xls .odt .ods .odp .rtf .pages .numbers .key .mobi .azw3 .djvu .ps .eml .msg""".split()
)  # the last line cannot be read today: sent all the same, so that the service says so and nobody misses them
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"})
_UNFINISHED = frozenset({".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".swp", ".swo", ".filepart"})

Signature = tuple[int, int, int]


@dataclass(frozen=True)
class Found:
    """A file and the name it has in a collection."""

    path: Path
    name: str
    size: int  # bytes
    mtime_ns: int
    inode: int

    @property
    def signature(self) -> Signature:
        """Changes when the content does."""
        return self.size, self.mtime_ns, self.inode


@dataclass
class Listing:
    files: list[Found] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # suffix or kind → how many
    unreadable: list[str] = field(default_factory=list)  # "what: why"

    def add(self, other: "Listing") -> None:
        self.files += other.files
        self.skipped += other.skipped
        self.unreadable += other.unreadable


def name_of(path: Path) -> str:
    """The last part of a path as a person gave it; "." and ".." are looked up."""
    return clean_name(Path(os.path.abspath(path)).name)


def clean_name(name: str) -> str:
    """As text that can be sent: NFC (macOS keeps names decomposed), bytes that are no UTF-8 as "�"."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace"))


def is_temporary(name: str) -> bool:
    """What editors, browsers and offices leave beside a file while they work on it."""
    suffix = os.path.splitext(name)[1].lower()
    return name.startswith(("~$", "~WRL", ".~")) or name.endswith("~") or suffix in _UNFINISHED


def walk(folder: Path) -> Listing:
    """The documents below ``folder``, named from its own name on ("docs/a/b.pdf"), in the order of their names.

    Hidden and temporary files, caches and what is no document are left out and counted. Links are followed only to files
    inside the folder, so that a link can neither lead out nor round in a circle.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    listing = Listing()
    _walk(folder, name_of(folder), os.path.realpath(folder), listing)
    return listing


def single(path: Path) -> Found:
    """A file that was named by itself.

    Raises:
        OSError: it cannot be looked at.
    """
    status = path.stat()
    return Found(path, name_of(path), status.st_size, status.st_mtime_ns, status.st_ino)


def _walk(folder: Path, name: str, root: str, listing: Listing) -> None:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        below = f"{name}/{clean_name(entry.name)}" if name else clean_name(entry.name)
        if entry.name.startswith("."):
            continue
        try:
            if entry.is_symlink():
                _link(entry, below, root, listing)
            elif entry.is_dir(follow_symlinks=False):
                if entry.name not in SKIPPED_FOLDERS:
                    _walk(Path(entry.path), below, root, listing)
            elif entry.is_file(follow_symlinks=False):
                _file(Path(entry.path), below, listing)
            else:
                listing.skipped["devices and pipes"] += 1
        except FileNotFoundError:
            continue  # went away while we looked
        except OSError as error:
            listing.unreadable.append(f"{below}: {error.strerror or error}")


def _link(entry: os.DirEntry[str], name: str, root: str, listing: Listing) -> None:
    target = os.path.realpath(entry.path)
    if not os.path.exists(target):
        listing.skipped["broken links"] += 1
    elif os.path.commonpath([target, root]) != root:
        listing.skipped["links out of the folder"] += 1
    elif os.path.isfile(target):  # a folder inside is visited in its own place
        _file(Path(entry.path), name, listing)


def _file(path: Path, name: str, listing: Listing) -> None:
    if is_temporary(path.name):
        listing.skipped["temporary files"] += 1
        return
    suffix = path.suffix.lower()
    if suffix not in DOCUMENT_SUFFIXES and not _begins_as_pdf(path):
        listing.skipped[suffix or "without a suffix"] += 1
        return
    status = path.stat()
    listing.files.append(Found(path, name, status.st_size, status.st_mtime_ns, status.st_ino))


def _begins_as_pdf(path: Path) -> bool:
    """PDFs are kept under any name, such as a download's or a paper's number ("2309.16609")."""
    with path.open("rb") as file:
        return file.read(5) == b"%PDF-"


def same_names(files: Iterable[Found]) -> Iterator[tuple[Found, Found]]:
    """Pairs of different files that would get one name: the second would replace the first."""
    seen: dict[str, Found] = {}
    for found in files:
        first = seen.setdefault(found.name, found)
        if first is not found:
            yield first, found
