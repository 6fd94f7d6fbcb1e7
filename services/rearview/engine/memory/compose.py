"""Several kinds of memory as one, under their names: what the engine has.

Each kind keeps its own pool and its own slots; a session has one in all of them or in none. A row reads and
writes the kinds that serve its operator. With no kind at all every frame is translated by itself, and a slot
is all that a session takes, since slots bound a replica's sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.contract.size import Size
from rearview.engine.ahead import Ahead
from rearview.engine.memory.export import Chunk
from rearview.engine.memory.protocol import AnyMemory, Updates, Views
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row
from rearview.engine.windows import Windows, new_windows
from rearview.errors import InvalidRequest, Reason

__all__ = ["Lacking", "Memories"]


@dataclass(frozen=True, slots=True)
class Lacking:
    """A kind of memory that is not kept here, though rows would read it."""

    name: str
    text: str
    """What a session that asks for it is told."""
    is_asked_for: Callable[[SessionSpec], bool]


class Memories:
    """The pasts of all sessions of an engine. Not thread-safe: the engine is the only caller."""

    def __init__(
        self,
        kinds: Sequence[AnyMemory],
        num_slots: int,
        lacking: Sequence[Lacking] = (),
        ahead: Ahead | None = None,
    ) -> None:
        """`num_slots`: sessions, as in each of `kinds`. `lacking`: kinds that sessions ask for in vain.
        `ahead`: draws for sessions, until they are freed.
        """
        self._kinds = {kind.kind.name: kind for kind in kinds}
        assert len(self._kinds) == len(kinds), f"two kinds of one name: {sorted(self._kinds)}"
        self._serving = {
            kind: [memory for memory in self._kinds.values() if kind in memory.operators]
            for kind in OperatorKind
        }
        self._slots = SlotPool(num_slots)
        self._lacking, self._ahead = tuple(lacking), ahead or Ahead()

    @property
    def kernels(self) -> str:
        """How pasts are read and written, in few characters, where there are several ways."""
        return " ".join(memory.kernels for memory in self._kinds.values() if memory.kernels)

    @property
    def names(self) -> frozenset[str]:
        """Of the kinds that are kept here."""
        return frozenset(self._kinds)

    def allocate(self, spec: SessionSpec) -> None:
        """Take a slot in every kind. Raises Refused(NO_CAPACITY), and InvalidRequest for a session that does
        not fit or asks for what is not kept here; changes nothing then.
        """
        for kind in self._lacking:
            if kind.is_asked_for(spec):
                raise InvalidRequest(Reason.SETTING_OUT_OF_RANGE, kind.text, metadata={"field": kind.name})
        self._slots.allocate(spec.session_id)
        try:
            for memory in self._kinds.values():
                memory.allocate(spec)
        except BaseException:
            self.free(spec.session_id)
            raise

    def check_fits(self, spec: SessionSpec, size: Size) -> None:
        """Raises InvalidRequest if the session's slots have no room for frames of that size."""
        for memory in self._kinds.values():
            memory.check_fits(spec, size)

    def free(self, session_id: str) -> None:
        """Give the slots back; what they held can no longer be read. Unknown sessions are ignored."""
        self._slots.free(session_id)
        self._ahead.drop(session_id)
        for memory in self._kinds.values():
            memory.free(session_id)

    def reset(self, session_id: str) -> None:
        """Forget the past, keep the slots: the next frame finds them as in a new session."""
        for memory in self._kinds.values():
            memory.reset(session_id)

    def group(self, spec: SessionSpec, operator: Operator) -> Hashable:
        """What keeps rows of a session out of a forward with others, beside what the model says. None:
        nothing does.
        """
        found = ((memory.kind.name, memory.group(spec, operator)) for memory in self._serving[operator.kind])
        return tuple((name, group) for name, group in found if group is not None) or None

    def warm_up_frames(self, spec: SessionSpec) -> int:
        """See `Memory.warm_up_frames`."""
        return max((memory.warm_up_frames(spec) for memory in self._kinds.values()), default=0)

    def windows(self, spec: SessionSpec, steps: Sequence[int]) -> Windows:
        """Which frames of a session that begins go together. `steps`: denoising steps of the span."""
        return new_windows(self.warm_up_frames(spec), spec, steps)

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        """See `Memory.keeps_order`."""
        return any(memory.keeps_order(spec, operator) for memory in self._serving[operator.kind])

    def num_writes(self, row: Row) -> int:
        """See `Memory.num_writes`."""
        return sum(memory.num_writes(row) for memory in self._serving[row.operator.kind])

    def changes_past(self, row: Row) -> bool:
        """See `Memory.changes_past`."""
        return any(memory.changes_past(row) for memory in self._serving[row.operator.kind])

    def gather(self, rows: Sequence[Row]) -> Views:
        """What these rows, all of one group, read. Changes nothing."""
        views = Views()
        for memory in self._serving[rows[0].operator.kind]:
            view = memory.gather(rows)
            if view is not None:
                views[memory.kind.name] = view
        return views

    def scatter(self, rows: Sequence[Row], updates: Updates) -> None:
        """Write what the rows left to each kind that `updates` names. Everything is computed before
        anything is written: an exception leaves every past as it was.
        """
        serving = [memory for memory in self._serving[rows[0].operator.kind] if memory.kind.name in updates]
        unknown = updates.keys() - {memory.kind.name for memory in serving}
        assert not unknown, f"{rows[0].operator.name} left something to {sorted(unknown)}"
        for write in [memory.prepare_named(rows, updates) for memory in serving]:
            write()

    def export(self, session_id: str) -> Iterator[Chunk]:
        """The chunks of each kind in turn, each made when it is asked for. The session must not run
        meanwhile.
        """
        for memory in self._kinds.values():
            yield from memory.export(session_id)

    def import_(self, session_id: str, chunks: Iterable[Chunk]) -> None:
        """Replace the past of a session that has its slots. Kinds that the export says nothing of stay as
        they are, and those that are not kept here are ignored. Raises ValueError if it does not fit, or if
        it has none of what is kept here; nothing has changed then.
        """
        found: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            found.setdefault(chunk.kind, []).append(chunk)
        known = [name for name in self._kinds if name in found]
        if not known and (self._kinds or found):
            raise ValueError(f"the export is of {sorted(found)}, here there are {sorted(self._kinds)}")
        try:
            writes = [self._kinds[name].prepare_import(session_id, found[name]) for name in known]
        except InvalidRequest as error:
            raise ValueError(f"the export is of frames for which there is no room: {error.message}") from None
        for write in writes:
            write()

    def bytes_per_session(self, spec: SessionSpec) -> int:
        """Bytes that `allocate(spec)` takes from all pools."""
        return sum(self.bytes_by_kind(spec).values())

    def bytes_by_kind(self, spec: SessionSpec) -> Mapping[str, int]:
        """The same, by name of the kind."""
        return {name: memory.bytes_per_session(spec) for name, memory in self._kinds.items()}

    @property
    def free_slots(self) -> int:
        """Sessions that still fit."""
        return min([self._slots.free_slots, *(memory.free_slots for memory in self._kinds.values())])

    def check_integrity(self) -> None:
        """Assert that slots are owned once, and that what is not owned is empty."""
        self._slots.check_integrity()
        for memory in self._kinds.values():
            memory.check_integrity()
