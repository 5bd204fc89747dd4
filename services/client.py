"""A small client of the RAG service's HTTP interface, for the command line and the demo. Imports neither service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx


class ServiceError(Exception):
    """The service refused or could not be reached; the message is fit for a person."""


class RagClient:
    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/")
        # No read timeout: an answer takes as long as its model; a dead service closes the connection.
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(None, connect=5.0),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def ready(self) -> tuple[bool, str]:
        """Whether questions can be answered, and the reason if not."""
        try:
            response = self._http.get("/ready", timeout=5.0)
            return response.status_code == 200, str(response.json().get("reason", ""))
        except (httpx.HTTPError, ValueError) as error:
            return False, f"{self.url} cannot be reached: {error}"

    def upload(self, path: Path, collection: str) -> dict[str, Any]:
        """Returns ``{"job_id", "document_id"}``."""
        with path.open("rb") as file:
            return self._json("POST", "/documents", files={"file": (path.name, file)}, data={"collection": collection})

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's states until it ends."""
        for _, data in self._events("GET", f"/jobs/{job_id}/events"):
            yield data

    def ask(self, question: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """The chunks of ``/rag/stream`` as they come."""
        for event, data in self._events("POST", "/rag/stream", json={"input": {"question": question, **fields}}):
            if event == "error":
                raise ServiceError(data.get("message", "the service failed"))
            if event == "data":
                yield data

    def search(self, query: str, **fields: Any) -> list[dict[str, Any]]:
        return list(self._json("POST", "/search", json={"query": query, **fields})["passages"])

    def documents(self, collection: str | None = None) -> list[dict[str, Any]]:
        params = {"collection": collection} if collection else {}
        return list(self._json("GET", "/documents", params=params)["documents"])

    def delete(self, document_id: str) -> None:
        self._checked(self._http.request("DELETE", f"/documents/{document_id}"))

    def _json(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        self._checked(response)
        return dict(response.json())

    def _events(self, method: str, path: str, **kwargs: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            with self._http.stream(method, path, **kwargs) as response:
                if response.status_code >= 400:
                    response.read()
                self._checked(response)
                event = "message"
                for line in response.iter_lines():
                    if line.startswith("event:"):
                        event = line[6:].strip()
                    elif line.startswith("data:"):
                        yield event, json.loads(line[5:])
                    elif not line:
                        event = "message"
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _checked(self, response: httpx.Response) -> None:
        if response.status_code < 400:
            return
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:300]
        raise ServiceError(f"{message} (HTTP {response.status_code})")

    def _unreachable(self, error: Exception) -> ServiceError:
        return ServiceError(f"the RAG service at {self.url} cannot be reached ({error}): start it with 'docduet up'")
