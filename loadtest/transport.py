"""The transport's ceiling: the whole service around a model that does nothing.

    python -m loadtest.transport

Opaque 50 kB payloads through gRPC, ingress and three spans. One stream in a closed loop gives the latency
that the service adds to a frame; K streams at 30 FPS in an open loop show that it holds under load. An
echo server takes turns with it, so that what gRPC and the generator cost is known for the same minutes.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rearview.contract.stream import DropPolicy
from rearview.errors import ConfigError
from rich.console import Console

from loadtest.echo import echo_server
from loadtest.figures import Figure, ResultFile, show
from loadtest.generator import generate
from loadtest.payloads import OpaquePayloads
from loadtest.plan import ClosedLoop, LoadPlan, OpenLoop
from loadtest.results import LoadResult
from loadtest.service import NULL_CUT, fail, pipeline_config, running

__all__ = ["main", "measure"]

MAX_ADDED_P50_MS = 5.0
WARMUP_FRAMES = 50
FPS = 30.0


def main(
    streams: Annotated[int, typer.Option(min=1, help="Streams of the open loop.")] = 8,
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of the open loop.")] = 10.0,
    frames: Annotated[int, typer.Option(min=10, help="Frames per round of the closed loop.")] = 300,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds of the closed loop, echo and service in turn.")
    ] = 3,
    size: Annotated[int, typer.Option(min=16, help="Bytes of a frame.")] = 50_000,
) -> None:
    """Measure what the service adds to a frame when the model is free."""
    try:
        config = pipeline_config("null", NULL_CUT, slots=max(16, streams))
    except ConfigError as error:
        fail(str(error))
    console = Console()
    console.print(f"starting echo server and service ({NULL_CUT}, null model)", markup=False)
    with echo_server() as (echo_address, echo_pid), running(config) as service:
        console.print(f"service ready in {service.ready_s:.1f} s", markup=False)
        closed, opened = measure(
            {"echo": (echo_address, [echo_pid]), "service": (service.address, [os.getpid()])},
            streams=streams,
            seconds=seconds,
            frames=frames,
            rounds=rounds,
            size=size,
        )
        result = _result(closed, opened, service.ready_s, streams, size)
    console.print("one stream, closed loop:", closed["service"].render())
    console.print(f"{streams} streams at {FPS:g} FPS, open loop:", opened["service"].render())
    show(result, result.write(), console)


def measure(
    servers: dict[str, tuple[str, list[int]]],
    *,
    streams: int,
    seconds: float,
    frames: int,
    rounds: int,
    size: int,
) -> tuple[dict[str, LoadResult], dict[str, LoadResult]]:
    """Closed-loop and open-loop results by server. `servers`: address and pids to watch, by name."""
    payloads = OpaquePayloads(size)
    parts: dict[str, list[LoadResult]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, (address, pids) in servers.items():
            pace = ClosedLoop(WARMUP_FRAMES + frames)
            plan = LoadPlan(address, pace, policy=DropPolicy.LOSSLESS, warmup_frames=WARMUP_FRAMES)
            parts[name].append(generate(plan, payloads, watch_pids=pids))
    opened = {}
    for name, (address, pids) in servers.items():
        plan = LoadPlan(
            address,
            OpenLoop(FPS, seconds + 1.0),
            streams=streams,
            policy=DropPolicy.LOSSLESS,
            warmup_frames=int(FPS),
        )
        opened[name] = generate(plan, payloads, watch_pids=pids)
    return {name: LoadResult.merge(results) for name, results in parts.items()}, opened


def _result(
    closed: dict[str, LoadResult], opened: dict[str, LoadResult], ready_s: float, streams: int, size: int
) -> ResultFile:
    one = f"null model, 3 spans, 1 stream, {size // 1000} kB"
    many = f"null model, 3 spans, {streams} streams x {FPS:g} FPS, {size // 1000} kB"

    def latency(result: LoadResult, percentile: float) -> float:
        return result.histograms.percentile_ms("latency", percentile)

    service, echo, load = closed["service"], closed["echo"], opened["service"]
    figures = [
        Figure(
            "added latency per frame, p50", one, latency(service, 50), "ms", MAX_ADDED_P50_MS, at_most=True
        ),
        Figure("added latency per frame, p95", one, latency(service, 95), "ms"),
        Figure("added latency per frame, p99", one, latency(service, 99), "ms"),
        Figure("of it gRPC and the client alone (echo), p50", one, latency(echo, 50), "ms"),
        Figure("FPS of the slowest stream", many, min(load.fps_per_stream), "FPS"),
        Figure("latency from the due time, p50", many, latency(load, 50), "ms"),
        Figure("latency from the due time, p99", many, latency(load, 99), "ms"),
        Figure("fairness between streams (Jain)", many, load.fairness, ""),
        Figure("CPU per frame, client included", many, load.cpu_ms_per_frame or float("nan"), "ms"),
    ]
    detail: dict[str, Any] = {"service_ready_s": round(ready_s, 2)}
    for name in closed:
        detail[name] = {"closed_loop": closed[name].summary(), "open_loop": opened[name].summary()}
    command = f"python -m loadtest.transport --streams {streams} --size {size}"
    problems = [*service.problems, *load.problems]
    return ResultFile.of("transport", command, figures, detail, problems)


if __name__ == "__main__":
    typer.run(main)
