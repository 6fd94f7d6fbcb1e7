"""Which replicas are alive, by what they say of themselves and by their silence. No I/O, no clock.

A replica that is silent is first *doubted*, and takes no new session while it is; then it is *dead*, for
good: a process that comes back has another address. One that speaks is dead if a forward takes many times
what it costs, or if its engine has ended. What surprises: nobody counts time in which he did not get to run
himself. A machine that is busy, or stood still, delays a verdict and causes none (`Attention`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rearview.contract.beat import Beat, Cause, Work

__all__ = ["TICK_S", "Attention", "Dead", "Doubted", "Judge", "Limits", "Verdict"]

TICK_S = 0.1
"""Seconds from one look of a judge to the next."""
REMEMBERED_DEAD = 1000


class Attention:
    """Seconds that its owner has really had, who looks at the clock every `tick_s`: what a look comes late is
    not counted.
    """

    def __init__(self, tick_s: float, now: float) -> None:
        self._tick_s = tick_s
        self._looked_s = now
        self._had_s = 0.0

    def look(self, now: float) -> float:
        """Take a look; returns by how much it is late."""
        late_s = max(0.0, now - self._looked_s - self._tick_s)
        self._had_s, self._looked_s = self.at(now), now
        return late_s

    def at(self, now: float) -> float:
        """Seconds had until `now`."""
        return self._had_s + min(now - self._looked_s, self._tick_s)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is too long, in seconds."""

    doubt_s: float = 0.5
    """Silence after which a replica gets no new sessions."""
    silence_s: float = 1.0
    """Silence after which it is dead: five beats."""
    forward_s: float = 1.0
    """A forward may take so long whatever it costs: a busy machine delays short ones most."""
    times_cost: float = 10.0
    """Or so many times what it costs."""
    unknown_s: float = 15.0
    """What has no known cost: the first forward of a kind, which loads kernels, or a command."""

    def allowed_s(self, work: Work) -> float:
        """How long this may take."""
        if work.expected_s is None:
            return self.unknown_s
        return max(self.forward_s, self.times_cost * work.expected_s)

    def is_hung(self, work: Work | None) -> bool:
        """Whether it takes too long."""
        return work is not None and work.busy_s > self.allowed_s(work)


@dataclass(frozen=True, slots=True)
class Doubted:
    """No new session goes there, and none waits for it any longer."""

    address: str


@dataclass(frozen=True, slots=True)
class Dead:
    """It is to be condemned, and its sessions go on elsewhere."""

    address: str
    cause: Cause


Verdict: TypeAlias = Doubted | Dead


@dataclass(slots=True)
class _Watched:
    """A replica that is judged."""

    heard_s: float
    """When it last gave a sign of life, in the judge's own seconds."""
    is_linked: bool = False
    """False: nothing was heard yet, and silence can mean a slow start."""
    is_doubted: bool = False


class Judge:
    """The replicas that one process watches, by address. `now`: seconds on one monotonic clock; call `tick`
    every TICK_S.
    """

    def __init__(self, now: float, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._attention = Attention(TICK_S, now)
        self._watched: dict[str, _Watched] = {}
        self._dead: OrderedDict[str, None] = OrderedDict()

    def is_trusted(self, address: str) -> bool:
        """Whether a new session may go there. One that is not watched is trusted, unless it is dead."""
        watched = self._watched.get(address)
        return address not in self._dead and (watched is None or not watched.is_doubted)

    def is_dead(self, address: str) -> bool:
        """Whether the verdict was passed."""
        return address in self._dead

    def meet(self, address: str, now: float) -> None:
        """A link to the replica is being made: it should speak soon, and is doubted if it does not."""
        self._watched.setdefault(address, _Watched(self._attention.at(now)))

    def linked(self, address: str, now: float) -> None:
        """There is a link: its silence counts from now on."""
        watched = self._watched.setdefault(address, _Watched(0.0))
        watched.is_linked, watched.heard_s = True, self._attention.at(now)

    def forget(self, address: str) -> None:
        """The replica is watched no more: its link has ended, or it never speaks."""
        self._watched.pop(address, None)

    def unreachable(self, address: str) -> Sequence[Verdict]:
        """No link can be made."""
        return self._doubt(address)

    def heard(self, address: str, beat: Beat, now: float) -> Sequence[Verdict]:
        """What the replica says of itself."""
        watched = self._watched.get(address)
        if watched is None:
            return ()
        if not beat.alive:
            return self._condemn(address, Cause.BROKEN)
        if self._limits.is_hung(beat.work):
            return self._condemn(address, Cause.HUNG)
        watched.heard_s = self._attention.at(now)
        if self._is_slow(beat.work):
            return self._doubt(address)
        watched.is_doubted = False
        return ()

    def tick(self, now: float) -> Sequence[Verdict]:
        """Time has passed."""
        self._attention.look(now)
        had_s, verdicts = self._attention.at(now), list[Verdict]()
        for address, watched in tuple(self._watched.items()):
            silent_s = had_s - watched.heard_s
            if watched.is_linked and silent_s > self._limits.silence_s:
                verdicts += self._condemn(address, Cause.SILENT)
            elif silent_s > self._limits.doubt_s:
                verdicts += self._doubt(address)
        return tuple(verdicts)

    def _is_slow(self, work: Work | None) -> bool:
        """Half way to a verdict, of what has a known cost."""
        if work is None or work.expected_s is None:
            return False
        return 2 * work.busy_s > self._limits.allowed_s(work)

    def _doubt(self, address: str) -> Sequence[Verdict]:
        watched = self._watched.get(address)
        if watched is None or watched.is_doubted:
            return ()
        watched.is_doubted = True
        return (Doubted(address),)

    def _condemn(self, address: str, cause: Cause) -> Sequence[Verdict]:
        del self._watched[address]
        self._dead[address] = None
        if len(self._dead) > REMEMBERED_DEAD:
            self._dead.popitem(last=False)
        return (Dead(address, cause),)
