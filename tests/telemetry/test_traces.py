"""A frame's trace, from a client's call to a receiver of OpenTelemetry's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rearview.config import ServiceConfig, load_config
from rearview.contract.traces import trace_id_of
from rearview.errors import ConfigError
from rearview.ingress.telling import Telling
from rearview.v1 import translation_service_pb2 as pb
from support.otlp import Receiver, attributes, receiver
from support.pocket_sessions import FRAMES, FUSED, HALVES, image, lose, play, pocket_config, session_of
from support.raw_stream import RawStream, eventually, quickly_stopped
from support.service import InProcessService, in_process_service

pytestmark = pytest.mark.integration

SECRET = "a secret harbour"
CALLER = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


def config(endpoint: str, spans: Sequence[Sequence[str]] = FUSED, **traces: Any) -> ServiceConfig:
    content = pocket_config(spans).model_dump(mode="json")
    content["telemetry"] = {"traces": {"endpoint": endpoint, **traces}}
    return load_config(content)


@asynccontextmanager
async def service(
    spans: Sequence[Sequence[str]] = FUSED, **traces: Any
) -> AsyncIterator[tuple[InProcessService, Receiver]]:
    async with receiver() as one:
        with quickly_stopped():
            async with in_process_service(config(one.endpoint, spans, **{"ratio": 1.0, **traces})) as running:
                yield running, one


async def begin(address: str, **metadata: str) -> RawStream:
    stream = RawStream(address, metadata=list(metadata.items()))
    raw, lossless = pb.IMAGE_FORMAT_RGB, pb.DROP_POLICY_LOSSLESS
    await stream.start(SECRET, drop_policy=lossless, answer_format=raw)
    return stream


async def test_a_frame_is_one_trace_through_edge_spans_operators_and_answer() -> None:
    async with service(HALVES) as (running, one):
        stream = await begin(running.address)
        await play(stream, range(3), answers=3)
        trees = await one.traced(3)
        session_id = stream.opened.session_id
        assert [tree.root.trace_id for tree in trees] == [trace_id_of(session_id, n) for n in range(3)]
        for number, tree in enumerate(trees):
            tree.check()
            assert attributes(tree.root) == {
                "session.id": session_id,
                "rearview.tenant": "local",
                "rearview.model": "pocket",
                "rearview.frame.place": number,
                "rearview.frame.index": number,
                "rearview.frame.ordinal": number,
                "rearview.outcome": "translated",
            }
            names = [part.name for part in tree.parts(tree.root)]
            assert names == ["wait", "decode", "admit", "lane", "encode image", "answer"]
            (lane,) = tree.named("lane")
            hops = tree.parts(lane)
            assert [hop.name for hop in hops] == ["link", "span-0", "link", "span-1", "link"]
            operators = [[part.name for part in tree.parts(hop) if part.name != "queue"] for hop in hops]
            assert operators == [[], ["encode", "denoise"], [], ["denoise", "decode"], []]
            replicas = [attributes(hop)["rearview.replica"] for hop in hops[1::2]]
            assert replicas == list(session_of(running, stream).lane.replicas)
            steps = [attributes(span) for span in tree.named("denoise")]
            assert [each["rearview.denoise.step"] for each in steps] == [0, 1]
            assert {each["rearview.batch.rows"] for each in steps} == {1}
            # On one machine the clocks are one: nothing is shifted.
            assert not any("rearview.clock.shift_s" in attributes(span) for span in tree.spans)
        await stream.__aexit__()


async def test_traces_hold_no_content() -> None:
    async with service() as (running, one):
        stream = await begin(running.address)
        await play(stream, range(2), answers=2)
        await one.traced(2)
        told = b"".join(request.SerializeToString() for request in one.requests)
        assert stream.opened.session_id.encode() in told
        for secret in (SECRET.encode(), SECRET.split()[-1].encode(), stream.opened.resume_token.encode()):
            assert secret not in told
        assert image(0)[:24] not in told
        await stream.__aexit__()


async def test_a_frame_that_is_sent_again_to_another_lane_stays_one_trace() -> None:
    async with service() as (running, one):
        stream = await begin(running.address)
        await play(stream, range(2), answers=2)
        session = session_of(running, stream)
        lost = session.lane.replicas[0]
        stage = next(each for each in running.stages if each.describe()["replica_id"] == lost)
        release = asyncio.Event()
        hold(stage, release)
        await stream.frame(2, image(2), pb.IMAGE_FORMAT_RGB)
        await eventually(lambda: 2 in session.feed.in_lane)
        losing = asyncio.create_task(lose(running, lost))
        await eventually(lambda: session.lane.replicas[0] != lost)
        release.set()
        await play(stream, range(3, 5), answers=5)
        await losing
        trees = await one.traced(5)
        assert [len(tree.named("frame")) for tree in trees] == [1] * 5
        moved = trees[2]
        moved.check()
        first, second = sorted(moved.named("lane"), key=lambda span: span.start_time_unix_nano)
        assert attributes(first)["rearview.lane.lost"]
        assert not attributes(second)["rearview.lane.lost"]
        assert attributes(first)["rearview.lane.epoch"] < attributes(second)["rearview.lane.epoch"]
        assert not moved.parts(first)
        assert moved.parts(second)
        assert [len(tree.named("lane")) for tree in trees] == [1, 1, 2, 1, 1]
        await stream.__aexit__()


def hold(stage: Any, release: asyncio.Event) -> None:
    """What the replica's engine does is not told before."""
    deliver, loop = stage._runner._on_step, asyncio.get_running_loop()

    def later(result: Any) -> None:
        loop.create_task(wait(result))

    async def wait(result: Any) -> None:
        await release.wait()
        deliver(result)

    stage._runner._on_step = later


@pytest.mark.parametrize(
    ("flags", "ratio", "asked_ratio", "traced"),
    [("01", 0.0, 1.0, True), ("00", 1.0, 1.0, False), ("01", 1.0, 0.0, False)],
)
async def test_the_callers_trace_decides_and_is_linked(
    flags: str, ratio: float, asked_ratio: float, traced: bool
) -> None:
    async with service(ratio=ratio, asked_ratio=asked_ratio) as (running, one):
        stream = await begin(running.address, traceparent=f"00-{CALLER[0]}-{CALLER[1]}-{flags}")
        await play(stream, range(3), answers=3)
        if traced:
            for tree in await one.traced(3):
                (link,) = tree.root.links
                assert (link.trace_id.hex(), link.span_id.hex()) == CALLER
                assert tree.root.trace_id.hex() != CALLER[0]
        await stream.__aexit__()
    assert bool(one.spans) == traced


async def test_a_share_of_frames_is_traced_and_drops_tell_why() -> None:
    async with service(ratio=0.5) as (running, one):
        stream = await begin(running.address)
        await play(stream, range(FRAMES), answers=FRAMES)
        await stream.frame(FRAMES - 1, image(0), pb.IMAGE_FORMAT_RGB)  # Its number does not rise.
        await stream.read_answers(1)
        ids = [trace_id_of(stream.opened.session_id, place) for place in range(FRAMES + 1)]
        taken = [place for place, each in enumerate(ids) if each[8] < 128]
        trees = await one.traced(len(taken))
        assert [tree.of("rearview.frame.place") for tree in trees] == taken
        for tree in trees:
            if tree.of("rearview.frame.place") == FRAMES:
                assert tree.of("rearview.outcome") == "index_not_increasing"
                assert [part.name for part in tree.parts(tree.root)] == ["wait", "answer"]
        await stream.__aexit__()


async def test_headers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTLP_TOKEN", "Bearer of bad news")
    async with service(headers_env={"Authorization": "OTLP_TOKEN"}) as (running, one):
        stream = await begin(running.address)
        await play(stream, range(1), answers=1)
        await one.traced(1)
        assert one.metadata[0]["authorization"] == "Bearer of bad news"
        await stream.__aexit__()


async def test_a_receiver_that_is_away_holds_nobody_up() -> None:
    with quickly_stopped():
        async with in_process_service(config("http://127.0.0.1:9", ratio=1.0, timeout_s=0.5)) as running:
            stream = await begin(running.address)
            await play(stream, range(FRAMES), answers=FRAMES)
            assert stream.drops == []
            await stream.__aexit__()


def test_a_header_without_its_variable_is_refused_by_name() -> None:
    refused = config("http://127.0.0.1:4317", headers_env={"authorization": "NOT_SET"})
    with pytest.raises(ConfigError, match="headers_env: authorization is to be in NOT_SET, which is not set"):
        Telling(refused, "ingress#0")


@pytest.mark.parametrize(
    "endpoint", ["collector:4317", "grpc://a:1", "http://a:1/v1/traces", "http://u:p@a:1"]
)
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.traces\.endpoint"):
        config(endpoint)


def test_without_the_extra_a_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from rearview.local.checks import check

    wanted = config("http://127.0.0.1:4317")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    for begin_it in (check, lambda one: Telling(one, "ingress#0")):
        with pytest.raises(ConfigError, match=r"pip install 'rearview\[traces\]'"):
            begin_it(wanted)


NOTHING_IMPORTED = """
import sys
from rearview.config import load_config
from rearview.ingress.telling import Telling
import rearview.ingress.service
Telling(load_config({}), "ingress#0")
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""


def test_off_is_the_default_and_imports_nothing() -> None:
    subprocess.run([sys.executable, "-c", NOTHING_IMPORTED], check=True)
