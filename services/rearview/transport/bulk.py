"""Much at a time, over a connection of its own: what a session is goes past the frames of the others.

Who pulls dials the address that takes links, greets as a link does, and sends one PULL. It is answered by
PARTs, bounded in size and each sent when nearly all before it was read, so that neither end holds more than
a few of them, and by END, which carries a reason if something went wrong. What surprises: to whoever serves,
the connection is a link like any other, on which one request comes.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

from rearview.config import LinkConfig
from rearview.errors import RearviewError, Reason, Refused
from rearview.transport.links import Link, LinkClosed, connect
from rearview.transport.refusal import refusal, refused
from rearview.transport.wire import Kind, WireError, decode_json, encode_json

__all__ = ["MAX_PART_BYTES", "PART_BYTES", "Source", "pull", "serve"]

PART_BYTES = 1 << 20
"""What is sent at a time: the loop that sends it has frames to send too."""
MAX_PART_BYTES = 8 << 20
"""What is read at a time."""
STALL_S = 10.0
"""A peer that neither reads nor sends for so long is given up."""
_PREFIX = struct.Struct("<IB")

Piece: TypeAlias = "bytes | memoryview"
Source: TypeAlias = "Callable[[Mapping[str, Any]], AsyncGenerator[Piece, None]]"
"""Answers a request with bytes, in pieces of any size. Raises RearviewError."""


async def pull(
    config: LinkConfig, node: str, address: str, request: Mapping[str, Any], *, wait_s: float = 0.0
) -> AsyncGenerator[bytes, None]:
    """What the process at `address` has to say to a request, part by part; close it if it is not read to its
    end. `node`: this process's; `wait_s`: how long the other end may take before it begins.

    Raises what the other end refused it with, and Refused(REPLICA_LOST) if it is gone or was never there.
    """
    try:
        reader, writer, version = await connect(config, node, address)
    except LinkClosed as error:
        raise _lost(str(error)) from None
    try:
        if version < 2:
            raise _lost("the peer speaks version 1 alone, which pulls nothing")
        body = encode_json(dict(request))
        writer.writelines((_PREFIX.pack(len(body), Kind.PULL), body))
        now = asyncio.get_running_loop().time
        due_s = now() + wait_s + STALL_S
        while True:
            async with asyncio.timeout_at(due_s):  # Beats, which all links have, put it off for nobody.
                kind, body = await _read(reader)
            if kind == Kind.PART:
                yield body
                due_s = now() + STALL_S
            elif kind == Kind.END:
                if "reason" in (content := decode_json(body)):
                    raise refused(content)
                return
    except (OSError, EOFError, TimeoutError, WireError) as error:
        raise _lost(f"cut off while it was pulled: {type(error).__name__}") from None
    finally:
        writer.close()


async def serve(link: Link, request: Mapping[str, Any], source: Source) -> None:
    """Answer one PULL that came over `link` with what `source` gives. Raises what `source` does that is no
    RearviewError, after saying so to the peer.
    """
    end: dict[str, Any] = {}
    try:
        async with aclosing(source(request)) as pieces, aclosing(_gathered(pieces)) as groups:
            async for parts in groups:
                link.send(Kind.PART, *parts)
                async with asyncio.timeout(STALL_S):
                    await link.drained()
    except RearviewError as error:
        end = refusal(error)
    except (ConnectionError, TimeoutError):  # Who has asked is gone, or does not read.
        link.close()
        return
    except Exception:
        link.close()
        raise
    link.send(Kind.END, encode_json(end))


async def _gathered(pieces: AsyncIterator[Piece]) -> AsyncGenerator[list[Piece], None]:
    """The bytes of `pieces`, regrouped: at most `PART_BYTES` at a time, none copied."""
    group: list[Piece] = []
    room = PART_BYTES
    async for piece in pieces:
        for part in _cut(memoryview(piece), room):
            group.append(part)
            room -= len(part)
            if not room:
                yield group
                group, room = [], PART_BYTES
    if group:
        yield group


def _cut(piece: memoryview, room: int) -> Iterator[memoryview]:
    """A first part of `room` bytes, then parts of `PART_BYTES`."""
    at = 0
    while at < len(piece):
        yield piece[at : at + room]
        at, room = at + room, PART_BYTES


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    length, kind = _PREFIX.unpack(await reader.readexactly(_PREFIX.size))
    if length > MAX_PART_BYTES:
        raise WireError(f"a part of {length} bytes is over the limit {MAX_PART_BYTES}")
    return kind, await reader.readexactly(length)


def _lost(text: str) -> Refused:
    return Refused(Reason.REPLICA_LOST, text, retry_after_s=1.0)
