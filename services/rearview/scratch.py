"""The folder of a private Ray, which tells by itself whether its owner still lives.

A process that is killed removes nothing. So its folder holds a file that it keeps locked: the kernel lets
go of the lock whatever ends the process, and whoever starts next removes folders that nobody locks. Processes
that are left over carry the folder's path in their environment, so they are found without a guess.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from rearview.environment import environment, pass_on, variable

__all__ = ["Scratch", "remove_leftovers"]

PREFIX = "rv-"
"""Short: Unix socket paths under the folder have at most 107 bytes."""
OWNER = "owner"
"""Name of the locked file. It holds the owner's process id, for people."""
MARK = "SCRATCH"
"""In the environment of the owner and of all that it starts."""


class Scratch:
    """A folder for as long as its owner lives. Marks this process and what it starts from now on."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = (self.path / OWNER).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        pass_on(MARK, str(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def processes(self) -> list[int]:
        """Ids of those that were started under the mark and still run."""
        return list(_marked(self.path))

    def remove(self) -> None:
        """End what was started under the mark and still runs, and remove the folder. Idempotent."""
        if environment(MARK) == str(self.path):
            pass_on(MARK, None)
        _remove(self.path)
        self._lock.close()


def remove_leftovers() -> int:
    """Remove what owners that were killed have left, processes included; returns of how many."""
    removed = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (path / OWNER).open("r+") as lock:  # Else it is none of ours.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
            removed += 1
    return removed


def _remove(path: Path) -> None:
    for pid in tuple(_marked(path)):
        with contextlib.suppress(OSError):  # It has ended by itself, or is no child of this process.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    shutil.rmtree(path, ignore_errors=True)


def _marked(path: Path) -> Iterator[int]:
    """Processes, but for this one, that were started under the mark of the folder; none without `/proc`."""
    mark = f"{variable(MARK)}={path}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has ended, or is another user's.
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
