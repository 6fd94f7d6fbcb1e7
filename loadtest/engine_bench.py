"""How fast the engine is, without any service around it: FPS, latency, memory and share of the bound.

    python -m loadtest.engine_bench --size sd15 --out loadtest/results/engine_sd15.json

Needs torch, diffusers and transformers only, no download and no server. Sessions are closed loops: each
sends its next frame when one comes back, so the engine is never idle and never overrun. Also checks that
many sessions together look as each alone, and what batching gains over the same rows run one by one.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rearview.contract.chain import OperatorKind, Span, chain
from rearview.contract.frame import LATENT, PICTURE
from rearview.contract.memories import BankSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.calibration import measure_costs
from rearview.engine.devices import pick_device, pick_dtype
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.build import MemoryOptions, build_memories
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Player, planes_of
from rearview.engine.rows import StepResult
from rearview.engine.scheduler import CostTable, Scheduler

from loadtest.engine_models import MAX_STEPS, SIZES, Size, Work, build, count_work
from loadtest.engine_report import device_name, setting, store

__all__ = ["Bench", "Cell", "Measured", "drive", "main", "percentile", "specs"]

MIN_GAIN = 0.95
"""Rows together must be at least so fast as the same rows one by one."""
MAX_GAP = {torch.float64: 1e-9, torch.float32: 1e-5}
CPU = torch.device("cpu")
FUSED = Span("fused", chain(MAX_STEPS))
MIXED_SESSIONS = 16
WARMUP_FRAMES = 2
MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting to measure."""

    memory: str
    """`plain` or `bank`."""
    steps: int
    sessions: int
    order: Order
    max_batch: int = 16


@dataclass(frozen=True, slots=True)
class Measured:
    """What a cell gave."""

    frames: int
    fps: float
    latency_p50_ms: float
    latency_p95_ms: float
    rows_per_forward: float
    """Of denoising."""
    memory_mib: float
    """Allocated at most on the GPU; on the CPU the process's resident memory."""
    tflops: float
    share_of_bound: float
    """Of the matrix product's speed on this device in this run."""


@dataclass
class Bench:
    """One model on one device."""

    size: Size
    device: torch.device
    dtype: torch.dtype
    frames: int
    """Per session and cell."""
    model: DiffusionModel
    work: Work
    peak_flops: float

    @classmethod
    def prepare(cls, size: Size, device: torch.device, dtype: torch.dtype, frames: int) -> Bench:
        """Build the model, count its work and measure the bound."""
        model = build(size, device, dtype)
        return cls(
            size, device, dtype, frames, model, count_work(model, size, device, dtype), _peak(device, dtype)
        )

    def measure(self, cell: Cell) -> Measured:
        """Run a cell after a warm-up."""
        sessions = specs(cell, self.size)
        costs = self._costs(cell, sessions[0])
        drive(self._engine(cell, costs), sessions, WARMUP_FRAMES, self._pictures, cell.order)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run = drive(self._engine(cell, costs), sessions, self.frames, self._pictures, cell.order)
        work = sum(self.work.of_frame(spec.settings.steps, spec.bank is not None) for spec in sessions)
        flops = work * self.frames / run.seconds
        return Measured(
            frames=len(run.latencies_s),
            fps=len(run.latencies_s) / run.seconds,
            latency_p50_ms=1e3 * percentile(run.latencies_s, 50),
            latency_p95_ms=1e3 * percentile(run.latencies_s, 95),
            rows_per_forward=statistics.fmean(run.batches),
            memory_mib=_memory_bytes(self.device) / 2**20,
            tflops=flops / 1e12,
            share_of_bound=flops / self.peak_flops,
        )

    def gain(self, memory: str, rounds: int) -> float:
        """Speed of 16 mixed sessions together over that of the same rows one by one: the median of rounds,
        in each of which both arms run, by turns first.
        """
        together = Cell(memory, 0, MIXED_SESSIONS, Order.BACK_TO_BACK)
        arms = (together, replace(together, max_batch=1))
        sessions = specs(together, self.size)
        engines = [self._costs(arm, sessions[0]) for arm in arms]

        def seconds(arm: int) -> float:
            return drive(self._engine(arms[arm], engines[arm]), sessions, self.frames, self._pictures).seconds

        ratios = []
        for number in range(rounds):
            taken = {arm: seconds(arm) for arm in ((0, 1) if number % 2 == 0 else (1, 0))}
            ratios.append(taken[1] / taken[0])
        return statistics.median(ratios)

    def gap(self, memory: str) -> float:
        """Largest difference of a clean latent between 16 mixed sessions together and each alone, as a share
        of the largest value.
        """
        cell = Cell(memory, 0, MIXED_SESSIONS, Order.BACK_TO_BACK)
        sessions = specs(cell, self.size)
        span = Span("denoise", tuple(o for o in chain(MAX_STEPS) if o.kind is OperatorKind.DENOISE))

        def outputs(of: Sequence[SessionSpec]) -> dict[tuple[str, int], torch.Tensor]:
            engine = self._engine(replace(cell, sessions=len(of)), CostTable(), span)
            left = drive(engine, of, 4, self._latents).outputs
            return {key: planes[LATENT] for key, planes in left.items()}

        together = outputs(sessions)
        alone = {key: value for spec in sessions for key, value in outputs([spec]).items()}
        assert together.keys() == alone.keys(), "a frame is missing"
        largest = max(float(latent.abs().max()) for latent in alone.values())
        return max(float((together[key] - alone[key]).abs().max()) for key in alone) / largest

    def _engine(self, cell: Cell, costs: CostTable, span: Span | None = None) -> Engine:
        span = span or FUSED
        memory = self._memory(cell, span)
        return Engine(span, self.model, memory, Scheduler(costs, cell.max_batch), order=cell.order)

    def _memory(self, cell: Cell, span: Span = FUSED) -> Memories:
        options = MemoryOptions(
            num_slots=cell.sessions,
            height=self.size.pixels,
            width=self.size.pixels,
            dtype=self.dtype,
            device=self.device,
            bank=BankSettings() if cell.memory == "bank" else None,
        )
        return build_memories(span, self.model.layouts, options)

    def _costs(self, cell: Cell, spec: SessionSpec) -> CostTable:
        image, latent = self._pictures("", 0), self._latents("", 0)
        payloads = [image if o.kind is OperatorKind.ENCODE else latent for o in FUSED.operators]
        sizes = sorted({1, cell.max_batch})
        memory = self._memory(replace(cell, sessions=1))
        return measure_costs(self.model, memory, FUSED, spec, payloads, batch_sizes=sizes)

    def _pictures(self, session_id: str, ordinal: int) -> Planes:
        shape = (self.size.pixels, self.size.pixels, 3)
        generator = _generator(session_id, ordinal)
        return {PICTURE: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}

    def _latents(self, session_id: str, ordinal: int) -> Planes:
        denoiser: Any = self.model._denoiser
        shape = (denoiser.unet.config.in_channels, self.size.pixels // 8, self.size.pixels // 8)
        exact = torch.promote_types(self.dtype, torch.float32)
        return {LATENT: torch.randn(shape, generator=_generator(session_id, ordinal), dtype=exact)}


def header(bench: Bench) -> str:
    """What is measured, and the table's heading."""
    work = bench.work
    return (
        f"{bench.size.name}, {bench.size.pixels}², {device_name(bench.device)}, {bench.dtype}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n"
        f"GFLOP: UNet {work.unet / 1e9:.3g}, with a bank {(work.unet + work.bank) / 1e9:.3g}, "
        f"VAE {work.encode / 1e9:.3g} + {work.decode / 1e9:.3g}; "
        f"bound {bench.peak_flops / 1e12:.3g} TFLOP/s\n"
        f"{'memory':7}{'steps':>6}{'sessions':>9}  {'order':13}{'FPS':>8}{'p50 ms':>9}{'p95 ms':>9}"
        f"{'rows':>6}{'MiB':>7}{'bound':>7}"
    )


def line(cell: Cell, m: Measured) -> str:
    """One line of the table."""
    return (
        f"{cell.memory:7}{cell.steps:6}{cell.sessions:9}  {cell.order.value:13}{m.fps:8.2f}"
        f"{m.latency_p50_ms:9.1f}{m.latency_p95_ms:9.1f}{m.rows_per_forward:6.1f}{m.memory_mib:7.0f}"
        f"{m.share_of_bound:7.1%}"
    )


def write(
    path: Path,
    bench: Bench,
    table: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
) -> None:
    """Store the result of `engine_bench`."""
    detail = {
        **setting(bench.size.pixels, bench.device, bench.dtype),
        "peak_tflops": bench.peak_flops / 1e12,
        "tflop": {name: value / 1e12 for name, value in asdict(bench.work).items()},
        "cells": table,
    }
    store(path, f"engine_{bench.size.name}", "engine_bench", checks, problems, detail)


Planes = Mapping[str, torch.Tensor]


@dataclass
class Run:
    """What driving an engine gave."""

    seconds: float
    latencies_s: list[float]
    batches: list[int]
    """Rows of each denoising forward."""
    outputs: dict[tuple[str, int], Planes]


def drive(
    engine: Engine,
    sessions: Sequence[SessionSpec],
    frames: int,
    planes: Callable[[str, int], Planes],
    order: Order = Order.BACK_TO_BACK,
) -> Run:
    """Send `frames` of every session, so many in flight as the engine's `order` needs, until all are back."""
    run = Run(0.0, [], [], {})

    def watch(engine: Engine, result: StepResult) -> None:
        if result.batch is not None and result.batch.failed:
            raise RuntimeError("a forward has failed: see the log")
        if result.batch is not None and result.batch.kind is OperatorKind.DENOISE:
            run.batches.append(result.batch.rows)

    player = Player(engine, watch=watch)
    sent = {spec.session_id: 0 for spec in sessions}
    started: dict[tuple[str, int], float] = {}
    contents = {(name, n): planes(name, n) for name in sent for n in range(frames)}

    def send(name: str) -> None:
        if (ordinal := sent[name]) < frames:
            started[name, ordinal] = time.monotonic()
            player.admit(name, ordinal, contents[name, ordinal])
            sent[name] += 1
        else:
            engine.flush(name)

    for spec in sessions:
        engine.open(spec)
    begin_s = time.monotonic()
    for spec in sessions:
        for _ in range(spec.settings.steps if order is Order.STREAM_BATCH else 1):
            send(spec.session_id)
    for frame in player.left():
        key = frame.session_id, frame.ordinal
        run.latencies_s.append(time.monotonic() - started[key])
        run.outputs[key] = planes_of(frame)
        send(frame.session_id)
    run.seconds = time.monotonic() - begin_s
    assert len(run.outputs) == frames * len(sessions), "not every frame came back"
    return run


def specs(cell: Cell, size: Size) -> list[SessionSpec]:
    """The sessions of a cell: prompts and seeds differ; `steps` 0 means mixed steps and strengths too."""
    bank = BankSettings() if cell.memory == "bank" else None
    return [
        SessionSpec(
            f"s{i}",
            size.pixels,
            size.pixels,
            MAX_STEPS,
            Settings(
                prompt=f"prompt {i}",
                strength=0.6 if cell.steps else 0.4 + 0.1 * (i % 5),
                steps=cell.steps or 1 + i % MAX_STEPS,
                seed=i,
            ),
            bank=bank,
        )
        for i in range(cell.sessions)
    ]


def cells(size: Size, max_sessions: int) -> Iterator[Cell]:
    """Every setting; fewer of them for the smoke size."""
    steps = (1, 4) if size.name == "smoke" else (1, 2, 3, 4)
    counts = (1, 16) if size.name == "smoke" else (1, 2, 4, 8, 16)
    for memory, count, sessions, order in product(("plain", "bank"), steps, counts, Order):
        is_same = count == 1 and order is Order.STREAM_BATCH  # One step has no order.
        if sessions <= max_sessions and not is_same:
            yield Cell(memory, count, sessions, order)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _generator(session_id: str, ordinal: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(session_id.encode()) * 1000 + ordinal)


def _peak(device: torch.device, dtype: torch.dtype, repeats: int = 8) -> float:
    """FLOP/s of the largest matrix product, the best of some."""
    side = MATMUL_SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(repeats):
        _wait(device)
        begin_s = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - begin_s)
    return 2.0 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; exit code 1 if the pictures differ or batching costs speed."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    dtype = pick_dtype("auto" if device.type == "cuda" else options.dtype, device)
    bench = Bench.prepare(SIZES[options.size], device, dtype, options.frames)
    print(header(bench), flush=True)
    table = []
    for cell in () if options.check_only else cells(bench.size, options.max_sessions):
        measured = bench.measure(cell)
        table.append({**asdict(cell), "order": cell.order.value, **asdict(measured)})
        print(line(cell, measured), flush=True)
    checks = _checks(bench, options.rounds)
    for check in checks:
        print(f"{check['what']} ({check['setting']}): {check['value']:.3g}", flush=True)
    problems = [f"{c['what']} ({c['setting']})" for c in checks if not _is_met(c)]
    if options.out is not None:
        write(options.out, bench, table, checks, problems)
    for problem in problems:
        print(f"missed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.engine_bench", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="smoke")
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is any, else the CPU")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="on the CPU")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--frames", type=int, default=4, help="per session and setting")
    parser.add_argument("--max-sessions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with rows one by one")
    parser.add_argument("--check-only", action="store_true", help="no table")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args(arguments)


def _checks(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    """As figures with targets (`loadtest/figures.py`)."""
    named = f"{bench.size.name}, {bench.size.pixels}², {MIXED_SESSIONS} sessions, mixed steps and prompts"
    found = [
        _figure("together over one by one", f"{named}, {memory}", bench.gain(memory, rounds), "", MIN_GAIN)
        for memory in ("plain", "bank")
    ]
    if bench.size.name != "smoke":
        return found
    for memory, dtype in (("plain", torch.float32), ("bank", torch.float64)):
        exact = Bench(
            bench.size, CPU, dtype, bench.frames, build(bench.size, CPU, dtype), bench.work, bench.peak_flops
        )
        setting = f"{named}, {memory}, {str(dtype).removeprefix('torch.')}"
        figure = _figure(
            "largest gap to each alone, of the largest value", setting, exact.gap(memory), "", MAX_GAP[dtype]
        )
        found.append({**figure, "at_most": True})
    return found


def _figure(what: str, setting: str, value: float, unit: str, target: float) -> dict[str, Any]:
    return {
        "what": what,
        "setting": setting,
        "value": value,
        "unit": unit,
        "target": target,
        "at_most": False,
    }


def _is_met(figure: dict[str, Any]) -> bool:
    value, target = figure["value"], figure["target"]
    return bool(value <= target if figure["at_most"] else value >= target)


if __name__ == "__main__":
    sys.exit(main())
