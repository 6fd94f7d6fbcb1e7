"""Files that are read again when they change, without a word to this process.

A file may be replaced (a mounted secret is a link that is moved) or written in place, so inode, size and
time are compared. A new version that cannot be read leaves the old one in force.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

from rearview.errors import ConfigError

__all__ = ["Refreshed", "Watched"]

T = TypeVar("T")
_Version = tuple[tuple[int, int, int] | None, ...]


class Refreshed(Enum):
    """What a look at the files has found."""

    SAME = "same"
    CHANGED = "changed"
    BROKEN = "broken"


class Watched(Generic[T]):
    """What some files say. Reads them when it is made, and again in `refresh`; several threads may ask."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """`read` raises ConfigError for files that it cannot use, now or later."""
        self._paths, self._read = tuple(paths), read
        self._version = self._look()
        self.value = read()
        """Of the last version that could be read."""
        self.error = ""
        """Why a newer one is not in force; empty if there is none."""

    def refresh(self) -> Refreshed:
        """Look, and read what has changed: a few stats if nothing has."""
        version = self._look()
        if version == self._version:
            return Refreshed.SAME
        self._version = version
        try:
            self.value = self._read()
        except ConfigError as error:
            self.error = str(error)
            return Refreshed.BROKEN
        self.error = ""
        return Refreshed.CHANGED

    def _look(self) -> _Version:
        return tuple(map(_version_of, self._paths))


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
