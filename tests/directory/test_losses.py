"""Ingresses, replicas and a store that loses replies, writes or everything, in any order; for both stores.

Replicas are the last word: they take an owner whose epoch is newer than all they have seen, or the same owner
again. What is checked after every step: a replica never sees two owners of one epoch; a grant for which the
replicas' epochs were passed in is newer than these; no acquire takes a tenant over its quota by leases that
count; and what the store counts is what it lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from rearview.contract.lease import Lease, LeaseRequest, Quota
from rearview.directory import (
    Directory,
    DirectoryEmpty,
    LeaseHeld,
    LeaseLost,
    MemoryDirectory,
    QuotaExceeded,
)
from support.stores import LEASE_S, MemoryStore, RedisStore, Store
from support.valkey import Server

pytestmark = pytest.mark.integration

T = TypeVar("T")

SESSIONS = ("s0", "s1", "s2")
INGRESSES = ("i0", "i1")
LANE = ("a", "b")
QUOTA = Quota(2, 1e9, 1e12)
sessions, ingresses = st.sampled_from(SESSIONS), st.sampled_from(INGRESSES)
fates = st.sampled_from(["used", "used", "known", "lost"])
"""Of a reply: its lease goes to the replicas at once, or later, or the reply does not arrive."""


class Losses(RuleBasedStateMachine):
    """Two ingresses and three sessions of one tenant."""

    make_store: ClassVar[Any] = MemoryStore

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store: Store = type(self).make_store()
        self.directory: Directory = self.store.open()
        self.believed: dict[tuple[str, str], Lease] = {}
        """By ingress and session: the lease that the ingress thinks it has."""
        self.seen: dict[str, int] = {}
        """By session: the newest epoch that its replicas have seen."""
        self.owners: dict[tuple[str, int], str] = {}
        """By session and epoch: whom its replicas have taken under it."""
        self.granted: dict[tuple[str, int], str] = {}
        """The same for what the store granted and has not lost since."""
        self.kept: list[Any] = []
        """What the store was like at some times."""
        self.is_empty = False

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()

    def ask(self, call: Awaitable[T]) -> T | None:
        """The answer, None for a refusal that the store has a right to."""

        async def asked() -> T:
            answer = await call
            assert not self.is_empty or answer in (None, True, False), "an empty store serves"
            return answer

        try:
            answer = self.runner.run(asked())
        except DirectoryEmpty:
            assert self.is_empty, "a store that knows all refuses"
            return None
        except (LeaseHeld, LeaseLost, QuotaExceeded):
            return None
        return answer

    def take(self, lease: Lease | None, ingress: str, *, fate: str, min_epoch: int) -> None:
        """Note a grant, and let the ingress know of it unless the reply is lost."""
        if lease is None:
            return
        session = lease.session_id
        assert lease.ingress == ingress
        assert lease.epoch > min_epoch, "an epoch that replicas have seen was handed out"
        assert (session, lease.epoch) not in self.granted, "an epoch was granted twice"
        self.granted[session, lease.epoch] = ingress
        if fate != "lost":
            self.believed[ingress, session] = lease
        if fate == "used":
            self._go_to_the_replicas(ingress, session)

    def counting(self) -> list[Lease]:
        listed = self.ask(self.directory.list(None)) or ()
        return [lease for lease in listed if lease.expiry_s > self.store.now()]

    @rule(ingress=ingresses, session=sessions, fate=fates)
    def acquire(self, ingress: str, session: str, fate: str) -> None:
        others = [lease for lease in self.counting() if lease.session_id != session]
        min_epoch = self.seen.get(session, 0)
        wanted = LeaseRequest(session, "t", quota=QUOTA)
        lease = self.ask(self.directory.acquire(wanted, LANE, ingress, min_epoch))
        assert lease is None or len(others) < QUOTA.sessions, "more sessions than the tenant may have"
        self.take(lease, ingress, fate=fate, min_epoch=min_epoch)

    @rule(ingress=ingresses, session=sessions)
    def renew(self, ingress: str, session: str) -> None:
        mine = self.believed.get((ingress, session))
        if mine is None:
            return
        try:
            renewed = self.runner.run(self._renew(mine))
        except LeaseLost as error:
            current = error.current
            assert current is None or (current.epoch, current.ingress) >= (mine.epoch, "")
            del self.believed[ingress, session]
        else:
            assert replace(renewed, expiry_s=mine.expiry_s) == mine

    async def _renew(self, lease: Lease) -> Lease:
        return await self.directory.renew(lease)

    @rule(ingress=ingresses, session=sessions, fate=fates)
    def take_over(self, ingress: str, session: str, fate: str) -> None:
        owner = self.ask(self.directory.owner_of(session))
        if owner is None:
            return
        min_epoch = self.seen.get(session, 0)
        call = self.directory.move(owner.lease, lane=LANE, ingress=ingress, min_epoch=min_epoch)
        self.take(self.ask(call), ingress, fate=fate, min_epoch=min_epoch)

    @rule(ingress=ingresses, session=sessions, fate=fates)
    def move(self, ingress: str, session: str, fate: str) -> None:
        mine = self.believed.get((ingress, session))
        if mine is None:
            return
        min_epoch = self.seen.get(session, 0)
        call = self.directory.move(mine, lane=("c", "b"), ingress=ingress, min_epoch=min_epoch)
        self.take(self.ask(call), ingress, fate=fate, min_epoch=min_epoch)

    @rule(ingress=ingresses, session=sessions)
    def go_to_the_replicas(self, ingress: str, session: str) -> None:
        self._go_to_the_replicas(ingress, session)

    def _go_to_the_replicas(self, ingress: str, session: str) -> None:
        mine = self.believed.get((ingress, session))
        if mine is None:
            return
        key = (session, mine.epoch)
        if mine.epoch > self.seen.get(session, 0) and key not in self.owners:
            self.seen[session], self.owners[key] = mine.epoch, ingress
        elif self.owners.get(key) != ingress:
            del self.believed[ingress, session]  # Fenced.

    @rule(ingress=ingresses, session=sessions, fate=fates)
    def release(self, ingress: str, session: str, fate: str) -> None:
        mine = self.believed.pop((ingress, session), None)
        if mine is not None and fate != "lost":
            self.ask(self.directory.release(mine))

    @rule(seconds=st.sampled_from([0.4 * LEASE_S, 1.1 * LEASE_S]))
    def wait(self, seconds: float) -> None:
        self.store.advance(seconds)
        # A snapshot is older by that much now: its leases would be young again.
        self.kept.clear()

    @rule()
    def keep(self) -> None:
        self.kept.append((self.store.snapshot(), self.is_empty))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def fail_over(self, data: st.DataObject) -> None:
        before, self.is_empty = data.draw(st.sampled_from(self.kept))
        self.store.restore(before)
        self.forget_grants()

    @rule(luck=st.integers(0, 4))
    def flush(self, luck: int) -> None:
        if luck:
            return  # An empty store refuses, so that little happens.
        self.store.flush()
        self.is_empty = True
        self.forget_grants()

    def forget_grants(self) -> None:
        """What the store has lost it may grant again, unless replicas have seen it."""
        self.granted = dict(self.owners)

    @rule(held=st.lists(sessions, unique=True))
    def publish(self, held: list[str]) -> None:
        self._publish(held)

    def _publish(self, held: list[str]) -> None:
        leases = [Lease(one, "t", LANE, "", self.seen[one], 0.0, 0.0) for one in held if one in self.seen]
        self.ask(self.directory.publish(leases))

    @precondition(lambda self: self.is_empty)
    @rule(is_told=st.booleans())
    def reopen(self, is_told: bool) -> None:
        if is_told:
            self._publish(list(self.seen))
        if self.ask(self.directory.reopen(tuple(self.seen))):
            self.is_empty = False

    @invariant()
    def what_is_counted_is_what_is_listed(self) -> None:
        if self.is_empty:
            return
        counting, usage = self.counting(), self.ask(self.directory.usage_by_replica())
        assert usage is not None
        for replica in ("a", "b", "c"):
            expected = sum(replica in lease.lane for lease in counting)
            assert (usage[replica].sessions if replica in usage else 0) == expected
        assert len({lease.session_id for lease in counting}) == len(counting)


SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=60)


def test_whatever_a_store_in_memory_loses_owners_stay_apart() -> None:
    run_state_machine_as_test(Losses, settings=settings(SETTINGS, max_examples=150))


def test_whatever_a_real_server_loses_owners_stay_apart(shared_server: Server) -> None:
    class InRedis(Losses):
        make_store: ClassVar[Any] = staticmethod(lambda: RedisStore(shared_server.url))

    run_state_machine_as_test(InRedis, settings=settings(SETTINGS, stateful_step_count=40))


def no_least_epoch(self: MemoryDirectory, lease: Lease, *, lane: Any, ingress: str, min_epoch: int) -> Any:
    return real_move(self, lease, lane=lane, ingress=ingress)


def everything(self: MemoryDirectory, tenant: str | None, now: float) -> list[Lease]:
    return [lease for lease in self._leases() if tenant in (None, lease.tenant)]


real_move = MemoryDirectory.move
PLANTED: dict[str, tuple[str, Any]] = {
    "quotas are not looked at": ("rearview.directory.memory._check_quota", lambda *_: None),
    "nobody is fenced": ("rearview.directory.memory._is_lost", lambda *_: False),
    "what replicas have seen is not looked at": ("rearview.directory.MemoryDirectory.move", no_least_epoch),
    "expired leases count": ("rearview.directory.MemoryDirectory._counting", everything),
    "an empty store serves": (
        "rearview.directory.MemoryDirectory._ask",
        lambda self: self._clock(),
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    monkeypatch.setattr(*PLANTED[bug])
    many = settings(SETTINGS, max_examples=3000, phases=[Phase.generate], print_blob=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Losses, settings=many)
