"""The docs say what the code does."""

import re
import subprocess
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from services.model.config import Settings as ModelSettings
from services.rag.config import Settings as RagSettings
from tests.support.servers import ROOT

DOCS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "samples" / "README.md"]


@pytest.mark.parametrize(("prefix", "settings"), [("MODEL_", ModelSettings), ("RAG_", RagSettings)])
def test_every_setting_is_documented_with_its_default(prefix: str, settings: type) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = dict(re.findall(rf"^\| `({prefix}\w+)` \| (?:`([^`]*)`)? *\|", text, re.MULTILINE))
    assert set(rows) == {prefix + name.upper() for name in settings.model_fields}
    for name, field in settings.model_fields.items():
        documented, default = rows[prefix + name.upper()], field.default
        if default is PydanticUndefined or documented.startswith("~"):
            continue  # made at start, from the home folder
        shown = {None: "", (): "", True: "true", False: "false"}.get(
            default, str(getattr(default, "get_secret_value", str)())
        )
        if not hasattr(default, "get_secret_value") and default not in (None, (), True, False):
            shown = str(default)
        assert documented == shown, name


def test_every_route_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for source in (ROOT / "services" / "rag" / "app.py", ROOT / "services" / "model" / "app.py"):
        routes = re.findall(r'@\w+\.(?:get|post|delete)\(\s*"(/[^"]+)"', source.read_text())
        assert routes, source
        for route in routes:
            assert re.sub(r":path", "", route) in text, route


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
    for target in re.findall(r"`((?:scripts|services|tests|docs|samples|examples)/[\w./-]+)`", text):
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
