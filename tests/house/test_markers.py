"""A test module that does not say what it needs is not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit


def test_collection_fails_without_a_kind(root: Path, tmp_path: Path) -> None:
    """And says of which module, not of another."""
    shutil.copy(root / "tests/conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = unit: one module\n", encoding="utf-8")
    test = "def test_nothing():\n    pass\n"
    (tmp_path / "test_marked.py").write_text(
        f"import pytest\npytestmark = pytest.mark.unit\n{test}", encoding="utf-8"
    )
    (tmp_path / "test_unmarked.py").write_text(test, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    environment = {**os.environ, "PYTHONPATH": str(root / "tests")}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == pytest.ExitCode.USAGE_ERROR, run.stdout + run.stderr
    assert "test_unmarked.py" in run.stdout + run.stderr
    assert "test_marked.py" not in run.stdout + run.stderr
