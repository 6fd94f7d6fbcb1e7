"""`rearview.connect` and its blocking twin: pictures in, pictures out, of the kind that a program has.

Against the fake server where it must misbehave, and against real services where sessions are cut, moved and
refused: every frame has a picture or a reason, once and in order.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rearview
import torch
import yaml
from PIL import Image
from rearview.client import (
    Client,
    Dropped,
    DropPolicy,
    Frame,
    ImageFormat,
    Reconnect,
    SettingsChange,
    Translator,
)
from rearview.client.newest import MAX_WAITING, newest
from rearview.contract.settings import Guidance, NoiseRule
from rearview.errors import DropReason, InvalidRequest, Reason, Refused, StreamEnded
from rearview.schema.enums import GUIDANCES, NOISE_RULES
from rearview.v1 import translation_service_pb2 as pb
from support.fake_server import SIZE, FakeServer, Faults, serving_in_thread
from support.ingresses import cut_at, several
from support.raw_stream import assert_nothing_held, eventually, null_config, quickly_stopped, running
from support.service import in_process_service
from support.tokens import sha256

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

WIDE = [np.full((SIZE, SIZE + 32, 3), 20 * value, np.uint8) for value in range(10)]
QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.05, open_timeout_s=1.0)
RAW: Any = {"prompt": "a", "reconnect": QUICK, "send_quality": 0, "answer_format": ImageFormat.RGB}
OPAQUE: Any = {"prompt": "a", "reconnect": QUICK, "answer_format": ImageFormat.OPAQUE}
ITEMS = [
    item
    for number in range(14)
    for item in (
        *([SettingsChange(seed=number)] if number in (3, 6) else []),
        Frame(f"{number}".encode(), index=3 * number + 1, format=ImageFormat.OPAQUE),
    )
]
"""Frames whose numbers have gaps, and controls between them."""
WHOLE = [f"{number}".encode() for number in range(14)]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving_in_thread(Faults(depth=2)) as fake:
        yield fake


# -- pictures of every kind


def test_a_list_comes_back_whole_in_its_own_size(server: FakeServer) -> None:
    with rearview.connect_sync(server.address, **RAW) as service:
        found = list(service.translate(WIDE))
        np.testing.assert_array_equal(np.stack(found), 255 - np.stack(WIDE))
        assert len(list(service.translate(tuple(WIDE[:3])))) == 3  # another video, another session
        assert service.dropped == {}
    assert server.log.num_opens == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_first", [True, False])
def test_tensors_come_back_as_they_went(server: FakeServer, dtype: torch.dtype, is_first: bool) -> None:
    batch = torch.from_numpy(np.stack(WIDE))
    batch = batch if dtype is torch.uint8 else (batch.float() / 255).to(dtype)
    batch = batch.permute(0, 3, 1, 2) if is_first else batch
    with rearview.connect_sync(server.address, **RAW) as service:
        found = torch.stack(list(service.translate(batch)))
    assert (found.dtype, found.shape) == (dtype, batch.shape)
    inverse = 255 - batch if dtype is torch.uint8 else 1 - batch.float()
    assert (found.float() - inverse.float()).abs().max() <= (0 if dtype is torch.uint8 else 5e-3)


def test_images_of_pil_come_back_as_such_whatever_their_mode(server: FakeServer) -> None:
    frames = [Image.fromarray(image).convert("L") for image in WIDE[:3]]
    with rearview.connect_sync(server.address, **RAW) as service:
        found = list(service.translate(frames))
    assert [(one.mode, one.size) for one in found] == [("RGB", (SIZE + 32, SIZE))] * 3
    assert found[1].getpixel((0, 0)) == (235, 235, 235)


@pytest.mark.parametrize(
    ("kind", "type_"),
    [("numpy", np.ndarray), ("torch", torch.Tensor), ("pil", Image.Image), ("bytes", bytes)],
)
def test_another_kind_is_given_where_it_is_asked_for(server: FakeServer, kind: Any, type_: type) -> None:
    with rearview.connect_sync(server.address, **RAW) as service:
        (found,) = service.translate([SettingsChange(seed=1), Frame(WIDE[0])], kind)
    assert isinstance(found, type_)


@pytest.mark.parametrize(
    ("frames", "error", "words"),
    [
        (["in.png"], TypeError, "not str"),
        (WIDE[0], ValueError, r"\(height, width, 3\) uint8, not uint8 \(96, 3\)"),
        ([WIDE[0], WIDE[0][:32]], ValueError, "must be uint8"),
        (
            torch.zeros(2, 3, SIZE, SIZE, dtype=torch.int32),
            ValueError,
            "floating from 0 to 1, not torch.int32",
        ),
    ],
)
def test_what_is_no_frame_is_said(server: FakeServer, frames: Any, error: type, words: str) -> None:
    with rearview.connect_sync(server.address, **RAW) as service, pytest.raises(error, match=words):
        list(service.translate(frames))


def test_of_no_frames_there_are_no_pictures_and_no_session(server: FakeServer) -> None:
    with rearview.connect_sync(server.address, **RAW) as service:
        assert list(service.translate([])) == []
        with pytest.raises(RuntimeError, match="nothing is being translated"):
            service.control(prompt="b")
    assert server.log.num_opens == 0


def test_what_controls_are_shown_is_of_any_kind_too(server: FakeServer) -> None:
    pose = torch.from_numpy(WIDE[3]).permute(2, 0, 1)
    with rearview.connect_sync(server.address, **RAW) as service:
        (found,) = service.translate([Frame(WIDE[1], controls={"pose": pose})])  # type: ignore[dict-item]
    np.testing.assert_array_equal(found, 255 - WIDE[1])
    assert server.log.shown[0] == {"pose": WIDE[3].tobytes()}


def test_lost_connections_cost_no_picture(server: FakeServer) -> None:
    server.faults.cut_after_answers, server.faults.unreceived_on_cut = [2, 6], 1
    with rearview.connect_sync(server.address, **RAW) as service:
        np.testing.assert_array_equal(np.stack(list(service.translate(WIDE))), 255 - np.stack(WIDE))
    assert server.log.num_resumes == 2


# -- what stands for a picture that is not there


def test_in_a_list_a_reason_stands_in_its_place(server: FakeServer) -> None:
    server.faults.drop = {2: DropReason.FAULT, 5: DropReason.LATE}
    with rearview.connect_sync(server.address, **RAW) as service:
        found = list(service.translate(WIDE))
        assert service.dropped == {DropReason.FAULT: 1, DropReason.LATE: 1}
    assert [each.reason for each in found if isinstance(each, Dropped)] == [DropReason.FAULT, DropReason.LATE]
    assert [n for n, each in enumerate(found) if isinstance(each, Dropped)] == [2, 5]


def test_a_change_that_is_refused_is_an_error(server: FakeServer) -> None:
    with rearview.connect_sync(server.address, **RAW) as service:
        with pytest.raises(InvalidRequest) as caught:
            list(service.translate([WIDE[0], SettingsChange(prompt=" "), *WIDE]))
        assert caught.value.reason is Reason.PROMPT_EMPTY
        assert len(list(service.translate(WIDE))) == len(WIDE)


# -- backpressure


async def test_who_takes_slowly_slows_a_source_without_loss() -> None:
    read = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal read
        for read in range(1, 401):
            yield WIDE[read % 10]

    async with FakeServer(Faults(window=4)) as server:
        slow: Any = {**RAW, "drop_policy": DropPolicy.LOSSLESS, "answer_window": 8}
        async with rearview.connect(server.address, **slow) as service:
            taken = 0
            async for _ in service.translate(source()):
                taken += 1
                for _ in range(20):  # time for all that could be read ahead
                    await asyncio.sleep(0)
                # Answers that wait, frames that are under way, and one in either hand.
                assert read - taken <= 2 * 8 + 4 + 2
        assert (read, taken, service.dropped) == (400, 400, {})


async def test_of_a_live_source_the_newest_counts_and_the_others_are_counted() -> None:
    """Whoever waits with its first picture until most frames have come gets the last one next, or nearly."""
    has_begun, seen, policies = asyncio.Event(), list[int](), set[int]()

    async def camera() -> AsyncIterator[np.ndarray]:
        yield np.zeros((SIZE, SIZE, 3), np.uint8)
        await has_begun.wait()
        for number in range(1, 200):
            yield np.full((SIZE, SIZE, 3), number, np.uint8)
            await asyncio.sleep(0)

    async with FakeServer(Faults(window=2)) as server, rearview.connect(server.address, **RAW) as service:
        async for picture in service.translate(camera()):
            policies |= {session.open.drop_policy for session in server.sessions.values()}
            seen.append(255 - int(picture[0, 0, 0]))
            has_begun.set()
            await eventually(lambda: service.dropped.total() >= 150 or seen[-1] == 199)
        assert set(service.dropped) == {DropReason.SUPERSEDED}
        assert len(seen) + service.dropped.total() == 200
    assert seen == sorted(seen)
    assert seen[-1] == 199
    assert policies == {1}  # LATEST


async def test_what_is_not_replaced_waits_within_bounds() -> None:
    async def endless() -> AsyncIterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    read = 0
    async with aclosing(newest(endless(), lambda waiting, item: [*waiting, item])) as items:
        assert [await anext(items) for _ in range(50)] == list(range(1, 51))
        assert read <= 50 + MAX_WAITING + 1


# -- one video at a time


async def test_a_change_on_the_way_meets_the_frames_after_it(server: FakeServer) -> None:
    async with rearview.connect(server.address, **RAW) as service:

        async def frames() -> AsyncIterator[np.ndarray]:
            for number, image in enumerate(WIDE):
                if number == 4:
                    await service.control(prompt="neon")
                    assert service.opened.width == SIZE + 32
                yield image

        lossless = service.translate(frames(), drop_policy=DropPolicy.LOSSLESS)
        assert len([each async for each in lossless]) == len(WIDE)
    prompts = [server.log.received_under[number].prompt for number in range(len(WIDE))]
    assert prompts == ["a"] * 4 + ["neon"] * 6


def test_a_video_that_is_left_ends_its_session(server: FakeServer) -> None:
    with rearview.connect_sync(server.address, **RAW) as service:
        former = service.translate(WIDE)
        next(former)
        assert len(list(service.translate(WIDE[:2]))) == 2
        assert list(former) == []
        next(service.translate(iter(WIDE)))
    assert len(server.log.finished) + len(server.log.closed) == 3


@pytest.mark.parametrize("how", ["broken off", "failed", "of another task"])
async def test_however_a_video_is_left_its_session_is_closed_before_the_service_is(how: str) -> None:
    async with FakeServer(Faults(depth=2)) as server:
        with suppress(ZeroDivisionError):
            async with rearview.connect(server.address, **RAW) as service:
                if how == "of another task":
                    going = asyncio.create_task(to_the_end(service))
                    await eventually(lambda: len(server.log.received) > 0)
                else:
                    async for _ in service.translate(WIDE):
                        if how == "broken off":
                            break
                        _ = 1 // 0
        if how == "of another task":
            with pytest.raises(StreamEnded, match="was left"):
                await going
        assert len(server.log.closed) == 1


async def to_the_end(service: Translator) -> None:
    """Of frames that do not end."""

    async def frames() -> AsyncIterator[np.ndarray]:
        for number in range(6):
            yield WIDE[number]
        await asyncio.Event().wait()

    async for _ in service.translate(frames()):
        pass


def test_what_is_held_longer_than_its_service_ends_in_silence(server: FakeServer) -> None:
    with rearview.connect_sync(server.address, **RAW) as service:
        pictures = service.translate(WIDE)
        next(pictures)
    pictures.close()  # type: ignore[attr-defined]
    assert len(server.log.closed) + len(server.log.finished) == 1


def test_a_refusal_leaves_no_thread_that_reads(server: FakeServer) -> None:
    """Though whoever keeps the exception keeps all that it has passed through."""
    server.faults.refuse = [(Reason.NO_CAPACITY, 2.5)]
    before = readers()
    with rearview.connect_sync(server.address, **RAW) as service:
        with pytest.raises(Refused) as caught:
            list(service.translate(iter(WIDE)))
        deadline_s = time.monotonic() + 5
        while readers() > before and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert readers() == before
    assert caught.value.retry_after_s == 2.5


def readers() -> int:
    return sum(thread.name == "rearview-source" for thread in threading.enumerate())


def test_a_twin_that_was_not_entered_says_so() -> None:
    with pytest.raises(RuntimeError, match="with `with`"):
        rearview.connect_sync("localhost", prompt="a").translate([])


# -- cut, resumed, moved, refused: real services


async def translated(address: str, **options: Any) -> list[Any]:
    async with rearview.connect(address, **{**OPAQUE, **options}) as service:
        return [each async for each in service.translate(ITEMS)]


@pytest.mark.one_ingress
async def test_wherever_its_ingress_dies_nothing_is_lost_or_doubled() -> None:
    async with several(1) as service:
        for number in (5, 12, 19, 27):
            doomed = await service.add()
            with cut_at(doomed, number) as cut:
                found = await translated(f"{doomed.address},{service.addresses[0]}")
            assert cut.is_dead, number
            assert found == WHOLE, f"cut at {number}"


async def test_a_session_that_moves_loses_nothing() -> None:
    async with running(replicas=2) as service, rearview.connect(service.address, **OPAQUE) as client:
        found = []
        async with aclosing(client.translate(ITEMS)) as pictures:
            async for picture in pictures:
                found.append(picture)
                if len(found) == 2:
                    (old,) = (stage for stage in service.stages if stage.num_sessions)
                    await old.drain(20.0)
        assert old.num_sessions == 0
        assert found == WHOLE
        await assert_nothing_held(service)


async def test_a_service_without_room_refuses_and_says_when_to_ask_again() -> None:
    async with running(slots=1) as service, rearview.connect(service.address, **OPAQUE) as first:
        pictures = first.translate(ITEMS)
        assert await anext(pictures) == WHOLE[0]
        with pytest.raises(Refused) as caught:
            await translated(service.address)
        assert caught.value.reason is Reason.NO_CAPACITY
        assert (caught.value.retry_after_s or 0) > 0
        assert [each async for each in pictures] == WHOLE[1:]


async def test_a_tenant_over_its_quota_and_a_wrong_token_are_told_apart(tmp_path: Path) -> None:
    tenant = {"name": "alpha", "token_sha256": sha256("alpha"), "max_streams": 1}
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump([tenant]))
    with quickly_stopped():
        async with (
            in_process_service(null_config(tenants_file=str(path))) as service,
            rearview.connect(service.address, "alpha", **OPAQUE) as first,
        ):
            pictures = first.translate(ITEMS)
            assert await anext(pictures) == WHOLE[0]
            with pytest.raises(Refused) as over:
                await translated(service.address, token="alpha")
            assert (over.value.reason, over.value.metadata) == (
                Reason.TENANT_STREAMS_EXHAUSTED,
                {"max_streams": "1"},
            )
            with pytest.raises(InvalidRequest) as wrong:
                await translated(service.address, token="beta")
            assert wrong.value.reason is Reason.TOKEN_INVALID
            assert [each async for each in pictures] == WHOLE[1:]


# -- it costs nothing to import


def test_importing_it_loads_nothing_and_connecting_no_networks(root: Path) -> None:
    code = (
        "import sys, json, rearview; bare = sorted(sys.modules); rearview.connect; rearview.connect_sync;"
        " print(json.dumps([bare, sorted(sys.modules)]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=root / "services", capture_output=True, text=True, timeout=60
    )
    bare, connected = map(set, json.loads(ran.stdout))
    assert not bare & {"grpc", "numpy", "asyncio", "google.protobuf", "rearview.client"}
    assert not connected & {"torch", "ray", "PIL.Image", "av", "diffusers", "transformers"}
    assert {"connect", "connect_sync"} <= set(dir(rearview))
    with pytest.raises(AttributeError, match="no attribute 'connekt'"):
        _ = rearview.connekt  # type: ignore[attr-defined]


WRONG = [
    ({"strenght": 0.9}, TypeError, "there is no option 'strenght': is 'strength' meant?"),
    ({"strength": "0.5"}, TypeError, "strength cannot be text: '0.5'"),
    (
        {"method": "streamv2w"},
        ValueError,
        "method is one of per-frame, streamv2v, live2diff, not 'streamv2w'",
    ),
]


@pytest.mark.parametrize(("options", "kind", "said"), WRONG)
async def test_an_option_that_there_is_not_is_refused_where_it_is_said(
    options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        rearview.connect("127.0.0.1:1", prompt="a", **options)
    with pytest.raises(kind, match=re.escape(said)):
        rearview.connect("127.0.0.1:1", prompt="a").translate([], **options)
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(kind, match=re.escape(said)):
            client.open(prompt="a", **options)


async def test_options_may_be_words_and_a_change_is_checked_too(server: FakeServer) -> None:
    words: Any = {"method": "StreamV2V", "drop_policy": "lossless", "noise_rule": "fresh", "guidance": "self"}
    async with Client(server.address) as client, client.open(prompt="a", **words) as session:
        (asked,) = (each.open for each in server.sessions.values())
        assert (asked.method, asked.drop_policy) == (pb.METHOD_STREAMV2V, pb.DROP_POLICY_LOSSLESS)
        assert asked.settings.noise_rule == NOISE_RULES.number(NoiseRule.FRESH)
        assert asked.settings.guidance == GUIDANCES.number(Guidance.SELF)
        with pytest.raises(TypeError, match="no option 'method'"):
            await session.control(method="live2diff")  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="is 'strength' meant"):
            await session.control(strenght=0.9)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([np.zeros((64, 64, 3))], "0 to 255 as uint8, not float64"),
        (np.zeros((8, 8, 3), np.uint8), "a list of frames"),
    ],
)
async def test_what_is_no_frame_is_refused_with_what_to_do(
    server: FakeServer, frames: Any, said: str
) -> None:
    async with rearview.connect(server.address, prompt="a") as service:
        with pytest.raises(ValueError, match=said):
            async for _ in service.translate(frames):
                pass
