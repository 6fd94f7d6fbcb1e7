"""The zygote from outside: orders in, and who has started and ended out. Outlives runs and event loops."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Ended", "Spawner"]

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0
STOP_S = 10.0

Ended = Callable[[int], None]
"""Is told the status of a process that has ended; on a thread of its own."""


class Spawner:
    """`with Spawner() as spawner:` has a zygote, which starts processes in milliseconds."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._starting: dict[str, tuple[Future[int], Ended]] = {}
        self._living: dict[int, Ended] = {}
        self._ready: Future[int] = Future()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.reliability.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, name="zygote", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None, "enter it first"
        assert self._process.stdin is not None, "it has no standard input"
        self._process.stdin.close()  # It kills all that it has started, and goes.
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
        if self._reader is not None:
            self._reader.join(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def start(self, name: str, order: Mapping[str, Any], ended: Ended) -> Future[int]:
        """Start a process; its pid. Names must differ among those that are starting."""
        assert self._process is not None, "enter it first"
        assert self._process.stdin is not None, "it has no standard input"
        self._ready.result(START_S)
        future: Future[int] = Future()
        self._starting[name] = (future, ended)
        self._process.stdin.write(json.dumps({**order, "name": name}).encode() + b"\n")
        self._process.stdin.flush()
        return future

    def _read(self) -> None:
        assert self._process is not None, "enter it first"
        assert self._process.stdout is not None, "it has no standard output"
        for line in self._process.stdout:
            said = json.loads(line)
            if "status" in said:
                self._living.pop(said["pid"])(said["status"])
            elif said["name"] == "zygote":
                self._ready.set_result(said["pid"])
            else:
                future, ended = self._starting.pop(said["name"])
                self._living[said["pid"]] = ended
                future.set_result(said["pid"])
