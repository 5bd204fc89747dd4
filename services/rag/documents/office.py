"""Opens what Office and EPUB files are: a ZIP of XML parts, read within bounds; an encrypted one with its password.

The parts are read one by one, so a presentation full of videos costs no more memory than its slides. XML is parsed
without a network, without external entities, and not at all if it declares a document type, which these formats do
not allow and every entity bomb needs.
"""

import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import unquote

from lxml import etree

from services.rag.documents.pages import Options, ReadError

# A big workbook's sheet is a few hundred MB of XML, of which deflate makes a twentieth.
PART_BYTES = 1 << 30
TOTAL_BYTES = 4 << 30
RATIO = 250
RATIO_FROM = 32 << 20  # bytes; below, a ratio says nothing
PARTS = 100_000
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENTITY = re.compile(rb"<!ENTITY", re.IGNORECASE)


@dataclass(frozen=True)
class Relation:
    type: str  # the last segment of its URI: "slide", "footnotes", "hyperlink"
    target: str  # the name of a part, or an address if external
    external: bool


class Package:
    """The parts of an open file, by name ("word/document.xml")."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = {info.filename.lstrip("/"): info for info in archive.infolist()}
        if len(self._names) > PARTS:
            raise ReadError(f"the file has more than {PARTS:,} parts inside, which no document has")
        if sum(info.file_size for info in self._names.values()) > TOTAL_BYTES:
            raise ReadError(f"unpacked, the file would be larger than {TOTAL_BYTES >> 30} GB")

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def names(self) -> list[str]:
        return list(self._names)

    def open(self, name: str) -> IO[bytes]:
        """A part as a stream. zipfile gives no more than the declared size, which is checked here.

        Raises:
            ReadError: there is no such part, or it is too large, or expands like a bomb.
        """
        info = self._names.get(name)
        if info is None:
            raise ReadError(f"the file is damaged: its part {name!r} is missing")
        if info.file_size > PART_BYTES:
            raise ReadError(f"its part {name!r} is larger than {PART_BYTES >> 30} GB unpacked")
        if info.file_size > RATIO_FROM and info.file_size > RATIO * max(1, info.compress_size):
            raise ReadError(f"its part {name!r} expands more than {RATIO} times, as ZIP bombs do")
        if info.flag_bits & 1:
            raise ReadError("the file is protected with a password inside its ZIP: remove the password")
        return self._archive.open(info)

    def read(self, name: str) -> bytes:
        with self.open(name) as part:
            return part.read()

    def xml(self, name: str) -> etree._Element:
        """The root element of a part.

        Raises:
            ReadError: as ``open``; the part is not well-formed, nested too deeply, or declares entities.
        """
        return parse(self.read(name), name)

    def relations(self, name: str) -> dict[str, Relation]:
        """The relations of a part ("" for the package), by id; empty if it has none."""
        folder, base = posixpath.split(name)
        rels = posixpath.join(folder, "_rels", f"{base}.rels")
        if rels not in self:
            return {}
        out = {}
        for element in self.xml(rels).iter("{*}Relationship"):
            target, external = element.get("Target", ""), element.get("TargetMode") == "External"
            if not external:
                # Absolute targets start at the package; ".." cannot leave it: names are only looked up in the list.
                target = posixpath.normpath(posixpath.join("/", folder, unquote(target))).lstrip("/")
            out[element.get("Id", "")] = Relation(element.get("Type", "").rsplit("/", 1)[-1], target, external)
        return out

    def related(self, name: str, kind: str) -> list[str]:
        """The names of the parts that ``name`` has a relation of type ``kind`` to, if they are there."""
        return [
            r.target for r in self.relations(name).values() if r.type == kind and not r.external and r.target in self
        ]


def parse(data: bytes, name: str) -> etree._Element:
    """XML from a file that is not trusted; see ``Package.xml``."""
    if _ENTITY.search(_narrow(data)):
        raise ReadError(f"its part {name!r} declares XML entities, which a document of this kind never does")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise ReadError(f"the file is damaged: its part {name!r} is not readable XML ({error})"[:300]) from error


def local(element: etree._Element) -> str:
    """The element's name without its namespace: files in the strict dialect differ only in that ("" for a comment)."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: etree._Element | None, name: str) -> str | None:
    """An attribute by its name without namespace; None if there is none, or no element."""
    if element is None:
        return None
    for key, value in element.items():
        if key == name or str(key).endswith(f"}}{name}"):
            return str(value)
    return None


def child(element: etree._Element | None, *names: str) -> etree._Element | None:
    """The element at the path ``names`` below ``element``, by names without namespace; None if a step is missing."""
    for name in names:
        element = next(element.iterchildren(f"{{*}}{name}"), None) if element is not None else None
    return element


def top_level(part: IO[bytes], within: str, name: str) -> Iterator[etree._Element]:
    """The children of the element ``within`` as they are parsed; each is taken out of memory after its turn.

    Raises:
        ReadError: as ``Package.xml``.
    """
    inside: etree._Element | None = None
    depth = 0  # below `inside`; counted, because asking each element for its parent takes most of the time
    try:
        for event, element in etree.iterparse(
            part, events=("start", "end"), resolve_entities=False, no_network=True, load_dtd=False
        ):
            if inside is None:
                if event == "start" and element.getparent() is None and element.getroottree().docinfo.doctype:
                    raise ReadError(
                        f"its part {name!r} declares XML entities, which a document of this kind never does"
                    )
                if event == "start" and local(element) == within:
                    inside, depth = element, 0
            elif event == "start":
                depth += 1
            elif depth == 0:
                inside = None
            else:
                depth -= 1
                if depth == 0:
                    yield element
                    inside.clear()
    except etree.XMLSyntaxError as error:
        raise ReadError(f"the file is damaged: its part {name!r} is not readable XML ({error})"[:300]) from error


def _narrow(data: bytes) -> bytes:
    """UTF-16 hides "<!ENTITY" from a search for its bytes."""
    return data.replace(b"\0", b"") if b"\0" in data[:4] else data


@contextmanager
def opened(path: Path, options: Options) -> Iterator[Package]:
    """The package in ``path``; what goes wrong in it while it is read is a ReadError too.

    Raises:
        ReadError: it is damaged, too large unpacked, or encrypted and ``options.password`` does not open it.
    """
    with path.open("rb") as file:
        source: BinaryIO = file
        if file.read(len(OLE)) == OLE:
            source = decrypted(file, options.password)
        source.seek(0)
        try:
            with zipfile.ZipFile(source) as archive:
                yield Package(archive)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise ReadError(f"the file is damaged and cannot be unpacked ({error})"[:300]) from error


def decrypted(file: BinaryIO, password: str | None) -> BinaryIO:
    """The package inside an encrypted Office file ([MS-OFFCRYPTO]).

    Raises:
        ReadError: no password, or a wrong one, or an encryption that is not supported.
    """
    if not password:
        raise ReadError("the file is protected with a password: give the password, or save it without one")
    import msoffcrypto
    from msoffcrypto.exceptions import DecryptionError, FileFormatError, InvalidKeyError, ParseError

    file.seek(0)
    out = io.BytesIO()
    try:
        office = msoffcrypto.OfficeFile(file)
        office.load_key(password=password, verify_password=True)
        office.decrypt(out)
    except InvalidKeyError as error:
        raise ReadError("the password does not open the file: check it, or save the file without one") from error
    except (DecryptionError, FileFormatError, ParseError) as error:
        raise ReadError(
            f"the file's encryption cannot be opened ({error}): save it without a password"[:300]
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ReadError(f"the file is damaged and cannot be decrypted ({error})"[:300]) from error
    return out
