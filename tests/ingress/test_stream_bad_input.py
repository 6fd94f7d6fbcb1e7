"""Every kind of senseless input gets its status or its drop, frees what it held and disturbs nobody."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from rearview.client.call import Call
from rearview.contract.session import SessionSpec
from rearview.engine.engine import Engine
from rearview.engine.networks.model import Model
from rearview.errors import STATUS_OF_REASON, DropReason, InvalidRequest, Reason
from rearview.ingress.bad_frames import BadFrames
from rearview.ingress.session import IngressSession
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.planted import RefusesPrompt, Slow, SlowPrepare
from support.raw_stream import End, RawStream, assert_nothing_held, end_of, eventually, open_streams, running
from support.service import InProcessService

pytestmark = pytest.mark.integration

SIDE = 64
QUICK = {"idle_timeout_s": 0.3, "open_timeout_s": 0.3, "resume_grace_s": 0.2}
ANSWER_WITHIN_S = 0.1
LOADED_MACHINE_S = 1.0
"""Other work may hold the machine for so long."""


@asynccontextmanager
async def beside_another(**sections: Any) -> AsyncIterator[InProcessService]:
    """A service in which another session runs meanwhile. Afterwards all else must be freed."""
    image = sections.pop("image", b"frame")
    kind = pb.IMAGE_FORMAT_OPAQUE if image == b"frame" else pb.IMAGE_FORMAT_JPEG
    async with running(**sections) as service, RawStream(service.address) as other:
        await other.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        stop = asyncio.Event()

        async def run() -> int:
            count = 0
            while not stop.is_set():
                await other.frame(count, image, kind)
                await other.read_answers(1)
                count += 1
                await asyncio.sleep(0.005)
            return count

        task = asyncio.create_task(run())
        yield service
        await assert_nothing_held(service, sessions=1)
        await eventually(lambda: open_streams(service) == 1)
        stop.set()
        count = await task
        await other.frame(count, image, kind)
        await other.half_close()
        end = await other.read_to_end()
        assert end.code is grpc.StatusCode.OK
        assert other.indices == list(range(count + 1))
        assert not other.drops
        await assert_nothing_held(service)
        await eventually(lambda: open_streams(service) == 0)


def assert_ended(end: End, reason: Reason, field: str | None = None) -> None:
    assert (end.code.name, end.reason) == (STATUS_OF_REASON[reason], reason), end
    if field is not None:
        assert end.metadata["field"] == field


BAD_OPENS: dict[str, tuple[dict[str, Any], Reason, str | None]] = {
    "no settings": ({"settings": settings_pb2.Settings()}, Reason.PROMPT_EMPTY, "prompt"),
    "empty prompt": ({"prompt": ""}, Reason.PROMPT_EMPTY, "prompt"),
    "blank prompt": ({"prompt": " \t\n\u2003"}, Reason.PROMPT_EMPTY, "prompt"),
    "100 kB prompt": ({"prompt": "x" * 100_000}, Reason.PROMPT_TOO_LONG, "prompt"),
    "long in bytes": ({"prompt": "\u00e9" * 1025}, Reason.PROMPT_TOO_LONG, "prompt"),
    "steps 0": (
        {"settings": settings_pb2.Settings(prompt="a", steps=0)},
        Reason.SETTING_OUT_OF_RANGE,
        "steps",
    ),
    "steps 3": (
        {"settings": settings_pb2.Settings(prompt="a", steps=3)},
        Reason.SETTING_OUT_OF_RANGE,
        "steps",
    ),
    "steps over max_steps": (
        {"settings": settings_pb2.Settings(prompt="a", steps=2), "max_steps": 1},
        Reason.SETTING_OUT_OF_RANGE,
        "steps",
    ),
    "max_steps 3": ({"max_steps": 3}, Reason.SETTING_OUT_OF_RANGE, "max_steps"),
    "no multiple of 8": ({"width": 65}, Reason.RESOLUTION_UNSUPPORTED, "width"),
    "too small": ({"height": 8}, Reason.RESOLUTION_UNSUPPORTED, "height"),
    "too large": ({"width": 1 << 31, "height": 1 << 31}, Reason.RESOLUTION_UNSUPPORTED, None),
    "unknown model": ({"model": "sdxl"}, Reason.MODEL_UNKNOWN, None),
    "frame rate": ({"frame_rate": math.nan}, Reason.SETTING_OUT_OF_RANGE, "frame_rate"),
    "jpeg quality": ({"jpeg_quality": 101}, Reason.SETTING_OUT_OF_RANGE, "jpeg_quality"),
    "drop policy": ({"drop_policy": 9}, Reason.SETTING_OUT_OF_RANGE, "drop_policy"),
    "answer format": ({"answer_format": 9}, Reason.SETTING_OUT_OF_RANGE, "answer_format"),
    "noise rule": (
        {"settings": settings_pb2.Settings(prompt="a", noise_rule=7)},
        Reason.SETTING_OUT_OF_RANGE,
        "noise_rule",
    ),
    **{
        f"strength {value}": (
            {"settings": settings_pb2.Settings(prompt="a", strength=value)},
            Reason.SETTING_OUT_OF_RANGE,
            "strength",
        )
        for value in (math.nan, math.inf, -math.inf, 0.0, 2.0)
    },
}


async def test_every_senseless_open_is_refused_at_once_with_its_reason() -> None:
    async with beside_another() as service:
        for name, (fields, reason, field) in BAD_OPENS.items():
            settings = fields.get("settings") or settings_pb2.Settings(prompt=fields.get("prompt", "a"))
            rest = {k: v for k, v in fields.items() if k not in ("settings", "prompt")}
            async with RawStream(service.address) as stream:
                started_s = time.monotonic()
                await stream.write(pb.TranslateRequest(open=pb.Open(settings=settings, **rest)))
                end = await stream.read_to_end()
                assert time.monotonic() - started_s < ANSWER_WITHIN_S + LOADED_MACHINE_S, name
                assert stream.received == [], name
                assert_ended(end, reason, field)


async def test_no_frame_at_all_is_an_orderly_stream() -> None:
    async with beside_another() as service, RawStream(service.address) as stream:
        await stream.start()
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert stream.answers == []


FIRST_MESSAGES = {
    "frame": (pb.TranslateRequest(frame=pb.Frame(frame_index=1, image=b"x")), Reason.NOT_OPEN),
    "control": (pb.TranslateRequest(control=pb.Control(control_id=1)), Reason.NOT_OPEN),
    "credit": (pb.TranslateRequest(credit=pb.Credit(answer_credit=1)), Reason.NOT_OPEN),
    "empty message": (pb.TranslateRequest(), Reason.MESSAGE_EMPTY),
    "unknown session": (
        pb.TranslateRequest(resume=pb.Resume(session_id="0" * 32, resume_token="x")),
        Reason.SESSION_UNKNOWN,
    ),
    "session id of junk": (
        pb.TranslateRequest(resume=pb.Resume(session_id="\0'; --", resume_token="\u00e9")),
        Reason.SESSION_UNKNOWN,
    ),
}


async def test_a_stream_that_does_not_begin_with_an_open_session_is_refused() -> None:
    async with beside_another() as service:
        for request, reason in FIRST_MESSAGES.values():
            async with RawStream(service.address) as stream:
                await stream.write(request)
                assert_ended(await stream.read_to_end(), reason)
        async with RawStream(service.address) as stream:
            await stream.half_close()
            assert_ended(await stream.read_to_end(), Reason.NOT_OPEN)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.TranslateRequest(), Reason.MESSAGE_EMPTY),
        (pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"))), Reason.ALREADY_OPEN),
        (pb.TranslateRequest(resume=pb.Resume(session_id="a")), Reason.ALREADY_OPEN),
        (pb.TranslateRequest(credit=pb.Credit(received_answers=99)), Reason.SETTING_OUT_OF_RANGE),
    ],
    ids=["empty message", "two opens", "resume after open", "more answers received than sent"],
)
async def test_a_senseless_message_ends_an_open_stream(request_: pb.TranslateRequest, reason: Reason) -> None:
    async with beside_another() as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await stream.frame(1)
        await stream.read_answers(1)
        await stream.write(request_)
        assert_ended(await stream.read_to_end(), reason)


async def test_bytes_that_are_no_message_end_the_stream_alone() -> None:
    async with beside_another() as service, grpc.aio.insecure_channel(service.address) as channel:
        call = Call(channel.stream_stream("/rearview.v1.TranslationService/Translate")())
        await call.write(b"\xff\xff\xff\xff not protobuf")
        assert (await end_of(call)).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_resume_needs_the_sessions_own_token() -> None:
    async with beside_another(ingress={"resume_grace_s": 0.2}) as service:
        async with RawStream(service.address) as stream, RawStream(service.address) as thief:
            opened = await stream.start()
            wrong = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token[:-1])
            await thief.write(pb.TranslateRequest(resume=wrong))
            assert_ended(await thief.read_to_end(), Reason.RESUME_TOKEN_INVALID)
            await stream.frame(1)
            await stream.read_answers(1)
        await assert_nothing_held(service, sessions=1)


@pytest.mark.one_ingress("another one has the word of the client alone for frames that never entered a lane")
async def test_resume_from_answers_that_were_never_given_is_refused() -> None:
    async with (
        beside_another(ingress={"resume_grace_s": 0.2}) as service,
        RawStream(service.address) as stream,
        RawStream(service.address) as liar,
    ):
        opened = await stream.start()
        resume = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token, received_answers=5)
        await liar.write(pb.TranslateRequest(resume=resume))
        assert_ended(await liar.read_to_end(), Reason.SETTING_OUT_OF_RANGE, "received_answers")
        await stream.frame(1)
        await stream.read_answers(1)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK


async def test_silence_before_open_ends_the_stream_at_the_limit() -> None:
    async with beside_another(ingress=QUICK) as service, RawStream(service.address) as stream:
        started_s = time.monotonic()
        await stream.call.wait_for_connection()
        assert_ended(await stream.read_to_end(), Reason.IDLE)
        assert 0.3 <= time.monotonic() - started_s < 0.3 + ANSWER_WITHIN_S + LOADED_MACHINE_S


async def test_silence_after_open_ends_the_stream_at_the_limit() -> None:
    async with beside_another(ingress=QUICK) as service, RawStream(service.address) as stream:
        await stream.start()
        await stream.frame(1)
        await stream.read_answers(1)
        started_s = time.monotonic()
        assert_ended(await stream.read_to_end(), Reason.IDLE)
        assert 0.25 <= time.monotonic() - started_s < 0.3 + ANSWER_WITHIN_S + LOADED_MACHINE_S


async def test_a_stream_that_waits_for_its_frames_is_not_silent(plant_model: Callable[[Model], None]) -> None:
    plant_model(Slow(0.1))
    async with running(ingress=QUICK) as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for index in range(3):
            await stream.frame(index)
        await stream.read_answers(3)
        (last,) = stream.answers[-1:]
        assert last.frame.timings.total.ToMilliseconds() > 1000 * QUICK["idle_timeout_s"]
        assert_ended(await stream.read_to_end(), Reason.IDLE)


BAD_IMAGES = {
    "empty": DropReason.IMAGE_EMPTY,
    "other_size": DropReason.IMAGE_SIZE_MISMATCH,
    "truncated": DropReason.IMAGE_INVALID,
    "truncated_header": DropReason.IMAGE_INVALID,
    "damaged_data": DropReason.IMAGE_INVALID,
    "not_an_image": DropReason.IMAGE_INVALID,
    "png": DropReason.IMAGE_INVALID,
    "cmyk": DropReason.IMAGE_INVALID,
    "many_scans": DropReason.IMAGE_INVALID,
    "two_frame_headers": DropReason.IMAGE_INVALID,
    "claims_zero": DropReason.IMAGE_INVALID,
    "progressive": DropReason.IMAGE_NOT_BASELINE,
    "arithmetic": DropReason.IMAGE_NOT_BASELINE,
    "lossless": DropReason.IMAGE_NOT_BASELINE,
    "claims_65500": DropReason.IMAGE_TOO_LARGE,
    "claims_12000": DropReason.IMAGE_TOO_LARGE,
}


async def test_a_bad_image_is_dropped_with_its_reason_and_the_stream_goes_on(
    image_checkpoint: str, images: dict[str, bytes]
) -> None:
    good = images["good"]
    cases = [(images[name], pb.IMAGE_FORMAT_JPEG, reason) for name, reason in BAD_IMAGES.items()]
    cases += [
        (good, pb.IMAGE_FORMAT_UNSPECIFIED, DropReason.IMAGE_INVALID),
        (good, 77, DropReason.IMAGE_INVALID),
        (good, pb.IMAGE_FORMAT_OPAQUE, DropReason.IMAGE_INVALID),
        (b"", pb.IMAGE_FORMAT_RGB, DropReason.IMAGE_EMPTY),
        (bytes(SIDE * SIDE * 3 - 1), pb.IMAGE_FORMAT_RGB, DropReason.IMAGE_SIZE_MISMATCH),
        (bytes(SIDE * SIDE * 3 + 1), pb.IMAGE_FORMAT_RGB, DropReason.IMAGE_SIZE_MISMATCH),
        (good + bytes(1 << 20), pb.IMAGE_FORMAT_JPEG, DropReason.IMAGE_TOO_LARGE),
    ]
    model = {"checkpoint": image_checkpoint}
    async with beside_another(model=model, image=good) as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number, (image, kind, reason) in enumerate(cases):
            await stream.frame(2 * number, image, kind)
            await stream.frame(2 * number + 1, good, pb.IMAGE_FORMAT_JPEG)
            bad, fine = await stream.read_answers(2)
            assert (bad.dropped.frame_index, bad.dropped.reason) == (2 * number, reason.value), number
            assert fine.frame.frame_index == 2 * number + 1
            assert fine.frame.format == pb.IMAGE_FORMAT_JPEG
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert (stream.opened.width, stream.opened.height) == (SIDE, SIDE)


def test_whether_a_picture_is_a_bad_frame_is_seen_without_looking_into_it() -> None:
    class Picture(bytes):
        def __hash__(self) -> int:
            raise AssertionError("it is hashed: a third of a millisecond for a megabyte")

    bad = BadFrames(2)
    for outcome in (DropReason.IMAGE_INVALID, Picture(b"image"), DropReason.IMAGE_INVALID):
        bad.answered(0, outcome)
    with pytest.raises(InvalidRequest):
        bad.answered(0, DropReason.IMAGE_INVALID)


def test_frames_in_a_refused_size_count_neither_across_a_gap_nor_when_their_drops_are_sent_again() -> None:
    bad, wrong = BadFrames(2), DropReason.IMAGE_SIZE_MISMATCH
    bad.size_refused(0)
    for place, refusal in enumerate([wrong, DropReason.RATE_LIMITED, wrong, wrong]):
        bad.came(place, refusal)
        bad.answered(place, refusal)
    resumed = BadFrames(2, first=4)
    for place in range(4):
        resumed.answered(place, wrong)
    resumed.answered(4, wrong)
    with pytest.raises(InvalidRequest):
        resumed.answered(5, wrong)


async def test_ten_bad_frames_in_a_row_end_the_stream_after_ten_drops() -> None:
    async with beside_another() as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for index in range(9):  # Nine in a row, and a good one, are forgiven.
            await stream.frame(index, b"")
        await stream.read_answers(9)
        await stream.frame(9)
        await stream.read_answers(1)
        for index in range(10, 19):
            await stream.frame(index, b"")
            await stream.read_answers(1)
        await stream.frame(19, b"")
        assert_ended(await stream.read_to_end(), Reason.TOO_MANY_BAD_FRAMES)
        assert stream.indices == list(range(20))
        assert stream.drops == [DropReason.IMAGE_EMPTY] * 19


async def test_a_frame_beyond_the_credit_ends_the_stream(plant_model: Callable[[Model], None]) -> None:
    plant_model(Slow(0.02))
    async with beside_another() as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for index in range(stream.frame_credit + 1):
            await stream.frame(index)
        end = await stream.read_to_end()
        assert_ended(end, Reason.CREDIT_EXCEEDED)
        assert int(end.metadata["frame_credit"]) >= 8
        assert stream.indices == list(range(len(stream.indices)))


async def test_a_message_over_the_size_limit_ends_the_stream_alone() -> None:
    async with beside_another(ingress=QUICK) as service, RawStream(service.address) as stream:
        await stream.start()
        await stream.frame(1, bytes(8 << 20))
        assert (await stream.read_to_end()).code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_frame_index_that_does_not_increase_is_dropped() -> None:
    async with beside_another() as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for index in (5, 5, 4, 6, (1 << 64) - 1, 7):
            await stream.frame(index)
            await stream.read_answers(1)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert stream.drops == [DropReason.INDEX_NOT_INCREASING] * 3


async def test_a_half_close_flushes_the_frames_in_flight_in_order() -> None:
    async with beside_another() as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for index in range(stream.frame_credit):
            await stream.frame(index, b"%d" % index)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert [a.frame.image for a in stream.answers] == [b"%d" % i for i in stream.indices]
        assert stream.indices == list(range(len(stream.indices)))
        assert len(stream.indices) == 8
        assert stream.answers[3].frame.presentation_offset.nanos == 3


@pytest.mark.parametrize("frames", [0, 1, 3])
async def test_a_lost_connection_detaches_the_session_until_its_grace_is_over(frames: int) -> None:
    async with running(ingress={"resume_grace_s": 0.15}, slots=100) as service:
        for cut in range(20 if frames else 80):  # A cancellation may look like a half-close at first.
            async with RawStream(service.address) as stream:
                opened = await stream.start()
                for index in range(frames):
                    await stream.frame(index)
                if cut % 3 == 0:
                    await stream.read_answers(frames)
                record = service.sessions[opened.session_id]
                if cut % 2:
                    stream.call.cancel()
                else:
                    await stream.channel.close()
                await eventually(lambda record=record: record.stream is None)  # type: ignore[misc]
                assert opened.session_id in service.sessions, f"cut {cut}: closed, not detached"
                assert record.expiry is not None
        await assert_nothing_held(service)


async def test_a_client_that_gives_up_while_its_session_opens_holds_nothing(
    plant_model: Callable[[Model], None],
) -> None:
    plant_model(SlowPrepare(0.15))
    async with running(ingress={"resume_grace_s": 0.1}) as service:
        for _ in range(3):
            async with RawStream(service.address) as stream:
                await stream.write(
                    pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a")))
                )
                await eventually(lambda: service.stages[0].num_sessions == 1)
                stream.call.cancel()
            await assert_nothing_held(service)


async def test_an_exception_in_a_handler_shows_an_error_id_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "secret /etc/passwd"

    def fail(self: IngressSession, *_: object) -> None:
        if self.settings.prompt == "fail":
            raise KeyError(secret)
        receive(self, *_)  # type: ignore[arg-type]

    receive = IngressSession.receive
    monkeypatch.setattr(IngressSession, "receive", fail)
    async with beside_another() as service, RawStream(service.address) as stream:
        await stream.start("fail")
        with caplog.at_level(logging.ERROR, "rearview"):
            await stream.frame(1)
            end = await stream.read_to_end()
        assert_ended(end, Reason.INTERNAL)
        assert set(end.metadata) == {"error_id"}
        assert secret not in repr(end)
        assert "Traceback" not in repr(end)
        logged = [getattr(record, "fields", {}).get("error_id") for record in caplog.records]
        assert end.metadata["error_id"] in logged


async def test_an_open_that_fails_in_a_replica_shows_an_error_id_and_frees_the_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Engine, spec: SessionSpec) -> None:
        really_open(self, spec)
        if spec.settings.prompt == "poison":
            raise KeyError("secret")

    really_open = Engine.open
    monkeypatch.setattr(Engine, "open", fail)
    async with beside_another() as service, RawStream(service.address) as stream:
        await stream.write(pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="poison"))))
        end = await stream.read_to_end()
        assert_ended(end, Reason.INTERNAL)
        assert set(end.metadata) == {"error_id"}
        assert "secret" not in repr(end)


async def test_a_prompt_that_the_model_cannot_take_drops_its_frames_alone(
    plant_model: Callable[[Model], None],
) -> None:
    plant_model(RefusesPrompt("poison"))
    async with beside_another() as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await stream.control(1, prompt="poison")
        await stream.frame(1)
        await stream.read_answers(1)
        assert stream.drops == [DropReason.FAULT]
        await stream.control(2, prompt="fine")
        await stream.frame(2)
        await stream.read_answers(1)
        assert stream.drops == [DropReason.FAULT]
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
