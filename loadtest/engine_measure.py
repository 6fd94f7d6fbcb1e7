"""Running one cell: a warm-up until nothing is new, the timed part, a profile, and the pictures' check."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rearview.contract.memories import BankSettings
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.cache.window import CacheWindow

from loadtest.accelerators import Running
from loadtest.device_time import idle_share
from loadtest.engine_cells import Bench, Cell, specs
from loadtest.engine_checks import Check, Reference
from loadtest.engine_loop import Answer, Frames, Loop, percentile

__all__ = ["MOST_ROUNDS", "Measured", "measure", "opened"]

MOST_ROUNDS = 40
"""Of a warm-up; a round is one picture of every session."""
PROFILED_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """What a cell gave, from host bytes to host bytes."""

    frames: int
    fps: float
    latency_p50_ms: float
    latency_p95_ms: float
    rows_per_forward: float
    """Of denoising."""
    memory_mib: float
    """Allocated at most on the GPU; on the CPU the process's resident memory."""
    reserved_mib: float | None
    """The most that the process took from the device for it, graphs included. None: no GPU."""
    session_mib: float
    """What one session remembers."""
    share_of_bound: float
    """Of the matrix product's speed on this device in this run."""
    idle_share: float | None
    """Of the device's time, in a further short run. None: it cannot tell."""
    accelerated_share: float | None
    """Of the UNet calls in the timed part. None: they are not to be accelerated."""
    warm_up_rounds: int
    warm_up_s: float
    """From the first frame to the timed part, captures and compiling included."""
    is_warm: bool
    """Whether the last rounds of the warm-up brought no call that was new."""
    window_ms: float | None
    """From a session's first frames to its first pictures, when others wait. None: it has no cache."""
    check: Check

    def as_row(self) -> dict[str, Any]:
        """For JSON, not rounded."""
        return asdict(self)


def measure(bench: Bench, cell: Cell, frames: Frames, reference: Reference, rounds: int) -> Measured:
    """Measure a cell for so many rounds, and compare its pictures. Raises whatever the engine raises."""
    answers, found = _played(bench, cell, frames, rounds)
    # The engine is gone: the reference has its memory.
    return Measured(
        **found,
        session_mib=bench.session_bytes(cell) / 2**20,
        share_of_bound=found["fps"] * bench.flops_per_frame(cell) / bench.peak_flops,
        check=reference.check(cell, answers),
    )


def _played(bench: Bench, cell: Cell, frames: Frames, rounds: int) -> tuple[list[Answer], dict[str, Any]]:
    """The timed pictures, and all that can be told without looking at them."""
    engine = bench.engine(cell)
    running = bench.of(cell).accelerators.use(cell.accelerator)
    loop = _loop(engine, cell, bench, frames)
    _reset_peak(bench.device)
    begin_s = time.perf_counter()
    loop.open()
    warm_up_rounds, is_warm = _warm_up(loop, running, cell)
    if cell.paced_fps:
        loop.pace(cell.paced_fps)
        loop.answers(cell.steps if cell.order is Order.STREAM_BATCH else 1)  # They were sent before.
    warm_up_s = time.perf_counter() - begin_s
    loop.batches.clear()
    answers, seconds, share = _timed(loop, running, rounds)
    latencies_ms = [1e3 * answer.latency_s for answer in answers]
    memory_mib, reserved_mib = _peaks_mib(bench.device)
    found = {
        "frames": len(answers),
        "fps": len(answers) / seconds,
        "latency_p50_ms": percentile(latencies_ms, 50),
        "latency_p95_ms": percentile(latencies_ms, 95),
        "rows_per_forward": statistics.fmean(loop.batches),
        "memory_mib": memory_mib,
        "reserved_mib": reserved_mib,
        "accelerated_share": share,
        "warm_up_rounds": warm_up_rounds,
        "warm_up_s": warm_up_s,
        "is_warm": is_warm,
        "idle_share": idle_share(lambda: loop.answers(PROFILED_ROUNDS), bench.device),
    }
    loop.end()
    return answers, {**found, "window_ms": _window_ms(engine, cell, bench, frames) if cell.cached else None}


def opened(bench: Bench, cell: Cell, frames: Frames) -> Loop:
    """A loop over a new engine, with its first frames sent. The model runs as the cell says."""
    engine = bench.engine(cell)
    bench.of(cell).accelerators.use(cell.accelerator)
    loop = _loop(engine, cell, bench, frames)
    loop.open()
    return loop


def _loop(engine: Engine, cell: Cell, bench: Bench, frames: Frames) -> Loop:
    in_flight = (cell.steps or 1) if cell.order is Order.STREAM_BATCH else 1
    window = CacheWindow().sink_frames if cell.cached else 0
    return Loop(engine, specs(cell, bench.size), frames, in_flight=in_flight, warm_up_frames=window)


def _warm_up(loop: Loop, running: Running, cell: Cell) -> tuple[int, bool]:
    """Rounds until some in a row met nothing new, and whether that came: a shape that is seen first runs
    eager, and is captured when it comes again. With a bank some rows in a row write, with a cache the ring
    has to be full.
    """
    quiet_rounds = BankSettings().interval if cell.banked else 1
    least = quiet_rounds + (CacheWindow().frames if cell.cached else 1)
    quiet = 0
    for number in range(1, MOST_ROUNDS + 1):
        before = running.unready
        loop.answers(1)
        quiet = quiet + 1 if running.unready == before else 0
        if quiet >= quiet_rounds and number >= least:
            return number, True
    return MOST_ROUNDS, False


def _timed(loop: Loop, running: Running, rounds: int) -> tuple[list[Answer], float, float | None]:
    """Pictures, seconds, and the share of UNet calls that were accelerated."""
    before = running.accelerated, running.eager
    begin_s = time.perf_counter()
    answers = loop.answers(rounds)
    seconds = time.perf_counter() - begin_s
    accelerated, eager = running.accelerated - before[0], running.eager - before[1]
    return answers, seconds, accelerated / (accelerated + eager) if running.counts else None


def _window_ms(engine: Engine, cell: Cell, bench: Bench, frames: Frames) -> float:
    """Of a session that opens when its kernels have run: the second one."""
    taken_ms = []
    for _ in range(2):
        loop = _loop(engine, cell.alone, bench, frames)
        begin_s = time.perf_counter()
        loop.open()
        loop.answers(CacheWindow().sink_frames)
        taken_ms.append(1e3 * (time.perf_counter() - begin_s))
        loop.end()
    return taken_ms[-1]


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peaks_mib(device: torch.device) -> tuple[float, float | None]:
    """Allocated, reserved."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20, torch.cuda.max_memory_reserved() / 2**20
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, None
