"""Between `rearview.v1` and our own types: the only module that reads requests and builds responses.

What both sides map the same way, settings and enums, is in the table (`rearview.schema`).
"""

from __future__ import annotations

from dataclasses import replace

from google.protobuf import duration_pb2, timestamp_pb2

from rearview.contract.controls import MAX_CONTROLS
from rearview.contract.lease import Lease
from rearview.contract.methods import method_of
from rearview.contract.opening import OpenRequest
from rearview.contract.settings import SettingsChange
from rearview.contract.stream import Continuity, ImageFormat, NoticeKind, SessionState
from rearview.errors import DropReason, Reason, out_of_range
from rearview.ingress.adoption import Resumption
from rearview.ingress.book import Answer
from rearview.ingress.catalogue import Found
from rearview.ingress.intake import ControlIn, FrameIn
from rearview.ingress.session import IngressSession
from rearview.ingress.sessions import Record
from rearview.schema import duration, from_message, to_message, write_duration
from rearview.schema.enums import (
    CONTINUITIES,
    DROP_REASONS,
    IMAGE_FORMATS,
    METHODS,
    NOTICE_KINDS,
    REASONS,
    SESSION_STATES,
)
from rearview.schema.tables import OPEN, SETTINGS, TEMPORAL_CACHE
from rearview.v1 import session_service_pb2, settings_pb2, translation_service_pb2

__all__ = [
    "answer_response",
    "control_response",
    "frame_in",
    "frame_without_image",
    "notice_response",
    "open_request",
    "opened_response",
    "resized_response",
    "resumption",
    "session_message",
    "settings_change",
]

pb = translation_service_pb2


def open_request(message: pb.Open, *, opaque: bool) -> OpenRequest:
    """What `open` asks for; a model that moves `opaque` bytes answers with them, whatever is asked.

    Raises InvalidRequest(SETTING_OUT_OF_RANGE) for enum values that are not known.
    """
    request = from_message(OPEN, OpenRequest, message, refuses=True)
    if opaque:
        return replace(request, answer_format=ImageFormat.OPAQUE)
    if request.answer_format is ImageFormat.OPAQUE:
        raise out_of_range("answer_format", "answer_format is not served")
    return request


def settings_change(message: settings_pb2.Settings) -> SettingsChange:
    """The fields that are present. Raises InvalidRequest for enum values that are not known."""
    return from_message(SETTINGS, SettingsChange, message, refuses=True)


def resumption(message: pb.Resume) -> Resumption:
    """What `resume` says."""
    return Resumption(
        message.session_id, message.resume_token, message.received_answers, message.unanswered_frame_indices
    )


def frame_in(message: pb.Frame, now: float) -> FrameIn | None:
    """The frame as it came; None if its format is not known."""
    format = IMAGE_FORMATS.member(message.format)
    if format is None:
        return None
    # One more than there may be, by which it is known that there are too many.
    given = message.controls[: MAX_CONTROLS + 1]
    controls = tuple(ControlIn(one.name, IMAGE_FORMATS.member(one.format), one.image) for one in given)
    return FrameIn(*_numbers(message), format, message.image, now, controls)


def frame_without_image(message: pb.Frame, now: float) -> FrameIn:
    """A frame that is dropped whatever it shows: its image, which may be large, is not copied."""
    return FrameIn(*_numbers(message), ImageFormat.OPAQUE, b"", now)


def _numbers(message: pb.Frame) -> tuple[int, tuple[int, int]]:
    offset = message.presentation_offset
    return message.frame_index, (offset.seconds, offset.nanos)


def opened_response(
    session: IngressSession, *, idle_timeout_s: float, resume_grace_s: float, heartbeat_s: float, advice: str
) -> pb.TranslateResponse:
    """`opened`, for a new or a resumed session."""
    cache = session.spec.cache
    opened = pb.Opened(
        session_id=session.spec.session_id,
        resume_token=session.resume_token,
        model=session.model,
        width=session.size.width,
        height=session.size.height,
        settings=to_message(SETTINGS, session.spec.sized(session.settings)),
        idle_timeout=duration(idle_timeout_s),
        resume_grace=duration(resume_grace_s),
        continuity=CONTINUITIES.number(session.past.told_moved()),
        received_frames=session.received,
        advice=advice,
        method=METHODS.number(method_of(session.spec)),
        temporal_cache=None if cache is None else to_message(TEMPORAL_CACHE, cache),
        warm_up_frames=session.intake.warm_up_frames,
        heartbeat=duration(heartbeat_s),
    )
    return pb.TranslateResponse(opened=opened, frame_credit=session.frame_credit)


def answer_response(session: IngressSession, answer: Answer) -> pb.TranslateResponse:
    """`frame` or `dropped`. One for each frame, so it is written in place: messages that a constructor takes
    are copied, with the picture in them.
    """
    response = pb.TranslateResponse(frame_credit=session.frame_credit)
    if isinstance(answer.outcome, DropReason):
        response.dropped.frame_index = answer.receipt.frame_index
        response.dropped.reason = DROP_REASONS.number(answer.outcome)
        _write_timings(response.dropped.timings, answer)
        return response
    frame, offset = response.frame, response.frame.presentation_offset
    frame.frame_index = answer.receipt.frame_index
    offset.seconds, offset.nanos = answer.receipt.presentation_offset
    frame.format = IMAGE_FORMATS.number(session.options.answer_format)
    frame.image = answer.outcome
    frame.width, frame.height = answer.receipt.size
    _write_timings(frame.timings, answer)
    return response


def control_response(
    session: IngressSession, control_id: int, advice: str, rejected: Reason | None
) -> pb.TranslateResponse:
    """`control_applied`."""
    applied = pb.ControlApplied(
        control_id=control_id,
        settings=to_message(SETTINGS, session.spec.sized(session.settings)),
        rejected_reason=REASONS.number(rejected),
        advice=advice,
        received_frames=session.received,
    )
    return pb.TranslateResponse(control_applied=applied, frame_credit=session.frame_credit)


def notice_response(
    session: IngressSession,
    kind: NoticeKind,
    grace_s: float,
    continuity: Continuity = Continuity.EXACT,
) -> pb.TranslateResponse:
    """`notice`."""
    notice = pb.Notice(
        kind=NOTICE_KINDS.number(kind),
        grace=duration(grace_s),
        continuity=CONTINUITIES.number(continuity),
    )
    return pb.TranslateResponse(notice=notice, frame_credit=session.frame_credit)


def resized_response(session: IngressSession, gap_frames: int) -> pb.TranslateResponse:
    """`notice` that goes before the first picture of another size."""
    response = notice_response(session, NoticeKind.RESIZED, 0.0)
    response.notice.gap_frames = gap_frames
    return response


def session_message(found: Found, model: str) -> session_service_pb2.Session:
    """A session as operators see it: without its prompt, and what a lease says where another ingress feeds
    it.
    """
    return _leased(found, model) if isinstance(found, Lease) else _fed(found)


def _leased(lease: Lease, model: str) -> session_service_pb2.Session:
    return session_service_pb2.Session(
        session_id=lease.session_id,
        tenant=lease.tenant,
        state=SESSION_STATES.number(SessionState.ELSEWHERE),
        model=model,
        open_time=_time(lease.open_time_s),
        lane=lease.lane,
        epoch=lease.epoch,
    )


def _fed(record: Record) -> session_service_pb2.Session:
    session = record.session
    settings = to_message(SETTINGS, session.settings)
    settings.ClearField("prompt")
    settings.ClearField("prompts")
    settings.ClearField("negative_prompt")
    state = SessionState.DETACHED if record.stream is None else SessionState.STREAMING
    return session_service_pb2.Session(
        session_id=session.spec.session_id,
        tenant=session.tenant.name,
        state=SESSION_STATES.number(state),
        model=session.model,
        width=session.size.width,
        height=session.size.height,
        settings=settings,
        open_time=_time(record.open_time_s),
        received_frames=session.received,
        translated_frames=session.book.translated,
        dropped_frames=session.book.dropped,
        lane=session.lane.replicas,
        epoch=session.lease.epoch,
    )


def _write_timings(timings: pb.Timings, answer: Answer) -> None:
    work, received_s = answer.work, answer.receipt.received_s
    started_s = answer.answered_s if work.started_s is None else work.started_s
    _write_elapsed(timings.total, answer.answered_s - received_s)
    _write_elapsed(timings.admission, started_s - received_s)
    _write_elapsed(timings.codec, work.codec_s)
    for timing in work.timings:
        span = timings.spans.add(span=timing.span)
        _write_elapsed(span.queue, timing.queue_s)
        _write_elapsed(span.compute, timing.compute_s)


def _time(seconds: float) -> timestamp_pb2.Timestamp:
    time = timestamp_pb2.Timestamp()
    time.FromMicroseconds(int(seconds * 1e6))
    return time


def _write_elapsed(field: duration_pb2.Duration, seconds: float) -> None:
    """Times of one frame are of several clocks' readings: none is shown as less than nothing."""
    write_duration(field, max(0.0, seconds))
