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

import torch

from rearview.engine.engine import Engine, StepResult

__all__ = ["EngineRunner"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[Engine], None]


class _StopRunner(Exception):
    """Ends the thread; raised by the last command."""


class EngineRunner:
    """Runs `engine` on its own thread. Construct it on the event loop that takes the results."""

    def __init__(
        self, engine: Engine, on_step: Callable[[StepResult], None], *, num_threads: int | None = None
    ) -> None:
        """`num_threads`: torch threads of a forward; None leaves them as they are."""
        self._engine = engine
        self._num_threads = num_threads
        self._on_step = on_step
        self._loop = asyncio.get_running_loop()
        self._mailbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

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
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)  # Here: OpenMP keeps the number per thread.
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
