"""Frames as tests of an engine put them in and look at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from rearview.contract.chain import Operator
from rearview.contract.frame import ANCHOR, DEPTH, LATENT, PICTURE, Frame, is_for_controls
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.course import Course
from rearview.engine.rows import FrameInFlight
from torch import Tensor

__all__ = ["content", "entering", "in_flight", "planes_of", "stacked"]

ORDER = (LATENT, DEPTH, ANCHOR)


class HasPlanes(Protocol):
    """A frame, or a row of one."""

    @property
    def planes(self) -> Mapping[str, Tensor] | None: ...


Content = Tensor | Mapping[str, Tensor]


def planes_of(given: Content) -> Mapping[str, Tensor]:
    """A tensor of whole numbers is a picture, another one a latent."""
    if not isinstance(given, Tensor):
        return given
    return {LATENT if given.is_floating_point() else PICTURE: given}


def stacked(planes: Mapping[str, Tensor]) -> Tensor:
    """The only plane, or several in the order of latent, depth and anchor, one above the other. What is for
    controls is left out.
    """
    planes = {name: each for name, each in planes.items() if not is_for_controls(name)}
    parts = list(planes.values()) if len(planes) == 1 else [planes[name] for name in ORDER if name in planes]
    assert len(parts) == len(planes), f"no order is known of {sorted(planes)}"
    return parts[0] if len(parts) == 1 else torch.stack(parts)


def entering(
    session_id: str,
    ordinal: int,
    given: Content | None,
    version: int = 0,
    deadline_s: float = float("inf"),
) -> Frame[Tensor]:
    """A frame before the first operator of a span; with nothing it was lost before."""
    planes = None if given is None else planes_of(given)
    return Frame(session_id, ordinal, planes, settings_version=version, deadline_s=deadline_s)


def content(frame: HasPlanes) -> Tensor | None:
    """Its planes, `stacked`; None of a frame that was lost."""
    return None if frame.planes is None else stacked(frame.planes)


def in_flight(
    spec: SessionSpec,
    ordinal: int,
    operator: Operator,
    given: Content | None = None,
    settings: Settings | None = None,
    *,
    deadline_s: float = float("inf"),
    **others: object,
) -> FrameInFlight:
    """A frame that has come to `operator`, the only one before it."""
    came = entering(spec.session_id, ordinal, torch.zeros(1) if given is None else given, 0, deadline_s)
    course = Course(settings or spec.settings, [operator])
    return FrameInFlight(spec, course.settings, came, came.planes, course, **others)  # type: ignore[arg-type]
