"""Random numbers drawn before they are asked for, on a thread: noise, and the order of a bank's merges.

What is drawn follows from counters alone (`Draw`), so it may be drawn at any time and by anybody. Whoever
takes one gets what the thread has drawn if it is there, and draws it on the spot if it is not: the thread
decides how long that takes, and never what it is.
"""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["Ahead", "Draw"]

MAX_BYTES = 128 << 20
"""Of what is drawn ahead. For Stable Diffusion 1.5 at 512 x 512 a session takes 64 KiB of noise and 211 KiB
of permutations a step."""


class Draw(Protocol):
    """Random numbers that follow from counters. Equal ones are the same numbers."""

    @property
    def nbytes(self) -> int:
        """Of the tensor."""

    def draw(self, *, pinned: bool = False) -> Tensor:
        """On the host, by a generator of its own. Nobody writes to it. `pinned`: in memory that a device
        reads without waiting for the host.
        """


class _Coming(NamedTuple):
    what: Draw
    drawn: Future[Tensor]

    @property
    def is_there(self) -> bool:
        return self.drawn.done() and self.drawn.exception() is None


@dataclass(slots=True)
class Ahead:
    """What is drawn ahead for its owners, at most one draw for each place of an owner. For the thread of the
    engine alone.
    """

    executor: Executor | None = None
    """Draws, on a thread of its own. None: nothing is drawn ahead."""
    pinned: bool = False
    """Whether all that is drawn lies in pinned memory. Torch gives such memory to nobody else before the
    device has read it, so it may be let go of as soon as it is uploaded.
    """
    max_bytes: int = MAX_BYTES
    """What would take more in all is not drawn ahead."""
    held_bytes: int = 0
    """Of what is drawn ahead, or will be."""
    _places: dict[str, dict[Hashable, _Coming]] = field(default_factory=dict)
    """By owner."""

    @property
    def is_on(self) -> bool:
        """Whether anything is drawn ahead."""
        return self.executor is not None

    def take(self, owner: str, place: Hashable, what: Draw) -> Tensor:
        """The numbers; they stay where they are until something else is expected there."""
        coming = self._places.get(owner, {}).get(place)
        if coming is not None and coming.what == what and coming.is_there:
            return coming.drawn.result()
        return what.draw(pinned=self.pinned)

    def expect(self, owner: str, place: Hashable, what: Draw) -> None:
        """`what` will be asked for next in this place, and nothing that was expected there before."""
        if self.executor is None:
            return
        places = self._places.setdefault(owner, {})
        if place in places:
            if places[place].what == what:
                return
            self._forget(places.pop(place))
        if self.held_bytes + what.nbytes <= self.max_bytes:
            self.held_bytes += what.nbytes
            places[place] = _Coming(what, self.executor.submit(partial(what.draw, pinned=self.pinned)))

    def drop(self, owner: str) -> None:
        """Throw away what was drawn for an owner, or would be."""
        for coming in self._places.pop(owner, {}).values():
            self._forget(coming)

    def _forget(self, coming: _Coming) -> None:
        coming.drawn.cancel()
        self.held_bytes -= coming.what.nbytes
