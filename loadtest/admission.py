"""What those who cannot be served cost those who are: refused opens, and a tenant far over its quota.

    python -m loadtest.admission

Paced streams run alone and beside a flood, in turn. The first service is full of them, and 200 opens per
second must be refused. In the second a tenant has one slot more, and sends ten times its quota in large
frames with four controls after each. In the third, which has a real model, its controls switch LoRAs. Beside
a tenant within its quota they run too: what that costs them it was admitted for. Floods come from a process
of its own with a lower priority: what a client costs is not the server's.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from rearview.config import ServiceConfig, load_config
from rearview.contract.stream import DropPolicy
from rearview.samples import sample_clip_path
from rich.console import Console

from loadtest.adapters import random_adapters
from loadtest.figures import Figure, ResultFile, show
from loadtest.floods import Greedy, Refusals, Sending, Target, flood_frames, flood_opens
from loadtest.generator import generate
from loadtest.payloads import JpegFrames, OpaquePayloads, Payloads, clip_frames, clip_jpegs
from loadtest.plan import LoadPlan, OpenLoop
from loadtest.results import LoadResult
from loadtest.service import fused_config, pipeline_config, running

__all__ = ["flood_detail", "main"]

CUT = "encode+denoise-0+denoise-1|decode"
SETTLE_S = 1.5
"""Paced streams hold their slots, and are not measured, before a flood begins."""
MAX_REFUSAL_MS = 100.0
SHIFT, SHIFT_MS = 0.10, 5.0
"""By how much the p99 of running streams may move: the larger of the two."""
OVER_QUOTA = 10
LARGE_BYTES = 1_000_000
CONTROLS = 4
"""After each frame of the flood."""
LORAS = ("ink", "oil")
PACED, GREEDY = "paced", "greedy"


@dataclass(frozen=True, slots=True)
class Served:
    """A service, and the streams that it serves whatever else is asked of it."""

    content: Mapping[str, Any]
    """Of its configuration."""
    streams: int
    fps: float
    payloads: Payloads
    setting: str
    """In words."""
    size: int = 256

    def config(self, folder: Path) -> ServiceConfig:
        """With its tenants: one for the paced streams, and a greedy one with one session of as many FPS."""
        path = folder / "tenants.yaml"
        limits: Mapping[str, Mapping[str, float]] = {
            PACED: {"max_streams": self.streams, "max_frames_per_s": 2 * self.fps * self.streams},
            GREEDY: {"max_streams": 1, "max_frames_per_s": self.fps},
        }
        tenants = [
            {"name": name, "token_sha256": hashlib.sha256(name.encode()).hexdigest(), **own}
            for name, own in limits.items()
        ]
        path.write_text(yaml.safe_dump(tenants), encoding="utf-8")
        return load_config({**self.content, "tenants_file": str(path)})

    def paced(self, address: str, seconds: float) -> LoadResult:
        """Its streams, measured for so long."""
        pace, warm_up = OpenLoop(self.fps, SETTLE_S + seconds), round(SETTLE_S * self.fps)
        plan = LoadPlan(address, pace, self.streams, DropPolicy.LOSSLESS, warmup_frames=warm_up, token=PACED)
        return generate(replace(plan, width=self.size, height=self.size), self.payloads)


@dataclass(frozen=True, slots=True)
class Pair:
    """Paced streams alone, and right after it beside a flood."""

    alone: LoadResult
    beside: LoadResult
    flood: Refusals | Greedy
    within: LoadResult | None = None
    """Between the two: beside the same tenant within its quota."""

    @property
    def runs(self) -> Sequence[LoadResult]:
        """All of them."""
        return [run for run in (self.alone, self.within, self.beside) if run is not None]


def main(
    streams: Annotated[int, typer.Option(min=1, help="Paced streams, as many as there are slots.")] = 4,
    opens: Annotated[float, typer.Option(min=1.0, help="Opens per second.")] = 200.0,
    seconds: Annotated[float, typer.Option(min=2.0, help="Length of each run.")] = 6.0,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each kind, in turn.")] = 5,
    size: Annotated[int, typer.Option(min=16, help="Bytes of a paced frame.")] = 50_000,
) -> None:
    """Measure refusals, and what they and a greedy tenant cost running streams."""
    console, command = Console(), f"python -m loadtest.admission --streams {streams} --opens {opens:g}"
    full, roomy = (_null(streams, slots, size) for slots in (streams, streams + 1))
    with _floods() as pool, tempfile.TemporaryDirectory() as folder:
        crowd = Crowd(console, pool, seconds, runs)
        opened = crowd.opens(full, opens)
        large = Sending(OVER_QUOTA * roomy.fps, roomy.fps, bytes(LARGE_BYTES), controls=CONTROLS)
        flooded = crowd.frames(roomy, large)
        styled = _styled(Path(folder))
        image, format = styled.payloads.image(0, 0), styled.payloads.format
        sending = Sending(
            OVER_QUOTA * styled.fps, styled.fps, image, format, styled.size, CONTROLS, adapters=LORAS
        )
        switched = crowd.frames(styled, sending)
    quota = f"{OVER_QUOTA} x quota"
    figures = [*_refusal_figures(opened, f"{full.setting}, {opens:g} opens/s")]
    figures += _shift(opened, full.setting, "opens")
    figures += _shift(flooded, f"{roomy.setting}, {LARGE_BYTES // 1000} kB", quota)
    figures += _shift(switched, styled.setting, f"{quota} of LoRA switches")
    kinds = {"opens": opened, "quota": flooded, "loras": switched}
    result = ResultFile.of(
        "admission", f"{command} --seconds {seconds:g}", figures, _detail(kinds), _problems(kinds)
    )
    show(result, result.write(), console)


def _null(streams: int, slots: int, size: int) -> Served:
    """Frames that come back as they are: what is left is the service's own work."""
    fps, content = 30.0, pipeline_config("null", CUT, slots=slots).model_dump(mode="json")
    setting = f"null model, 2 spans, {streams} streams x {fps:g} FPS, {size // 1000} kB"
    return Served(content, streams, fps, OpaquePayloads(size), setting)


def _styled(folder: Path) -> Served:
    """A model with LoRAs, and streams that leave most of its time to others."""
    streams, fps, size = 3, 4.0, 64
    content = fused_config("pocket", threads=1, max_steps=1).model_dump(mode="json")
    model = {**content["model"], "width": size, "height": size}
    model["adapters"] = random_adapters("pocket", folder, LORAS)
    clip = clip_jpegs(clip_frames(sample_clip_path(), width=size, height=size, limit=30))
    setting = f"pocket {size}x{size}, 1 step, {streams} streams x {fps:g} FPS"
    return Served({**content, "model": model}, streams, fps, JpegFrames(clip), setting, size)


@dataclass(frozen=True)
class Crowd:
    """Runs floods against services, each beside paced streams that ran alone right before."""

    console: Console
    pool: ProcessPoolExecutor
    seconds: float
    runs: int

    def opens(self, served: Served, opens_per_s: float) -> list[Pair]:
        """Opens of a service that is full."""
        with self._running(served) as (paced, target):
            pairs = []
            for _ in range(self.runs):
                alone, flood = paced(), self.pool.submit(flood_opens, target, opens_per_s)
                pairs.append(Pair(alone, paced(), flood.result()))
        return pairs

    def frames(self, served: Served, sending: Sending) -> list[Pair]:
        """A tenant that sends what it likes; and before each flood the same within its quota."""
        modest = replace(sending, frames_per_s=sending.declared_per_s, controls=0)
        with self._running(served) as (paced, target):
            pairs = []
            for _ in range(self.runs):
                alone, neighbour = paced(), self.pool.submit(flood_frames, target, modest)
                within, _ = paced(), neighbour.result()
                flood = self.pool.submit(flood_frames, target, sending)
                pairs.append(Pair(alone, paced(), flood.result(), within))
        return pairs

    @contextmanager
    def _running(self, served: Served) -> Iterator[tuple[partial[LoadResult], Target]]:
        self.console.print("starting the service", markup=False)
        with tempfile.TemporaryDirectory() as folder, running(served.config(Path(folder))) as service:
            target = Target(service.address, GREEDY, SETTLE_S, self.seconds)
            yield partial(served.paced, service.address, self.seconds), target


@contextmanager
def _floods() -> Iterator[ProcessPoolExecutor]:
    """One process that has imported what it needs, and gives way to others."""
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=os.nice, initargs=(10,)
    ) as pool:
        pool.submit(os.getpid).result()
        yield pool


def _p99_ms(result: LoadResult) -> float:
    return result.histograms.percentile_ms("latency", 99)


def _shift(pairs: Sequence[Pair], setting: str, beside: str) -> list[Figure]:
    """The median of the pairs' differences, against what is allowed at the median p99 alone."""
    alone_ms = statistics.median(_p99_ms(pair.alone) for pair in pairs)
    beside_ms = statistics.median(_p99_ms(pair.beside) for pair in pairs)
    shift_ms = statistics.median(_p99_ms(pair.beside) - _p99_ms(pair.alone) for pair in pairs)
    allowed_ms = max(SHIFT * alone_ms, SHIFT_MS)
    within = [_p99_ms(pair.within) for pair in pairs if pair.within is not None]
    admitted = f"p99 of running streams, beside the tenant of {beside} within its quota"
    return [
        Figure("p99 of running streams, alone", setting, alone_ms, "ms"),
        *(Figure(admitted, setting, statistics.median(each), "ms") for each in [within] if each),
        Figure(f"p99 of running streams, beside {beside}", setting, beside_ms, "ms"),
        Figure(f"their p99 moves by, beside {beside}", setting, shift_ms, "ms", allowed_ms, at_most=True),
    ]


def _refusal_figures(pairs: Sequence[Pair], setting: str) -> list[Figure]:
    tails_ms = [1000 * _percentile(_refusals(pair).seconds, 99) for pair in pairs]
    every_s = [seconds for pair in pairs for seconds in _refusals(pair).seconds]
    median_ms = statistics.median(tails_ms)
    return [
        Figure("open refused, p50", setting, 1000 * _percentile(every_s, 50), "ms"),
        Figure("open refused, p99", setting, median_ms, "ms", MAX_REFUSAL_MS, at_most=True),
    ]


def _refusals(pair: Pair) -> Refusals:
    assert isinstance(pair.flood, Refusals), "another flood"
    return pair.flood


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


def _detail(kinds: Mapping[str, Sequence[Pair]]) -> Mapping[str, Any]:
    return {
        name: [
            {
                "alone_p99_ms": round(_p99_ms(pair.alone), 2),
                **({} if pair.within is None else {"within_p99_ms": round(_p99_ms(pair.within), 2)}),
                "beside_p99_ms": round(_p99_ms(pair.beside), 2),
                "flood": flood_detail(pair.flood),
            }
            for pair in pairs
        ]
        for name, pairs in kinds.items()
    }


def flood_detail(flood: Refusals | Greedy) -> Mapping[str, Any]:
    """What a flood did, for the result file."""
    if isinstance(flood, Refusals):
        counts = {"opens": len(flood.seconds), "without_retry": flood.without_retry}
        return {**counts, "reasons": dict(flood.reasons)}
    return {"frames": flood.frames, "controls": flood.controls, "ends": dict(flood.ends)}


def _problems(kinds: Mapping[str, Sequence[Pair]]) -> list[str]:
    problems = {
        each for pairs in kinds.values() for pair in pairs for run in pair.runs for each in run.problems
    }
    refusals = [_refusals(pair) for pair in kinds["opens"]]
    if wrong := sum(sum(each.reasons.values()) - each.reasons["NO_CAPACITY"] for each in refusals):
        problems.add(f"{wrong} opens ended otherwise than with NO_CAPACITY")
    if silent := sum(each.without_retry for each in refusals):
        problems.add(f"{silent} refusals did not say when to try again")
    return sorted(problems)


if __name__ == "__main__":
    typer.run(main)
