"""Ctrl-C and SIGTERM while something is being stopped."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["uninterrupted"]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Neither is heard in this block: a second one would leave processes and folders behind."""
    if threading.current_thread() is not threading.main_thread():  # Signals belong to that one.
        yield
        return
    heard = (signal.SIGINT, signal.SIGTERM)
    former = [(number, signal.signal(number, signal.SIG_IGN)) for number in heard]
    try:
        yield
    finally:
        for number, handler in former:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
