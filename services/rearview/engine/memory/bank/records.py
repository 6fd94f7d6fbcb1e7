"""What is known of one bank besides its tokens, as values and pure functions.

A bank can count as empty though it holds tokens: when the frame's size, timestep or (by policy) prompt is not
the one that they were written under. The next write then replaces them. Everything here depends on the
frame and on what was committed before it, never on load, so that any order of rows gives the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rearview.contract.memories import BankSettings, PromptChange
from rearview.contract.size import Size
from rearview.engine.memory.export import Json, check_number
from rearview.engine.rows import Row

__all__ = [
    "BankRecord",
    "BankSample",
    "bank_samples",
    "fusion_strength",
    "is_write_due",
    "next_write",
    "read_record",
    "record_after",
    "record_seen",
]


@dataclass(frozen=True, slots=True)
class BankRecord:
    """The state of one (session, step) bank, after its last commit."""

    writes: int = 0
    """Since it was last empty."""
    timestep_index: int = -1
    """That of the frame that wrote last."""
    prompt: str = ""
    """Digest of the prompt of the last frame; empty: there was none."""
    changed_at: int | None = None
    """Ordinal of the first frame under that prompt; None: it has always been this one."""
    width: int = 0
    """Pixels of the last frame. 0: there was none."""
    height: int = 0
    """Pixels, as the width."""

    @property
    def size(self) -> Size:
        """Of the last frame: all that the bank holds is of this size."""
        return Size(self.width, self.height)

    def at_size(self, size: Size) -> BankRecord:
        """The record as frames of that size find it: where it is another, there is no past."""
        known = self if self.size == size else BankRecord()
        return replace(known, width=size.width, height=size.height)


class BankSample(NamedTuple):
    """One frame of a row, with what it does to the bank."""

    row: Row
    writes: bool


def record_seen(record: BankRecord, settings: BankSettings, row: Row) -> BankRecord:
    """The record as this frame finds it: its bank may count as empty, its prompt as new."""
    record = record.at_size(row.size)
    prompt = _digest(row.settings.style)
    timestep_index = row.settings.visited[row.operator.step]
    is_changed = record.prompt not in ("", prompt)
    is_cleared = is_changed and settings.prompt_change is PromptChange.CLEAR
    is_moved = timestep_index != record.timestep_index and not settings.keep_on_timestep_change
    return replace(
        record,
        writes=0 if is_cleared or is_moved else record.writes,
        timestep_index=timestep_index,
        prompt=prompt,
        changed_at=row.ordinal if is_changed else record.changed_at,
    )


def record_after(record: BankRecord, settings: BankSettings, samples: Sequence[BankSample]) -> BankRecord:
    """The record once a row of these samples, all of one size, has committed; at most one of them writes."""
    record = record.at_size(samples[0].row.size)
    prompt, changed_at = record.prompt, record.changed_at
    for row, _ in samples:
        digest = _digest(row.settings.style)
        if prompt not in ("", digest):
            changed_at = row.ordinal
        prompt = digest
    writers = [row for row, writes in samples if writes]
    if not writers:
        seen = {record_seen(record, settings, row).writes for row, _ in samples}
        assert seen == {record.writes}, "a bank that counts as empty was not written"
        return replace(record, prompt=prompt, changed_at=changed_at)
    (writer,) = writers
    before = record_seen(record, settings, writer)
    return replace(before, writes=before.writes + 1, prompt=prompt, changed_at=changed_at)


def bank_samples(record: BankRecord, settings: BankSettings | None, row: Row) -> tuple[BankSample, ...]:
    """The row's frames, each with whether it writes. They all see the bank as it is before the row, so
    of several whose write is due the last one writes alone. A shadow window only reads.
    """
    samples = row.samples()
    last = -1
    if settings is not None and not row.shadow:
        for index, sample in enumerate(samples):
            if is_write_due(record_seen(record, settings, sample), settings, sample.ordinal):
                last = index
    return tuple(BankSample(sample, index == last) for index, sample in enumerate(samples))


def is_write_due(seen: BankRecord, settings: BankSettings, ordinal: int) -> bool:
    """A bank is written iff it is empty, or (n - phase) mod interval = 0 (methods 2.4)."""
    return seen.writes == 0 or (ordinal - settings.phase) % settings.interval == 0


def next_write(settings: BankSettings, ordinal: int) -> int:
    """The ordinal of the write that is due next after one at `ordinal`, if no frame finds the bank empty."""
    return ordinal + settings.interval - (ordinal - settings.phase) % settings.interval


def fusion_strength(seen: BankRecord, settings: BankSettings, ordinal: int) -> float:
    """Strength of feature fusion for a frame: less for a while after a change of prompt, if it fades."""
    if settings.prompt_change is not PromptChange.FADE or seen.changed_at is None:
        return settings.fusion_strength
    return settings.fusion_strength * min(1.0, (ordinal - seen.changed_at) / settings.fade_frames)


def read_record(values: Mapping[str, Json], opened: Size) -> BankRecord:
    """A record from an export. `opened`: the size with which the session began, which releases before took to
    be that of its bank. Raises ValueError for what is none.
    """
    writes = check_number(values, "writes", 0)
    timestep_index = check_number(values, "timestep_index", -1)
    changed_at = None if values.get("changed_at") is None else check_number(values, "changed_at", 0)
    prompt = values.get("prompt")
    sized = {**opened._asdict(), **values}
    width, height = (check_number(sized, name, 0) for name in ("width", "height"))
    if not isinstance(prompt, str):
        raise ValueError("the export's prompt is no digest")
    return BankRecord(writes, timestep_index, prompt, changed_at, width, height)


def _digest(prompt: str) -> str:
    """Stands for a prompt: records and exports hold no tenant's words."""
    return hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()
