"""Waiting for a condition, with a deadline, where a real server is at work."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["eventually"]

POLL_S = 0.1


def eventually(condition: Callable[[], bool], within_s: float) -> None:
    """Return once `condition` holds; fail with its last value's text after `within_s` seconds."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not so within {within_s} s: {condition.__name__}"
        time.sleep(POLL_S)
