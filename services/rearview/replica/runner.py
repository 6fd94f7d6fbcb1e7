"""A thread that owns an engine, so that forwards never block the event loop that feeds them.

Everything reaches the engine as a command in one mailbox, run between steps in the order of arrival;
what a step did is handed to a callback on the event loop. A forward that hangs cannot be ended from
outside: the runner says since when it is busy and with what, and can be condemned, which leaves the thread
alone and ignores whatever it still does. An error that the device will give from now on ends the thread,
wherever it was met.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from rearview.engine.engine import Engine
from rearview.engine.failures import is_sticky, said_by
from rearview.engine.rows import Running, StepResult
from rearview.errors import Reason, Refused

__all__ = ["Command", "EngineRunner"]

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 4.0
"""How long a stop waits for a running forward: less than Serve gives a replica to go."""

T = TypeVar("T")
Command = Callable[[Engine], None]


class _StopRunner(Exception):
    """Ends the thread; raised by the last command."""


class EngineRunner:
    """Runs an engine on its own thread. Construct it on the event loop that takes the results.

    The thread builds the engine too, so that it is the only one in which torch starts OpenMP workers:
    a second team, even an idle one, makes every parallel region of both sleep instead of spin.
    """

    def __init__(
        self,
        build: Callable[[], Engine],
        on_step: Callable[[StepResult], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`build` makes the engine; await `ready` for what it raises. `clock`: monotonic seconds."""
        self._build = build
        self._ready: Future[None] = Future()
        self._on_step = on_step
        self.on_broken: Callable[[str], None] = _nobody_told
        """Is told on the loop, in a line, when the device has broken and the thread has ended for it."""
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._mailbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._unhurried: deque[Command] = deque()
        self._calls: set[asyncio.Future[None]] = set()
        """Whoever waits for a command; for the loop's thread."""
        self._engine: Engine | None = None
        self._condemned = False
        self._ended = False
        """Whether those who waited have been told that nothing more will come."""
        self._last_progress_s = clock()
        self._busy_since_s: float | None = self._last_progress_s
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def ready(self) -> None:
        """Return when the engine is built; raises what `build` did."""
        await asyncio.wrap_future(self._ready)

    @property
    def alive(self) -> bool:
        """Whether what is posted will be run, if no forward hangs."""
        return not (self._condemned or self._ended) and self._thread.is_alive()

    @property
    def busy_since_s(self) -> float | None:
        """Since when the step or command under way runs; None: nothing is to do. As the next two, it may be
        read from any thread: the engine's thread alone writes it, in one assignment.
        """
        return self._busy_since_s

    @property
    def last_progress_s(self) -> float:
        """When the last step or command ended."""
        return self._last_progress_s

    @property
    def running(self) -> Running | None:
        """The forward under way."""
        engine = self._engine
        return None if engine is None else engine.running

    def post(self, command: Command) -> None:
        """Run `command` on the engine before its next step. Never, if the runner is not alive."""
        self._mailbox.put(command)

    def post_later(self, command: Command) -> None:
        """The same, but an engine that waits is not woken for it: for what has time until a next one."""
        self._unhurried.append(command)

    async def call(self, function: Callable[[Engine], T], then: Callable[[T], None] | None = None) -> T:
        """Run `function` on the engine before its next step; returns or raises what it does.

        `then` takes the result on the loop, before what any later step did is told. Raises
        Refused(REPLICA_LOST) if the runner is, or meanwhile is, condemned or dead.
        """
        if not self.alive:
            raise _gone()
        results: list[T] = []
        done: asyncio.Future[None] = self._loop.create_future()

        def settle(result: T) -> None:
            if not done.done():
                results.append(result)
                if then is not None:
                    then(result)
                done.set_result(None)

        def fail(error: Exception) -> None:
            if not done.done():
                done.set_exception(error)

        def command(engine: Engine) -> None:
            try:
                result = function(engine)
            except Exception as error:  # Handed over whole to the caller, who decides.
                if is_sticky(error):
                    raise
                self._tell(fail, error)
            else:
                self._tell(settle, result)

        self._calls.add(done)
        done.add_done_callback(self._calls.discard)
        self.post(command)
        await done
        return results[0]

    def condemn(self) -> None:
        """Give the thread up without joining it: what it still does is ignored, and it ends itself when it
        wakes. Idempotent; for any thread.
        """
        self._condemned = True
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
            self._loop.call_soon_threadsafe(self._fail_calls)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Run what was posted before, let a running forward end, and stop the thread; condemn it if it has
        not ended after `timeout_s`. A condemned thread is not waited for. Blocks; not for the loop's thread.
        """

        def stop(engine: Engine) -> None:
            raise _StopRunner

        self.post(stop)
        self._thread.join(0.0 if self._condemned else timeout_s)
        if self._thread.is_alive() and not self._condemned:
            logger.error("the engine does not stop: its thread is left alone")
            self.condemn()

    def _run(self) -> None:
        try:
            self._engine = engine = self._build()
        except BaseException as error:  # Handed over whole to whoever waits for the engine.
            self._ready.set_exception(error)
            return
        self._progressed()
        self._ready.set_result(None)
        broken = ""
        try:
            while not self._condemned:
                self._run_commands(engine, wait=not engine.has_work)
                self._busy_since_s = now = self._clock()
                result = engine.step(now)
                self._progressed()
                if result.emissions or result.batch is not None or result.forgotten:
                    self._tell(self._deliver, result)
        except _StopRunner:
            return
        except Exception as error:  # The edge of the thread: the replica is not healthy, and is replaced.
            logger.exception("the engine has failed")
            broken = said_by(error) if is_sticky(error) else ""
        finally:
            self._busy_since_s = None
            self._tell(self._fail_calls)
            if broken:  # After those who wait: who hears of it finds that nothing more will come.
                self._tell(self.on_broken, broken)

    def _progressed(self) -> None:
        self._last_progress_s = self._clock()
        self._busy_since_s = None

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call back on the loop, unless nobody listens any more."""
        if not self._condemned:
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                self._loop.call_soon_threadsafe(callback, *arguments)

    def _deliver(self, result: StepResult) -> None:
        if not self._condemned:
            self._on_step(result)

    def _fail_calls(self) -> None:
        self._ended = True
        for call in tuple(self._calls):
            if not call.done():
                call.set_exception(_gone())

    def _run_commands(self, engine: Engine, *, wait: bool) -> None:
        first = self._mailbox.get() if wait else None
        while self._unhurried:
            self._run_command(engine, self._unhurried.popleft())
        if first is not None:
            self._run_command(engine, first)
        while True:
            try:
                command = self._mailbox.get_nowait()
            except queue.Empty:
                return
            self._run_command(engine, command)

    def _run_command(self, engine: Engine, command: Command) -> None:
        self._busy_since_s = self._clock()
        try:
            command(engine)
        except _StopRunner:
            raise
        except Exception as error:  # The edge of a command: it concerns one session, the engine goes on.
            if is_sticky(error):
                raise
            logger.exception("a command to the engine failed")
        self._progressed()


def _nobody_told(what: str) -> None:
    """Until somebody listens: the log has it."""


def _gone() -> Refused:
    """Another replica may do: whoever recovers a session goes on looking."""
    return Refused(Reason.REPLICA_LOST, "the engine is not running", retry_after_s=1.0)
