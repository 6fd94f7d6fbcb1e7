"""A test module that does not say what it needs is not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("mark", "passes"), [("pytestmark = pytest.mark.unit", True), ("", False)])
def test_collection_fails_without_a_kind(root: Path, tmp_path: Path, mark: str, passes: bool) -> None:
    shutil.copy(root / "tests/conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = unit: one module\n", encoding="utf-8")
    module = f"import pytest\n{mark}\ndef test_nothing():\n    pass\n"
    (tmp_path / "test_module.py").write_text(module, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    environment = {**os.environ, "PYTHONPATH": str(root / "tests")}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert (run.returncode == 0) is passes, run.stdout + run.stderr
    assert ("test_module.py" in run.stdout + run.stderr) is not passes
