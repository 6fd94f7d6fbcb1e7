"""OSC over UDP turns what is live: addresses as values, and who obeys them.

    /rearview/<tile>/<setting> VALUE           in the setting's own unit; tiles count from 1, as on the page
    /rearview/<tile>/<setting>/fader SHARE     a fader's place in the setting's range, 0 to 1
    /rearview/<tile>/preset PLACE              1 to 9; `preset/3` is a button: 0, its release, says nothing

Without `<tile>` it is the one on program. Every page of the studio obeys that has the tile. What makes no
sense is said on those pages and in the log, and nothing else comes of it. Prompts are never logged.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rearview.errors import ConfigError, InvalidRequest, Reason
from rearview.studio.dials import Turn
from rearview.studio.gateway import Gateway
from rearview.studio.protocol import MAX_TILES
from rearview.studio.said import Recall, Trouble
from rearview.studio.wall import Wall

__all__ = ["Asked", "OscPort", "asked", "listening"]

logger = logging.getLogger(__name__)

ROOT = "rearview"
PLACES = 9
"""Of presets on a page."""
AGAIN_S = 1.0
"""After which the same trouble is worth another word."""
MAX_TROUBLES = 16
"""That are said in that time; more are not."""
SHOWN = 60
"""Characters of an address."""
LOOPBACK = "127.0.0.1"
INSTALL = "pip install 'rearview[stage]'"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a message asks for."""

    tile: int | None
    """From 0; None: the one on program."""
    does: Turn | int | None
    """A turn, or a preset's place from 1; None: nothing, a button was let go."""


def asked(address: str, values: Sequence[Any]) -> Asked:
    """What a message means. Raises InvalidRequest."""
    root, *parts = address.strip("/").split("/")
    if root != ROOT or not address.startswith("/") or not parts:
        raise _nonsense(f"an address begins with /{ROOT}/")
    tile = None
    if parts[0].isascii() and parts[0].isdigit():
        tile = int(parts.pop(0)) - 1
        if not 0 <= tile < MAX_TILES or not parts:
            raise _nonsense(f"tiles are 1 to {MAX_TILES}, and a setting follows")
    if len(values) != 1 or not isinstance(values[0], int | float | str) or isinstance(values[0], bool):
        raise _nonsense("one value is needed, a number or words")
    (value,) = values
    if parts[0] == "preset":
        return Asked(tile, _place(parts[1:], value))
    is_share = len(parts) > 1 and parts[-1] == "fader"
    return Asked(tile, Turn("/".join(parts[: len(parts) - is_share]), value, is_share))


def _place(rest: Sequence[str], value: Any) -> int | None:
    named = rest[0] if len(rest) == 1 else value
    try:
        place = int(named) if not rest or len(rest) == 1 else 0
        is_whole = float(named) == place
    except (ValueError, OverflowError):
        place, is_whole = 0, False
    if not is_whole or not 1 <= place <= PLACES:
        raise _nonsense(f"presets are 1 to {PLACES}")
    return None if rest and value == 0 else place


def _nonsense(text: str) -> InvalidRequest:
    return InvalidRequest(Reason.MESSAGE_INVALID, text)


@dataclass(frozen=True)
class OscPort:
    """Bound before anything is started, so that a port that is taken is told at once."""

    socket: socket.socket

    @classmethod
    def bind(cls, where: str) -> OscPort:
        """`where`: PORT of loopback, or HOST:PORT. Raises ConfigError, also where python-osc is missing."""
        try:
            import_module("pythonosc.osc_packet")
        except ImportError as error:
            raise ConfigError(f"--osc: {error.name or 'pythonosc'} is missing: {INSTALL}") from None
        host, _, port = where.rpartition(":")
        host = host.strip("[]") or LOOPBACK
        if not (port.isascii() and port.isdigit()) or int(port) > 65_535:
            raise ConfigError(f"--osc {where}: that is no PORT, and no HOST:PORT")
        try:
            found = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
            bound = socket.socket(found[0], socket.SOCK_DGRAM)
        except OSError as error:
            raise ConfigError(f"--osc {where}: {error.strerror or error}") from None
        try:
            bound.bind(found[4])
        except OSError as error:
            bound.close()
            raise ConfigError(f"--osc {where}: {error.strerror or error}") from None
        bound.setblocking(False)
        return cls(bound)

    @property
    def address(self) -> str:
        """Where it listens, as `127.0.0.1:9000`."""
        host, port = self.socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@asynccontextmanager
async def listening(gateway: Gateway, port: OscPort | None) -> AsyncIterator[None]:
    """Obey what comes until the block ends; None: nothing is to come."""
    if port is None:
        yield
        return
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Listener(gateway), sock=port.socket)
    gateway.osc = port.address
    try:
        yield
    finally:
        transport.close()


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._said: dict[tuple[str, str], float] = {}
        """When each of the last troubles was said."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        from pythonosc.osc_packet import OscPacket, ParseError

        try:
            messages = [each.message for each in OscPacket(data).messages]
        except (ParseError, ValueError, RecursionError):
            self._complain("", "this is no OSC")
            return
        for message in messages:
            try:
                self._obey(asked(message.address, list(message)))
            except InvalidRequest as error:
                self._complain(message.address, error.message)

    def _obey(self, what: Asked) -> None:
        if what.does is None:
            return
        reached, obeyed, failure = False, False, None
        for wall in self._gateway.own_walls:
            tile = wall.viewers.program.tile if what.tile is None else what.tile
            if tile is None or tile not in wall.tiles:
                continue
            reached = True
            try:
                _do(wall, tile, what.does)
                obeyed = True
            except InvalidRequest as error:
                failure = error
        if failure is not None and not (obeyed and isinstance(what.does, int)):
            raise failure
        if not reached:
            which = "no tile is on program" if what.tile is None else f"tile {what.tile + 1} is not open"
            raise InvalidRequest(Reason.NOT_OPEN, which)

    def _complain(self, address: str, text: str) -> None:
        shown = address[:SHOWN]
        key, now = (shown, text), asyncio.get_running_loop().time()
        self._said = {one: said_s for one, said_s in self._said.items() if now - said_s < AGAIN_S}
        if key in self._said or len(self._said) >= MAX_TROUBLES:
            return
        self._said[key] = now
        logger.warning("OSC %r: %s", shown, text)
        self._gateway.tell_pages(Trouble(about="osc", title=f"OSC {shown}".strip(), help=f"{text}."))


def _do(wall: Wall, tile: int, does: Turn | int) -> None:
    if isinstance(does, Turn):
        wall.turn(tile, does)
    elif not wall.page.is_there:
        raise InvalidRequest(Reason.NOT_OPEN, "presets are kept by the page, and it is closed")
    elif not wall.page.keeps_presets:
        raise InvalidRequest(Reason.NOT_OPEN, "presets are kept by pages, and this is a camera")
    else:
        wall.tell(Recall(tile=tile, place=does), ("recall", tile))
