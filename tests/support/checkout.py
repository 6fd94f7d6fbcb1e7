"""The files of the repository."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from support.require import skip_or_fail

__all__ = ["checked_out"]

LISTING = ("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")


def checked_out(root: Path) -> list[Path]:
    """Every file that is, or would be, in the repository. Skips where there is none."""
    if shutil.which("git") is None or not (root / ".git").exists():
        skip_or_fail("not a git checkout")
    run = subprocess.run(LISTING, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    return [path for name in run.stdout.split("\0") if name and (path := root / name).is_file()]
