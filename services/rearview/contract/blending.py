"""Which prompts a frame is translated under, and how much of each. Values only, no torch.

A mix is a set of prompts with weights, and the embedding (`conditioning.py`) is a function of the mix
alone. A change of prompt that is spread over n frames moves the weights in a straight line from the mix
before it to the one that it leads to; the place on that line is a function of the frame's ordinal. So
neither dropped frames nor load nor batching move it, and a change in mid-blend starts where the last
frame was.
"""

from __future__ import annotations

from dataclasses import replace

from rearview.contract.settings import Blend, Settings, WeightedPrompt

__all__ = ["Mix", "is_blending", "mix_at", "progress", "settings_under"]

MAX_START_PROMPTS = 8
"""A blend starts from so many prompts at most, the heaviest: changes in mid-blend add up."""

Mix = tuple[WeightedPrompt, ...]


def progress(since_change: int, frames: int) -> float:
    """Share of a blend that is behind a frame: 1/n for the first frame under the change, 1 for the n-th.

    `since_change`: ordinals since that first frame. A blend over 0 or 1 frames is none.
    """
    return 1.0 if since_change + 1 >= frames else max(0.0, (since_change + 1) / frames)


def is_blending(settings: Settings, ordinal: int) -> bool:
    """Whether the frame is still on the way to its settings' mix."""
    blend = settings.blend
    return blend is not None and progress(ordinal - blend.first, blend.frames) < 1.0


def mix_at(settings: Settings, ordinal: int) -> Mix:
    """The frame's mix: sorted by prompt, weights above 0 that sum to 1. A finished blend's is exact."""
    blend, target = settings.blend, settings.mix
    if blend is None or not is_blending(settings, ordinal):
        return target
    done = progress(ordinal - blend.first, blend.frames)
    weights = {one.prompt: (1.0 - done) * one.weight for one in blend.start}
    for one in target:
        weights[one.prompt] = weights.get(one.prompt, 0.0) + done * one.weight
    return tuple(WeightedPrompt(prompt, weights[prompt]) for prompt in sorted(weights) if weights[prompt] > 0)


def settings_under(previous: Settings, asked: Settings, ordinal: int) -> Settings:
    """What the frame `ordinal`, the first under `asked`, is translated under.

    `previous`: what this function gave for the frame before it (version 0 for the first). Where the
    prompts differ a blend starts from the mix of that frame; where they do not a running one goes on.
    """
    if asked.mix == previous.mix:
        return replace(asked, blend=previous.blend)
    if ordinal == 0 or asked.blend_frames <= 1:
        return replace(asked, blend=None)
    start = _heaviest(mix_at(previous, ordinal - 1))
    return replace(asked, blend=Blend(start, ordinal, asked.blend_frames))


def _heaviest(mix: Mix) -> Mix:
    if len(mix) <= MAX_START_PROMPTS:
        return mix
    kept = sorted(mix, key=lambda one: (-one.weight, one.prompt))[:MAX_START_PROMPTS]
    total = sum(one.weight for one in kept)
    return tuple(
        WeightedPrompt(one.prompt, one.weight / total) for one in sorted(kept, key=lambda one: one.prompt)
    )
