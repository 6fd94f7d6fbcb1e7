"""A jitter buffer that gives a picture out with its last packet.

aiortc's own waits for the first packet of the next picture, a whole frame interval: 33 ms at 30 FPS. RTP
marks a picture's last packet (RFC 3550, 5.1): once all before it are there, there is nothing to wait for.
"""

from __future__ import annotations

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtp import RtpPacket

__all__ = ["PromptBuffer", "make_prompt"]

PACKETS = 128
"""As many as aiortc keeps for video."""
_PLACE = "_RTCRtpReceiver__jitter_buffer"


def make_prompt(receiver: RTCRtpReceiver) -> None:
    """For one that has received nothing. aiortc has no public place for it; a test knows this one."""
    assert hasattr(receiver, _PLACE), "this aiortc keeps its jitter buffer elsewhere"
    setattr(receiver, _PLACE, PromptBuffer(PACKETS, is_video=True))


class PromptBuffer(JitterBuffer):
    """Gives the same pictures in the same order as aiortc's, each as soon as it is whole."""

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """Take a packet; whether a key frame is to be asked for, and the picture that is whole now."""
        is_lost, picture = super().add(packet)
        return is_lost, picture or self._whole()

    def _whole(self) -> JitterFrame | None:
        """The oldest picture, if its last packet is there and none before it is missing."""
        if self._origin is None:
            return None
        parts: list[bytes] = []
        timestamp: int | None = None
        for count in range(self.capacity):
            packet = self._packets[(self._origin + count) % self.capacity]
            if packet is None or timestamp not in (None, packet.timestamp):
                return None
            timestamp = packet.timestamp
            parts.append(packet._data)  # type: ignore[attr-defined]
            if packet.marker:
                self.remove(count + 1)
                return JitterFrame(b"".join(parts), packet.timestamp)
        return None
