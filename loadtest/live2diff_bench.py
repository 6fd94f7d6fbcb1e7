"""How fast Live2Diff is in the engine, on this machine: a step with a temporal cache, and a warm-up.

    python -m loadtest.live2diff_bench --size sd15 --out loadtest/results/engine_live2diff.json

Times gather, forward and scatter of one denoising step as the engine runs them, for some sessions at a time,
beside the same step without a cache; the warm-up of one session; and how far what a step predicts is off
with a cache of fewer bits. On a GPU it then runs the tests that need one: there equal means equal within the
device's own rounding. Needs what `engine_bench` needs, and pytest for those tests.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.frame import LATENT, Frame
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.course import Course
from rearview.engine.devices import pick_device, pick_dtype
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.protocol import Views
from rearview.engine.rows import FrameInFlight, Row
from torch import Tensor

from loadtest.engine_models import SIZES, Size, build
from loadtest.engine_report import device_name, setting, store

__all__ = ["GPU_TESTS", "Bench", "Timing", "main"]

SESSIONS = (1, 2, 4, 8)
STORAGES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
STEP = Operator(OperatorKind.DENOISE)
PRECISION_FRAMES = 24
"""Frames after the warm-up whose predictions are compared: three times round the ring."""
GPU_TESTS = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/engine")


@dataclass(frozen=True, slots=True)
class Timing:
    """One kind of step."""

    kind: str
    """`plain`: without a cache. `cached`: with a full one. `warm-up`: all its first frames together."""
    storage: str
    sessions: int
    ms: float
    """Of the whole forward with its commit, the median."""
    cache_mib: float
    """That all of these sessions keep for one step."""


class Bench:
    """One model with motion modules on one device."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype, repeats: int = 5) -> None:
        self.size, self.device, self.dtype = size, device, dtype
        self.window = CacheWindow()
        self._repeats = repeats
        self._model = build(size, device, dtype, motion=True)
        assert self._model.layouts.cache is not None, f"{size.name} has no motion modules"

    @property
    def storages(self) -> list[torch.dtype]:
        """Of what a cache may keep: nothing wider than what the networks compute."""
        return [each for each in STORAGES if each is self.dtype or each.itemsize < self.dtype.itemsize]

    def timings(self, max_sessions: int) -> Iterator[Timing]:
        """Plain and cached steps of 1, 2, 4 and 8 sessions, then the warm-up of one."""
        for sessions in (count for count in SESSIONS if count <= max_sessions):
            yield self._plain(sessions)
            for storage in self.storages:
                yield self._cached(sessions, storage)
        yield self._warm_up()

    def errors(self) -> dict[str, float]:
        """By storage the RMS difference of clean latents from those with a cache in the networks' type, as
        a share of their own RMS: one session, one step, frames after the warm-up.
        """
        exact = self._predictions(self.dtype)
        size = exact.square().mean().sqrt()
        return {
            _name(each): float((self._predictions(each) - exact).square().mean().sqrt() / size)
            for each in self.storages[1:]
        }

    def _plain(self, sessions: int) -> Timing:
        rows = [self._row(spec, 0) for spec in _specs(self.size, sessions, cached=False)]
        return Timing(
            "plain", "", sessions, self._milliseconds(lambda: self._model.forward(rows, Views())), 0.0
        )

    def _cached(self, sessions: int, storage: torch.dtype) -> Timing:
        memory = self._memory(sessions, storage)
        specs = _specs(self.size, sessions)
        for spec in specs:
            memory.allocate(spec)
            self._run(memory, [self._window_row(spec)])
            for n in range(self.window.ring_frames):
                self._run(memory, [self._row(spec, self.window.sink_frames + n)])
        rows = [self._row(spec, self.window.frames) for spec in specs]
        taken = self._milliseconds(lambda: self._run(memory, rows))
        return Timing("cached", _name(storage), sessions, taken, _mebibytes(memory, specs))

    def _warm_up(self) -> Timing:
        memory, (spec,) = self._memory(1, self.dtype), _specs(self.size, 1)
        memory.allocate(spec)
        row = self._window_row(spec)
        taken = self._milliseconds(lambda: self._run(memory, [row]))
        return Timing("warm-up", _name(self.dtype), 1, taken, _mebibytes(memory, [spec]))

    def _predictions(self, storage: torch.dtype) -> Tensor:
        memory, (spec,) = self._memory(1, storage), _specs(self.size, 1)
        memory.allocate(spec)
        self._run(memory, [self._window_row(spec)])
        ordinals = range(self.window.sink_frames, self.window.sink_frames + PRECISION_FRAMES)
        return torch.stack([self._run(memory, [self._row(spec, n)])[0][LATENT] for n in ordinals])

    def _run(self, memory: Memories, rows: Sequence[Row]) -> Sequence[Mapping[str, Tensor]]:
        forward = self._model.forward(rows, memory.gather(rows))
        memory.scatter(rows, forward.updates)
        return forward.outputs

    def _memory(self, sessions: int, storage: torch.dtype) -> Memories:
        options = MemoryOptions(
            num_slots=sessions,
            height=self.size.pixels,
            width=self.size.pixels,
            dtype=self.dtype,
            device=self.device,
            cache=CacheOptions(self.window, storage),
        )
        return build_memories(Span("step", (STEP,)), self._model.layouts, options)

    def _row(self, spec: SessionSpec, ordinal: int) -> Row:
        came = Frame(spec.session_id, ordinal, {LATENT: self._latent(ordinal)})
        frame = FrameInFlight(spec, spec.settings, came, came.planes, Course(spec.settings, [STEP]))
        return Row((frame,), STEP, "step", float("inf"))

    def _window_row(self, spec: SessionSpec) -> Row:
        frames = tuple(self._row(spec, n).frame for n in range(self.window.sink_frames))
        return Row(frames, STEP, "warm-up", float("inf"), warms_up=True)

    def _latent(self, ordinal: int) -> Tensor:
        """Of a scene that changes a little from frame to frame."""
        denoiser: Any = self._model._denoiser
        side = self.size.pixels // 8
        scene, change = (
            torch.randn(
                denoiser.unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(seed)
            )
            for seed in (0, 1 + ordinal)
        )
        return scene + 0.3 * change

    def _milliseconds(self, run: Callable[[], object]) -> float:
        """The median of some runs, after one that does not count."""
        taken = []
        for _ in range(self._repeats + 1):
            self._wait()
            begin_s = time.perf_counter()
            run()
            self._wait()
            taken.append(1e3 * (time.perf_counter() - begin_s))
        return statistics.median(taken[1:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _specs(size: Size, sessions: int, *, cached: bool = True) -> list[SessionSpec]:
    settings = Settings("prompt", 0.6, 1)
    cache = CacheSettings() if cached else None
    return [SessionSpec(f"s{i}", size.pixels, size.pixels, 1, settings, cache=cache) for i in range(sessions)]


def _mebibytes(memory: Memories, specs: Sequence[SessionSpec]) -> float:
    return sum(memory.bytes_per_session(spec) for spec in specs) / 2**20


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _line(timing: Timing) -> str:
    return (
        f"{timing.kind:8}{timing.storage:15}{timing.sessions:9}{timing.ms:10.2f}"
        f"{timing.ms / timing.sessions:13.2f}{timing.cache_mib:10.1f}"
    )


def _figures(bench: Bench, timings: Sequence[Timing], errors: dict[str, float]) -> list[dict[str, Any]]:
    """Without targets: what they mean depends on the machine."""
    named = f"{bench.size.name}, {bench.size.pixels}², {_name(bench.dtype)}, {device_name(bench.device)}"

    def figure(what: str, of: str, value: float, unit: str) -> dict[str, Any]:
        found = {"what": what, "setting": f"{named}, {of}", "value": value, "unit": unit}
        return {**found, "target": None, "at_most": False}

    found = [
        figure(f"Live2Diff, {t.kind} step", f"{t.sessions} sessions, cache {t.storage or 'none'}", t.ms, "ms")
        for t in timings
    ]
    return found + [
        figure("Live2Diff, error of a step", f"cache {storage}", 100 * error, "%")
        for storage, error in errors.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; exit code 1 if the tests on the GPU fail."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    dtype = pick_dtype("auto" if device.type == "cuda" else "float32", device)
    bench = Bench(SIZES[options.size], device, dtype, options.repeats)
    print(f"{bench.size.name}, {bench.size.pixels}², {device_name(device)}, {dtype}, window {bench.window}")
    print(f"{'step':8}{'cache':15}{'sessions':>9}{'ms':>10}{'ms/session':>13}{'MiB':>10}", flush=True)
    timings = []
    for timing in bench.timings(options.max_sessions):
        timings.append(timing)
        print(_line(timing), flush=True)
    errors = bench.errors()
    for storage, error in errors.items():
        print(f"error of a step with the cache in {storage}: {100 * error:.2g}%", flush=True)
    problems = []
    if device.type == "cuda" and not options.no_tests:
        del bench._model  # The tests get the device's memory.
        torch.cuda.empty_cache()
        if subprocess.run(GPU_TESTS, check=False).returncode:
            problems.append("the tests on the GPU fail: " + " ".join(GPU_TESTS[1:]))
    if options.out is not None:
        detail = {**setting(bench.size.pixels, device, dtype), "window": asdict(bench.window)}
        detail |= {"timings": [asdict(timing) for timing in timings], "errors": errors}
        figures = _figures(bench, timings, errors)
        store(options.out, "engine_live2diff", "live2diff_bench", figures, problems, detail)
    for problem in problems:
        print(f"missed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.live2diff_bench", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="smoke")
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is any, else the CPU")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="of each step")
    parser.add_argument("--max-sessions", type=int, default=max(SESSIONS))
    parser.add_argument("--no-tests", action="store_true", help="on a GPU: do not run its tests")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
