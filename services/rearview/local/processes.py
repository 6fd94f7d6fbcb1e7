"""A process of a service, without Ray, from outside: started, told, killed, and its last words."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection
from pathlib import Path

from rearview.forks import CONTEXT, starting
from rearview.local import member
from rearview.local.words import Order, Said, Told

__all__ = ["Process"]


class Process:
    """One that runs, from outside. For one thread, but for `kill`."""

    def __init__(self, order: Order) -> None:
        """Start it. Takes seconds where nothing is imported yet, else milliseconds. Raises OSError."""
        self.pipe: Connection[Told, Said]
        self.pipe, theirs = CONTEXT.Pipe()
        self._log = Path(order.log)
        self._process = CONTEXT.Process(target=member.run, args=(order, theirs), name=order.name, daemon=True)
        try:
            with starting():
                self._process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()

    @property
    def sentinel(self) -> int:
        """Ready to be read once it has ended."""
        return self._process.sentinel

    def tell(self, told: Told) -> None:
        """If it listens."""
        try:
            self.pipe.send(told)
        except OSError:
            return

    def kill(self) -> None:
        """At once. Idempotent; for any thread."""
        self._process.kill()

    def close(self) -> str:
        """Once it has ended: let go of it. Returns how it ended, in a few words."""
        self._process.join()
        code = self._process.exitcode or 0
        self.pipe.close()
        self._process.close()
        how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with status {code}"
        return f"it has ended {how}{self._last_words()}"

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f": {lines[-1]}" if lines else ""
