"""``docduet ingest``: send files, follow their jobs, tell what became of each."""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from services.client import RagClient, ServiceError
from services.commands.delivery import Delivery, Outcome
from services.commands.output import LIST, UsageError, brief, console, count, errors, printable, safe
from services.commands.progress import Bars
from services.files import Found, Listing, same_names, single, walk

_STATUS = {"indexed": "indexed", "known": "already indexed", "failed": "failed", "cancelled": "cancelled"}
_LOST = ("failed", "cancelled")


def told(outcome: Outcome) -> str:
    """One line about a file, in Rich's markup."""
    if outcome.status in ("indexed", "known"):
        line = f"  [green]{_STATUS[outcome.status]}[/] {safe(outcome.name)}"
        line += f": {count(outcome.pages, 'page')}, {count(outcome.chunks, 'chunk')}" if outcome.pages else ""
        return line + (f"; [yellow]{safe('; '.join(outcome.page_failures))}[/]" if outcome.page_failures else "")
    if outcome.status == "same":
        return f"  [green]same[/]    {safe(outcome.name)}: has the content of {safe(outcome.held_as)}"
    return (
        f"  [red]{_STATUS.get(outcome.status, outcome.status):<7}[/] {safe(outcome.name)}: {safe(brief(outcome.error))}"
    )


def summary(outcomes: Sequence[Outcome], listing: Listing, out: Console) -> None:
    """What a person who went away wants to know: the sums, then each thing that is not searchable, with its reason."""
    by = Counter(o.status for o in outcomes)
    new = [o for o in outcomes if o.status == "indexed"]
    partly = [o for o in outcomes if o.page_failures and o.status != "same"]
    reasons = [o.error for o in outcomes if o.status in _LOST]
    lost = [(o.name, [brief(o.error)]) for o in outcomes if o.status == "failed"]
    cancelled = [(o.name, [brief(o.error)]) for o in outcomes if o.status == "cancelled"]
    for line in listing.unreadable:
        name, _, why = line.rpartition(": ")
        lost.append((name, [f"cannot be read: {why}"]))
    rows = [
        ("indexed", "green", by["indexed"], f"  {_sum(new, 'pages', 'page')}, {_sum(new, 'chunks', 'chunk')}"),
        ("already there", "green", by["known"], ""),
        ("of these have pages without text", "yellow", len(partly), ""),
        ("with the content of another document", "green", by["same"], ""),
        ("failed", "red", len(lost), ""),
        ("cancelled", "red", len(cancelled), ""),
    ]
    out.print()
    for what, colour, number, more in rows:
        if number:
            out.print(Text.assemble((f"{number:>6,} ", "bold"), (what, colour), more))
    if partly:
        _section(out, "Pages without text:", [(o.name, o.page_failures) for o in partly])
    if cancelled:
        _section(out, "Cancelled:", cancelled)
    if lost:
        _section(out, "Failed:", lost)
        if readable := next((error.partition(LIST)[2] for error in reasons if LIST in error), ""):
            _hint(out, f"{LIST}{printable(readable)}")
        if any("password" in error for error in reasons):
            _hint(out, "A password goes with --password-file FILE: 'ingest' the file again, or 'retry' it.")
    if listing.skipped:
        total = sum(listing.skipped.values())
        kinds = ", ".join(f"{printable(kind)} {number}" for kind, number in listing.skipped.most_common(12))
        others = len(listing.skipped) - 12
        kinds += f", and {count(others, 'other kind')}" if others > 0 else ""
        said = f"Skipped {count(total, 'file')} that {'is no document' if total == 1 else 'are no documents'}: {kinds}."
        _hint(out, f"{said} Name a file itself to send it.")


def _sum(outcomes: Iterable[Outcome], attribute: str, noun: str) -> str:
    return count(sum(getattr(o, attribute) for o in outcomes), noun)


def _section(out: Console, title: str, items: Sequence[tuple[str, Sequence[str]]]) -> None:
    out.print()
    out.print(Text(title, style="bold"))
    for name, reasons in sorted(items):
        _indented(out, Text(printable(name)), 2)
        for reason in reasons:
            _indented(out, Text(printable(reason), style="dim"), 6)


def _hint(out: Console, text: str) -> None:
    out.print()
    _indented(out, Text(text), 0)


def _indented(out: Console, text: Text, columns: int) -> None:
    """A terminal's lines are wrapped, each with its indent; a pipe's are left whole."""
    lines = text.wrap(out, max(20, out.width - columns)) if out.is_terminal else [text]
    for line in lines:
        line.rstrip()
        out.print(Text(" " * columns) + line)


def ingest_files(client: RagClient, files: Sequence[Path], collection: str, out: Console) -> int:
    """Upload ``files`` with a progress bar each and a line of outcome each; returns how many failed."""
    found = [single(path) for path in files]
    with Bars(out) as bars:
        outcomes = Delivery(client, collection).run(found, bars, lambda o: out.print(told(o)))
    return sum(o.status in _LOST for o in outcomes)


def gather(paths: Sequence[Path]) -> Listing:
    """The files that were named and those of the folders that were named, each once.

    Raises:
        UsageError: a path is not there, or two files would get the same name.
    """
    listing = Listing()
    for path in paths:
        try:
            listing.add(walk(path) if path.is_dir() else Listing([single(path)]))
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    once: dict[Path, Found] = {}
    for found in listing.files:
        once.setdefault(found.path.resolve(), found)
    listing.files = list(once.values())
    for first, second in same_names(listing.files):
        raise UsageError(
            f"{first.path} and {second.path} would both be called {first.name!r}, and the second would replace the first: "
            "name a folder above both, or ingest them into two collections"
        )
    return listing


def metadata_of(pairs: Sequence[str]) -> dict[str, object]:
    """``["year=2024", "author=Li"]`` → ``{"year": 2024, "author": "Li"}``. A number or true/false is one; the rest is text.

    Raises:
        UsageError: a pair without a key or "=".
    """
    found: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--metadata {pair!r}: write KEY=VALUE")
        found[key.strip()] = _scalar(text)
    return found


def _scalar(text: str) -> object:
    try:
        value = json.loads(text, parse_constant=str)  # NaN is a name here
    except ValueError:
        return text
    if isinstance(value, str):
        return value  # '"2024"': quoted, so text
    # "1.10" is a version and "007" a name: only what comes back the same is a number.
    return value if isinstance(value, bool | int | float) and json.dumps(value) == text else text


def password_of(arguments: argparse.Namespace) -> str | None:
    if arguments.password_file is None:
        return arguments.password  # type: ignore[no-any-return]
    try:
        return str(arguments.password_file.read_text(encoding="utf-8")).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--password-file {arguments.password_file} cannot be read: {error}") from error


def ensure_collection(client: RagClient, name: str) -> bool:
    """Create the collection when it is missing; returns whether it was."""
    if any(c["name"] == name for c in client.collections()):
        return False
    try:
        client.create_collection(name)
    except ServiceError as error:
        if error.status != 409:  # somebody else was faster
            raise
        return False
    return True


def run(arguments: argparse.Namespace, client: RagClient) -> int:
    """The command. 0: all searchable; 1: something failed; 130: interrupted.

    Raises:
        UsageError: nothing can be sent as it was asked for.
        ServiceError: the service cannot be reached at all, or refuses the collection or the key.
    """
    metadata = metadata_of(arguments.metadata)
    password = password_of(arguments)
    listing = gather(arguments.paths)
    if arguments.replace and len(listing.files) != 1:
        raise UsageError(f"--replace takes one file; this is {count(len(listing.files), 'file')}")
    if not listing.files:
        summary([], listing, console)
        raise ServiceError("there is no document in what was named")
    if ensure_collection(client, arguments.collection):
        console.print(f"created the collection {safe(arguments.collection)}")
    delivery = Delivery(
        client,
        arguments.collection,
        connections=arguments.jobs,
        metadata=metadata,
        password=password,
        replace=arguments.replace,
        patience=arguments.patience,
    )
    files = len(listing.files)
    try:
        with Bars(console, not arguments.quiet) as bars:

            def tell(outcome: Outcome) -> None:
                bars.advanced(delivery.done, max(files, delivery.done))
                if not arguments.quiet:
                    console.print(told(outcome))

            outcomes = delivery.run(listing.files, bars, tell)
    except KeyboardInterrupt:
        errors.print(
            f"interrupted: {count(delivery.accepted, 'file')} accepted ({delivery.open} not finished: the service goes on "
            f"with them, see 'docduet jobs'), {delivery.unsent} not sent: run the same command again for the rest"
        )
        return 130
    failed = any(o.status in _LOST for o in outcomes) or bool(listing.unreadable)
    if not arguments.quiet or failed or any(o.page_failures for o in outcomes):
        summary(outcomes, listing, console)
    return 1 if failed else 0
