"""The asyncio tasks of one owner: none is lost, none outlives it, none fails unheard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from rearview.contract.session import SessionSpec
from rearview.telemetry.logging import concerning

__all__ = ["SessionTasks", "Tasks"]


class Tasks:
    """Tasks that end by themselves, by `cancel`, or with a fault. For one event loop."""

    def __init__(self, on_fault: Callable[[BaseException], None]) -> None:
        """`on_fault` is told what a task failed with."""
        self._on_fault = on_fault
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it beside the caller."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Stop them all."""
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)


class Owner(Protocol):
    """A session, as far as its tasks go."""

    @property
    def spec(self) -> SessionSpec:
        """Whose task it is."""

    @property
    def on_fault(self) -> Callable[[BaseException], None]:
        """Told what a task of the session has failed with."""


class SessionTasks:
    """One task a session at most. For one event loop."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, owner: Owner, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in place of what runs for the session."""
        self.cancel(owner)
        with concerning(session_id=owner.spec.session_id, tenant=owner.spec.tenant):
            task = asyncio.create_task(coroutine)
        self._running[owner.spec.session_id] = task
        task.add_done_callback(lambda done: self._done(owner, done))
        return task

    def runs(self, owner: Owner) -> bool:
        """Whether something does for the session."""
        return owner.spec.session_id in self._running

    def cancel(self, owner: Owner) -> None:
        """Give up what runs for the session."""
        task = self._running.pop(owner.spec.session_id, None)
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """Give everything up, and return when it has ended."""
        tasks = tuple(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, owner: Owner, task: asyncio.Task[None]) -> None:
        if self._running.get(owner.spec.session_id) is task:
            del self._running[owner.spec.session_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            owner.on_fault(error)
