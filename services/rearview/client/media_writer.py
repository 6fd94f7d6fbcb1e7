"""Where pictures go: a video file with the input's times and audio, or a folder of images.

Pictures may be written late but never lost: `close` flushes the encoder, and a picture that was dropped on
the way is replaced by the one before it, so that length and sound stay in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import av.error
import numpy as np

from rearview.client.answers import Image
from rearview.client.audio import COPIED_CODECS, AudioTrack
from rearview.client.media import MediaError, Picture

__all__ = [
    "FolderWriter",
    "VideoWriter",
    "Writer",
    "check_output",
    "open_writer",
    "side_by_side",
    "write_image",
]

MAX_MPEG4_DENOMINATOR = 65_535
"""The MPEG-4 encoder takes no finer time base."""


class Writer(Protocol):
    """Takes pictures in the order of their times."""

    def write(self, image: Image, picture: Picture) -> None:
        """Write `image` at the time of `picture`."""
        ...

    def close(self, *, is_complete: bool) -> None:
        """Finish the file. Incomplete: the audio is cut where the pictures end."""
        ...


class VideoWriter:
    """H.264 (libx264) where this PyAV has it, else MPEG-4, in mp4, m4v, mov or mkv."""

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        *,
        frame_rate: Fraction,
        time_base: Fraction,
        audio_path: Path | None = None,
    ) -> None:
        """`width` and `height` must be even. Raises MediaError."""
        _check_suffix(path)
        self._size = (width, height)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._container = av.open(str(path), "w")
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"{path}: cannot be written: {error.strerror}") from None
        self._stream, self._time_base = _add_video(self._container, width, height, frame_rate, time_base)
        self._audio: AudioTrack | None = None
        if audio_path is not None:
            self._audio = AudioTrack(audio_path, self._container, path.suffix.lower())
        self._durations: dict[int, int] = {}
        self._last_pts = -1
        self._end_s = 0.0

    def write(self, image: Image, picture: Picture) -> None:
        """`image` is (height, width, 3) uint8."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = max(round(picture.pts * picture.time_base / self._time_base), self._last_pts + 1)
        frame.time_base = self._time_base
        duration = round(picture.duration * picture.time_base / self._time_base)
        self._durations[frame.pts] = duration
        self._last_pts = frame.pts
        self._end_s = float((frame.pts + duration) * self._time_base)
        if self._audio is not None:
            self._audio.write_until(picture.presentation_s)
        self._mux(self._stream.encode(frame))

    def close(self, *, is_complete: bool = True) -> None:
        try:
            self._mux(self._stream.encode(None))
            if self._audio is not None:
                self._audio.write_until(None if is_complete else self._end_s)
        finally:
            if self._audio is not None:
                self._audio.close()
            self._container.close()

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            # Without it the last picture would have the mean duration, and a variable rate another length.
            duration = self._durations.pop(packet.pts, 0)
            if duration:
                packet.duration = duration
            self._container.mux(packet)


class FolderWriter:
    """A folder of numbered PNG images."""

    def __init__(self, path: Path) -> None:
        """Raises MediaError if the folder cannot be made."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MediaError(f"{path}: cannot be made: {error.strerror}") from None
        self._path, self._count = path, 0

    def write(self, image: Image, picture: Picture) -> None:
        """`picture` gives no name: images are numbered in the order of writing."""
        write_image(self._path / f"frame-{self._count:06d}.png", image)
        self._count += 1

    def close(self, *, is_complete: bool = True) -> None:
        """Nothing is held back."""


def open_writer(
    name: str,
    width: int,
    height: int,
    *,
    frame_rate: Fraction,
    time_base: Fraction,
    audio_path: Path | None = None,
) -> Writer:
    """A folder if `name` is one, ends in "/" or has no suffix; else a video file. Raises MediaError."""
    path = Path(name)
    if _is_folder(name):
        return FolderWriter(path)
    return VideoWriter(path, width, height, frame_rate=frame_rate, time_base=time_base, audio_path=audio_path)


def check_output(name: str) -> None:
    """Raises MediaError for what `open_writer` would refuse by its name. Writes nothing."""
    if not _is_folder(name):
        _check_suffix(Path(name))


def side_by_side(left: Image, right: Image) -> Image:
    """Two pictures of one height beside each other: (height, width + width, 3)."""
    return np.concatenate([left, right], axis=1)


def write_image(path: Path, image: Image) -> None:
    """Write (height, width, 3) uint8 as PNG or JPEG, as the suffix says."""
    av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").save(str(path))


def _is_folder(name: str) -> bool:
    return Path(name).is_dir() or name.endswith("/") or not Path(name).suffix


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in COPIED_CODECS:
        raise MediaError(f"{path}: write to {', '.join(COPIED_CODECS)}, or to a folder")


def _add_video(
    container: Any, width: int, height: int, frame_rate: Fraction, time_base: Fraction
) -> tuple[Any, Fraction]:
    """The video stream and the time base that its encoder takes."""
    rate = Fraction(frame_rate).limit_denominator(MAX_MPEG4_DENOMINATOR)
    if "libx264" in av.codecs_available:
        # Without B frames the last packet is the last picture, whose duration makes the file's length.
        options = {"crf": "18", "preset": "veryfast", "bf": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
    else:
        stream = container.add_stream("mpeg4", rate=rate, options={"qscale": "3"})
        time_base = max(time_base, Fraction(1, 60_000)) if _is_too_fine(time_base) else time_base
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.time_base = time_base
    return stream, time_base


def _is_too_fine(time_base: Fraction) -> bool:
    return time_base.denominator > MAX_MPEG4_DENOMINATOR
