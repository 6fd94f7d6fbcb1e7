"""What happens at the edge and in the replicas, told as values to whoever listens.

Who does the work publishes what happened and knows nothing of metrics, logs or traces: these are listeners
(`telemetry/`). A sink is any callable that takes an event. It is called on the path of frames, so it must
return in microseconds and must not raise. Events hold figures and names of the deployment, never a prompt
or a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from rearview.contract.beat import Cause
from rearview.contract.failure import Failure
from rearview.contract.frame import Timing
from rearview.contract.scaling import Why
from rearview.contract.stream import Continuity
from rearview.contract.traces import FrameTrace
from rearview.errors import DropReason, Reason

__all__ = [
    "BatchRun",
    "CallEnded",
    "CheckpointTaken",
    "Coding",
    "Direction",
    "Event",
    "Events",
    "FileReloaded",
    "FillerSent",
    "FirstPicture",
    "FrameAnswered",
    "FrameDropped",
    "FrameLeftSpan",
    "FrameTraced",
    "FrameUsed",
    "ImageCoded",
    "LinkBytes",
    "OpenRefused",
    "OutputsForgotten",
    "Played",
    "ReplicaCondemned",
    "ReplicasWanted",
    "SessionClosed",
    "SessionMoved",
    "SessionOpened",
    "SlotsOffered",
    "SlotsTaken",
    "StreamClosed",
    "StreamOpened",
    "no_events",
    "told_to",
]


class Coding(Enum):
    """What was done to an image."""

    DECODE = "decode"
    ENCODE = "encode"


class Direction(Enum):
    """Where bytes went, seen from whoever counts them."""

    SENT = "sent"
    RECEIVED = "received"


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A gRPC stream has begun, whatever becomes of it."""


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """A gRPC stream has ended."""


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call of any method ended with an error."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class FileReloaded:
    """A file that is watched has changed."""

    name: str
    is_good: bool
    """Else it cannot be used, and what it said before holds."""


@dataclass(frozen=True, slots=True)
class OpenRefused:
    """A stream ended before a session was opened or resumed."""

    reason: Reason
    tenant: str
    waited_s: float = 0.0
    """How long the client waited for room that there was not."""


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """An ingress feeds one session more."""

    tenant: str


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """An ingress feeds one session less."""

    tenant: str


@dataclass(frozen=True, slots=True)
class FrameAnswered:
    """A frame has its picture."""

    model: str
    latency_s: float
    """From its receipt until the picture could be sent."""
    is_late: bool = False
    """Whether that was after its deadline."""
    jitter_s: float | None = None
    """How far the time since the picture before is from the time between the frames. None: there is none
    before.
    """


@dataclass(frozen=True, slots=True)
class FirstPicture:
    """A session's first picture could be sent."""

    model: str
    seconds: float
    """Since the session was asked for."""


@dataclass(frozen=True, slots=True)
class Played:
    """What a viewer of one session saw of the time that an answer accounts for (`ingress/playout.py`)."""

    tenant: str
    played_s: float = 0.0
    """The next picture was there when it was due."""
    stalled_s: float = 0.0
    """It was not."""
    queued_s: float = 0.0
    """There was no session yet."""


@dataclass(frozen=True, slots=True)
class FrameDropped:
    """A frame was answered without a picture."""

    reason: DropReason


@dataclass(frozen=True, slots=True)
class FillerSent:
    """A frame that no client has sent went into a lane, to complete a warm-up."""


@dataclass(frozen=True, slots=True)
class ImageCoded:
    """One image was decoded or encoded."""

    coding: Coding
    seconds: float


@dataclass(frozen=True, slots=True)
class LinkBytes:
    """Bytes of frames have crossed a link."""

    peer: str
    """Who counts: the name of the span, or `ingress`."""
    direction: Direction
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SlotsOffered:
    """A replica has started and holds so many sessions at most."""

    span: str
    slots: int
    max_batch: int
    """Samples in one of its forwards, at most."""


@dataclass(frozen=True, slots=True)
class SlotsTaken:
    """A session came to a replica or left it."""

    span: str
    slots: int
    """Taken now."""


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A replica has run one forward."""

    span: str
    rows: int
    queue_age_s: float
    """Age of the oldest row that waits now; 0 with none."""
    seconds: float
    """Of the forward."""
    failure: Failure | None = None
    """Why nothing came of it."""
    is_accelerated: bool = False
    """Whether its network was replayed from a graph, or ran compiled."""
    is_fallback: bool = False
    """Whether it was to be, and ran as it is."""


@dataclass(frozen=True, slots=True)
class FrameLeftSpan:
    """A frame has passed a replica."""

    timing: Timing


@dataclass(frozen=True, slots=True)
class FrameTraced:
    """The answer to a traced frame was handed to its connection."""

    trace: FrameTrace


@dataclass(frozen=True, slots=True)
class FrameUsed:
    """A frame's answer will not be asked for again: it counts to its tenant, once, whoever has fed it. Those
    of a session follow each other by place.
    """

    tenant: str
    session_id: str
    model: str
    place: int
    outcome: str
    """`translated`, or the name of the reason for which it was dropped."""
    pixel_steps: int
    """Width times height times denoising steps; 0 if it has not passed them."""
    device_s: float
    """Its shares of forwards."""


@dataclass(frozen=True, slots=True)
class OutputsForgotten:
    """A replica, or an ingress, has let go of outputs that nobody had acknowledged: a session or its tenant
    kept too many.
    """

    span: str
    count: int


@dataclass(frozen=True, slots=True)
class SessionMoved:
    """A session goes on in another lane."""

    continuity: Continuity
    seconds: float
    """From the loss of its lane, or from when it was held for a planned move, until frames go on."""
    planned: bool


@dataclass(frozen=True, slots=True)
class CheckpointTaken:
    """An ingress has a checkpoint of a session."""

    num_bytes: int
    seconds: float
    """From the request to freeze until all bytes were there."""


@dataclass(frozen=True, slots=True)
class ReplicaCondemned:
    """An ingress has taken a replica for dead."""

    span: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class ReplicasWanted:
    """An ingress has looked how many replicas a span that scales should have."""

    span: str
    wanted: int
    """How many it is to get to."""
    leaving: int
    """How many are emptied, so that they can go."""
    why: Why


Event: TypeAlias = (
    StreamOpened
    | StreamClosed
    | CallEnded
    | FileReloaded
    | OpenRefused
    | SessionOpened
    | SessionClosed
    | FrameAnswered
    | FirstPicture
    | Played
    | FrameDropped
    | FillerSent
    | ImageCoded
    | LinkBytes
    | SlotsOffered
    | SlotsTaken
    | BatchRun
    | FrameLeftSpan
    | FrameTraced
    | FrameUsed
    | OutputsForgotten
    | SessionMoved
    | CheckpointTaken
    | ReplicaCondemned
    | ReplicasWanted
)

Events: TypeAlias = Callable[[Event], None]
"""Where events go. Called on the event loop of whoever publishes."""


def no_events(event: Event) -> None:
    """The sink that listens to nothing."""


def told_to(*sinks: Events) -> Events:
    """The sink that tells all of these, in their order."""
    if len(sinks) == 1:
        return sinks[0]

    def tell(event: Event) -> None:
        for sink in sinks:
            sink(event)

    return tell
