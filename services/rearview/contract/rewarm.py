"""What a change of settings asks of a session's temporal cache. Needs no torch: engine and ingress ask it,
and must agree on which frames wait for each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.settings import Settings
from rearview.contract.timesteps import timestep_indices

__all__ = ["rewarms"]


def rewarms(before: Settings, after: Settings, cache: CacheSettings) -> Iterable[Rewarm]:
    """Of each change between two frames that follow each other; none if nothing has changed."""
    if _timesteps(before) != _timesteps(after):
        yield Rewarm.RESET
    if before.style != after.style:
        yield cache.prompt_change
    if before.scene != after.scene:
        yield cache.scene_cut


def _timesteps(settings: Settings) -> Sequence[int]:
    return timestep_indices(settings.strength, settings.steps)
