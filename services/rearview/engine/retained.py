"""Outputs that an engine keeps until whoever is next has acknowledged them, to send them again.

Each session may keep so many bytes, its newest two outputs in any case. At the end of the chain a client
says what may go, and not a replica, so there its tenant's sessions have a limit together besides (`Share`),
whichever ingresses feed them. Beyond either the oldest outputs go. What went so is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

from torch import Tensor

from rearview.contract.chain import OperatorKind, Span
from rearview.contract.frame import Frame
from rearview.contract.retained import RETAINED_BYTES
from rearview.contract.session import SessionSpec
from rearview.contract.share import Share

__all__ = ["FRAME_BYTES", "RETAINED_BYTES", "Retained", "Retention"]

SPARED = 2
"""The newest outputs of a session, which are kept however large they are: a frame that carries pictures for
its controls may be larger than the limit, and would be lost with a replica."""
FRAME_BYTES = 1024
"""What a retained frame counts beside its planes: so a limit in bytes is also one in frames."""


class Retained:
    """Outputs of a session, to answer a frame that is sent a second time."""

    def __init__(
        self, max_bytes: int, share: Share | None = None, on_forgotten: Callable[[], None] = lambda: None
    ) -> None:
        """`share`: with the sessions that have a limit together; by default it is alone. `on_forgotten` is
        told of each output that goes unacknowledged.
        """
        self._max_bytes, self.num_bytes = max_bytes, 0
        self._share, self._on_forgotten = share or Share(), on_forgotten
        self._frames: OrderedDict[int, Frame[Tensor]] = OrderedDict()
        self._acknowledged = -1

    def keep(self, frame: Frame[Tensor]) -> None:
        """Keep an output, in place of what is kept under its ordinal; the oldest ones that are too much are
        forgotten, but `SPARED` are left. Nothing is kept that was acknowledged before.
        """
        if frame.ordinal <= self._acknowledged:
            return
        self._drop(frame.ordinal)
        self._frames[frame.ordinal] = frame
        self._count(_bytes_of(frame))
        while self.num_bytes > self._max_bytes and len(self._frames) > SPARED:
            self.forget_oldest()
        self._share.make_room()

    def acknowledge(self, ordinal: int) -> None:
        """Nobody will ask for outputs up to `ordinal` again."""
        self._acknowledged = max(self._acknowledged, ordinal)
        for known in [known for known in self._frames if known <= ordinal]:
            self._drop(known)

    def forget_oldest(self) -> bool:
        """Give room back though nobody has acknowledged anything. Something must be kept."""
        self._on_forgotten()
        self._drop(min(self._frames))
        return True

    def clear(self) -> None:
        """The session has ended."""
        for known in tuple(self._frames):
            self._drop(known)

    def get(self, ordinal: int) -> Frame[Tensor] | None:
        """None if it is not kept (any more)."""
        return self._frames.get(ordinal)

    def all(self) -> Sequence[Frame[Tensor]]:
        """What is kept, by ordinal."""
        return [self._frames[ordinal] for ordinal in sorted(self._frames)]

    def _drop(self, ordinal: int) -> None:
        if (frame := self._frames.pop(ordinal, None)) is not None:
            self._count(-_bytes_of(frame))

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._share.count(self, num_bytes)


class Retention:
    """What all sessions of one engine keep."""

    def __init__(self, span: Span, session_bytes: int = RETAINED_BYTES) -> None:
        """`session_bytes`: of each session."""
        self._session_bytes = session_bytes
        self._ends_chain = span.operators[-1].kind is OperatorKind.DECODE
        self._tenants: WeakValueDictionary[str, Share] = WeakValueDictionary()
        """At the end of the chain; as long as a tenant has sessions."""
        self._sessions: dict[str, Retained] = {}
        self._forgotten = 0

    def open(self, spec: SessionSpec) -> Retained:
        """Of a session that is opened. Its tenant's limit is what its newest session says."""
        share = None
        if self._ends_chain:
            share = self._tenants.setdefault(spec.tenant, Share(spec.max_kept_bytes))
            share.max_bytes = spec.max_kept_bytes
        retained = self._sessions[spec.session_id] = Retained(self._session_bytes, share, self._forgot)
        return retained

    def close(self, session_id: str) -> None:
        """Forget what is kept of a session, and the session."""
        self._sessions.pop(session_id).clear()

    def acknowledge(self, session_id: str, ordinal: int) -> None:
        """Outputs up to `ordinal` have been received: none of them will be asked for again."""
        if session_id in self._sessions:
            self._sessions[session_id].acknowledge(ordinal)

    def keep(self, frame: Frame[Tensor]) -> None:
        """Keep this of a frame that has left, in place of its output. Of unknown sessions nothing is kept."""
        if frame.session_id in self._sessions:
            self._sessions[frame.session_id].keep(frame)

    def take_forgotten(self) -> int:
        """How many outputs went unacknowledged since the last call."""
        forgotten, self._forgotten = self._forgotten, 0
        return forgotten

    def _forgot(self) -> None:
        self._forgotten += 1


def _bytes_of(frame: Frame[Tensor]) -> int:
    return FRAME_BYTES + sum(plane.nbytes for plane in (frame.planes or {}).values())
