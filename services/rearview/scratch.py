"""The folder of a service on this machine, which tells by itself whether its owner still lives.

A process that is killed removes nothing. So its folder holds a file that it keeps locked: the kernel lets
go of the lock whatever ends the process, and whoever starts next removes folders that nobody locks. Processes
that are left over carry the folder's path in their environment, or write what they say into a file there: so
they are found without a guess.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from rearview.environment import environment, pass_on, variable
from rearview.machine import processes_of, short_folder, temporary_folders

__all__ = ["Scratch", "remove_leftovers", "unmarked"]

PREFIX = "rv-"
SOCKET_ROOM = 70
"""Bytes that Ray's socket paths have below the folder: /session_<date>_<time>_<pid>/sockets/plasma_store."""
OWNER = "owner"
"""Name of the locked file. It holds the owner's process id, for people."""
MARK = "SCRATCH"
"""In the environment of the owner and of all that it starts."""


class Scratch:
    """A folder for as long as its owner lives."""

    def __init__(self, *, marks: bool = True, room: int | None = None) -> None:
        """`marks`: this process, and what it starts from now on. `room`: bytes that socket paths have below
        the folder; None: Ray's.
        """
        self.path = short_folder(PREFIX, SOCKET_ROOM if room is None else room)
        self._lock = (self.path / OWNER).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        if marks:
            pass_on(MARK, str(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def processes(self) -> list[int]:
        """Ids of those that are of the folder and still run."""
        return list(_processes(self.path))

    def remove(self) -> None:
        """End what is of the folder and still runs, and remove the folder. Idempotent."""
        if environment(MARK) == str(self.path):
            pass_on(MARK, None)
        _remove(self.path)
        self._lock.close()


@contextlib.contextmanager
def unmarked() -> Iterator[None]:
    """What is started inside carries no mark: other services of this process share it."""
    mark = environment(MARK)
    pass_on(MARK, None)
    try:
        yield
    finally:
        pass_on(MARK, mark or None)


def remove_leftovers() -> int:
    """Remove what owners that were killed have left, processes included; returns of how many."""
    removed = 0
    for path in [path for folder in temporary_folders() for path in Path(folder).glob(f"{PREFIX}*")]:
        with contextlib.suppress(OSError), (path / OWNER).open("r+") as lock:  # Else it is none of ours.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
            removed += 1
    return removed


def _remove(path: Path) -> None:
    for pid in tuple(_processes(path)):
        with contextlib.suppress(OSError):  # It has ended by itself, or is no child of this process.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    shutil.rmtree(path, ignore_errors=True)


def _processes(path: Path) -> Iterator[int]:
    """Those of the folder, but for this one: marked, or with their output in it."""
    return processes_of(path, f"{variable(MARK)}={path}")
