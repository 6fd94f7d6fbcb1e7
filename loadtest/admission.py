"""What those who cannot be served cost those who are: refused opens, and a tenant far over its quota.

    python -m loadtest.admission

Paced streams of a null model run alone and beside a flood, in turn. The first service is full of them, and
200 opens per second must be refused. In the second a tenant has one slot more, and sends ten times its quota
in large frames with four controls after each. Floods come from a process of its own with a lower priority:
what a client costs is not the server's.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from rearview.config import ServiceConfig, load_config
from rearview.contract.stream import DropPolicy
from rich.console import Console

from loadtest.figures import Figure, ResultFile, show
from loadtest.floods import Greedy, Refusals, Target, flood_frames, flood_opens
from loadtest.generator import generate
from loadtest.payloads import OpaquePayloads
from loadtest.plan import LoadPlan, OpenLoop
from loadtest.results import LoadResult
from loadtest.service import pipeline_config, running

__all__ = ["main"]

CUT = "encode+denoise-0+denoise-1|decode"
FPS = 30.0
SETTLE_S = 1.5
"""Paced streams hold their slots, and are not measured, before a flood begins."""
MAX_REFUSAL_MS = 100.0
SHIFT, SHIFT_MS = 0.10, 5.0
"""By how much the p99 of running streams may move: the larger of the two."""
OVER_QUOTA = 10
LARGE_BYTES = 1_000_000
PACED, GREEDY = "paced", "greedy"


def main(
    streams: Annotated[int, typer.Option(min=1, help="Paced streams, as many as there are slots.")] = 4,
    opens: Annotated[float, typer.Option(min=1.0, help="Opens per second.")] = 200.0,
    seconds: Annotated[float, typer.Option(min=2.0, help="Length of each run.")] = 6.0,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each kind, in turn.")] = 5,
    size: Annotated[int, typer.Option(min=16, help="Bytes of a paced frame.")] = 50_000,
) -> None:
    """Measure refusals, and what they and a greedy tenant cost running streams."""
    console = Console()
    pairs = partial(_pairs, console, streams=streams, seconds=seconds, runs=runs, size=size)
    with _floods() as pool:
        opened = pairs(0, lambda target: pool.submit(flood_opens, target, opens))
        flooded = pairs(1, lambda target: pool.submit(flood_frames, target, FPS * OVER_QUOTA, LARGE_BYTES))
    setting = f"null model, 2 spans, {streams} streams x {FPS:g} FPS, {size // 1000} kB"
    figures = [*_refusal_figures(opened, f"{setting}, {opens:g} opens/s"), *_shift(opened, setting, "opens")]
    figures += _shift(flooded, f"{setting}, {LARGE_BYTES // 1000} kB", f"{OVER_QUOTA} x quota")
    command = f"python -m loadtest.admission --streams {streams} --opens {opens:g} --seconds {seconds:g}"
    result = ResultFile.of(
        "admission", command, figures, _detail(opened, flooded), _problems(opened, flooded)
    )
    show(result, result.write(), console)


@dataclass(frozen=True, slots=True)
class Pair:
    """Paced streams alone, and right after it beside a flood."""

    alone: LoadResult
    beside: LoadResult
    flood: Refusals | Greedy


def _pairs(
    console: Console,
    free_slots: int,
    flood: Callable[[Target], Future[Any]],
    *,
    streams: int,
    seconds: float,
    runs: int,
    size: int,
) -> list[Pair]:
    """Of a service of its own, with so many slots more than there are paced streams."""

    def paced() -> LoadResult:
        pace, warm_up = OpenLoop(FPS, SETTLE_S + seconds), round(SETTLE_S * FPS)
        plan = LoadPlan(address, pace, streams, DropPolicy.LOSSLESS, warmup_frames=warm_up, token=PACED)
        return generate(plan, OpaquePayloads(size))

    with tempfile.TemporaryDirectory() as folder:
        console.print("starting the service", markup=False)
        with running(_config(Path(folder), streams, free_slots)) as service:
            address, pairs = service.address, []
            for _ in range(runs):
                alone, started = paced(), flood(Target(service.address, GREEDY, SETTLE_S, seconds))
                pairs.append(Pair(alone, paced(), started.result()))
    return pairs


def _config(folder: Path, streams: int, free_slots: int) -> ServiceConfig:
    """The greedy tenant may have one session of 30 FPS."""
    tenants = folder / "tenants.yaml"
    limits: Mapping[str, Mapping[str, float]] = {
        PACED: {"max_streams": streams, "max_frames_per_s": 2 * FPS * streams},
        GREEDY: {"max_streams": 1, "max_frames_per_s": FPS},
    }
    tenants.write_text(
        yaml.safe_dump(
            [
                {"name": name, "token_sha256": hashlib.sha256(name.encode()).hexdigest(), **own}
                for name, own in limits.items()
            ]
        ),
        encoding="utf-8",
    )
    content = pipeline_config("null", CUT, slots=streams + free_slots).model_dump(mode="json")
    return load_config({**content, "tenants_file": str(tenants)})


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
    return [
        Figure("p99 of running streams, alone", setting, alone_ms, "ms"),
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


def _detail(*kinds: Sequence[Pair]) -> Mapping[str, Any]:
    return {
        name: [
            {
                "alone_p99_ms": round(_p99_ms(pair.alone), 2),
                "beside_p99_ms": round(_p99_ms(pair.beside), 2),
                "flood": {
                    key: len(value) if isinstance(value, list) else value
                    for key, value in asdict(pair.flood).items()
                },
            }
            for pair in pairs
        ]
        for name, pairs in zip(("opens", "quota"), kinds, strict=True)
    }


def _problems(opened: Sequence[Pair], flooded: Sequence[Pair]) -> list[str]:
    problems = {
        each for pair in (*opened, *flooded) for run in (pair.alone, pair.beside) for each in run.problems
    }
    refusals = [_refusals(pair) for pair in opened]
    if wrong := sum(sum(each.reasons.values()) - each.reasons["NO_CAPACITY"] for each in refusals):
        problems.add(f"{wrong} opens ended otherwise than with NO_CAPACITY")
    if silent := sum(each.without_retry for each in refusals):
        problems.add(f"{silent} refusals did not say when to try again")
    return sorted(problems)


if __name__ == "__main__":
    typer.run(main)
