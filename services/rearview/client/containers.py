"""What is written for which suffix or address: encoders, and the audio that goes in as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import av

__all__ = ["CONTAINERS", "STREAMED", "AudioEncoder", "Container", "VideoEncoder"]


@dataclass(frozen=True)
class VideoEncoder:
    """One way to write pictures."""

    name: str
    pixels: str = "yuv420p"
    options: Mapping[str, str] = field(default_factory=dict)
    finest: Fraction | None = None
    """The finest time base that it takes, seconds."""


@dataclass(frozen=True)
class AudioEncoder:
    """What an audio track is written as that cannot be copied."""

    name: str
    format: str
    frame_samples: int
    """What it takes at a time."""
    rates: frozenset[int]
    """Samples per second; others become 48000."""
    is_timed: bool = False
    """Whether `frame_samples` holds at 48000, and a frame lasts as long at every rate."""

    def frame_at(self, rate: int) -> int:
        """Samples of a frame at so many a second."""
        return self.frame_samples * rate // 48_000 if self.is_timed else self.frame_samples


@dataclass(frozen=True)
class Container:
    """A kind of file or stream."""

    video: tuple[VideoEncoder, ...]
    """The first that this PyAV has is taken."""
    copied: frozenset[str] = frozenset()
    """Audio codecs that common players play in it: they go in packet by packet."""
    audio: AudioEncoder | None = None
    """For all others. None: it has no sound."""
    format: str | None = None
    """PyAV's name of it, where no suffix tells."""

    @property
    def encoder(self) -> VideoEncoder:
        """For the pictures."""
        return next((one for one in self.video if one.name in av.codecs_available), self.video[-1])


AAC = AudioEncoder(
    "aac",
    "fltp",
    1024,
    frozenset({96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350}),
)
OPUS = AudioEncoder("libopus", "flt", 960, frozenset({48000, 24000, 16000, 12000, 8000}), is_timed=True)
H264 = (
    # Without B frames the last packet is the last picture, whose duration makes the file's length.
    VideoEncoder("libx264", options={"crf": "18", "preset": "veryfast", "bf": "0"}),
    VideoEncoder("mpeg4", options={"qscale": "3"}, finest=Fraction(1, 60_000)),
)
LIVE_H264 = (
    VideoEncoder("libx264", options={"crf": "21", "preset": "veryfast", "tune": "zerolatency", "g": "60"}),
    *H264[1:],
)
VP9 = (
    VideoEncoder(
        "libvpx-vp9",
        options={"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"},
    ),
)
GIF = (VideoEncoder("gif", "pal8", finest=Fraction(1, 100)),)

CONTAINERS: Mapping[str, Container] = {
    ".mp4": Container(H264, frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"}), AAC),
    ".m4v": Container(H264, frozenset({"aac", "ac3", "alac", "mp3"}), AAC),
    ".mov": Container(H264, frozenset({"aac", "ac3", "alac", "mp3", "pcm_s16le", "pcm_s24le"}), AAC),
    ".mkv": Container(
        H264, frozenset({"aac", "ac3", "eac3", "flac", "mp3", "opus", "pcm_s16le", "vorbis"}), AAC
    ),
    ".webm": Container(VP9, frozenset({"opus", "vorbis"}), OPUS),
    ".gif": Container(GIF),
}
"""By the output's suffix."""

STREAMED: Mapping[str, Container] = {
    "rtmp": Container(LIVE_H264, frozenset({"aac", "mp3"}), AAC, "flv"),
    "rtmps": Container(LIVE_H264, frozenset({"aac", "mp3"}), AAC, "flv"),
    "rtsp": Container(LIVE_H264, frozenset({"aac", "mp3", "opus"}), AAC, "rtsp"),
    "udp": Container(LIVE_H264, frozenset({"aac", "ac3", "mp3"}), AAC, "mpegts"),
    "tcp": Container(LIVE_H264, frozenset({"aac", "ac3", "mp3"}), AAC, "mpegts"),
}
"""By the address's scheme."""
