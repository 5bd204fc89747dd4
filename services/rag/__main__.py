"""``python -m services.rag``: the RAG service on ``RAG_HOST``:``RAG_PORT``."""

import logging
import os
import sys
from pathlib import Path

# Nothing leaves this machine unless its owner configures it; set before the libraries that read these are imported.
os.environ.update(
    {
        "ANONYMIZED_TELEMETRY": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "LANGCHAIN_TRACING_V2": "false",
        "LANGSMITH_TRACING": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }
)

import uvicorn
from pydantic import ValidationError

from services.rag.checkpoints import EmbeddingError
from services.rag.config import Settings
from services.rag.embeddings import Embedder, load_embedder
from services.rag.errors import StartupError
from services.rag.middleware import DrainingServer
from services.wheels import console_progress


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "chromadb", "sentence_transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        settings = Settings()
    except ValidationError as error:
        return _fail("; ".join(_problem(e) for e in error.errors()))
    from services.rag.app import add_gate, create_app  # after the environment is set: it imports chromadb

    try:
        app = create_app(settings, lambda model_id: _embedder(settings, model_id))
    except StartupError as error:
        return _fail(str(error))
    gate = add_gate(app)
    config = uvicorn.Config(gate, host=settings.host, port=settings.port, log_level="warning", access_log=False)
    server = DrainingServer(config, gate, settings.drain_seconds)
    app.state.on_fatal = lambda: setattr(server, "should_exit", True)
    logging.getLogger("docduet.rag").info("listening on http://%s:%d", settings.host, settings.port)
    server.run()
    if not server.started:
        return _fail(f"cannot listen on {settings.host}:{settings.port}: free the port, or set RAG_PORT")
    fatal = app.state.fatal
    if isinstance(fatal, StartupError | EmbeddingError):
        return _fail(str(fatal))
    if fatal is not None:
        raise fatal
    return 0


def _embedder(settings: Settings, model_id: str) -> Embedder:
    cache_dir = Path(settings.cache_dir) / "embeddings"
    with console_progress("embedding model") as progress:
        return load_embedder(model_id, cache_dir, device=settings.embedding_device, progress=progress)


def _problem(error: object) -> str:
    assert isinstance(error, dict)
    where = "_".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"RAG_{where.upper()}: {message}" if where else message


def _fail(message: str) -> int:
    print(f"docduet rag: {message}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
