"""Parked sessions go over to other ingresses, whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.errors import Reason
from rearview.ingress.handover import Handover
from rearview.ingress.session import IngressSession
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import crash, one_wins, several
from support.pocket_sessions import FRAMES, FUSED, HALVES, image, never_moved, play, pocket_config, start
from support.raw_stream import RawStream, eventually, index, null_config
from support.service import InProcessService

pytestmark = pytest.mark.integration

PARKED = {"park_after_s": 0.02}


async def parked(service: InProcessService, stream: RawStream) -> IngressSession:
    """The session of a stream that ends, when it is parked."""
    session = service.ingresses[0].sessions[stream.opened.session_id].session
    await stream.__aexit__()
    await eventually(lambda: session.past.is_parked)
    return session


async def ask(stream: RawStream, opened: pb.Opened, received: int) -> None:
    request = pb.Resume(
        session_id=opened.session_id, resume_token=opened.resume_token, received_answers=received
    )
    await stream.write(pb.TranslateRequest(resume=request))


async def resumed(service: InProcessService, at: int, opened: pb.Opened, received: int) -> RawStream:
    stream = RawStream(service.addresses[at])
    await stream.resume(opened, received)
    return stream


@pytest.mark.parametrize(("method", "spans"), [("per-frame", FUSED), ("bank", HALVES), ("cache", FUSED)])
async def test_a_parked_session_goes_on_at_another_ingress_as_if_it_had_stayed(
    method: str, spans: Sequence[Sequence[str]]
) -> None:
    expected = await never_moved(method)
    async with several(2, pocket_config(spans, replicas=1, **PARKED)) as service:
        stream = await start(service.addresses[0], method)
        before = await play(stream, range(5), answers=5)
        former = await parked(service, stream)
        again = await resumed(service, 1, stream.opened, 5)
        assert again.opened.received_frames == 5
        assert before + await play(again, range(5, FRAMES), answers=FRAMES - 5) == expected
        leases = service.ingresses[0]._leases
        leases._holdings[former.lease.session_id] = replace(
            leases._holdings[former.lease.session_id], due_s=0.0
        )
        await leases._renew_due()
        assert (len(service.ingresses[0].sessions), len(service.ingresses[1].sessions)) == (0, 1)
        (record,) = service.ingresses[1].sessions
        assert former.lease.epoch < record.session.lease.epoch
        await again.half_close()
        assert (await again.read_to_end()).code is grpc.StatusCode.OK
        await eventually(lambda: all(stage.num_sessions == 0 for stage in service.stages))
        assert await service.directory.list(None) == []


async def test_answers_that_the_client_lacks_come_again() -> None:
    async with several(2, null_config(recovery=PARKED)) as service:
        stream = RawStream(service.addresses[0])
        opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number in range(6):
            await stream.frame(number, b"%d" % number)
        await stream.read_answers(6)
        await parked(service, stream)
        again = await resumed(service, 1, opened, 2)
        assert again.opened.received_frames == 6
        for number in (6, 7):
            await again.frame(number, b"%d" % number)
        await again.read_answers(6)
        assert [index(answer) for answer in again.answers] == [2, 3, 4, 5, 6, 7]
        assert [answer.frame.image for answer in again.answers] == [b"%d" % n for n in range(2, 8)]
        offsets = [answer.frame.presentation_offset.seconds for answer in again.answers]
        assert offsets == [2, 3, 4, 5, 6, 7]
        await again.__aexit__()


async def test_where_there_is_no_slot_it_stays_where_it_is_parked() -> None:
    async with several(2, null_config(slots=1, recovery=PARKED)) as service:
        stream = RawStream(service.addresses[0])
        opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await stream.frame(0, b"0")
        await stream.read_answers(1)
        await parked(service, stream)
        async with RawStream(service.addresses[1]) as other:
            await other.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            async with RawStream(service.addresses[1]) as refused:
                await ask(refused, opened, 1)
                assert (await refused.read_to_end()).reason is Reason.NO_CAPACITY
            owner = await service.directory.owner_of(opened.session_id)
            assert owner is not None
            assert (owner.lease.ingress, owner.lease.lane) == ("ingress#0", ())
            await other.half_close()
            await other.read_to_end()
        again = await resumed(service, 0, opened, 1)
        await again.frame(1, b"1")
        assert index((await again.read_answers(1))[0]) == 1
        await again.__aexit__()


async def test_it_is_lost_with_the_ingress_that_has_parked_it() -> None:
    async with several(2, null_config(recovery=PARKED)) as service:
        stream = RawStream(service.addresses[0])
        opened = await stream.start()
        await parked(service, stream)
        await crash(service.servers[0])
        async with RawStream(service.addresses[1]) as other:
            await ask(other, opened, 0)
            assert (await other.read_to_end()).reason in (Reason.REPLICA_LOST, Reason.SESSION_UNKNOWN)
        assert len(service.ingresses[1].sessions) == 0


async def test_of_its_own_ingress_and_another_one_wins_in_the_end() -> None:
    async with several(2, null_config(recovery=PARKED)) as service:
        for _ in range(20):  # They meet at another point each time.
            stream = RawStream(service.addresses[0])
            opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            await parked(service, stream)
            async with RawStream(service.addresses[0]) as one, RawStream(service.addresses[1]) as other:
                await asyncio.gather(ask(one, opened, 0), ask(other, opened, 0))
                winner, ending, lost = await one_wins(one, other)
                await winner.frame(0, b"0")
                await winner.half_close()
                assert (await ending).reason is None
            assert [answer.frame.image for answer in winner.answers] == [b"0"]
            assert lost.reason in (Reason.TAKEN_OVER, Reason.REPLICA_LOST)


async def test_who_asks_elsewhere_while_it_is_being_parked_is_told_to_come_again() -> None:
    async with several(2, null_config(recovery=PARKED)) as service:
        stream = RawStream(service.addresses[0])
        opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        session, leases = service.sessions[opened.session_id].session, service.ingresses[0]._leases
        move, told, goes = leases.move, asyncio.Event(), asyncio.Event()

        async def slow(*args: Any) -> Any:
            moved = await move(*args)
            told.set()
            await goes.wait()
            return moved

        leases.move = slow  # type: ignore[method-assign]
        await stream.__aexit__()
        await told.wait()
        async with RawStream(service.addresses[1]) as early:
            await ask(early, opened, 0)
            end = await early.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.REPLICA_LOST)
        assert end.retry_after_s is not None
        goes.set()
        await eventually(lambda: session.past.is_parked)
        again = await resumed(service, 1, opened, 0)
        await again.frame(0)
        await again.read_answers(1)
        await again.__aexit__()


async def test_while_it_is_on_its_way_all_others_are_told_to_wait() -> None:
    async with several(3, null_config(recovery=PARKED)) as service:
        stream = RawStream(service.addresses[0])
        opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await parked(service, stream)
        asked, goes = asyncio.Event(), asyncio.Event()
        placing = service.ingresses[1]._placing
        place = placing.place_again

        async def slow(*args: Any) -> Any:
            asked.set()
            await goes.wait()
            return await place(*args)

        placing.place_again = slow  # type: ignore[method-assign]
        async with RawStream(service.addresses[1]) as taker:
            await ask(taker, opened, 0)
            await asked.wait()
            leases = service.ingresses[0]._leases
            held = leases._holdings[opened.session_id]
            leases._holdings[opened.session_id] = replace(held, due_s=0.0)
            await leases._renew_due()
            assert opened.session_id in service.ingresses[0].sessions, "it may come back"
            for address in (service.addresses[0], service.addresses[2]):
                async with RawStream(address) as other:
                    await ask(other, opened, 0)
                    end = await other.read_to_end()
                    assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.REPLICA_LOST)
                    assert end.retry_after_s is not None
            goes.set()
            assert (await taker.read()) is not None, await taker.end()
            await taker.frame(0, b"0")
            await taker.read_answers(1)
        async with RawStream(service.addresses[0]) as back:
            await back.resume(opened, 1)
            await back.frame(1, b"1")
            assert index((await back.read_answers(1))[0]) == 1


async def test_one_that_is_slow_to_come_is_refused_for_now_and_found_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearview.ingress.voice.HEARTBEAT_S", 0.1)
    async with several(2, null_config(recovery=PARKED)) as service:
        stream = RawStream(service.addresses[0])
        opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await parked(service, stream)
        goes = asyncio.Event()
        placing = service.ingresses[1]._placing
        place = placing.place_again

        async def slow(*args: Any) -> Any:
            await goes.wait()
            return await place(*args)

        placing.place_again = slow  # type: ignore[method-assign]
        for _ in range(2):  # The second one meets the first on its way.
            async with RawStream(service.addresses[1]) as taker:
                await ask(taker, opened, 0)
                end = await taker.read_to_end()
                assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.REPLICA_LOST)
                assert end.retry_after_s == 0.1
        goes.set()
        await eventually(lambda: opened.session_id in service.ingresses[1].sessions)
        async with RawStream(service.addresses[1]) as taker:
            await taker.resume(opened, 0)
            await taker.frame(0, b"0")
            await taker.read_answers(1)


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Handover.from_bytes(content)


async def test_a_byte_more_or_less_is_refused() -> None:
    async with several(1, pocket_config(replicas=1, **PARKED)) as service:
        stream = await start(service.addresses[0], "bank")
        await play(stream, range(3), answers=3)
        content = Handover.of(await parked(service, stream)).to_bytes()
        assert len(content) > 3 * len(image(0))
        assert Handover.from_bytes(content).to_bytes() == content
        for wrong in (content[:-1], content + b"x", content[:100], b"\xff" * 4 + content[4:]):
            with pytest.raises(ValueError, match=r".*"):
                Handover.from_bytes(wrong)
