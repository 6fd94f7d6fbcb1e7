"""Whether a server that was found away is asked, and when it is tried again.

Closed: every call goes. Open: calls are refused at once, and one probe at a time asks whether the server is
back. What surprises: users' calls are never probes, since they must not wait for a server that is known to be
away. A value; each method gives what is known afterwards. `now` only grows; any clock will do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Circuit"]


@dataclass(frozen=True, slots=True)
class Circuit:
    """What is known of one server."""

    failures: int = 0
    """In a row: the call that found it away, and the probes since."""
    due_s: float | None = None
    """When to probe next. None: it answers, or a probe is on its way."""

    @property
    def is_open(self) -> bool:
        """Whether the server is known to be away."""
        return self.failures > 0

    def answered(self) -> Circuit:
        """It has answered a call or a probe."""
        return Circuit()

    def failed(self, now: float, again_in_s: float) -> Circuit:
        """A call was not answered, with all its retries. One that began before the circuit opened puts no
        probe off.
        """
        return self if self.is_open else Circuit(1, now + again_in_s)

    def probing(self, now: float) -> Circuit | None:
        """With a probe on its way; None: none is due."""
        if self.due_s is None or now < self.due_s:
            return None
        return replace(self, due_s=None)

    def probe_failed(self, now: float, again_in_s: float) -> Circuit:
        """A probe was not answered. It no longer matters if a call was, meanwhile."""
        return Circuit(self.failures + 1, now + again_in_s) if self.is_open else self
