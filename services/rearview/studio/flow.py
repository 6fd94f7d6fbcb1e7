"""What bounds a wall: frames and controls that wait, answers that the page has not taken, credit for more.

Values and counts; no clock, no I/O.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rearview.contract.settings import SettingsChange
from rearview.studio.changing import merged, without
from rearview.studio.protocol import FrameIn

__all__ = ["MAX_UNACKNOWLEDGED", "PAGE_FRAMES", "Change", "PageCredit", "Taken", "Unacknowledged", "Waiting"]

PAGE_FRAMES = 4
"""Frames that a page may have on their way to the gateway."""
LIVE_FRAMES, LOSSLESS_FRAMES = 2, 8
"""Frames of a tile that may wait for its session; of a lossless one more than the page has credit for."""
MAX_CONTROLS = 32
"""Of a tile, that are not answered."""
MAX_UNACKNOWLEDGED = 32
"""Answers of a tile that the page has not taken; then no more are read from the service."""
MAX_UNACKNOWLEDGED_IN_ALL = 512
"""Of a wall, `dropped` included; then the page has no credit."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A frame that came from the page. Tiles share it."""

    number: int
    """Of the wall, over all its sockets: what sessions know it by."""
    frame: FrameIn
    received_s: float
    """Monotonic seconds."""


@dataclass(slots=True, eq=False)
class Change:
    """A control on its way to a session."""

    id: int | None
    """The page's; None: the gateway's own, of which the page hears nothing."""
    settings: SettingsChange
    after: int = -1
    """Number of the last frame before it; -1: none. It holds for none up to that."""
    first: int | None = None
    """Number of the first frame under it, once one was sent."""
    is_turned: bool = False
    """Whether controllers have made it."""

    @property
    def frame(self) -> int:
        """From which frame on it holds."""
        return self.after + 1 if self.first is None else self.first


class Waiting:
    """What a tile has not handed to its session yet, in order. Of live frames the newest stay."""

    def __init__(self, *, is_lossless: bool) -> None:
        self._is_lossless = is_lossless
        self._items: deque[Taken | Change] = deque()
        self._num_frames = 0
        self._unanswered: list[Change] = []
        """Controls that wait, or that the session has."""
        self._turned: SettingsChange | None = None
        """Goes right before the next frame."""
        self._may_turn = True
        """False between such a change and its frame."""

    @property
    def room(self) -> int:
        """Frames that the page may send without losing any; a live tile never stops it."""
        return LOSSLESS_FRAMES - self._num_frames if self._is_lossless else PAGE_FRAMES

    @property
    def first(self) -> int | None:
        """Number of the oldest frame that waits."""
        return next((item.number for item in self._items if isinstance(item, Taken)), None)

    def put(self, taken: Taken) -> Taken | None:
        """Add a frame; returns the one that it displaced."""
        self._items.append(taken)
        self._num_frames += 1
        most = LOSSLESS_FRAMES if self._is_lossless else LIVE_FRAMES
        if self._num_frames <= most:
            return None
        oldest = next(item for item in self._items if isinstance(item, Taken))
        self._items.remove(oldest)
        self._num_frames -= 1
        return oldest

    def control(self, change: Change) -> bool:
        """Add a control. False: too many are unanswered. Of what was turned before, the page has the last
        word on what it names; what the gateway asks by itself is older.
        """
        if len(self._unanswered) >= MAX_CONTROLS:
            return False
        if self._turned is not None and change.id is not None:
            left = without(self._turned, change.settings)
            self._turned = left if left.named() else None
        self._unanswered.append(change)
        self._items.append(change)
        return True

    def turn(self, change: SettingsChange) -> None:
        """Controllers change something: together with all else that they turn until the next frame is taken,
        so however fast a fader moves, a frame has one change before it, with the newest of each. It goes
        after the controls that wait already and say something of the same.
        """
        self._turned = change if self._turned is None else merged(self._turned, change)

    def ask_apart(self, refused: SettingsChange) -> bool:
        """Ask again, each by itself and before the next frame, what was turned together and refused, but for
        what later changes name. False: there is nothing of it, or too many are unanswered.
        """
        for later in self.changes:
            refused = without(refused, later)
        named = refused.named().items()
        parts = [Change(None, SettingsChange(**{name: value}), is_turned=True) for name, value in named]
        if not parts or len(self._unanswered) + len(parts) > MAX_CONTROLS:
            return False
        self._unanswered.extend(parts)
        self._items.extendleft(reversed(parts))
        return True

    @property
    def changes(self) -> Sequence[SettingsChange]:
        """Those that are not answered, in order."""
        turned = [] if self._turned is None else [self._turned]
        return [*(change.settings for change in self._unanswered), *turned]

    def control_answered(self, change: Change) -> None:
        """One of those taken was answered, or never will be."""
        self._unanswered.remove(change)

    def take(self) -> Taken | Change | None:
        """The oldest; None if nothing waits."""
        if not self._items:
            return None
        if self._turned is not None and self._may_go(self._turned):
            turned = Change(None, self._turned, is_turned=True)
            self._turned, self._may_turn = None, False
            self._unanswered.append(turned)
            return turned
        item = self._items.popleft()
        if isinstance(item, Taken):
            self._num_frames -= 1
            self._may_turn = True
        return item

    def _may_go(self, turned: SettingsChange) -> bool:
        """Whether a frame is next, and no control behind it says something older of the same."""
        has_room = len(self._unanswered) < MAX_CONTROLS
        older = (item.settings for item in self._items if isinstance(item, Change))
        return (
            self._may_turn
            and has_room
            and isinstance(self._items[0], Taken)
            and all(without(turned, change) == turned for change in older)
        )


@dataclass(frozen=True, slots=True)
class _Given:
    tile: int
    frame: int | None
    """None: it answers a control, and the page does not count it."""
    message: str | bytes


class Unacknowledged:
    """What was given to a page, in order, until it says that it has taken it: given again if its socket is
    lost.
    """

    def __init__(self) -> None:
        self._given: deque[_Given] = deque()
        self._counts: Counter[int] = Counter()
        """Of each tile, those that the page counts."""
        self._taken = 0

    def __iter__(self) -> Iterator[str | bytes]:
        return (each.message for each in self._given)

    def given(self, tile: int, frame: int, message: str | bytes) -> None:
        """One more answer of the tile."""
        self._given.append(_Given(tile, frame, message))
        self._counts[tile] += 1

    def displaced(self, tile: int, frame: int, message: str) -> None:
        """In the place of an answer the page is given another one, after all that wait."""
        old = next((each for each in self._given if (each.tile, each.frame) == (tile, frame)), None)
        if old is not None:  # Else the page claims to have taken what it was not given.
            self._given.remove(old)
            self._given.append(_Given(tile, frame, message))

    def applied(self, tile: int, message: str) -> None:
        """A control was answered; of those of the tile that the page has not taken the newest are kept."""
        self._given.append(_Given(tile, None, message))
        uncounted = [each for each in self._given if (each.tile, each.frame) == (tile, None)]
        if len(uncounted) > MAX_CONTROLS:
            self._given.remove(uncounted[0])

    def received(self, answers: int) -> None:
        """The page has taken so many in all. More than were given counts as all of them."""
        while self._taken < answers and self._counts.total():
            oldest = self._given.popleft()
            if oldest.frame is not None:
                self._counts[oldest.tile] -= 1
                self._taken += 1

    def has_room(self, tile: int) -> bool:
        """Whether the tile may have one more."""
        return self._counts[tile] < MAX_UNACKNOWLEDGED

    @property
    def is_full(self) -> bool:
        """Whether the page takes nothing any more."""
        return self._counts.total() >= MAX_UNACKNOWLEDGED_IN_ALL


class PageCredit:
    """How many frames a page may have sent in all. It never falls."""

    def __init__(self) -> None:
        self.granted = PAGE_FRAMES
        self._received = 0

    def receive(self) -> bool:
        """A frame came. False: it had no credit."""
        if self._received >= self.granted:
            return False
        self._received += 1
        return True

    def grant(self, room: int) -> bool:
        """Let the page send `room` frames more, at most `PAGE_FRAMES`. Whether there is something to say."""
        granted = max(self.granted, self._received + min(room, PAGE_FRAMES))
        is_news, self.granted = granted > self.granted, granted
        return is_news
