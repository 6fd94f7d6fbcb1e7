"""What the fake server makes of settings and frames: plain functions over `rearview.v1`."""

from __future__ import annotations

import numpy as np
import simplejpeg
from google.protobuf import duration_pb2
from rearview.errors import DropReason, Reason
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["changed", "duration", "first_settings", "invert", "refusal", "timings", "unusable"]


def first_settings(jpeg_quality: int) -> settings_pb2.Settings:
    """Every field present, as the service echoes them; what `Open` says of the quality goes into them."""
    return settings_pb2.Settings(
        prompt="invert",
        strength=0.5,
        steps=1,
        seed=0,
        noise_rule=settings_pb2.NOISE_RULE_FIXED,
        guidance=settings_pb2.GUIDANCE_NONE,
        guidance_scale=1.0,
        delta=1.0,
        negative_prompt="",
        blend_frames=0,
        adapters="",
        jpeg_quality=jpeg_quality or 85,
        reference=b"",
        reference_scale=1.0,
        reference_mask=b"",
    )


def refusal(change: settings_pb2.Settings) -> Reason | None:
    """Why a change of settings is refused."""
    if (change.prompts and change.HasField("prompt")) or (change.adapter_mix and change.HasField("adapters")):
        return Reason.SETTING_OUT_OF_RANGE
    return Reason.PROMPT_EMPTY if change.HasField("prompt") and not change.prompt.strip() else None


def changed(settings: settings_pb2.Settings, change: settings_pb2.Settings) -> settings_pb2.Settings:
    """`settings` with the fields that are present in `change`: what lists several of a kind and what names
    one replace each other.
    """
    result = settings_pb2.Settings()
    result.CopyFrom(settings)
    if change.prompts or change.HasField("prompt"):
        result.ClearField("prompts")
        result.prompt = ""
    if change.adapter_mix or change.HasField("adapters"):
        result.ClearField("adapter_mix")
        result.adapters = ""
    if change.timestep_indices or change.HasField("strength") or change.HasField("steps"):
        result.ClearField("timestep_indices")
    if change.HasField("controls"):
        result.ClearField("controls")
    result.MergeFrom(change)
    return result


def unusable(frame: pb.Frame, opened: pb.Open) -> DropReason | None:
    if not frame.image:
        return DropReason.IMAGE_EMPTY
    if frame.format != pb.IMAGE_FORMAT_JPEG:
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(frame.image)
    except ValueError:
        return DropReason.IMAGE_INVALID
    return None if (width, height) == (opened.width, opened.height) else DropReason.IMAGE_SIZE_MISMATCH


def invert(frame: pb.Frame, opened: pb.Open, jpeg_quality: int) -> bytes:
    if frame.format == pb.IMAGE_FORMAT_RGB:
        pixels = np.frombuffer(frame.image, np.uint8).reshape(opened.height, opened.width, 3)
    else:
        pixels = simplejpeg.decode_jpeg(frame.image, colorspace="RGB")
    inverted = np.ascontiguousarray(255 - pixels)
    if opened.answer_format == pb.IMAGE_FORMAT_RGB:
        return inverted.tobytes()
    data: bytes = simplejpeg.encode_jpeg(inverted, quality=jpeg_quality, colorspace="RGB")
    return data


def timings() -> pb.Timings:
    span = pb.SpanTiming(span="fused", queue=duration(0.001), compute=duration(0.004))
    return pb.Timings(total=duration(0.008), admission=duration(0.001), codec=duration(0.002), spans=[span])


def duration(seconds: float) -> duration_pb2.Duration:
    nanos = round(seconds * 1e9)
    return duration_pb2.Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)
