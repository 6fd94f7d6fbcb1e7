"""The web client as `npm pack` makes it."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

from support.require import skip_or_fail

__all__ = ["packed"]


def packed(root: Path, folder: Path) -> Path:
    """The package, unpacked in `folder`."""
    if shutil.which("npm") is None:
        skip_or_fail("npm is missing")
    source = shutil.copytree(root / "clients/web", folder / "source")
    command = ["npm", "pack", "--pack-destination", str(folder)]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    (archive_file,) = folder.glob("*.tgz")
    with tarfile.open(archive_file) as archive:
        archive.extractall(folder, filter="data")
    shutil.rmtree(source)
    return folder / "package"
