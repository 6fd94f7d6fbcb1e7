"""Open-loop load against any server of `rearview.v1`: N streams, each on its own schedule.

    python -m loadtest.generator --target 127.0.0.1:50051 --streams 8 --fps 30 --seconds 10

Latency counts from when a frame was due, so a server that stalls pays for every frame it held up. One
process drives some 2,000 frames of 40 kB per second on one core; take `--processes` beyond that.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rearview.contract.stream import DropPolicy
from rich.console import Console

from loadtest.histograms import Histograms
from loadtest.ledger import StreamResult
from loadtest.machine import cpu_seconds, describe_machine, process_tree
from loadtest.payloads import JpegFrames, OpaquePayloads, Payloads, clip_frames, clip_jpegs
from loadtest.plan import Arrival, LoadPlan, OpenLoop, stream_starts
from loadtest.results import LoadResult
from loadtest.stream import LoadStream

__all__ = ["generate", "run_load"]

LEAD_S = 0.05
"""Between the last `opened` and the first frame."""


def generate(
    plan: LoadPlan, payloads: Payloads, *, processes: int = 1, watch_pids: Sequence[int] = ()
) -> LoadResult:
    """Make the load from `processes` processes; `watch_pids`: whose CPU time to count, with descendants.

    Refused, cut and silent streams are in the result, never raised.
    """
    watched = sorted({pid for root in watch_pids for pid in process_tree(root)})
    used_s = cpu_seconds(watched)
    if processes == 1:
        result = asyncio.run(run_load(plan, payloads))
    else:
        result = _generate_in_processes(plan, payloads, processes)
    if watched:
        result.server_cpu_s = cpu_seconds(watched) - used_s
    return result


async def run_load(plan: LoadPlan, payloads: Payloads, streams: Sequence[int] | None = None) -> LoadResult:
    """Run the plan's streams, or some of them, in this process."""
    starts = stream_starts(plan)
    histograms = Histograms()
    chosen = range(plan.streams) if streams is None else streams
    loads = {stream: LoadStream(plan, payloads, stream, histograms) for stream in chosen}
    with _frozen():
        if plan.arrival is Arrival.POISSON:
            results = await _arrive_one_by_one(loads, starts)
        else:
            results = await _start_together(loads, starts)
    return LoadResult(results, histograms)


@contextmanager
def _frozen() -> Iterator[None]:
    """What lives already is not searched for garbage while frames are timed."""
    if gc.get_freeze_count():
        yield  # Whoever has frozen it keeps it so.
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _start_together(loads: dict[int, LoadStream], starts: Sequence[float]) -> list[StreamResult]:
    await asyncio.gather(*(load.open() for load in loads.values()))
    base_s = time.monotonic() + LEAD_S
    return await asyncio.gather(*(load.feed(base_s + starts[stream]) for stream, load in loads.items()))


async def _arrive_one_by_one(loads: dict[int, LoadStream], starts: Sequence[float]) -> list[StreamResult]:
    base_s = time.monotonic() + LEAD_S

    async def arrive(load: LoadStream, start_s: float) -> StreamResult:
        await asyncio.sleep(max(0.0, start_s - time.monotonic()))
        await load.open()
        return await load.feed(time.monotonic())

    return await asyncio.gather(*(arrive(load, base_s + starts[stream]) for stream, load in loads.items()))


def _generate_in_processes(plan: LoadPlan, payloads: Payloads, processes: int) -> LoadResult:
    shares = [list(range(first, plan.streams, processes)) for first in range(min(processes, plan.streams))]
    # Not fork: gRPC's threads do not survive it.
    with ProcessPoolExecutor(len(shares), mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(_run_share, plan, payloads, share) for share in shares]
        return LoadResult.merge(LoadResult.from_json(part.result()) for part in parts)


def _run_share(plan: LoadPlan, payloads: Payloads, streams: Sequence[int]) -> dict[str, Any]:
    return asyncio.run(run_load(plan, payloads, streams)).to_json()


def main(
    target: Annotated[str, typer.Option(help="host:port of the service.")] = "127.0.0.1:50051",
    streams: Annotated[int, typer.Option(min=1)] = 1,
    fps: Annotated[float, typer.Option(min=0.1, max=240.0, help="Frames per second of each stream.")] = 30.0,
    seconds: Annotated[float, typer.Option(min=0.1)] = 10.0,
    policy: Annotated[str, typer.Option(help="latest, lossless or deadline.")] = "latest",
    budget_s: Annotated[float, typer.Option(help="Frame budget of policy deadline.")] = 0.5,
    arrival: Annotated[Arrival, typer.Option(help="When streams start.")] = Arrival.SPREAD,
    arrival_rate: Annotated[float, typer.Option(help="Streams per second, for poisson.")] = 1.0,
    warmup: Annotated[int, typer.Option(min=0, help="Frames per stream that are not measured.")] = 0,
    clip: Annotated[Path | None, typer.Option(help="Video to send as JPEG; else opaque bytes.")] = None,
    size: Annotated[int, typer.Option(min=16, help="Bytes of an opaque frame.")] = 50_000,
    width: int = 256,
    height: int = 256,
    prompt: str = "a painting",
    steps: Annotated[int | None, typer.Option(help="Denoising steps; else the model's default.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token.")] = None,
    processes: Annotated[int, typer.Option(min=1)] = 1,
    pid: Annotated[list[int] | None, typer.Option(help="Server process whose CPU time counts.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Where to write the result.")] = None,
) -> None:
    """Send frames on schedule, whatever the server does, and report what came back."""
    try:
        drop_policy = DropPolicy[policy.upper()]
        token = token_file.read_text(encoding="utf-8").strip() if token_file else ""
        payloads: Payloads = OpaquePayloads(size)
        if clip is not None:
            payloads = JpegFrames(clip_jpegs(clip_frames(clip, width=width, height=height, limit=120)))
    except (KeyError, OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    plan = LoadPlan(
        target=target,
        pace=OpenLoop(fps, seconds),
        streams=streams,
        policy=drop_policy,
        frame_budget_s=budget_s,
        warmup_frames=warmup,
        arrival=arrival,
        arrival_rate=arrival_rate,
        width=width,
        height=height,
        prompt=prompt,
        steps=steps,
        token=token,
    )
    result = generate(plan, payloads, processes=processes, watch_pids=pid or ())
    Console().print(result.render())
    if json_out is not None:
        content = {"machine": describe_machine(), **result.to_json()}
        json_out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(1 if result.problems else 0)


if __name__ == "__main__":
    typer.run(main)
