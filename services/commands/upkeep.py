"""The index and its backup: ``reindex``, ``verify``, ``backup``, ``restore``."""

import argparse
import contextlib
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from services.client import DONE, RagClient, ServiceError, persist
from services.commands.output import UsageError, console, count, errors, safe, size

_POLL_SECONDS = 0.5
# What is less than a new index: nothing, vectors moved, or a few of them made again.
_SMALLER = (None, "compact", "what the index lacked is made again")
_BLOCK = 512  # of a tar


def reindex(arguments: argparse.Namespace, client: RagClient) -> int:
    state = client.index()
    if (state.get("rebuild") or {}).get("reason") in _SMALLER:  # else it is under way: a second command only looks on
        state = client.rebuild()
    if arguments.no_wait:
        console.print(
            f"the index is being rebuilt ({_chunks(state)}); searches go on; 'docduet reindex' shows progress"
        )
        return 0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    told: object = None
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("rebuilding the index", total=None, note="")
        while state["state"] == "rebuilding":
            rebuild = state.get("rebuild") or {}
            if (problem := rebuild.get("error")) and problem != told:
                errors.print(f"[yellow]waiting:[/] {safe(problem)}")
            told = problem
            done, total = rebuild.get("chunks_done") or 0, rebuild.get("chunks_total") or None
            progress.update(task, completed=done, total=total, note=f"chunk {done:,}/{f'{total:,}' if total else '?'}")
            time.sleep(_POLL_SECONDS)
            state = persist(client.index)
    console.print(f"the index is rebuilt: {count(state.get('chunks') or 0, 'chunk')}")
    return 0


def _chunks(state: dict[str, Any]) -> str:
    return count((state.get("rebuild") or {}).get("chunks_total") or 0, "chunk")


def verify(arguments: argparse.Namespace, client: RagClient) -> int:
    """0: catalog, files and indexes agree; 1: they do not, and each difference is named."""
    found = client.verify(arguments.files)
    if arguments.json:
        console.print(json.dumps(found, ensure_ascii=False, indent=2), markup=False)
        return 0 if found["ok"] else 1
    for d in found["differences"]:
        where = "  ".join(safe(d[key]) for key in ("filename", "document_id") if d.get(key))
        console.print(f"[red]{safe(d['kind'])}[/]  {where}{'  ' if where else ''}{safe(d.get('detail') or '')}")
    checked = ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in found.get("checked", {}).items())
    if found["ok"]:
        console.print(f"[green]all agree[/]: {safe(checked)}")
        return 0
    console.print(
        f"{count(len(found['differences']), 'difference')} (checked {safe(checked)}): "
        "'docduet reindex' makes the indexes anew from the catalog; a file that is lost comes back from a backup"
    )
    return 1


def backup(arguments: argparse.Namespace, client: RagClient) -> int:
    """The archive appears under its name only when it is whole and on the disk."""
    target: Path = arguments.file
    if target.is_dir():
        raise UsageError(f"{target} is a folder: name the file to write")
    if target.exists() and not arguments.force:
        raise UsageError(f"{target} exists: name another file, or overwrite it with --force")
    part = target.with_name(target.name + ".part")
    written = 0
    try:
        with part.open("wb") as file, _transfer(f"backup to {target.name}", None) as advance:
            for block in client.backup():
                file.write(block)
                written += len(block)
                advance(written)
            file.flush()
            os.fsync(file.fileno())
        members = _whole(part)
        part.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise ServiceError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    console.print(f"{safe(target)}: {size(written)}, {count(members, 'file')}")
    return 0


def _whole(path: Path) -> int:
    """The number of files in the tar.

    Raises:
        ServiceError: it is cut short or damaged. tarfile takes a file that ends between two members for a whole one, so
            the two empty blocks after the last are looked for.
    """
    members, end = 0, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                members += member.isfile()
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isfile() else 0)
        with path.open("rb") as file:
            file.seek(end)
            ended = file.read(2 * _BLOCK) == bytes(2 * _BLOCK)
    except tarfile.TarError as error:
        raise ServiceError(f"what the service sent is not a whole archive ({error}): try again") from error
    if not ended or not members:
        raise ServiceError("what the service sent is not a whole archive: try again; its log tells more")
    return members


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is. Not every system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def restore(arguments: argparse.Namespace, client: RagClient) -> int:
    path: Path = arguments.file
    try:
        total = path.stat().st_size
        if not tarfile.is_tarfile(path):
            raise UsageError(f"{path} is no tar archive: name a file that 'docduet backup' wrote")
        with _transfer(f"restore {path.name}", total) as advance:
            answer = client.restore(path, advance)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    skipped = answer.get("skipped") or 0
    more = f"; {skipped:,} were there already" if skipped else ""
    console.print(f"{count(answer.get('documents') or 0, 'document')} restored{more}")
    jobs = [str(job) for job in answer.get("jobs") or []]
    if not jobs or arguments.no_wait:
        if jobs:
            console.print(f"{count(len(jobs), 'job')} index them; 'docduet jobs' shows them")
        return 0
    return _wait(client, jobs)


def _wait(client: RagClient, jobs: list[str]) -> int:
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("indexing", total=len(jobs), note="")
        for number, job_id in enumerate(jobs, 1):
            last: dict[str, Any] = {}
            for last in client.follow(job_id):
                progress.update(task, note=f"{number} of {len(jobs)}")
                if last["state"] in DONE and last["state"] != "indexed":
                    failed += 1
                    reason = safe(last.get("error") or last["state"])
                    errors.print(f"  [red]{safe(last['state'])}[/]  {safe(last.get('filename') or job_id)}: {reason}")
            progress.advance(task)
    console.print(f"{count(len(jobs) - failed, 'document')} indexed" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


@contextlib.contextmanager
def _transfer(what: str, total: int | None) -> Iterator[Any]:
    """A bar of bytes on a terminal; yields the function that takes how many there were."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(safe(what), total=total)
        yield lambda done: progress.update(task, completed=done)
