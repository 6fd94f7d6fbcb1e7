"""The command as a process, and what runs on this machine by its session, which needs /proc."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

__all__ = ["REARVIEW", "of_session"]

REARVIEW = (
    sys.executable,
    "-c",
    # Where tests run in the background Ctrl-C is ignored, and children inherit that.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from rearview.cli.main import app; app()",
)


def of_session(leader: int) -> set[int]:
    """Ids of the processes of the session that `leader` has begun, zombies left out."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.add(int(folder.name))
    return found
