"""The blocking client against a real server, which runs on a loop of its own thread."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rearview.client import DropPolicy, Reconnect, SettingsChange, Tls, Translated
from rearview.client.sync import Client, connect_sync
from rearview.errors import NotFound, Reason, Refused, StreamEnded
from rearview.v1 import translation_service_pb2 as pb
from support.fake_server import SIZE, FakeServer, Faults, serving_in_thread

pytestmark = [pytest.mark.integration, pytest.mark.timeout(30)]

FRAMES = [np.full((SIZE, SIZE, 3), value, np.uint8) for value in range(12)]
QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.05, open_timeout_s=1.0)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A fake server in another thread."""
    with serving_in_thread(Faults(depth=2)) as fake:
        yield fake


def test_frames_come_back_translated_in_order(server: FakeServer) -> None:
    with Client(server.address, reconnect=QUICK) as client:
        answers = list(client.translate_frames(FRAMES, prompt="clay"))
    assert [a.frame_index for a in answers if isinstance(a, Translated)] == list(range(12))


@pytest.mark.parametrize(
    ("frames", "policy"),
    [
        (FRAMES, pb.DROP_POLICY_LOSSLESS),
        (tuple(FRAMES), pb.DROP_POLICY_LOSSLESS),
        (np.stack(FRAMES), pb.DROP_POLICY_LOSSLESS),
        (iter(FRAMES), pb.DROP_POLICY_LATEST),
        ((image for image in FRAMES), pb.DROP_POLICY_LATEST),
    ],
    ids=["list", "tuple", "array", "iterator", "generator"],
)
def test_frames_that_are_all_there_are_all_answered_and_an_iterator_may_be_live(
    server: FakeServer, frames: Any, policy: int
) -> None:
    server.faults.end_after_answers = (len(FRAMES), Reason.CLOSED)
    with Client(server.address, reconnect=QUICK) as client, contextlib.suppress(StreamEnded):
        list(client.translate_frames(frames, prompt="clay"))
    (session,) = server.sessions.values()
    assert session.open.drop_policy == policy


def test_a_policy_that_is_named_holds_for_a_list_too(server: FakeServer) -> None:
    server.faults.end_after_answers = (len(FRAMES), Reason.CLOSED)
    with Client(server.address, reconnect=QUICK) as client, contextlib.suppress(StreamEnded):
        list(client.translate_frames(FRAMES, drop_policy=DropPolicy.DEADLINE))
    (session,) = server.sessions.values()
    assert session.open.drop_policy == pb.DROP_POLICY_DEADLINE


def test_a_session_is_sent_to_and_read_from_by_two_threads(server: FakeServer) -> None:
    with Client(server.address, reconnect=QUICK) as client, client.open() as session:

        def send() -> None:
            for image in FRAMES:
                session.send(image)
            session.control(prompt="neon")
            session.finish()

        sender = threading.Thread(target=send)
        sender.start()
        answers = list(session)
        sender.join()
    assert len(answers) == len(FRAMES) + 1
    assert session.opened.width == SIZE


def test_what_controls_are_shown_is_sent_as_the_frame_is(server: FakeServer) -> None:
    """And again, where a lost connection took it."""
    server.faults.cut_after_answers = [1]
    server.faults.unreceived_on_cut = 2
    poses = [np.flip(image) for image in FRAMES[:4]]
    with (
        Client(server.address, reconnect=QUICK) as client,
        client.open(prompt="clay", send_quality=0, drop_policy=DropPolicy.LOSSLESS) as session,
    ):
        for image, pose in zip(FRAMES, poses, strict=False):
            session.send(image, controls={"pose": pose})
        session.send(FRAMES[4])
        with pytest.raises(ValueError, match="must be uint8"):
            session.send(FRAMES[5], controls={"pose": FRAMES[5][:8]})
        session.finish()
        assert [answer.frame_index for answer in session if isinstance(answer, Translated)] == list(range(5))
    assert len(server.log.received) > 5
    assert server.log.shown == {**{n: {"pose": pose.tobytes()} for n, pose in enumerate(poses)}, 4: {}}


def test_leaving_the_iteration_early_ends_the_session(server: FakeServer) -> None:
    with Client(server.address, reconnect=QUICK) as client:
        answers = client.translate_frames([*FRAMES, SettingsChange(prompt="x")])
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert client.list_sessions() == []


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_source_that_gives_nothing_more_does_not_hold_the_client_up(
    server: FakeServer, is_refused: bool
) -> None:
    """Either the server ends the session, or the user leaves it."""
    images: queue.Queue[np.ndarray] = queue.Queue()
    is_waiting = threading.Event()
    if is_refused:
        server.faults.end_after_answers = (1, Reason.IDLE)

    def source() -> Iterator[np.ndarray]:
        yield from FRAMES[:4]
        is_waiting.set()
        yield images.get()

    def translate() -> None:
        with Client(server.address, reconnect=QUICK) as client:
            answers = client.translate_frames(source())
            with contextlib.suppress(StreamEnded), contextlib.closing(answers):  # type: ignore[type-var]
                next(answers)
                assert is_refused or is_waiting.wait(10)  # one that is refused may be asked for none
                if is_refused:
                    next(answers)

    user = threading.Thread(target=translate, daemon=True)
    user.start()
    user.join(10)
    is_stuck = user.is_alive()
    images.put(FRAMES[4])  # so that a thread that is joined ends
    assert not is_stuck


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises, also where a shell has started this process with it ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_a_picture_is_waited_for_is_what_is_raised(server: FakeServer) -> None:
    is_over, user = threading.Event(), threading.get_ident()

    def source() -> Iterator[np.ndarray]:
        yield FRAMES[0]  # answered once there are more
        signal.pthread_kill(user, signal.SIGINT)
        is_over.wait(10)

    try:
        with connect_sync(server.address, reconnect=QUICK) as service, pytest.raises(KeyboardInterrupt):
            list(service.translate(source()))
    finally:
        is_over.set()
    assert len(server.log.closed) == 1


def test_errors_arrive_as_they_do_in_the_async_client(server: FakeServer) -> None:
    server.faults.refuse.append((Reason.NO_CAPACITY, 3.0))
    with Client(server.address, reconnect=QUICK) as client:
        with pytest.raises(Refused) as caught:
            list(client.translate_frames(FRAMES))
        with pytest.raises(NotFound):
            client.get_session("none")
    assert caught.value.retry_after_s == 3.0


@pytest.mark.parametrize("make", [Client, connect_sync])
def test_what_cannot_be_entered_leaves_no_thread(make: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), make("127.0.0.1:1", tls=Tls(ca_file=tmp_path / "none.pem")):
        pass
    assert not [each for each in threading.enumerate() if each.name == "rearview-client"]


def test_a_client_that_was_not_entered_says_so() -> None:
    with pytest.raises(RuntimeError, match="enter the client"):
        Client("127.0.0.1:1").list_sessions()
