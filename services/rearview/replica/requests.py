"""Requests that come over links: each is answered by a task of its own, with a result or with a reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from rearview.errors import Fault, RearviewError
from rearview.telemetry.logging import concerns, log_fault
from rearview.transport.links import Link
from rearview.transport.refusal import refusal
from rearview.transport.wire import Body, Kind, decode_json

__all__ = ["Answer", "Requests", "whose"]

logger = logging.getLogger(__name__)

Answer = Callable[[Link, dict[str, Any]], Awaitable[Mapping[str, Any]]]
"""From a request, and the link over which it came, to the content of its reply. Raises RearviewError."""


class Requests:
    """Those under way. For one event loop."""

    def __init__(self, span: str) -> None:
        """`span`: whose faults they are, for the log."""
        self._span = span
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, kind: Kind, with_: Answer) -> Callable[[Link, Body], None]:
        """What takes the body of a request of `kind` and sees to its reply."""

        def take(link: Link, body: Body) -> None:
            self.spawn(self._reply(link, kind, decode_json(body), with_))

        return take

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside the rest. It ends with the link that it is for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Give up those under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fault(self, kind: Kind, error: Exception) -> Fault:
        """What a peer is told of an error that nobody foresaw; it is in the log."""
        error_id = log_fault(logger, f"{kind.name.lower()} failed", error, span=self._span)
        return Fault(metadata={"error_id": error_id})

    async def _reply(self, link: Link, kind: Kind, request: dict[str, Any], with_: Answer) -> None:
        concerns(**whose(request))
        try:
            answer = dict(await with_(link, request))
        except RearviewError as error:
            answer = refusal(error)
        except Exception as error:  # The edge of one request: it is refused, the replica goes on.
            answer = refusal(self.fault(kind, error))
        link.reply(request, answer)


def whose(told: Mapping[str, Any]) -> Mapping[str, str]:
    """Session and tenant of what has come as JSON, as far as it says them: for logs."""
    spec, lease = told.get("session"), told.get("lease")
    found = {**(lease if isinstance(lease, dict) else {}), **(spec if isinstance(spec, dict) else {}), **told}
    return {name: str(found[name]) for name in ("session_id", "tenant") if found.get(name)}
