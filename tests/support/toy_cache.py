"""A temporal cache in exact integers: what a frame sees of its past is a number, so pictures are bit-equal.

It keeps a session's first W and last R frames per step as the real one does, reads in `gather`, writes in
`scatter`, and remembers what it was asked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.memory.export import Chunk
from rearview.engine.memory.protocol import Memory, Write
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row
from torch import Tensor

from support.frames import content
from support.toy_view import RING, TOY, Seen, ToyUpdate, ToyView

__all__ = ["RING", "SINK", "Seen", "ToyCache", "number_of_sample"]

SINK = 4
MAX_STEPS = 4


@dataclass
class ToyCache(Memory[ToyView, ToyUpdate]):
    """Pasts of sessions that have `spec.cache`."""

    kind = TOY
    operators = frozenset(OperatorKind)

    slots: int = 64
    steps: Sequence[int] = range(MAX_STEPS)
    """Those that it keeps; what an export says of others is ignored."""
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

    def group(self, spec: SessionSpec, operator: Operator) -> Hashable:
        """Rows with and without a cache may share a forward: a past is one number, and none is 0."""

    def gather(self, rows: Sequence[Row]) -> ToyView | None:
        if rows[0].operator.kind is not OperatorKind.DENOISE or all(not _is_cached(row) for row in rows):
            return None
        pasts = [self._past(row) if _is_cached(row) else None for row in rows]
        seen = [
            0 if past is None else past.number
            for past, row in zip(pasts, rows, strict=True)
            for _ in row.frames
        ]
        return ToyView(torch.tensor(seen), ToyUpdate(tuple(pasts)))

    def _past(self, row: Row) -> Seen:
        """As the row sees it, and leaves it."""
        numbers = [number_of_sample(each.ordinal, each.settings, content(each)) for each in row.samples()]
        if row.window:
            assert len(numbers) == SINK, f"a window of {len(numbers)}"
            return Seen(tuple(numbers))
        return self.pasts[row.session_id, row.operator.step].after(numbers[0])  # KeyError: it is not warm.

    def prepare(self, rows: Sequence[Row], update: ToyUpdate) -> Write:
        keys = [(row.session_id, row.operator.step) for row in rows]
        assert len(set(keys)) == len(keys), f"{keys}: a cache is written twice in one forward"

        def write() -> None:
            for row, past in zip(rows, update.pasts, strict=True):
                if past is not None:
                    self.pasts[row.session_id, row.operator.step] = past
                    ordinals = tuple(frame.ordinal for frame in row.frames)
                    if row.session_id:  # What is timed at start-up has no name.
                        self.written.append((row.operator.step, ordinals, row.shadow))

        return write

    def export(self, session_id: str) -> Iterator[Chunk]:
        yield Chunk(TOY.name)
        for (name, step), past in self.pasts.items():
            if name == session_id:
                yield Chunk(TOY.name, step, values={"sinks": list(past.sinks), "ring": list(past.ring)})

    def prepare_import(self, session_id: str, chunks: Iterable[Chunk]) -> Write:
        pasts = {
            (session_id, chunk.step): Seen(
                *(tuple(cast(list[int], chunk.values[k])) for k in ("sinks", "ring"))
            )
            for chunk in chunks
            if chunk.step in self.steps
        }
        return lambda: self.pasts.update(pasts)

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


def _is_cached(row: Row) -> bool:
    return row.frame.spec.cache is not None


def number_of_sample(ordinal: int, settings: Settings, payload: Tensor) -> int:
    """What a cache keeps of a frame: depends on all that its keys and values may depend on."""
    return int(payload.sum()) * 7 + ordinal + sum(settings.prompt.encode())
