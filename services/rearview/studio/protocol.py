"""What a page says, read and checked, and pictures both ways. No I/O, no decoding.

Messages are read by pydantic, strictly, and refused with a reason that quotes nothing of them. Frames and
pictures are binary, big-endian. What the gateway says in words is in `said.py`.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rearview.errors import InvalidRequest, Reason, own_words
from rearview.studio.spoken import STRICT, AskedChange, AskedSession

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_TEXT_BYTES",
    "MAX_TILES",
    "Bye",
    "Close",
    "Control",
    "FrameIn",
    "Hello",
    "Kill",
    "ModelAsked",
    "Open",
    "PageMessage",
    "PictureOut",
    "ProgramAsked",
    "Received",
    "TurnAsked",
    "frame_out",
    "named_control",
    "named_open",
    "picture_out",
    "read_frame",
    "read_message",
]

MAX_TILES = 9
MAX_TEXT_BYTES = 64 << 10
MAX_FRAME_BYTES = 1 << 20
"""Of the picture in a frame; the service takes no larger one."""
_FRAME = struct.Struct(">BBHId")
"""Kind 1, flags 0, 0, frame, captured ms."""
_PICTURE = struct.Struct(">BBHIdff")
"""Kind 2, tile, 0, frame, captured ms, server ms, service ms."""
FRAME_KIND, PICTURE_KIND = 1, 2

Tile = Annotated[int, Field(ge=0, lt=MAX_TILES)]
Secret = Annotated[str, Field(max_length=8192)]


# -- the page says


class _Asked(BaseModel):
    model_config = STRICT


class Hello(_Asked):
    """The first word."""

    type: Literal["hello"] = "hello"
    token: Secret | None = None
    wall: Secret | None = None
    page: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None
    """Of a page that has lost its connection: its number in `welcome`, and the answers that it has taken."""
    received: Annotated[int, Field(ge=0, lt=1 << 53)] | None = None


class Open(_Asked):
    """Opens a tile."""

    type: Literal["open"] = "open"
    tile: Tile
    options: AskedSession


class Control(_Asked):
    """Changes the settings of a tile."""

    type: Literal["control"] = "control"
    tile: Tile
    id: Annotated[int, Field(ge=0, lt=1 << 53)]
    settings: AskedChange


class Close(_Asked):
    """Closes a tile."""

    type: Literal["close"] = "close"
    tile: Tile


class Received(_Asked):
    """How many pictures and drops the page has taken in all."""

    type: Literal["received"] = "received"
    answers: Annotated[int, Field(ge=0, lt=1 << 53)]


class ProgramAsked(_Asked):
    """What viewers are to see: tile `a`, or a mix of it and `b`; they fade to it from what they see."""

    type: Literal["program"] = "program"
    a: Tile
    b: Tile | None = None
    mix: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    fade_ms: Annotated[int, Field(ge=0, le=60_000)] = 0


class TurnAsked(_Asked):
    """A controller of the page turns a dial of a tile."""

    type: Literal["turn"] = "turn"
    tile: Tile
    name: Annotated[str, Field(max_length=200)]
    """Of the dial, as `strength` or `adapter/ink`."""
    share: Annotated[float, Field(ge=0.0, le=1.0)]
    """Its place between the ends of the dial's range."""


class ModelAsked(_Asked):
    """Asks how large a model is, fetches it, stops that, or lets the wall go on with it."""

    type: Literal["model"] = "model"
    id: Annotated[str, Field(max_length=200)]
    action: Literal["look", "fetch", "cancel", "use"]


class Kill(_Asked):
    """Kills a replica of a span."""

    type: Literal["kill"] = "kill"
    span: Annotated[str, Field(max_length=40)]


class Bye(_Asked):
    """Ends the wall at once."""

    type: Literal["bye"] = "bye"


PageMessage = Hello | Open | Control | Close | Received | ProgramAsked | TurnAsked | ModelAsked | Kill | Bye
_ASKED: TypeAdapter[PageMessage] = TypeAdapter(Annotated[PageMessage, Field(discriminator="type")])


def read_message(text: str) -> PageMessage:
    """What a page says. Raises InvalidRequest(MESSAGE_INVALID, MESSAGE_TOO_LARGE or a setting's own)."""
    if len(text) > MAX_TEXT_BYTES:
        raise InvalidRequest(Reason.MESSAGE_TOO_LARGE, f"a message of more than {MAX_TEXT_BYTES} characters")
    try:
        return _ASKED.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        named = [str(part) for part in first["loc"] if str(part).isidentifier()][:4]
        where = ".".join(name[:40] for name in named)
        raise InvalidRequest(Reason.MESSAGE_INVALID, f"{where or 'message'}: {_short(first)}") from None
    except RecursionError:
        raise InvalidRequest(Reason.MESSAGE_INVALID, "message: nested too deep") from None


class _Named(BaseModel):
    """What is needed to answer a control or an opening of which the rest makes no sense."""

    model_config = ConfigDict(strict=True)

    type: Literal["control", "open"]
    tile: Tile
    id: Annotated[int, Field(ge=0, lt=1 << 53)] | None = None


def named_control(text: str) -> tuple[int, int] | None:
    """Tile and id of a control, whatever else is in it; None: it is no control."""
    named = _named(text)
    return None if named is None or named.type != "control" or named.id is None else (named.tile, named.id)


def named_open(text: str) -> int | None:
    """The tile of an opening, whatever else is in it; None: it is none."""
    named = _named(text)
    return None if named is None or named.type != "open" else named.tile


def _named(text: str) -> _Named | None:
    try:
        return _Named.model_validate_json(text) if len(text) <= MAX_TEXT_BYTES else None
    except (ValidationError, RecursionError):
        return None


def _short(error: Any) -> str:
    """Of pydantic's words those that quote nothing of the message."""
    quotes = error["type"] in ("union_tag_invalid", "json_invalid", "extra_forbidden")
    return (
        {
            "union_tag_invalid": "no such type",
            "json_invalid": "is no JSON",
            "extra_forbidden": "is not known",
        }[error["type"]]
        if quotes
        else own_words(error["msg"])[:200]
    )


@dataclass(frozen=True, slots=True)
class FrameIn:
    """A frame from the page."""

    frame: int
    """The page's own number."""
    captured_ms: float
    """On the page's clock; it is echoed."""
    picture: bytes


def read_frame(data: bytes) -> FrameIn:
    """Raises InvalidRequest(MESSAGE_INVALID or MESSAGE_TOO_LARGE)."""
    if len(data) <= _FRAME.size:
        raise InvalidRequest(Reason.MESSAGE_INVALID, "a frame without a picture")
    kind, flags, zero, frame, captured_ms = _FRAME.unpack_from(data)
    if (kind, flags, zero) != (FRAME_KIND, 0, 0):
        raise InvalidRequest(Reason.MESSAGE_INVALID, "binary data that is no frame")
    if not math.isfinite(captured_ms):
        raise InvalidRequest(Reason.MESSAGE_INVALID, "a frame's time is no number")
    if len(data) - _FRAME.size > MAX_FRAME_BYTES:
        raise InvalidRequest(Reason.MESSAGE_TOO_LARGE, f"a frame of more than {MAX_FRAME_BYTES} bytes")
    return FrameIn(frame, captured_ms, data[_FRAME.size :])


def frame_out(frame: FrameIn) -> bytes:
    """Undo `read_frame`: what a page sends."""
    return _FRAME.pack(FRAME_KIND, 0, 0, frame.frame, frame.captured_ms) + frame.picture


# -- the gateway gives


def picture_out(tile: int, frame: FrameIn, server_ms: float, service_ms: float, picture: bytes) -> bytes:
    """A picture for the page and for viewers."""
    head = _PICTURE.pack(PICTURE_KIND, tile, 0, frame.frame, frame.captured_ms, server_ms, service_ms)
    return head + picture


@dataclass(frozen=True, slots=True)
class PictureOut:
    """A picture as a page reads it."""

    tile: int
    frame: int
    captured_ms: float
    server_ms: float
    service_ms: float
    picture: bytes

    @classmethod
    def read(cls, data: bytes) -> PictureOut:
        """Undo `picture_out`. Raises ValueError."""
        kind, tile, zero, frame, captured_ms, server_ms, service_ms = _PICTURE.unpack_from(data)
        if (kind, zero) != (PICTURE_KIND, 0):
            raise ValueError("no picture")
        return cls(tile, frame, captured_ms, server_ms, service_ms, data[_PICTURE.size :])
