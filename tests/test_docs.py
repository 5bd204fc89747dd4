"""The docs say what the code does."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import annotated_types
import pytest
from fastapi import FastAPI
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services.model.app import create_app as create_model_app
from services.model.config import Settings as ModelSettings
from services.model.engine.scripted import ScriptedEngine
from services.rag.app import create_app as create_rag_app
from services.rag.config import Settings as RagSettings
from services.rag.embeddings import HashEmbedder
from tests.support.servers import ROOT

DOCS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "samples" / "README.md"]


def doc(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def bounds(field: FieldInfo) -> str:
    kinds = ((annotated_types.Ge, "ge", "≥"), (annotated_types.Gt, "gt", ">"), (annotated_types.Le, "le", "≤"))
    return ", ".join(
        f"{sign} {getattr(m, name):g}" for kind, name, sign in kinds for m in field.metadata if isinstance(m, kind)
    )


@pytest.mark.parametrize(("prefix", "settings"), [("MODEL_", ModelSettings), ("RAG_", RagSettings)])
def test_every_setting_is_documented_with_its_default_and_bounds(prefix: str, settings: type) -> None:
    row = rf"^\| `({prefix}\w+)` \| (?:`([^`]*)`)? *\| *([^|]*?) *\| \S"
    rows = {name: more for name, *more in re.findall(row, doc("configuration.md"), re.MULTILINE)}
    assert set(rows) == {prefix + name.upper() for name in settings.model_fields}
    for name, field in settings.model_fields.items():
        (documented, limits), default = rows[prefix + name.upper()], field.default
        assert limits == bounds(field), name
        if default is PydanticUndefined or documented.startswith("~"):
            continue  # made at start, from the home folder
        if default is None or default == () or hasattr(default, "get_secret_value"):
            assert documented == "", name
        else:
            assert documented == (str(default).lower() if isinstance(default, bool) else str(default)), name


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[list[FastAPI]]:
    rag = create_rag_app(RagSettings(data_dir=tmp_path, _env_file=None), HashEmbedder)
    yield [create_model_app(ModelSettings(), ScriptedEngine(), ("scripted",)), rag]
    rag.state.service.close()


def test_every_route_is_documented_and_every_documented_one_is_there(apps: list[FastAPI]) -> None:
    text = doc("api.md")
    routes = {
        (method.upper(), path)
        for app in apps
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if "/c/{config_hash}/" not in path  # LangServe's copies, documented as one
    }
    langserve = re.search(r"`/rag/\*` \| LangServe: `([^`]*)`", text)
    assert langserve, "the line about /rag/* is gone"
    of_langserve = {f"/{at}/{name}" for at in ("rag", "chat") for name in langserve[1].split()}
    written = set(re.findall(r"`(GET|POST|PATCH|DELETE) (/[^`]*)`", text))
    for method, path in sorted(routes):
        assert (method, path) in written or path in of_langserve, f"{method} {path} is not in docs/api.md"
    for method, path in sorted(written - {("GET", "/")}):
        assert (method, path) in routes, f"docs/api.md has {method} {path}, which is not there"
    assert of_langserve - {p for _, p in routes} == {"/rag/playground", "/chat/playground"}  # not in the OpenAPI page


def messages() -> Iterator[str]:
    """Every text of the code, with … for what is filled in; the scripts as they are."""
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    yield from (path.read_text() for path in (ROOT / "scripts").iterdir() if path.is_file())


def test_the_messages_in_the_troubleshooting_table_are_those_of_the_code() -> None:
    table = doc("operations.md").partition("| it says | do |")[2].partition("\n## ")[0]
    said = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(said) > 10
    known = list(messages())
    for message in said:
        pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
        assert any(pattern.search(text) for text in known), f"nothing says {message!r}"


def test_the_metrics_that_are_listed_are_those_there_are(apps: list[FastAPI]) -> None:
    listed = set(re.findall(r"`(docduet_(?:model|rag)_\w+)`", doc("operations.md")))
    there = set()
    for app in apps:
        for family in app.state.service.metrics.registry.collect():
            there.add(family.name + ("_total" if family.type == "counter" else ""))
    assert listed == there


def test_both_readmes_have_the_same_commands() -> None:
    def blocks(name: str) -> list[str]:
        text = (ROOT / name).read_text()
        return [b for b in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) if "──►" not in b]

    assert blocks("README.md") == blocks("README.zh-CN.md")


@pytest.mark.parametrize("path", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_the_docs_point_at_is_there(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / target).exists(), target
    for target in re.findall(r"`((?:scripts|services|tests|docs|samples|examples)/[\w./-]+)", text):
        assert (ROOT / target).exists() or (ROOT / f"{target}.py").exists(), target


def test_the_project_speaks_of_itself_alone() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):
        path = ROOT / name
        if path.suffix in (".pdf", ".png") or path == Path(__file__) or not path.exists():
            continue
        found = re.search(r"(?<![\w.])/work/", path.read_text(errors="replace"))
        assert not found, f"{name} names a path of somebody's machine"
