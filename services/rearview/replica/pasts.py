"""What a session that is opened at a replica begins from: nothing, an ordinal, or what it was elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rearview.contract.frame import NO_PLACE
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.sessions import joined
from rearview.errors import Reason, Refused
from rearview.replica.sessions import Held
from rearview.replica.state import Kept
from rearview.transport.links import Link
from rearview.transport.wire import encode_settings

__all__ = ["Begun", "Moved", "New", "Past", "moved", "unfit"]


class Past(Protocol):
    """What a session begins from."""

    def open(self, engine: Engine) -> None:
        """Take a slot. Raises Refused and InvalidRequest."""

    def held(self, held: Held[Link]) -> None:
        """Let the session be held as if it had always been here."""


@dataclass(frozen=True, slots=True)
class New:
    """Nothing."""

    spec: SessionSpec

    def open(self, engine: Engine) -> None:
        engine.open(self.spec)

    def held(self, held: Held[Link]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Begun:
    """An ordinal: what came before it is forgotten."""

    spec: SessionSpec
    ordinal: int
    settings: Mapping[int, Settings]
    """By version; the lowest is that of the frame at `ordinal`."""

    def open(self, engine: Engine) -> None:
        engine.open_at(self.spec, self.ordinal, self.settings)

    def held(self, held: Held[Link]) -> None:
        told = {version: encode_settings(self.settings[version]) for version in sorted(self.settings)}
        held.begin_at(self.ordinal, NO_PLACE, told)


@dataclass(frozen=True, slots=True)
class Moved:
    """What it was at other replicas."""

    kept: Kept

    def open(self, engine: Engine) -> None:
        try:
            engine.import_(self.kept.session)
        except ValueError as error:
            raise unfit(str(error)) from None

    def held(self, held: Held[Link]) -> None:
        held.begin_at(self.kept.session.expected, self.kept.session.place, self.kept.announced)


def moved(pieces: Sequence[Kept], spec: SessionSpec, start: int | None) -> Moved:
    """The session `spec` from what each of its former replicas has of it. Raises Refused.

    `start`: the ordinal that its owner will send first; None: it does not say. A window that was lost while
    its lane froze can have taken more frames in than the owner knows.
    """
    if not pieces:
        raise unfit("there is nothing to go on from")
    try:
        state = joined([each.session for each in pieces])
    except ValueError as error:
        raise unfit(str(error)) from None
    if state.spec != spec:
        raise unfit("what came is a session with other terms")
    if start not in (None, state.expected):
        raise unfit(f"what came stands at ordinal {state.expected}, not {start}")
    told = {version: each for piece in pieces for version, each in piece.announced.items()}
    return Moved(Kept(state, {version: told[version] for version in sorted(told)}))


def unfit(text: str) -> Refused:
    """What came is no session that could go on here."""
    return Refused(Reason.METHOD_UNSUPPORTED, text, metadata={"cause": "unfit"})
