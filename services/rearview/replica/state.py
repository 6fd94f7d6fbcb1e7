"""What a replica holds of a session, as bytes: for a move, a checkpoint, or a recovery.

    state   = record of the session | record per settings version | per shadow input | per chunk of memory
    record  = length u64 | chunk                                     (`engine/memory/export.py`: no pickle)

States follow each other without more ado, so that the bytes of a lane's spans are one stream. The first
record says how many of each kind follow. What surprises: nothing is believed that does not fit together,
since the bytes come from another process: whatever is wrong is a ValueError, before an engine sees it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.warmup import Changes, StepWarmUp, WarmUpPlan
from rearview.engine.memory.export import NO_STEP, Chunk, decode_chunk, encode_chunk
from rearview.engine.sessions import SessionState
from rearview.engine.windows import ShadowInput, WindowsState
from rearview.errors import RearviewError

__all__ = ["Kept", "Origin", "OtherModel", "StateReader", "encode_state"]

FORMAT = 1
MAX_STATE_BYTES = 16 << 30
"""Of one stream: more than any memory that a replica could have room for."""
MAX_NUMBER = 1 << 62
_LENGTH = struct.Struct("<Q")
_SESSION, _SETTINGS, _SHADOW = "session", "settings", "shadow"


class OtherModel(ValueError):
    """The state is one of another model, of other precision, or of a format that is not known here."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What must be equal on both sides of a move."""

    model: str
    """Fingerprint of the weights."""
    dtype: str
    """Of the networks."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a replica holds of a session."""

    session: SessionState
    announced: Mapping[int, Mapping[str, Any]]
    """The last versions of its settings that the next span was told of, as they travel."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A step's warm-ups."""

    step: int
    warm_up: StepWarmUp


@dataclass(frozen=True, slots=True)
class _Head:
    """The first record of a state."""

    format: int
    model: str
    dtype: str
    num_settings: int
    num_shadow: int
    num_memory: int
    operators: tuple[str, ...]
    spec: SessionSpec
    expected: int
    place: int
    committed: dict[int, int]
    flushing: bool
    plan: WarmUpPlan | None
    steps: tuple[_Step, ...]


@dataclass(frozen=True, slots=True)
class _Version:
    """One version of a session's settings: what the engine knows, and what the next span was told."""

    version: int
    known: Settings | None
    announced: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Shadow:
    """A shadow's input; its planes are the chunk's tensors."""

    ordinal: int
    settings: Settings
    changes: Changes
    planes: tuple[str, ...]


_HEAD, _VERSION, _INPUT = (TypeAdapter(each) for each in (_Head, _Version, _Shadow))


def encode_state(kept: Kept, origin: Origin) -> Iterator[bytes | memoryview]:
    """As bytes, in pieces that follow each other; those of tensors are views of them."""
    state = kept.session
    versions = sorted(state.settings.keys() | kept.announced.keys())
    shadows = [(step, each) for step, (_, inputs) in state.windows.steps.items() for each in inputs]
    head = _Head(
        FORMAT,
        origin.model,
        origin.dtype,
        len(versions),
        len(shadows),
        len(state.memory),
        tuple(sorted(operator.name for operator in state.operators)),
        state.spec,
        state.expected,
        state.place,
        dict(state.committed),
        state.flushing,
        state.windows.plan,
        tuple(_Step(step, warm_up) for step, (warm_up, _) in state.windows.steps.items()),
    )
    yield from _record(Chunk(_SESSION, values=_HEAD.dump_python(head, mode="json")))
    for version in versions:
        known = _Version(version, state.settings.get(version), kept.announced.get(version))
        yield from _record(Chunk(_SETTINGS, values=_VERSION.dump_python(known, mode="json")))
    for step, each in shadows:
        names, planes = tuple(each.planes), tuple(each.planes.values())
        values = _INPUT.dump_python(_Shadow(each.ordinal, each.settings, each.changes, names), mode="json")
        yield from _record(Chunk(_SHADOW, step, values=values, tensors=planes))
    for chunk in state.memory:
        yield from _record(chunk)


def _record(chunk: Chunk) -> Iterator[bytes | memoryview]:
    parts = encode_chunk(chunk)
    yield _LENGTH.pack(sum(len(part) for part in parts))
    yield from parts


class StateReader:
    """States from bytes as they come. Holds them, and of what is under way no more than has come."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._buffer = bytearray()
        self._num_bytes = 0
        self._open: _Open | None = None
        self._states: list[Kept] = []

    def feed(self, part: bytes | memoryview) -> None:
        """The next bytes. Raises OtherModel, and ValueError for bytes that are no state."""
        self._num_bytes += len(part)
        if self._num_bytes > MAX_STATE_BYTES:
            raise ValueError(f"a state of more than {MAX_STATE_BYTES} bytes")
        self._buffer += part
        while (record := self._next_record()) is not None:
            self._take(decode_chunk(record))

    def states(self) -> Sequence[Kept]:
        """All that came, one or more. Raises ValueError if it ends in the middle of one."""
        if self._buffer or self._open is not None or not self._states:
            raise ValueError(f"{len(self._states)} states, and one that is cut short")
        return self._states

    def _next_record(self) -> bytes | bytearray | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_STATE_BYTES:
            raise ValueError(f"a record of {length} bytes")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        record = self._buffer[_LENGTH.size : end]
        del self._buffer[:end]
        return record

    def _take(self, chunk: Chunk) -> None:
        if self._open is None:
            self._open = _Open(_head(chunk, self._origin))
        else:
            self._open.take(chunk)
        if self._open.is_whole:
            self._states.append(self._open.close())
            self._open = None


@dataclass(slots=True)
class _Open:
    """A state of which records are still to come."""

    head: _Head
    versions: dict[int, _Version] = field(default_factory=dict)
    shadows: dict[int, list[ShadowInput]] = field(default_factory=dict)
    memory: list[Chunk] = field(default_factory=list)

    @property
    def num_shadows(self) -> int:
        return sum(map(len, self.shadows.values()))

    @property
    def is_whole(self) -> bool:
        found = (len(self.versions), self.num_shadows, len(self.memory))
        return found == (self.head.num_settings, self.head.num_shadow, self.head.num_memory)

    def take(self, chunk: Chunk) -> None:
        """The next record."""
        if len(self.versions) < self.head.num_settings:
            version = _read(_VERSION, _SETTINGS, chunk)
            if version.version in self.versions or version.version < 0:
                raise ValueError(f"settings of version {version.version} come twice")
            self.versions[version.version] = version
        elif self.num_shadows < self.head.num_shadow:
            self.shadows.setdefault(chunk.step, []).append(_shadow_input(chunk))
        else:
            self.memory.append(chunk)

    def close(self) -> Kept:
        """The state. Raises ValueError if its parts do not fit together."""
        head = self.head
        operators = frozenset(Operator.parse(name) for name in head.operators)
        steps = {each.step for each in operators if each.kind is OperatorKind.DENOISE}
        latest = max(head.committed.values(), default=-1)
        if not steps >= head.committed.keys() or latest >= head.expected:
            raise ValueError("the state says of steps what cannot be")
        known = {version: each.known for version, each in self.versions.items() if each.known is not None}
        if not known:
            raise ValueError("the state has no settings")
        state = SessionState(
            operators=operators,
            spec=head.spec,
            settings=known,
            expected=head.expected,
            place=head.place,
            committed=head.committed,
            flushing=head.flushing,
            memory=self.memory,
            windows=self._windows(steps),
        )
        told = {version: each.announced for version, each in self.versions.items()}
        return Kept(state, {version: each for version, each in told.items() if each is not None})

    def _windows(self, steps: set[int]) -> WindowsState:
        head = self.head
        found = {each.step: each.warm_up for each in head.steps}
        wanted = set() if head.plan is None else steps
        if found.keys() != wanted or len(head.steps) != len(found) or not found.keys() >= self.shadows.keys():
            raise ValueError(f"the state has warm-ups of steps {sorted(found)}, not {sorted(wanted)}")
        for step, warm_up in found.items():
            assert head.plan is not None
            ordinals, window = [each.ordinal for each in self.shadows.get(step, ())], warm_up.shadow_window
            are_due = warm_up.frames == head.plan.frames and bool(ordinals) == (warm_up.shadow is not None)
            in_place = ordinals == sorted(set(ordinals)) and all(each in window for each in ordinals)
            if not are_due or not in_place:
                raise ValueError(f"the state does not keep what step {step} is to read once more")
        inputs = {step: (warm_up, tuple(self.shadows.get(step, ()))) for step, warm_up in found.items()}
        return WindowsState(head.plan, inputs)


def _head(chunk: Chunk, origin: Origin) -> _Head:
    values = chunk.values
    for name, here in (("format", FORMAT), ("model", origin.model), ("dtype", origin.dtype)):
        if chunk.kind == _SESSION and values.get(name) != here:
            raise OtherModel(f"a state of another {name} than is served here")
    head: _Head = _read(_HEAD, _SESSION, chunk)
    numbers = (head.num_settings, head.num_shadow, head.num_memory, head.expected, head.place + 1)
    if not all(0 <= number <= MAX_NUMBER for number in numbers):
        raise ValueError("a state with a number that is none")
    if head.plan is not None and head.plan.frames < 1:
        raise ValueError("a state with windows of no frames")
    return head


def _shadow_input(chunk: Chunk) -> ShadowInput:
    given = _read(_INPUT, _SHADOW, chunk, chunk.step, len(chunk.tensors))
    if len(given.planes) != len(set(given.planes)) or len(given.planes) != len(chunk.tensors):
        raise ValueError(f"a shadow's input of planes {given.planes} has {len(chunk.tensors)} tensors")
    planes = dict(zip(given.planes, chunk.tensors, strict=True))
    return ShadowInput(given.ordinal, given.settings, planes, given.changes)


def _read(
    adapter: TypeAdapter[Any], kind: str, chunk: Chunk, step: int = NO_STEP, num_tensors: int = 0
) -> Any:
    """The values of a record. Raises ValueError."""
    if (chunk.kind, chunk.step, chunk.layer, len(chunk.tensors)) != (kind, step, "", num_tensors):
        raise ValueError(f"a record of {chunk.kind[:40]!r} where one of {kind} is due")
    try:
        return adapter.validate_python(chunk.values)
    except ValidationError as error:
        raise ValueError(f"{kind}: {error.error_count()} fields cannot be read") from None
    except RearviewError as error:
        raise ValueError(f"{kind}: {error.message}") from None
