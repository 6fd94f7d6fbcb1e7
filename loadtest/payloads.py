"""What frames carry, and whether an answer's image can be its frame's."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["JpegFrames", "OpaquePayloads", "Payloads", "clip_frames", "clip_jpegs"]

_MARK = struct.Struct("<QQ")


class Payloads(Protocol):
    """The images of a run. Travels to generator processes."""

    @property
    def format(self) -> pb.ImageFormat.ValueType:
        """`Frame.format` of every frame, and the answers' format."""

    def image(self, stream: int, index: int) -> bytes:
        """The image of a frame."""

    def matches(self, stream: int, index: int, image: bytes) -> bool:
        """Whether `image` can be the answer to that frame."""


@dataclass(frozen=True)
class OpaquePayloads:
    """Bytes marked with stream and frame, for a model that returns what it gets."""

    num_bytes: int = 50_000

    @property
    def format(self) -> pb.ImageFormat.ValueType:
        return pb.IMAGE_FORMAT_OPAQUE

    def image(self, stream: int, index: int) -> bytes:
        return _MARK.pack(stream, index) + self._filler

    def matches(self, stream: int, index: int, image: bytes) -> bool:
        mark = _MARK.pack(stream, index)
        return image.startswith(mark) and len(image) == len(mark) + len(self._filler)

    @cached_property
    def _filler(self) -> bytes:
        # Bytes that do not compress, as those of a JPEG.
        return np.random.default_rng(0).bytes(max(0, self.num_bytes - _MARK.size))


@dataclass(frozen=True)
class JpegFrames:
    """A clip's frames as JPEG, over and over."""

    jpegs: Sequence[bytes] = field(repr=False)

    @property
    def format(self) -> pb.ImageFormat.ValueType:
        return pb.IMAGE_FORMAT_JPEG

    def image(self, stream: int, index: int) -> bytes:
        return self.jpegs[index % len(self.jpegs)]

    def matches(self, stream: int, index: int, image: bytes) -> bool:
        # Decoding every answer would load the cores that are being measured.
        return image.startswith(b"\xff\xd8") and image.endswith(b"\xff\xd9")


def clip_frames(path: Path, *, width: int, height: int, limit: int) -> list[NDArray[np.uint8]]:
    """The first `limit` frames of a video, RGB (height, width, 3). ValueError if it has none."""
    import av

    frames: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24", width=width, height=height))
            if len(frames) == limit:
                break
    if not frames:
        raise ValueError(f"{path} has no video frame")
    return frames


def clip_jpegs(frames: Sequence[NDArray[np.uint8]], quality: int = 85) -> list[bytes]:
    """Frames as baseline JPEG, 4:2:0."""
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, "RGB", "420") for frame in frames]
