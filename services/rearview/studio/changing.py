"""Changes of settings put together: two that follow each other, and several over settings in force."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from rearview.client import Settings, SettingsChange
from rearview.contract.settings import SINGLE_OF
from rearview.errors import InvalidRequest

__all__ = ["merged", "under", "without"]


def merged(settings: SettingsChange, change: SettingsChange) -> SettingsChange:
    """What both say together; the later one has the last word. Places on the grid say how many steps there
    are, and go when `strength` or `steps` are named without them.
    """
    named = change.named()
    if change.timestep_indices:
        settings = replace(settings, steps=None)
    elif not {"strength", "steps"}.isdisjoint(named):
        settings = replace(settings, timestep_indices=None)
    else:
        named.pop("timestep_indices", None)  # an empty list says nothing
    for pair in SINGLE_OF.items():
        if any(name in named for name in pair):
            settings = replace(settings, **dict.fromkeys(pair))
    return replace(settings, **named)


def without(settings: SettingsChange, later: SettingsChange) -> SettingsChange:
    """What of `settings` is left to be said when a later change has been asked."""
    gone = set(later.named())
    for pair in SINGLE_OF.items():
        if not gone.isdisjoint(pair):
            gone.update(pair)
    if later.timestep_indices:
        gone.update(("strength", "steps"))
    return replace(settings, **dict.fromkeys(gone))


def under(settings: Settings, changes: Iterable[SettingsChange]) -> Settings:
    """`settings` after changes that are on their way. One that makes no sense will be refused: it is none."""
    for change in changes:
        try:
            settings = change.apply(settings)
        except InvalidRequest:
            continue
    return settings
