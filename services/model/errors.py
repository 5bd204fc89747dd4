"""The error tree of the model service, and the one table that maps it to HTTP.

Two branches. `ServiceError` answers one request: raise it anywhere below a route and the client gets the OpenAI error object
`{"error": {"message", "type", "param", "code"}}` with the status of `STATUS`. `StartupError` ends the process: its text is
what the operator reads, so it says what happened, to what, and what to do.
"""

from __future__ import annotations

from typing import Any


class ServiceError(Exception):
    """A request that cannot be answered. `param` names the parameter at fault; `code` is for programs."""

    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """The OpenAI error object, and beside it the id under which the log has the request. The object has OpenAI's four
        fields and no more: some clients are strict about it."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error} | ({"request_id": request_id} if request_id else {})

    def headers(self) -> dict[str, str]:
        return {}


class InvalidRequest(ServiceError):
    """The request itself is wrong; sending it again will not help."""

    type = "invalid_request_error"


class UnsupportedParameter(InvalidRequest):
    """A parameter, or a value of one, that this service would have to ignore."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class Unauthorized(InvalidRequest):
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class ModelNotFound(InvalidRequest):
    code = "model_not_found"


class RouteNotFound(InvalidRequest):
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    code = "method_not_allowed"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"


class WrongContentType(InvalidRequest):
    code = "unsupported_media_type"


class QueueFull(ServiceError):
    """Every place is taken and the queue is at its bound."""

    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)}


class RateLimited(ServiceError):
    """This client has used up what MODEL_LIMITS gives it; `limit` says of what: requests, tokens or concurrent."""

    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, limit: str, retry_after: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)}


class RequestTimeout(ServiceError):
    """The request took longer than MODEL_REQUEST_SECONDS, waiting included."""

    type = "timeout_error"
    code = "request_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the answer was not finished within {seconds:g} s (MODEL_REQUEST_SECONDS), waiting included; ask for fewer tokens, "
            "or try again when the service has less to do"
        )


class NotReady(ServiceError):
    """The weights are not loaded (yet)."""

    type = "service_unavailable"
    code = "not_ready"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "2"}


class Draining(ServiceError):
    """The service was told to stop and finishes what it has."""

    type = "service_unavailable"
    code = "draining"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "5", "Connection": "close"}


class EngineFailed(ServiceError):
    """The engine gave an error for a request that passed all our checks."""

    code = "engine_failed"


class OutOfMemory(EngineFailed):
    """This request did not fit into memory; the others, and a smaller one, do."""

    type = "service_unavailable"
    code = "out_of_memory"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "5"}


class ClientGone(Exception):
    """The client closed its connection; nobody reads an answer."""


# The most specific class wins (see `status_of`).
STATUS: dict[type[ServiceError], int] = {
    InvalidRequest: 400,
    Unauthorized: 401,
    ModelNotFound: 404,
    RouteNotFound: 404,
    MethodNotAllowed: 405,
    BodyTooLarge: 413,
    WrongContentType: 415,
    QueueFull: 429,
    RateLimited: 429,
    ServiceError: 500,
    NotReady: 503,
    Draining: 503,
    OutOfMemory: 503,
    RequestTimeout: 504,
}
# nginx's number for "client closed request": for logs and metrics, no client ever reads it.
CLIENT_GONE_STATUS = 499


def status_of(error: ServiceError) -> int:
    """The HTTP status of an error: that of its nearest ancestor in `STATUS`."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


class StartupError(Exception):
    """The service cannot start; the text is for the operator. The process exits with a code other than 0."""


class ConfigError(StartupError):
    """A setting has a value that cannot be used."""


class CheckpointError(StartupError):
    """The weights that MODEL_ID names cannot be found, fetched or read."""
