"""The hash chains of all sessions, one for each denoising step of the span.

A chain starts from the session's id and its step, and takes in every input whose row commits: whatever is
lost, doubled, swapped or mixed up shows in all that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from rearview.contract.chain import OperatorKind
from rearview.contract.session import SessionSpec
from rearview.contract.watermark import CHAIN_BYTES, first_chain
from rearview.engine.memory.chain.view import CHAIN, ChainUpdate, ChainView
from rearview.engine.memory.export import Chunk, Incoming, Json, check_number
from rearview.engine.memory.protocol import Memory, Write
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row

__all__ = ["Chains"]

EXPORT_FORMAT = 1
COUNT_BYTES = 8


class Chains(Memory[ChainView, ChainUpdate]):
    """One chain per session and step, on the host: every session has them, whatever its method."""

    kind = CHAIN
    operators = frozenset({OperatorKind.DENOISE})

    def __init__(self, num_slots: int, steps: Sequence[int]) -> None:
        """`steps`: indices of the span's denoising steps."""
        self._slots = SlotPool(num_slots)
        self._places = {step: place for place, step in enumerate(steps)}
        self._chains = torch.zeros(num_slots, len(steps), CHAIN_BYTES, dtype=torch.uint8)
        self._counts = torch.zeros(num_slots, len(steps), dtype=torch.int64)
        self._sessions: set[str] = set()

    def allocate(self, spec: SessionSpec) -> None:
        """Take a slot. Raises Refused(NO_CAPACITY)."""
        self._slots.allocate(spec.session_id)
        self._sessions.add(spec.session_id)
        self.reset(spec.session_id)

    def free(self, session_id: str) -> None:
        slot = self._slots.free(session_id)
        if slot is not None:
            self._sessions.remove(session_id)
            self._chains[slot] = 0
            self._counts[slot] = 0

    def reset(self, session_id: str) -> None:
        slot = self._slots.slot(session_id)
        for step, place in self._places.items():
            self._chains[slot, place] = _tensor(first_chain(session_id, step))
        self._counts[slot] = 0

    def gather(self, rows: Sequence[Row]) -> ChainView:
        """Chains before these frames."""
        where = self._where(rows)
        return ChainView(self._chains[where], self._counts[where])

    def prepare(self, rows: Sequence[Row], update: ChainUpdate) -> Write:
        """`update`: chains after these frames, in their order."""
        where = self._where(rows)
        places = {(row.session_id, row.operator.step) for row in rows}
        assert len(places) == len(rows), "two frames of a session at one step in one forward"
        return partial(self._commit, where, update.chain_B16)

    def export(self, session_id: str) -> Iterator[Chunk]:
        """A header, then a chunk for each step."""
        slot = self._slots.slot(session_id)
        yield Chunk(CHAIN.name, values=self._header())
        for step, place in self._places.items():
            values: dict[str, Json] = {
                "count": int(self._counts[slot, place]),
                "chain": _text(self._chains[slot, place]),
            }
            yield Chunk(CHAIN.name, step, values=values)

    def prepare_import(self, session_id: str, chunks: Iterable[Chunk]) -> Write:
        """Raises ValueError for an export of another form, and for a chain that is none."""
        slot, incoming = self._slots.slot(session_id), Incoming.sort(chunks)
        incoming.check_headers(self._header())
        if not self._places:
            return lambda: None
        found = incoming.of_steps(tuple(self._places))
        states = {step: (_parsed(values), check_number(values, "count", 0)) for step, values in found.items()}
        return partial(self._replace, slot, states)

    def bytes_per_session(self, spec: SessionSpec) -> int:
        """The same for every session."""
        return len(self._places) * (CHAIN_BYTES + COUNT_BYTES)

    @property
    def free_slots(self) -> int:
        return self._slots.free_slots

    def check_integrity(self) -> None:
        """Also asserts that a chain that has seen nothing is the first one of its session."""
        self._slots.check_integrity()
        owners = {self._slots.slot(name): name for name in self._sessions}
        for slot, counts in enumerate(self._counts.tolist()):
            for step, place in self._places.items():
                name, chain = owners.get(slot), bytes(self._chains[slot, place].tolist())
                empty = bytes(CHAIN_BYTES) if name is None else first_chain(name, step)
                assert counts[place] >= 0, f"slot {slot} has seen {counts[place]} inputs"
                assert counts[place] or chain == empty, f"slot {slot} has seen nothing, and has a chain"
                assert name is not None or not counts[place], f"slot {slot} is free and has a chain"

    def _where(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        slots = [self._slots.slot(row.session_id) for row in rows]
        places = [self._places[row.operator.step] for row in rows]
        return torch.tensor(slots), torch.tensor(places)

    def _commit(self, where: tuple[Tensor, Tensor], chain_B16: Tensor) -> None:
        self._chains[where] = chain_B16
        self._counts[where] += 1

    def _replace(self, slot: int, states: dict[int, tuple[Tensor, int]]) -> None:
        for step, (chain, count) in states.items():
            self._chains[slot, self._places[step]] = chain
            self._counts[slot, self._places[step]] = count

    def _header(self) -> dict[str, Json]:
        return {"format": EXPORT_FORMAT}


def _tensor(chain: bytes) -> Tensor:
    return torch.tensor(list(chain), dtype=torch.uint8)


def _text(chain: Tensor) -> str:
    return bytes(chain.tolist()).hex()


def _parsed(values: object) -> Tensor:
    text = values.get("chain") if isinstance(values, dict) else None
    if not isinstance(text, str):
        raise ValueError("the export has no chain")
    chain = bytes.fromhex(text)
    if len(chain) != CHAIN_BYTES:
        raise ValueError(f"the export's chain has {len(chain)} bytes, here it has {CHAIN_BYTES}")
    return _tensor(chain)
