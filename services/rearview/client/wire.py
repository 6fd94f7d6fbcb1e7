"""Between the client's dataclasses and `rearview.v1`. The only module that builds or reads messages.

An enum value that this client does not know (a newer server) becomes the nearest meaning that it does
know, never an exception: a stream must not break because a reason was added.
"""

from __future__ import annotations

from enum import Enum
from typing import TypedDict, TypeVar

import numpy as np
import simplejpeg
from google.protobuf import duration_pb2

from rearview.client.answers import (
    Continuity,
    ControlApplied,
    Dropped,
    DropPolicy,
    FeatureBank,
    Image,
    ImageFormat,
    Method,
    NoiseRule,
    Notice,
    NoticeKind,
    Opened,
    Settings,
    SpanTiming,
    Timings,
    Translated,
)
from rearview.errors import DropReason, Reason
from rearview.v1 import translation_service_pb2 as pb

__all__ = [
    "MAX_JPEG_BYTES",
    "OpenOptions",
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


class OpenOptions(TypedDict, total=False):
    """The keyword arguments of `Client.open`; all but the prompt may be left out."""

    prompt: str
    """The picture's description; the service refuses to open without one."""
    strength: float
    """How far the picture may leave the input, in (0, 1]. Default: the model's."""
    steps: int
    """Denoising steps. Default: the model's."""
    seed: int
    """Seed of the noise. Default 0."""
    noise_rule: NoiseRule
    """Default FIXED."""
    model: str
    """Default: the one that the server serves."""
    width: int
    """Pixels, a multiple of 8. Default: the model's."""
    height: int
    """Pixels, a multiple of 8. Default: the model's."""
    drop_policy: DropPolicy
    """Default LATEST, for live video; use LOSSLESS for files."""
    frame_budget_s: float
    """For DropPolicy.DEADLINE: the age at which a frame is worthless."""
    frame_rate: float
    """Frames per second that will be sent, for admission. Default 30."""
    answer_format: ImageFormat
    """Default JPEG."""
    jpeg_quality: int
    """Of the answers, 1 to 100. Default 85."""
    max_steps: int
    """The most steps that a control may ask for. Default: the model's."""
    method: Method
    """Default: the deployment's."""
    feature_bank: FeatureBank
    """For Method.STREAMV2V. Default: the deployment's."""
    answer_window: int
    """Answers held for a slow reader before the server is stopped. Default 32."""
    send_quality: int
    """JPEG quality of frames sent as arrays, 1 to 100; 0 sends raw RGB. Default 90."""


def open_request(options: OpenOptions, answer_credit: int) -> pb.TranslateRequest:
    message = pb.Open(
        model=options.get("model", ""),
        width=options.get("width", 0),
        height=options.get("height", 0),
        settings=_settings_message(
            Settings(
                prompt=options.get("prompt"),
                strength=options.get("strength"),
                steps=options.get("steps"),
                seed=options.get("seed"),
                noise_rule=options.get("noise_rule"),
            )
        ),
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
        message.feature_bank.CopyFrom(_bank_message(options["feature_bank"]))
    return pb.TranslateRequest(open=message)


def _bank_message(bank: FeatureBank) -> pb.FeatureBank:
    return pb.FeatureBank(
        policy=pb.FeatureBank.Policy.ValueType(bank.policy.value if bank.policy else 0),
        interval=bank.interval,
        phase=bank.phase,
        max_frames=bank.max_frames,
        fusion_strength=bank.fusion_strength,
        fusion_threshold=bank.fusion_threshold,
        prompt_change=pb.FeatureBank.PromptChange.ValueType(
            bank.prompt_change.value if bank.prompt_change else 0
        ),
    )


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
    return pb.TranslateRequest(
        control=pb.Control(control_id=control_id, settings=_settings_message(settings))
    )


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
        settings=_settings(message.settings),
        idle_timeout_s=_seconds(message.idle_timeout),
        resume_grace_s=_seconds(message.resume_grace),
        continuity=_enum(Continuity, message.continuity, Continuity.EXACT),
        advice=message.advice,
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
        settings=_settings(message.settings),
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


def _settings_message(settings: Settings) -> pb.Settings:
    message = pb.Settings()
    if settings.prompt is not None:
        message.prompt = settings.prompt
    if settings.strength is not None:
        message.strength = settings.strength
    if settings.steps is not None:
        message.steps = settings.steps
    if settings.seed is not None:
        message.seed = settings.seed
    if settings.noise_rule is not None:
        message.noise_rule = pb.NoiseRule.ValueType(settings.noise_rule.value)
    return message


def _settings(message: pb.Settings) -> Settings:
    return Settings(
        prompt=message.prompt if message.HasField("prompt") else None,
        strength=message.strength if message.HasField("strength") else None,
        steps=message.steps if message.HasField("steps") else None,
        seed=message.seed if message.HasField("seed") else None,
        noise_rule=_enum(NoiseRule, message.noise_rule, NoiseRule.FIXED),
    )


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
