"""The RAG service's error tree. Each class has its HTTP status here and nowhere else.

Every response that is not a success is the OpenAI error object
``{"error": {"message", "type", "param", "code"}}``.
"""

from typing import Any


class RagError(Exception):
    """Something went wrong that the caller can be told about: what, to what, and what to do."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        return error_body(self.message, self.type, self.param, self.code)

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}


class InvalidRequest(RagError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class NotFound(RagError):
    status, type, code = 404, "invalid_request_error", "not_found"


class Conflict(RagError):
    """What is asked for does not go with what is there: a name that is taken, a job that has not failed."""

    status, type, code = 409, "invalid_request_error", "conflict"


class TooLarge(RagError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class UnsupportedFile(RagError):
    status, type, code = 415, "invalid_request_error", "unsupported_file"


class NotReady(RagError):
    """A part of this service is still starting."""

    status, type, code = 503, "server_error", "not_ready"


class StorageError(RagError):
    """The data folder cannot be read or written (full disk, read-only volume)."""

    status, type, code = 507, "server_error", "storage"


class ModelUnavailable(RagError):
    """The model service is down, still loading, full, or refuses our key."""

    status, type, code = 503, "server_error", "model_unavailable"


class ModelTimeout(RagError):
    status, type, code = 504, "server_error", "model_timeout"


class ModelRejected(RagError):
    """The model service answered that our request is wrong; not the caller's fault in general."""

    status, type, code = 502, "server_error", "model_rejected"


class StartupError(Exception):
    """The service cannot start; the message is all that the operator sees."""


def error_body(message: str, type_: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}
