"""Between the client's dataclasses and `rearview.v1`: the only module that builds or reads messages.

What both sides map the same way, settings and enums, is in the table (`rearview.schema`). An enum value that
this client does not know (a newer server) becomes the nearest meaning that it does know, never an exception:
a stream must not break because a reason was added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import simplejpeg

from rearview.client.answers import (
    ControlApplied,
    Dropped,
    Image,
    Notice,
    Opened,
    SpanTiming,
    Timings,
    Translated,
)
from rearview.client.options import OpenOptions, request_of
from rearview.contract.memories import CacheSettings
from rearview.contract.settings import Settings, SettingsChange
from rearview.contract.size import Size
from rearview.contract.stream import Continuity, ImageFormat, NoticeKind
from rearview.errors import DropReason, Reason, StreamEnded
from rearview.schema import duration, from_message, seconds, to_message
from rearview.schema.enums import (
    CONTINUITIES,
    DROP_REASONS,
    IMAGE_FORMATS,
    METHODS,
    NOTICE_KINDS,
    REASONS,
)
from rearview.schema.tables import OPEN, SETTINGS, TEMPORAL_CACHE
from rearview.v1 import translation_service_pb2 as pb

__all__ = [
    "MAX_JPEG_BYTES",
    "NO_CONTROLS",
    "Controls",
    "Encoded",
    "control_applied",
    "control_request",
    "credit_request",
    "dropped",
    "encode_frame",
    "encode_jpeg",
    "encoded",
    "frame_request",
    "not_restored",
    "notice",
    "open_request",
    "opened",
    "resume_request",
    "translated",
]

Controls: TypeAlias = Mapping[str, Image | bytes]
"""By name of a ControlNet, what it is shown of a frame."""
NO_CONTROLS: Controls = MappingProxyType({})
Encoded: TypeAlias = tuple[bytes, ImageFormat]
"""An image as it is sent."""
MAX_JPEG_BYTES = 1 << 20
"""The largest JPEG that the service takes."""


def open_request(options: OpenOptions, answer_credit: int) -> pb.TranslateRequest:
    return pb.TranslateRequest(open=to_message(OPEN, request_of(options, answer_credit)))


def resume_request(
    session: Opened, received_answers: int, answer_credit: int, unanswered: Sequence[int]
) -> pb.TranslateRequest:
    return pb.TranslateRequest(
        resume=pb.Resume(
            session_id=session.session_id,
            resume_token=session.resume_token,
            received_answers=received_answers,
            answer_credit=answer_credit,
            unanswered_frame_indices=unanswered,
        )
    )


def frame_request(
    index: int,
    presentation_s: float,
    image: Encoded,
    controls: Mapping[str, Encoded],
) -> pb.TranslateRequest:
    data, format = image
    request = pb.TranslateRequest(
        frame=pb.Frame(
            frame_index=index,
            presentation_offset=duration(presentation_s),
            format=IMAGE_FORMATS.number(format),
            image=data,
        )
    )
    for name, (shown, how) in controls.items():
        request.frame.controls.add(name=name, format=IMAGE_FORMATS.number(how), image=shown)
    return request


def control_request(control_id: int, change: SettingsChange) -> pb.TranslateRequest:
    settings = to_message(SETTINGS, change)
    return pb.TranslateRequest(control=pb.Control(control_id=control_id, settings=settings))


def credit_request(answer_credit: int, received_answers: int) -> pb.TranslateRequest:
    return pb.TranslateRequest(
        credit=pb.Credit(answer_credit=answer_credit, received_answers=received_answers)
    )


def encoded(image: Image | bytes, format: ImageFormat, size: Size, quality: int) -> Encoded:
    """A frame, or what a control is shown of it: bytes, which are in `format`, or as `encode_frame` does."""
    return (image, format) if isinstance(image, bytes) else encode_frame(image, size, quality)


def encode_frame(image: Image, size: Size, quality: int) -> Encoded:
    """A frame's bytes: JPEG, or raw RGB where `quality` is 0. Raises ValueError for one of another size."""
    shape = (size.height, size.width, 3)
    if image.shape != shape or image.dtype != np.uint8:
        raise ValueError(
            f"the next frame of this session must be uint8 {shape}, not {image.dtype} {image.shape}: open it"
            " with the width and height of your frames, say others by a control, or bring frames to these"
        )
    if quality == 0:
        return image.tobytes(), ImageFormat.RGB
    return encode_jpeg(image, quality), ImageFormat.JPEG


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
    cache = None
    if message.HasField("temporal_cache"):
        cache = from_message(TEMPORAL_CACHE, CacheSettings, message.temporal_cache, refuses=False)
    return Opened(
        session_id=message.session_id,
        resume_token=message.resume_token,
        model=message.model,
        width=message.width,
        height=message.height,
        settings=from_message(SETTINGS, Settings, message.settings, refuses=False),
        idle_timeout_s=seconds(message.idle_timeout),
        resume_grace_s=seconds(message.resume_grace),
        continuity=CONTINUITIES.member(message.continuity) or Continuity.EXACT,
        advice=message.advice,
        method=METHODS.member(message.method),
        temporal_cache=cache,
        warm_up_frames=max(1, message.warm_up_frames),
    )


def translated(message: pb.TranslatedFrame, session: Opened, round_trip_s: float) -> Translated:
    return Translated(
        frame_index=message.frame_index,
        presentation_s=seconds(message.presentation_offset),
        format=IMAGE_FORMATS.member(message.format) or ImageFormat.JPEG,
        data=message.image,
        width=message.width or session.width,
        height=message.height or session.height,
        timings=_timings(message.timings),
        round_trip_s=round_trip_s,
    )


def dropped(message: pb.Dropped, round_trip_s: float) -> Dropped:
    return Dropped(
        frame_index=message.frame_index,
        reason=DROP_REASONS.member(message.reason) or DropReason.FAULT,
        timings=_timings(message.timings),
        round_trip_s=round_trip_s,
    )


def control_applied(message: pb.ControlApplied, received_frames: int) -> ControlApplied:
    is_rejected = message.rejected_reason != 0
    return ControlApplied(
        control_id=message.control_id,
        settings=from_message(SETTINGS, Settings, message.settings, refuses=False),
        rejected_reason=REASONS.member(message.rejected_reason) or Reason.INTERNAL if is_rejected else None,
        advice=message.advice,
        received_frames=received_frames,
    )


def not_restored(message: pb.ControlApplied) -> StreamEnded:
    """The end of a session whose frames would be sent again under other settings than they were sent under.
    The server's reason: a larger size may be more than its tenant's quota has left by now.
    """
    why = f"after a reconnection the session's former settings were refused: {message.advice}"
    return StreamEnded(REASONS.member(message.rejected_reason) or Reason.INTERNAL, why)


def notice(message: pb.Notice) -> Notice | None:
    """None for a kind that is not for the user, or that this client does not know."""
    kind = NOTICE_KINDS.member(message.kind)
    if kind is None or kind is NoticeKind.CREDIT:
        return None
    continuity = CONTINUITIES.member(message.continuity) or Continuity.RESET if message.continuity else None
    return Notice(kind, seconds(message.grace), continuity, message.gap_frames)


def _timings(message: pb.Timings) -> Timings:
    spans = tuple(
        SpanTiming(entry.span, seconds(entry.queue), seconds(entry.compute)) for entry in message.spans
    )
    return Timings(seconds(message.total), seconds(message.admission), seconds(message.codec), spans)
