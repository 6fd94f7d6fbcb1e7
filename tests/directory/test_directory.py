"""Leases: one suite for every store, the shared ones against a real server."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import random
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from rearview.config import DirectoryConfig
from rearview.directory import (
    Directory,
    DirectoryUnavailable,
    Lease,
    LeaseHeld,
    LeaseLost,
    MemoryDirectory,
    open_directory,
)
from rearview.directory.redis_store import RedisDirectory
from rearview.errors import ConfigError, Reason
from support.valkey import Server

pytestmark = pytest.mark.integration

LEASE_S = 15.0
NOW = 1_763_000_000.123456
LANE = ("encode#a", "decode#b")
MIN_GRANTS = 40
MAX_ATTEMPTS = 2_000
"""Of one contender: far beyond what `MIN_GRANTS` take, so that a test which gets stuck fails."""


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may stop."""
    server = Server(tmp_path)
    server.start()
    yield server
    server.stop()


Opener = Callable[[], Directory]


@pytest.fixture(params=["memory", "redis"])
async def opener(request: pytest.FixtureRequest) -> AsyncIterator[Opener]:
    """Gives handles of one empty directory: what several ingresses would hold."""
    handles: list[Directory] = []
    shared = MemoryDirectory(lease_s=LEASE_S)
    prefix = f"t-{uuid.uuid4().hex}"

    def open_handle() -> Directory:
        if request.param == "memory":
            return shared
        url = request.getfixturevalue("shared_server").url
        handles.append(open_directory(DirectoryConfig(redis_url=url, lease_s=LEASE_S, key_prefix=prefix)))
        return handles[-1]

    yield open_handle
    for handle in handles:
        await handle.close()


@pytest.fixture
def directory(opener: Opener) -> Directory:
    return opener()


async def acquire(directory: Directory, session: str = "s", **changes: object) -> Lease:
    values: dict[str, object] = {"tenant": "t", "lane": LANE, "ingress": "i1", "now": NOW, **changes}
    return await directory.acquire(session, **values)  # type: ignore[arg-type]


async def test_an_acquired_lease_says_what_was_asked_for(directory: Directory) -> None:
    lease = await acquire(directory)
    assert lease == Lease("s", "t", LANE, "i1", 1, NOW + LEASE_S, NOW)
    assert await directory.get("s") == lease


async def test_an_unknown_session_has_no_lease(directory: Directory) -> None:
    assert await directory.get("s") is None
    assert await directory.list(None) == []
    assert await directory.sessions_by_replica() == {}


async def test_a_live_lease_of_another_ingress_is_held(directory: Directory) -> None:
    lease = await acquire(directory)
    for takeover in (False, True):
        with pytest.raises(LeaseHeld) as caught:
            await acquire(directory, ingress="i2", now=NOW + 1, takeover=takeover)
        assert caught.value.lease == lease
    assert await directory.get("s") == lease


async def test_expiry_alone_never_takes_a_lease(directory: Directory) -> None:
    lease = await acquire(directory)
    with pytest.raises(LeaseHeld):
        await acquire(directory, ingress="i2", now=NOW + 100 * LEASE_S)
    renewed = await directory.renew("s", lease.epoch, NOW + 101 * LEASE_S)
    assert renewed.expiry_s == NOW + 102 * LEASE_S


async def test_an_expired_lease_is_taken_over_on_request_and_the_owner_is_fenced(
    directory: Directory,
) -> None:
    former = await acquire(directory)
    later = NOW + LEASE_S
    taken = await acquire(directory, ingress="i2", lane=("c",), now=later, takeover=True)
    assert taken == Lease("s", "t", ("c",), "i2", 2, later + LEASE_S, NOW)
    with pytest.raises(LeaseLost) as caught:
        await directory.renew("s", former.epoch, later)
    assert caught.value.current == taken


async def test_the_same_ingress_acquires_again_with_a_new_epoch(directory: Directory) -> None:
    former = await acquire(directory)
    again = await acquire(directory, lane=("c",), now=NOW + 1)
    assert (again.epoch, again.lane, again.open_time_s) == (2, ("c",), NOW)
    with pytest.raises(LeaseLost):
        await directory.renew("s", former.epoch, NOW + 2)


async def test_another_tenant_never_gets_the_session(directory: Directory) -> None:
    await acquire(directory)
    with pytest.raises(LeaseHeld):
        await acquire(directory, tenant="u", now=NOW + 2 * LEASE_S, takeover=True)


async def test_the_epoch_exceeds_what_replicas_hold(directory: Directory) -> None:
    assert (await acquire(directory, min_epoch=41)).epoch == 42
    assert (await acquire(directory, min_epoch=7)).epoch == 43


async def test_renewal_pushes_the_expiry_and_nothing_else(directory: Directory) -> None:
    await acquire(directory)
    renewed = await directory.renew("s", 1, NOW + 5)
    assert renewed == Lease("s", "t", LANE, "i1", 1, NOW + 5 + LEASE_S, NOW)
    assert await directory.get("s") == renewed


async def test_a_move_compares_the_epoch_and_raises_it(directory: Directory) -> None:
    await acquire(directory)
    moved = await directory.move("s", 1, ("c",), "i2", NOW + 1)
    assert moved == Lease("s", "t", ("c",), "i2", 2, NOW + 1 + LEASE_S, NOW)
    with pytest.raises(LeaseLost) as caught:
        await directory.move("s", 1, ("d",), "i3", NOW + 2)
    assert caught.value.current == moved
    assert await directory.get("s") == moved


async def test_operations_on_a_session_without_a_lease_say_so(directory: Directory) -> None:
    for call in (directory.renew("s", 1, NOW), directory.move("s", 1, LANE, "i1", NOW)):
        with pytest.raises(LeaseLost) as caught:
            await call
        assert caught.value.current is None
    await directory.release("s", 1)
    assert await directory.get("s") is None


async def test_release_is_idempotent_and_remembers_the_epoch(directory: Directory) -> None:
    await acquire(directory, min_epoch=9)
    await directory.release("s", 10)
    await directory.release("s", 10)
    assert await directory.get("s") is None
    assert await directory.list("t") == []
    with pytest.raises(LeaseLost):
        await directory.renew("s", 10, NOW)
    assert (await acquire(directory, ingress="i2")).epoch == 11


async def test_release_with_a_former_epoch_changes_nothing(directory: Directory) -> None:
    await acquire(directory)
    lease = await acquire(directory)
    await directory.release("s", 1)
    assert await directory.get("s") == lease


async def test_sessions_are_listed_by_tenant_oldest_first(directory: Directory) -> None:
    for age, (session, tenant) in enumerate([("s3", "t"), ("s1", "u"), ("s2", "t")]):
        await acquire(directory, session, tenant=tenant, now=NOW + age)
    await directory.renew("s3", 1, NOW + 9)
    assert [lease.session_id for lease in await directory.list("t")] == ["s3", "s2"]
    assert [lease.session_id for lease in await directory.list(None)] == ["s3", "s1", "s2"]
    assert await directory.list("nobody") == []


async def test_replicas_are_counted_by_the_leases_in_force(directory: Directory) -> None:
    await acquire(directory, "s1", lane=("a", "b"))
    await acquire(directory, "s2", lane=("a", "c"))
    assert await directory.sessions_by_replica() == {"a": 2, "b": 1, "c": 1}
    await directory.move("s2", 1, ("d", "c"), "i1", NOW)
    assert await directory.sessions_by_replica() == {"a": 1, "b": 1, "c": 1, "d": 1}
    await directory.release("s1", 1)
    assert await directory.sessions_by_replica() == {"c": 1, "d": 1}
    await acquire(directory, "s2", lane=("e",))
    assert await directory.sessions_by_replica() == {"e": 1}


async def test_names_with_separators_do_not_mix(directory: Directory) -> None:
    names = ["a:b", "a", "{a}", "a b", "ü*"]
    for name in names:
        await acquire(directory, name, lane=(name, "x:" + name))
    assert sorted(lease.lane[0] for lease in await directory.list(None)) == sorted(names)
    assert await directory.sessions_by_replica() == {n: 1 for name in names for n in (name, "x:" + name)}


@dataclass(frozen=True)
class Grant:
    """An acquire or move that succeeded, between two moments of the history."""

    session: str
    epoch: int
    ingress: str
    start: int
    end: int
    kind: str = "acquire"
    now: float = NOW


@dataclass
class History:
    """What contenders saw: grants, and by (session, epoch) releases begun and expiries given."""

    grants: list[Grant] = field(default_factory=list)
    releases: dict[tuple[str, int], int] = field(default_factory=dict)
    expiries: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    clock: int = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    async def grant(self, kind: str, ingress: str, now: float, call: Awaitable[Lease]) -> Lease:
        start = self.tick()
        lease = await call
        assert lease.ingress == ingress
        self.grants.append(Grant(lease.session_id, lease.epoch, ingress, start, self.tick(), kind, now))
        self.note_expiry(lease)
        return lease

    def note_expiry(self, lease: Lease) -> None:
        self.expiries.setdefault((lease.session_id, lease.epoch), []).append(lease.expiry_s)

    def note_release(self, lease: Lease) -> None:
        self.releases[lease.session_id, lease.epoch] = self.tick()

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
        held = (former.session, former.epoch)
        if former.ingress == grant.ingress or self.releases.get(held, grant.end) < grant.end:
            return True
        expired = any(expiry_s <= grant.now for expiry_s in self.expiries.get(held, []))
        return grant.kind == "takeover" and expired


@dataclass
class Contender:
    """An ingress that acquires, renews, moves and releases two sessions at random."""

    directory: Directory
    ingress: str
    rng: random.Random
    history: History
    held: dict[str, Lease] = field(default_factory=dict)

    async def run(self, enough: Callable[[], bool]) -> None:
        for _ in range(MAX_ATTEMPTS):
            if enough():
                return
            session = self.rng.choice(("s1", "s2"))
            try:
                await self._attempt(session, NOW + self.rng.uniform(0, 3 * LEASE_S))
            except LeaseHeld as error:
                self.history.refuse(error.lease, self.ingress)
            except LeaseLost:
                self.held.pop(session, None)
            await asyncio.sleep(0)

    async def _attempt(self, session: str, now: float) -> None:
        mine, rng, directory, me = self.held.get(session), self.rng, self.directory, self.ingress
        match rng.choice(("acquire", "takeover", "renew", "move", "release")):
            case "acquire":
                call = directory.acquire(session, "t", (rng.choice("ab"),), me, now, rng.randrange(3))
                self.held[session] = await self.history.grant("acquire", me, now, call)
            case "takeover":
                call = directory.acquire(session, "t", ("a",), me, now, takeover=True)
                self.held[session] = await self.history.grant("takeover", me, now, call)
            case "move" if mine is not None:
                call = directory.move(session, mine.epoch, ("c",), me, now)
                self.held[session] = await self.history.grant("move", me, now, call)
            case "renew" if mine is not None:
                renewed = await directory.renew(session, mine.epoch, now)
                assert (renewed.ingress, renewed.lane) == (me, mine.lane)
                self.history.note_expiry(renewed)
            case "release" if mine is not None:
                self.history.note_release(mine)
                await directory.release(session, mine.epoch)
                del self.held[session]


@pytest.mark.parametrize("seed", range(12))
async def test_contenders_never_share_an_epoch_nor_steal_and_epochs_increase(
    opener: Opener, seed: int
) -> None:
    history = History()
    names = ("i0", "i1", "i2")

    def enough() -> bool:
        # How calls interleave on a real server is not seeded, so the end is a condition and not a count.
        return len(history.grants) >= MIN_GRANTS and history.owners() == set(names)

    contenders = [Contender(opener(), name, random.Random(f"{seed} {name}"), history) for name in names]
    await asyncio.gather(*(contender.run(enough) for contender in contenders))
    assert enough(), f"{len(history.grants)} grants to {history.owners()}"
    history.check()
    directory = opener()
    counts = Counter(replica for lease in await directory.list(None) for replica in lease.lane)
    assert await directory.sessions_by_replica() == counts


@pytest.mark.parametrize(
    "grants",
    [
        [Grant("s", 1, "i1", 1, 2), Grant("s", 1, "i2", 3, 4)],
        [Grant("s", 2, "i1", 1, 2), Grant("s", 1, "i1", 3, 4)],
        [Grant("s", 1, "i1", 1, 2), Grant("s", 2, "i2", 3, 4)],
        [Grant("s", 1, "i1", 1, 2), Grant("s", 2, "i2", 3, 4, "takeover")],
        [Grant("s", 1, "i1", 1, 2), Grant("s", 2, "i2", 3, 4, "acquire", NOW + 2 * LEASE_S)],
    ],
    ids=["granted twice", "went back", "stolen", "taken over alive", "taken by expiry alone"],
)
def test_the_history_check_finds_bad_histories(grants: list[Grant]) -> None:
    with pytest.raises(AssertionError):
        History(grants, expiries={("s", 1): [NOW + LEASE_S]}).check()


def test_the_history_check_passes_a_takeover_after_expiry_and_an_acquire_after_release() -> None:
    takeover = Grant("s", 2, "i2", 3, 4, "takeover", NOW + LEASE_S)
    History(
        [Grant("s", 1, "i1", 1, 2), takeover, Grant("s", 3, "i1", 6, 7)],
        releases={("s", 2): 5},
        expiries={("s", 1): [NOW + LEASE_S]},
    ).check()


async def test_two_takeovers_at_once_have_one_winner(opener: Opener) -> None:
    directories = [opener() for _ in range(8)]
    await acquire(directories[0], ingress="dead")
    later = NOW + 2 * LEASE_S
    results = await asyncio.gather(
        *(
            acquire(directory, ingress=f"i{n}", now=later, takeover=True)
            for n, directory in enumerate(directories)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Lease) for result in results) == 1
    assert sum(isinstance(result, LeaseHeld) for result in results) == 7


async def test_memory_forgets_entries_that_nobody_renews() -> None:
    directory = MemoryDirectory(lease_s=LEASE_S, remember_s=100.0)
    for number in range(50):
        await acquire(directory, f"s{number}", now=NOW)
    await directory.renew("s7", 1, NOW + 60)
    await acquire(directory, "new", now=NOW + 120)
    assert [lease.session_id for lease in await directory.list(None)] == ["s7", "new"]


async def test_every_redis_key_has_the_prefix_and_a_time_to_live(shared_server: Server) -> None:
    client = redis.Redis(port=shared_server.port)
    client.flushall()
    directory = RedisDirectory.from_url(
        shared_server.url, lease_s=LEASE_S, key_prefix="house", remember_s=500.0
    )
    await acquire(directory, "s1")
    await acquire(directory, "s2", lane=("c",))
    await directory.move("s2", 1, ("d",), "i2", NOW)
    await directory.release("s1", 1)
    keys = list(client.scan_iter())
    assert len(keys) >= 5
    assert all(key.startswith(b"{house}:") for key in keys)
    assert all(LEASE_S * 1000 < client.pttl(key) <= 500_000 for key in keys)
    await directory.close()
    client.close()


async def test_index_entries_of_vanished_sessions_are_pruned(shared_server: Server) -> None:
    directory = RedisDirectory.from_url(
        shared_server.url, lease_s=2.0, key_prefix=f"t-{uuid.uuid4().hex}", remember_s=100.0
    )
    await acquire(directory, "dead", lane=("a",))
    await acquire(directory, "live", lane=("a",), now=NOW + 101)
    assert await directory.sessions_by_replica() == {"a": 1}
    await directory.close()


async def test_a_call_that_is_sent_twice_is_done_once(shared_server: Server) -> None:
    directory = RedisDirectory.from_url(
        shared_server.url, lease_s=LEASE_S, key_prefix=f"t-{uuid.uuid4().hex}"
    )

    def sending_twice(script: object) -> Callable[..., Awaitable[object]]:
        async def send(**call: object) -> object:
            await script(**call)  # type: ignore[operator]
            return await script(**call)  # type: ignore[operator]

        return send

    directory._scripts = {name: sending_twice(script) for name, script in directory._scripts.items()}  # type: ignore[misc]
    assert (await acquire(directory)).epoch == 1
    assert (await directory.move("s", 1, ("c",), "i2", NOW)).epoch == 2
    assert (await directory.renew("s", 2, NOW + 1)).expiry_s == NOW + 1 + LEASE_S
    await directory.release("s", 2)
    assert await directory.get("s") is None
    await directory.close()


async def test_redis_that_restarts_empty_is_served_again_and_epochs_do_not_go_back(
    own_server: Server,
) -> None:
    directory = open_directory(DirectoryConfig(redis_url=own_server.url))
    lease = await acquire(directory, min_epoch=4)
    own_server.stop()
    with pytest.raises(DirectoryUnavailable) as caught:
        await directory.renew("s", lease.epoch, NOW)
    assert caught.value.retry_after_s is not None
    own_server.start()
    with pytest.raises(LeaseLost) as lost:
        await directory.renew("s", lease.epoch, NOW)
    assert lost.value.current is None
    assert (await acquire(directory, min_epoch=lease.epoch)).epoch == 6
    await directory.close()


async def test_redis_that_hangs_is_unavailable_within_the_lease_and_recovers(own_server: Server) -> None:
    directory = open_directory(DirectoryConfig(redis_url=own_server.url))
    await acquire(directory)
    assert own_server.process is not None
    own_server.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(LEASE_S):
            with pytest.raises(DirectoryUnavailable):
                await directory.get("s")
    finally:
        own_server.process.send_signal(signal.SIGCONT)
    assert (await directory.renew("s", 1, NOW)).epoch == 1
    await directory.close()


async def test_without_a_url_leases_live_in_memory() -> None:
    assert isinstance(open_directory(DirectoryConfig()), MemoryDirectory)


@pytest.mark.parametrize("url", ["http://u:secret@host", "redis://u:secret@host:port", "localhost"])
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="redis_url") as caught:
        open_directory(DirectoryConfig(redis_url=url))
    assert "secret" not in str(caught.value)


async def test_errors_travel_between_processes_with_their_lease() -> None:
    lease = Lease("s", "t", LANE, "i1", 1, 2.0, 3.0)
    held = pickle.loads(pickle.dumps(LeaseHeld(lease)))
    lost = pickle.loads(pickle.dumps(LeaseLost(lease)))
    assert (held.lease, held.reason) == (lease, Reason.TAKEN_OVER)
    assert (lost.current, lost.reason) == (lease, Reason.TAKEN_OVER)
    assert pickle.loads(pickle.dumps(DirectoryUnavailable())).retry_after_s == 1.0
