"""What the parts may know of each other, read from their imports."""

import ast
from pathlib import Path

import pytest

SERVICES = Path(__file__).parents[2] / "services"


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def importers(package: str, of: Path) -> set[str]:
    return {
        str(path.relative_to(SERVICES))
        for path in of.rglob("*.py")
        if any(name == package or name.startswith(package + ".") for name in imports(path))
    }


def test_the_services_do_not_import_each_other() -> None:
    assert importers("services.rag", SERVICES / "model") == set()
    assert importers("services.model", SERVICES / "rag") == set()


@pytest.mark.parametrize("name", ["wheels.py", "client.py", "supervisor.py", "files.py", "folder_plan.py", "watch.py"])
def test_what_they_share_imports_neither(name: str) -> None:
    assert not any(i.startswith(("services.rag", "services.model")) for i in imports(SERVICES / name))


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("chromadb", {"rag/store/chroma.py"}),
        ("langserve", {"rag/langserve_routes.py"}),
        ("xllamacpp", {"model/engine/llamacpp.py"}),
        ("openai", {"rag/model_client.py"}),
        ("langchain_openai", {"rag/model_client.py"}),
        ("pypdf", {"rag/documents/readers/pdf.py"}),
        (
            "pypdfium2",
            {"rag/documents/readers/pdf.py", "rag/documents/readers/_words.py", "rag/documents/rendering.py"},
        ),
    ],
)
def test_each_library_is_known_to_one_file(package: str, allowed: set[str]) -> None:
    assert importers(package, SERVICES) == allowed


def test_no_code_of_a_checkpoint_ever_runs() -> None:
    for path in SERVICES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
