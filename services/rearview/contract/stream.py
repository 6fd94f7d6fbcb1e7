"""What is said on a stream beside settings: how frames are dropped and read, and how a session goes on."""

from __future__ import annotations

from enum import Enum

__all__ = ["Continuity", "DropPolicy", "ImageFormat", "NoticeKind", "SessionState"]


class DropPolicy(Enum):
    """What happens to a frame when frames come faster than they can be translated."""

    LATEST = "latest"
    """One place to wait: a newer frame replaces the waiting one. For live video."""
    LOSSLESS = "lossless"
    """Nothing is dropped: credit stops the sender. For files."""
    DEADLINE = "deadline"
    """A frame is not started after its budget; a picture later than it is dropped."""


class ImageFormat(Enum):
    """How an image's bytes are to be read."""

    JPEG = "jpeg"
    """Baseline."""
    RGB = "rgb"
    """Rows of R, G, B bytes from the top left: width * height * 3 of them."""
    OPAQUE = "opaque"
    """Any bytes. Only with a model that does no image work (`null`)."""


class Continuity(Enum):
    """What a resumed or moved session still knows of its past."""

    EXACT = "exact"
    """Everything: pictures continue as if nothing had happened."""
    APPROXIMATE = "approximate"
    """Most of it, rebuilt from retained frames; or all of it, where other kernels compute: pictures differ by
    rounding then."""
    RESET = "reset"
    """Nothing: the session starts anew."""


class NoticeKind(Enum):
    """What a notice is about."""

    DRAIN = "drain"
    """The server will stop; the client resumes the session elsewhere when it does."""
    MOVED = "moved"
    """The session now runs on other replicas."""
    CREDIT = "credit"
    """`frame_credit` has grown while no answer could carry it. The client acts on it, its user does not
    see it."""
    RESIZED = "resized"
    """The next picture is the first one of another size."""
    RESUMED = "resumed"
    """Made by the client, never sent: the connection was lost and the session continued."""


class SessionState(Enum):
    """The life of a session, as its tenant sees it."""

    STREAMING = "streaming"
    """A stream feeds it."""
    DETACHED = "detached"
    """Its connection was lost; it can be resumed."""
    ELSEWHERE = "elsewhere"
    """Another ingress than the one that was asked has it."""
    UNKNOWN = "unknown"
    """Made by the client, never sent: a newer server's state."""
