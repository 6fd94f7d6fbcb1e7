"""What the gateway says in words: dataclasses, written as their fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from rearview.contract.settings import Settings
from rearview.studio.protocol import PageMessage
from rearview.studio.spoken import plain, spoken

__all__ = [
    "Applied",
    "Credit",
    "Dropped",
    "ErrorSaid",
    "Lanes",
    "ModelSaid",
    "Notice",
    "Opened",
    "ProgramSaid",
    "Recall",
    "Said",
    "ServiceSaid",
    "ServiceState",
    "Serving",
    "State",
    "Stats",
    "Trouble",
    "Turned",
    "Welcome",
    "text_of",
]

ServiceState = Literal["starting", "ready", "unreachable", "failed"]


@dataclass(frozen=True, kw_only=True)
class Said:
    """Base of what the gateway says."""

    type: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class ProgramSaid(Said):
    """What viewers see, and from what they fade to it over the next `fade_ms`."""

    type = "program"
    a: int | None
    b: int | None = None
    mix: float = 0.0
    fade_ms: int = 0
    start: Mapping[str, Any] | None = None
    """`{"a", "b", "mix"}` of the picture that they fade from; None: a cut."""


@dataclass(frozen=True, kw_only=True)
class Opened(Said):
    """A tile's session is open."""

    type = "opened"
    tile: int
    session_id: str
    width: int
    height: int
    settings: Settings
    options: Mapping[str, Any]
    """What else it was opened with, as a page says it: a page that is loaded again opens it so, too."""
    method: str | None
    advice: str
    unknown_words: Sequence[str]
    warm_up_frames: int
    continuity: str
    frame: int
    """The first of the page's frames that may go to it."""
    model: str


@dataclass(frozen=True, kw_only=True)
class Welcome(Said):
    """Answers `hello`."""

    type = "welcome"
    wall: str
    viewer: str
    resumed: bool
    page: int
    """Of this page; a page that has lost its connection shows it, and goes on where it was."""
    heard: int
    """Messages but `received` that came from it: what it has said after that is to be said again."""
    credit: int
    tiles: Sequence[Opened]
    program: ProgramSaid


@dataclass(frozen=True, kw_only=True)
class Credit(Said):
    """How many frames the page may have sent in all since `welcome`."""

    type = "credit"
    frames: int


@dataclass(frozen=True, kw_only=True)
class State(Said):
    """How a tile is."""

    type = "state"
    tile: int
    state: Literal["opening", "queued", "live", "reconnecting", "refused", "ended"]
    reason: str | None = None
    message: str = ""
    retry_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class Applied(Said):
    """Answers `control`."""

    type = "applied"
    tile: int
    id: int
    frame: int | None
    """The first of the page's frames under it; None if it was rejected before it was sent."""
    settings: Settings | None
    rejected: Mapping[str, str] | None
    advice: str = ""
    unknown_words: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Turned(Said):
    """A controller has changed a tile's settings; as `applied`, which answers what the page itself asks."""

    type = "turned"
    tile: int
    frame: int
    """The first of the page's frames under it."""
    asked: Mapping[str, Any]
    """What was turned, as a page says it."""
    settings: Settings | None
    rejected: Mapping[str, str] | None
    advice: str = ""
    unknown_words: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Recall(Said):
    """A controller asks for one of the page's presets."""

    type = "recall"
    tile: int
    place: int
    """From 1."""


@dataclass(frozen=True, kw_only=True)
class Trouble(Said):
    """Something that a controller said makes no sense, or cannot be done. All goes on."""

    type = "trouble"
    about: str
    """What is at fault; a newer word about it takes the place of an older one."""
    title: str
    help: str


@dataclass(frozen=True, kw_only=True)
class Dropped(Said):
    """A frame that has no picture."""

    type = "dropped"
    tile: int
    frame: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Notice(Said):
    """Something to know of a tile."""

    type = "notice"
    tile: int
    kind: str
    message: str
    continuity: str | None
    frame: int | None
    """The first of the page's frames that is not answered yet."""


@dataclass(frozen=True, kw_only=True)
class Stats(Said):
    """The last seconds of a tile. Times are those at the gateway."""

    type = "stats"
    tile: int
    fps: float
    p50_ms: float | None
    p95_ms: float | None
    spans: Sequence[Mapping[str, Any]]
    drops: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Lanes(Said):
    """The replicas of every span, and which tiles are on them."""

    type = "lanes"
    spans: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ModelSaid(Said):
    """How a model is."""

    type = "model"
    id: str
    state: str
    bytes_done: int = 0
    bytes_total: int = 0
    licence: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Serving(Said):
    """The model that the wall's tiles are on, as in `/api/info`."""

    type = "serving"
    id: str
    model: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ServiceSaid(Said):
    """Whether the service answers; a local one takes a while to start."""

    type = "service"
    state: ServiceState
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class ErrorSaid(Said):
    """A message that was not understood, or not allowed. The wall goes on."""

    type = "error"
    reason: str
    message: str


def text_of(said: Said | PageMessage) -> str:
    """A message as it travels."""
    if isinstance(said, Said):
        return json.dumps(_content(said), ensure_ascii=False)
    content = {name: getattr(said, name) for name in type(said).model_fields}
    return json.dumps(spoken(content), ensure_ascii=False)


def _content(value: Any) -> Any:
    if isinstance(value, Said):
        names = (one.name for one in fields(value))
        return {"type": value.type, **{name: _content(getattr(value, name)) for name in names}}
    if isinstance(value, tuple | list):
        return [_content(each) for each in value]
    return plain(value)
