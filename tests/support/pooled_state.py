"""A memory of any kind whose update is the whole state: tensors of fixed shape by (slot, operator), counted.

Shape legend: B rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.engine.memory.export import NO_STEP, Chunk, check_number, check_tensors
from rearview.engine.memory.protocol import Kind, Memory, Write
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row
from torch import Tensor

Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class State:
    """States of some rows, before or after them."""

    count_B: Tensor
    """int64: rows that have left something here."""
    parts: tuple[Tensor, ...]
    """(B, ...) each."""

    @property
    def key(self) -> None:
        """There is nothing to tell apart."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.count_B, *self.parts

    @property
    def pooled(self) -> tuple[Tensor, ...]:
        """None: what is read was copied."""
        return ()

    def over(self, tensors: Sequence[Tensor], pooled: Sequence[Tensor] = ()) -> State:
        return State(tensors[0], tuple(tensors[1:]))

    def beside(self, indices: Sequence[int]) -> State:
        return self.over([torch.cat([each, each[list(indices)]]) for each in self.tensors])

    def among(self, rows: Sequence[int]) -> State:
        """That of some rows."""
        return self.over([each[list(rows)] for each in self.tensors])


class PooledState(Memory[State, State]):
    """`shapes`: what is kept for each operator."""

    def __init__(
        self, name: str, kinds: Iterable[OperatorKind], num_slots: int, shapes: Mapping[Operator, Shapes]
    ) -> None:
        self.kind = Kind[State, State](name)
        self.operators = frozenset(kinds)  # type: ignore[misc]
        self._slots, self._shapes = SlotPool(num_slots), shapes
        self._pools = {
            operator: [
                torch.zeros(num_slots, dtype=torch.int64),
                *(torch.zeros(num_slots, *each) for each in parts),
            ]
            for operator, parts in shapes.items()
        }

    def allocate(self, spec: SessionSpec) -> None:
        self._slots.allocate(spec.session_id)

    def free(self, session_id: str) -> None:
        slot = self._slots.free(session_id)
        if slot is not None:
            self._clear(slot)

    def reset(self, session_id: str) -> None:
        self._clear(self._slots.slot(session_id))

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        return operator in self._shapes

    def group(self, spec: SessionSpec, operator: Operator) -> Hashable:
        return None

    def gather(self, rows: Sequence[Row]) -> State:
        kept = [
            [pool[self._slots.slot(row.session_id)] for pool in self._pools[row.operator]] for row in rows
        ]
        counts, *parts = (torch.stack(each) for each in zip(*kept, strict=True))
        return State(counts, tuple(parts))

    def prepare(self, rows: Sequence[Row], update: State) -> Write:
        where = [self._slots.slot(row.session_id) for row in rows]
        tensors = [each.clone() for each in update.tensors]

        def write() -> None:
            for index, (row, slot) in enumerate(zip(rows, where, strict=True)):
                for pool, each in zip(self._pools[row.operator], tensors, strict=True):
                    pool[slot] = each[index]

        return write

    def export(self, session_id: str) -> Iterator[Chunk]:
        slot = self._slots.slot(session_id)
        for operator, (counts, *parts) in self._pools.items():
            yield Chunk(
                self.kind.name,
                operator.step if operator.kind is OperatorKind.DENOISE else NO_STEP,
                operator.name,
                {"count": int(counts[slot])},
                tuple(part[slot].clone() for part in parts),
            )

    def prepare_import(self, session_id: str, chunks: Iterable[Chunk]) -> Write:
        slot, found = self._slots.slot(session_id), {Operator.parse(chunk.layer): chunk for chunk in chunks}
        for operator in self._shapes.keys() & found.keys():
            chunk = found[operator]
            check_number(chunk.values, "count", 0)
            check_tensors(chunk.tensors, chunk.step, chunk.layer, self._shapes[operator], torch.float32)

        def write() -> None:
            for operator in self._shapes.keys() & found.keys():
                counts, *parts = self._pools[operator]
                counts[slot] = check_number(found[operator].values, "count", 0)
                for part, tensor in zip(parts, found[operator].tensors, strict=True):
                    part[slot] = tensor

        return write

    def bytes_per_session(self, spec: SessionSpec) -> int:
        return sum(pool[0].nbytes for pools in self._pools.values() for pool in pools)

    @property
    def free_slots(self) -> int:
        return self._slots.free_slots

    def check_integrity(self) -> None:
        self._slots.check_integrity()

    def _clear(self, slot: int) -> None:
        for pools in self._pools.values():
            for pool in pools:
                pool[slot] = 0
