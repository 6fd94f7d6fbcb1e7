"""An ingress that is told to go, over a directory that it shares: its sessions do not end with it."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from rearview.errors import Reason
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import several
from support.raw_stream import OPERATORS, RawStream, eventually, index, null_config

pytestmark = pytest.mark.integration

SPANS = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))


async def test_a_stream_that_outlasts_the_drain_grace_goes_on_at_another_ingress() -> None:
    async with several(2, null_config(spans=SPANS, ingress={"drain_grace_s": 0.1})) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            for number in range(6):
                await first.frame(number, b"%d" % number)
            await first.read_answers(3)
            draining = asyncio.create_task(service.servers[0].drain())
            end = await first.read_to_end()
            assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)
            answers = list(first.answers)
            await draining
            await service.servers[0].stop()
        async with RawStream(service.addresses[1]) as second:
            again = await second.resume(opened, len(answers))
            for number in range(again.received_frames, 10):
                await second.frame(number, b"%d" % number)
            await second.half_close()
            assert (await second.read_to_end()).code is grpc.StatusCode.OK
            answers += second.answers
        assert [index(answer) for answer in answers] == list(range(10))
        assert [answer.frame.image for answer in answers] == [b"%d" % number for number in range(10)]
        await eventually(lambda: all(stage.num_sessions == 0 for stage in service.stages))
        assert await service.directory.list(None) == []


async def test_a_session_that_is_parked_ends_with_its_ingress() -> None:
    config = null_config(ingress={"drain_grace_s": 0.1}, recovery={"park_after_s": 0.0})
    async with several(2, config) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await eventually(lambda: all(stage.num_sessions == 0 for stage in service.stages))
        await service.servers[0].drain()
        async with RawStream(service.addresses[1]) as second:
            asked = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
            await second.write(pb.TranslateRequest(resume=asked))
            assert (await second.read_to_end()).reason is Reason.SESSION_UNKNOWN
        assert await service.directory.list(None) == []
