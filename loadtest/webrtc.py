"""From glass to glass by WebRTC, and by WebSocket beside it, through the same studio and the null model.

    python -m loadtest.webrtc

Service, studio and glasses are processes of their own on this machine. Frames of 512 x 512 go out at 30 FPS
with their number in their pixels, by each way in turn. It needs the extra `webrtc`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

import typer
from rearview.local import PlainService
from rearview.samples import sample_clip_path
from rich.console import Console

from loadtest.figures import Figure, ResultFile, show
from loadtest.glass import GlassPlan, Seen, by_webrtc, by_websocket
from loadtest.glass_browser import in_chromium
from loadtest.payloads import clip_frames
from loadtest.service import NULL_CUT, pipeline_config
from loadtest.studio import MAX_LATE_MS, gateway
from loadtest.studio_page import percentile

__all__ = ["figures", "main"]

SIDE, FPS = 512, 30.0
MAX_P95_MS = 150.0
WAYS = {"WebRTC": by_webrtc, "WebSocket": by_websocket}
CHROMIUM = "WebRTC in Chromium"


def main(
    seconds: Annotated[float, typer.Option(min=4.0, help="Length of each way's part.")] = 20.0,
    chromium: Annotated[bool, typer.Option("--chromium", help="In a browser's page, too.")] = False,
) -> None:
    """Measure glass to glass by WebRTC and by WebSocket with the null model."""
    pictures = clip_frames(sample_clip_path(), width=SIDE, height=SIDE, limit=30)
    plan = GlassPlan(FPS, round(seconds * FPS), round(2 * FPS), pictures)
    seen: dict[str, Seen] = {}
    config = pipeline_config("null", NULL_CUT)
    ways = WAYS | ({CHROMIUM: in_chromium} if chromium else {})
    with PlainService(config) as service, gateway(service.address, "--webrtc") as url:
        for way, play in ways.items():
            seen[way] = asyncio.run(play(url, plan))
    problems = [
        f"{way}: the sender was {1000 * each.late_s:.0f} ms behind its schedule"
        for way, each in seen.items()
        if 1000 * each.late_s > MAX_LATE_MS
    ]
    detail = {way: _detail(each) for way, each in seen.items()}
    command = f"python -m loadtest.webrtc --seconds {seconds:g}{' --chromium' if chromium else ''}"
    result = ResultFile.of("webrtc", command, figures(seen), detail, problems)
    show(result, result.write(), Console())


def figures(seen: Mapping[str, Seen]) -> list[Figure]:
    """What is asked of WebRTC, and what was measured of each way."""
    found = []
    for way, each in seen.items():
        setting = f"null model, {SIDE}x{SIDE}, {FPS:g} FPS, loopback, number in the pixels"
        limit = None if way == "WebSocket" else MAX_P95_MS
        p50, p95 = (percentile(each.latencies_ms, share) for share in (0.5, 0.95))
        found += [
            Figure(f"{way}, glass to glass, p50", setting, p50, "ms"),
            Figure(f"{way}, glass to glass, p95", setting, p95, "ms", limit, at_most=True),
            Figure(f"{way}, frames that were seen", setting, 100 * each.shown, "%"),
        ]
    return found


def _detail(seen: Seen) -> dict[str, object]:
    latencies = {
        f"p{share}_ms": round(percentile(seen.latencies_ms, share / 100), 3) for share in (5, 50, 95, 99, 100)
    }
    return {"timed": len(seen.latencies_ms), "late_ms": round(1000 * seen.late_s, 2), **latencies}


if __name__ == "__main__":
    typer.run(main)
