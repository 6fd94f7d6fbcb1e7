"""A temporal cache in exact integers: what a frame sees of its past is a number, so pictures are bit-equal.

It keeps a session's first W and last R frames per step as the real one does, reads in `gather`, writes in
`scatter`, and remembers what it was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row
from torch import Tensor

from support.frames import content
from support.toy import MODULUS

SINK, RING = 4, 3


@dataclass(frozen=True)
class Seen:
    """The past of one (session, step): a number for each frame that it keeps."""

    sinks: tuple[int, ...] = ()
    ring: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        total = 0
        for each in (*self.sinks, -1, *self.ring):
            total = (total * 31 + each) % MODULUS
        return total

    def after(self, number: int) -> Seen:
        return Seen(self.sinks, (*self.ring, number)[-RING:])


@dataclass
class View:
    seen: list[int]
    """Per sample."""
    update: list[Seen]
    """Per row: what it would write."""


@dataclass
class ToyCache:
    """A `TemporalMemory` of sessions that have `spec.cache`."""

    slots: int = 64
    written: list[tuple[int, tuple[int, ...], bool]] = field(default_factory=list)
    """(step, ordinals, shadow) of every row that was written."""
    pasts: dict[tuple[str, int], Seen] = field(default_factory=dict)
    _pool: SlotPool = field(init=False)

    def __post_init__(self) -> None:
        self._pool = SlotPool(self.slots)

    def allocate(self, spec: SessionSpec) -> None:
        self._pool.allocate(spec.session_id)

    def free(self, session_id: str) -> None:
        self.reset(session_id)
        self._pool.free(session_id)

    def reset(self, session_id: str) -> None:
        self.pasts = {key: past for key, past in self.pasts.items() if key[0] != session_id}

    def warm_up_frames(self, spec: SessionSpec) -> int:
        return SINK if spec.cache is not None else 0

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        return False

    def write_due(self, row: Row) -> bool:
        return False

    def gather(self, rows: Sequence[Row]) -> View | None:
        if rows[0].operator.kind is not OperatorKind.DENOISE or rows[0].frame.spec.cache is None:
            return None
        view = View([], [])
        keys = [(row.session_id, row.operator.step) for row in rows]
        assert len(set(keys)) == len(keys), f"{keys}: a cache is read twice in one forward"
        for key, row in zip(keys, rows, strict=True):
            numbers = [number_of_sample(each.ordinal, each.settings, content(each)) for each in row.samples()]
            if row.window:
                assert len(numbers) == SINK, f"a window of {len(numbers)}"
                past = Seen(tuple(numbers))
                view.seen += [past.number] * SINK
            else:
                past = self.pasts[key].after(numbers[0])  # KeyError: it was not warmed up.
                view.seen.append(past.number)
            view.update.append(past)
        return view

    def scatter(self, rows: Sequence[Row], update: Sequence[Seen] | None) -> None:
        for row, past in zip(rows, update or (), strict=update is not None):
            self.pasts[row.session_id, row.operator.step] = past
            self.written.append((row.operator.step, tuple(frame.ordinal for frame in row.frames), row.shadow))

    def export(self, session_id: str) -> Mapping[str, Any]:
        return {"pasts": {step: past for (name, step), past in self.pasts.items() if name == session_id}}

    def import_(self, session_id: str, state: Mapping[str, Any]) -> None:
        self.pasts |= {(session_id, step): past for step, past in state["pasts"].items()}

    def bytes_per_session(self, spec: SessionSpec) -> int:
        return 0

    @property
    def free_slots(self) -> int:
        return self._pool.free_slots

    def check_integrity(self) -> None:
        self._pool.check_integrity()

    def windows(self, step: int = 0, *, shadow: bool = False) -> list[tuple[int, ...]]:
        """The ordinals of each window that was written, of those of one kind."""
        return [
            each[1] for each in self.written if each[0] == step and len(each[1]) > 1 and each[2] is shadow
        ]


def number_of_sample(ordinal: int, settings: Settings, payload: Tensor) -> int:
    """What a cache keeps of a frame: depends on all that its keys and values may depend on."""
    return int(payload.sum()) * 7 + ordinal + sum(settings.prompt.encode())
