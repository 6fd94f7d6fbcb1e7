"""The orders of rows in real time: latency and missed deadlines of live streams, without any network.

    python -m loadtest.realtime

Streams send at 30 FPS into the engine whatever it does. Its model stands for a device on which a
denoising step of n rows takes 5 + n ms and everything else nothing: it sleeps. So the figures are those of
the scheduler with this Python around it, on a real clock; the same streams in virtual time are tests
(`tests/engine/test_virtual_time.py`). Latency is counted from when a frame was due, not from when it got in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any

import torch
import typer
from rearview.contract.chain import Operator, OperatorKind, Span, chain
from rearview.contract.frame import LATENT, Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.stream import DropPolicy
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.build import Layouts
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.model import Forward
from rearview.engine.player import Player
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.ingress.pacing import Pacer
from rich.console import Console

from loadtest.figures import RESULTS, Figure, ResultFile, show

__all__ = ["CELLS", "Cell", "DeviceModel", "Outcome", "figures", "main", "play"]

FPS = 30.0
STEPS = 4
BUDGET_S = 0.1
MAX_BATCH = 32
MAX_BACK_TO_BACK_MS = 30.0
MIN_STREAM_BATCH_MS = 105.0
COSTS = CostTable({OperatorKind.DENOISE: {1: 0.006, 2: 0.007}})
"""t(rows) = 5 + rows ms."""
ORDERS = {Order.BACK_TO_BACK: "back to back", Order.STREAM_BATCH: "stream batch"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting to measure."""

    streams: int
    order: Order
    max_in_flight: int = STEPS
    """Frames of a stream in the engine; a newer one drives out the one that waits (`latest`)."""


CELLS = (
    Cell(1, Order.BACK_TO_BACK),
    Cell(1, Order.STREAM_BATCH),
    Cell(5, Order.BACK_TO_BACK),
    Cell(5, Order.STREAM_BATCH),
    # Six fit in virtual time, with nothing to spare for what choosing and committing take.
    Cell(6, Order.BACK_TO_BACK),
    # More than fit: 32 rows in 37 ms are 865 a second, and eight streams ask for 960.
    Cell(8, Order.BACK_TO_BACK, max_in_flight=1),
    Cell(8, Order.STREAM_BATCH),
)


@dataclass(slots=True)
class Outcome:
    """What a cell gave. A frame is answered once: with a picture, or driven out by a newer one."""

    frames: int
    """That were due."""
    latencies_s: list[float]
    """Of pictures, from when their frame was due."""
    driven_out: int = 0

    @property
    def late(self) -> int:
        """Pictures that came after their deadline."""
        return sum(latency > BUDGET_S for latency in self.latencies_s)

    @property
    def missed(self) -> int:
        """Frames without a picture in time."""
        return self.late + self.driven_out

    def percentile_ms(self, percent: int) -> float:
        """Latency of pictures; NaN if there are too few to say."""
        if len(self.latencies_s) < 2:
            return float("nan")
        return 1e3 * quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1]


class DeviceModel:
    """Stands for a device: a denoising step takes the time that `COSTS` says, on a real clock."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep

    @property
    def layouts(self) -> Layouts:
        return Layouts()

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        return operator.kind

    def prepare(self, settings: Settings) -> None:
        pass  # There is no prompt to encode.

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        seconds = COSTS.seconds(rows[0].group, sum(row.width for row in rows))
        if seconds:
            self._sleep(seconds)
        return Forward([row.planes for row in rows])


class _Stream:
    """One live client: its schedule, the ingress's pacer, and the ordinals that it gives."""

    def __init__(self, spec: SessionSpec, frames: int, start_s: float, max_in_flight: int) -> None:
        self._spec, self._frames, self._start_s = spec, frames, start_s
        self._pacer: Pacer[int] = Pacer(DropPolicy.LATEST, max_in_flight, frames)
        self._sent = 0
        self._admitted: list[int] = []
        """Index of each ordinal."""

    @property
    def next_s(self) -> float:
        """When the next frame is due; infinite after the last."""
        return self.due_s(self._sent) if self._sent < self._frames else float("inf")

    def due_s(self, index: int) -> float:
        return self._start_s + index / FPS

    def send(self, engine: Engine, now: float) -> int:
        """Send what is due by `now`; returns how many frames that has driven out."""
        driven_out = 0
        while self.next_s <= now:
            driven_out += len(self._pacer.offer(self._sent, now))
            self._sent += 1
            self._start(engine, now)
        return driven_out

    def receive(self, engine: Engine, ordinal: int, now: float) -> float:
        """Take an answer; returns its latency."""
        self._pacer.finished()
        self._start(engine, now)
        return now - self.due_s(self._admitted[ordinal])

    def _start(self, engine: Engine, now: float) -> None:
        while (index := self._pacer.take(now)[0]) is not None:
            deadline_s, name = self.due_s(index) + BUDGET_S, self._spec.session_id
            frame = Frame(name, len(self._admitted), {LATENT: torch.zeros(1)}, deadline_s=deadline_s)
            self._admitted.append(index)
            engine.admit(frame, now)
        if self._sent == self._frames and not self._pacer.waiting():
            engine.flush(self._spec.session_id)


def play(
    cell: Cell,
    frames: int,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Run a cell with `frames` per stream; the streams begin one after another within a frame interval."""
    span, scheduler = Span("fused", chain(STEPS)), Scheduler(COSTS, MAX_BATCH)
    engine = Engine(
        span, DeviceModel(sleep), Memoryless(cell.streams), scheduler, order=cell.order, clock=clock
    )
    begin_s = clock()
    streams = {}
    for i, spec in enumerate(_specs(cell.streams)):
        engine.open(spec)
        start_s = begin_s + i / cell.streams / FPS
        streams[spec.session_id] = _Stream(spec, frames, start_s, cell.max_in_flight)
    outcome = Outcome(frames * cell.streams, [])

    def feed() -> None:
        now = clock()
        outcome.driven_out += sum(stream.send(engine, now) for stream in streams.values())

    def more() -> bool:
        next_s = min(stream.next_s for stream in streams.values())
        if next_s < float("inf"):
            sleep(max(0.0, next_s - clock()))
        return next_s < float("inf")

    for left in Player(engine, clock=clock).left(feed, more):
        outcome.latencies_s.append(streams[left.session_id].receive(engine, left.ordinal, clock()))
    assert len(outcome.latencies_s) + outcome.driven_out == outcome.frames, "a frame was not answered once"
    return outcome


def _specs(count: int) -> Iterator[SessionSpec]:
    for i in range(count):
        yield SessionSpec(f"s{i}", 512, 512, STEPS, Settings(steps=STEPS))


def figures(outcomes: Sequence[tuple[Cell, Outcome]]) -> list[Figure]:
    """Three numbers of every cell; the latency of one stream has targets."""
    found = []
    for cell, outcome in outcomes:
        named = f"{cell.streams} stream{'s' * (cell.streams > 1)} at {FPS:g} FPS, {ORDERS[cell.order]}"
        setting = f"t(rows) = 5 + rows ms by sleeping, {STEPS} steps, {outcome.frames} frames"
        target, at_most = None, False
        if cell.streams == 1:
            at_most = cell.order is Order.BACK_TO_BACK
            target = MAX_BACK_TO_BACK_MS if at_most else MIN_STREAM_BATCH_MS
        found += [
            Figure(f"latency p50, {named}", setting, outcome.percentile_ms(50), "ms", target, at_most),
            Figure(f"latency p95, {named}", setting, outcome.percentile_ms(95), "ms"),
            Figure(
                f"frames without a picture within {1e3 * BUDGET_S:g} ms, {named}",
                setting,
                100.0 * outcome.missed / outcome.frames,
                "%",
            ),
        ]
    return found


def main(
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of each setting.")] = 10.0,
    results: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Measure both orders with one stream and several, in real time."""
    console = Console()
    outcomes = []
    for cell in CELLS:
        console.print(f"streams: {cell.streams}, {ORDERS[cell.order]}: {seconds:g} s", markup=False)
        outcomes.append((cell, play(cell, int(seconds * FPS))))
    command = f"python -m loadtest.realtime --seconds {seconds:g}"
    result = ResultFile.of("realtime", command, figures(outcomes), {"cells": list(_detail(outcomes))})
    show(result, result.write(results), console)


def _detail(outcomes: Sequence[tuple[Cell, Outcome]]) -> Iterator[dict[str, Any]]:
    for cell, outcome in outcomes:
        yield {
            **asdict(cell),
            "order": cell.order.value,
            "frames": outcome.frames,
            "pictures": len(outcome.latencies_s),
            "late": outcome.late,
            "driven_out": outcome.driven_out,
            "p50_ms": outcome.percentile_ms(50),
            "p95_ms": outcome.percentile_ms(95),
            "p99_ms": outcome.percentile_ms(99),
        }


if __name__ == "__main__":
    typer.run(main)
