"""A camera by WHIP and a watcher by WHEP, by aiortc: over real HTTP and real UDP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from typing import Any, Self

import numpy as np
from aiohttp import ClientSession
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame

__all__ = ["Lamp", "Remote", "bearer", "camera", "watcher"]

DEADLINE_S = 30.0
SDP = {"Content-Type": "application/sdp"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class Lamp(MediaStreamTrack):
    """A picture of one colour, 20 times a second."""

    kind = "video"

    def __init__(self, colour: tuple[int, int, int] = (200, 40, 40)) -> None:
        super().__init__()
        self.colour, self._frames = colour, 0

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(0.05)
        self._frames += 1
        frame = VideoFrame.from_ndarray(np.full((240, 320, 3), self.colour, np.uint8), format="rgb24")
        frame.pts, frame.time_base = 4500 * self._frames, Fraction(1, 90_000)
        return frame


class Remote:
    """The other side of a peer connection; `async with` posts its offer and closes it."""

    def __init__(
        self, http: ClientSession, url: str, lamp: Lamp | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """`lamp`: what it sends; None: it watches."""
        self._http, self._url, self._headers = http, url, {**SDP, **(headers or {})}
        self._connection = RTCPeerConnection(RTCConfiguration([]))
        if lamp is None:
            self._connection.addTransceiver("video", "recvonly")
        else:
            self._connection.addTransceiver(lamp, "sendonly")
        self._connection.on("track", self._begin)
        self._reading: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.num_frames = 0
        self.colour = np.zeros(3)
        """Mean of the last frame, RGB."""
        self.resource = ""
        self.links: str = ""

    async def __aenter__(self) -> Self:
        status, answer = await self.ask()
        if status != 201:
            await self._connection.close()
            raise AssertionError(f"{status}: {answer}")
        await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def ask(self) -> tuple[int, str]:
        """Post the offer; status and body of the answer."""
        await self._connection.setLocalDescription(await self._connection.createOffer())
        offer = self._connection.localDescription.sdp
        async with self._http.post(self._url, data=offer, headers=self._headers) as response:
            if response.status == 201:
                self.resource = str(response.url.join(type(response.url)(response.headers["Location"])))
                self.links = response.headers.get("Link", "")
            return response.status, await response.text()

    async def refused(self) -> tuple[int, str]:
        """Post the offer, which is refused; the status and the reason."""
        status, answer = await self.ask()
        await self._connection.close()
        return status, json.loads(answer)["reason"]

    async def delete(self) -> int:
        """End it, as its resource; the status."""
        async with self._http.delete(self.resource) as response:
            return response.status

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a frame has made it true."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await self._changed.wait()
                self._changed.clear()

    async def sees(self, colour: tuple[int, int, int]) -> None:
        """Wait for frames of about this colour."""
        await self.until(lambda: self.num_frames > 0 and bool(np.abs(self.colour - colour).max() < 25))

    async def ended(self) -> None:
        """Wait until the other side has closed it."""
        async with asyncio.timeout(DEADLINE_S):
            while self._connection.connectionState != "closed":
                await self._changed.wait()
                self._changed.clear()

    def _begin(self, track: MediaStreamTrack) -> None:
        self._connection.on("connectionstatechange", self._changed.set)
        self._reading = asyncio.create_task(self._read(track))

    async def _read(self, track: Any) -> None:
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                self.colour = frame.to_ndarray(format="rgb24").mean((0, 1))
                self.num_frames += 1
                self._changed.set()
        self._changed.set()


def camera(http: ClientSession, url: str, lamp: Lamp, **headers: str) -> Remote:
    return Remote(http, url, lamp, headers)


def watcher(http: ClientSession, url: str, **headers: str) -> Remote:
    return Remote(http, url, None, headers)
