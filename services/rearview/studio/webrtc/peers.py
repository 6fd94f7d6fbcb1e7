"""A peer connection of this side: answers one offer, has one video in or out, and ends once."""

from __future__ import annotations

import asyncio
import logging

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)

from rearview.errors import InvalidRequest, Reason, Refused
from rearview.studio.webrtc.ice import Ice
from rearview.studio.webrtc.jitter import make_eager

__all__ = ["Peer"]

logger = logging.getLogger(__name__)

CONNECT_S = 30.0
"""How long a peer may take from the answer until packets pass."""
GATHER_S = 10.0
"""How long STUN and TURN servers may take to answer."""


class Peer:
    """For one event loop. `close` ends it, and so does the other side."""

    def __init__(self, ice: Ice) -> None:
        # Without a list aiortc would ask a public STUN server.
        servers = [RTCIceServer(one.url, one.username, one.password) for one in ice.servers]
        self._connection = RTCPeerConnection(RTCConfiguration(servers))
        self._connection.on("connectionstatechange", self._changed)
        self.ended = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None

    async def receive(self, offer: str) -> tuple[str, MediaStreamTrack]:
        """The answer to an offer (SDP) that sends video, and that video. Raises InvalidRequest, and Refused
        if a STUN or TURN server does not answer.
        """
        video = await self._video_of(offer, "recvonly")
        make_eager(video.receiver)
        return await self._answer(), video.receiver.track

    async def send(self, offer: str, track: MediaStreamTrack) -> str:
        """The answer to an offer (SDP) that takes video: it gets this one. Raises as `receive`."""
        video = await self._video_of(offer, "sendonly")
        video.sender.replaceTrack(track)
        video.direction = "sendonly"
        return await self._answer()

    async def close(self) -> None:
        """End it, for both sides."""
        self.ended.set()
        if self._deadline is not None:
            self._deadline.cancel()
        await self._connection.close()

    async def _video_of(self, offer: str, direction: str) -> RTCRtpTransceiver:
        """The first video of an offer that goes our way; nothing else of it is used."""
        connection = self._connection
        try:
            await connection.setRemoteDescription(RTCSessionDescription(sdp=offer, type="offer"))
        except Exception as error:  # a foreign parser, on foreign input: it raises what it meets
            raise InvalidRequest(Reason.MESSAGE_INVALID, "the offer cannot be read") from error
        if connection.sctp is not None:
            raise InvalidRequest(Reason.MESSAGE_INVALID, "the offer has a data channel: it may have video")
        found: RTCRtpTransceiver | None = None
        for each in connection.getTransceivers():
            goes = each._offerDirection in (direction, "sendrecv")  # aiortc has no public word for it
            if found is None and each.kind == "video" and goes:
                found = each
            else:
                each.direction = "inactive"
        if found is None:
            verb = "sends" if direction == "recvonly" else "takes"
            raise InvalidRequest(Reason.MESSAGE_INVALID, f"the offer {verb} no video")
        return found

    async def _answer(self) -> str:
        connection = self._connection
        try:
            async with asyncio.timeout(GATHER_S):
                await connection.setLocalDescription(await connection.createAnswer())
        except TimeoutError:
            text = "the STUN or TURN server does not answer"
            raise Refused(Reason.REPLICA_LOST, text, retry_after_s=GATHER_S) from None
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(CONNECT_S, self._too_late)
        answer: str = connection.localDescription.sdp
        return answer

    def _changed(self) -> None:
        state = self._connection.connectionState
        if state == "connected" and self._deadline is not None:
            self._deadline.cancel()
        if state in ("failed", "closed"):
            self.ended.set()

    def _too_late(self) -> None:
        logger.info("a WebRTC peer did not connect within %g s", CONNECT_S)
        self.ended.set()
