"""Clips through an engine, or through several joined one after the other: the one loop that steps them.

A replica has a loop of its own, since commands reach its engine between steps (`replica/runner.py`). All else
that translates frames in one process plays them here: the laboratory, the command line, benchmarks and tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.planes import Planes
from rearview.engine.rows import StepResult

__all__ = ["Clip", "FrameLost", "Planes", "Player", "planes_of"]


class FrameLost(RuntimeError):
    """The engine has dropped a frame; its log says why."""


def planes_of(frame: Frame[Tensor]) -> Planes:
    """What a frame carries. Raises FrameLost if it carries nothing."""
    if frame.planes is None:
        raise FrameLost(f"frame {frame.ordinal} could not be translated: the log says why")
    return frame.planes


@dataclass(frozen=True)
class Clip:
    """The frames of one session, all known beforehand."""

    spec: SessionSpec
    frames: Sequence[Planes | None]
    """None: it was lost before."""
    changes: Mapping[int, Settings] = field(default_factory=dict)
    """Ordinal to the settings from it on."""

    def version(self, ordinal: int) -> int:
        """That of the settings of a frame."""
        return sum(changed <= ordinal for changed in self.changes)


def _as_it_is(frame: Frame[Tensor]) -> Frame[Tensor]:
    return frame


def _ignored(engine: Engine, result: StepResult) -> None:
    pass


def _nothing() -> None:
    pass


def _no_more() -> bool:
    return False


class Player:
    """Frames into the first engine, on from each to the next, and out of the last one."""

    def __init__(
        self,
        *engines: Engine,
        clock: Callable[[], float] = time.monotonic,
        link: Callable[[Frame[Tensor]], Frame[Tensor]] = _as_it_is,
        watch: Callable[[Engine, StepResult], None] = _ignored,
    ) -> None:
        """`link`: what becomes of a frame between two engines; `watch` is told of every step."""
        self.engines = engines
        self._clock, self._link, self._watch = clock, link, watch

    def open(self, spec: SessionSpec) -> None:
        """In every engine."""
        for engine in self.engines:
            engine.open(spec)

    def update(self, session_id: str, version: int, settings: Settings) -> None:
        """In every engine."""
        for engine in self.engines:
            engine.update(session_id, version, settings)

    def flush(self, session_id: str) -> None:
        """In every engine."""
        for engine in self.engines:
            engine.flush(session_id)

    def admit(self, session_id: str, ordinal: int, planes: Planes | None, version: int = 0) -> None:
        """A frame into the first engine; without planes it was lost before."""
        frame = Frame(session_id, ordinal, planes, settings_version=version)
        self.engines[0].admit(frame, self._clock())

    def left(
        self, feed: Callable[[], None] = _nothing, more: Callable[[], bool] = _no_more
    ) -> Iterator[Frame[Tensor]]:
        """Step every engine in turn as long as one has work; yields the frames that leave the last one, lost
        ones included.

        `feed` is called before each round, to let in what has come by then. When nobody has work `more` says
        whether something will come; it may wait for it.
        """
        while True:
            feed()
            if not any(engine.has_work for engine in self.engines) and not more():
                return
            for engine, following in zip(self.engines, (*self.engines[1:], None), strict=True):
                if engine.has_work:
                    yield from self._step(engine, following)

    def play(self, *clips: Clip, burst: int = 1) -> dict[str, list[Frame[Tensor]]]:
        """Whole clips together, opened here; `burst` frames of each enter before every step. What leaves, by
        session and in order, lost frames included; a clip that ends before it is warm lacks its last ones.
        """
        for clip in clips:
            self.open(clip.spec)
        sent = 0
        length = max((len(clip.frames) for clip in clips), default=0)

        def feed() -> None:
            nonlocal sent
            for ordinal in range(sent, min(sent + burst, length)):
                self._send(ordinal, clips)
            sent += burst

        found: dict[str, dict[int, Frame[Tensor]]] = {clip.spec.session_id: {} for clip in clips}
        for frame in self.left(feed, lambda: sent < length):
            found[frame.session_id][frame.ordinal] = frame
        return {name: [by_ordinal[n] for n in sorted(by_ordinal)] for name, by_ordinal in found.items()}

    def _send(self, ordinal: int, clips: Iterable[Clip]) -> None:
        for clip in clips:
            name, version = clip.spec.session_id, clip.version(ordinal)
            if ordinal in clip.changes:
                self.update(name, version, clip.changes[ordinal])
            if ordinal < len(clip.frames):
                self.admit(name, ordinal, clip.frames[ordinal], version)
            if ordinal + 1 == len(clip.frames):
                self.flush(name)

    def _step(self, engine: Engine, following: Engine | None) -> Sequence[Frame[Tensor]]:
        """What leaves the last engine."""
        result = engine.step(self._clock())
        self._watch(engine, result)
        if following is None:
            return result.emissions
        for frame in result.emissions:
            following.admit(self._link(frame), self._clock())
        return ()
