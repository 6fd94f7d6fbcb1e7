"""Whether the control service (GCS) of a private Ray still answers, and what to do when it does not.

Nobody starts it again, and without it nothing can be placed or replaced. Streams go on for a minute; then Ray
ends every process of its cluster, the one that has started it too. So this process starts itself anew before.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

__all__ = ["LOOK_EVERY_S", "Watch", "start_anew"]

LOOK_EVERY_S = 1.0
ANSWER_S = 1.0
PATIENCE_S = 20.0
"""How long it may be silent: a busy machine is no reason to cut streams."""
REFUSALS = 3
"""So often in a row nobody listened at its address: it has died."""


class Watch:
    """Looks now and then."""

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`address`: `host:port` of the GCS."""
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._clock = clock
        self._answered_s = clock()
        self._refusals = 0

    def is_gone(self) -> bool:
        """Look; whether it is gone for good. Takes `ANSWER_S` at most."""
        try:
            self._ask()
        except ConnectionRefusedError:
            self._refusals += 1
        except OSError:  # A time-out too.
            self._refusals = 0
        else:
            self._answered_s, self._refusals = self._clock(), 0
        return self._refusals >= REFUSALS or self._clock() - self._answered_s > PATIENCE_S

    def _ask(self) -> None:
        """It speaks gRPC: HTTP/2, whose servers send their settings to whoever connects. Raises OSError."""
        import socket

        with socket.create_connection((self._host, self._port), ANSWER_S) as connection:
            connection.settimeout(ANSWER_S)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            if not connection.recv(9):
                raise ConnectionResetError("it has hung up")


def start_anew(address: str) -> NoReturn:
    """Begin this process again from its command line, serving at the port of `address` as before.

    What it has started is found, and ended, by the service that it starts next.
    """
    port = address.rpartition(":")[2]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--port", port])
