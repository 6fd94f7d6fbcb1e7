"""The engine's thread: what it is busy with, and how it is left alone when it hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.networks.model import Forward, NullModel
from rearview.engine.rows import Row, Running, StepResult
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.errors import Reason, Refused
from rearview.replica.runner import EngineRunner
from support.frames import entering
from support.raw_stream import eventually
from support.tiny import whole_chain
from support.toy import Clock, toy_payload

pytestmark = pytest.mark.integration


class Hangs(NullModel):
    """A forward does not return before it is told to."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()

    def forward(self, rows: Sequence[Row], *views: Any) -> Forward:
        self.entered.set()
        assert self.go_on.wait(60)
        return super().forward(rows, *views)


class Run:
    """A runner whose model hangs, and what it told."""

    def __init__(self) -> None:
        self.model, self.clock, self.results = Hangs(), Clock(), list[StepResult]()
        self.runner = EngineRunner(self.build, self.results.append, self.clock)
        self.calls: list[asyncio.Future[Any]] = []

    def build(self) -> Engine:
        return Engine(whole_chain(), self.model, Memoryless(2), Scheduler(CostTable(), 4), clock=self.clock)

    async def hang(self) -> None:
        spec = SessionSpec("s", 64, 64, 2, Settings("a"))
        await self.runner.call(lambda engine: engine.open(spec))
        self.clock.now_s = 7.0
        self.runner.post(lambda engine: engine.admit(entering("s", 0, toy_payload("s", 0)), 0.0))
        assert await asyncio.to_thread(self.model.entered.wait, 60)


@asynccontextmanager
async def hanging() -> AsyncIterator[Run]:
    run = Run()
    await run.runner.ready()
    await run.hang()
    try:
        yield run
    finally:
        run.model.go_on.set()
        await asyncio.to_thread(run.runner.stop)
        run.runner._thread.join(60)
        assert not run.runner._thread.is_alive()


async def test_a_runner_says_since_when_it_runs_what() -> None:
    async with hanging() as run:
        run.clock.now_s = 99.0
        assert run.runner.busy_since_s == 7.0
        assert run.runner.last_progress_s == 7.0
        assert run.runner.running == Running("encode", 1, expected_s=None)
        run.model.go_on.set()
        await eventually(lambda: len(run.results) == 4)
        await eventually(lambda: run.runner.busy_since_s is None)
        assert run.runner.running is None
        assert run.runner.last_progress_s == 99.0
        assert run.runner.alive


async def test_a_condemned_runner_fails_whoever_waits_and_its_later_results_are_ignored() -> None:
    async with hanging() as run:
        waiting = [asyncio.create_task(run.runner.call(lambda engine: engine.sessions)) for _ in range(3)]
        await asyncio.sleep(0)
        run.runner.condemn()
        run.runner.condemn()
        assert not run.runner.alive
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, Refused)
            assert result.reason is Reason.REPLICA_LOST
        with pytest.raises(Refused):
            await run.runner.call(lambda engine: engine.sessions)
        assert run.runner._thread.is_alive()
        run.model.go_on.set()
        await asyncio.to_thread(run.runner._thread.join, 60)
        assert not run.runner._thread.is_alive(), "it ends itself when it wakes"
        assert run.results == []


async def test_a_stop_does_not_wait_for_a_forward_that_hangs() -> None:
    async with hanging() as run:
        await asyncio.to_thread(run.runner.stop, 0.01)
        assert not run.runner.alive
        assert run.runner._thread.is_alive()


async def test_a_stop_lets_a_forward_end_that_does() -> None:
    async with hanging() as run:
        stopping = asyncio.create_task(asyncio.to_thread(run.runner.stop))
        run.model.go_on.set()
        await stopping
        assert not run.runner._thread.is_alive()
        with pytest.raises(Refused):
            await run.runner.call(lambda engine: engine.sessions)


async def test_an_engine_that_fails_ends_its_thread_and_whoever_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Engine, now: float) -> StepResult:
        raise KeyError("planted")

    async with hanging() as run:
        monkeypatch.setattr(Engine, "step", fail)
        waiting = asyncio.create_task(run.runner.call(lambda engine: engine.sessions))
        await asyncio.sleep(0)
        run.runner.post(lambda engine: engine.flush("s"))
        run.model.go_on.set()
        await asyncio.wait({waiting})
        await eventually(lambda: not run.runner.alive)
        with pytest.raises(Refused):
            await run.runner.call(lambda engine: engine.sessions)


async def test_a_result_is_taken_before_what_later_steps_did() -> None:
    seen: list[object] = []
    async with hanging() as run:
        run.runner._on_step = lambda result: seen.extend(frame.ordinal for frame in result.emissions)
        call = asyncio.create_task(
            run.runner.call(lambda engine: engine.sessions, lambda sessions: seen.append(sessions))
        )
        await asyncio.sleep(0)
        run.runner.post(lambda engine: engine.admit(entering("s", 1, toy_payload("s", 1)), 0.0))
        run.model.go_on.set()
        assert await call == ("s",)
        await eventually(lambda: len(seen) == 3)
        assert seen == [("s",), 0, 1]


def break_forward(run: Run) -> None:
    spec = SessionSpec("broken", 64, 64, 2, Settings("a"))
    run.runner.post(lambda engine: engine.open(spec))
    run.runner.post(lambda engine: engine.admit(entering("broken", 0, toy_payload("broken", 0)), 0.0))
    run.model.forward = broken  # type: ignore[method-assign]


def break_command(run: Run) -> None:
    run.runner.post(broken)


def break_call(run: Run) -> None:
    run.calls.append(asyncio.ensure_future(run.runner.call(broken)))


def broken(*_: Any) -> Any:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nAdvice follows.")


@pytest.mark.parametrize("how", [break_forward, break_command, break_call])
async def test_a_device_that_breaks_ends_the_thread_wherever_it_was_met(how: Callable[[Run], None]) -> None:
    async with hanging() as run:
        told: list[str] = []
        run.runner.on_broken = told.append
        how(run)
        run.model.go_on.set()
        await eventually(lambda: bool(told))
        assert told == ["CUDA error: an illegal memory access was encountered"]
        assert not run.runner.alive
        for result in await asyncio.gather(*run.calls, return_exceptions=True):
            assert isinstance(result, Refused)
        with pytest.raises(Refused):
            await run.runner.call(lambda engine: engine.sessions)
