"""What is before a frame in a span, worked out once for all frames that come under the same settings.

Which operators they pass follows from the settings, and so do the groups of their rows and what those cost,
as long as a frame goes alone: only a frame of a warm-up has to be asked about each time (`windows.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.settings import Settings

__all__ = ["Course", "LaterRow", "Stage", "bit_of"]


class LaterRow(NamedTuple):
    """A row that a frame has still before it."""

    group: Hashable
    width: int = 1
    controls: int = 0
    """See `Row.controls`."""


class Stage(NamedTuple):
    """What a row is by where its frame stands, whatever its deadline."""

    group: Hashable
    later: tuple[LaterRow, ...]
    """What is still before its frame."""
    later_s: float
    """What they cost, each alone."""


class Course:
    """The operators that a session's frames pass under the same settings. Such frames share it."""

    __slots__ = ("ahead", "bits", "operators", "settings", "stages")

    def __init__(
        self, settings: Settings, operators: Sequence[Operator], ordered: Collection[Operator] = ()
    ) -> None:
        """`ordered`: operators that one frame of the session runs after the other."""
        self.settings, self.operators = settings, tuple(operators)
        self.bits = tuple(map(bit_of, operators))
        """By position, the operator as a bit."""
        self.ahead = tuple(_bits(set(operators[at:]).intersection(ordered)) for at in range(len(operators)))
        """By position, the ordered ones from there on: later frames wait before them."""
        self.stages: dict[int, Stage] = {}
        """By position, those of frames that go alone, as far as one has been there (`ready.py`)."""


def bit_of(operator: Operator) -> int:
    """A bit for each operator: sets of them are compared for every frame at every change."""
    if operator.kind is OperatorKind.DENOISE:
        return 1 << (2 + operator.step)
    return 1 if operator.kind is OperatorKind.ENCODE else 2


def _bits(operators: Collection[Operator]) -> int:
    return sum(map(bit_of, operators))
