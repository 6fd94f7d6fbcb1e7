"""A page on its socket: who it is, what it says in turn, what it is told. Its end leaves the wall alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from rearview.errors import InvalidRequest, RearviewError, Reason
from rearview.studio.dials import Turn
from rearview.studio.gateway import Gateway
from rearview.studio.outbox import Outbox
from rearview.studio.protocol import (
    Bye,
    Close,
    Control,
    Hello,
    Kill,
    ModelAsked,
    Open,
    PageMessage,
    ProgramAsked,
    Received,
    TurnAsked,
    named_control,
    named_open,
    read_frame,
    read_message,
)
from rearview.studio.said import ErrorSaid, State, Trouble, text_of
from rearview.studio.telling import rejected_said
from rearview.studio.wall import Wall

__all__ = ["converse", "watch"]

HELLO_S = 10.0
MAX_ERRORS = 10
"""In a row; then the wall ends with its page."""
CLOSE_S = 2.0
"""How long a peer may take to read what waits, when its socket is closed."""


async def converse(
    gateway: Gateway,
    enter: Callable[[Hello], tuple[Wall, bool]],
    socket: web.WebSocketResponse,
    *,
    is_local: bool,
    on_entered: Callable[[], None] = lambda: None,
) -> None:
    """A page, to its end. `enter`: the way to its wall, `Gateway.enter` or that of `Sessions`. `on_entered`
    hears that its hello was good.
    """
    try:
        hello = await _hello(socket)
        wall, resumed = enter(hello)
    except RearviewError as error:
        await _refuse(socket, error)
        return
    on_entered()
    outbox = Outbox()
    wall.attach(outbox, hello, resumed=resumed)
    gateway.greet(wall)
    writer = asyncio.create_task(_write(socket, outbox))
    is_done = False
    try:
        is_done = await _Page(gateway, wall, outbox, is_local=is_local).hear(socket)
    finally:
        wall.page.detach(outbox, wall.now())
        if is_done:  # Before anything is waited for: else who comes meanwhile enters what is about to end.
            gateway.leave(wall)
        await _finish(writer, outbox, socket)


async def watch(wall: Wall, socket: web.WebSocketResponse) -> None:
    """A viewer, to its end. It may say hello, and nothing else."""
    outbox = Outbox()
    try:
        await _hello(socket)
        if not wall.viewers.join(outbox, wall.now()):
            raise InvalidRequest(Reason.CALLS_EXHAUSTED, "the wall has as many viewers as it may have")
    except RearviewError as error:
        await _refuse(socket, error)
        return
    writer = asyncio.create_task(_write(socket, outbox))
    refusal: InvalidRequest | None = None
    try:
        async for message in socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                refusal = InvalidRequest(Reason.METHOD_UNSUPPORTED, "a viewer only looks on")
                break
    finally:
        wall.viewers.leave(outbox)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
    if refusal is not None:
        await _refuse(socket, refusal)


class _Page:
    def __init__(self, gateway: Gateway, wall: Wall, outbox: Outbox, *, is_local: bool) -> None:
        self._gateway, self._wall, self._is_local = gateway, wall, is_local
        self._outbox = outbox

    async def hear(self, socket: web.WebSocketResponse) -> bool:
        """Until the socket is gone. Whether the page is done with its wall: it said so, or made no sense."""
        errors = 0
        async for message in socket:
            if not self._wall.page.hears(self._outbox):
                return False  # The page has come back by another socket.
            said = None
            try:
                self._wall.page.heard += 1
                if message.type is WSMsgType.BINARY:
                    self._wall.take(read_frame(message.data))
                elif message.type is WSMsgType.TEXT:
                    said = read_message(message.data)
                    if isinstance(said, Bye):
                        return True
                    self._wall.page.heard -= isinstance(said, Received)
                    self._obey(said)
                errors = 0
            except RearviewError as error:
                errors += 1
                self._complain(message, error, is_read=said is not None)
                if errors >= MAX_ERRORS:
                    return True
        return False

    def _complain(self, message: WSMessage, error: RearviewError, *, is_read: bool) -> None:
        """A control has an answer, also one that makes no sense; and so has a tile that is to be opened."""
        text = message.data if message.type is WSMsgType.TEXT else ""
        control, opening = named_control(text), None if is_read else named_open(text)
        reason = error.reason.name
        if control is not None:
            self._wall.answer(rejected_said(*control, error.reason, error.message))
        elif opening is not None and opening not in self._wall.tiles:
            refused = State(tile=opening, state="refused", reason=reason, message=error.message)
            self._wall.tell(refused, ("state", opening))
        else:
            self._wall.tell(ErrorSaid(reason=reason, message=error.message))

    def _obey(self, said: PageMessage) -> None:
        wall = self._wall
        if not wall.rights.allows(said):
            raise InvalidRequest(Reason.METHOD_UNSUPPORTED, "the token is for tile 0 and nothing else")
        match said:
            case Received():
                wall.received(said.answers)
            case Open():
                wall.open(said)
            case Control():
                wall.control(said)
            case Close():
                wall.close_tile(said.tile)
            case ProgramAsked():
                wall.show(said)
            case TurnAsked():
                self._turn(said)
            case ModelAsked():
                self._gateway.ask_model(wall, said)
            case Kill():
                self._gateway.kill(said.span, is_local=self._is_local)
            case _:
                raise InvalidRequest(Reason.ALREADY_OPEN, "hello was said before")

    def _turn(self, said: TurnAsked) -> None:
        """A knob is turned many times a second: what is wrong with it is no reason to end the wall."""
        try:
            self._wall.turn(said.tile, Turn(said.name, said.share, is_share=True))
        except InvalidRequest as error:
            trouble = Trouble(about=f"midi {said.name}", title=f"MIDI: {said.name}", help=f"{error.message}.")
            self._wall.tell(trouble, ("trouble", trouble.about))


async def _hello(socket: web.WebSocketResponse) -> Hello:
    """The first message. Raises InvalidRequest for any other."""
    try:
        async with asyncio.timeout(HELLO_S):
            message = await socket.receive()
    except TimeoutError:
        raise InvalidRequest(Reason.NOT_OPEN, f"no hello within {HELLO_S:g} s") from None
    said = read_message(message.data) if message.type is WSMsgType.TEXT else None
    if not isinstance(said, Hello):
        raise InvalidRequest(Reason.NOT_OPEN, "the first message is not hello")
    return said


async def _write(socket: web.WebSocketResponse, outbox: Outbox) -> None:
    """Write what waits, until there is nothing more to come; a socket that does not take it is closed."""
    with suppress(ConnectionError):
        while (item := await outbox.next()) is not None:
            if isinstance(item, str):
                await socket.send_str(item)
            else:
                await socket.send_bytes(item)
    await socket.close()


async def _finish(writer: asyncio.Task[None], outbox: Outbox, socket: web.WebSocketResponse) -> None:
    outbox.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await asyncio.gather(writer, return_exceptions=True)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)


async def _refuse(socket: web.WebSocketResponse, error: RearviewError) -> None:
    with suppress(ConnectionError):
        await socket.send_str(text_of(ErrorSaid(reason=error.reason.name, message=error.message)))
        await socket.close(code=WSCloseCode.POLICY_VIOLATION)
