"""Every frame received is answered exactly once, in order: whatever is mixed, fails or is cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import grpc
import pytest
from rearview.engine.networks.model import Model
from rearview.errors import DropReason, Reason
from rearview.v1 import translation_service_pb2 as pb
from support.planted import FailsOn, Slow
from support.raw_stream import (
    OPERATORS,
    RawStream,
    assert_nothing_held,
    eventually,
    index,
    open_streams,
    running,
)

pytestmark = pytest.mark.integration

FRAMES = 60
CUTS = (OPERATORS,), ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))
POLICIES = {
    pb.DROP_POLICY_LATEST: {DropReason.SUPERSEDED},
    pb.DROP_POLICY_LOSSLESS: set(),
    pb.DROP_POLICY_DEADLINE: {DropReason.LATE},
}


def mixed_frames(seed: int) -> list[bytes]:
    """Good frames, empty ones and ones on which the model fails; never ten bad ones in a row."""
    chance = random.Random(seed)
    kinds = chance.choices(("good", "empty", "fault"), (6, 2, 1), k=FRAMES)
    kinds[9::10] = ["good"] * len(kinds[9::10])
    return [
        {"good": b"%d", "empty": b"", "fault": b"!%d"}[k] % (() if k == "empty" else i)
        for i, k in enumerate(kinds)
    ]


async def send_within_credit(stream: RawStream, frames: list[bytes], chance: random.Random) -> None:
    for number, image in enumerate(frames):
        await eventually(lambda number=number: stream.frame_credit > number)  # type: ignore[misc]
        await stream.frame(3 * number, image)
        if chance.random() < 0.2:
            await stream.control(number, seed=number)
        if chance.random() < 0.2:
            await stream.write(pb.TranslateRequest(credit=pb.Credit(received_answers=len(stream.answers))))
        if chance.random() < 0.1:
            await asyncio.sleep(0.005)
    await stream.half_close()


def assert_answered(
    frames: list[bytes], answers: list[pb.TranslateResponse], may_drop: set[DropReason]
) -> None:
    assert [index(answer) for answer in answers] == [3 * i for i in range(len(frames))]
    for image, answer in zip(frames, answers, strict=True):
        if answer.HasField("frame"):
            assert answer.frame.image == image
            assert not image.startswith(b"!")
            continue
        reason = DropReason(answer.dropped.reason)
        if image == b"":
            assert reason is DropReason.IMAGE_EMPTY
        else:
            assert reason in may_drop | ({DropReason.FAULT} if image.startswith(b"!") else set())


@pytest.mark.parametrize("spans", CUTS, ids=["fused", "pipeline"])
@pytest.mark.parametrize("policy", POLICIES, ids=pb.DropPolicy.Name)
async def test_a_random_mix_is_answered_once_and_in_order(
    plant_model: Callable[[Model], None], policy: pb.DropPolicy.ValueType, spans: tuple[tuple[str, ...], ...]
) -> None:
    plant_model(FailsOn(b"!"))
    async with running(spans=spans) as service:
        streams = [RawStream(service.address) for _ in range(3)]
        for stream in streams:
            await stream.start(drop_policy=policy)

        async def play(seed: int, stream: RawStream) -> None:
            frames = mixed_frames(seed)
            sender = asyncio.create_task(send_within_credit(stream, frames, random.Random(seed)))
            end = await stream.read_to_end()
            await sender
            assert end.code is grpc.StatusCode.OK, end
            assert_answered(frames, stream.answers, POLICIES[policy])
            controls = [r.control_applied for r in stream.received if r.HasField("control_applied")]
            assert [c.control_id for c in controls] == sorted(c.control_id for c in controls)
            await stream.channel.close()

        await asyncio.gather(*(play(seed, stream) for seed, stream in enumerate(streams)))
        await assert_nothing_held(service)


async def test_a_frame_that_fails_alone_a_second_time_is_dropped_and_its_batch_survives(
    plant_model: Callable[[Model], None],
) -> None:
    model = FailsOn(b"!")
    plant_model(model)
    async with running() as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        sent = [b"!" if i in (1, 5) else b"." for i in range(8)]
        for number, image in enumerate(sent):
            await stream.frame(number, image)
        answers = await stream.read_answers(8)
        assert [a.HasField("dropped") for a in answers] == [image == b"!" for image in sent]
        assert stream.drops == [DropReason.FAULT] * 2
        for ordinal in (1, 5):
            failed = [rows for rows in model.failures if ordinal in rows]
            assert len(failed) == 2
            assert failed[-1] == [ordinal]


@pytest.mark.two_ingresses
@pytest.mark.parametrize("seed", range(4))
async def test_answers_go_on_where_a_cut_left_off(seed: int, plant_model: Callable[[Model], None]) -> None:
    plant_model(FailsOn(b"!"))
    chance = random.Random(seed)
    frames = mixed_frames(seed)
    answers: list[pb.TranslateResponse] = []
    opened: pb.Opened | None = None
    async with running(spans=CUTS[seed % 2]) as service:
        while len(answers) < FRAMES:
            async with RawStream(service.address) as stream:
                if opened is None:
                    opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
                    sent = 0
                else:
                    unanswered = [3 * place for place in range(len(answers), sent)]
                    resumed = await stream.resume(opened, len(answers), unanswered_frame_indices=unanswered)
                    assert resumed.continuity == pb.CONTINUITY_EXACT
                    assert len(answers) <= resumed.received_frames <= sent
                    sent = resumed.received_frames
                    assert resumed.session_id == opened.session_id
                for _ in range(chance.randrange(1, 20)):
                    while sent < min(FRAMES, stream.frame_credit) and chance.random() < 0.8:
                        await stream.frame(3 * sent, frames[sent])
                        sent += 1
                    if len(answers) < sent and chance.random() < 0.7:
                        answers += await stream.read_answers(1)
                if chance.random() < 0.5:
                    stream.call.cancel()
                else:
                    await stream.channel.close()
        assert_answered(frames, answers, set())


async def test_a_resume_from_a_second_machine_ends_the_first_stream(
    plant_model: Callable[[Model], None],
) -> None:
    plant_model(Slow(0.01))
    async with running() as service:
        async with RawStream(service.address) as first, RawStream(service.address) as second:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            for number in range(6):
                await first.frame(number, b"%d" % number)
            await first.read_answers(2)
            resumed = await second.resume(opened, 2)
            assert resumed.received_frames == 6
            end = await first.read_to_end()
            assert (end.code, end.reason) == (grpc.StatusCode.ABORTED, Reason.TAKEN_OVER)
            await second.frame(6, b"6")
            await second.half_close()
            assert (await second.read_to_end()).code is grpc.StatusCode.OK
            assert second.indices == [2, 3, 4, 5, 6]
        await assert_nothing_held(service)


async def test_a_takeover_ends_a_stream_that_does_not_read() -> None:
    async with running() as service, RawStream(service.address) as first:
        opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        record = service.sessions[opened.session_id]
        for number in range(60):  # More than the connection holds, so that the server's write waits.
            await eventually(lambda number=number: record.session.frame_credit > number)  # type: ignore[misc]
            await first.frame(number, bytes(1 << 19))
        async with RawStream(service.address) as second:
            await second.resume(opened, 0)
            await eventually(lambda: open_streams(service) == 1)
            answers = await second.read_answers(second.opened.received_frames)
            assert [index(a) for a in answers] == list(range(len(answers)))


@pytest.mark.one_ingress("another one answers what nobody keeps as dropped")
async def test_a_position_that_is_no_longer_kept_cannot_be_resumed() -> None:
    async with running() as service:
        async with RawStream(service.address) as stream:
            opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            for number in range(100):
                await stream.frame(number)
                await stream.read_answers(1)
            stream.call.cancel()
            await eventually(lambda: service.sessions[opened.session_id].stream is None)
        async with RawStream(service.address) as late:
            resume = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
            await late.write(pb.TranslateRequest(resume=resume))
            assert (await late.read_to_end()).reason is Reason.SESSION_UNKNOWN
        async with RawStream(service.address) as back:  # The session itself is none the worse.
            await back.resume(opened, 100)
            await back.frame(100)
            assert index((await back.read_answers(1))[0]) == 100
