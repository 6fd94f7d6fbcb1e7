"""What a session's client knows and decides. Without I/O: the shell (`session.py`) carries out what it says.

    user      frame  control  finish  take  abort  leave ─┐
    call      received  half_closed  lost                ─┼─► Machine ─► connect     Connect │ Wait │ None
    clock     `now`, any clock in seconds                ─┘          └─► next_write  Write │ HalfClose │ Wait

    OPENING ─► OPEN ◄─► RESUMING         a session that is FINISHING resumes, too
                 └─► FINISHING ─► ENDED  from everywhere: an error, or the user leaves

After every event the shell asks again what to do next; a `Wait` that it was given before is then void. A
connection only ever is the present one: `connect` begins it, `lost` or the end of the session ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import count

from rearview.client import wire
from rearview.client.answers import Answer, Dropped, Image, Notice, Opened, Translated
from rearview.client.inbox import Inbox
from rearview.client.ledger import RESTORE_ID, Input, Ledger
from rearview.client.losses import Loss, not_resumed
from rearview.client.options import OpenOptions
from rearview.client.reconnect import Attempts, Reconnect
from rearview.contract.settings import SettingsChange
from rearview.contract.stream import ImageFormat, NoticeKind
from rearview.errors import Fault, NotFound, RearviewError, Reason, StreamEnded
from rearview.schema import seconds
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["Connect", "HalfClose", "Machine", "Phase", "Wait", "Write"]


class Phase(Enum):
    """Where a session is in its life."""

    OPENING = auto()
    OPEN = auto()
    RESUMING = auto()
    FINISHING = auto()
    ENDED = auto()


@dataclass(frozen=True)
class Connect:
    """Make a call, write `first` and pass on what comes. Which address to call, the shell knows."""

    first: pb.TranslateRequest
    accept_s: float
    """The connection is lost if the server has not shown by then that it is there."""
    timeout_s: float
    """The same, if it has not answered `first` so long after that."""


@dataclass(frozen=True)
class Write:
    """Write a message on the call."""

    message: pb.TranslateRequest


@dataclass(frozen=True)
class HalfClose:
    """Write a last message, say that nothing more will follow on this call, then report `half_closed`."""

    message: pb.TranslateRequest


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until_s` (None: for ever), unless something happens."""

    until_s: float | None = None


@dataclass
class _Link:
    """The present connection, once the server has answered `opened` on it."""

    heartbeat_s: float
    silence_s: float | None
    begun_s: float
    written_s: float

    def write(self, message: pb.TranslateRequest, now: float) -> Write:
        """The message as the next action; the heartbeat is counted from here."""
        self.written_s = now
        return Write(message)

    @property
    def beat_s(self) -> float:
        """When the server would have to hear something again."""
        return self.written_s + self.heartbeat_s


@dataclass
class _Ending:
    """Whether and how a session has ended. The first end counts."""

    is_over: bool = False
    is_aborted: bool = False
    error: RearviewError | None = None
    """None: not yet, or with all answered."""

    def end(self, error: RearviewError | None, *, is_aborted: bool = False) -> None:
        if not self.is_over:
            self.is_over, self.is_aborted, self.error = True, is_aborted, error

    def raise_error(self) -> None:
        """Raise what the session has ended with, if it has."""
        if self.error is not None:
            raise self.error

    @property
    def is_one_sided(self) -> bool:
        """Whether the server does not know of the end, so that it keeps the session for the grace time."""
        return not self.is_over or self.is_aborted or isinstance(self.error, Fault)


class Machine:
    """One session on the client's side. Methods return at once; none is thread-safe."""

    def __init__(self, options: OpenOptions, reconnect: Reconnect, address: str) -> None:
        """Raises ValueError for an answer window that could hold nothing."""
        self._options, self._reconnect, self._address = options, reconnect, address
        self._send_quality = options.get("send_quality", 90)
        self._ledger = Ledger()
        self._inbox = Inbox(options.get("answer_window", 32))
        self._attempts = Attempts(reconnect)
        self._last_index = -1
        self._control_ids = count(1)
        self._opened: Opened | None = None
        self.num_connections = 0
        """How many connections have begun."""
        self._link: _Link | None = None
        self._retry_s: float | None = None
        """Not before then is a connection sought again."""
        self._is_finishing = False
        self._is_half_closed = False
        """On the present connection, or the last one until another begins."""
        self._ending = _Ending()

    @property
    def phase(self) -> Phase:
        """Where the session is in its life."""
        if self._ending.is_over:
            return Phase.ENDED
        if self._opened is None:
            return Phase.OPENING
        if self._is_finishing:
            return Phase.FINISHING
        return Phase.RESUMING if self._link is None else Phase.OPEN

    @property
    def opened(self) -> Opened:
        """The open session, as the server last described it."""
        assert self._opened is not None, "enter the session with `async with` first"
        return self._opened

    @property
    def num_waiting_answers(self) -> int:
        """How many answers the user has not taken; at most the answer window."""
        return len(self._inbox)

    @property
    def num_unanswered_frames(self) -> int:
        """Frames that were submitted and of which no answer was received."""
        return self._ledger.num_unanswered_frames

    # -- what the user asks

    def is_begun(self) -> bool:
        """Whether the session was opened. Raises the error of one that was not."""
        self._ending.raise_error()
        return self._opened is not None

    def frame(
        self,
        image: Image | bytes,
        index: int | None,
        presentation_s: float,
        format: ImageFormat,
        controls: wire.Controls = wire.NO_CONTROLS,
    ) -> Input:
        """A frame to send, in its place; `is_sent` says when it was. Raises as `Session.send` does."""
        self._check_open()
        index = self._last_index + 1 if index is None else index
        if index <= self._last_index:
            raise ValueError(f"frame index {index} is not greater than {self._last_index}")
        how = format, self.opened.size_after(self._ledger.size), self._send_quality
        shown = {name: wire.encoded(each, *how) for name, each in controls.items()}
        message = wire.frame_request(index, presentation_s, wire.encoded(image, *how), shown)
        self._last_index = index
        return self._ledger.submit(Input(message, index, True))

    def control(self, change: SettingsChange) -> Input:
        """A change of settings to send, in its place. Raises the session's error if it has ended."""
        self._check_open()
        number = next(self._control_ids)
        return self._ledger.submit(Input(wire.control_request(number, change), number, False))

    def is_sent(self, item: Input) -> bool:
        """Whether it was handed to a connection. Raises the session's error if it never will be."""
        if item.taken_s is None and self._ending.is_over:
            raise self._ending.error or StreamEnded(Reason.CLOSED, "the session was left")
        return item.taken_s is not None

    def withdraw(self, item: Input) -> bool:
        """Take back an input that was never sent. False: it was, and will be answered."""
        return self._ledger.withdraw(item)

    def finish(self) -> None:
        """Nothing more will be submitted. Raises the session's error if it has ended."""
        self._check_open()
        self._is_finishing = True

    def is_finish_sent(self) -> bool:
        """Whether the call is half-closed, or all is over. Raises the session's error."""
        self._ending.raise_error()
        return self._is_half_closed or self._ending.is_over

    def can_take(self) -> bool:
        """Whether `take` has something to say."""
        return len(self._inbox) > 0 or self._ending.is_over

    def take(self) -> Answer | None:
        """The next answer; None if none is waiting. Raises the error that ended the session."""
        answer = self._inbox.take()
        if answer is None:
            self._ending.raise_error()
        return answer

    def abort(self, error: RearviewError) -> None:
        """End at once with `error`, on the user's side."""
        self._ending.end(error, is_aborted=True)

    def leave(self) -> str | None:
        """End at once. Returns the id of a session that the server would keep for the grace time, or None."""
        is_kept = self._opened is not None and self._ending.is_one_sided
        self.end(StreamEnded(Reason.CLOSED, "the session was left"))
        return self.opened.session_id if is_kept else None

    def end(self, error: RearviewError | None) -> None:
        """The session is over, with all answered if `error` is None. The first end counts."""
        self._ending.end(error)

    # -- what to do

    def connect(self, now: float) -> Connect | Wait | None:
        """What to do without a connection; None: the session has ended."""
        if self._ending.is_over:
            return None
        if self._retry_s is not None and now < self._retry_s:
            return Wait(self._retry_s)
        received = self._ledger.received_answers
        credit = self._inbox.tell_credit(received)
        if self._opened is None:
            first = wire.open_request(self._options, credit)
        else:
            first = wire.resume_request(self._opened, received, credit, self._ledger.sent_indices)
        return Connect(first, self._attempts.accept_s, self._reconnect.open_timeout_s)

    def next_write(self, now: float) -> Write | HalfClose | Wait:
        """What to do with a connection that has begun, besides reading it. A message counts as written."""
        if self._link is None or self._is_half_closed or self._ending.is_over:
            return Wait()
        if (item := self._ledger.take(now)) is not None:
            return self._link.write(item.message, now)
        if self._inbox.is_credit_due(self._ledger.received_answers):
            return self._link.write(self._credit(), now)
        if self._is_finishing and not self._ledger.has_outgoing:
            # No credit can follow: allow all that is left. The inbox's own bound still holds.
            return HalfClose(wire.credit_request(self._ledger.sent_frames, self._ledger.received_answers))
        if self._ledger.is_empty and not len(self._inbox):
            return Wait()  # silence is the user's own: the server may end the stream of it
        if now < self._link.beat_s:
            return Wait(self._link.beat_s)
        return self._link.write(self._credit(), now)

    @property
    def silence_s(self) -> float | None:
        """The connection is lost if the server says nothing for so long; None: it has promised nothing."""
        return None if self._link is None else self._link.silence_s

    def has_room(self) -> bool:
        """Whether the connection may be read."""
        return self._inbox.has_room or self._ending.is_over

    # -- what the connection tells

    def received(self, response: pb.TranslateResponse | None, now: float) -> None:
        """Take what came; None: the server has ended the call with OK. A bad server ends the session."""
        if self._ending.is_over:
            return
        try:
            if self._link is None:
                self._begin(response, now)
            elif response is None:
                self._close()
            else:
                self._take_in(response, now)
        except RearviewError as error:
            self.end(error)

    def half_closed(self) -> None:
        """`HalfClose` was carried out."""
        self._is_half_closed = True

    def lost(self, loss: Loss, now: float) -> None:
        """The connection has failed, or could not be made: wait before the next attempt, or end."""
        link, self._link = self._link, None
        opened, count = self._opened, self.num_unanswered_frames
        given_up = loss.error if opened is None else not_resumed(loss.error, count)
        if opened is not None and isinstance(loss.error, NotFound):
            is_done = self._is_half_closed and self._ledger.is_empty  # only the final OK was lost
            self.end(None if is_done else given_up)
        elif loss.is_final(is_open=opened is not None, has_begun=link is not None):
            self.end(loss.error)
        else:
            self._attempts.stood(0.0 if link is None else now - link.begun_s)
            limit_s = self._reconnect.limit_s(None if opened is None else opened.resume_grace_s)
            wait_s = self._attempts.wait_s(now, limit_s, loss.error.retry_after_s)
            if wait_s is None:
                self.end(given_up)
            else:
                self._retry_s = now + wait_s

    # -- how

    def _check_open(self) -> None:
        self._ending.raise_error()
        if self.phase in (Phase.FINISHING, Phase.ENDED):
            raise StreamEnded(Reason.CLOSED, "the session is finished: open another one")

    def _credit(self) -> pb.TranslateRequest:
        received = self._ledger.received_answers
        return wire.credit_request(self._inbox.tell_credit(received), received)

    def _begin(self, response: pb.TranslateResponse | None, now: float) -> None:
        if response is None or response.WhichOneof("message") != "opened":
            raise Fault(Reason.INTERNAL, f"{self._address} did not begin with `opened`")
        message, opened = response.opened, wire.opened(response.opened)
        if self._opened is None:
            self._ledger.frame_credit, self._ledger.settings = response.frame_credit, message.settings
        else:
            self._ledger.resume(message.received_frames, response.frame_credit, message.settings)
            self._inbox.put(Notice(NoticeKind.RESUMED, 0.0, opened.continuity))
            opened = replace(opened, resume_token=opened.resume_token or self._opened.resume_token)
        self._opened = opened
        self.num_connections += 1
        self._is_half_closed = False
        self._link = _Link(
            _heartbeat_s(opened.idle_timeout_s), _silence_s(message), begun_s=now, written_s=now
        )

    def _close(self) -> None:
        if not self._ledger.is_empty:
            raise Fault(Reason.INTERNAL, f"ended with {self.num_unanswered_frames} frames unanswered")
        if not self._is_finishing:
            raise StreamEnded(Reason.CLOSED, "the server has ended the stream")
        self.end(None)

    def _take_in(self, response: pb.TranslateResponse, now: float) -> None:
        self._ledger.frame_credit = max(self._ledger.frame_credit, response.frame_credit)
        answer = _answer_of(response, self.opened, self._ledger, now)
        if isinstance(answer, Translated | Dropped):
            self._attempts.renew()
        if answer is not None:
            self._inbox.put(answer)


def _silence_s(message: pb.Opened) -> float | None:
    return 1.5 * seconds(message.heartbeat) if message.HasField("heartbeat") else None


def _heartbeat_s(idle_timeout_s: float) -> float:
    return max(0.05, idle_timeout_s / 3) if idle_timeout_s else 3.0


def _answer_of(response: pb.TranslateResponse, opened: Opened, ledger: Ledger, now: float) -> Answer | None:
    """What the user is given of a response, now settled in the ledger. Raises Fault for a wrong answer."""
    match response.WhichOneof("message"):
        case "frame":
            round_trip_s = now - ledger.answered(response.frame.frame_index)
            return wire.translated(response.frame, opened, round_trip_s)
        case "dropped":
            return wire.dropped(response.dropped, now - ledger.answered(response.dropped.frame_index))
        case "control_applied":
            applied = response.control_applied
            if applied.control_id == RESTORE_ID and applied.rejected_reason:
                raise wire.not_restored(applied)
            item = ledger.control_answered(applied.control_id, applied.settings)
            return wire.control_applied(applied, item.frames_before) if item is not None else None
        case "notice":
            return wire.notice(response.notice)
        case _:
            return None
