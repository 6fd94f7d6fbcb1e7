"""How pictures are written: into a video with the input's times and audio, as one image, or as many.

Pictures may be written late but never lost: `close` flushes the encoder. Where they go, and what becomes of
what was there before, is decided in `targets.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import av.error
import av.filter
import numpy as np
import simplejpeg

from rearview.client.answers import Image
from rearview.client.audio import AudioTrack
from rearview.client.containers import Container
from rearview.client.pictures import MediaError, Picture, Source

__all__ = [
    "Film",
    "FolderWriter",
    "ImageWriter",
    "VideoWriter",
    "Writer",
    "side_by_side",
    "write_image",
]

JPEG_QUALITY = 95
MAX_RATE_DENOMINATOR = 65_535
"""The MPEG-4 encoder takes no finer time base."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """What is to be written."""

    width: int
    height: int
    frame_rate: Fraction
    time_base: Fraction
    """Of the pictures' times, seconds."""
    audio_path: str | None = None
    """Whose audio track goes with it."""

    @classmethod
    def like(cls, source: Source, width: int, height: int) -> Film:
        """The pictures of `source`, at another size."""
        return cls(
            width=width,
            height=height,
            frame_rate=source.frame_rate,
            time_base=source.time_base,
            audio_path=source.audio_path,
        )


class Writer(Protocol):
    """Takes pictures in the order of their times."""

    def write(self, image: Image, picture: Picture) -> None:
        """Write `image` at the time of `picture`. Raises MediaError."""
        ...

    def close(self, *, is_complete: bool) -> None:
        """Finish the file. Incomplete: the audio is cut where the pictures end. Raises MediaError."""
        ...


class VideoWriter:
    """A file or a stream of the `kind`."""

    def __init__(self, place: str, kind: Container, film: Film, *, shown: str | None = None) -> None:
        """Width and height must be even. `shown`: the place's name in errors. Raises MediaError."""
        self._shown = shown or place
        with self._named_errors():
            self._container = av.open(place, "w", format=kind.format)
        self._stream, self._time_base = _add_video(self._container, kind, film)
        self._palettes = _Palettes(film, self._time_base) if self._stream.pix_fmt == "pal8" else None
        self._audio: AudioTrack | None = None
        if film.audio_path is not None and kind.audio is not None:
            self._audio = AudioTrack(film.audio_path, self._container, kind)
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
        with self._named_errors():
            if self._audio is not None:
                self._audio.write_until(picture.presentation_s)
            self._mux(self._stream.encode(frame if self._palettes is None else self._palettes.of(frame)))

    def close(self, *, is_complete: bool = True) -> None:
        """See `Writer`."""
        try:
            with self._named_errors():
                if self._last_pts >= 0:  # Sound alone would be a file, too.
                    self._mux(self._stream.encode(None))
                    if self._audio is not None:
                        self._audio.write_until(None if is_complete else self._end_s)
        finally:
            if self._audio is not None:
                self._audio.close()
            with self._named_errors():
                self._container.close()

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            # Without it the last picture would have the mean duration, and a variable rate another length.
            duration = self._durations.pop(packet.pts, 0)
            if duration:
                packet.duration = duration
            self._container.mux(packet)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """PyAV's own errors do not always name the file."""
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"{self._shown}: cannot be written: {error.strerror}") from None


class ImageWriter:
    """One image file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, image: Image, picture: Picture) -> None:
        """See `Writer`; a second picture replaces the first."""
        write_image(self._path, image)

    def close(self, *, is_complete: bool = True) -> None:
        """Nothing is held back."""


class FolderWriter:
    """Numbered PNG images in a folder that is there."""

    def __init__(self, path: Path) -> None:
        self._path, self._count = path, 0

    def write(self, image: Image, picture: Picture) -> None:
        """`picture` gives no name: images are numbered in the order of writing."""
        write_image(self._path / f"frame-{self._count:06d}.png", image)
        self._count += 1

    def close(self, *, is_complete: bool = True) -> None:
        """Nothing is held back."""


def side_by_side(left: Image, right: Image) -> Image:
    """Two pictures of one height beside each other: (height, width + width, 3)."""
    return np.concatenate([left, right], axis=1)


def write_image(path: Path, image: Image) -> None:
    """Write (height, width, 3) uint8 as PNG or JPEG, as the suffix says. Raises MediaError."""
    pixels = np.ascontiguousarray(image)
    try:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            path.write_bytes(simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, "RGB", "444"))
        else:
            av.VideoFrame.from_ndarray(pixels, format="rgb24").save(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: cannot be written: {error.strerror}") from None


class _Palettes:
    """Gives every picture the 256 colours that suit it best, as GIF needs them."""

    def __init__(self, film: Film, time_base: Fraction) -> None:
        self._graph = graph = av.filter.Graph()
        size = {"width": film.width, "height": film.height}
        source = graph.add_buffer(**size, format="rgb24", time_base=time_base)
        split, end = graph.add("split"), graph.add("buffersink")
        palette = graph.add("palettegen", "stats_mode=single")
        use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
        source.link_to(split)
        split.link_to(palette, 0, 0)
        split.link_to(use, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(end)
        graph.configure()

    def of(self, frame: Any) -> Any:
        """The same picture in its own palette."""
        self._graph.push(frame)
        return self._graph.pull()


def _add_video(container: Any, kind: Container, film: Film) -> tuple[Any, Fraction]:
    """The video stream and the time base that its encoder takes."""
    encoder, time_base = kind.encoder, film.time_base
    rate = Fraction(film.frame_rate).limit_denominator(MAX_RATE_DENOMINATOR)
    stream = container.add_stream(encoder.name, rate=rate, options=dict(encoder.options))
    if encoder.finest is not None:
        time_base = encoder.finest if encoder.name == "gif" else _no_finer(time_base, encoder.finest)
    stream.width, stream.height, stream.pix_fmt = film.width, film.height, encoder.pixels
    stream.codec_context.time_base = time_base
    return stream, time_base


def _no_finer(time_base: Fraction, finest: Fraction) -> Fraction:
    return max(time_base, finest) if time_base.denominator > MAX_RATE_DENOMINATOR else time_base
