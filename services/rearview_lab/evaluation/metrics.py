"""The figures of a translated clip. Pictures are (3, H, W) float32 in [0, 1], before rounding to 8 bits.

Every figure is a plain mean over pairs or frames of one clip. The warp error alone is easily won by blur
or by flat pictures, so it is read beside the mean gradient and the difference from the input, always.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from rearview_lab.evaluation.flow import Motion, warp

__all__ = [
    "Drift",
    "Meter",
    "Scores",
    "gradient_magnitude",
    "mean_difference",
    "mean_scores",
    "psnr",
    "warp_error",
]

MIN_VISIBLE = 0.05
"""Share of a frame that must have been visible before; a pair with less is a cut and is left out."""
DRIFT_LIMIT = 0.05
_LUMA = torch.tensor([0.299, 0.587, 0.114])


def warp_error(before: Tensor, after: Tensor, motion: Motion) -> float:
    """Mean |after - before moved| over visible pixels and channels, in [0, 1]. NaN for a cut.

    The definition of StreamV2V's table with its defects mended: floats, the mask of the later frame.
    """
    if float(motion.visible.float().mean()) < MIN_VISIBLE:
        return math.nan
    gap = (after - warp(before, motion.backward)).abs().mean(0)
    return float(gap[motion.visible].mean())


def mean_difference(left: Tensor, right: Tensor) -> float:
    """Mean absolute difference, in [0, 1]."""
    return float((left - right).abs().mean())


def gradient_magnitude(picture: Tensor) -> float:
    """Mean length of the luminance's gradient, per pixel: falls when a picture is blurred."""
    luma = torch.einsum("c,chw->hw", _LUMA.to(picture), picture)
    across, down = luma[:-1, 1:] - luma[:-1, :-1], luma[1:, :-1] - luma[:-1, :-1]
    return float(torch.hypot(across, down).mean())


def psnr(left: Tensor, right: Tensor) -> float:
    """Peak signal to noise, dB."""
    error = float((left - right).square().mean())
    return 10 * math.log10(1 / max(error, 1e-12))


@dataclass(frozen=True)
class Scores:
    """Of one clip, or the mean of several."""

    warp_error: float
    """NaN where no two neighbouring frames could be compared."""
    input_difference: float
    gradient: float
    consistency: float
    """1 - mean difference of neighbouring frames, without motion: a clip that moves less scores higher."""
    colour_mean: tuple[float, ...]
    """By channel, as `colour_std`."""
    colour_std: tuple[float, ...]
    clip_consistency: float | None = None
    """Mean cosine of CLIP embeddings of neighbouring frames. It says nothing about the prompt."""
    text_alignment: float | None = None
    """Mean cosine of CLIP embeddings of frame and prompt."""
    depth_error: float | None = None
    """Mean squared difference of the normalised depth of input and output."""


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Clips count alike, whatever their length; None stays where any is None, NaN is left out."""
    found = {each.name: _mean([getattr(one, each.name) for one in scores]) for each in fields(Scores)}
    return Scores(**found)  # type: ignore[arg-type]


def _mean(values: Sequence[float | tuple[float, ...] | None]) -> float | tuple[float, ...] | None:
    if isinstance(values[0], tuple):
        rows = [value for value in values if isinstance(value, tuple)]
        return tuple(sum(column) / len(column) for column in zip(*rows, strict=True))
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values):
        return None
    return mean(numbers)


def mean(values: Iterable[float]) -> float:
    """Without NaN; NaN of nothing."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


@dataclass
class Meter:
    """Takes a clip's frames one after another; keeps only the last picture."""

    _last: Tensor | None = None
    _values: dict[str, list[float]] = field(default_factory=dict)
    _colours: list[tuple[list[float], list[float]]] = field(default_factory=list)

    def add(self, source: Tensor, picture: Tensor, motion: Motion | None, **judged: float) -> None:
        """`motion`: from the frame before; None for the first one. `judged`: figures made elsewhere."""
        self._note(input_difference=mean_difference(picture, source), gradient=gradient_magnitude(picture))
        self._note(**judged)
        if self._last is not None and motion is not None:
            self._note(warp_error=warp_error(self._last, picture, motion))
            self._note(consistency=1 - mean_difference(self._last, picture))
        flat = picture.flatten(1)
        self._colours.append((flat.mean(1).tolist(), flat.std(1).tolist()))
        self._last = picture

    def scores(self) -> Scores:
        means, deviations = zip(*self._colours, strict=True)
        return Scores(
            warp_error=self._figure("warp_error", math.nan),
            input_difference=self._figure("input_difference", math.nan),
            gradient=self._figure("gradient", math.nan),
            consistency=self._figure("consistency", math.nan),
            colour_mean=_by_channel(means),
            colour_std=_by_channel(deviations),
            **{
                name: self._figure(name)
                for name in ("clip_consistency", "text_alignment", "depth_error")
                if name in self._values
            },
        )

    def _note(self, **values: float) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def _figure(self, name: str, missing: float = math.nan) -> float:
        return mean(self._values.get(name, [missing]))


def _by_channel(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(sum(column) / len(column) for column in zip(*rows, strict=True))


@dataclass(frozen=True)
class Drift:
    """Late frames of a loop against early ones; on a loop every difference is the method's own."""

    early: Scores
    late: Scores

    @property
    def changes(self) -> dict[str, float]:
        """Relative change of each watched figure; colours by channel."""
        found = {"warp_error": _change(self.early.warp_error, self.late.warp_error)}
        for name in ("colour_mean", "colour_std"):
            pairs = zip(getattr(self.early, name), getattr(self.late, name), strict=True)
            found |= {f"{name}_{c}": _change(*pair) for c, pair in zip("rgb", pairs, strict=True)}
        return found

    @property
    def worst(self) -> float:
        return max(self.changes.values(), key=abs)

    @property
    def holds(self) -> bool:
        return abs(self.worst) <= DRIFT_LIMIT


def _change(early: float, late: float) -> float:
    if abs(late - early) < 1e-6:  # Nothing moved: also where both are zero.
        return 0.0
    return math.inf if early == 0 else late / early - 1
