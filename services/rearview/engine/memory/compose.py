"""Several memories as one: a feature bank, a temporal cache, the range of depth, or some of them.

Each keeps its own pool and its own slots; a session has one in all of them or in none. A forward of a
UNet with motion modules reads the bank in spatial and the cache in temporal attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.engine.memory.bank.pool import FeatureBank
from rearview.engine.memory.bank.view import BankUpdate, BankView
from rearview.engine.memory.cache.pool import TemporalKVCache
from rearview.engine.memory.cache.view import CacheUpdate
from rearview.engine.memory.depth.pool import DepthRange
from rearview.engine.memory.protocol import MemoryUpdate, MemoryView, TemporalMemory
from rearview.engine.networks.attention.processors import AttentionMemory
from rearview.engine.networks.motion_module import TemporalAttend
from rearview.engine.rows import Row
from rearview.errors import InvalidRequest, Reason

__all__ = ["JointMemory", "JointUpdate", "JointView", "TemporalView"]


class TemporalView(Protocol):
    """What motion modules attend with: a `CacheView`, or `ClipAttention` in training."""

    @property
    def attend(self) -> TemporalAttend: ...


@dataclass(frozen=True, slots=True)
class JointUpdate:
    """What a forward would write to both."""

    bank: BankUpdate | None
    cache: CacheUpdate


@dataclass(frozen=True, slots=True)
class JointView:
    """What `StreamingUNet` takes as its memory: one for spatial and one for temporal attention."""

    bank: AttentionMemory | None
    cache: TemporalView | None

    def collect(self) -> JointUpdate:
        """The update of the whole forward."""
        bank: Any = self.bank
        cache: Any = self.cache
        return JointUpdate(None if bank is None else bank.collect(), cache.collect())

    def beside(self, indices: Sequence[int]) -> JointView:
        """A view of these samples followed by copies of some, which see their past and write nothing."""
        bank: Any = self.bank
        cache: Any = self.cache
        return JointView(None if bank is None else bank.beside(indices), cache.beside(indices))


class JointMemory:
    """A `TemporalMemory` of those that a span needs: bank and cache to denoise, the range to encode."""

    def __init__(
        self, bank: FeatureBank | None, cache: TemporalKVCache | None, depth_range: DepthRange | None = None
    ) -> None:
        self._bank, self._cache, self._depth_range = bank, cache, depth_range
        named = {"bank": bank, "cache": cache, "depth_range": depth_range}
        self._parts: dict[str, TemporalMemory] = {
            name: part for name, part in named.items() if part is not None
        }
        assert self._parts, "a memory of nothing"

    def allocate(self, spec: SessionSpec) -> None:
        """Also raises InvalidRequest if a session that is denoised here asks for what there is not."""
        denoises = self._bank is not None or self._cache is not None
        for name in ("bank", "cache"):
            if denoises and getattr(spec, name) is not None and name not in self._parts:
                text = f"this service keeps no {'feature bank' if name == 'bank' else 'temporal cache'}"
                raise InvalidRequest(Reason.SETTING_OUT_OF_RANGE, text, metadata={"field": name})
        done: list[TemporalMemory] = []
        try:
            for part in self._parts.values():
                part.allocate(replace(spec, cache=None) if part is self._bank else spec)
                done.append(part)
        except BaseException:
            for part in done:
                part.free(spec.session_id)
            raise

    def free(self, session_id: str) -> None:
        for part in self._parts.values():
            part.free(session_id)

    def reset(self, session_id: str) -> None:
        for part in self._parts.values():
            part.reset(session_id)

    def warm_up_frames(self, spec: SessionSpec) -> int:
        return max(part.warm_up_frames(spec) for part in self._parts.values())

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        return any(part.keeps_order(spec, operator) for part in self._parts.values())

    def write_due(self, row: Row) -> bool:
        return any(part.write_due(row) for part in self._parts.values())

    def gather(self, rows: Sequence[Row]) -> MemoryView:
        """To encode: the ranges. To denoise: a `JointView`, the bank's view alone for rows without a
        cache, or None.
        """
        if rows[0].operator.kind is not OperatorKind.DENOISE:
            return None if self._depth_range is None else self._depth_range.gather(rows)
        bank: BankView | None = None if self._bank is None else self._bank.gather(rows)
        cache = None if self._cache is None else self._cache.gather(rows)
        return bank if cache is None else JointView(bank, cache)

    def scatter(self, rows: Sequence[Row], update: MemoryUpdate) -> None:
        if isinstance(update, torch.Tensor):
            assert self._depth_range is not None, "depth where there is no range of it"
            self._depth_range.scatter(rows, update)
            return
        bank, cache = (update.bank, update.cache) if isinstance(update, JointUpdate) else (update, None)
        if self._bank is not None:
            self._bank.scatter(rows, bank)
        if self._cache is not None:
            self._cache.scatter(rows, cache)

    def export(self, session_id: str) -> Mapping[str, Any]:
        """One export for each memory, by its name."""
        return {name: part.export(session_id) for name, part in self._parts.items()}

    def import_(self, session_id: str, state: Mapping[str, Any]) -> None:
        """Memories that the export says nothing of stay as they are. Raises ValueError, and then the
        session's past is empty.
        """
        known = [name for name in self._parts if name in state]
        if not known:
            raise ValueError(f"the export is of {sorted(state)}, here there are {sorted(self._parts)}")
        try:
            for name in known:
                self._parts[name].import_(session_id, state[name])
        except ValueError:
            self.reset(session_id)
            raise

    def bytes_per_session(self, spec: SessionSpec) -> int:
        return sum(part.bytes_per_session(spec) for part in self._parts.values())

    @property
    def free_slots(self) -> int:
        return min(part.free_slots for part in self._parts.values())

    def check_integrity(self) -> None:
        for part in self._parts.values():
            part.check_integrity()
