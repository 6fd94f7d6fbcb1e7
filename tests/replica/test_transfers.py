"""Freezing, thawing and pulling at a replica: fenced by epochs, bounded in time, and over with its link."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rearview.config import LinkConfig
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.sessions import SessionState
from rearview.errors import NotFound, RearviewError, Reason
from rearview.replica.stage import Stage
from rearview.transport.bulk import serve
from rearview.transport.links import Link, LinkClosed, LinkServer
from rearview.transport.wire import Kind, decode_json
from support.owner import Owner, driven, engine_holds, spec, started
from support.raw_stream import OPERATORS, eventually, null_config

pytestmark = pytest.mark.integration

SPANS = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))


async def opened(owner: Owner, frames: int = 0, epoch: int = 1) -> SessionSpec:
    """A session that has answered so many frames."""
    session = spec()
    assert await owner.open(session, epoch) is None
    for ordinal in range(frames):
        owner.send(session, ordinal, epoch)
    await eventually(lambda: len(owner.frames) == frames)
    return session


async def refusal_of(pulling: Any) -> RearviewError:
    with pytest.raises(RearviewError) as caught:
        await pulling
    return caught.value


async def frozen_at(stage: Stage, session: SessionSpec) -> int | None:
    assert stage._runner is not None
    return await stage._runner.call(lambda engine: engine.frozen_at(session.session_id))


# Freezing.


async def test_a_frozen_session_holds_later_frames_until_it_is_thawed() -> None:
    async with driven() as (stage, (owner,)):
        session = await opened(owner, 3)
        assert await owner.freeze(session) == 2
        for ordinal in (4, 3):
            owner.send(session, ordinal)
        await owner.settle()
        reply = await owner.attach(session, epoch=1, to=None)
        assert reply["expected"] == 3
        assert reply["coming"] == [[13, 3], [14, 4]], "an adopter knows what is held"
        assert owner.ordinals == [0, 1, 2]
        owner.thaw(session)
        await eventually(lambda: owner.ordinals == [0, 1, 2, 3, 4])
        assert await frozen_at(stage, session) is None


async def test_a_freeze_may_be_repeated_and_never_goes_back() -> None:
    async with driven() as (_, (owner,)):
        session = await opened(owner, 2)
        for asked, told in ((-1, 1), (-1, 1), (5, 5), (3, 5), (-1, 5)):
            reply = await owner.request(Kind.FREEZE, session, ordinal=asked)
            assert reply["ordinal"] == told
            assert reply["num_bytes"] >= 0
        for ordinal in range(2, 8):
            owner.send(session, ordinal)
        await eventually(lambda: owner.ordinals == list(range(6)))
        await owner.settle()
        assert owner.ordinals == list(range(6))


async def test_other_epochs_neither_freeze_nor_thaw_nor_pull() -> None:
    async with driven() as (stage, (owner,)):
        session = await opened(owner, 1, epoch=3)
        for epoch in (2, 4):
            assert (await owner.request(Kind.FREEZE, session, epoch))["reason"] == "TAKEN_OVER"
            assert (await refusal_of(owner.pulled(session, epoch))).reason is Reason.TAKEN_OVER
        assert await frozen_at(stage, session) is None
        assert await owner.freeze(session, 3) == 0
        for epoch in (2, 4):
            owner.thaw(session, epoch)
        await owner.settle()
        assert await frozen_at(stage, session) == 0
        assert (await owner.request(Kind.FREEZE, spec()))["reason"] == "SESSION_UNKNOWN"
        assert isinstance(await refusal_of(owner.pulled(spec())), NotFound)


async def test_a_freeze_ends_with_the_link_over_which_it_was_asked_for() -> None:
    async with driven(owners=2) as (stage, (first, second)):
        session = await opened(first, 1)
        assert await first.freeze(session) == 0
        first.send(session, 1)
        await first.settle()
        await first.stop()

        async def runs() -> bool:
            return await frozen_at(stage, session) is None

        await eventually(runs)
        reply = await second.attach(session, epoch=2)
        assert reply["expected"] == 2


async def test_whoever_adopts_a_frozen_session_finds_it_running() -> None:
    async with driven(owners=2) as (stage, (first, second)):
        session = await opened(first, 1)
        assert await first.freeze(session) == 0
        first.send(session, 1)
        await first.settle()
        assert "reason" not in await first.attach(session, epoch=1)
        assert await frozen_at(stage, session) == 0, "its owner has asked again, and knows of it"
        assert "reason" not in await second.attach(session, epoch=2)
        assert await frozen_at(stage, session) is None
        await eventually(lambda: 1 in second.ordinals)


# Pulling.


async def test_a_pull_waits_for_the_frames_up_to_the_freeze() -> None:
    async with driven() as (_, (owner,)):
        session = await opened(owner, 2)
        assert (await owner.request(Kind.FREEZE, session, ordinal=3))["ordinal"] == 3
        pulling = asyncio.create_task(owner.pulled(session, limit_s=20.0))
        owner.send(session, 2)
        await eventually(lambda: owner.ordinals == [0, 1, 2])
        assert not pulling.done()
        owner.send(session, 3)
        assert len(await asyncio.wait_for(pulling, 10)) > 100
        assert owner.ordinals == [0, 1, 2, 3], "what was quiet has answered all of it"


async def test_a_pull_that_waits_too_long_says_for_which_ordinal() -> None:
    async with driven() as (stage, (owner,)):
        session = await opened(owner, 2)
        assert (await owner.request(Kind.FREEZE, session, ordinal=7))["ordinal"] == 7
        error = await refusal_of(owner.pulled(session, limit_s=0.05))
        assert (error.reason, error.metadata) == (
            Reason.REPLICA_LOST,
            {"cause": "not_quiet", "ordinal": "7"},
        )
        assert await frozen_at(stage, session) == 7
        owner.thaw(session)
        owner.send(session, 2)
        await eventually(lambda: owner.ordinals == [0, 1, 2])


async def test_a_pull_from_an_engine_that_hangs_is_refused_in_time() -> None:
    goes_on = threading.Event()
    async with driven() as (stage, (owner,)):
        session = await opened(owner, 1)
        await owner.freeze(session)
        assert stage._runner is not None
        stage._runner.post(lambda engine: bool(goes_on.wait(20)) and None)
        try:
            error = await asyncio.wait_for(refusal_of(owner.pulled(session, limit_s=0.05)), 10)
            assert error.metadata == {"cause": "not_quiet", "ordinal": "-1"}
            await eventually(lambda: not stage._requests._tasks)
        finally:
            goes_on.set()


@pytest.mark.parametrize("end", ["thaw", "close", "adopt"])
async def test_a_pull_that_waits_in_vain_is_told_at_once(end: str) -> None:
    async with driven(owners=2) as (_, (owner, other)):
        session = await opened(owner, 1)
        assert (await owner.request(Kind.FREEZE, session, ordinal=3))["ordinal"] == 3
        pulling = asyncio.create_task(owner.pulled(session, limit_s=60.0))
        await owner.settle()
        if end == "thaw":
            owner.thaw(session)
        elif end == "close":
            owner.close(session)
        else:
            assert "reason" not in await other.attach(session, epoch=2)
        error = await asyncio.wait_for(refusal_of(pulling), 10)
        reasons = {"thaw": "REPLICA_LOST", "close": "SESSION_UNKNOWN", "adopt": "TAKEN_OVER"}
        assert error.reason.name == reasons[end]


async def test_what_is_not_frozen_is_not_pulled() -> None:
    async with driven() as (_, (owner,)):
        session = await opened(owner, 1)
        assert (await refusal_of(owner.pulled(session))).metadata == {"cause": "not_frozen"}


async def test_two_may_pull_at_a_time() -> None:
    async with driven() as (stage, (owner,)):
        session = await opened(owner, 2)
        await owner.request(Kind.FREEZE, session, ordinal=2)
        pulling = [asyncio.create_task(owner.pulled(session, limit_s=20.0)) for _ in range(2)]
        owner.send(session, 2)
        first, second = await asyncio.gather(*pulling)
        assert first == second
        assert await owner.pulled(session, thaw=True) == first
        assert await frozen_at(stage, session) is None


# Opening from what was pulled.


async def test_a_session_that_moved_is_known_as_if_it_had_always_been_here() -> None:
    """Places, settings, and what has passed: its new owner adopts it as any other."""
    async with started(null_config()) as (here, (owner,)):
        session = await opened(owner, 9)
        owner.announce(session, 4, Settings("later"))
        await owner.settle()
        async with started(null_config()) as (there, (mover,)):
            await owner.freeze(session)
            assert await mover.open(session, 2, begins=owner.sources(session)) is None
            owner.close(session)
            mover.send(session, 9, 2, version=4)
            mover.send(session, 3, 2)
            await eventually(lambda: bool(mover.frames))
            await mover.settle()
            assert mover.ordinals == [9], "3 was answered elsewhere"
            reply = await mover.attach(session, 3)
            assert (reply["expected"], reply["place"]) == (10, 19)
            assert reply["settings"] == [4]
            await eventually(lambda: here[0].num_sessions == 0)
            assert await engine_holds(here[0]) == 0
            assert await engine_holds(there[0]) == 1


async def test_frames_that_were_held_count_for_no_place_where_the_session_moves() -> None:
    async with started(null_config(slots=1)) as (_, (owner,)), started(null_config()) as (_, (mover,)):
        session = await opened(owner, 2)
        await owner.freeze(session)
        owner.send(session, 2)
        await owner.settle()
        assert await mover.open(session, 2, begins=owner.sources(session)) is None
        assert (await mover.attach(session, 2))["place"] == 11


async def test_settings_that_were_on_their_way_to_a_span_come_with_the_session() -> None:
    """The second span never heard of version 1: the hop before it was not adopted yet when it was told."""
    config = null_config(spans=SPANS)
    async with started(config) as (_, (owner,)), started(config) as (_, (mover,)):
        session = await opened(owner, 1)
        assert "reason" not in await owner.attach(session, 2, hop=2)
        assert "reason" not in await owner.attach(session, 2, hop=1)
        owner.announce(session, 1, Settings("b"), epoch=1)
        await owner.settle()
        epochs = (1, 2, 2)
        for hop, epoch in enumerate(epochs):
            assert (await owner.request(Kind.FREEZE, session, epoch, hop))["ordinal"] == 0
        sources = owner.sources(session)["state"]["sources"]
        named = [{**source, "epoch": epoch} for source, epoch in zip(sources, epochs, strict=True)]
        for hop, link in enumerate(mover.links):
            mover_content = mover.opening(session, 3, hop) | {"state": {"sources": [named[hop]]}}
            assert await link.request(Kind.OPEN, mover_content) == {"kernels": ""}
        mover.send(session, 1, 3, version=1)
        await eventually(lambda: bool(mover.frames))
        assert [(frame.ordinal, frame.is_lost) for frame in mover.frames] == [(1, False)]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"epoch": 1}, "TAKEN_OVER"),
        ({"epoch": 9}, "TAKEN_OVER"),
        ({"session_id": "0" * 32}, "SESSION_UNKNOWN"),
        ({"address": "node|/nowhere|127.0.0.1|1"}, "REPLICA_LOST"),
        ({"address": 3}, "INTERNAL"),
    ],
)
async def test_an_open_whose_source_refuses_holds_nothing(wrong: dict[str, Any], reason: str) -> None:
    async with started(null_config()) as (_, (owner,)), started(null_config(slots=1)) as (there, (mover,)):
        session = await opened(owner, 1, epoch=2)
        await owner.freeze(session, 2)
        (source,) = owner.sources(session, 2)["state"]["sources"]
        begins = {"state": {"sources": [source | wrong], "limit_s": 1.0}}
        assert await mover.open(session, 3, begins=begins) == reason
        assert there[0].num_sessions == await engine_holds(there[0]) == 0
        owner.thaw(session, 2)
        owner.send(session, 1, 2)
        await eventually(lambda: owner.ordinals == [0, 1])
        assert await mover.open(spec(), 1) is None


async def test_a_state_that_stands_elsewhere_than_its_owner_believes_is_refused() -> None:
    async with started(null_config()) as (_, (owner,)), started(null_config(slots=1)) as (there, (mover,)):
        session = await opened(owner, 1)
        await owner.freeze(session)
        state = owner.sources(session)["state"]
        for start in (0, 2):
            begins = {"state": {**state, "start": start}}
            assert await mover.open(session, 2 + start, begins=begins) == "METHOD_UNSUPPORTED"
        assert there[0].num_sessions == await engine_holds(there[0]) == 0
        assert await mover.open(session, 9, begins={"state": {**state, "start": 1}}) is None


async def cut(link: Link, content: bytes) -> None:
    link.send(Kind.PART, content[: len(content) // 2])
    await link.drained()
    link.close()


async def shortened(link: Link, content: bytes) -> None:
    link.send(Kind.PART, content[:-1])
    link.send(Kind.END, b"{}")


async def garbled(link: Link, content: bytes) -> None:
    link.send(Kind.PART, content.replace(b'"expected":1', b'"expected":x'))
    link.send(Kind.END, b"{}")


async def huge(link: Link, content: bytes) -> None:
    link.send(Kind.PART, bytes((8 << 20) + 1))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (cut, "REPLICA_LOST"),
        (shortened, "METHOD_UNSUPPORTED"),
        (garbled, "METHOD_UNSUPPORTED"),
        (huge, "REPLICA_LOST"),
    ],
)
async def test_an_open_from_a_source_that_breaks_holds_nothing(
    answer: Callable[[Link, bytes], Any], reason: str
) -> None:
    async with driven(slots=1) as (stage, (owner,)), driven() as (_, (keeper,)):
        session = await opened(keeper, 1)
        await keeper.freeze(session)
        content = await keeper.pulled(session)
        tasks: list[asyncio.Task[None]] = []

        def take(link: Link, kind: Kind, body: bytes) -> None:
            tasks.append(asyncio.create_task(answer(link, content)))

        server = LinkServer(owner.config.link, "node", on_message=take, on_closed=lambda _: None)
        source = {"address": str(await server.start()), "session_id": session.session_id, "epoch": 1}
        assert await owner.open(session, 2, begins={"state": {"sources": [source]}}) == reason
        await server.stop()
        await asyncio.gather(*tasks)
        assert stage.num_sessions == await engine_holds(stage) == 0
        assert await owner.open(spec()) is None


async def test_a_session_of_another_model_is_refused() -> None:
    """Of the same weights in another precision, here."""
    there = null_config(slots=1, model={"dtype": "float64"})
    async with driven(model={"dtype": "float32"}) as (_, (owner,)), started(there) as (stages, (mover,)):
        session = await opened(owner, 1)
        await owner.freeze(session)
        assert await mover.open(session, 2, begins=owner.sources(session)) == "MODEL_UNKNOWN"
        assert stages[0].num_sessions == await engine_holds(stages[0]) == 0


async def test_a_close_during_a_pull_leaves_nothing() -> None:
    async with driven(slots=1) as (stage, (owner,)), driven() as (_, (source,)):
        session = await opened(source, 1)
        await source.request(Kind.FREEZE, session, ordinal=2)
        opening = asyncio.create_task(owner.open(session, 2, begins=source.sources(session)))
        await eventually(lambda: stage.num_sessions == 1)
        owner.close(session, 2)
        await eventually(lambda: stage.num_sessions == 0)
        for ordinal in (1, 2):
            source.send(session, ordinal)
        assert await opening == "TAKEN_OVER"
        assert await engine_holds(stage) == 0


class SlowSource:
    """It has a session to give, and takes its time."""

    def __init__(self, config: LinkConfig, content: bytes) -> None:
        self.content, self.goes_on = content, asyncio.Event()
        self.asked = self.closed = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.server = LinkServer(config, "node", on_message=self.take, on_closed=self.has_closed)

    async def start(self, session: SessionSpec) -> Mapping[str, Any]:
        """What an OPEN begins from."""
        source = {"address": str(await self.server.start()), "session_id": session.session_id, "epoch": 1}
        return {"state": {"sources": [source]}}

    def take(self, link: Link, kind: Kind, body: bytes) -> None:
        self.asked += 1
        self.tasks.append(asyncio.create_task(serve(link, decode_json(body), self.pieces)))

    def has_closed(self, link: Link) -> None:
        self.closed += 1

    async def pieces(self, request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        yield self.content
        await self.goes_on.wait()

    async def stop(self) -> None:
        await self.server.stop()
        self.goes_on.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@asynccontextmanager
async def slow_source(config: LinkConfig) -> AsyncIterator[tuple[SessionSpec, SlowSource, Mapping[str, Any]]]:
    """A session, who has it, and what opens it elsewhere."""
    async with driven() as (_, (keeper,)):
        session = await opened(keeper, 1)
        await keeper.freeze(session)
        source = SlowSource(config, await keeper.pulled(session))
        try:
            yield session, source, await source.start(session)
        finally:
            await source.stop()


@pytest.mark.parametrize("end", ["close", "newer open", "owner gone"])
async def test_a_pull_ends_with_the_open_that_it_is_for(end: str) -> None:
    async with driven(owners=2) as (stage, (owner, other)), slow_source(owner.config.link) as slow:
        session, source, begins = slow
        opening = asyncio.create_task(owner.open(session, 2, begins=begins))
        await eventually(lambda: source.asked == 1)
        if end == "close":
            owner.close(session, 2)
        elif end == "newer open":
            assert await other.open(session, 3) is None
        else:
            await owner.stop()
        await eventually(lambda: source.closed == 1)
        await eventually(lambda: not stage._requests._tasks)
        assert not stage._transfers._pulls
        assert stage.num_sessions == await engine_holds(stage) == (end == "newer open")
        if end == "owner gone":
            await asyncio.wait({opening})
            assert isinstance(opening.exception(), LinkClosed)
        else:
            assert await opening == "TAKEN_OVER"


async def test_an_open_whose_next_hop_went_during_the_pull_is_refused() -> None:
    async with driven(owners=2) as (stage, (owner, next_hop)), slow_source(owner.config.link) as slow:
        session, source, begins = slow
        opening = asyncio.create_task(owner.open(session, 2, to=next_hop.address, begins=begins))
        await eventually(lambda: source.asked == 1)
        await next_hop.stop()
        await eventually(lambda: not stage._pool._links)
        source.goes_on.set()
        assert await opening == "REPLICA_LOST"
        assert stage.num_sessions == await engine_holds(stage) == 0


async def test_a_replica_that_stops_leaves_no_request_under_way() -> None:
    def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(writer)

    heard: list[asyncio.StreamWriter] = []
    async with driven() as (stage, (owner,)), await asyncio.start_server(say_nothing, "127.0.0.1") as silent:
        port = silent.sockets[0].getsockname()[1]
        opening = asyncio.create_task(owner.open(spec(), to=f"elsewhere||127.0.0.1|{port}"))
        await eventually(lambda: bool(heard))
        await stage.stop()
        assert not stage._requests._tasks
        with pytest.raises(LinkClosed):
            await opening
        heard[0].close()


async def test_what_was_frozen_again_while_it_was_thawed_stays_with_who_froze_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with driven(owners=2) as (stage, (first, second)):
        session = await opened(first, 1)
        await first.freeze(session)
        runner = stage._transfers._engine
        call = runner.call

        async def overtaken(*arguments: Any) -> Any:
            result = await call(*arguments)
            if isinstance(result, SessionState):
                await second.freeze(session)
            return result

        monkeypatch.setattr(runner, "call", overtaken)
        await first.pulled(session, thaw=True)
        monkeypatch.undo()
        assert await frozen_at(stage, session) == 0
        await second.stop()

        async def runs() -> bool:
            return await frozen_at(stage, session) is None

        await eventually(runs)
