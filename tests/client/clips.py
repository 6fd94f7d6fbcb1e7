"""Short made videos: moving stripes with a variable frame rate and a tone."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

TIME_BASE = Fraction(1, 1000)
STEPS_MS = (40, 20, 100, 33, 7, 60)
"""Times between frames, over and over."""


def picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Stripes that move by a pixel a frame, (height, width, 3)."""
    x = (np.arange(width) + number) // 8 % 2 * 200 + 20
    image = np.empty((height, width, 3), np.uint8)
    image[:] = x[None, :, None]
    image[..., 1] = number * 5 % 256
    return image


def times_ms(count: int) -> list[int]:
    """Presentation times of the first `count` frames."""
    steps = [STEPS_MS[number % len(STEPS_MS)] for number in range(count - 1)]
    return [0, *(int(total) for total in np.cumsum(steps))]


def write_clip(
    path: Path,
    *,
    count: int = 20,
    width: int = 96,
    height: int = 80,
    audio: str | None = "aac",
    start_s: float = 0.0,
) -> Path:
    """A clip of `count` frames at `times_ms`, and a tone as long; all of it `start_s` later."""
    with av.open(str(path), "w", options={"output_ts_offset": str(start_s)}) as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = TIME_BASE
        sound = container.add_stream(audio, rate=48_000, layout="mono") if audio else None
        for number, pts in enumerate(times_ms(count)):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame.pts, frame.time_base = pts, TIME_BASE
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            _write_tone(container, sound, max(1024, times_ms(count)[-1] * 48))
    return path


def _write_tone(container: av.container.OutputContainer, stream: av.AudioStream, num_samples: int) -> None:
    resampler = av.AudioResampler(stream.codec_context.format, "mono", 48_000, stream.frame_size or 1024)
    tone = (np.sin(np.arange(num_samples) * 0.05) * 8000).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
    frame.sample_rate, frame.pts = 48_000, 0
    for piece in (*resampler.resample(frame), *resampler.resample(None)):
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def video_times(path: Path) -> list[Fraction]:
    """Presentation times of all frames, seconds."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def audio_packets(path: Path) -> tuple[str, list[bytes]]:
    """Codec name and the packets' bytes of the audio track."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return stream.codec_context.name, [bytes(p) for p in container.demux(stream) if p.size]


def audio_samples(path: Path) -> int:
    """How many samples the audio track has when decoded."""
    with av.open(str(path)) as container:
        return sum(frame.samples for frame in container.decode(audio=0))
