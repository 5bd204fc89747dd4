"""What kind of file it is, by its content. The name only decides between what looks alike: the kinds of plain text, and
a text about PDFs and the pieces of one."""

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from services.rag.documents import delimiters, encoding
from services.rag.documents.pages import ReadError

_READERS = "services.rag.documents.readers"
HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Format:
    name: str
    media_type: str
    suffixes: tuple[str, ...]
    module: str  # the dotted name of its reader; for "zip", of what expands it


def _office(kind: str) -> str:
    return f"application/vnd.openxmlformats-officedocument.{kind}"


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("pdf", "application/pdf", (".pdf",), f"{_READERS}.pdf"),
        Format("docx", _office("wordprocessingml.document"), (".docx", ".docm", ".dotx", ".dotm"), f"{_READERS}.docx"),
        Format(
            "pptx",
            _office("presentationml.presentation"),
            (".pptx", ".pptm", ".ppsx", ".ppsm", ".potx", ".potm"),
            f"{_READERS}.pptx",
        ),
        Format("xlsx", _office("spreadsheetml.sheet"), (".xlsx", ".xlsm", ".xltx", ".xltm"), f"{_READERS}.xlsx"),
        Format("csv", "text/csv", (".csv", ".tsv", ".tab"), f"{_READERS}.csv"),
        Format("html", "text/html", (".html", ".htm", ".xhtml"), f"{_READERS}.html"),
        Format("markdown", "text/markdown", (".md", ".markdown", ".mdown", ".mkd"), f"{_READERS}.markdown"),
        Format("text", "text/plain", (".txt", ".text", ".log"), f"{_READERS}.plain"),
        Format("epub", "application/epub+zip", (".epub",), f"{_READERS}.epub"),
        Format(
            "image",
            "image/*",
            (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"),
            f"{_READERS}.image",
        ),
        Format("zip", "application/zip", (".zip",), "services.rag.documents.archive"),
    )
}
_TEXT_SUFFIXES = {suffix for name in ("text", "markdown", "html", "csv") for suffix in FORMATS[name].suffixes}
READABLE = (
    "PDF, Word (.docx), PowerPoint (.pptx), Excel (.xlsx), CSV, HTML, Markdown, plain text, EPUB, pictures (PNG, JPEG, "
    "TIFF, WebP, BMP, GIF) and ZIP archives of these"
)

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What a file starts with, and what is then said about it. Order matters where one is the beginning of another.
_KNOWN: list[tuple[bytes, str]] = [
    (b"{\\rtf", "a rich text document (.rtf): save it as .docx"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it, or pack it as ZIP"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it, or pack it as ZIP"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (b"MSCF", "a cabinet archive: unpack it first"),
    (b"\x7fELF", "a program (ELF)"),
    (b"MZ", "a Windows program"),
    (b"\xca\xfe\xba\xbe", "a compiled program"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"\0asm", "a WebAssembly program"),
    (b"SQLite format 3\0", "a SQLite database"),
    (b"%!PS", "a PostScript file: save it as PDF"),
    (b"AT&TFORM", "a DjVu document: save it as PDF"),
    (b"ITSF", "a Windows help file (.chm): save its pages as HTML"),
    (b"ID3", "a sound file"),
    (b"fLaC", "a sound file"),
    (b"OggS", "a sound or video file"),
    (b"\x1a\x45\xdf\xa3", "a video file"),
    (b"\0\0\1\0", "an icon"),
    (b"8BPS", "a Photoshop file: save it as PNG"),
    (b"wOF", "a font"),
    (b"OTTO", "a font"),
    (b"\0\1\0\0\0", "a font or a database"),
    (b"TPZ", "a Kindle book: save it as EPUB"),
]
_NESTED = re.compile(r"^an? (?:7-Zip|RAR|gzip|bzip2|xz|zstd|cabinet|tar) archive")
_OLE_STREAMS = [
    ("EncryptedPackage", ""),
    ("WordDocument", "a Word 97-2003 document (.doc): save it as .docx"),
    ("PowerPoint Document", "a PowerPoint 97-2003 presentation (.ppt): save it as .pptx"),
    ("Workbook", "an Excel 97-2003 workbook (.xls): save it as .xlsx"),
    ("Book", "an Excel 5.0/95 workbook (.xls): save it as .xlsx"),
    ("__substg1.0_", "an Outlook message (.msg): save it as text or PDF"),
    ("VisioDocument", "a Visio drawing: save it as PDF"),
]
_PACKAGES = [
    ("wordprocessingml", "docx"),
    ("vnd.ms-word", "docx"),
    ("presentationml", "pptx"),
    ("vnd.ms-powerpoint", "pptx"),
    ("vnd.ms-excel.sheet.binary", "an Excel binary workbook (.xlsb): save it as .xlsx"),
    ("spreadsheetml", "xlsx"),
    ("vnd.ms-excel", "xlsx"),
    ("vnd.ms-visio", "a Visio drawing: save it as PDF"),
    ("vnd.ms-package.xps", "an XPS document: save it as PDF"),
    ("fixeddocument", "an XPS document: save it as PDF"),
]
# Of a PDF that has lost its header, or is nothing but fragments.
_PDF_SYNTAX = re.compile(rb"\b\d+\s+\d+\s+obj\b\s*(?:<<|\[)|\bstartxref\s+\d|%%EOF|%PDF-")
_PDF_START = re.compile(rb"\s*(?:%PDF|\d+\s+\d+\s+obj\b)")
_HTML_START = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|title|meta|script|style)\b",
    re.IGNORECASE | re.DOTALL,
)
_HTML_TAG = re.compile(r"</?(?:p|div|span|br|table|tr|td|h[1-6]|ul|ol|li|a|b|i|em|strong|img|font|hr)\b[^<>]*>", re.I)
_MARKDOWN = re.compile(
    r"^(?:#{1,6} \S|\s{0,3}(?:```|~~~)|\|.*\|\s*\n\|?\s*:?-{3,}|[=-]{3,}\s*$(?<=\n...))|\]\((?:https?:|[./#\w])[^)]*\)|\*\*\S",
    re.MULTILINE,
)


def detect(path: Path, filename: str = "") -> str:
    """The name in ``FORMATS`` of the file at ``path``, which was called ``filename``.

    Raises:
        ReadError: nothing here reads it; the message says what it is and what can be read.
    """
    suffix = PurePosixPath(filename or path.name).suffix.lower()
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise ReadError("the file is empty")
    zipped = head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08"))
    # A ZIP may hold a PDF as it is, right after its own header.
    junk_first = not zipped and b"%PDF-" in head[:1024] and _ends_as_pdf(path)
    if head.lstrip(b"\0\t\n\r \xef\xbb\xbf").startswith(b"%PDF-") or junk_first:
        return "pdf"
    if zipped:
        return _zip(path)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _ole(path, suffix)
    if head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if (
        head[:2] == b"BM"
        and len(head) > 30
        and head[14:18] in (b"\x28\0\0\0", b"\x0c\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0")
    ):
        return "image"
    if described := _described(head):
        raise unsupported(described)
    if _broken_pdf(head, suffix):
        return "pdf"
    codec = encoding.guess_file(path)
    if codec is None:
        raise unsupported(
            "a binary file of an unknown kind" if b"\0" in head else "text in an unknown encoding: save it as UTF-8"
        )
    return _text(head.decode(codec, errors="ignore"), suffix)


def is_archive(path: Path) -> str:
    """What kind of archive of several files it is ("a RAR archive"), or "": so that archives are not nested."""
    try:
        return "a ZIP archive" if detect(path) == "zip" else ""
    except ReadError as error:
        found = _NESTED.match(str(error).removeprefix("it is "))
        return found[0] if found else ""


def unsupported(what: str) -> ReadError:
    return ReadError(f"it is {what}. What can be read: {READABLE}.")


def _described(head: bytes) -> str:
    for magic, what in _KNOWN:
        if head.startswith(magic) and (
            encoding.guess(head) is None or magic[0] > 0x7F or magic in (b"{\\rtf", b"%!PS")
        ):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it, or pack it as ZIP"
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc", b"avif"):
            return "a HEIC or AVIF picture: save it as JPEG or PNG"
        return "a video file"
    if head[60:68] == b"BOOKMOBI":
        return "a Kindle book: save it as EPUB"
    if head[:4] == b"RIFF" and head[8:12] in (b"WAVE", b"AVI "):
        return "a sound or video file"
    if head[:2] in (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2") and encoding.guess(head) is None:
        return "a sound file"
    return ""


def _ends_as_pdf(path: Path) -> bool:
    """A text that speaks of "%PDF-" is not one; a PDF may have junk before its header (ISO 32000-1, annex H)."""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 2048))
        return b"startxref" in file.read()


def _broken_pdf(head: bytes, suffix: str) -> bool:
    """PDF syntax without a PDF's header. A text about PDFs looks the same, so here the name decides."""
    found = _PDF_SYNTAX.search(head) is not None
    if suffix == ".pdf":
        return found and not _HTML_START.match(head.decode("latin-1"))
    return found and suffix not in _TEXT_SUFFIXES and _PDF_START.match(head) is not None


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if "mimetype" in names and archive.getinfo("mimetype").file_size < 200:
                kind = archive.read("mimetype").decode("ascii", errors="replace").strip()
                if kind == "application/epub+zip":
                    return "epub"
                if kind.startswith("application/vnd.oasis.opendocument"):
                    what = {"text": "document: save it as .docx", "spreadsheet": "spreadsheet: save it as .xlsx"}
                    what["presentation"] = "presentation: save it as .pptx"
                    raise unsupported(f"an OpenDocument {what.get(kind.rsplit('.', 1)[-1], 'file: save it as PDF')}")
            if "META-INF/container.xml" in names:
                return "epub"
            if "[Content_Types].xml" in names:
                # Word's own name for the main part is only a habit; the declared type decides.
                with archive.open("[Content_Types].xml") as part:
                    types = part.read(1 << 20).decode("utf-8", errors="replace")
                mains = re.findall(r'ContentType="([^"]*(?:\.main|\.main\+xml|fixeddocument[^"]*))"', types) or [types]
                for mark, found in _PACKAGES:
                    if any(mark in main.lower() for main in mains):
                        if found in FORMATS:
                            return found
                        raise unsupported(found)
                raise unsupported("an Office package of an unknown kind")
            if any(name.endswith(".iwa") for name in names):
                raise unsupported("an Apple Pages, Numbers or Keynote file: save it as PDF")
            if names & {"META-INF/MANIFEST.MF", "AndroidManifest.xml", "classes.dex"}:
                raise unsupported("a Java or Android program")
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ReadError(
            f"the file is a ZIP archive, or a document made of one, and it is damaged ({error})"[:300]
        ) from error
    return "zip"


def _ole(path: Path, suffix: str) -> str:
    """The old Office formats, and the wrapper of encrypted new ones: told apart by the names of their streams."""
    with path.open("rb") as file:
        data = file.read(64 << 20)
    for stream, what in _OLE_STREAMS:
        if stream.encode("utf-16-le") in data:
            if what:
                raise unsupported(what)
            # Only its password shows what is inside; the name has to do until then.
            return next(
                (f.name for f in FORMATS.values() if suffix in f.suffixes and f.name in ("pptx", "xlsx")), "docx"
            )
    raise unsupported("an old Office file or an installer: save it as .docx, .xlsx, .pptx or PDF")


def _text(text: str, suffix: str) -> str:
    if _HTML_START.match(text.lstrip("\ufeff")):
        return "html"
    by_name = next((f.name for f in FORMATS.values() if suffix in f.suffixes), "")
    plausible: dict[str, Callable[[], bool]] = {
        "text": lambda: True,
        "markdown": lambda: True,
        "csv": lambda: delimiters.find(text, sure=False) is not None,
        "html": lambda: len(_HTML_TAG.findall(text)) > 0,
    }
    if by_name in plausible and plausible[by_name]():
        return by_name
    if len(_HTML_TAG.findall(text)) * 100 > len(text):
        return "html"
    if delimiters.find(text) is not None:
        return "csv"
    return "markdown" if len(_MARKDOWN.findall(text)) >= 2 else "text"
