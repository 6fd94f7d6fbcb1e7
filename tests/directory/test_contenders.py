"""Ingresses that contend for sessions at random, on every store; the check finds bad histories."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from rearview.contract.lease import Lease, LeaseRequest, Quota
from rearview.directory import Directory, LeaseHeld, LeaseLost, QuotaExceeded
from support.stores import Store

pytestmark = pytest.mark.integration

SESSIONS = ("s1", "s2", "s3")
QUOTA = Quota(2, 1e9, 1e12)
MIN_GRANTS = 40
MAX_ATTEMPTS = 2_000
"""Of one contender: far beyond what `MIN_GRANTS` take, so that a test which gets stuck fails."""


@dataclass(frozen=True)
class Grant:
    """An acquire or move that succeeded, between two moments of the history."""

    session: str
    epoch: int
    ingress: str
    start: int
    end: int
    fenced: int | None = None
    """Of a move: the epoch that it compared with."""


@dataclass
class History:
    """What contenders saw: grants, and by (session, epoch) releases begun."""

    grants: list[Grant] = field(default_factory=list)
    releases: dict[tuple[str, int], int] = field(default_factory=dict)
    over_quota: int = 0
    clock: int = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    async def grant(self, ingress: str, call: Awaitable[Lease], fenced: int | None = None) -> Lease:
        start = self.tick()
        lease = await call
        assert lease.ingress == ingress
        self.grants.append(Grant(lease.session_id, lease.epoch, ingress, start, self.tick(), fenced))
        return lease

    def refuse(self, lease: Lease, ingress: str) -> None:
        assert lease.ingress != ingress, "an ingress was refused for its own lease"

    def owners(self) -> set[str]:
        return {grant.ingress for grant in self.grants}

    def check(self) -> None:
        """One owner per epoch, epochs in the order of time, nobody's lease taken without a right to it."""
        assert len({(g.session, g.epoch) for g in self.grants}) == len(self.grants), "granted twice"
        for session in {grant.session for grant in self.grants}:
            ordered = sorted((g for g in self.grants if g.session == session), key=lambda g: g.epoch)
            for number, grant in enumerate(ordered):
                assert all(later.end > grant.start for later in ordered[number + 1 :]), "an epoch went back"
            for former, grant in itertools.pairwise(ordered):
                assert self._may_follow(former, grant), f"{grant} stole from {former}"

    def _may_follow(self, former: Grant, grant: Grant) -> bool:
        released = self.releases.get((former.session, former.epoch), grant.end) < grant.end
        return former.ingress == grant.ingress or grant.fenced == former.epoch or released


@dataclass
class Contender:
    """An ingress that acquires, renews, moves, takes over and releases sessions at random."""

    directory: Directory
    ingress: str
    rng: random.Random
    history: History
    held: dict[str, Lease] = field(default_factory=dict)

    async def run(self, enough: Callable[[], bool]) -> None:
        for _ in range(MAX_ATTEMPTS):
            if enough():
                return
            session = self.rng.choice(SESSIONS)
            try:
                await self._attempt(session)
            except QuotaExceeded:
                self.history.over_quota += 1
            except LeaseHeld as error:
                self.history.refuse(error.lease, self.ingress)
            except LeaseLost:
                self.held.pop(session, None)
            await asyncio.sleep(0)

    async def _attempt(self, session: str) -> None:
        mine, rng, directory, me = self.held.get(session), self.rng, self.directory, self.ingress
        match rng.choice(("acquire", "take over", "renew", "move", "release", "release")):
            case "acquire":
                wanted = LeaseRequest(session, "t", quota=QUOTA)
                call = directory.acquire(wanted, (rng.choice("ab"),), me, rng.randrange(3))
                self.held[session] = await self.history.grant(me, call)
            case "take over" if (owner := await directory.owner_of(session)) is not None:
                await self._move(owner.lease)
            case "move" if mine is not None:
                await self._move(mine)
            case "renew" if mine is not None:
                renewed = await directory.renew(mine)
                assert (renewed.ingress, renewed.lane, renewed.epoch) == (me, mine.lane, mine.epoch)
            case "release" if mine is not None:
                self.history.releases[session, mine.epoch] = self.history.tick()
                await directory.release(mine)
                del self.held[session]

    async def _move(self, lease: Lease) -> None:
        call = self.directory.move(lease, lane=("c",), ingress=self.ingress)
        self.held[lease.session_id] = await self.history.grant(self.ingress, call, lease.epoch)


@pytest.mark.parametrize("seed", range(12))
async def test_contenders_never_share_an_epoch_nor_steal_and_epochs_increase(store: Store, seed: int) -> None:
    history = History()
    names = ("i0", "i1", "i2")

    def enough() -> bool:
        # How calls interleave on a real server is not seeded, so the end is a condition and not a count.
        is_varied = history.owners() == set(names) and history.over_quota
        return len(history.grants) >= MIN_GRANTS and bool(is_varied)

    contenders = [Contender(store.open(), name, random.Random(f"{seed} {name}"), history) for name in names]
    await asyncio.gather(*(contender.run(enough) for contender in contenders))
    assert enough(), f"{len(history.grants)} grants to {history.owners()}, {history.over_quota} refused"
    history.check()
    directory = store.open()
    leases = await directory.list(None)
    assert len(leases) <= QUOTA.sessions
    counts = Counter(replica for lease in leases for replica in lease.lane)
    usage = await directory.usage_by_replica()
    assert {replica: used.sessions for replica, used in usage.items()} == counts


@pytest.mark.parametrize(
    "grants",
    [
        [Grant("s", 1, "i1", 1, 2), Grant("s", 1, "i2", 3, 4)],
        [Grant("s", 2, "i1", 1, 2), Grant("s", 1, "i1", 3, 4)],
        [Grant("s", 1, "i1", 1, 2), Grant("s", 2, "i2", 3, 4)],
        [Grant("s", 2, "i1", 1, 2), Grant("s", 3, "i2", 3, 4, fenced=1)],
    ],
    ids=["granted twice", "went back", "stolen", "moved from another epoch"],
)
def test_the_history_check_finds_bad_histories(grants: list[Grant]) -> None:
    with pytest.raises(AssertionError):
        History(grants).check()


def test_the_history_check_passes_a_takeover_by_epoch_and_an_acquire_after_a_release() -> None:
    takeover = Grant("s", 2, "i2", 3, 4, fenced=1)
    grants = [Grant("s", 1, "i1", 1, 2), takeover, Grant("s", 3, "i1", 6, 7)]
    History(grants, releases={("s", 2): 5}).check()
