"""A thread that owns an engine, so that forwards never block the event loop that feeds them.

Everything reaches the engine as a command in one mailbox, run between steps in the order of arrival;
what a step did is handed to a callback on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from rearview.engine.engine import Engine, StepResult

__all__ = ["EngineRunner"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[Engine], None]


class _StopRunner(Exception):
    """Ends the thread; raised by the last command."""


class EngineRunner:
    """Runs an engine on its own thread. Construct it on the event loop that takes the results.

    The thread builds the engine too, so that it is the only one in which torch starts OpenMP workers:
    a second team, even an idle one, makes every parallel region of both sleep instead of spin.
    """

    def __init__(self, build: Callable[[], Engine], on_step: Callable[[StepResult], None]) -> None:
        """`build` makes the engine; await `ready` for what it raises."""
        self._build = build
        self._ready: Future[None] = Future()
        self._on_step = on_step
        self._loop = asyncio.get_running_loop()
        self._mailbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def ready(self) -> None:
        """Return when the engine is built; raises what `build` did."""
        await asyncio.wrap_future(self._ready)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def post(self, command: Command) -> None:
        """Run `command` on the engine before its next step."""
        self._mailbox.put(command)

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Run `function` on the engine before its next step; returns or raises what it does."""
        future: Future[T] = Future()

        def command(engine: Engine) -> None:
            try:
                future.set_result(function(engine))
            except Exception as error:  # Handed over whole to the caller, who decides.
                future.set_exception(error)

        self.post(command)
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """Run what was posted before, let a running forward end, and stop the thread."""

        def stop(engine: Engine) -> None:
            raise _StopRunner

        self.post(stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._engine = self._build()
        except BaseException as error:  # Handed over whole to whoever waits for the engine.
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        try:
            while True:
                self._run_commands(wait=not self._engine.has_work)
                result = self._engine.step(time.monotonic())
                if result.emissions or result.batch is not None:
                    self._loop.call_soon_threadsafe(self._on_step, result)
        except _StopRunner:
            return

    def _run_commands(self, *, wait: bool) -> None:
        if wait:
            self._run_command(self._mailbox.get())
        while True:
            try:
                command = self._mailbox.get_nowait()
            except queue.Empty:
                return
            self._run_command(command)

    def _run_command(self, command: Command) -> None:
        try:
            command(self._engine)
        except _StopRunner:
            raise
        except Exception:  # The edge of a command: it concerns one session, the engine goes on.
            logger.exception("a command to the engine failed")
