"""How a frame relates to the frames before it."""

from __future__ import annotations

from enum import Enum

from rearview.contract.session import SessionSpec

__all__ = ["Method", "method_of"]


class Method(Enum):
    """How a frame relates to the frames before it."""

    PER_FRAME = "per-frame"
    """Not at all: every frame is translated by itself."""
    STREAMV2V = "streamv2v"
    """By a feature bank: attention also sees stored keys and values of the past."""
    LIVE2DIFF = "live2diff"
    """By temporal attention over a cache of past frames. The first frames (`Opened.warm_up_frames`) are
    answered together, once all of them were received."""


def method_of(spec: SessionSpec) -> Method:
    """The method of a session; LIVE2DIFF if it has both memories."""
    if spec.cache is not None:
        return Method.LIVE2DIFF
    return Method.PER_FRAME if spec.bank is None else Method.STREAMV2V
