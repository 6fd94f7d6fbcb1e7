"""The async client against a real server in this process that can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest
from rearview.client import (
    Answer,
    Client,
    ControlApplied,
    Dropped,
    DropPolicy,
    Frame,
    Image,
    ImageFormat,
    Notice,
    NoticeKind,
    Reconnect,
    SettingsChange,
    Translated,
    Unreachable,
)
from rearview.errors import (
    DropReason,
    Fault,
    InvalidRequest,
    NotFound,
    RearviewError,
    Reason,
    Refused,
    StreamEnded,
)
from support.fake_server import SIZE, FakeServer, Faults

pytestmark = [pytest.mark.integration, pytest.mark.timeout(30)]

QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.05, give_up_after_s=2.0, open_timeout_s=1.0)


@contextlib.asynccontextmanager
async def serving(faults: Faults | None = None) -> AsyncIterator[tuple[FakeServer, Client]]:
    async with FakeServer(faults) as server, Client(server.address, reconnect=QUICK) as client:
        yield server, client


def picture(value: int) -> Image:
    return np.full((SIZE, SIZE, 3), value, np.uint8)


def pictures(count: int) -> Iterator[Image]:
    return (picture(value) for value in range(count))


async def until(condition: object, deadline_s: float = 5.0) -> None:
    """Wait until `condition()` is true."""
    assert callable(condition)
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def frame_indices(answers: list[Answer]) -> list[int]:
    return [answer.frame_index for answer in answers if isinstance(answer, Translated | Dropped)]


async def translate(client: Client, count: int, **options: object) -> list[Answer]:
    return [answer async for answer in client.translate_frames(pictures(count), **options)]  # type: ignore[arg-type]


async def test_pictures_come_back_translated_in_order() -> None:
    async with serving() as (_, client):
        answers = await translate(client, 20)
    assert frame_indices(answers) == list(range(20))
    for answer in answers:
        assert isinstance(answer, Translated)
        assert answer.image.shape == (SIZE, SIZE, 3)
        assert abs(int(answer.image[0, 0, 0]) - (255 - answer.frame_index)) <= 2


async def test_raw_frames_and_answers_are_bit_exact() -> None:
    rng = np.random.default_rng(0)
    sent = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    async with serving() as (_, client):
        frames = client.translate_frames([sent], send_quality=0, answer_format=ImageFormat.RGB)
        (answer,) = [answer async for answer in frames]
    assert isinstance(answer, Translated)
    np.testing.assert_array_equal(answer.image, 255 - sent)


async def test_answers_carry_time_index_and_timings() -> None:
    async with serving() as (_, client):
        frames = [Frame(picture(1), presentation_s=1 / 3, index=7), Frame(picture(2), 2 / 3, index=70)]
        first, second = [answer async for answer in client.translate_frames(frames)]
    assert isinstance(first, Translated)
    assert isinstance(second, Translated)
    assert (first.frame_index, second.frame_index) == (7, 70)
    assert first.presentation_s == pytest.approx(1 / 3, abs=1e-9)
    assert [span.span for span in first.timings.spans] == ["fused"]
    assert first.timings.spans[0].compute_s == pytest.approx(0.004)
    assert 0 < first.round_trip_s < 5


async def test_half_close_brings_the_frames_that_the_server_held_back() -> None:
    async with serving(Faults(depth=3)) as (server, client):
        answers = await translate(client, 10)
    assert frame_indices(answers) == list(range(10))
    assert len(server.log.finished) == 1


async def test_no_more_frames_are_outstanding_than_credit_allows() -> None:
    async with serving(Faults(window=3)) as (server, client):
        await translate(client, 30)
    assert server.log.max_unanswered <= 3


async def test_send_waits_while_credit_is_withheld() -> None:
    async with serving(Faults(window=2, withhold_credit=True)) as (server, client), client.open() as session:
        await session.send(picture(0))
        await session.send(picture(1))
        third = asyncio.create_task(session.send(picture(2)))
        await until(lambda: len(server.log.received) == 2)
        assert frame_indices([await anext(session), await anext(session)]) == [0, 1]
        assert not third.done()
        server.release_credit()
        assert await third == 2
        await session.finish()
        assert frame_indices([answer async for answer in session]) == [2]


async def test_a_cancelled_send_leaves_no_frame_behind_and_the_stream_whole() -> None:
    async with serving(Faults(window=1, withhold_credit=True)) as (server, client), client.open() as session:
        await session.send(picture(0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await session.send(picture(1))
        server.release_credit()
        await session.send(picture(2))
        await session.finish()
        assert frame_indices([answer async for answer in session]) == [0, 2]
        assert session.num_connections == 1


async def test_a_slow_reader_holds_the_server_back() -> None:
    async with serving(Faults(window=100)) as (server, client), client.open(answer_window=8) as session:
        for value in range(40):
            await session.send(picture(value))
        await until(lambda: len(server.log.received) == 40)
        await until(lambda: server.log.max_unread_answers >= 4)
        stream = server.sessions[session.opened.session_id]
        await until(lambda: stream.acknowledged == 8)
        assert stream.acknowledged == 8
        await session.finish()
        assert frame_indices([answer async for answer in session]) == list(range(40))
    assert server.log.max_unread_answers <= 40


async def test_a_slow_reader_is_bounded_even_if_the_server_ignores_answer_credit() -> None:
    faults = Faults(window=100, ignore_answer_credit=True)
    async with serving(faults) as (server, client), client.open(answer_window=8) as session:
        for value in range(40):
            await session.send(picture(value))
        await until(lambda: len(server.log.received) == 40)
        await until(lambda: session._machine.num_waiting_answers == 8)
        await session.finish()
        assert session._machine.num_waiting_answers == 8
        assert frame_indices([answer async for answer in session]) == list(range(40))


async def test_answers_are_acknowledged_as_they_come() -> None:
    async with serving() as (server, client):
        await translate(client, 40)
    assert server.log.num_credits >= 40 // 4 - 1
    assert server.log.max_unread_answers <= 12


async def test_a_dropped_frame_is_answered_with_its_reason() -> None:
    async with serving(Faults(drop={2: DropReason.SUPERSEDED})) as (_, client):
        answers = await translate(client, 5)
    assert frame_indices(answers) == list(range(5))
    dropped = answers[2]
    assert isinstance(dropped, Dropped)
    assert dropped.reason is DropReason.SUPERSEDED


async def test_a_damaged_picture_is_dropped_and_the_stream_goes_on() -> None:
    async with serving() as (_, client):
        frames = [Frame(picture(0)), Frame(b"no jpeg"), Frame(picture(2))]
        answers = [answer async for answer in client.translate_frames(frames)]
    assert isinstance(answers[1], Dropped)
    assert answers[1].reason is DropReason.IMAGE_INVALID
    assert frame_indices(answers) == [0, 1, 2]


async def test_a_control_is_answered_in_its_place() -> None:
    async with serving(Faults(depth=2)) as (_, client):
        items = [*pictures(3), SettingsChange(prompt="oil painting", strength=0.25), picture(3)]
        answers = [answer async for answer in client.translate_frames(items)]
    applied = answers[3]
    assert isinstance(applied, ControlApplied)
    assert (applied.settings.prompt, applied.settings.strength) == ("oil painting", 0.25)
    assert applied.received_frames == 3
    assert applied.rejected_reason is None
    assert frame_indices(answers) == [0, 1, 2, 3]


async def test_a_control_that_is_refused_says_why_and_changes_nothing() -> None:
    async with serving() as (_, client):
        items = [picture(0), SettingsChange(prompt=" "), picture(1)]
        answers = [answer async for answer in client.translate_frames(items, prompt="clay")]
    applied = next(answer for answer in answers if isinstance(answer, ControlApplied))
    assert applied.rejected_reason is Reason.PROMPT_EMPTY
    assert applied.settings.prompt == "clay"


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN"])
async def test_every_frame_is_answered_once_over_lost_connections(code: str) -> None:
    cut_code = grpc.StatusCode[code]
    faults = Faults(cut_after_answers=[1, 5, 6, 19], cut_code=cut_code, depth=2, unreceived_on_cut=1)
    async with serving(faults) as (server, client):
        items = [*pictures(8), SettingsChange(prompt="neon"), *pictures(12)]
        answers = [answer async for answer in client.translate_frames(items)]
    assert frame_indices(answers) == list(range(20))
    assert server.log.num_opens == 1
    assert server.log.num_resumes == 4
    resumed = [answer for answer in answers if isinstance(answer, Notice)]
    assert [notice.kind for notice in resumed] == [NoticeKind.RESUMED] * 4
    controls = [answer for answer in answers if isinstance(answer, ControlApplied)]
    assert [(applied.control_id, applied.received_frames) for applied in controls] == [(1, 8)]


async def test_a_session_survives_a_restart_of_the_server() -> None:
    async with serving(Faults(window=3)) as (server, client), client.open() as session:
        await session.send(picture(0))
        assert frame_indices([await anext(session)]) == [0]
        await server.stop()
        sending = asyncio.create_task(session.send(picture(1)))
        await asyncio.sleep(0)
        await server.start()
        await sending
        await session.finish()
        assert frame_indices([answer async for answer in session]) == [1]
        assert session.num_connections == 2


async def test_a_session_that_cannot_be_resumed_says_so_and_what_is_unanswered() -> None:
    faults = Faults(cut_after_answers=[3], forget_on_cut=True, depth=1)
    async with serving(faults) as (_, client):
        with pytest.raises(NotFound, match=r"the session is lost, .* frames are unanswered") as caught:
            await translate(client, 10)
    assert caught.value.reason is Reason.SESSION_UNKNOWN


async def test_resuming_is_given_up_after_the_grace_time() -> None:
    faults = Faults(cut_after_answers=[2], refuse_resume=[(Reason.REPLICA_LOST, 0.01)] * 1000)
    reconnect = Reconnect(first_wait_s=0.01, max_wait_s=0.02, give_up_after_s=0.2)
    async with FakeServer(faults) as server, Client(server.address, reconnect=reconnect) as client:
        with pytest.raises(StreamEnded, match="the session is lost") as caught:
            await translate(client, 10)
    assert caught.value.reason is Reason.REPLICA_LOST
    assert server.log.num_resumes >= 3


@pytest.mark.parametrize("reason", [Reason.DRAINING, Reason.NO_CAPACITY])
async def test_a_resume_waits_as_long_as_the_server_asks(reason: Reason) -> None:
    faults = Faults(cut_after_answers=[2], refuse_resume=[(reason, 0.15)])
    async with serving(faults) as (_, client):
        started = asyncio.get_running_loop().time()
        answers = await translate(client, 5)
        assert asyncio.get_running_loop().time() - started >= 0.15
    assert frame_indices(answers) == list(range(5))


async def test_a_resume_that_another_attempt_has_overtaken_is_tried_again() -> None:
    faults = Faults(cut_after_answers=[2], refuse_resume=[(Reason.TAKEN_OVER, None)])
    async with serving(faults) as (server, client):
        assert frame_indices(await translate(client, 5)) == list(range(5))
    assert server.log.num_resumes == 2


@pytest.mark.parametrize(
    ("reason", "retry_after_s", "kind"),
    [
        (Reason.NO_CAPACITY, 2.5, Refused),
        (Reason.TENANT_STREAMS_EXHAUSTED, 1.0, Refused),
        (Reason.MODEL_UNKNOWN, None, InvalidRequest),
        (Reason.RESOLUTION_UNSUPPORTED, None, InvalidRequest),
        (Reason.INTERNAL, None, Fault),
    ],
)
async def test_a_refused_opening_carries_reason_and_retry_time(
    reason: Reason, retry_after_s: float | None, kind: type[RearviewError]
) -> None:
    async with serving(Faults(refuse=[(reason, retry_after_s)])) as (server, client):
        with pytest.raises(kind) as caught:
            await translate(client, 1)
    assert caught.value.reason is reason
    assert caught.value.retry_after_s == retry_after_s
    assert server.log.num_opens == 1


async def test_an_opening_is_tried_again_while_the_server_drains() -> None:
    async with serving(Faults(refuse=[(Reason.DRAINING, 0.01)])) as (server, client):
        assert frame_indices(await translate(client, 2)) == [0, 1]
    assert server.log.num_opens == 2


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.IDLE, StreamEnded),
        (Reason.TAKEN_OVER, StreamEnded),
        (Reason.CLOSED, StreamEnded),
        (Reason.TOO_MANY_BAD_FRAMES, InvalidRequest),
        (Reason.CREDIT_EXCEEDED, Refused),
    ],
)
async def test_a_stream_that_the_server_ends_is_not_resumed(
    reason: Reason, kind: type[RearviewError]
) -> None:
    async with serving(Faults(end_after_answers=(2, reason))) as (server, client):
        with pytest.raises(kind) as caught:
            await translate(client, 10)
    assert caught.value.reason is reason
    assert server.log.num_resumes == 0


async def test_a_wrong_token_is_refused_and_the_right_one_served() -> None:
    async with FakeServer(Faults(token="secret")) as server:
        async with Client(server.address, "wrong", reconnect=QUICK) as client:
            with pytest.raises(InvalidRequest) as caught:
                await translate(client, 1)
            assert caught.value.reason is Reason.TOKEN_INVALID
        async with Client(server.address, "secret", reconnect=QUICK) as client:
            assert len(await translate(client, 1)) == 1


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    reconnect = Reconnect(first_wait_s=0.01, max_wait_s=0.02, open_timeout_s=0.1)
    async with FakeServer() as server:
        address = server.address
    async with Client(address, reconnect=reconnect) as client:
        with pytest.raises(Unreachable, match=f"{address}: nobody listens there") as caught:
            await translate(client, 1)
    assert (caught.value.reason, caught.value.status) == (Reason.UNREACHABLE, "UNAVAILABLE")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.message) == (Unreachable, caught.value.message)


async def test_an_answer_for_a_frame_never_sent_ends_the_session_as_a_fault() -> None:
    async with serving(Faults(wrong_index=True)) as (server, client):
        with pytest.raises(Fault, match="answer for frame 1000, expected 0"):
            await translate(client, 3)
    assert len(server.log.closed) == 1


async def test_leaving_a_session_early_closes_it_on_the_server() -> None:
    async with serving() as (server, client):
        async with client.open() as session:
            await session.send(picture(0))
        assert server.sessions == {}
        with pytest.raises(StreamEnded):
            await session.send(picture(1))


async def test_whoever_is_cancelled_while_it_leaves_a_session_stays_cancelled() -> None:
    async def leave(client: Client) -> None:
        async with client.open():
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async with serving() as (_, client):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(leave(client))


async def test_a_failing_source_of_frames_ends_the_session_with_its_error() -> None:
    def source() -> Iterator[Image]:
        yield picture(0)
        raise OSError("the disk is gone")

    async with serving() as (server, client):
        with pytest.raises(OSError, match="the disk is gone"):
            _ = [answer async for answer in client.translate_frames(source())]
    assert server.sessions == {}


async def test_a_frame_of_the_wrong_size_is_refused_before_it_is_sent() -> None:
    async with serving() as (server, client):
        with pytest.raises(ValueError, match=r"must be uint8 .* open it with the width and height"):
            _ = [a async for a in client.translate_frames([np.zeros((8, 8, 3), np.uint8)])]
    assert server.log.received == []


async def test_silence_that_is_not_the_users_is_filled_with_credit_messages() -> None:
    faults = Faults(depth=5, idle_timeout_s=0.15)
    async with serving(faults) as (server, client), client.open() as session:
        await session.send(picture(0))
        await until(lambda: server.log.num_credits >= 2)
        await session.finish()
        assert frame_indices([answer async for answer in session]) == [0]


async def test_a_steady_slow_reader_does_not_keep_credit_messages_back() -> None:
    faults = Faults(window=100, idle_timeout_s=0.3)
    async with serving(faults) as (server, client), client.open() as session:
        for value in range(16):
            await session.send(picture(value))
        await until(lambda: session._machine.num_waiting_answers == 16)
        before = server.log.num_credits
        for _ in range(7):
            await anext(session)
            await asyncio.sleep(0.05)
        assert server.log.num_credits >= before + 2


async def test_sessions_are_listed_shown_and_closed() -> None:
    async with serving() as (_, client), contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(client.open()) for _ in range(5)]
        ids = [session.opened.session_id for session in opened]
        assert [info.session_id for info in await client.list_sessions()] == ids
        info = await client.get_session(ids[1])
        assert (info.width, info.height, info.tenant, info.lane) == (SIZE, SIZE, "local", ("fused#0",))
        await client.close_session(ids[1])
        with pytest.raises(NotFound) as caught:
            await client.get_session(ids[1])
        assert caught.value.reason is Reason.SESSION_UNKNOWN
        with pytest.raises(StreamEnded) as ended:
            await anext(opened[1])
        assert ended.value.reason is Reason.CLOSED


async def test_many_sessions_share_a_client_without_mixing() -> None:
    async def one(client: Client, value: int) -> set[int]:
        options = {"send_quality": 0, "answer_format": ImageFormat.RGB, "drop_policy": DropPolicy.LOSSLESS}
        frames = [picture(value)] * 10
        answers = [a async for a in client.translate_frames(frames, **options)]  # type: ignore[arg-type]
        return {int(pixel) for a in answers if isinstance(a, Translated) for pixel in np.unique(a.image)}

    async with serving() as (_, client):
        results = await asyncio.gather(*(one(client, value) for value in range(6)))
    assert results == [{255 - value} for value in range(6)]
