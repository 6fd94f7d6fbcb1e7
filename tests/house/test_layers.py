"""Who may know whom: the contracts of pyproject.toml, and the engine alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

NOT_FOR_THE_ENGINE = ("ray", "grpc", "redis", "prometheus_client")
PROBE = f"""
import sys
import rearview.engine
for name in {NOT_FOR_THE_ENGINE!r}:
    assert name not in sys.modules, name
ours = {{name.split(".")[1] for name in sys.modules if name.startswith("rearview.")}}
assert ours <= {{"engine", "errors", "config"}}, ours
"""


def test_import_contracts_hold(root: Path) -> None:
    program = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [program, "--no-cache"], cwd=root, capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_engine_imports_without_servers(root: Path) -> None:
    command = [sys.executable, "-c", PROBE]
    run = subprocess.run(
        command, cwd=root / "services", capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr


def imports(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports, wherever in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_engine_source_has_no_event_loop(root: Path) -> None:
    # torch itself imports asyncio: what is loaded proves nothing here, what is written does.
    files = sorted((root / "services/rearview/engine").rglob("*.py"))
    assert files
    for path in files:
        assert imports(path).isdisjoint({"asyncio", *NOT_FOR_THE_ENGINE}), path
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree)), path


def test_only_the_configuration_reads_the_environment(root: Path) -> None:
    for path in sorted((root / "services/rearview").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and str(node.value).startswith("REARVIEW_")
        ]
        assert path.name == "config.py" or not ours, f"{path}: {ours}"
