"""A process that has imported everything once, and forks: replicas, ingresses and clients in milliseconds.

`python -m loadtest.reliability.zygote` reads a JSON line for each process to start, `{"name", "run", ...}`.
It writes `{"name", "pid"}`, and `{"name", "pid", "status"}` when that has ended. Where standard input ends,
every process that it has started is killed. It has no thread and no event loop, so that a fork is whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

__all__ = ["main"]

PR_SET_PDEATHSIG = 1


class _Children:
    """The processes that were started and live."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def start(self, order: dict[str, Any]) -> None:
        """Fork for an order."""
        pid = os.fork()
        if pid == 0:
            _child(order)
        self._names[pid] = order["name"]
        _say({"name": order["name"], "pid": pid})

    def reap(self) -> None:
        """Tell who has ended."""
        for pid in tuple(self._names):
            with contextlib.suppress(ChildProcessError):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    _say(
                        {
                            "name": self._names.pop(pid),
                            "pid": pid,
                            "status": os.waitstatus_to_exitcode(status),
                        }
                    )

    def kill(self) -> None:
        """End all that live."""
        for pid in self._names:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._names:
            os.waitpid(pid, 0)


def _say(content: dict[str, Any]) -> None:
    os.write(1, json.dumps(content).encode() + b"\n")


def _child(order: dict[str, Any]) -> None:
    """Never returns."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        empty = os.open(os.devnull, os.O_RDONLY)
        for ours, theirs in ((empty, 0), (log, 1), (log, 2)):
            os.dup2(ours, theirs)
        from loadtest.reliability.processes import RUN

        RUN[order["run"]](order)
        status = 0
    except BaseException:  # The edge of a process: what it died of is in its log.
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Fork until standard input ends."""
    from loadtest.reliability import processes

    processes.preload()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    children, unread = _Children(), b""
    _say({"name": "zygote", "pid": os.getpid()})
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            children.reap()
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                children.kill()
                return
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                children.start(json.loads(line))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
    main()
