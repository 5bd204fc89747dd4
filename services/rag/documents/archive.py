"""Takes a ZIP archive of documents apart: each member becomes a file of its own, or is named with the reason why not.

Nothing in the archive decides where something is written: members get plain numbers for names.
"""

import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from services.rag.documents import detect, encoding
from services.rag.documents.pages import Options, ReadError

_BLOCK = 1 << 20
_RATIO_FROM = 8 << 20  # bytes; a small file that packs well is no bomb
NAME_BYTES = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class ArchiveLimits:
    members: int = 2000
    member_bytes: int = 256 << 20
    total_bytes: int = 2 << 30
    ratio: float = 200  # unpacked to packed size of one member


@dataclass(frozen=True)
class Member:
    """A file of the archive, now at ``path``."""

    name: str  # its relative path inside the archive, with "/"
    path: Path
    size: int


@dataclass(frozen=True)
class MemberFailure:
    name: str
    reason: str


class _Refused(Exception):
    pass


def expand(
    path: Path, into: Path, limits: ArchiveLimits, options: Options | None = None
) -> Iterator[Member | MemberFailure]:
    """Unpack the archive at ``path`` into the folder ``into``, in the archive's order.

    Folders, hidden files and what macOS adds are passed over. ``options.password`` opens members with the old ZIP
    encryption.

    Raises:
        ReadError: it is not a ZIP archive, is damaged, holds no files, or they cannot be written.
    """
    password = options.password.encode() if options and options.password else None
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise ReadError(f"the ZIP archive is damaged: pack it again ({error})"[:300]) from error
    with archive:
        taken: dict[str, int] = {}
        number = found = total = 0
        for info, name in _names(archive.infolist()):
            found += 1
            if found > limits.members:
                yield MemberFailure(name, f"the archive holds more than {limits.members:,} files: split it")
                continue
            target = into / f"{number:06}"
            try:
                _check(info, name, limits, password)
                if total + info.file_size > limits.total_bytes:
                    raise _Refused(f"unpacked, the archive is larger than {_size(limits.total_bytes)}: split it")
                size = _unpack(archive, info, target, password, limits)
                total += size
                if kind := detect.is_archive(target):
                    raise _Refused(f"it is {kind} inside the archive: unpack it first")
            except _Refused as refusal:
                target.unlink(missing_ok=True)
                yield MemberFailure(name, str(refusal))
                continue
            number += 1
            yield Member(_unique(name, taken), target, size)
    if not found:
        raise ReadError("the ZIP archive holds no files")


def _names(infos: list[zipfile.ZipInfo]) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """The members that are files a person put there, with their names decoded."""
    # Names without the UTF-8 flag are in the packing machine's encoding, which all of them together show.
    unflagged = b"\n".join(_raw(info) for info in infos if not info.flag_bits & 0x800)
    codec = _codec(unflagged)
    for info in infos:
        name = info.orig_filename
        if not info.flag_bits & 0x800:
            name = _unicode_path(info) or _raw(info).decode(codec, errors="replace")
        name = unicodedata.normalize("NFC", name.replace("\\", "/"))
        parts = [part for part in name.split("/") if part not in ("", ".")]
        hidden = any(p == "__MACOSX" or (p.startswith(".") and p != "..") for p in parts)
        if name.endswith("/") or hidden or not parts or parts[-1].lower() in ("thumbs.db", "desktop.ini"):
            continue
        yield info, ("/" if name.startswith("/") else "") + "/".join(parts)


def _raw(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("cp437", errors="replace")  # what zipfile decoded it with


def _codec(names: bytes) -> str:
    try:
        names.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        pass
    found = encoding.guess(names)
    # Western names were written by DOS and by Windows' own packer in code page 437; a guess at Latin-1 means that.
    return found if found and not found.startswith(("cp125", "koi8", "utf-16")) else "cp437"


def _unicode_path(info: zipfile.ZipInfo) -> str:
    """The UTF-8 name that WinRAR and 7-Zip put beside the old one (extra field 0x7075), if it belongs to it."""
    extra, at = info.extra, 0
    while at + 4 <= len(extra):
        kind, size = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        body = extra[at + 4 : at + 4 + size]
        if kind == 0x7075 and len(body) > 5 and int.from_bytes(body[1:5], "little") == zlib.crc32(_raw(info)):
            return body[5:].decode("utf-8", errors="replace")
        at += 4 + size
    return ""


def _check(info: zipfile.ZipInfo, name: str, limits: ArchiveLimits, password: bytes | None) -> None:
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise _Refused("its name leads out of the archive")
    if _CONTROL.search(name) or len(name.encode(errors="replace")) > NAME_BYTES:
        raise _Refused("its name has control characters or is too long")
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise _Refused("it is a link or a device, not a file")
    if info.flag_bits & 1 and password is None:
        raise _Refused("it is encrypted: give the password, or pack it without one")
    if info.file_size == 0:
        raise _Refused("the file is empty")
    if info.file_size > limits.member_bytes:
        raise _Refused(f"it is larger than {_size(limits.member_bytes)}")
    if info.file_size > _RATIO_FROM and info.file_size > limits.ratio * max(1, info.compress_size):
        raise _Refused(f"it expands more than {limits.ratio:g} times, as ZIP bombs do")


def _unpack(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, password: bytes | None, limits: ArchiveLimits
) -> int:
    """Bytes written. zipfile gives no more than the declared size, and checks the CRC at the end."""
    size = 0
    try:
        source = archive.open(info, pwd=password)
    except NotImplementedError as error:
        encrypted = info.flag_bits & 1
        raise _Refused(
            "its encryption is not supported: unpack it first"
            if encrypted
            else f"its packing is not supported ({error})"
        ) from error
    except RuntimeError as error:
        raise _Refused("the password does not open it") from error
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise _Refused(f"it is damaged in the archive ({error})"[:200]) from error
    with source, _open(target) as out:
        while True:
            try:
                block = source.read(_BLOCK)
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
                wrong = info.flag_bits & 1  # one byte checks the password, so every 256th wrong one gets this far
                raise _Refused(
                    "the password does not open it" if wrong else f"it is damaged ({error})"[:200]
                ) from error
            if not block:
                break
            size += len(block)
            if size > limits.member_bytes:
                raise _Refused(f"it is larger than {_size(limits.member_bytes)}")
            try:
                out.write(block)
            except OSError as error:
                target.unlink(missing_ok=True)
                raise ReadError(f"the archive cannot be unpacked: {error.strerror}") from error
    return size


def _open(target: Path) -> BinaryIO:
    try:
        return target.open("xb")
    except OSError as error:
        raise ReadError(f"the archive cannot be unpacked: {error.strerror}") from error


def _unique(name: str, taken: dict[str, int]) -> str:
    """Two members of one name are both kept: the later one gets " (2)"."""
    taken[name] = count = taken.get(name, 0) + 1
    if count == 1:
        return name
    path = PurePosixPath(name)
    return _unique(str(path.with_name(f"{path.stem} ({count}){path.suffix}")), taken)


def _size(count: int) -> str:
    return f"{count / (1 << 30):g} GB" if count >= 1 << 30 else f"{count / (1 << 20):g} MB"
