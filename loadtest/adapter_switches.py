"""What a switch of LoRA weights costs the stream that asks for it, beside its own other pictures.

    python -m loadtest.adapter_switches

One session sends a frame, waits for its picture, and sends the next. Before every tenth frame a control asks
for other weights of its sets (`weights`), or for another set (`sets`). What is counted is the time from the
control, or else from the frame, to the picture: so the pictures between switches are the measure of those
after one, in the same seconds of the same run. At 30 FPS a switch would be seen if it took a frame's time
more than the others do.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rearview.client import Client, SettingOptions
from rearview.client.answers import Dropped, Translated
from rearview.config import ServiceConfig, load_config
from rearview.contract.settings import WeightedAdapters
from rearview.contract.stream import DropPolicy, ImageFormat
from rearview.samples import sample_clip_path
from rich.console import Console

from loadtest.adapters import random_adapters
from loadtest.figures import RESULTS, Figure, ResultFile, show
from loadtest.payloads import clip_frames, clip_jpegs
from loadtest.service import fail, fused_config, running

__all__ = ["EVERY", "Found", "changes", "figures", "main", "measure"]

EVERY = 10
"""Frames from switch to switch."""
NAMES = ("ink", "oil")
KINDS = ("weights", "sets")
FRAME_S = 1 / 30
MAX_MORE = 1.0
"""Frame intervals of a 30 FPS stream that a switch may take more than another picture, in the median."""

Found = Mapping[str, Sequence[float]]
"""Seconds to a picture: `switched` and `others`."""


def changes(kind: str, number: int) -> SettingOptions:
    """What the switch of that number asks for: of `weights`, other shares of two sets; of `sets`, the other
    set alone.
    """
    if kind == "sets":
        return {"adapters": NAMES[number % len(NAMES)]}
    share = 0.25 + 0.5 * (number % 2)
    mix = (WeightedAdapters(NAMES[0], share), WeightedAdapters(NAMES[1], 1.0 - share))
    return {"adapter_mix": mix}


async def measure(
    address: str,
    kind: str,
    images: Sequence[bytes],
    frames: int,
    size: int,
    format: ImageFormat = ImageFormat.JPEG,
) -> Found:
    """Run one session over `frames` and count. Ends the command if one is dropped."""
    found: dict[str, list[float]] = {"switched": [], "others": []}
    how: dict[str, Any] = {"width": size, "height": size, "drop_policy": DropPolicy.LOSSLESS}
    async with Client(address) as client, client.open(**how, prompt="ink", steps=1) as session:
        for index in range(frames):
            begin_s, is_switch = time.monotonic(), index % EVERY == 0
            if is_switch:
                await session.control(**changes(kind, index // EVERY))
            await session.send(images[index % len(images)], format=format)
            async for answer in session:
                if isinstance(answer, Dropped):
                    fail(f"frame {index} was dropped: {answer.reason.value}")
                if isinstance(answer, Translated):
                    break
            if index >= 2 * EVERY:  # Before that sets are met for the first time.
                found["switched" if is_switch else "others"].append(time.monotonic() - begin_s)
        await session.finish()
        async for _ in session:
            pass
    return found


def figures(found: Mapping[str, Found], setting: str) -> list[Figure]:
    """For each kind of switch what it takes more than other pictures, in frame intervals at 30 FPS."""
    made = []
    for kind, times in found.items():
        switched, others = (statistics.median(times[name]) for name in ("switched", "others"))
        worst = max(times["switched"]) - max(times["others"])
        named = f"a switch of LoRA {kind} every {EVERY} frames"
        more = (switched - others) / FRAME_S
        made += [
            Figure(f"{named}: more than another picture, median", setting, more, "frames", MAX_MORE, True),
            Figure(f"{named}: its slowest beside the slowest other", setting, worst / FRAME_S, "frames"),
            Figure(f"{named}: other pictures, median", setting, 1e3 * others, "ms"),
        ]
    return made


def main(
    frames: Annotated[int, typer.Option(min=4 * EVERY, help="Of each kind of switch.")] = 400,
    size: Annotated[int, typer.Option(min=64, help="Pixels, width and height.")] = 128,
    results: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Measure what switching LoRA weights and sets costs a running stream."""
    console, found = Console(), {}
    clip = clip_jpegs(clip_frames(sample_clip_path(), width=size, height=size, limit=30))
    with tempfile.TemporaryDirectory() as folder, running(_config(Path(folder), size)) as service:
        for kind in KINDS:
            console.print(f"{kind}: {frames} frames", markup=False)
            found[kind] = asyncio.run(measure(service.address, kind, clip, frames, size))
    setting = f"pocket {size}x{size}, 1 step, 1 thread, one session, one frame at a time"
    command = f"python -m loadtest.adapter_switches --frames {frames} --size {size}"
    detail = {kind: {name: list(each) for name, each in times.items()} for kind, times in found.items()}
    result = ResultFile.of("adapter_switches", command, figures(found, setting), detail)
    show(result, result.write(results), console)


def _config(folder: Path, size: int) -> ServiceConfig:
    content = fused_config("pocket", threads=1, max_steps=1).model_dump(mode="json")
    model = {**content["model"], "width": size, "height": size}
    return load_config(content | {"model": model | {"adapters": random_adapters("pocket", folder, NAMES)}})


if __name__ == "__main__":
    typer.run(main)
