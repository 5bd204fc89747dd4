"""The settings: one frozen object, read from `MODEL_*` variables, validated before anything else happens."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.model.errors import ConfigError
from services.model.limits import DEFAULT, Limits, fingerprint, read_limits

# Their values hold keys, also when they are wrong ones.
_SECRET = ("MODEL_API_KEYS", "MODEL_LIMITS")


class Settings(BaseSettings):
    """Every setting of the model service; the variable's name is `MODEL_` and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="MODEL_", env_file=".env", frozen=True, extra="ignore", env_ignore_empty=True
    )

    id: str = Field(
        "embedded", min_length=1, description="Checkpoint: embedded, embedded:0.5b, a .gguf file or a folder."
    )
    name: str | None = Field(None, description="Name that clients use for the model; default: derived from MODEL_ID.")
    engine: Literal["auto", "llamacpp", "transformers", "scripted"] = Field("auto", description="Which engine runs it.")
    device: Literal["auto", "cpu", "gpu", "cuda"] = Field(
        "auto", description="auto: a GPU where there is one and the engine was built for it; cuda is gpu."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the transformers engine; auto: float32 on a CPU, the checkpoint's own on a GPU."
    )
    context: int | None = Field(None, ge=256, description="Most tokens a request may span, prompt and answer together.")
    parallel: int = Field(4, ge=1, le=256, description="Most requests that decode together.")
    queue: int = Field(64, ge=0, description="Most requests that wait for a place; one more gets 429.")
    kv_tokens: int | None = Field(
        None, ge=256, description="Tokens in the KV cache, all requests; default: 2 x context."
    )
    batch: int = Field(
        128, ge=32, le=4096, description="Prefill block in tokens; smaller: sooner cancelled, larger: a little faster."
    )
    seeded: Literal["alone", "together"] = Field(
        "alone",
        description="How llama.cpp runs a request with a seed: alone, the same text each time; together: nearly.",
    )
    prompt_cache_mb: int = Field(
        128, ge=0, description="RAM for the KV of finished conversations, beside the KV cache."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; default: the cores this process may use.")
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field((), description="Comma-separated bearer keys.")
    limits: Annotated[dict[str, Limits] | None, NoDecode] = Field(
        None, repr=False, description="Limits by key: JSON, or a file with it."
    )
    allow_anonymous: bool = Field(False, description="Serve beyond loopback without keys (a container's own network).")
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "docduet" / "models",
        description="Where fetched weights are kept.",
    )
    max_body_mb: int = Field(8, ge=1, description="Largest request body in MiB; more gets 413.")
    request_seconds: float = Field(0, ge=0, description="Longest time for a request, waiting included; 0: no limit.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated origins whose pages may call the service, or *; empty: none."
    )
    drain_seconds: float = Field(30, ge=0, description="How long SIGTERM waits for running and queued requests.")
    script: Path | None = Field(None, description="JSON rules of the scripted engine.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Level of the log on stderr.")
    log_format: Literal["text", "json"] = Field("text", description="A line of text, or a JSON object a line.")
    log_prompts: bool = Field(False, description="Write prompts and answers to the log.")

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(key.strip() for key in value.split(",") if key.strip())
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_fit_a_header(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("a key must be printable ASCII without spaces, or no client can send it")
        return keys

    @field_validator("limits", mode="before")
    @classmethod
    def _read_limits(cls, value: Any) -> Any:
        return read_limits(value) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_what_browsers_send(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"[a-zA-Z][\w+.-]*://[^/\s]+", origin, re.ASCII):
                raise ValueError(f"{origin!r} is no origin: scheme://host or scheme://host:port, without a path, or *")
        return tuple(origin.lower() for origin in origins)

    @field_validator("cache_dir", "script")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value


def load_settings(**overrides: Any) -> Settings:
    """Reads the environment. Raises ConfigError with one line per bad value, each naming its variable."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            variable = "MODEL_" + "_".join(str(part) for part in problem["loc"][:1]).upper()
            message = problem["msg"].removeprefix("Value error, ")
            given = "" if variable in _SECRET else f" (it is {problem['input']!r})"
            lines.append(f"{variable}: {_place_in_limits(problem['loc'])}{message}{given}")
        raise ConfigError("\n".join(lines)) from None
    strangers = [key for key in settings.limits or {} if key != DEFAULT and key not in settings.api_keys]
    if strangers:
        raise ConfigError(
            f"MODEL_LIMITS: {', '.join(map(fingerprint, strangers))} (the start of the SHA-256) is not among MODEL_API_KEYS. Add "
            f"the key there, or leave its entry out; {DEFAULT!r} is for those without an entry."
        )
    if not settings.api_keys and not settings.allow_anonymous and not is_loopback(settings.host):
        raise ConfigError(
            f"MODEL_HOST={settings.host} would open the model to the network without a key. Set MODEL_API_KEYS, or bind to "
            "127.0.0.1, or set MODEL_ALLOW_ANONYMOUS=true where something else guards the port."
        )
    return settings


def _place_in_limits(place: tuple[int | str, ...]) -> str:
    """Which entry and field of MODEL_LIMITS is wrong, without showing a key."""
    if place[0] != "limits" or len(place) < 2:
        return ""
    entry = DEFAULT if place[1] == DEFAULT else fingerprint(str(place[1]))
    # A field's name is shown when it could be one, for that is where typing errors are.
    fields = (str(part) if re.fullmatch("[a-z_]+", str(part)) else "a field" for part in place[2:])
    return ".".join([entry, *fields]) + ": "


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a socket bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def usable_cores() -> int:
    """How many threads are worth starting here: CPU affinity, then the container's CPU quota, then physical cores."""
    try:
        cores = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return max(1, (os.cpu_count() or 2) // (2 if (os.cpu_count() or 2) > 4 else 1))
    count = len(cores)
    if count > 4:
        # Two hyperthreads of one core slow matrix work down. On a small virtual machine they are all there is.
        siblings = set()
        for core in cores:
            path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
            siblings.add(path.read_text().strip() if path.exists() else str(core))
        count = len(siblings)
    try:  # docker run --cpus=2 on a machine of 64: the affinity says 64, the quota 2
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, count)
