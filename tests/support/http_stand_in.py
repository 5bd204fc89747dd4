"""A server in this process in place of a model service, told by the test how it answers."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Of a path and the request's JSON (None of a GET): the status and what is sent, a text as a stream of events.
Answers = Callable[[str, Any], tuple[int, object]]


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    """The address, without a slash at its end. Each request has a thread, so one may be held while others are answered."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*answers(self.path, None))

        def do_POST(self) -> None:
            self._send(*answers(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _send(self, status: int, body: object) -> None:
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up, or was killed
                self.send_response(status)
                self.send_header("Content-Type", "text/event-stream" if isinstance(body, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def models(context: int = 8192) -> dict[str, object]:
    """What ``/v1/models`` says of one model."""
    return {"data": [{"id": "m", "max_model_len": context}]}


def events(*choices: dict[str, Any]) -> str:
    """A streamed chat completion of these choices, a chunk each."""
    chunks = (
        {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [c]} for c in choices
    )
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
