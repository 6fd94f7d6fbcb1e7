"""What a smaller temporal cache costs in pictures: fewer bits for what it keeps, or smaller frames.

    python -m loadtest.cache_precision

Translates a clip with Live2Diff in the engine, in float32 with a cache in float32, and then once more with
each lever: the cache in another type, or frames of a lower resolution tier, whose pictures are enlarged.
Says how far the pictures are from the first ones, beside what a session's cache takes. For scale also how
far those are without any cache, under another seed (a smaller frame has other noise), and made small and
large again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rearview.contract.card import ModelCard, has_motion, size_multiple
from rearview.contract.memories import CacheSettings
from rearview.contract.settings import Settings
from rearview.errors import ConfigError
from rearview_lab.evaluation.clips import SAMPLES, sample_clip
from rearview_lab.evaluation.runner import PER_FRAME, Method, Translator
from torch import Tensor
from torch.nn import functional as F

from loadtest.figures import RESULTS, Figure, ResultFile, show
from loadtest.service import fail

__all__ = ["Arm", "compare", "main", "resized", "rms"]

CPU = torch.device("cpu")
STORAGES = (torch.float16, torch.bfloat16, torch.float8_e4m3fn)
TIERS = (3 / 4, 1 / 2)
"""Sides of smaller frames, as shares of the whole one's."""
LEVELS = 255.0
LATE_FRAMES = 8
"""The last so many frames are reported by themselves: errors could add up."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to save memory, and what became of the pictures."""

    name: str
    errors: Sequence[float]
    """Per frame, RMS over the looks and pixels, levels of 255."""
    cache_bytes: int
    """Of one session."""

    @property
    def error(self) -> float:
        return rms(self.errors)

    def as_detail(self) -> dict[str, Any]:
        late = rms(self.errors[-LATE_FRAMES:])
        return {"arm": self.name, "rms_levels": self.error, "late_rms_levels": late} | {
            "worst_frame_rms_levels": max(self.errors),
            "cache_bytes_per_session": self.cache_bytes,
        }


def rms(values: Sequence[float]) -> float:
    """The root of the mean square."""
    return float(torch.tensor(values, dtype=torch.float64).square().mean().sqrt())


def resized(pictures_BCHW: Tensor, side: int) -> Tensor:
    """Square pictures at another size, in [0, 1]."""
    found = F.interpolate(pictures_BCHW, (side, side), mode="bicubic", antialias=True)
    return found.clamp(0.0, 1.0)


def compare(checkpoint: str, looks: Sequence[Settings], frames: Sequence[Tensor]) -> Iterator[Arm]:
    """Each lever against float32. `frames`: (H, H, 3) uint8. Raises ConfigError."""
    side, steps = frames[0].shape[0], max(look.steps for look in looks)

    def translator(of_side: int) -> Translator:
        return Translator(checkpoint, of_side, steps, device=CPU, dtype=torch.float32)

    def pictures(
        by: Translator, method: Method, of: Sequence[Tensor], under: Sequence[Settings] = looks
    ) -> list[Tensor]:
        return [torch.stack(each) for each in by.translate(method, under, of)]

    def arm(name: str, found: Sequence[Tensor], cache_bytes: int) -> Arm:
        gaps = [float((a - b).square().mean().sqrt()) for a, b in zip(found, expected, strict=True)]
        return Arm(name, [LEVELS * gap for gap in gaps], cache_bytes)

    whole, cached = translator(side), Method("live2diff", cache=CacheSettings())
    expected = pictures(whole, cached, frames)
    yield arm("cache in float32", expected, whole.memory_bytes(cached))
    for storage in STORAGES:
        method = Method("live2diff", cache=CacheSettings(), storage=storage)
        name = f"cache in {str(storage).removeprefix('torch.')}"
        yield arm(name, pictures(whole, method, frames), whole.memory_bytes(method))
    yield arm("no cache", pictures(whole, PER_FRAME, frames), 0)
    other = [replace(look, seed=look.seed + 1) for look in looks]
    yield arm("another seed", pictures(whole, cached, frames, other), whole.memory_bytes(cached))
    for share in TIERS:
        small = _tier(side, share, size_multiple(checkpoint))
        lower = translator(small)
        found = [resized(each, side) for each in pictures(lower, cached, _shrunk(frames, small))]
        yield arm(f"frames of {small}² enlarged", found, lower.memory_bytes(cached))
        again = [resized(resized(each, small), side) for each in expected]
        yield arm(f"pictures made {small}² and enlarged", again, whole.memory_bytes(cached))


def _tier(side: int, share: float, multiple: int) -> int:
    return max(multiple, int(side * share) // multiple * multiple)


def _shrunk(frames: Sequence[Tensor], side: int) -> list[Tensor]:
    pictures_BCHW = torch.stack(list(frames)).permute(0, 3, 1, 2).float() / LEVELS
    small = (resized(pictures_BCHW, side) * LEVELS).round().to(torch.uint8)
    return list(small.permute(0, 2, 3, 1).contiguous().unbind(0))


def _figures(arms: Sequence[Arm], setting: str) -> Iterator[Figure]:
    for arm in arms[1:]:
        size = f"{arm.cache_bytes / 2**20:.3g} MiB a session" if arm.cache_bytes else "0 MiB"
        what = f"Live2Diff, {arm.name}: RMS from cache in float32"
        yield Figure(what, f"{setting}, {size}", arm.error, "levels")


def main(
    checkpoint: Annotated[str, typer.Option(help="With motion modules of its own.")] = "pocket",
    prompt: Annotated[list[str] | None, typer.Option(help="Looks, all at a time.")] = None,
    frames: Annotated[int, typer.Option(min=17, help="Frames of the clip.")] = 40,
    side: Annotated[int, typer.Option(help="Pixels of a frame.")] = 256,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    results: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Measure what a smaller temporal cache costs."""
    torch.set_num_threads(threads)
    prompts = prompt or ["oil painting", "pencil sketch"]
    try:
        if not has_motion(checkpoint):
            raise ConfigError(f"{checkpoint} has no motion modules: train them first")
        card = ModelCard.read(checkpoint)
        looks = [Settings(each, card.strength, card.steps, seed=1) for each in prompts]
        clip = sample_clip(next(iter(SAMPLES)), frames, side)
        arms = list(compare(checkpoint, looks, clip.frames))
    except ConfigError as error:
        fail(str(error))
    setting = f"{Path(checkpoint).name}, {side}², {card.steps} steps, {len(clip.frames)} frames"
    command = f"python -m loadtest.cache_precision --frames {frames} --side {side}"
    detail = {"clip": clip.name, "prompts": prompts, "arms": [arm.as_detail() for arm in arms]}
    result = ResultFile.of("cache_precision", command, list(_figures(arms, setting)), detail)
    show(result, result.write(results))


if __name__ == "__main__":
    typer.run(main)
