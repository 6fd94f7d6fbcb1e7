"""An ingress as replicas see it, for tests that drive replicas over their links."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from rearview.config import ServiceConfig
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.replica.stage import Stage
from rearview.transport.bulk import pull, serve
from rearview.transport.codec import FrameCodec, Versions
from rearview.transport.links import Link, LinkPool, LinkServer
from rearview.transport.wire import (
    Ack,
    Kind,
    decode_ack,
    decode_json,
    encode_ack,
    encode_json,
    encode_settings,
    encode_spec,
)

from support.raw_stream import null_config, quickly_stopped

__all__ = ["Owner", "driven", "engine_holds", "spec", "started"]


class Owner:
    """What an ingress is to replicas: it dials, opens, sends frames and takes pictures."""

    def __init__(self, config: ServiceConfig, versions: Versions | None = None) -> None:
        self.config = config
        self.frames: list[Frame[Any]] = []
        self.told: list[tuple[Kind, dict[str, Any]]] = []
        self.acks: list[Ack] = []
        self.links: list[Link] = []
        self.came_over: Link | None = None
        """The link of the last picture."""
        self._spans = [span.name for span in config.spans]
        self.server = LinkServer(
            config.link, "node", on_message=self.on_message, on_closed=lambda _: None, versions=versions
        )
        self.pool = LinkPool(
            config.link, "node", on_message=self.on_message, on_closed=lambda _: None, versions=versions
        )

    async def start(self, stages: Sequence[Stage]) -> None:
        """`stages`: one per span of the lane."""
        self.address = str(await self.server.start())
        await self.dial(stages)

    async def dial(self, stages: Sequence[Stage]) -> None:
        addresses = [stage.describe()["address"] for stage in stages]
        self.links = [await self.pool.get(address) for address in addresses]
        self.nexts = [*addresses[1:], self.address]
        self.codec = FrameCodec(min(link.version for link in self.links), self._spans)

    @property
    def link(self) -> Link:
        """To the first span."""
        return self.links[0]

    def on_message(self, link: Link, kind: Kind, body: bytes) -> None:
        if kind is Kind.FRAME:
            self.frames.append(self.codec.decode(body, 0.0))
            self.came_over = link
        elif kind is Kind.ACK:
            self.acks.append(decode_ack(body))
        elif kind is not Kind.HEARTBEAT:
            self.told.append((kind, decode_json(body) if body else {}))

    async def open(
        self,
        session: SessionSpec,
        epoch: int = 1,
        to: str | None = None,
        begins: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Open at every span; why the last one refused, None if it did not. `to`: where the last sends;
        `begins`: what the session begins from.
        """
        reason = None
        for hop, link in enumerate(self.links):
            content = self.opening(session, epoch, hop) | (begins or {})
            if to and link is self.links[-1]:
                content["next"] = to
            reply = await asyncio.wait_for(link.request(Kind.OPEN, content), 10)
            reason = reply.get("reason")
        return reason

    def opening(self, session: SessionSpec, epoch: int, hop: int) -> dict[str, Any]:
        """What OPEN says to a span."""
        return {
            "session": encode_spec(session),
            "epoch": epoch,
            "next": self.nexts[hop],
            "version": self.codec.version,
        }

    async def attach(
        self, session: SessionSpec, epoch: int, hop: int = 0, to: str | None = ""
    ) -> Mapping[str, Any]:
        """Adopt at one span; the reply. `to`: where it sends; empty, the next span; None, as before."""
        content: dict[str, Any] = {"session_id": session.session_id, "epoch": epoch}
        if to is not None:
            content["next"] = to or self.nexts[hop]
        return await asyncio.wait_for(self.links[hop].request(Kind.ATTACH, content), 10)

    async def attach_lane(self, session: SessionSpec, epoch: int) -> list[Mapping[str, Any]]:
        """Adopt at every span, the last one first; replies in order of spans."""
        replies = [await self.attach(session, epoch, hop) for hop in reversed(range(len(self.links)))]
        return replies[::-1]

    async def freeze(self, session: SessionSpec, epoch: int = 1, ordinal: int = -1) -> int:
        """Freeze at every span, at the latest ordinal that any of them names."""
        while True:
            replies = [
                await self.request(Kind.FREEZE, session, epoch, hop, ordinal=ordinal)
                for hop in range(len(self.links))
            ]
            if (latest := max(reply["ordinal"] for reply in replies)) == ordinal:
                return ordinal
            ordinal = latest

    async def request(
        self, kind: Kind, session: SessionSpec, epoch: int = 1, hop: int = 0, **content: Any
    ) -> Mapping[str, Any]:
        """The reply to a request about the session."""
        content |= {"session_id": session.session_id, "epoch": epoch}
        return await asyncio.wait_for(self.links[hop].request(kind, content), 10)

    def thaw(self, session: SessionSpec, epoch: int = 1) -> None:
        for link in self.links:
            link.send(Kind.THAW, encode_json({"session_id": session.session_id, "epoch": epoch}))

    def sources(self, session: SessionSpec, epoch: int = 1) -> Mapping[str, Any]:
        """What a session begins from that is here, and moves."""
        named = {"session_id": session.session_id, "epoch": epoch}
        addresses = [self.pool.address(link) for link in self.links]
        return {"state": {"sources": [{"address": address, **named} for address in addresses]}}

    async def pulled(self, session: SessionSpec, epoch: int = 1, hop: int = 0, **content: Any) -> bytes:
        """What a span has of the session."""
        request = {"session_id": session.session_id, "epoch": epoch, **content}
        address = self.pool.address(self.links[hop]) or ""
        return b"".join([part async for part in pull(self.config.link, "node", address, request)])

    @asynccontextmanager
    async def keeping(self, session: SessionSpec, content: bytes) -> AsyncIterator[Mapping[str, Any]]:
        """What a session begins from of which a process has kept `content`."""

        async def kept(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
            yield content

        def take(link: Link, kind: Kind, body: bytes) -> None:
            if kind is Kind.PULL:
                tasks.append(asyncio.create_task(serve(link, decode_json(body), kept)))

        tasks: list[asyncio.Task[None]] = []
        keeper = LinkServer(self.config.link, "node", on_message=take, on_closed=lambda _: None)
        source = {"address": str(await keeper.start()), "session_id": session.session_id, "epoch": 1}
        try:
            yield {"state": {"sources": [source]}}
        finally:
            await keeper.stop()
            await asyncio.gather(*tasks)

    def send(
        self,
        session: SessionSpec,
        ordinal: int,
        epoch: int = 1,
        version: int = 0,
        planes: Mapping[str, Any] | None = None,
    ) -> None:
        """A frame whose place is ten more than its ordinal, and its index a hundred more."""
        planes = planes or {PICTURE: np.full(4, ordinal, np.uint8)}
        frame = Frame(
            session.session_id,
            ordinal,
            planes,
            settings_version=version,
            place=ordinal + 10,
            frame_index=ordinal + 100,
            epoch=epoch,
        )
        self.link.send(Kind.FRAME, *self.codec.encode(frame, 0.0))

    def announce(self, session: SessionSpec, version: int, settings: Settings, epoch: int = 1) -> None:
        content = {
            "session_id": session.session_id,
            "epoch": epoch,
            "version": version,
            "settings": encode_settings(settings),
        }
        self.link.send(Kind.SETTINGS, encode_json(content))

    def ack(self, session: SessionSpec, ordinal: int, epoch: int = 1) -> None:
        assert self.came_over is not None, "no picture came"
        self.came_over.send(Kind.ACK, encode_ack(Ack(session.session_id, epoch, ordinal)))

    def close(self, session: SessionSpec, epoch: int = 1) -> None:
        for link in self.links:
            link.send(Kind.CLOSE, encode_json({"session_id": session.session_id, "epoch": epoch}))

    async def settle(self) -> None:
        """Return when the stage has taken all that was sent before: an open that fails is a round trip."""
        content = {"session": encode_spec(spec()), "epoch": 0, "next": self.address}
        assert "reason" in await asyncio.wait_for(self.link.request(Kind.OPEN, content), 10)

    async def stop(self) -> None:
        await self.pool.stop()
        await self.server.stop()

    @property
    def ordinals(self) -> list[int]:
        """Of the pictures, as they came."""
        return [frame.ordinal for frame in self.frames]


def spec(prompt: str = "a") -> SessionSpec:
    return SessionSpec(uuid.uuid4().hex, 64, 64, 2, Settings(prompt=prompt))


@asynccontextmanager
async def started(config: ServiceConfig, owners: int = 1) -> AsyncIterator[tuple[list[Stage], list[Owner]]]:
    """A replica per span of `config`, and who may own sessions on them."""
    stages = [Stage(config, index, f"stage-{index}", "node") for index in range(len(config.spans))]
    everyone = [Owner(config) for _ in range(owners)]
    with quickly_stopped():
        for stage in stages:
            await stage.start()
        for owner in everyone:
            await owner.start(stages)
        try:
            yield stages, everyone
        finally:
            for owner in everyone:
                await owner.stop()
            for stage in stages:
                await stage.stop()


@asynccontextmanager
async def driven(
    slots: int = 2, owners: int = 1, **sections: Any
) -> AsyncIterator[tuple[Stage, list[Owner]]]:
    """The only replica of a fused service that moves opaque bytes."""
    async with started(null_config(slots=slots, **sections), owners) as (stages, everyone):
        yield stages[0], everyone


async def engine_holds(stage: Stage) -> int:
    """Sessions in the engine, its integrity checked."""
    assert stage._runner is not None
    sessions, _ = await stage._runner.call(lambda engine: (len(engine.sessions), engine.check_integrity()))
    return sessions
