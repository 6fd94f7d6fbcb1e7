"""Between `rearview.v1` and our own types: the only module that reads requests and builds responses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2

from rearview.contract.memories import BankPolicy, PromptChange, Rewarm
from rearview.contract.settings import Guidance, NoiseRule, Settings, SettingsChange, WeightedPrompt
from rearview.control.methods import Method, method_of
from rearview.errors import DropReason, InvalidRequest, Reason
from rearview.ingress.image_gate import ImageKind
from rearview.ingress.pacing import DropPolicy
from rearview.ingress.service import OpenRequest, Record
from rearview.ingress.session import Answer, FrameIn, IngressSession, SessionOptions
from rearview.ingress.similarity import SimilaritySettings
from rearview.ingress.warmup import CacheOptions
from rearview.v1 import session_service_pb2, translation_service_pb2
from rearview.v1.error_reason_pb2 import DropReason as DropReasonProto
from rearview.v1.error_reason_pb2 import ErrorReason

__all__ = [
    "answer_response",
    "control_response",
    "frame_in",
    "notice_response",
    "open_request",
    "opened_response",
    "session_message",
    "settings_change",
]

pb = translation_service_pb2

DEFAULT_BUDGET_S = 0.5
_BANK_POLICIES: Mapping[int, BankPolicy] = {
    pb.FeatureBank.POLICY_MERGE: BankPolicy.MERGE,
    pb.FeatureBank.POLICY_QUEUE: BankPolicy.QUEUE,
}
_PROMPT_CHANGES: Mapping[int, PromptChange] = {
    pb.FeatureBank.PROMPT_CHANGE_KEEP: PromptChange.KEEP,
    pb.FeatureBank.PROMPT_CHANGE_CLEAR: PromptChange.CLEAR,
    pb.FeatureBank.PROMPT_CHANGE_FADE: PromptChange.FADE,
}
_REWARMS: Mapping[int, Rewarm] = {
    pb.TemporalCache.REWARM_RESET: Rewarm.RESET,
    pb.TemporalCache.REWARM_SHADOW: Rewarm.SHADOW,
    pb.TemporalCache.REWARM_KEEP: Rewarm.KEEP,
}
DEFAULT_FRAME_RATE = 30.0
DEFAULT_JPEG_QUALITY = 85


def open_request(message: pb.Open, *, opaque: bool) -> OpenRequest:
    """What `open` asks for. Raises InvalidRequest for enum values that are not known."""
    budget = message.frame_budget
    policy = DropPolicy(_known("drop_policy", message.drop_policy or DropPolicy.LATEST.value, DropPolicy))
    answer_format = ImageKind(
        _known("answer_format", message.answer_format or ImageKind.JPEG.value, ImageKind)
    )
    options = SessionOptions(
        policy=policy,
        frame_budget_s=budget.seconds + budget.nanos * 1e-9
        if message.HasField("frame_budget")
        else DEFAULT_BUDGET_S,
        answer_format=ImageKind.OPAQUE if opaque else answer_format,
        jpeg_quality=message.jpeg_quality or DEFAULT_JPEG_QUALITY,
        similarity=_similarity(message.similarity_filter) if message.HasField("similarity_filter") else None,
        cache=_cache_options(message.temporal_cache),
    )
    if answer_format is ImageKind.OPAQUE and not opaque:
        raise _out_of_range("answer_format")
    return OpenRequest(
        model=message.model,
        width=message.width,
        height=message.height,
        change=settings_change(message.settings),
        policy=policy,
        frame_rate=message.frame_rate or DEFAULT_FRAME_RATE,
        options=options,
        max_steps=message.max_steps,
        method=Method(_known("method", message.method, Method)) if message.method else None,
        bank=_bank_overrides(message.feature_bank) if message.HasField("feature_bank") else None,
        cache=_cache_overrides(message.temporal_cache),
    )


def _bank_overrides(message: pb.FeatureBank) -> dict[str, Any]:
    """The fields of a feature bank that the client has set."""
    overrides: dict[str, Any] = {
        name: getattr(message, name)
        for name in ("interval", "phase", "max_frames", "fusion_strength", "fusion_threshold")
        if message.HasField(name)
    }
    for name in ("fusion_strength", "fusion_threshold"):
        if name in overrides:
            overrides[name] = _float32(overrides[name])
    if message.policy:
        overrides["policy"] = _BANK_POLICIES[_known("feature_bank.policy", message.policy, _BANK_POLICIES)]
    if message.prompt_change:
        change = _known("feature_bank.prompt_change", message.prompt_change, _PROMPT_CHANGES)
        overrides["prompt_change"] = _PROMPT_CHANGES[change]
    return overrides


def _cache_overrides(message: pb.TemporalCache) -> dict[str, Rewarm]:
    """The fields of a temporal cache that the client has set, of those that the engine is told."""
    return {
        name: _REWARMS[_known(f"temporal_cache.{name}", value, _REWARMS)]
        for name in ("prompt_change", "scene_cut")
        if (value := getattr(message, name))
    }


def _cache_options(message: pb.TemporalCache) -> CacheOptions:
    given = {
        name: getattr(message, name)
        for name in ("scene_detection", "instant_start")
        if message.HasField(name)
    }
    return CacheOptions(**given)


def _similarity(message: pb.SimilarityFilter) -> SimilaritySettings:
    given: dict[str, Any] = {}
    if message.HasField("threshold"):
        given["threshold"] = _float32(message.threshold)
    if message.HasField("max_skip_frames"):
        given["max_skip_frames"] = message.max_skip_frames
    return SimilaritySettings(**given)


def settings_change(message: pb.Settings) -> SettingsChange:
    """The fields that are present. Raises InvalidRequest for enum values that are not known."""
    rule = message.noise_rule if message.HasField("noise_rule") else None
    mixed = tuple(WeightedPrompt(one.prompt, _float32(one.weight)) for one in message.prompts)
    return SettingsChange(
        prompt=message.prompt if message.HasField("prompt") else None,
        strength=_float32(message.strength) if message.HasField("strength") else None,
        steps=message.steps if message.HasField("steps") else None,
        seed=message.seed if message.HasField("seed") else None,
        noise_rule=None if not rule else NoiseRule(_known("noise_rule", rule, NoiseRule)),
        guidance=Guidance(_known("guidance", message.guidance, Guidance)) if message.guidance else None,
        guidance_scale=_float32(message.guidance_scale) if message.HasField("guidance_scale") else None,
        delta=_float32(message.delta) if message.HasField("delta") else None,
        negative_prompt=message.negative_prompt if message.HasField("negative_prompt") else None,
        prompts=mixed or None,
        blend_frames=message.blend_frames if message.HasField("blend_frames") else None,
        adapters=message.adapters if message.HasField("adapters") else None,
    )


def frame_in(message: pb.Frame, now: float) -> FrameIn | None:
    """The frame as it came; None if its format is not known."""
    if message.format not in {kind.value for kind in ImageKind}:
        return None
    offset = (message.presentation_offset.seconds, message.presentation_offset.nanos)
    return FrameIn(message.frame_index, offset, ImageKind(message.format), message.image, now)


def opened_response(
    session: IngressSession, *, idle_timeout_s: float, resume_grace_s: float, advice: str
) -> pb.TranslateResponse:
    """`opened`, for a new or a resumed session."""
    opened = pb.Opened(
        session_id=session.spec.session_id,
        resume_token=session.resume_token,
        model=session.model,
        width=session.spec.width,
        height=session.spec.height,
        settings=_settings(session.settings),
        idle_timeout=_duration(idle_timeout_s),
        resume_grace=_duration(resume_grace_s),
        continuity=pb.CONTINUITY_EXACT,
        received_frames=session.received,
        advice=advice,
        method=pb.Method.ValueType(method_of(session.spec).value),
        temporal_cache=_temporal_cache(session),
        warm_up_frames=session.warm_up_frames,
    )
    return pb.TranslateResponse(opened=opened, frame_credit=session.frame_credit)


def answer_response(session: IngressSession, answer: Answer) -> pb.TranslateResponse:
    """`frame` or `dropped`."""
    timings = _timings(answer)
    credit = session.frame_credit
    if isinstance(answer.outcome, DropReason):
        dropped = pb.Dropped(
            frame_index=answer.frame_index,
            reason=DropReasonProto.ValueType(answer.outcome.value),
            timings=timings,
        )
        return pb.TranslateResponse(dropped=dropped, frame_credit=credit)
    assert answer.outcome is not None, "an answer without an outcome was released"
    seconds, nanos = answer.presentation_offset
    frame = pb.TranslatedFrame(
        frame_index=answer.frame_index,
        presentation_offset=duration_pb2.Duration(seconds=seconds, nanos=nanos),
        format=pb.ImageFormat.ValueType(session.options.answer_format.value),
        image=answer.outcome,
        timings=timings,
    )
    return pb.TranslateResponse(frame=frame, frame_credit=credit)


def control_response(
    session: IngressSession, control_id: int, advice: str, rejected: Reason | None
) -> pb.TranslateResponse:
    """`control_applied`."""
    applied = pb.ControlApplied(
        control_id=control_id,
        settings=_settings(session.settings),
        rejected_reason=ErrorReason.ValueType(rejected.value if rejected else 0),
        advice=advice,
        received_frames=session.received,
    )
    return pb.TranslateResponse(control_applied=applied, frame_credit=session.frame_credit)


def notice_response(
    session: IngressSession, kind: pb.Notice.Kind.ValueType, grace_s: float
) -> pb.TranslateResponse:
    """`notice`."""
    notice = pb.Notice(kind=kind, grace=_duration(grace_s), continuity=pb.CONTINUITY_EXACT)
    return pb.TranslateResponse(notice=notice, frame_credit=session.frame_credit)


def session_message(record: Record) -> session_service_pb2.Session:
    """A session as operators see it: without its prompt."""
    session = record.session
    settings = _settings(session.settings)
    settings.ClearField("prompt")
    settings.ClearField("prompts")
    settings.ClearField("negative_prompt")
    states = session_service_pb2.Session.State
    opened = timestamp_pb2.Timestamp()
    opened.FromMicroseconds(int(record.open_time_s * 1e6))
    return session_service_pb2.Session(
        session_id=session.spec.session_id,
        tenant=session.tenant.name,
        state=states.STATE_DETACHED if record.stream is None else states.STATE_STREAMING,
        model=session.model,
        width=session.spec.width,
        height=session.spec.height,
        settings=settings,
        open_time=opened,
        received_frames=session.received,
        translated_frames=session.translated,
        dropped_frames=session.dropped,
        lane=session.lane.replicas,
        epoch=session.lease.epoch,
    )


def _settings(settings: Settings) -> pb.Settings:
    return pb.Settings(
        prompt=settings.prompt,
        strength=settings.strength,
        steps=settings.steps,
        seed=settings.seed,
        noise_rule=pb.NoiseRule.ValueType(settings.noise_rule.value),
        guidance=pb.Guidance.ValueType(settings.guidance.value),
        guidance_scale=settings.guidance_scale,
        delta=settings.delta,
        negative_prompt=settings.negative_prompt,
        prompts=[pb.WeightedPrompt(prompt=one.prompt, weight=one.weight) for one in settings.prompts],
        blend_frames=settings.blend_frames,
        adapters=settings.adapters,
    )


def _temporal_cache(session: IngressSession) -> pb.TemporalCache | None:
    cache, options = session.spec.cache, session.options.cache
    if cache is None:
        return None
    numbers = {rewarm: pb.TemporalCache.Rewarm.ValueType(number) for number, rewarm in _REWARMS.items()}
    return pb.TemporalCache(
        prompt_change=numbers[cache.prompt_change],
        scene_cut=numbers[cache.scene_cut],
        scene_detection=options.scene_detection,
        instant_start=options.instant_start,
    )


def _timings(answer: Answer) -> pb.Timings:
    started_s = answer.started_s or answer.answered_s
    return pb.Timings(
        total=_duration(answer.answered_s - answer.received_s),
        admission=_duration(started_s - answer.received_s),
        codec=_duration(answer.codec_s),
        spans=[
            pb.SpanTiming(
                span=timing.span, queue=_duration(timing.queue_s), compute=_duration(timing.compute_s)
            )
            for timing in answer.timings
        ],
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromTimedelta(timedelta(seconds=max(0.0, seconds)))
    return duration


def _float32(value: float) -> float:
    """The decimal that the client wrote: 0.4 travels as 0.4000000059…, and floors would show it."""
    return round(value, 6)


def _known(field: str, value: int, values: type[Enum] | Mapping[int, Enum]) -> int:
    known = values if isinstance(values, Mapping) else {item.value for item in values}
    if value not in known:
        raise _out_of_range(field)
    return value


def _out_of_range(field: str) -> InvalidRequest:
    return InvalidRequest(Reason.SETTING_OUT_OF_RANGE, f"{field} is not served", metadata={"field": field})
