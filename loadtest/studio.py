"""From glass to glass through the studio's gateway, without a browser: what it adds to a frame.

    python -m loadtest.studio

Service, gateway and pages are processes of their own on this machine. One page sends JPEGs of 512 x 512 at 30
FPS to the null model, which gives them back; then eight walls send marked frames at 10 FPS to the chain
model, whose answers say whose they are.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rearview.local import PlainService
from rearview.samples import sample_clip_path
from rich.console import Console

from loadtest.figures import Figure, ResultFile, show
from loadtest.payloads import clip_frames, clip_jpegs
from loadtest.service import NULL_CUT, fail, pipeline_config
from loadtest.studio_page import Tally, WallPlan, percentile, play

__all__ = ["MAX_LATE_MS", "figures", "gateway", "main"]

SIDE = 512
GLASS_FPS, WALLS_FPS, WALLS = 30.0, 10.0, 8
MAX_GLASS_MS = 60.0
MAX_LATE_MS = 20.0
"""A page that was further behind its own schedule says more about itself than about the gateway."""


def main(
    seconds: Annotated[float, typer.Option(min=2.0, help="Length of each of both parts.")] = 20.0,
) -> None:
    """Measure the studio's gateway with the null and the chain model."""
    frames = clip_frames(sample_clip_path(), width=SIDE, height=SIDE, limit=30)
    pictures = tuple(clip_jpegs(frames))
    glass = WallPlan(0, GLASS_FPS, round(seconds * GLASS_FPS), False, pictures, warm_up=round(GLASS_FPS))
    walls = [WallPlan(wall, WALLS_FPS, round(seconds * WALLS_FPS), True, pictures) for wall in range(WALLS)]
    alone = _measure("null", [glass])[0]
    together = _measure("chain", walls)
    problems = [
        f"a page was {1000 * each.late_s:.0f} ms behind its schedule"
        for each in [alone]
        if 1000 * each.late_s > MAX_LATE_MS
    ]
    detail = {
        "jpeg_bytes": sum(map(len, pictures)) // len(pictures),
        "glass": _detail(alone),
        "walls": [_detail(each) for each in together],
    }
    result = ResultFile.of(
        "studio",
        f"python -m loadtest.studio --seconds {seconds:g}",
        figures(alone, together),
        detail,
        problems,
    )
    show(result, result.write(), Console())


def figures(alone: Tally, together: list[Tally]) -> list[Figure]:
    """What is asked of a studio, and what was measured."""
    one = f"null model, {SIDE}x{SIDE} JPEG, {GLASS_FPS:g} FPS, loopback"
    many = f"chain model, {len(together)} walls, {WALLS_FPS:g} FPS, lossless"
    latencies = [value for each in together for value in each.latencies_ms]
    crossed = sum(each.crossed for each in together)
    lost = sum(each.lost + sum(each.dropped.values()) for each in together)
    p95, shown = percentile(alone.latencies_ms, 0.95), alone.pictures / max(1, alone.sent + alone.unsent)
    return [
        Figure("studio, glass to glass, p50", one, percentile(alone.latencies_ms, 0.5), "ms"),
        Figure("studio, glass to glass, p95", one, p95, "ms", MAX_GLASS_MS, at_most=True),
        Figure("studio, frames with a picture", one, 100 * shown, "%"),
        Figure("studio, pictures that crossed walls", many, crossed, "", 0, True),
        Figure("studio, frames lost", many, lost, "", 0, True),
        Figure("studio, glass to glass, p95", many, percentile(latencies, 0.95), "ms"),
    ]


def _measure(checkpoint: str, plans: list[WallPlan]) -> list[Tally]:
    """One tally a plan; all play at once."""

    async def all_of_them(url: str) -> list[Tally]:
        return await asyncio.gather(*(play(url, plan) for plan in plans))

    config = pipeline_config(checkpoint, NULL_CUT, slots=max(16, len(plans)))
    with PlainService(config) as service, gateway(service.address) as url:
        return asyncio.run(all_of_them(url))


@contextmanager
def gateway(address: str, *options: str) -> Iterator[str]:
    """`rearview studio` before a service; yields its URL. Ends the command if that does not come."""
    command = [sys.executable, "-m", "rearview.cli.main", "studio", "--server", address]
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-open", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        words = next((line.split() for line in process.stdout if line.startswith("STUDIO")), None)
        if words is None:
            fail("the studio has ended at once")
        yield words[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def _detail(tally: Tally) -> dict[str, object]:
    latencies = {
        f"p{share}_ms": round(percentile(tally.latencies_ms, share / 100), 3) for share in (50, 95, 99, 100)
    }
    return {
        "sent": tally.sent,
        "unsent": tally.unsent,
        "pictures": tally.pictures,
        "dropped": dict(tally.dropped),
        "crossed": tally.crossed,
        "lost": tally.lost,
        "late_ms": round(1000 * tally.late_s, 2),
        **latencies,
    }


if __name__ == "__main__":
    typer.run(main)
