"""The settings: one frozen object, read from `MODEL_*` variables, validated before anything else happens."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.model.errors import ConfigError


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
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: a GPU where the engine was built for one.")
    context: int | None = Field(None, ge=256, description="Most tokens a request may span, prompt and answer together.")
    parallel: int = Field(4, ge=1, le=256, description="Most requests that decode together.")
    queue: int = Field(64, ge=0, description="Most requests that wait for a place; one more gets 429.")
    kv_tokens: int | None = Field(
        None, ge=256, description="Tokens in the KV cache, all requests; default: 2 x context."
    )
    batch: int = Field(
        128, ge=32, le=4096, description="Prefill block in tokens; smaller: sooner cancelled, larger: a little faster."
    )
    prompt_cache_mb: int = Field(
        128, ge=0, description="RAM for the KV of finished conversations, beside the KV cache."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; default: the cores this process may use.")
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field((), description="Comma-separated bearer keys.")
    allow_anonymous: bool = Field(False, description="Serve beyond loopback without keys (a container's own network).")
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "docduet" / "models",
        description="Where fetched weights are kept.",
    )
    max_body_mb: int = Field(8, ge=1, description="Largest request body in MiB; more gets 413.")
    drain_seconds: float = Field(30, ge=0, description="How long SIGTERM waits for running and queued requests.")
    script: Path | None = Field(None, description="JSON rules of the scripted engine.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Level of the log on stderr.")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
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
            # The value of a key is a secret, also when it is a wrong one.
            given = "" if variable == "MODEL_API_KEYS" else f" (it is {problem['input']!r})"
            lines.append(f"{variable}: {message}{given}")
        raise ConfigError("\n".join(lines)) from None
    if not settings.api_keys and not settings.allow_anonymous and not is_loopback(settings.host):
        raise ConfigError(
            f"MODEL_HOST={settings.host} would open the model to the network without a key. Set MODEL_API_KEYS, or bind to "
            "127.0.0.1, or set MODEL_ALLOW_ANONYMOUS=true where something else guards the port."
        )
    return settings


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
