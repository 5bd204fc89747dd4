"""``python -m services.rag.documents.worker FILE MEMORY_MB``: the reading process.

Writes one JSON line a page to stdout: ``{"number", "total", "text"}`` or ``{"number", "total", "reason"}``; a file that
cannot be read at all ends with ``{"error"}``.
"""

import contextlib
import dataclasses
import json
import logging
import sys
from pathlib import Path

from services.rag.documents.reading import ReadError


def main(path: str, memory_mb: int) -> None:
    _limit_memory(memory_mb)
    logging.disable(logging.CRITICAL)  # pypdf reports each oddity of a broken file; the outcome is what counts
    from services.rag.documents import pdf  # after the limit, so that it holds for the parser too

    try:
        for page in pdf.read(Path(path)):
            _write(dataclasses.asdict(page))
    except ReadError as error:
        _write({"error": str(error)})
    except MemoryError:
        _write({"error": f"reading the file needs more than {memory_mb} MB of memory"})


def _write(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _limit_memory(memory_mb: int) -> None:
    # Not every platform has the limit (Windows has no `resource`, macOS does not enforce it); the time limit holds.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
