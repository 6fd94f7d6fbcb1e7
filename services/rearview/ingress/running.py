"""The calls that are running, and which of them must end since their token is no longer good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rearview.errors import InvalidRequest, Reason
from rearview.ingress.auth import Caller, Metadata

__all__ = ["RunningCalls"]


@dataclass(eq=False, slots=True)
class _Call:
    caller: Caller
    metadata: Metadata = field(repr=False)
    task: asyncio.Task[object]
    why: InvalidRequest | None = None
    """Set: it must end."""

    def end(self, reason: Reason, text: str) -> None:
        if self.why is None:
            self.why = InvalidRequest(reason, text)
            self.task.cancel()


class RunningCalls:
    """Those that have a caller. For one event loop."""

    def __init__(self, authenticate: Callable[[Metadata], Caller]) -> None:
        self._authenticate = authenticate
        self._calls: set[_Call] = set()

    @contextmanager
    def let_in(self, metadata: Metadata) -> Iterator[Caller]:
        """Run the current task's call inside. Raises InvalidRequest, at once or when its token ends."""
        task = asyncio.current_task()
        assert task is not None, "a call runs in a task"
        call = _Call(self._authenticate(metadata), metadata, task)
        self._calls.add(call)
        try:
            yield call.caller
        except asyncio.CancelledError:
            if call.why is None:
                raise
            task.uncancel()
            raise call.why from None
        finally:
            self._calls.discard(call)

    def expire(self, now_s: float) -> None:
        """End those whose token is over. `now_s`: wall clock."""
        for call in tuple(self._calls):
            if call.caller.expires_s is not None and now_s >= call.caller.expires_s:
                call.end(Reason.TOKEN_EXPIRED, "the token has expired")

    def recheck(self) -> None:
        """End those whose token would not be let in now, or as somebody else."""
        for call in tuple(self._calls):
            try:
                caller = self._authenticate(call.metadata)
                is_same = caller.tenant.name == call.caller.tenant.name
            except InvalidRequest:
                is_same = False
            if not is_same:
                call.end(Reason.TOKEN_REVOKED, "the token is no longer accepted")
