"""ZIP archives of documents: every member becomes a file or a reason."""

import io
import stat
import struct
import subprocess
import zipfile
from pathlib import Path
from shutil import which

import pytest

from services.rag.documents.archive import ArchiveLimits, Member, MemberFailure, expand
from services.rag.documents.pages import Options, ReadError
from tests.support.files import make_docx, make_zip, paragraph


def unpack(
    path: Path, limits: ArchiveLimits | None = None, password: str | None = None
) -> tuple[dict[str, bytes], dict[str, str]]:
    """The contents by name, and the reasons by name."""
    into = path.parent / "into"
    into.mkdir()
    items = list(expand(path, into, limits or ArchiveLimits(), Options(password=password)))
    members = {i.name: i.path.read_bytes() for i in items if isinstance(i, Member)}
    assert sorted(p for p in into.iterdir()) == sorted(i.path for i in items if isinstance(i, Member))
    assert all(i.size == i.path.stat().st_size for i in items if isinstance(i, Member))
    assert not [p for p in path.parent.rglob("*") if p.is_file() and p != path and p.parent != into]
    return members, {i.name: i.reason for i in items if isinstance(i, MemberFailure)}


def test_members_keep_their_paths_and_rubbish_is_passed_over(tmp_path: Path) -> None:
    content = {"a/b.txt": "one", "./c.txt": "two", "d\\e.txt": "three"}
    rubbish = {"__MACOSX/a/._b.txt": "x", "a/.DS_Store": "x", ".git/config": "x", "empty/": "", "Thumbs.db": "x"}
    members, failures = unpack(make_zip(tmp_path / "x.zip", content | rubbish))
    assert members == {"a/b.txt": b"one", "c.txt": b"two", "d/e.txt": b"three"}
    assert not failures


@pytest.mark.parametrize("codec", ["gb18030", "utf-8", "cp437", "big5", "cp932"])
def test_names_without_the_utf8_flag(tmp_path: Path, codec: str) -> None:
    """As Windows' own packer writes them: in the machine's encoding, which nothing in the archive names."""
    names = {
        "gb18030": ["合同/租约管理办法.txt", "报告.txt"],
        "utf-8": ["合同/租约管理办法.txt"],
        "cp437": ["Übersicht größe.txt", "café.txt"],
        "big5": ["合約/資料管理辦法說明.txt", "報告.txt"],
        "cp932": ["契約書/これはテストです.txt", "ファイル.txt"],
    }[codec]
    path = tmp_path / "x.zip"
    stand_ins = {name: "0" * len(name.encode(codec)) for name in names}
    stand_ins = {name: f"{i}{text[1:]}" for i, (name, text) in enumerate(stand_ins.items())}
    make_zip(path, dict.fromkeys(stand_ins.values(), "text"))
    data = path.read_bytes()
    for name, text in stand_ins.items():
        data = data.replace(text.encode(), name.encode(codec))
    path.write_bytes(data)
    members, failures = unpack(path)
    assert sorted(members) == sorted(names)
    assert not failures


def test_what_is_dangerous_is_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"../up.txt": "x", "/abs.txt": "x", "C:\\win.txt": "x", "ok.txt": "fine"})
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x", "y")
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("nested.docx", inner.getvalue())
        archive.writestr("bell\x07.txt", "x")
        archive.writestr("empty.txt", "")
        archive.writestr("bomb.txt", b"0" * (20 << 20))
        archive.writestr("more.7z", b"7z\xbc\xaf\x27\x1c" + bytes(30))
    members, failures = unpack(path)
    assert members == {"ok.txt": b"fine"}
    said = dict(failures)
    for name in ("../up.txt", "/abs.txt", "C:/win.txt"):
        assert "leads out" in said.pop(name)
    assert "link" in said.pop("link.txt")
    assert "ZIP archive" in said.pop("nested.docx")
    assert "7-Zip archive" in said.pop("more.7z")
    assert "control" in said.pop("bell\x07.txt")
    assert "empty" in said.pop("empty.txt")
    assert "bombs" in said.pop("bomb.txt")
    assert not said


def test_documents_made_of_zip_are_not_nested_archives(tmp_path: Path) -> None:
    document = make_docx(tmp_path / "d.docx", paragraph("x"))
    content = document.read_bytes()
    document.unlink()
    members, failures = unpack(make_zip(tmp_path / "x.zip", {"d.docx": content}))
    assert members == {"d.docx": content}
    assert not failures


def test_limits(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a": "12345678", "b": "1234", "c": "1234", "d": "1234", "e": "1"})
    members, failures = unpack(path, ArchiveLimits(members=4, member_bytes=6, total_bytes=10))
    assert list(members) == ["b", "c"]
    assert "larger than" in failures["a"]
    assert "the archive is larger" in failures["d"]
    assert "more than 4 files" in failures["e"]


def test_a_lie_about_the_size_is_found_out(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.txt": b"abcd" * 5000, "b.txt": b"fine"})
    data = path.read_bytes()
    assert data.count(struct.pack("<I", 20000)) == 2
    path.write_bytes(data.replace(struct.pack("<I", 20000), struct.pack("<I", 100)))
    members, failures = unpack(path)
    assert members == {"b.txt": b"fine"}
    assert "damaged" in failures["a.txt"]


def test_a_name_that_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/b.txt", "two")
    assert unpack(path)[0] == {"a/b.txt": b"one", "a/b (2).txt": b"two"}


@pytest.mark.skipif(which("zip") is None, reason="no zip program to encrypt with")
@pytest.mark.parametrize(("password", "said"), [(None, "encrypted"), ("wrong", "does not open"), ("right", "")])
def test_an_encrypted_archive(tmp_path: Path, password: str | None, said: str) -> None:
    (tmp_path / "a.txt").write_text("secret text " * 50)
    subprocess.run(["zip", "-q", "-P", "right", "x.zip", "a.txt"], cwd=tmp_path, check=True)
    (tmp_path / "a.txt").unlink()
    members, failures = unpack(tmp_path / "x.zip", password=password)
    assert said in failures.get("a.txt", "")
    assert ("a.txt" in members) == (not said)


@pytest.mark.parametrize("content", [b"PK\x03\x04 nothing", b"not a zip at all"])
def test_a_damaged_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ReadError, match="damaged"):
        list(expand(tmp_path / "x.zip", tmp_path, ArchiveLimits()))


def test_an_archive_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no files"):
        list(expand(make_zip(tmp_path / "x.zip", {".hidden": "x"}), tmp_path, ArchiveLimits()))


def test_a_folder_that_cannot_be_written_is_the_archives_failure(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="cannot be unpacked"):
        list(expand(make_zip(tmp_path / "x.zip", {"a": "x"}), tmp_path / "missing", ArchiveLimits()))
