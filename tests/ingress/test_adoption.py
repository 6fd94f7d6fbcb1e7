"""A session goes on at another ingress, whatever has become of the one before."""

from __future__ import annotations

import asyncio
import copy

import grpc
import pytest
from rearview.errors import Reason
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import crash, one_wins, several
from support.raw_stream import OPERATORS, RawStream, eventually, index, null_config

from loadtest.reliability.counters import scrape

pytestmark = pytest.mark.integration

SPANS = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))


async def test_a_session_goes_on_at_another_ingress_when_its_own_is_killed() -> None:
    async with several(2, null_config(spans=SPANS)) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            for number in range(6):
                await first.frame(number, b"%d" % number)
            answers = await first.read_answers(3)
            await crash(service.servers[0])
        async with RawStream(service.addresses[1]) as second:
            again = await second.resume(opened, 3)
            assert 3 <= again.received_frames <= 6
            for number in range(again.received_frames, 10):
                await second.frame(number, b"%d" % number)
            await second.half_close()
            assert (await second.read_to_end()).code is grpc.StatusCode.OK
            answers += second.answers
        assert [index(answer) for answer in answers] == list(range(10))
        assert [answer.frame.image for answer in answers] == [b"%d" % number for number in range(10)]
        offsets = [answer.frame.presentation_offset for answer in answers]
        assert [(each.seconds, each.nanos) for each in offsets] == [(n, n) for n in range(10)]


async def test_an_ingress_that_lives_loses_the_session_to_the_other() -> None:
    async with several(2, null_config(spans=SPANS)) as service:
        async with RawStream(service.addresses[0]) as first, RawStream(service.addresses[1]) as second:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            await first.frame(0, b"0")
            await first.read_answers(1)
            again = await second.resume(opened, 1)
            assert again.received_frames == 1
            end = await first.read_to_end()
            assert (end.code, end.reason) == (grpc.StatusCode.ABORTED, Reason.TAKEN_OVER)
            await second.frame(1, b"1")
            assert index((await second.read_answers(1))[0]) == 1
            assert len(service.ingresses[0].sessions) == 0
            await second.half_close()
            assert (await second.read_to_end()).code is grpc.StatusCode.OK
        await eventually(lambda: all(stage.num_sessions == 0 for stage in service.stages))
        assert await service.directory.list(None) == []


async def test_a_frame_is_counted_once_by_whoever_had_its_picture_first() -> None:
    """The client has read three answers of six, and gets the others once more."""
    async with several(2, null_config(spans=SPANS)) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            for number in range(6):
                await first.frame(number, b"%d" % number)
            await first.read_answers(6)
        async with RawStream(service.addresses[1]) as second:
            assert (await second.resume(opened, 3)).received_frames == 6
            await second.frame(6, b"6")
            await second.half_close()
            assert (await second.read_to_end()).code is grpc.StatusCode.OK
            assert second.indices == [3, 4, 5, 6]
        counted = [await scrape([server.metrics_url]) for server in service.servers]
        assert [each.get("translated", 0) for each in counted] == [6, 1]


async def test_who_has_not_the_token_or_is_another_tenant_changes_nothing() -> None:
    async with several(2) as service, RawStream(service.addresses[0]) as first:
        opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        before = await service.directory.owner_of(opened.session_id)
        async with RawStream(service.addresses[1]) as second:
            asked = pb.Resume(session_id=opened.session_id, resume_token="guessed")
            await second.write(pb.TranslateRequest(resume=asked))
            assert (await second.read_to_end()).reason is Reason.RESUME_TOKEN_INVALID
        async with RawStream(service.addresses[1]) as second:
            asked = pb.Resume(session_id="0" * 32, resume_token=opened.resume_token)
            await second.write(pb.TranslateRequest(resume=asked))
            assert (await second.read_to_end()).reason is Reason.SESSION_UNKNOWN
        assert await service.directory.owner_of(opened.session_id) == before
        await first.frame(0)
        assert index((await first.read_answers(1))[0]) == 0


async def test_of_two_that_resume_at_the_same_time_one_wins() -> None:
    async with several(3, null_config(spans=SPANS)) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            await first.frame(0, b"0")
            await first.read_answers(1)
            await crash(service.servers[0])
        asked = pb.TranslateRequest(
            resume=pb.Resume(
                session_id=opened.session_id, resume_token=opened.resume_token, received_answers=1
            )
        )
        async with RawStream(service.addresses[1]) as one, RawStream(service.addresses[2]) as other:
            await asyncio.gather(one.write(asked), other.write(asked))
            winner, ending, lost = await one_wins(one, other)
            for number in (1, 2):
                await winner.frame(number, b"%d" % number)
            await winner.half_close()
            assert (await ending).reason is None
        assert lost.reason in (Reason.TAKEN_OVER, Reason.REPLICA_LOST)
        assert winner.indices == [1, 2]
        await eventually(lambda: all(stage.num_sessions == 0 for stage in service.stages))


async def test_sessions_of_another_ingress_are_shown_listed_and_closed() -> None:
    async with several(2, null_config(spans=SPANS)) as service, RawStream(service.addresses[0]) as first:
        opened = await first.start()
        async with RawStream(service.addresses[1]) as second:
            mine = await second.start()
            request = sessions_pb.GetSessionRequest(session_id=opened.session_id)
            shown = (await second.sessions.GetSession(request)).session
            assert (shown.session_id, shown.state) == (opened.session_id, sessions_pb.Session.STATE_ELSEWHERE)
            assert shown.lane == [stage.describe()["replica_id"] for stage in service.stages]
            assert (shown.tenant, shown.model, shown.epoch) == ("local", opened.model, 1)
            listed = await second.sessions.ListSessions(sessions_pb.ListSessionsRequest())
            assert [each.session_id for each in listed.sessions] == [opened.session_id, mine.session_id]
            page = await second.sessions.ListSessions(sessions_pb.ListSessionsRequest(page_size=1))
            rest = await first.sessions.ListSessions(
                sessions_pb.ListSessionsRequest(page_token=page.next_page_token)
            )
            assert [each.session_id for each in (*page.sessions, *rest.sessions)] == [
                opened.session_id,
                mine.session_id,
            ]
            await second.sessions.CloseSession(sessions_pb.CloseSessionRequest(session_id=opened.session_id))
            end = await first.read_to_end()
            assert (end.code, end.reason) == (grpc.StatusCode.CANCELLED, Reason.CLOSED)
            assert [lease.session_id for lease in await service.directory.list(None)] == [mine.session_id]
        await eventually(lambda: all(stage.num_sessions <= 1 for stage in service.stages))


async def test_replicas_that_know_a_newer_epoch_than_the_directory_are_believed() -> None:
    """A store that failed over has lost transitions that it had acknowledged."""
    async with several(2, null_config(spans=SPANS)) as service, RawStream(service.addresses[0]) as first:
        opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await first.frame(0, b"0")
        await first.read_answers(1)
        before = copy.copy(service.directory._entries)
        async with RawStream(service.addresses[1]) as second:
            await second.resume(opened, 1)
        service.directory._entries = before
        async with RawStream(service.addresses[0]) as third:
            await third.resume(opened, 1)
            await third.frame(1, b"1")
            assert index((await third.read_answers(1))[0]) == 1
            owner = await service.directory.owner_of(opened.session_id)
            assert owner is not None
            assert owner.lease.epoch == 3


async def test_a_directory_that_came_back_empty_learns_from_replicas_whose_ingress_is_dead() -> None:
    async with several(2, null_config(spans=SPANS, directory={"lease_s": 60})) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            await first.frame(0, b"0")
            await first.read_answers(1)
            await crash(service.servers[0])
        service.directory._entries.clear()
        service.directory._is_open = False
        service.ingresses[1]._leases._woken.set()
        service.ingresses[1]._leases._announce_due_s = 0.0
        await eventually(lambda: service.directory._is_open)
        async with RawStream(service.addresses[1]) as second:
            await second.resume(opened, 1)
            await second.frame(1, b"1")
            assert index((await second.read_answers(1))[0]) == 1
