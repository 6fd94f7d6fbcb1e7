"""How fast the engine is, without any service around it, and others' code beside it on the same networks:

    PYTHONPATH=services python -m loadtest.engine_bench --budget 500
    PYTHONPATH=services:. python loadtest/engine_bench.py --only plain "8 sessions"

FPS and latency from host bytes to host bytes, memory, share of the bound, the device's idle time and the
share of UNet calls that were accelerated, by method, steps, sessions, order and accelerator. Every cell's
pictures are compared with those of the plain path, on random frames; exit code 1 if any deviate, or if
anything failed.

Needs torch, diffusers and transformers only, no download and no server. The most important cells come first,
and the result file is written anew after each: a run that is cut off keeps what it has. `--budget` ends it in
time; `--add` goes on where one has ended. What Inductor compiles is kept where TORCHINDUCTOR_CACHE_DIR says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rearview.engine.devices import pick_device, pick_dtype

from loadtest.device_time import idle_share
from loadtest.engine_cells import Bench, Cell
from loadtest.engine_checks import Reference
from loadtest.engine_loop import Frames
from loadtest.engine_measure import measure
from loadtest.engine_models import SIZES
from loadtest.engine_plan import Job, jobs, matching
from loadtest.engine_report import device_name, setting, store
from loadtest.engine_targets import figures, problems
from loadtest.parts import Part
from loadtest.peers import DIFFUSERS, STREAM_DIFFUSION, Peer, diffusers_loop, measure_peer
from loadtest.stream_diffusion import stream_diffusion

__all__ = ["Budget", "Run", "main", "short_name"]

RESULTS = Path(__file__).resolve().parent / "results"
GUESS_S = {"eager": 15.0, "graphs": 20.0, "compiled": 120.0, "compiled graphs": 120.0}
"""Seconds of a job, until there was one like it."""


class Budget:
    """What still fits into the time that is left."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds`: from now on. None: all the time in the world."""
        self._clock, self._begin_s = clock, clock()
        self._seconds = seconds
        self._taken_s: dict[str, list[float]] = {}

    def fits(self, job: Job) -> bool:
        """Judged by those before it with the same accelerator."""
        if self._seconds is None:
            return True
        taken_s = self._taken_s.get(job.accelerator)
        expected_s = statistics.median(taken_s) if taken_s else GUESS_S[job.accelerator]
        return self._clock() - self._begin_s + expected_s <= self._seconds

    def took(self, job: Job, seconds: float) -> None:
        """Learn from a job that has run."""
        self._taken_s.setdefault(job.accelerator, []).append(seconds)


@dataclass
class Run:
    """The rows of a run, and its file."""

    bench: Bench
    out: Path
    rounds: int
    folder: Path | None = None
    """StreamDiffusion's."""
    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name."""

    def __post_init__(self) -> None:
        self._frames = Frames(self.bench.size.pixels)
        self._reference = Reference(self.bench, self._frames)
        # The profiler must know the device before graphs are captured, or it does not see what is in them.
        idle_share(lambda: None, self.bench.device)

    def read(self) -> None:
        """Take over the rows of an earlier run on the same model and device. ValueError if it was another."""
        if not self.out.exists():
            return
        detail = json.loads(self.out.read_text(encoding="utf-8"))["detail"]
        here, there = self._setting(), {name: detail.get(name) for name in self._setting()}
        if here != there:
            raise ValueError(f"{self.out} is of {there}, not of {here}")
        self.rows = {row["name"]: row for row in detail["rows"]}

    def do(self, job: Job) -> Mapping[str, Any]:
        """Measure, and write what there is by now."""
        part = Part(job.name)
        part.run(partial(self._fill, job), self.bench.device)
        row = {
            "name": job.name,
            "kind": "cell" if isinstance(job, Cell) else "peer",
            **_fields(job),
            "seconds": part.seconds,
            **part.figures,
            "problem": part.figures.get("problem", "") if part.passed else _last_line(part.failure),
            "failure": part.failure,
        }
        self.rows[job.name] = row
        self.write()
        return row

    def write(self) -> None:
        """The result file, of all rows."""
        size, rows = self.bench.size, list(self.rows.values())
        where = self._setting()
        named = f"{size.name}, {size.pixels}², {where['dtype']}, {where['device']}"
        detail = {
            **where,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "diffusers": version("diffusers"),
            "peak_tflops": self.bench.peak_flops / 1e12,
            "rounds": self.rounds,
            "rows": rows,
        }
        found = figures(rows, size.name, self.bench.device.type, named)
        store(self.out, self.out.stem, "engine_bench", found, problems(rows), detail)

    def _setting(self) -> dict[str, Any]:
        bench = self.bench
        return {"size": bench.size.name, **setting(bench.size.pixels, bench.device, bench.dtype)}

    def _fill(self, job: Job, row: dict[str, Any]) -> None:
        if isinstance(job, Peer):
            made = (
                diffusers_loop(self.bench, job)
                if job.who == DIFFUSERS
                else stream_diffusion(self.bench, job, self._given())
            )
            row |= measure_peer(self.bench, job, made, partial(self._frames.bytes_of, "s0"), self.rounds)
            return
        if not self.bench.fits(job):
            need = job.sessions * self.bench.session_bytes(job) / 2**30
            raise MemoryError(f"its sessions remember {need:.0f} GiB, for which the device has no room")
        measured = measure(self.bench, job, self._frames, self._reference, self.rounds)
        row |= {**measured.as_row(), "problem": measured.check.problem}

    def _given(self) -> Path:
        assert self.folder is not None, "there is no folder of StreamDiffusion's"
        return self.folder


def short_name(device: str) -> str:
    """Of a device, as in a file's name: its model alone."""
    words = device.lower().replace("nvidia", "").replace("geforce", "").split()
    numbered = next((i for i, word in enumerate(words) if any(map(str.isdigit, word))), len(words) - 1)
    return "_".join(words[: numbered + 1]) or "device"


def _fields(job: Job) -> dict[str, Any]:
    found = asdict(job)
    return {**found, "order": job.order.value} if isinstance(job, Cell) else found


def _last_line(failure: str | None) -> str:
    return (failure or "").splitlines()[-1]


def _told(row: Mapping[str, Any]) -> str:
    if "fps" not in row:
        return f"{row['seconds']:6.1f} s  {row['name']}: {row['problem']}"
    idle, check = row.get("idle_share"), row.get("check")
    more = [
        f"idle {idle:.1%}" if idle is not None else "",
        f"accelerated {row['accelerated_share']:.1%}" if row.get("accelerated_share") is not None else "",
        f"{check['rms_levels']:.2g} levels off" if check else "",
        row["problem"],
    ]
    return (
        f"{row['seconds']:6.1f} s  {row['name']}: {row['fps']:.2f} FPS, p50 {row['latency_p50_ms']:.1f} ms,"
        f" p95 {row['latency_p95_ms']:.1f}, bound {row['share_of_bound']:.1%} "
        + ", ".join(filter(None, more))
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, tell on stderr, write after each row. Returns the exit code."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    dtype = pick_dtype("auto" if device.type == "cuda" else options.dtype, device)
    size = SIZES[options.size or ("sd15" if device.type == "cuda" else "smoke")]
    budget = Budget(options.budget)
    bench = Bench.prepare(size, device, dtype)
    out = options.out or RESULTS / f"engine_{short_name(device_name(device))}.json"
    run = Run(bench, out, options.rounds, options.streamdiffusion)
    if options.add:
        run.read()
    peers = [DIFFUSERS, *([STREAM_DIFFUSION] if options.streamdiffusion else [])]
    planned = [
        job for job in matching(jobs(size, device, peers=peers), options.only) if job.name not in run.rows
    ]
    if options.list:
        print("\n".join(job.name for job in planned))
        return 0
    left_out = 0
    for job in planned:
        if not budget.fits(job):
            left_out += 1
            continue
        row = run.do(job)
        budget.took(job, row["seconds"])
        print(_told(row), file=sys.stderr, flush=True)
    found = problems(list(run.rows.values()))
    print(f"{len(run.rows)} rows in {out}, {left_out} left out, {len(found)} problems", file=sys.stderr)
    return 1 if found else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.engine_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=SIZES, help="default: sd15 on a GPU, smoke on a CPU")
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is any, else the CPU")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="on the CPU")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--rounds", type=int, default=8, help="pictures of each session that are timed")
    parser.add_argument("--budget", type=float, help="seconds, after which nothing new is begun")
    parser.add_argument("--only", nargs="+", default=[], help="those in whose names all of these words are")
    parser.add_argument("--add", action="store_true", help="keep the file's rows, and do what it lacks")
    parser.add_argument("--list", action="store_true", help="say what would be measured, in that order")
    parser.add_argument("--streamdiffusion", type=Path, metavar="FOLDER", help="a copy of its repository")
    parser.add_argument("--out", type=Path, help="default: loadtest/results/engine_<device>.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
