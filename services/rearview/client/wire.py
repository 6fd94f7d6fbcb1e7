"""Between the client's dataclasses and `rearview.v1`. With `wire_settings`, the
only module that builds or reads messages.

An enum value that this client does not know (a newer server) becomes the nearest meaning that it does
know, never an exception: a stream must not break because a reason was added.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

import numpy as np
import simplejpeg
from google.protobuf import duration_pb2

from rearview.client.answers import (
    Continuity,
    ControlApplied,
    Dropped,
    Image,
    ImageFormat,
    Notice,
    NoticeKind,
    Opened,
    SpanTiming,
    Timings,
    Translated,
)
from rearview.client.options import OpenOptions, settings_of
from rearview.client.settings import DropPolicy, Method, Settings
from rearview.client.wire_settings import (
    bank_message,
    cache_from,
    cache_message,
    settings_from,
    settings_message,
    similarity_message,
)
from rearview.errors import DropReason, Reason
from rearview.v1 import translation_service_pb2 as pb

__all__ = [
    "MAX_JPEG_BYTES",
    "control_applied",
    "control_request",
    "credit_request",
    "dropped",
    "encode_jpeg",
    "frame_request",
    "notice",
    "open_request",
    "opened",
    "resume_request",
    "translated",
]

MAX_JPEG_BYTES = 1 << 20
"""The largest JPEG that the service takes."""


def open_request(options: OpenOptions, answer_credit: int) -> pb.TranslateRequest:
    message = pb.Open(
        model=options.get("model", ""),
        width=options.get("width", 0),
        height=options.get("height", 0),
        settings=settings_message(settings_of(options)),
        drop_policy=pb.DropPolicy.ValueType(options.get("drop_policy", DropPolicy.LATEST).value),
        frame_rate=options.get("frame_rate", 30.0),
        answer_format=pb.ImageFormat.ValueType(options.get("answer_format", ImageFormat.JPEG).value),
        jpeg_quality=options.get("jpeg_quality", 85),
        max_steps=options.get("max_steps", 0),
        answer_credit=answer_credit,
    )
    if "frame_budget_s" in options:
        message.frame_budget.CopyFrom(_duration(options["frame_budget_s"]))
    if "method" in options:
        message.method = pb.Method.ValueType(options["method"].value)
    if "feature_bank" in options:
        message.feature_bank.CopyFrom(bank_message(options["feature_bank"]))
    if "temporal_cache" in options:
        message.temporal_cache.CopyFrom(cache_message(options["temporal_cache"]))
    if "similarity_filter" in options:
        message.similarity_filter.CopyFrom(similarity_message(options["similarity_filter"]))
    return pb.TranslateRequest(open=message)


def resume_request(
    session_id: str, resume_token: str, received_answers: int, answer_credit: int
) -> pb.TranslateRequest:
    return pb.TranslateRequest(
        resume=pb.Resume(
            session_id=session_id,
            resume_token=resume_token,
            received_answers=received_answers,
            answer_credit=answer_credit,
        )
    )


def frame_request(
    index: int, presentation_s: float, image: bytes, format: ImageFormat
) -> pb.TranslateRequest:
    return pb.TranslateRequest(
        frame=pb.Frame(
            frame_index=index,
            presentation_offset=_duration(presentation_s),
            format=pb.ImageFormat.ValueType(format.value),
            image=image,
        )
    )


def control_request(control_id: int, settings: Settings) -> pb.TranslateRequest:
    return pb.TranslateRequest(control=pb.Control(control_id=control_id, settings=settings_message(settings)))


def credit_request(answer_credit: int, received_answers: int) -> pb.TranslateRequest:
    return pb.TranslateRequest(
        credit=pb.Credit(answer_credit=answer_credit, received_answers=received_answers)
    )


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode (height, width, 3) uint8 as baseline JPEG of at most 1 MiB, at `quality` or the next below."""
    pixels = np.ascontiguousarray(image)
    while True:
        data: bytes = simplejpeg.encode_jpeg(
            pixels, quality=quality, colorspace="RGB", colorsubsampling="420"
        )
        if len(data) <= MAX_JPEG_BYTES or quality <= 10:
            return data
        quality -= 10


def opened(message: pb.Opened) -> Opened:
    return Opened(
        session_id=message.session_id,
        resume_token=message.resume_token,
        model=message.model,
        width=message.width,
        height=message.height,
        settings=settings_from(message.settings),
        idle_timeout_s=_seconds(message.idle_timeout),
        resume_grace_s=_seconds(message.resume_grace),
        continuity=_enum(Continuity, message.continuity, Continuity.EXACT),
        advice=message.advice,
        method=_method(message.method),
        temporal_cache=cache_from(message.temporal_cache) if message.HasField("temporal_cache") else None,
        warm_up_frames=max(1, message.warm_up_frames),
    )


def translated(message: pb.TranslatedFrame, session: Opened, round_trip_s: float) -> Translated:
    return Translated(
        frame_index=message.frame_index,
        presentation_s=_seconds(message.presentation_offset),
        format=_enum(ImageFormat, message.format, ImageFormat.JPEG),
        data=message.image,
        width=session.width,
        height=session.height,
        timings=_timings(message.timings),
        round_trip_s=round_trip_s,
    )


def dropped(message: pb.Dropped, round_trip_s: float) -> Dropped:
    return Dropped(
        frame_index=message.frame_index,
        reason=_enum(DropReason, message.reason, DropReason.FAULT),
        timings=_timings(message.timings),
        round_trip_s=round_trip_s,
    )


def control_applied(message: pb.ControlApplied, received_frames: int) -> ControlApplied:
    rejected = _enum(Reason, message.rejected_reason, Reason.INTERNAL) if message.rejected_reason else None
    return ControlApplied(
        control_id=message.control_id,
        settings=settings_from(message.settings),
        rejected_reason=rejected,
        advice=message.advice,
        received_frames=received_frames,
    )


def notice(message: pb.Notice) -> Notice | None:
    """None for a kind that this client does not know."""
    if message.kind not in (NoticeKind.DRAIN.value, NoticeKind.MOVED.value):
        return None
    continuity = _enum(Continuity, message.continuity, Continuity.RESET) if message.continuity else None
    return Notice(NoticeKind(message.kind), _seconds(message.grace), continuity)


_E = TypeVar("_E", bound=Enum)


def _enum(kind: type[_E], value: int, unknown: _E) -> _E:
    try:
        return kind(value)
    except ValueError:
        return unknown


def _method(value: int) -> Method | None:
    return Method(value) if value in {method.value for method in Method} else None


def _timings(message: pb.Timings) -> Timings:
    spans = tuple(
        SpanTiming(entry.span, _seconds(entry.queue), _seconds(entry.compute)) for entry in message.spans
    )
    return Timings(_seconds(message.total), _seconds(message.admission), _seconds(message.codec), spans)


def _duration(seconds: float) -> duration_pb2.Duration:
    nanos = round(seconds * 1e9)
    sign = -1 if nanos < 0 else 1
    whole, rest = divmod(abs(nanos), 1_000_000_000)
    return duration_pb2.Duration(seconds=sign * whole, nanos=sign * rest)


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
