"""A service that the gateway stands before: one that was named, or one that is being started.

    starting ─► ready ⇄ unreachable
        └─► failed

One that was named is ready as soon as it has answered something, a refusal included, and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from rearview.client import Unreachable
from rearview.errors import ConfigError, RearviewError, Reason, Refused
from rearview.studio.said import ServiceSaid
from rearview.studio.service import Endpoint

if TYPE_CHECKING:
    from rearview.studio.said import ServiceState

__all__ = ["Backing", "Start"]

Start = Callable[[Callable[[str], None]], AbstractContextManager[Endpoint]]
"""Starts a service, tells what goes on, and stops it at the end of the block. It has a thread."""


class Backing:
    """For one event loop, but for `start`'s thread."""

    def __init__(self, start: Start | Endpoint, on_change: Callable[[], None]) -> None:
        self._start, self._on_change = start, on_change
        self._stack = ExitStack()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="service")
        self._state: ServiceState = "starting"
        self._message = ""
        self._task: asyncio.Task[Endpoint] | None = None

    @property
    def said(self) -> ServiceSaid:
        """As pages are told."""
        return ServiceSaid(state=self._state, message=self._message)

    async def endpoint(self) -> Endpoint:
        """Where it is, once it is there. Raises Refused(REPLICA_LOST) if it did not start."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await asyncio.shield(self._task)

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Around a question to it: pages are told when it ceases to answer, and when it answers again."""
        try:
            yield
        except Unreachable as error:
            self._become("unreachable", error.message)
            raise
        except RearviewError:
            self._answered()
            raise
        self._answered()

    async def stop(self) -> None:
        """Stop what was started, also in the middle of it."""
        if self._task is not None:
            with contextlib.suppress(RearviewError, asyncio.CancelledError):
                await self._task
        await asyncio.get_running_loop().run_in_executor(self._thread, self._stack.close)
        self._thread.shutdown(wait=False)

    async def _run(self) -> Endpoint:
        if isinstance(self._start, Endpoint):
            return self._start
        loop = asyncio.get_running_loop()

        def progress(text: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the start did
                loop.call_soon_threadsafe(self._progress, text)

        try:
            endpoint = await loop.run_in_executor(
                self._thread, self._stack.enter_context, self._start(progress)
            )
        except Exception as error:  # whatever a start may raise, pages must hear of it
            text = str(error) if isinstance(error, ConfigError | RearviewError) else type(error).__name__
            self._become("failed", text)
            raise Refused(Reason.REPLICA_LOST, f"the service did not start: {text}") from error
        self._become("ready", self._message)
        return endpoint

    def _progress(self, text: str) -> None:
        if self._state == "starting":
            self._become("starting", text)

    def _answered(self) -> None:
        if self._state != "ready":
            self._become("ready")

    def _become(self, state: ServiceState, message: str = "") -> None:
        if (state, message) != (self._state, self._message):
            self._state, self._message = state, message
            self._on_change()
