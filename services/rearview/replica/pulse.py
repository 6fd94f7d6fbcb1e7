"""A replica's pulse: what it says of itself, what it knows of its own state, and how it ends when condemned.

Peers judge it by its beats (`control/liveness.py`). A process that was stopped reads that it is condemned
when it wakes: it answers nothing more, since its sessions go on elsewhere, and ends itself, as one with an
engine that hangs does. One that was condemned although all is well with it (a link was cut) ends as Serve
does with a replica that fails its health check. One whose device has broken waits for no verdict: it says
that it is dead, and ends itself at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from rearview.contract.beat import BEAT_S, Beat, Work
from rearview.control.liveness import Attention, Limits
from rearview.machine import run_delays_s
from rearview.replica.runner import EngineRunner
from rearview.replica.telling import Telling
from rearview.transport.beat import encode_beat
from rearview.transport.links import LinkPool, LinkServer
from rearview.transport.wire import Kind

__all__ = ["EXIT_CONDEMNED", "OnEnd", "Pulse", "Vitals", "end_process", "only_told"]

logger = logging.getLogger(__name__)

LATENESS_REMEMBERED_S = 5.0
"""A process that wakes may do other things before it reads that it is condemned."""

EXIT_CONDEMNED = 70
"""Exit status of a replica that ends itself."""

OnEnd = Callable[[str], None]
"""Ends the process; told why."""


def only_told(why: str) -> None:
    """For a replica that shares its process with others."""


def end_process(why: str) -> None:
    """End at once, without any goodbye: an engine that hangs would wait for one."""
    logger.critical("this process ends itself: %s", why)
    logging.shutdown()
    os._exit(EXIT_CONDEMNED)


class Starvation:
    """For how long the process's threads wanted to run and could not, since a beginning: on a machine with
    more to do than processors, the thread that beats is woken at once and those that compute wait.
    """

    def __init__(self, delays_s: Callable[[], Mapping[int, float]] = run_delays_s) -> None:
        self._delays_s = delays_s
        self._before: Mapping[int, float] = {}

    def begin(self) -> None:
        """From now on."""
        self._before = self._delays_s()

    def seconds(self) -> float:
        """Of the thread that waited longest."""
        now = self._delays_s().items()
        return max((delay_s - self._before.get(thread, 0.0) for thread, delay_s in now), default=0.0)


class Vitals:
    """What an engine's thread is seen to do, at each beat. For one thread; `now`: the runner's clock."""

    def __init__(self, runner: EngineRunner, now: float, starvation: Starvation | None = None) -> None:
        self._runner, self._starvation = runner, starvation or Starvation()
        self._attention = Attention(BEAT_S, now)
        self._beaten_s = now
        self._late_s, self._late_at_s = 0.0, now
        """The longest that a beat came late by of late, and when."""
        self._began_s: float | None = None
        """When what is under way began, by the runner's clock, which tells it from what came before."""
        self._had_s = 0.0
        """Attentive seconds when it began."""

    def take(self, now: float) -> Beat:
        """The next beat, every BEAT_S."""
        late_s = self._attention.look(now)
        if late_s > self._late_s or now - self._late_at_s > LATENESS_REMEMBERED_S:
            self._late_s, self._late_at_s = late_s, now
        self._beaten_s = now
        return Beat(self._runner.alive, self._work(now))

    def was_stopped(self, now: float) -> bool:
        """Whether the process lately did not run for so long that others doubt it."""
        recent_s = self._late_s if now - self._late_at_s <= LATENESS_REMEMBERED_S else 0.0
        return max(recent_s, now - self._beaten_s - BEAT_S) > Limits().doubt_s

    def _work(self, now: float) -> Work | None:
        running, began_s = self._runner.running, self._runner.busy_since_s
        had_s = self._attention.at(now)
        is_new, self._began_s = began_s != self._began_s, began_s
        if began_s is None:
            return None
        if is_new:
            self._had_s = had_s - min(now - began_s, BEAT_S)
            self._starvation.begin()
        starved_s = 0.0 if is_new else self._starvation.seconds()
        busy_s = max(0.0, had_s - self._had_s - starved_s)
        if running is None:
            return Work("", 0, busy_s, None)
        return Work(running.operator, running.rows, busy_s, running.expected_s)


class Pulse:
    """Beats until it is stopped or condemned. For one event loop."""

    def __init__(
        self,
        runner: EngineRunner,
        server: LinkServer,
        pool: LinkPool,
        on_end: OnEnd,
        describe: Callable[[], Mapping[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Of the replica that takes links at `server` and dials with `pool`. `describe`: what it says of
        itself. `clock`: the runner's.
        """
        self._runner, self._server, self._pool = runner, server, pool
        self._on_end, self._clock = on_end, clock
        self._vitals, self._telling = Vitals(runner, clock()), Telling(server, describe)
        self._beat = Beat(runner.alive, None)
        self._task = asyncio.create_task(self._run())
        self._silence: asyncio.Task[None] | None = None
        self.condemned = False
        self._drains = False
        runner.on_broken = self.give_up

    def drain(self) -> None:
        """Say, and say again with every beat, that the replica takes no new sessions and is to be left: a
        lane that was still opening when it was said first hears of it when it is open.
        """
        self._drains = True
        self._server.broadcast(Kind.DRAINING)

    def check_health(self) -> None:
        """Raises RuntimeError if the replica must be replaced."""
        if self.condemned:
            raise RuntimeError("the replica was taken for dead: its sessions go on elsewhere")
        if not self._runner.alive:
            raise RuntimeError("the engine thread is not running")
        if self.is_hung:
            raise RuntimeError("the engine hangs")

    @property
    def is_hung(self) -> bool:
        """Whether the engine was busy for too long with one thing, at the last beat."""
        return Limits().is_hung(self._beat.work)

    def condemn(self) -> None:
        """Others have taken this replica for dead: it hears and says nothing more. Idempotent."""
        if self.condemned:
            return
        now = self._clock()
        stopped, hangs = self._vitals.was_stopped(now), Limits().is_hung(self._vitals.take(now).work)
        why = "its process was stopped" if stopped else "its engine hangs" if hangs else "it was not heard"
        self._end(f"this replica is condemned: {why}")
        if stopped or hangs:
            self._on_end(why)

    def give_up(self, what: str) -> None:
        """The device answers nothing but `what` from now on: tell whoever listens, so that sessions go on
        elsewhere, and end.
        """
        if self.condemned:
            return
        self._server.broadcast(Kind.HEARTBEAT, encode_beat(Beat(alive=False, work=None)))
        why = f"its device is broken: {what}"
        self._end(f"this replica gives itself up: {why}")
        self._on_end(why)

    def _end(self, word: str) -> None:
        self.condemned = True
        self._task.cancel()
        self._runner.condemn()
        self._silence = asyncio.create_task(self._fall_silent())
        logger.critical("%s", word)

    async def stop(self) -> None:
        """Beat no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._silence is not None:
            await self._silence

    async def _run(self) -> None:
        while True:
            self._beat = self._vitals.take(self._clock())
            self._server.broadcast(Kind.HEARTBEAT, encode_beat(self._beat))
            self._telling.beat()
            if self._drains:
                self._server.broadcast(Kind.DRAINING)
            await asyncio.sleep(BEAT_S)

    async def _fall_silent(self) -> None:
        await self._server.stop()
        await self._pool.stop()
