"""A jitter buffer that gives a picture out with its last packet.

aiortc's own waits for the first packet of the next picture, a whole frame interval: 33 ms at 30 FPS. RTP
marks a picture's last packet (RFC 3550, 5.1): once all before it are there, there is nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Callable

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtp import RtpPacket

__all__ = ["EagerBuffer", "make_eager"]

PACKETS = 128
"""As many as aiortc keeps for video."""
MAX_BACKLOG = 8
"""Pictures that may wait for the decoder; then it is let run dry, and goes on with a key frame."""
_PLACE, _QUEUE = "_RTCRtpReceiver__jitter_buffer", "_RTCRtpReceiver__decoder_queue"


def make_eager(receiver: RTCRtpReceiver) -> None:
    """For one that has received nothing. aiortc has no public place for it; a test knows this one."""
    assert hasattr(receiver, _PLACE), "this aiortc keeps its jitter buffer elsewhere"
    setattr(receiver, _PLACE, EagerBuffer(getattr(receiver, _QUEUE).qsize))


class EagerBuffer(JitterBuffer):
    """Gives the same pictures in the same order as aiortc's, each as soon as it is whole.

    Where the decoder falls behind aiortc would let pictures queue without end. Here they are left out.
    """

    def __init__(self, backlog: Callable[[], int] = lambda: 0) -> None:
        """`backlog`: how many pictures wait for the decoder now."""
        super().__init__(PACKETS, is_video=True)
        self._backlog = backlog
        self._is_behind = self._has_asked = False

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """Take a packet; whether a key frame is to be asked for, and the picture that is whole now."""
        is_lost, picture = super().add(packet)
        picture = picture or self._whole()
        if picture is None:
            return is_lost, None
        backlog = self._backlog()
        if backlog >= MAX_BACKLOG:
            self._is_behind, self._has_asked = True, False
        if not self._is_behind:
            return is_lost, picture
        if backlog == 0 and _is_key_frame(picture.data):
            self._is_behind = False
            return is_lost, picture
        asks = backlog == 0 and not self._has_asked
        self._has_asked |= asks
        return is_lost or asks, None

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


def _is_key_frame(data: bytes) -> bool:
    """Of VP8, by its frame tag (RFC 6386, 9.1); of H.264, by an IDR or a parameter set among its units."""
    start = b"\0\0\0\1"
    if not data.startswith(start):
        return bool(data) and not data[0] & 1
    return any(unit and unit[0] & 0x1F in (5, 7) for unit in data.split(start))
