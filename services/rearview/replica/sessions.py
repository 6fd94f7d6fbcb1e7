"""The sessions of a replica: under which epoch, fed by whom, sending to whom, and orphaned since when.

A table without I/O: links are opaque to it, `now` is an argument, and what a change asks of the shell
(`Stage`) is returned. A session whose owner's link ends is not lost: it is an *orphan* for the grace time,
in which another owner may adopt it (ATTACH) under a newer epoch. What surprises: epochs are remembered
beyond the sessions that they fenced, so that a former owner who is late is still refused.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rearview.contract.frame import NO_PLACE
from rearview.errors import NotFound, Reason, Refused
from rearview.transport.codec import FrameCodec

__all__ = ["Held", "Passed", "Sessions"]

REMEMBERED_EPOCHS = 10_000
"""Closed sessions whose epoch is remembered, so that a former owner stays fenced."""
REMEMBERED_SETTINGS = 64
"""Settings that are told again to a next replica: no session has more frames on their way."""
REMEMBERED_NOTES = 2
"""The last note may be ahead of the frames that came; the one before it is not."""

REMEMBERED_DROPS = 128
"""Frames that never came: no client has more without an answer."""

L = TypeVar("L")
"""A link to a peer."""


@dataclass(slots=True)
class Passed:
    """Ordinals that have passed a point, each once and mostly in order."""

    upto: int = -1
    """It and all before it have passed."""
    after: set[int] = field(default_factory=set)
    """Those that have passed although one before them has not."""

    def add(self, ordinal: int) -> bool:
        """False: it had passed before."""
        if ordinal <= self.upto or ordinal in self.after:
            return False
        self.after.add(ordinal)
        while self.upto + 1 in self.after:
            self.upto += 1
            self.after.remove(self.upto)
        return True

    def __contains__(self, ordinal: int) -> bool:
        return ordinal <= self.upto or ordinal in self.after

    def without(self, ordinals: Sequence[int]) -> Passed:
        """As if these had not passed."""
        first = min(ordinals, default=self.upto + 1)
        passed = {*range(first, self.upto + 1), *self.after}
        return Passed(min(self.upto, first - 1), passed.difference(ordinals))


@dataclass(slots=True)
class Held(Generic[L]):
    """One session."""

    session_id: str
    epoch: int
    owner: L
    """Who opened or adopted it, and feeds it or the span before."""
    next: L | None
    """Where its frames go. None: the link is gone, or an adoption is under way; outputs are kept."""
    codec: FrameCodec
    tenant: str = ""
    lease: Mapping[str, Any] | None = None
    """Its lease when it was opened or adopted, as it travels: for a directory that comes back empty."""
    place: int = NO_PLACE
    """The highest place among the frames that were admitted."""
    index: int = -1
    """The client's number of that frame."""
    notes: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_NOTES))
    """The owner's last ones: from which ordinal on each holds, and its text."""
    dropped: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Frames that the owner has dropped before they came, by place: the client's number, and a reason."""
    feeder: L | None = None
    """Where its last frame came from."""
    left: Passed = field(default_factory=Passed)
    """Ordinals that the engine is done with."""
    sent: Passed = field(default_factory=Passed)
    """Ordinals that went out over `next`: none goes twice over one link."""
    frames: int = 0
    """Frames that have left this replica."""
    told_upto: int = -1
    """The last ordinal that the hop before knows not to be needed."""
    settings: OrderedDict[int, Mapping[str, Any]] = field(default_factory=OrderedDict)
    """The last versions announced, as they travel."""
    orphaned_until_s: float | None = None
    """When it is closed, unless somebody adopts it. None: it has an owner."""
    frozen_by: L | None = None
    """Over which link it was frozen; None: it is not."""
    freezes: int = 0
    """How often it was frozen."""
    retells: bool = False
    """Whether the next hop is to be told of `settings` before the next frame: when the session came here,
    words of them were on their way elsewhere."""

    def begin_at(self, expected: int, place: int, settings: Mapping[int, Mapping[str, Any]]) -> None:
        """All before the ordinal `expected` has passed elsewhere, and `settings` were announced there."""
        last = expected - 1
        self.left, self.sent, self.told_upto, self.place = Passed(last), Passed(last), last, place
        self.settings, self.retells = OrderedDict(settings), bool(settings)

    def came(self, place: int, index: int, feeder: L) -> None:
        """A frame has come over `feeder`."""
        self.feeder = feeder
        self.dropped.pop(place, None)  # A client sends again what its owner before has not answered.
        if place > self.place:
            self.place, self.index = place, index

    def dropped_before(self, frames: Sequence[Sequence[int]]) -> None:
        """These never come. For each its place, the client's number, and why."""
        for place, index, reason in frames:
            self.dropped[place] = (index, reason)
        while len(self.dropped) > REMEMBERED_DROPS:
            del self.dropped[min(self.dropped)]

    def announced(self, version: int, settings: Mapping[str, Any]) -> None:
        """Remember settings."""
        self.settings[version] = settings
        if len(self.settings) > REMEMBERED_SETTINGS:
            self.settings.popitem(last=False)

    def ack_due(self, every: int) -> int | None:
        """The ordinal to acknowledge to the hop before, if `every` or more have been passed since."""
        if self.left.upto - self.told_upto < every:
            return None
        self.told_upto = self.left.upto
        return self.told_upto


class Sessions(Generic[L]):
    """Those that are open, those that are opening, and the epochs of those that were."""

    def __init__(self, orphan_grace_s: float) -> None:
        self._grace_s = orphan_grace_s
        self._held: dict[str, Held[L]] = {}
        self._opening: dict[str, int] = {}
        """Epochs of the sessions whose open is under way; a close takes them out."""
        self._epochs: OrderedDict[str, int] = OrderedDict()
        """Of sessions that have gone, or whose close has overtaken their open."""

    def __len__(self) -> int:
        """Those whose open is under way included: they hold a slot."""
        return len(self._held) + len(self._opening)

    def __iter__(self) -> Iterator[Held[L]]:
        return iter(tuple(self._held.values()))

    @property
    def orphans(self) -> Sequence[str]:
        """Sessions without an owner, in order of id."""
        return sorted(held.session_id for held in self if held.orphaned_until_s is not None)

    def describe(self) -> Mapping[str, Any]:
        """Which there are."""
        return {
            "sessions": sorted(held.session_id for held in self),
            "orphans": self.orphans,
            "frames_by_session": {held.session_id: held.frames for held in self},
            "leases": {held.session_id: held.lease for held in self if held.lease is not None},
        }

    @property
    def num_owned(self) -> int:
        """Those that keep their slot. An orphan yields its own: while it may be adopted its lease counts."""
        return len(self) - len(self.orphans)

    def get(self, session_id: str, epoch: int | None = None) -> Held[L] | None:
        """The session, if it is open and, with `epoch`, under this very one: everything else is fenced."""
        held = self._held.get(session_id)
        return held if held is not None and epoch in (None, held.epoch) else None

    async def standing(self, owner: L, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer STANDING: whether the session is open, and its owner has left a note."""
        held = self._held.get(request["session_id"])
        return {"is_open": held is not None, "is_noted": held is not None and bool(held.notes)}

    def note(self, session_id: str, epoch: int, begins: int, text: str) -> None:
        """The session's owner leaves a note, which holds if ordinal `begins` has come."""
        held = self.get(session_id, epoch)
        if held is not None:
            held.notes.append((begins, text))

    def begin(self, session_id: str, epoch: int) -> Held[L] | None:
        """An open of the session is under way; returns the former one that it ends, whose owner is to be
        told if it is another. Raises Refused(TAKEN_OVER) if a newer epoch is known.
        """
        if epoch <= (known := self._known(session_id)):
            raise _taken_over(known)
        self._opening[session_id] = epoch
        return self._held.pop(session_id, None)

    def is_opening(self, session_id: str, epoch: int) -> bool:
        """Whether the open under way is this one: it was overtaken by no close and no newer open."""
        return self._opening.get(session_id) == epoch

    def check_opening(self, session_id: str, epoch: int) -> None:
        """Raises Refused(TAKEN_OVER) if the open is under way no more."""
        if not self.is_opening(session_id, epoch):
            raise Refused(Reason.TAKEN_OVER, "the session was closed or opened anew meanwhile")

    def opened(self, held: Held[L]) -> None:
        """The open under way has succeeded."""
        del self._opening[held.session_id]
        self._held[held.session_id] = held

    def abandon(self, session_id: str, epoch: int) -> bool:
        """An open has failed. False: a newer one is under way or has succeeded, and needs the slot."""
        if self._opening.get(session_id, epoch) != epoch or session_id in self._held:
            return False
        self._opening.pop(session_id, None)
        self._remember(session_id, epoch)
        return True

    def close(self, session_id: str, epoch: int) -> bool:
        """Forget the session if this is its epoch; returns whether the engine has something to forget."""
        if epoch >= self._known(session_id):
            self._remember(session_id, epoch)  # If its open is still to run it will be refused.
        if self.is_opening(session_id, epoch):
            return self.abandon(session_id, epoch)  # Its open is under way, and will find itself gone.
        if self.get(session_id, epoch) is None:
            return False
        del self._held[session_id]
        return True

    def check_attach(self, session_id: str, epoch: int, *, takes_over: bool = False) -> Held[L]:
        """The session, if an owner under `epoch` may adopt it. The same epoch is the same owner, who comes
        back over another link, unless it `takes_over`: then a directory has lost what it had granted.
        Raises NotFound(SESSION_UNKNOWN) and Refused(TAKEN_OVER).
        """
        if epoch < (known := self._known(session_id)) + takes_over:
            raise _taken_over(known)
        held = self._held.get(session_id)
        if held is None:
            raise NotFound(Reason.SESSION_UNKNOWN, "there is no such session here")
        return held

    def attach(
        self, session_id: str, epoch: int, owner: L, lease: Mapping[str, Any] | None = None
    ) -> tuple[L, int] | None:
        """Adopt the session; returns the link of the owner that is fenced by it, to be told, with its epoch.
        Raises as `check_attach` does.
        """
        held = self.check_attach(session_id, epoch)
        assert epoch >= held.epoch, f"epoch {epoch} adopts what epoch {held.epoch} has"
        fenced = (held.owner, held.epoch) if epoch > held.epoch and held.owner is not owner else None
        held.epoch, held.owner, held.orphaned_until_s = epoch, owner, None
        held.lease = lease
        return fenced

    def owner_closed(self, link: L, now: float) -> int:
        """Its sessions are orphans from now on; returns how many."""
        mine = [held for held in self if held.owner is link and held.orphaned_until_s is None]
        for held in mine:
            held.orphaned_until_s = now + self._grace_s
        return len(mine)

    def next_closed(self, link: L) -> Sequence[Held[L]]:
        """Their outputs are kept from now on; returns the sessions, whose owners are to be told."""
        cut_off = [held for held in self if held.next is link]
        for held in cut_off:
            held.next = None
        return cut_off

    def overdue(self, now: float) -> Sequence[Held[L]]:
        """Orphans whose grace time is over."""
        return [held for held in self if held.orphaned_until_s is not None and held.orphaned_until_s <= now]

    def yielding(self, slots: int) -> Held[L] | None:
        """The orphan that gives its slot to a session whose open is under way, where there are more sessions
        than slots: it has waited longest. None: there is none, or no need of one.
        """
        if len(self) <= slots:
            return None
        orphans = ((held.orphaned_until_s, held) for held in self if held.orphaned_until_s is not None)
        return min(orphans, key=lambda pair: pair[0], default=(0.0, None))[1]

    def _known(self, session_id: str) -> int:
        """The newest epoch of a session that is known here; 0: there is none."""
        held = self._held.get(session_id)
        here = 0 if held is None else held.epoch
        return max(here, self._opening.get(session_id, 0), self._epochs.get(session_id, 0))

    def _remember(self, session_id: str, epoch: int) -> None:
        self._epochs[session_id] = max(epoch, self._epochs.get(session_id, 0))
        self._epochs.move_to_end(session_id)
        if len(self._epochs) > REMEMBERED_EPOCHS:
            self._epochs.popitem(last=False)


def _taken_over(epoch: int) -> Refused:
    metadata = {"epoch": str(epoch)}
    return Refused(Reason.TAKEN_OVER, "a newer epoch of the session is known here", metadata=metadata)
