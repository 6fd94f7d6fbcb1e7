"""A score: what a session was opened with, and every change of its settings with its first frame.

The studio writes one for each take, and `rearview translate --score` renders it. No I/O here: `parse` and
`plain` are between this and what JSON has.

    {"format": "rearview-score", "version": 1, "frame_rate": 30, "source": "walk.mp4",
     "open": {"width": 256, "height": 256, "settings": {"prompt": "oil painting"}},
     "events": [{"frame": 120, "settings": {"prompt": "neon lights", "blend_frames": 30}}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from rearview.contract.opening import OpenRequest, RequestOptions
from rearview.contract.plain import from_plain, invalid, plain
from rearview.contract.settings import Settings, SettingsChange
from rearview.errors import InvalidRequest, out_of_range

__all__ = ["FORMAT", "VERSION", "Event", "Score"]

FORMAT = "rearview-score"
VERSION = 1
MAX_FRAME_RATE = 240.0
_NOT_TOLD = frozenset({"answer_credit"})
"""What is between one client and its server."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change of settings."""

    frame: int
    """Number of the first frame under it, from 0."""
    settings: SettingsChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A take. Raises InvalidRequest that names the field for numbers that no service takes, and for events
    that are not in the order of their frames.
    """

    frame_rate: float
    """Frames per second of the take: frame n was at n / frame_rate seconds."""
    source: str | None = None
    """What was translated, for people."""
    open: OpenRequest = field(default_factory=OpenRequest)
    events: tuple[Event, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.frame_rate <= MAX_FRAME_RATE:
            raise out_of_range("frame_rate", f"frame_rate must be above 0, up to {MAX_FRAME_RATE:g}")
        settings = _applied(self.open.settings, Settings(), "open.settings")
        last = 0
        for number, event in enumerate(self.events):
            path = f"events[{number}]"
            if event.frame < last:
                raise invalid(f"{path}.frame", f"is {event.frame}, after frame {last}")
            settings, last = _applied(event.settings, settings, f"{path}.settings"), event.frame

    @classmethod
    def parse(cls, content: object) -> Score:
        """A score from what JSON has. Raises InvalidRequest, MESSAGE_INVALID for what is not known."""
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise invalid("format", f"is not {FORMAT}: this is no score")
        if content.get("version") != VERSION:
            raise invalid("version", f"is {content.get('version')}: only {VERSION} is read here")
        said = {name: value for name, value in content.items() if name not in ("format", "version")}
        return from_plain(cls, said)

    def plain(self) -> dict[str, Any]:
        """As JSON has it. Of `open` only what differs from the defaults is said."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "frame_rate": self.frame_rate,
            "source": self.source,
            "open": _said(self.open),
            "events": [plain(event) for event in self.events],
        }

    @property
    def options(self) -> RequestOptions:
        """What the session was opened with, for `Client.open`."""
        said: dict[str, Any] = {
            one.name: value
            for one in fields(OpenRequest)
            if one.name not in _NOT_TOLD | {"settings"}
            and (value := getattr(self.open, one.name)) != getattr(OpenRequest(), one.name)
        }
        return cast("RequestOptions", said | self.open.settings.named())


def _said(request: OpenRequest) -> dict[str, Any]:
    """The fields that differ from the defaults."""
    defaults = plain(OpenRequest())
    return {
        name: value
        for name, value in plain(request).items()
        if name not in _NOT_TOLD and value != defaults.get(name)
    }


def _applied(change: SettingsChange, settings: Settings, path: str) -> Settings:
    """The settings after a change. Raises InvalidRequest that names the field below `path`."""
    allowed = {
        "strength": change.strength is None or 0.0 < change.strength <= 1.0,
        "steps": change.steps is None or change.steps >= 1,
        "seed": change.seed is None or 0 <= change.seed < 1 << 64,
        "prompt": not (change.prompt and change.prompts),
    }
    for name, is_allowed in allowed.items():
        if not is_allowed:
            raise out_of_range(f"{path}.{name}", f"{path}.{name} is out of range")
    try:
        return change.apply(settings)
    except InvalidRequest as error:
        where = f"{path}.{error.metadata.get('field', '')}"
        raise out_of_range(where, f"{path}: {error.message}") from None
