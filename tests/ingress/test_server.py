"""The edge: health, reflection, session calls, drain, metrics."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from rearview.errors import Reason
from rearview.ingress.server import IngressServer
from rearview.ingress.service import Ingress
from rearview.replica.stage import Stage
from rearview.telemetry.exposition import MetricsServer
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import OPERATORS, RawStream, assert_nothing_held, eventually, null_config, running
from support.require import skip_or_fail

pytestmark = pytest.mark.integration

SERVICES = ["rearview.v1.TranslationService", "rearview.v1.SessionService"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PIPELINE = ((OPERATORS[0],), OPERATORS[1:])


@pytest.mark.parametrize("name", ["", *SERVICES])
async def test_health_is_serving(name: str) -> None:
    async with running() as service, grpc.aio.insecure_channel(service.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        response = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert response.status == SERVING


async def test_health_of_translation_follows_the_replicas_without_which_no_frame_comes_back() -> None:
    async with running(spans=PIPELINE) as service, grpc.aio.insecure_channel(service.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]), timeout=30)
        assert (await watch.read()).status == SERVING
        lost = service.stages.pop()
        await lost.stop()
        assert (await watch.read()).status == NOT_SERVING
        edge = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert edge.status == SERVING, "who asks for a session is told why there is none"
        service.stages.append(Stage(service.config, 1, "span-1#1", "node"))
        await service.stages[-1].start()
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_reflection_lists_the_services() -> None:
    async with (
        running(ingress={"reflection": True}) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=10)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        response = await call.read()
        names = {found.name for found in response.list_services_response.service}
        assert names >= {*SERVICES, "grpc.health.v1.Health"}
        await call.write(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="rearview.v1.TranslateRequest")
        )
        response = await call.read()
        assert response.file_descriptor_response.file_descriptor_proto
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_there_is_no_reflection_unless_it_is_asked_for() -> None:
    async with (
        running() as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=10)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_session_is_shown_with_its_counts_and_without_its_prompt() -> None:
    async with running(spans=PIPELINE) as service, RawStream(address := service.address) as stream:
        settings = settings_pb2.Settings(prompt="private", strength=0.5, steps=1)
        opened = await stream.start(settings=settings, drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number in range(4):
            await stream.frame(number, b"x" if number else b"")
        await stream.read_answers(4)
        get = sessions_pb.GetSessionRequest(session_id=opened.session_id)
        session = (await stream.sessions.GetSession(get, timeout=10)).session
        assert session.session_id == opened.session_id
        assert session.tenant == "local"
        assert session.state == sessions_pb.Session.STATE_STREAMING
        assert (session.received_frames, session.translated_frames, session.dropped_frames) == (4, 3, 1)
        assert (session.width, session.height, session.settings.steps) == (64, 64, 1)
        assert list(session.lane) == ["span-0#0", "span-1#0"]
        assert session.epoch >= 1
        assert b"private" not in session.SerializeToString()
        assert opened.resume_token.encode() not in session.SerializeToString()
        stream.call.cancel()
        await eventually(lambda: service.sessions[opened.session_id].stream is None)
        async with RawStream(address) as other:
            session = (await other.sessions.GetSession(get, timeout=10)).session
            assert session.state == sessions_pb.Session.STATE_DETACHED


@pytest.mark.two_ingresses
async def test_a_list_goes_on_after_its_page_whoever_ends_meanwhile() -> None:
    async with running() as service:
        streams = [RawStream(service.address) for _ in range(5)]
        ids = [(await stream.start()).session_id for stream in streams]
        stub = streams[-1].sessions
        page = await stub.ListSessions(sessions_pb.ListSessionsRequest(page_size=2), timeout=10)
        assert [s.session_id for s in page.sessions] == ids[:2]
        await streams[1].half_close()  # The last one of the page ends.
        await streams[1].read_to_end()
        await eventually(lambda: len(service.sessions) == 4)
        following = sessions_pb.ListSessionsRequest(page_size=2, page_token=page.next_page_token)
        page = await stub.ListSessions(following, timeout=10)
        assert [s.session_id for s in page.sessions] == ids[2:4]
        following = sessions_pb.ListSessionsRequest(page_size=2, page_token=page.next_page_token)
        page = await stub.ListSessions(following, timeout=10)
        assert [s.session_id for s in page.sessions] == ids[4:]
        assert page.next_page_token == ""
        everything = await stub.ListSessions(sessions_pb.ListSessionsRequest(page_size=4), timeout=10)
        assert (len(everything.sessions), everything.next_page_token) == (4, "")
        for stream in streams:
            await stream.__aexit__()


@pytest.mark.parametrize(
    "request_",
    [
        sessions_pb.ListSessionsRequest(page_size=-1),
        sessions_pb.ListSessionsRequest(page_size=1001),
        sessions_pb.ListSessionsRequest(page_token="junk"),
        sessions_pb.ListSessionsRequest(page_token="0x1p99999/x"),
    ],
    ids=["negative size", "too large", "junk token", "token beyond numbers"],
)
async def test_a_senseless_page_is_refused(request_: sessions_pb.ListSessionsRequest) -> None:
    async with running() as service, RawStream(service.address) as stream:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.sessions.ListSessions(request_, timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.two_ingresses
async def test_closing_a_session_ends_its_stream_and_frees_it() -> None:
    async with (
        running() as service,
        RawStream(service.address) as stream,
        RawStream(service.address) as other,
    ):
        opened = await stream.start()
        await other.start()
        close = sessions_pb.CloseSessionRequest(session_id=opened.session_id)
        await other.sessions.CloseSession(close, timeout=10)
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.CANCELLED, Reason.CLOSED)
        await assert_nothing_held(service, sessions=1)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await other.sessions.CloseSession(close, timeout=10)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        await other.frame(1)
        await other.read_answers(1)


@pytest.mark.one_ingress("one of them drains, and others take what comes")
async def test_a_drain_tells_streams_and_health_and_lets_streams_finish() -> None:
    async with running(ingress={"drain_grace_s": 15.0}) as service:
        async with (
            RawStream(service.address) as stream,
            grpc.aio.insecure_channel(service.address) as channel,
        ):
            await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            draining = asyncio.create_task(service.server.drain())
            assert (await watch.read()).status == NOT_SERVING
            notice = await stream.read()
            assert notice is not None
            assert notice.notice.kind == pb.Notice.KIND_DRAIN
            assert notice.notice.grace.ToSeconds() == 15
            async with RawStream(service.address) as late:
                await late.write(
                    pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a")))
                )
                assert (await late.read_to_end()).code is grpc.StatusCode.UNAVAILABLE
            for number in range(3):
                await stream.frame(number)
            await stream.half_close()
            assert (await stream.read_to_end()).code is grpc.StatusCode.OK
            assert stream.indices == [0, 1, 2]
            watch.cancel()
            await asyncio.wait_for(draining, 10)  # Well before the grace is over.
        await assert_nothing_held(service)


@pytest.mark.one_ingress("its session stays for the others")
async def test_a_stream_that_outlasts_the_drain_grace_is_ended_with_a_retry() -> None:
    async with running(ingress={"drain_grace_s": 0.1}) as service, RawStream(service.address) as stream:
        await stream.start()
        draining = asyncio.create_task(service.server.drain())
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)
        assert end.retry_after_s is not None
        await asyncio.wait_for(draining, 10)
        await assert_nothing_held(service)


async def scrape(url: str) -> bytes:
    def read() -> bytes:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bytes(response.read())

    return await asyncio.to_thread(read)


def check_metrics(promtool: str, text: bytes) -> tuple[int, bytes, bytes]:
    command = [promtool, "check", "metrics"]
    run = subprocess.run(command, input=text, capture_output=True, timeout=30, check=False)
    return run.returncode, run.stdout, run.stderr


async def test_promtool_finds_nothing_in_the_metrics_after_traffic(
    image_checkpoint: str, images: dict[str, bytes]
) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        skip_or_fail("promtool is not installed (Debian: apt install prometheus)")
    model = {"checkpoint": image_checkpoint}
    async with running(model=model, spans=PIPELINE) as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number, name in enumerate(("good", "truncated", "good")):
            await stream.frame(number, images[name], pb.IMAGE_FORMAT_JPEG)
        await stream.read_answers(3)
        async with RawStream(service.address) as refused:
            await refused.write(pb.TranslateRequest(open=pb.Open()))
            await refused.read_to_end()
        urls = [*service.metrics_urls, *(stage.describe()["metrics_url"] for stage in service.stages)]
        texts = [await scrape(url) for url in urls]
        assert b'rearview_frames_total{outcome="translated"} 2.0' in texts[0]
        assert b'rearview_sessions{state="streaming",tenant="local"} 1.0' in texts[0]
        assert b'rearview_session_opens_refused_total{reason="prompt_empty"} 1.0' in texts[0]
        assert b'rearview_slots_used{span="span-0"} 1.0' in texts[1]
        assert b'rearview_span_compute_seconds_count{span="span-1"} 2.0' in texts[2]
        for text in texts:
            assert await asyncio.to_thread(check_metrics, promtool, text) == (0, b"", b"")


async def test_the_event_loop_answers_while_the_metrics_server_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, close, answers = asyncio.get_running_loop(), MetricsServer.close, []

    def close_once_the_loop_answers(server: MetricsServer) -> None:
        answered = threading.Event()
        loop.call_soon_threadsafe(answered.set)
        answers.append(answered.wait(5))
        close(server)

    monkeypatch.setattr(MetricsServer, "close", close_once_the_loop_answers)
    async with running() as service:
        pass
    assert answers == [True] * (len(service.servers) + len(service.stages))


async def test_metrics_of_a_service_that_is_open_to_others_name_an_address_that_they_can_dial(
    root: Path,
) -> None:
    everyone = {"host": "0.0.0.0"}
    tenants = root / "deploy/tenants.example.yaml"
    config = null_config(ingress=everyone, access={"metrics": everyone}, tenants_file=tenants)
    stage = Stage(config, 0, "stage", "node")  # Not started, so that nothing of it is open to others.

    async def members() -> list[dict[str, object]]:
        return [dict(stage.describe())]

    server = IngressServer(Ingress(config, "ingress", "node", members))
    own = socket.gethostbyname(socket.gethostname())
    try:
        assert stage.describe()["metrics_url"] == f"http://{own}:0/metrics"
        assert server.metrics_url == f"http://{own}:0/metrics"
    finally:
        await stage.stop()
        await server.stop()


async def test_only_opens_count_as_refused_opens() -> None:
    async with running() as service, RawStream(service.address) as stream:
        await stream.start()
        await stream.write(pb.TranslateRequest())
        assert (await stream.read_to_end()).reason is Reason.MESSAGE_EMPTY
        assert not service.counted("rearview_session_opens_refused_total", reason="message_empty")
