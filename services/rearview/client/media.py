"""Where frames come from: a video, an image or a folder of them, a camera, an address; all as `Picture`s.

Presentation times are kept as the file has them (`pts` in units of `time_base`), counted from the start of
the container, so that a variable frame rate survives and the audio track stays in step.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error

from rearview.client.fitting import Fit, fit_frame, fitted_size, upright_size
from rearview.client.live import LiveSource
from rearview.client.pictures import (
    MediaError,
    Picture,
    Source,
    open_container,
    scheme_of,
    without_secrets,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "Fit",
    "ImagesSource",
    "LiveSource",
    "MediaError",
    "Picture",
    "Source",
    "VideoSource",
    "fit_frame",
    "fitted_size",
    "open_source",
    "read_image",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
DEFAULT_RATE = Fraction(30)
"""Frames per second where the source does not say."""
FILE_SCHEMES = ("http", "https")
"""What is read there may be a file: it has a length."""
LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "tcp", "srt", "rtp")


class VideoSource:
    """A file or an address that PyAV reads. A damaged end costs the pictures in it, not those before."""

    is_live = False

    def __init__(self, place: Path | str) -> None:
        """Raises MediaError if it cannot be opened, has no video, or no picture can be read."""
        self.name = without_secrets(place) if isinstance(place, str) else place.name
        self.paths: tuple[Path, ...] = () if isinstance(place, str) else (place,)
        self._place = place
        with _opened(place) as container:
            stream = _video_stream(container, place)
            self.frame_rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
            self.time_base = Fraction(stream.time_base)
            self._aspect = Fraction(stream.sample_aspect_ratio or 1)
            self.num_frames: int | None = stream.frames or _estimated_frames(container, self.frame_rate)
            self.audio_path = str(place) if container.streams.audio else None
            first = next(_decoded(container, stream, place), None)
        if first is None:
            raise MediaError(f"{_shown(place)}: no picture can be read")
        self.size = upright_size(first, self._aspect)

    def pictures(self, width: int, height: int, fit: Fit) -> Iterator[Picture]:
        """See `Source`."""
        with _opened(self._place) as container:
            stream = _video_stream(container, self._place)
            stream.thread_type = "AUTO"
            start = round(Fraction(container.start_time or 0, 1_000_000) / self.time_base)
            step = max(1, round(1 / (self.frame_rate * self.time_base)))
            last = -1
            for frame in _decoded(container, stream, self._place):
                pts = last + step if frame.pts is None else frame.pts - start
                last = max(pts, last + 1)
                image = fit_frame(frame, width, height, fit, self._aspect)
                yield Picture(image, last, self.time_base, frame.duration or 0)


class ImagesSource:
    """Images, one after another, at a frame rate of their own."""

    is_live = False
    audio_path: str | None = None

    def __init__(self, name: str, paths: Sequence[Path], frame_rate: Fraction = DEFAULT_RATE) -> None:
        """Raises MediaError if the first one cannot be read."""
        self.name, self.paths = name, tuple(paths)
        self.frame_rate, self.time_base = frame_rate, 1 / frame_rate
        self.num_frames: int | None = len(self.paths)
        self.size = upright_size(read_image(self.paths[0]))

    @classmethod
    def of_folder(cls, path: Path, frame_rate: Fraction = DEFAULT_RATE) -> ImagesSource:
        """In the natural order of their names: frame-2 before frame-10. Raises MediaError for no image."""
        try:
            found = images_in(path)
        except OSError as error:
            raise MediaError(f"{path}: cannot be read: {error.strerror}") from None
        if not found:
            raise MediaError(f"{path}: no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return cls(path.name, found, frame_rate)

    def pictures(self, width: int, height: int, fit: Fit) -> Iterator[Picture]:
        """See `Source`."""
        for number, path in enumerate(self.paths):
            yield Picture(fit_frame(read_image(path), width, height, fit), number, self.time_base, 1)


def open_source(name: str, *, device: str | None = None, frame_rate: Fraction | None = None) -> Source:
    """The source for `name`: "-" is the camera, a folder its images, an address what is sent there, anything
    else a video or an image.

    `frame_rate` is for images and cameras. Raises MediaError.
    """
    rate = frame_rate or DEFAULT_RATE
    if name == "-":
        return LiveSource.camera(device, rate)
    if (scheme := scheme_of(name)) is not None:
        return _at_address(name, scheme, rate)
    path = Path(name)
    if path.is_dir():
        return ImagesSource.of_folder(path, rate)
    if not path.exists():
        raise MediaError(f"{name}: no such file or folder")
    return ImagesSource(path.name, [path], rate) if _is_image(path) else VideoSource(path)


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, in the natural order of their names. Raises OSError."""
    return sorted((item for item in folder.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES), key=_natural)


def read_image(path: Path) -> Any:
    """The first frame (`av.VideoFrame`) of an image file. Raises MediaError."""
    with _opened(path) as container:
        frame = next(_decoded(container, _video_stream(container, path), path), None)
    if frame is None:
        raise MediaError(f"{path}: not an image that can be read")
    return frame


def _at_address(address: str, scheme: str, rate: Fraction) -> Source:
    """A file behind http(s), which has an end; else what is sent now."""
    if scheme not in FILE_SCHEMES + LIVE_SCHEMES:
        schemes = ", ".join(f"{known}://" for known in FILE_SCHEMES + LIVE_SCHEMES)
        raise MediaError(f"{without_secrets(address)}: cannot be read: take {schemes} or a file")
    container = _open(address, **({"options": {"rtsp_transport": "tcp"}} if scheme == "rtsp" else {}))
    if scheme in FILE_SCHEMES and container.duration:
        container.close()
        return VideoSource(address)
    streams = container.streams.video
    told = (streams[0].average_rate or streams[0].guessed_rate) if streams else None
    return LiveSource(without_secrets(address), container, Fraction(told or rate))


def _is_image(path: Path) -> bool:
    """Whether it is one image: one that moves (APNG) is a video."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return False
    with _opened(path) as container:
        name: str = container.format.name
    return name == "image2" or name.endswith("_pipe")


def _shown(place: Path | str) -> str:
    return without_secrets(place) if isinstance(place, str) else str(place)


def _open(place: Path | str, **options: Any) -> Any:
    return open_container(str(place), _shown(place), **options)


@contextlib.contextmanager
def _opened(place: Path | str) -> Iterator[Any]:
    with _open(place) as container:
        yield container


def _video_stream(container: Any, place: Path | str) -> Any:
    if not container.streams.video:
        raise MediaError(f"{_shown(place)}: has no video")
    return container.streams.video[0]


def _estimated_frames(container: Any, frame_rate: Fraction) -> int | None:
    if not container.duration:
        return None
    return max(1, round(Fraction(container.duration, 1_000_000) * frame_rate))


def _decoded(container: Any, stream: Any, place: Path | str) -> Iterator[Any]:
    """All frames, those at the end included; a damaged packet costs only itself. Raises MediaError."""
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            except av.error.EOFError:
                return
            yield from frames
    except av.error.FFmpegError as error:
        raise MediaError(f"{_shown(place)}: cannot be read further: {error.strerror}") from None


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
