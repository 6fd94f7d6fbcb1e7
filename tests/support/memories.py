"""Memories driven without an engine: one kind by itself, or several together."""

from __future__ import annotations

from collections.abc import Sequence

from rearview.engine.memory.compose import Memories
from rearview.engine.memory.export import Incoming
from rearview.engine.memory.protocol import AnyMemory, Updates, Views
from rearview.engine.rows import Row

__all__ = ["composed", "exported", "gather", "scatter"]


def composed(memory: AnyMemory | Memories) -> Memories:
    """What an engine takes. A kind by itself must be new: its free slots are all that it has."""
    return memory if isinstance(memory, Memories) else Memories([memory], memory.free_slots)


def gather(memory: AnyMemory | Memories, rows: Sequence[Row]) -> Views:
    """What these rows read."""
    return composed(memory).gather(rows)


def scatter(memory: AnyMemory | Memories, rows: Sequence[Row], updates: Updates) -> None:
    """Write what they left."""
    composed(memory).scatter(rows, updates)


def exported(memory: AnyMemory | Memories, session_id: str, kind: str = "") -> Incoming:
    """A session's past by step and layer; of one kind, if one is named."""
    chunks = memory.export(session_id)
    return Incoming.sort(chunk for chunk in chunks if kind in ("", chunk.kind))
