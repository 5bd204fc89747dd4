"""Settings of the RAG service: frozen, typed, checked at start. docs/configuration.md documents every field."""

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, HttpUrl, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_COLLECTION = "default"
# What Chroma, a URL path and a file system all take; kept short so that a message can show it.
COLLECTION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"


class Settings(BaseSettings):
    """Read from ``RAG_*`` environment variables (and ``.env``); keyword arguments win."""

    model_config = SettingsConfigDict(
        env_prefix="RAG_", env_file=".env", extra="ignore", frozen=True, protected_namespaces=()
    )

    data_dir: Path = Path("data")
    cache_dir: Path = Path("~/.cache/docduet")

    model_url: HttpUrl = HttpUrl("http://127.0.0.1:8000/v1")
    model_name: str = ""
    model_api_key: SecretStr = SecretStr("")
    model_timeout: float = Field(default=300.0, gt=0, le=3600)

    embedding_model: str = Field(default="infgrad/stella-base-zh", min_length=1)
    embedding_device: str = "cpu"
    reranker_model: str = ""
    chroma_url: HttpUrl | None = None

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=0, le=65535)
    allow_anonymous: bool = False

    max_upload_mb: int = Field(default=100, ge=1, le=4096)
    ocr: Literal["auto", "on", "off"] = "auto"
    readers: int = Field(default=0, ge=0, le=64)
    read_page_seconds: float = Field(default=60.0, gt=0)
    read_seconds: float = Field(default=1800.0, gt=0)
    read_memory_mb: int = Field(default=2048, ge=256)

    notes: Literal["off", "on"] = "off"

    k: int = Field(default=4, ge=1, le=20)
    max_tokens: int = Field(default=512, ge=16, le=4096)
    passage_tokens: int = Field(default=1000, ge=128, le=200_000)
    refusal_threshold: float = Field(default=0.23, ge=0.0, le=1.0)
    doubt_threshold: float = Field(default=0.01, gt=0.0, le=1.0)
    drain_seconds: float = Field(default=30.0, ge=0)

    session_minutes: float = Field(default=60.0, gt=0, le=10_080)
    sessions: int = Field(default=1000, ge=1, le=100_000)
    session_turns: int = Field(default=20, ge=1, le=100)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        return tuple(k.strip() for k in value.split(",") if k.strip()) if isinstance(value, str) else value

    @field_validator("chroma_url", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("data_dir", "cache_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        if not self.api_keys and not self.allow_anonymous and not is_loopback(self.host):
            raise ValueError(
                f"RAG_HOST={self.host} is reachable from other machines and RAG_API_KEYS is empty: set RAG_API_KEYS, "
                "or RAG_ALLOW_ANONYMOUS=true if something else guards this port"
            )
        return self


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
