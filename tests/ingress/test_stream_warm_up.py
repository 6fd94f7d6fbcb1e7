"""Streams whose session warms a temporal cache up: who waits for whom, and who is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rearview.control.methods import Offer
from rearview.errors import DropReason, Reason
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.planted_cache import CACHE, SeesPast, plant_cache
from support.raw_stream import OPERATORS, End, RawStream, eventually, null_config, quickly_stopped
from support.service import InProcessService, in_process_service
from support.toy_cache import SINK, ToyCache

pytestmark = pytest.mark.integration

W = SINK
WHOLE = (OPERATORS,)
SPLIT = (OPERATORS[:2], OPERATORS[2:])
LIVE2DIFF = {"method": pb.METHOD_LIVE2DIFF, "drop_policy": pb.DROP_POLICY_LOSSLESS}
INSTANT = {**LIVE2DIFF, "temporal_cache": pb.TemporalCache(instant_start=True)}
SIDE = 64


@asynccontextmanager
async def serving(
    monkeypatch: pytest.MonkeyPatch,
    spans: tuple[tuple[str, ...], ...] = WHOLE,
    network: SeesPast | None = None,
    **sections: Any,
) -> AsyncIterator[tuple[InProcessService, list[ToyCache]]]:
    """A service with planted caches."""
    caches = plant_cache(monkeypatch, network)
    with quickly_stopped():
        config = null_config(spans=spans, cache=CACHE, **sections)
        async with in_process_service(config) as service:
            yield service, caches


def reset(change: str = "prompt_change", kind: int = pb.TemporalCache.REWARM_RESET) -> dict[str, Any]:
    return {**LIVE2DIFF, "temporal_cache": pb.TemporalCache(**{change: kind})}  # type: ignore[arg-type]


def images(stream: RawStream) -> list[bytes]:
    return [answer.frame.image for answer in stream.answers]


def answered(service: InProcessService) -> float:
    outcomes = ("translated", "dropped")
    return sum(service.counted("rearview_frames_total", outcome=outcome) for outcome in outcomes)


async def send(stream: RawStream, number: int, image: bytes = b"frame", **fields: int) -> None:
    """A frame, once there is credit for it."""
    while number >= stream.frame_credit:
        assert await stream.read() is not None, await stream.end()
    await stream.frame(number, image, **fields)


async def translated(address: str, count: int, **fields: Any) -> list[bytes]:
    """The pictures of so many frames and a half-close."""
    async with RawStream(address) as stream:
        await stream.start(**fields)
        for number in range(count):
            await send(stream, number, bytes([number] * 8))
        await stream.half_close()
        end = await stream.read_to_end()
        assert end.code is grpc.StatusCode.OK, end
        assert stream.indices == list(range(count))
        assert not stream.drops
        return images(stream)


@pytest.mark.parametrize("spans", [WHOLE, SPLIT])
async def test_streams_of_any_length_get_an_answer_for_each_frame_and_no_more(
    monkeypatch: pytest.MonkeyPatch, spans: tuple[tuple[str, ...], ...]
) -> None:
    async with serving(monkeypatch, spans) as (service, caches):
        for count in range(1, W + 2):
            before = answered(service)
            await translated(service.address, count, **LIVE2DIFF)
            assert answered(service) - before == count, "fillers are not answers"
        fillers = service.counted("rearview_filler_frames_total")
        assert fillers == sum(range(W))
        assert caches[0].windows() == [tuple(range(W))] * (W + 1)


async def test_a_short_streams_warm_up_is_filled_with_its_last_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch) as (service, _):
        short = await translated(service.address, 2, **LIVE2DIFF)
        async with RawStream(service.address) as stream:
            await stream.start(**LIVE2DIFF)
            for number in range(W):
                await stream.frame(number, bytes([min(number, 1)] * 8))
            await stream.read_answers(W)
            assert images(stream)[:2] == short


async def test_pipeline_and_fused_give_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for spans in (WHOLE, SPLIT, tuple((operator,) for operator in OPERATORS)):
        async with serving(monkeypatch, spans) as (service, _):
            seen.append(await translated(service.address, 3 * W, **LIVE2DIFF))
    assert seen[0] == seen[1] == seen[2]


async def test_no_picture_is_held_for_fillers_once_a_session_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch) as (service, _), RawStream(service.address) as stream:
        await stream.start(**reset())
        (session,) = (record.session for record in service.sessions)
        for number in range(W):
            await stream.frame(number)
        await stream.read_answers(W)
        assert session.feed._last is None
        await stream.control(1, prompt="another")
        await stream.frame(W)
        await eventually(lambda: session.feed._last is not None)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert session.feed._last is None


async def test_instant_start_answers_the_first_frame_before_the_second_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch) as (service, caches), RawStream(service.address) as stream:
        opened = await stream.start(**INSTANT)
        assert opened.warm_up_frames == 1
        assert opened.temporal_cache.instant_start
        for number in range(3):
            await stream.frame(number, bytes([number] * 8))
            await stream.read_answers(1)
        assert caches[0].windows() == [tuple(range(W))]
        assert stream.indices == [0, 1, 2]
        assert answered(service) == 3


async def test_instant_start_holds_for_every_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    both = pb.TemporalCache(instant_start=True, prompt_change=pb.TemporalCache.REWARM_RESET)
    async with serving(monkeypatch) as (service, caches), RawStream(service.address) as stream:
        await stream.start(**{**LIVE2DIFF, "temporal_cache": both})
        for number in range(3):
            await stream.control(number, prompt=f"p{number // 2}")
            await stream.frame(number)
            await stream.read_answers(1)
        assert caches[0].windows() == [tuple(range(W)), tuple(range(W + 1, 2 * W + 1))]


@pytest.mark.parametrize("policy", [pb.DROP_POLICY_LATEST, pb.DROP_POLICY_DEADLINE])
async def test_no_frame_of_a_warm_up_is_dropped(
    monkeypatch: pytest.MonkeyPatch, policy: pb.DropPolicy.ValueType
) -> None:
    limits = {"max_in_flight": 1, "max_waiting": 1}
    async with serving(monkeypatch, limits=limits) as (service, _), RawStream(service.address) as stream:
        budget = {"nanos": 20_000_000}
        await stream.start(method=pb.METHOD_LIVE2DIFF, drop_policy=policy, frame_budget=budget)
        for number in range(W - 1):
            await stream.frame(number)
        sent_s = time.monotonic()
        await eventually(lambda: time.monotonic() - sent_s > 0.03)
        await stream.frame(W - 1)
        await stream.read_answers(W)
        assert not stream.drops


async def test_credit_is_told_when_no_answer_can_carry_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"max_in_flight": 1, "max_waiting": 1}
    async with serving(monkeypatch, limits=limits) as (service, _), RawStream(service.address) as stream:
        await stream.start(**LIVE2DIFF)
        assert stream.frame_credit >= W
        good, number = 0, 0
        while good < W:
            if number == stream.frame_credit:
                notice = await stream.read()
                assert notice is not None
                assert notice.notice.kind == pb.Notice.KIND_CREDIT
                continue
            is_good = number % 3 == 0
            await stream.frame(number, format=pb.IMAGE_FORMAT_OPAQUE if is_good else pb.IMAGE_FORMAT_JPEG)
            good, number = good + is_good, number + 1
        await stream.read_answers(number)
        assert stream.indices == list(range(number))
        assert set(stream.drops) == {DropReason.IMAGE_INVALID}


async def test_a_warm_up_is_filled_when_answers_that_wait_for_it_use_all_credit_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearview.ingress.book.RETAINED_ANSWERS", W + 2)
    async with (
        serving(monkeypatch, limits={"max_bad_frames": 99}) as (service, _),
        RawStream(service.address) as stream,
    ):
        await stream.start(**LIVE2DIFF)
        await stream.frame(0)
        for number in range(1, W + 2):
            await stream.frame(number, format=pb.IMAGE_FORMAT_JPEG)
        await stream.read_answers(W + 2)
        assert len(stream.drops) == W + 1


@pytest.mark.parametrize(
    ("kind", "windows", "shadows"),
    [
        (pb.TemporalCache.REWARM_RESET, [(0, 1, 2, 3), (5, 6, 7, 8)], []),
        (pb.TemporalCache.REWARM_SHADOW, [(0, 1, 2, 3)], [(5, 6, 7, 8)]),
        (pb.TemporalCache.REWARM_KEEP, [(0, 1, 2, 3)], []),
    ],
)
async def test_a_change_of_prompt_follows_the_sessions_policy(
    monkeypatch: pytest.MonkeyPatch,
    kind: int,
    windows: list[tuple[int, ...]],
    shadows: list[tuple[int, ...]],
) -> None:
    async with serving(monkeypatch, SPLIT) as (service, caches), RawStream(service.address) as stream:
        await stream.start(**reset(kind=kind))
        for number in range(2 * W + 3):
            if number == W + 1:
                await stream.control(1, prompt="another")
            await send(stream, number)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert stream.indices == list(range(2 * W + 3))
        for step, cache in enumerate(caches):
            assert cache.windows(step) == windows
            assert cache.windows(step, shadow=True) == shadows


async def test_a_stream_that_ends_within_a_reset_gets_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, SPLIT) as (service, caches), RawStream(service.address) as stream:
        await stream.start(**reset())
        for number in range(W + 2):
            await send(stream, number)
            if number == W:
                await stream.control(1, steps=1)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert stream.indices == list(range(W + 2))
        assert caches[0].windows() == [(0, 1, 2, 3), (5, 6, 7, 8)], "other timesteps always reset"


async def test_a_reset_within_a_warm_up_holds_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later span learns of the reset only from its first frame, which the span before holds back."""
    limits = {"max_in_flight": 1, "max_waiting": 1}
    async with (
        serving(monkeypatch, SPLIT, limits=limits) as (service, caches),
        RawStream(service.address) as stream,
    ):
        await stream.start(**reset())
        for number in range(3):
            if number == 2:
                await stream.control(1, prompt="another")
            await send(stream, number)
        await stream.read_answers(2)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert stream.indices == [0, 1, 2]
        assert answered(service) == 3
        for step, cache in enumerate(caches):
            assert cache.windows(step) == [(0, 1, 2, 3), (4, 5, 6, 7)]


async def test_a_session_goes_on_warming_up_after_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch) as (service, caches):
        async with RawStream(service.address) as first:
            opened = await first.start(**LIVE2DIFF)
            for number in range(2):
                await first.frame(number)
            (session,) = (record.session for record in service.sessions)
            await eventually(lambda: session.received == 2)
        await eventually(lambda: service.sessions[opened.session_id].stream is None)
        async with RawStream(service.address) as second:
            assert (await second.resume(opened, 0)).received_frames == 2
            for number in range(2, W):
                await second.frame(number)
            await second.read_answers(W)
            assert second.indices == list(range(W))
        assert caches[0].windows() == [tuple(range(W))]
        session = service.sessions[opened.session_id].session
        assert session.state.next_ordinal == W, "a lost connection is no half-close"


async def test_a_stream_that_stays_silent_within_its_warm_up_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        serving(monkeypatch, ingress={"idle_timeout_s": 0.2}) as (service, _),
        RawStream(service.address) as stream,
    ):
        await stream.start(**LIVE2DIFF)
        await stream.frame(0)
        end = await stream.read_to_end()
        assert end.reason is Reason.IDLE
        assert end.metadata["warm_up_missing"] == str(W - 1)
        assert "instant_start" in end.message


async def test_credit_alone_does_not_keep_a_stream_that_waits_for_its_own_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that waits for each answer goes on telling that it is there, and would wait for ever."""
    async with (
        serving(monkeypatch, ingress={"idle_timeout_s": 0.3}) as (service, _),
        RawStream(service.address) as stream,
    ):
        await stream.start(**LIVE2DIFF)
        await stream.frame(0)
        reading = asyncio.create_task(stream.read_to_end())

        async def ended() -> bool:
            await stream.write(pb.TranslateRequest(credit=pb.Credit(answer_credit=9)))
            return reading.done()

        await eventually(ended)
        assert (await reading).reason is Reason.IDLE


async def test_a_warm_up_that_is_wholly_lost_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        serving(monkeypatch, SPLIT, SeesPast([b"x"])) as (service, _),
        RawStream(service.address) as stream,
    ):
        await stream.start(**LIVE2DIFF)
        for number in range(W + 1):
            await stream.frame(number, b"x" if number < W else b"ok")
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert stream.drops == [DropReason.FAULT] * W
        assert stream.indices == list(range(W + 1))


async def test_an_instant_start_whose_frame_is_lost_starts_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        serving(monkeypatch, SPLIT, SeesPast([b"x"])) as (service, _),
        RawStream(service.address) as stream,
    ):
        await stream.start(**INSTANT)
        for number, image in enumerate((b"x", b"ok", b"ok")):
            await stream.frame(number, image)
            await stream.read_answers(1)
        assert stream.drops == [DropReason.FAULT]


def pictures(count: int, cut_at: int) -> list[bytes]:
    """Noise that stands still, and other noise from frame `cut_at` on."""
    scenes = [np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8) for seed in (1, 2)]
    whole = [np.kron(scene, np.ones((SIDE // 8, SIDE // 8, 1), np.uint8)).tobytes() for scene in scenes]
    return [whole[number >= cut_at] for number in range(count)]


@pytest.mark.parametrize("detects", [True, False])
@pytest.mark.parametrize("kind", [pb.TemporalCache.REWARM_RESET, pb.TemporalCache.REWARM_SHADOW])
async def test_a_cut_warms_up_anew_from_its_frame_on(
    monkeypatch: pytest.MonkeyPatch, image_checkpoint: str, detects: bool, kind: int
) -> None:
    model = {"checkpoint": image_checkpoint}
    cache = pb.TemporalCache(scene_cut=kind, scene_detection=detects)  # type: ignore[arg-type]
    monkeypatch.setattr("rearview.ingress.admission.size_multiple", lambda _: 8)
    async with serving(monkeypatch, model=model) as (service, caches), RawStream(service.address) as stream:
        await stream.start(
            **{**LIVE2DIFF, "temporal_cache": cache},
            answer_format=pb.IMAGE_FORMAT_RGB,
            width=SIDE,
            height=SIDE,
        )
        for number, image in enumerate(pictures(2 * W + 3, cut_at=W + 1)):
            await send(stream, number, image, format=pb.IMAGE_FORMAT_RGB)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        is_shadow = kind == pb.TemporalCache.REWARM_SHADOW
        again = caches[0].windows(shadow=is_shadow)[0 if is_shadow else 1 :]
        assert again == ([(5, 6, 7, 8)] if detects else [])


async def refused(address: str, **fields: Any) -> End:
    async with RawStream(address) as stream:
        await stream.write(
            pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"), **fields))
        )
        return await stream.read_to_end()


async def test_what_cannot_be_served_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[tuple[dict[str, Any], Reason, str]] = [
        ({"width": 72}, Reason.RESOLUTION_UNSUPPORTED, "width"),
        ({"height": 96, "width": 128}, Reason.RESOLUTION_UNSUPPORTED, "height"),
        ({"feature_bank": pb.FeatureBank()}, Reason.METHOD_UNSUPPORTED, "feature_bank"),
        (
            {"temporal_cache": pb.TemporalCache(prompt_change=9)},  # type: ignore[arg-type]
            Reason.SETTING_OUT_OF_RANGE,
            "temporal_cache.prompt_change",
        ),
    ]
    async with serving(monkeypatch) as (service, _):
        for fields, reason, field in wrong:
            end = await refused(service.address, method=pb.METHOD_LIVE2DIFF, **fields)
            assert (end.reason, end.metadata["field"]) == (reason, field)
        nothing = Offer(None, None, has_motion=True)
        for admission in (ingress.admission for ingress in service.ingresses):
            monkeypatch.setattr(admission, "served", replace(admission.served, offer=nothing))
        end = await refused(service.address, method=pb.METHOD_LIVE2DIFF)
        assert (end.reason, end.metadata["field"]) == (Reason.METHOD_UNSUPPORTED, "method")
        assert "temporal cache" in end.message


async def test_a_model_without_motion_modules_says_so(tmp_path: Path) -> None:
    with quickly_stopped():
        async with in_process_service(null_config(cache=CACHE)) as service:
            end = await refused(service.address, method=pb.METHOD_LIVE2DIFF)
            assert end.reason is Reason.METHOD_UNSUPPORTED
            assert "motion modules" in end.message


async def test_opened_says_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch) as (service, _), RawStream(service.address) as stream:
        opened = await stream.start(**reset("scene_cut", pb.TemporalCache.REWARM_KEEP))
        assert (opened.method, opened.warm_up_frames) == (pb.METHOD_LIVE2DIFF, W)
        assert opened.temporal_cache == pb.TemporalCache(
            prompt_change=pb.TemporalCache.REWARM_SHADOW,
            scene_cut=pb.TemporalCache.REWARM_KEEP,
            scene_detection=True,
            instant_start=False,
        )
