"""Sessions that nobody feeds, at one ingress, and room for their tenant's next at another."""

from __future__ import annotations

import pytest
from rearview.directory.protocol import Claims, DirectoryUnavailable
from rearview.errors import Reason
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import several
from support.raw_stream import End, RawStream, assert_nothing_held, eventually, null_config
from support.service import InProcessService

pytestmark = pytest.mark.integration


async def cut(service: InProcessService, number: int) -> pb.Opened:
    """A session of an ingress that nobody feeds, which all may know."""
    async with RawStream(service.addresses[number]) as stream:
        opened = await stream.start()
    await eventually(lambda: opened.session_id in _told(service, number))
    return opened


def _told(service: InProcessService, number: int) -> set[str]:
    return {key.rpartition("/")[2] for key in service.ingresses[number]._unfed._told}


async def refused(address: str, request: pb.TranslateRequest) -> End:
    async with RawStream(address) as stream:
        await stream.write(request)
        return await stream.read_to_end()


def resume(opened: pb.Opened) -> pb.TranslateRequest:
    asked = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
    return pb.TranslateRequest(resume=asked)


OPEN = pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a")))


async def test_those_of_another_ingress_make_room_from_the_oldest_on() -> None:
    async with several(config=null_config(slots=2)) as service:
        oldest, other = await cut(service, 0), await cut(service, 0)
        async with RawStream(service.addresses[1]) as new:
            await new.start()
            await new.frame(0)
            await new.read_answers(1)
            for address in service.addresses:
                assert (await refused(address, resume(oldest))).reason is Reason.SESSION_UNKNOWN
            async with RawStream(service.addresses[1]) as back:
                await back.resume(other, 0)
                await back.frame(0)
                await back.read_answers(1)
            await new.half_close()
            await new.read_to_end()


async def test_one_that_is_fed_again_stays() -> None:
    async with several(config=null_config(slots=1)) as service:
        opened = await cut(service, 0)
        async with RawStream(service.addresses[0]) as back:
            await back.resume(opened, 0)
            await eventually(lambda: not _told(service, 0))
            assert (await refused(service.addresses[1], OPEN)).reason is Reason.NO_CAPACITY
            await back.frame(0)
            await back.read_answers(1)
            await back.half_close()
            await back.read_to_end()
        await assert_nothing_held(service)


async def test_one_that_went_on_elsewhere_is_told_of_by_whoever_has_it() -> None:
    async with several(config=null_config(slots=1)) as service:
        opened = await cut(service, 0)
        async with RawStream(service.addresses[1]) as back:
            await back.resume(opened, 0)
        await eventually(lambda: opened.session_id in _told(service, 1))
        async with RawStream(service.addresses[0]) as new:
            await new.start()
            assert (await refused(service.addresses[1], resume(opened))).reason is Reason.SESSION_UNKNOWN


async def test_a_directory_that_does_not_answer_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with several(config=null_config(slots=1)) as service:

        async def fail(*_: object) -> None:
            raise DirectoryUnavailable

        monkeypatch.setattr("rearview.ingress.unfed.AGAIN_S", 0.02)
        with monkeypatch.context() as away:
            away.setattr(type(service.directory), "claim", fail)
            async with RawStream(service.addresses[0]) as stream:
                opened = await stream.start()
            await eventually(lambda: opened.session_id in service.ingresses[0]._unfed._unfed)
            assert (await refused(service.addresses[1], OPEN)).reason is Reason.NO_CAPACITY
        await eventually(lambda: opened.session_id in _told(service, 0))
        async with RawStream(service.addresses[1]) as new:
            await new.start()


async def test_who_has_the_directory_alone_tells_it_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with several(1, null_config()) as service:
        ingress = service.ingresses[0]
        monkeypatch.setattr(ingress._unfed, "_is_shared", False)
        async with RawStream(service.address) as stream:
            opened = await stream.start()
        await eventually(lambda: ingress.sessions[opened.session_id].stream is None)
        directory: Claims = service.directory
        assert await directory.claims() == []
