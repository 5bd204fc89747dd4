"""What is in the service: documents, the trash, collections, jobs."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.client import RagClient, ServiceError
from services.commands.delivery import followed
from services.commands.ingest import password_of, told
from services.commands.output import UsageError, confirmed, console, count, errors, page_failures, printable, safe, size
from services.commands.progress import Bars

_COLOURS = {"indexed": "green", "failed": "red", "cancelled": "red"}


def documents(arguments: argparse.Namespace, client: RagClient) -> int:
    found = client.documents(arguments.collection, arguments.status)
    if arguments.json:
        _json(found)
        return 0
    for d in found:
        line = _line(d["status"], d["id"], f"{d['collection']}/{d['filename']}")
        if d["status"] == "indexed":
            line += f"  {count(d.get('pages') or 0, 'page')}, {count(d.get('chunks') or 0, 'chunk')}"
        console.print(line)
        for reason in [d["error"]] if d.get("error") else page_failures(d):
            console.print(f"{'':<11}{safe(reason)}", style="dim")
    if console.is_terminal:
        by = Counter(str(d["status"]) for d in found)
        told = ", ".join(f"{number} {status}" for status, number in by.items())
        console.print(f"{count(len(found), 'document')}{f': {told}' if told else ''}", style="bold")
    return 0


def delete(arguments: argparse.Namespace, client: RagClient) -> int:
    def one(document_id: str) -> str:
        client.delete(document_id)
        return f"{document_id} is in the trash: 'docduet undelete {document_id}' brings it back"

    return _each(arguments, arguments.ids, one)


def undelete(arguments: argparse.Namespace, client: RagClient) -> int:
    def one(document_id: str) -> str:
        client.undelete(document_id)
        return f"{document_id} is back and is being indexed"

    return _each(arguments, arguments.ids, one)


def trash(arguments: argparse.Namespace, client: RagClient) -> int:
    found = client.trash()
    if arguments.json:
        _json(found)
        return 0
    for d in found:
        line = f"{safe(d['id'])}  {safe(d['collection'])}/{safe(d['filename'])}  {size(d.get('size') or 0)}"
        console.print(line + (f"  replaced by {safe(d['replaced_by'])}" if d.get("replaced_by") else ""))
    if console.is_terminal:
        console.print(f"{count(len(found), 'document')} in the trash", style="bold")
    return 0


def purge(arguments: argparse.Namespace, client: RagClient) -> int:
    if arguments.ids:
        if not arguments.yes and not confirmed(f"Remove {count(len(arguments.ids), 'document')} for good?"):
            return 1

        def one(document_id: str) -> str:
            client.purge(document_id)
            return f"{document_id} is gone for good"

        return _each(arguments, arguments.ids, one)
    if not arguments.yes:
        number = len(client.trash())
        if not number:
            console.print("the trash is empty")
            return 0
        if not confirmed(f"Remove {count(number, 'document')} in the trash for good?"):
            console.print("nothing was removed")
            return 1
    console.print(f"{count(client.purge(), 'document')} removed for good")
    return 0


def collections(arguments: argparse.Namespace, client: RagClient) -> int:
    if arguments.action == "create":
        client.create_collection(arguments.name)
        console.print(f"created {safe(arguments.name)}")
    elif arguments.action == "rename":
        client.rename_collection(arguments.name, arguments.new)
        console.print(f"{safe(arguments.name)} is now {safe(arguments.new)}")
    elif arguments.action == "delete":
        client.delete_collection(arguments.name)
        console.print(f"deleted {safe(arguments.name)}; its documents are in the trash")
    elif arguments.json:
        _json(client.collections())
    else:
        for c in client.collections():
            console.print(f"{c['documents']:>7,}  {safe(c['name'])}")
    return 0


def jobs(arguments: argparse.Namespace, client: RagClient) -> int:
    found = client.jobs(None if arguments.all else "open")
    if arguments.json:
        _json(found)
        return 0
    for job in found:
        console.print(_line(job["state"], job["id"], job["filename"]) + _progress(job))
        if job.get("error"):
            console.print(f"{'':<11}{safe(job['error'])}", style="dim")
    if console.is_terminal and not found:
        console.print("no jobs" if arguments.all else "no open jobs; --all shows those that ended")
    return 0


def cancel(arguments: argparse.Namespace, client: RagClient) -> int:
    def one(job_id: str) -> str:
        job = client.cancel(job_id)
        return f"{job_id} ({job['filename']}): {job['state']}"

    return _each(arguments, arguments.ids, one)


def retry(arguments: argparse.Namespace, client: RagClient) -> int:
    """Retry what failed and wait for it. An id is a document's or a job's."""
    password = password_of(arguments)
    if arguments.failed == bool(arguments.ids):
        raise UsageError("name the documents or jobs to retry, or all of them with --failed")
    # The last one of each document: an earlier failure may have been cured since.
    ended = sorted(client.jobs("failed") + client.jobs("cancelled"), key=lambda job: float(job["updated_at"]))
    latest = {str(job["document_id"]): str(job["id"]) for job in ended}
    if arguments.failed:
        failed = client.documents(status="failed")
        wanted = [(latest[d["id"]], str(d["filename"])) for d in failed if d["id"] in latest]
        if not failed:
            console.print("nothing has failed")
            return 0
        if len(wanted) < len(failed):
            console.print(
                f"{count(len(failed) - len(wanted), 'document')} failed too long ago to be listed: run this again"
            )
    else:
        wanted = [(latest.get(given, given), given) for given in arguments.ids]
    code, accepted = 0, []
    for job_id, name in wanted:
        try:
            accepted.append((name, client.retry(job_id, password)))
        except ServiceError as error:
            if error.status is None or error.status in (401, 403):
                raise
            errors.print(f"[red]failed[/]  {safe(name)}: {safe(error)}")
            code = 1
    if arguments.no_wait:
        console.print(f"{count(len(accepted), 'job')} accepted; 'docduet jobs' shows them")
        return code
    with Bars(console) as bars:
        for name, answer in accepted:
            with bars.bar(name, "waiting") as bar:
                outcome = followed(
                    client, name, str(answer["job_id"]), str(answer["document_id"]), patience=60.0, waiting=bar.waiting
                )
            console.print(told(outcome))
            code = code if outcome.status == "indexed" else 1
    return code


def _each(arguments: argparse.Namespace, ids: Sequence[str], action: Callable[[str], str]) -> int:
    """One line each; what is refused does not keep the others from their turn."""
    code = 0
    for given in ids:
        try:
            console.print(printable(action(given)), markup=False)
        except ServiceError as error:
            if error.status is None or error.status in (401, 403):
                raise  # the next one would meet the same
            errors.print(f"[bold red]docduet {arguments.command}:[/] {safe(given)}: {safe(error)}")
            code = 1
    return code


def _line(status: str, identity: str, name: str) -> str:
    colour = _COLOURS.get(status, "yellow")
    return f"[{colour}]{safe(status):<9}[/]  {safe(identity)}  {safe(name)}"


def _progress(job: Mapping[str, Any]) -> str:
    if job["state"] == "reading":
        return f"  page {job.get('pages_read') or 0}/{job.get('pages_total') or '?'}"
    if job["state"] == "embedding":
        return f"  chunk {job.get('chunks_embedded') or 0}/{job.get('chunks_total') or '?'}"
    return ""


def _json(found: object) -> None:
    console.print(json.dumps(found, ensure_ascii=False, indent=2), markup=False)
