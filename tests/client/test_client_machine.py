"""What the machine of a session decides, in virtual time: no event loop, no gRPC."""

from __future__ import annotations

import pytest
from client.virtual_client import CUT, PATIENT, Client, frame_indices
from client.virtual_server import VirtualServer
from rearview.client import (
    Notice,
    NoticeKind,
    Reconnect,
    SettingsChange,
    Translated,
    Unreachable,
)
from rearview.client.losses import Loss
from rearview.client.machine import Connect, HalfClose, Machine, Phase, Wait, Write
from rearview.errors import Fault, NotFound, RearviewError, Reason, Refused, StreamEnded
from rearview.v1 import error_reason_pb2 as errors_pb
from rearview.v1 import translation_service_pb2 as pb

pytestmark = pytest.mark.unit


def opened(frame_window: int = 4, window: int = 32, reconnect: Reconnect = PATIENT) -> Client:
    client = Client(VirtualServer(frame_window), window, reconnect)
    client.connect()
    assert client.machine.phase is Phase.OPEN
    return client


def test_a_session_goes_through_its_phases() -> None:
    client = Client(VirtualServer(4))
    phases = [client.machine.phase]

    def note() -> None:
        phases.append(client.machine.phase)

    client.connect()
    note()
    client.frame()
    client.lose()
    note()
    client.now += 10
    client.connect()
    note()
    client.machine.finish()
    note()
    client.lose()
    note()
    client.settle()
    note()
    assert phases == [
        Phase.OPENING,
        Phase.OPEN,
        Phase.RESUMING,
        Phase.OPEN,
        Phase.FINISHING,
        Phase.FINISHING,
        Phase.ENDED,
    ]
    assert frame_indices(client) == [0]
    assert client.machine.num_connections == 3


def test_a_fault_of_the_server_while_opening_is_final_and_a_drain_is_not() -> None:
    client = Client(VirtualServer(4))
    client.machine.connect(client.now)
    client.machine.lost(Loss(Refused(Reason.DRAINING, "wait", retry_after_s=3.0), True), client.now)
    assert client.machine.connect(client.now + 2.9) == Wait(client.now + 3.0)
    assert isinstance(client.machine.connect(client.now + 3.0), Connect)
    fault = Fault(Reason.INTERNAL, "broken")
    client.machine.lost(Loss(fault, True), client.now + 4.0)
    assert client.machine.connect(client.now + 4.0) is None
    with pytest.raises(Fault, match="broken"):
        client.machine.is_begun()


def test_a_server_that_is_not_there_is_given_up_with_its_own_error() -> None:
    client = Client(VirtualServer(4), reconnect=Reconnect(open_timeout_s=5.0))
    while isinstance(action := client.machine.connect(client.now), Connect | Wait):
        if isinstance(action, Connect):
            client.machine.lost(CUT, client.now)
        else:
            assert action.until_s is not None
            client.now = action.until_s
    assert 102 < client.now <= 105
    with pytest.raises(Unreachable, match=r"^cut$"):
        client.machine.is_begun()


def test_resuming_is_given_up_after_the_grace_time_and_says_what_is_unanswered() -> None:
    client = opened(reconnect=Reconnect())
    waiting = [client.frame() for _ in range(6)]
    client.write_all()
    while client.machine.phase is not Phase.ENDED:
        client.machine.lost(CUT, client.now)
        while isinstance(action := client.machine.connect(client.now), Wait):
            assert action.until_s is not None
            client.now = action.until_s
    assert 157 < client.now <= 160
    assert client.machine.is_sent(waiting[3])
    for use in (lambda: client.machine.is_sent(waiting[4]), client.machine.take, client.machine.finish):
        with pytest.raises(StreamEnded, match="the session is lost, 6 frames are unanswered: cut"):
            use()


def test_a_connection_that_stood_begins_the_search_anew() -> None:
    client = opened(reconnect=Reconnect(give_up_after_s=3.0))
    for _ in range(20):
        client.now += 2.5
        client.lose()
        client.now += 0.1
        assert isinstance(client.connect(), Connect)
    client.lose()
    client.now += 2.5
    client.connect()
    client.lose()
    assert client.machine.phase is Phase.RESUMING


@pytest.mark.parametrize(
    "refusal",
    [
        Refused(Reason.NO_CAPACITY, "full", retry_after_s=0.1),
        Refused(Reason.TENANT_STREAMS_EXHAUSTED, "full", retry_after_s=0.1),
        StreamEnded(Reason.TAKEN_OVER, "another attempt came first"),
    ],
)
def test_a_resume_that_is_refused_for_now_leaves_the_session_to_the_next_attempt(
    refusal: RearviewError,
) -> None:
    client = opened()
    client.frame()
    client.write_all()
    client.lose()
    client.now += 1.0
    assert isinstance(client.machine.connect(client.now), Connect)
    client.machine.lost(Loss(refusal, False), client.now)
    assert client.machine.phase is Phase.RESUMING
    assert isinstance(client.machine.connect(client.now + 0.04), Wait)
    client.settle()
    assert frame_indices(client) == [0]


def test_a_resume_that_is_refused_for_ever_is_given_up_after_the_grace_time() -> None:
    client = opened(reconnect=Reconnect())
    client.lose()
    while isinstance(action := client.machine.connect(client.now), Connect | Wait):
        if isinstance(action, Connect):
            refusal = Refused(Reason.NO_CAPACITY, "full", retry_after_s=1.0)
            client.machine.lost(Loss(refusal, False), client.now)
        else:
            assert action.until_s is not None
            client.now = action.until_s
    assert 157 < client.now <= 160
    with pytest.raises(StreamEnded, match="the session is lost, 0 frames are unanswered: full"):
        client.machine.take()


@pytest.mark.parametrize("reason", [Reason.TAKEN_OVER, Reason.NO_CAPACITY])
def test_the_same_refusals_end_a_session_whose_connection_had_begun(reason: Reason) -> None:
    client = opened()
    client.lose(Loss(StreamEnded(reason, "over", retry_after_s=0.1), False))
    assert client.machine.phase is Phase.ENDED


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_session_unknown_after_the_half_close_is_lost_unless_all_was_answered(is_answered: bool) -> None:
    client = opened()
    client.frame()
    client.machine.finish()
    client.write_all()
    if is_answered:
        client.server.answer_frame()
        client.read()
    client.lose()
    client.machine.lost(Loss(NotFound(Reason.SESSION_UNKNOWN, "who?"), False), client.now + 1)
    assert client.machine.phase is Phase.ENDED
    if is_answered:
        client.take()
        assert client.machine.take() is None
    else:
        with pytest.raises(NotFound, match="the session is lost, 1 frames are unanswered: who"):
            client.machine.take()


@pytest.mark.parametrize(
    "response",
    [
        None,
        pb.TranslateResponse(),
        pb.TranslateResponse(frame=pb.TranslatedFrame(frame_index=0)),
    ],
)
def test_a_connection_that_does_not_begin_with_opened_is_a_fault(response: pb.TranslateResponse) -> None:
    client = Client(VirtualServer(4))
    client.machine.connect(client.now)
    client.machine.received(response, client.now)
    with pytest.raises(Fault, match="host:1 did not begin with `opened`"):
        client.machine.is_begun()


def test_an_end_with_ok_that_leaves_something_undone_is_an_error() -> None:
    unanswered, unfinished = opened(), opened()
    unanswered.frame()
    unanswered.machine.finish()
    unanswered.write_all()
    unanswered.machine.received(None, 0.0)
    with pytest.raises(Fault, match="ended with 1 frames unanswered"):
        unanswered.machine.take()
    unfinished.machine.received(None, 0.0)
    with pytest.raises(StreamEnded, match="the server has ended the stream"):
        unfinished.machine.take()


def test_what_comes_after_the_end_is_not_looked_at() -> None:
    client = opened()
    client.machine.abort(StreamEnded(Reason.CLOSED, "enough"))
    client.machine.received(pb.TranslateResponse(frame=pb.TranslatedFrame(frame_index=9)), client.now)
    client.machine.lost(CUT, client.now)
    assert client.machine.connect(client.now) is None
    assert client.write() == Wait()
    with pytest.raises(StreamEnded, match="enough"):
        client.machine.take()


def test_only_a_session_that_the_server_would_keep_is_to_be_closed() -> None:
    never, open_, finished, aborted, ended, faulty = (opened() for _ in range(6))
    never = Client(VirtualServer(4))
    finished.machine.finish()
    finished.settle()
    aborted.machine.abort(StreamEnded(Reason.CLOSED, "enough"))
    ended.machine.lost(Loss(StreamEnded(Reason.IDLE, "idle"), False), ended.now)
    faulty.machine.received(pb.TranslateResponse(frame=pb.TranslatedFrame(frame_index=9)), faulty.now)
    clients = (never, open_, finished, aborted, ended, faulty)
    assert [client.machine.leave() for client in clients] == [None, "s", None, "s", None, "s"]
    with pytest.raises(StreamEnded, match="the session was left"):
        open_.frame()


def test_silence_is_filled_only_while_it_is_not_the_users_own() -> None:
    client = opened()
    assert client.write() == Wait()
    item = client.frame()
    assert isinstance(client.write(), Write)
    assert client.machine.is_sent(item)
    beat_s = client.now + 10 / 3
    assert client.write() == Wait(beat_s)
    client.now = beat_s
    beat = client.write()
    assert isinstance(beat, Write)
    assert beat.message.WhichOneof("message") == "credit"
    assert client.write() == Wait(beat_s + 10 / 3)
    client.settle()
    assert client.write() == Wait()


def test_a_steady_slow_reader_does_not_put_the_heartbeat_off() -> None:
    client = opened(frame_window=100)
    for _ in range(6):
        client.frame()
        client.write_all()
        client.server.answer_frame()
        client.read()
    client.write_all()
    written_s, gaps = client.now, []
    for _ in range(5):
        client.now += 3.0
        client.take()
        if isinstance(client.write(), Write):
            gaps.append(client.now - written_s)
            written_s = client.now
    assert gaps == [6.0, 6.0]


def test_the_server_is_told_after_four_answers_received_or_a_quarter_of_the_window_taken() -> None:
    client = opened(frame_window=100, window=8)
    for _ in range(8):
        client.frame()
    client.write_all()
    told = []
    for step in (client.read, client.take):
        for number in range(1, 9):
            if step == client.read:
                client.server.answer_frame()
            step()
            if isinstance(action := client.write(), Write):
                credit = action.message.credit
                told.append((number, credit.received_answers, credit.answer_credit))
    assert told == [(4, 4, 8), (8, 8, 8), (2, 8, 10), (4, 8, 12), (6, 8, 14), (8, 8, 16)]


def test_the_half_close_waits_for_what_lacks_credit_also_after_a_resume() -> None:
    client = opened(frame_window=3)
    for _ in range(3):
        client.frame()
    client.machine.finish()
    client.write_all()
    assert client.machine.is_finish_sent()
    client.server.frame_window = 2
    client.lose(received_frames=0)
    client.now += 1.0
    client.connect()
    actions = [client.write() for _ in range(3)]
    assert [isinstance(action, Write) for action in actions] == [True, True, False]
    assert isinstance(actions[2], Wait)
    client.settle()
    assert client.machine.phase is Phase.ENDED
    assert frame_indices(client) == [0, 1, 2]


def test_the_half_close_allows_all_answers_that_are_left() -> None:
    client = opened(frame_window=20, window=2)
    for _ in range(10):
        client.frame()
    client.write_all()
    client.server.answer_frame()
    client.server.answer_frame()
    assert not client.server.can_answer_frame()
    client.machine.finish()
    action = client.write()
    assert isinstance(action, HalfClose)
    assert action.message.credit.answer_credit == 10
    assert client.write() == Wait()
    client.settle()
    assert frame_indices(client) == list(range(10))
    assert client.machine.is_finish_sent()


def test_a_round_trip_includes_the_reconnection() -> None:
    client = opened()
    client.frame()
    client.write_all()
    client.lose(received_frames=0)
    client.now += 7.0
    client.settle()
    notice, answer = client.answers
    assert isinstance(notice, Notice)
    assert notice.kind is NoticeKind.RESUMED
    assert isinstance(answer, Translated)
    assert answer.round_trip_s == 7.0


def test_a_session_whose_former_settings_are_refused_ends_with_the_reason() -> None:
    """Its frames would be sent again under others: a smaller size, where the quota has gone to somebody."""
    client = opened()
    client.frame()
    client.write_all()
    client.lose(received_frames=0)
    client.now += 1.0
    client.machine.connect(client.now)
    client.machine.received(client.server.accept(pb.TranslateRequest(resume=_resume()), 0), client.now)
    quota = errors_pb.ERROR_REASON_TENANT_RATE_EXHAUSTED
    refused = pb.ControlApplied(control_id=0, rejected_reason=quota, advice="no pixels are left")
    client.machine.received(pb.TranslateResponse(control_applied=refused), client.now)
    assert client.machine.phase is Phase.ENDED
    with pytest.raises(StreamEnded, match="former settings were refused: no pixels are left") as ended:
        client.machine.control(SettingsChange(seed=1))
    assert ended.value.reason is Reason.TENANT_RATE_EXHAUSTED


def test_a_resumed_session_keeps_its_token_if_the_server_does_not_repeat_it() -> None:
    client = opened()
    client.lose()
    client.now += 1.0
    client.machine.connect(client.now)
    response = client.server.accept(pb.TranslateRequest(resume=_resume()), 0)
    response.opened.resume_token = ""
    client.machine.received(response, client.now)
    assert client.machine.opened.resume_token == "t"


def _resume() -> pb.Resume:
    return pb.Resume(session_id="s", resume_token="t", answer_credit=32)


def test_a_long_session_leaves_nothing_behind() -> None:
    client = opened()
    for number in range(200):
        for _ in range(5):
            client.frame()
        client.control(seed=number)
        if number % 10 == 0:
            client.write_all()
            client.lose(received_frames=client.num_read)
        client.settle()
        # Nothing is unanswered, not taken or kept for another attempt.
        assert client.write() == Wait()
        assert client.machine.num_unanswered_frames == client.machine.num_waiting_answers == 0
        client.now += 0.2
    assert frame_indices(client) == list(range(1000))
    assert client.machine.num_connections == 21


def test_an_answer_window_that_could_hold_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="answer_window must be at least 1, not 0"):
        Machine({"answer_window": 0}, PATIENT, "host:1")


def test_silence_counts_only_where_the_server_has_promised_to_speak() -> None:
    client = opened()
    assert client.machine.silence_s is None
    client.lose()
    assert client.machine.silence_s is None
    client.server.heartbeat_s = 2.0
    client.settle()
    assert client.machine.silence_s == 3.0


def test_whoever_resumes_tells_the_numbers_of_its_unanswered_frames() -> None:
    client = opened()
    for index in (2, 5, 9):
        client.frame(index)
    client.write_all()
    client.server.answer_frame()
    client.read()
    client.lose()
    action = client.machine.connect(client.now + 10.0)
    assert isinstance(action, Connect)
    assert action.first.resume.received_answers == 1
    assert action.first.resume.unanswered_frame_indices == [5, 9]
