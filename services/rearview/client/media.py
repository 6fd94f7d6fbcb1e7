"""Where frames come from: a video file, a folder of images, or a camera; all as `Picture`s of one size.

Presentation times are kept as the file has them (`pts` in units of `time_base`), counted from the start of
the container, so that a variable frame rate survives and the audio track stays in step.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import av.error
import numpy as np

from rearview.client.answers import Image

__all__ = [
    "CameraSource",
    "Fit",
    "FolderSource",
    "MediaError",
    "Picture",
    "Source",
    "VideoSource",
    "fit_frame",
    "open_source",
    "read_image",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
DEFAULT_RATE = Fraction(30)
"""Frames per second where the source does not say."""

_CAMERAS = {
    "linux": ("v4l2", "/dev/video0"),
    "darwin": ("avfoundation", "0"),
    "win32": ("dshow", "video=Integrated Camera"),
}


class MediaError(Exception):
    """A source that cannot be read or an output that cannot be written; the text is for the user."""


class Fit(Enum):
    """How a picture of another shape is brought to the session's size."""

    CROP = "crop"
    """Scaled to cover, the rest cut off evenly."""
    STRETCH = "stretch"
    """Scaled to the size, whatever its shape."""
    PAD = "pad"
    """Scaled to fit inside, black around it."""


@dataclass(frozen=True)
class Picture:
    """One frame of the source."""

    image: Image
    pts: int
    """Presentation time from the start of the source, in `time_base`."""
    time_base: Fraction
    duration: int = 0
    """In `time_base`; 0 if unknown."""

    @property
    def presentation_s(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)


class Source(Protocol):
    """Something that gives pictures. `pictures` may be iterated once."""

    name: str
    frame_rate: Fraction
    """Mean frames per second; a variable rate shows in the pictures' times."""
    time_base: Fraction
    num_frames: int | None
    """None if it is not known or has no end."""
    audio_path: Path | None
    """The file whose audio track belongs to the pictures."""
    is_live: bool

    def pictures(self, width: int, height: int, fit: Fit) -> Iterator[Picture]:
        """The pictures, each (height, width, 3). Raises MediaError."""
        ...


class VideoSource:
    """Any file that PyAV reads. A damaged end costs the pictures in it, not those before."""

    is_live = False

    def __init__(self, path: Path) -> None:
        """Raises MediaError if it cannot be opened or has no video."""
        self.name, self._path = path.name, path
        with _opened(path) as container:
            stream = _video_stream(container, path)
            self.frame_rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
            self.time_base = Fraction(stream.time_base)
            self._aspect = Fraction(stream.sample_aspect_ratio or 1)
            self.num_frames: int | None = stream.frames or _estimated_frames(container, self.frame_rate)
            self.audio_path = path if container.streams.audio else None

    def pictures(self, width: int, height: int, fit: Fit) -> Iterator[Picture]:
        with _opened(self._path) as container:
            stream = _video_stream(container, self._path)
            stream.thread_type = "AUTO"
            start = round(Fraction(container.start_time or 0, 1_000_000) / self.time_base)
            step = max(1, round(1 / (self.frame_rate * self.time_base)))
            last = -1
            for frame in _decoded(container, stream):
                pts = last + step if frame.pts is None else frame.pts - start
                last = max(pts, last + 1)
                image = fit_frame(frame, width, height, fit, self._aspect)
                yield Picture(image, last, self.time_base, frame.duration or 0)
        if last < 0:
            raise MediaError(f"{self._path}: no picture can be read")


class FolderSource:
    """The images of a folder, in the natural order of their names (frame-2 before frame-10)."""

    is_live = False
    audio_path: Path | None = None

    def __init__(self, path: Path, frame_rate: Fraction = DEFAULT_RATE) -> None:
        """Raises MediaError if there is no image."""
        self.name, self.frame_rate, self.time_base = path.name, frame_rate, 1 / frame_rate
        self._paths = sorted(
            (item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES), key=_natural
        )
        if not self._paths:
            raise MediaError(f"{path}: no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.num_frames: int | None = len(self._paths)

    def pictures(self, width: int, height: int, fit: Fit) -> Iterator[Picture]:
        for number, path in enumerate(self._paths):
            yield Picture(fit_frame(read_image(path), width, height, fit), number, self.time_base, 1)


class CameraSource:
    """A camera: always its newest picture. A thread reads, and what nobody took in time is gone."""

    is_live = True
    audio_path: Path | None = None
    num_frames: int | None = None
    time_base = Fraction(1, 90_000)

    def __init__(self, device: str | None = None, frame_rate: Fraction = DEFAULT_RATE) -> None:
        """`device`: default the first one. Raises MediaError if there is no camera."""
        format, default = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
        self.name, self.frame_rate = device or default, frame_rate
        options = {"framerate": str(round(frame_rate))}
        self._container = _open(self.name, f"camera {self.name}", format=format, options=options)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Let `pictures` end after the present one."""
        self._stop.set()

    def pictures(self, width: int, height: int, fit: Fit) -> Iterator[Picture]:
        newest = _Newest()
        reader = threading.Thread(target=self._read, args=(newest,), name="rearview-camera", daemon=True)
        reader.start()
        start_s: float | None = None
        try:
            while not self._stop.is_set() and (frame := newest.take()) is not None:
                start_s = frame.time if start_s is None else start_s
                pts = round((frame.time - start_s) / self.time_base)
                yield Picture(fit_frame(frame, width, height, fit), pts, self.time_base)
        finally:
            self._stop.set()
            reader.join(timeout=2.0)
            self._container.close()

    def _read(self, newest: _Newest) -> None:
        with contextlib.suppress(av.error.FFmpegError):
            for frame in self._container.decode(self._container.streams.video[0]):
                newest.put(frame)
                if self._stop.is_set():
                    break
        newest.put(None)


class _Newest:
    """A place for one frame; a newer one replaces it. None is the end, and stays."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: Any = None
        self._is_full = False

    def put(self, frame: Any) -> None:
        with self._changed:
            self._frame, self._is_full = frame, True
            self._changed.notify()

    def take(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._is_full)
            self._is_full = self._frame is None
            return self._frame


def open_source(name: str, *, device: str | None = None, frame_rate: Fraction | None = None) -> Source:
    """The source for `name`: "-" is the camera, a folder its images, anything else a video file.

    `frame_rate` is for folders and cameras. Raises MediaError.
    """
    rate = frame_rate or DEFAULT_RATE
    if name == "-":
        return CameraSource(device, rate)
    path = Path(name)
    if path.is_dir():
        return FolderSource(path, rate)
    if not path.exists():
        raise MediaError(f"{name}: no such file or folder")
    return VideoSource(path)


def read_image(path: Path) -> Any:
    """The first frame (`av.VideoFrame`) of an image file. Raises MediaError."""
    with _opened(path) as container:
        frame = next(_decoded(container, _video_stream(container, path)), None)
    if frame is None:
        raise MediaError(f"{path}: not an image that can be read")
    return frame


def fit_frame(frame: Any, width: int, height: int, fit: Fit, aspect: Fraction = Fraction(1)) -> Image:
    """Bring an `av.VideoFrame` to (height, width, 3) RGB, upright. `aspect`: its pixels' width to height."""
    quarter_turns = round(frame.rotation / 90) % 4
    flat = (height, width) if quarter_turns % 2 else (width, height)
    return np.ascontiguousarray(np.rot90(_fit_flat(frame, *flat, fit, aspect), quarter_turns))


def fitted_size(
    source: tuple[int, int], target: tuple[int, int], aspect: Fraction, fit: Fit
) -> tuple[int, int]:
    """The size to scale to before cropping or padding. `aspect` is that of the source's pixels."""
    if fit is Fit.STRETCH:
        return target
    scales = (Fraction(target[0]) / (source[0] * aspect), Fraction(target[1], source[1]))
    scale = max(scales) if fit is Fit.CROP else min(scales)
    return max(1, round(source[0] * aspect * scale)), max(1, round(source[1] * scale))


def _fit_flat(frame: Any, width: int, height: int, fit: Fit, aspect: Fraction) -> Image:
    scaled_width, scaled_height = fitted_size((frame.width, frame.height), (width, height), aspect, fit)
    scaled: Image = frame.to_ndarray(
        format="rgb24", width=scaled_width, height=scaled_height, interpolation="BICUBIC"
    )
    if (scaled_width, scaled_height) == (width, height):
        return scaled
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    if fit is Fit.CROP:
        return scaled[top : top + height, left : left + width]
    padded = np.zeros((height, width, 3), np.uint8)
    padded[-top : -top + scaled_height, -left : -left + scaled_width] = scaled
    return padded


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _open(file: str, name: str, **options: Any) -> Any:
    try:
        return av.open(file, **options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{name}: cannot be opened: {reason}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with _open(str(path), str(path)) as container:
        yield container


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise MediaError(f"{path}: has no video")
    return container.streams.video[0]


def _estimated_frames(container: Any, frame_rate: Fraction) -> int | None:
    if not container.duration:
        return None
    return max(1, round(Fraction(container.duration, 1_000_000) * frame_rate))


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """All frames, those at the end included; a damaged packet costs only itself."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        except av.error.EOFError:
            return
        yield from frames
