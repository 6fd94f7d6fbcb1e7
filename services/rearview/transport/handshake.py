"""How two ends of a connection greet: which versions they speak, and a proof that both know the secret.

    greeting = "rearview-link" | oldest version u8 | newest version u8 | nonce 32 bytes
    proof    = HMAC-SHA256(secret, role | nonce of who dialled | nonce of who accepted)

Who dialled speaks first. What surprises: a peer that speaks version 1 alone says "-1" in place of the two
versions and hangs up on hearing anything else, since version 1 knew of no other. So who accepts waits for
what is said, and who dialled tries again in the old words.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os

from rearview.transport.codec import Versions

__all__ = ["VERSION_1_ALONE", "LinkClosed", "OldPeer", "accept", "dial"]

PROTOCOL = b"rearview-link"
NONCE_BYTES = 32
GREETING_BYTES = len(PROTOCOL) + 2 + NONCE_BYTES
VERSION_1_ALONE = Versions(1, 1)
_FIELD_OF_VERSION_1 = b"-1"


class LinkClosed(ConnectionError):
    """The link is closed: the peer is gone, does not know the secret, or speaks no version of ours."""


class OldPeer(LinkClosed):
    """The peer speaks version 1 alone: dial it again as one that does too."""


async def accept(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes, ours: Versions
) -> int:
    """Greet who has dialled; returns the version of the link. Raises LinkClosed and IncompleteReadError."""
    theirs, nonce = await _read_greeting(reader)
    if theirs == VERSION_1_ALONE and 1 in ours:
        ours = VERSION_1_ALONE
    nonces = nonce + _write_greeting(writer, ours)
    version = _agreed(ours, theirs)
    await _prove(reader, writer, secret, nonces, (b"accepted", b"dialled"))
    return version


async def dial(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes, ours: Versions
) -> int:
    """Greet who was dialled; returns the version of the link. Raises OldPeer, LinkClosed and
    IncompleteReadError.
    """
    mine = _write_greeting(writer, ours)
    theirs, nonce = await _read_greeting(reader)
    if theirs == VERSION_1_ALONE and theirs != ours and 1 in ours:
        raise OldPeer("the peer speaks version 1 alone")
    version = _agreed(ours, theirs)
    await _prove(reader, writer, secret, mine + nonce, (b"dialled", b"accepted"))
    return version


def _write_greeting(writer: asyncio.StreamWriter, ours: Versions) -> bytes:
    """Returns the nonce that it says."""
    nonce = os.urandom(NONCE_BYTES)
    field = _FIELD_OF_VERSION_1 if ours == VERSION_1_ALONE else bytes(ours)
    writer.write(PROTOCOL + field + nonce)
    return nonce


async def _read_greeting(reader: asyncio.StreamReader) -> tuple[Versions, bytes]:
    """The versions and the nonce of the peer."""
    greeting = await reader.readexactly(GREETING_BYTES)
    if not greeting.startswith(PROTOCOL):
        raise LinkClosed("the peer speaks another protocol")
    field, nonce = greeting[len(PROTOCOL) : -NONCE_BYTES], greeting[-NONCE_BYTES:]
    return VERSION_1_ALONE if field == _FIELD_OF_VERSION_1 else Versions(*field), nonce


def _agreed(ours: Versions, theirs: Versions) -> int:
    version = ours.common(theirs)
    if version is None:
        raise LinkClosed(f"the peer speaks version {theirs}, this process {ours}")
    return version


async def _prove(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    secret: bytes,
    nonces: bytes,
    roles: tuple[bytes, bytes],
) -> None:
    """Mutual challenge and response. `roles`: ours and the peer's, so that a proof cannot be mirrored."""
    mine, theirs = (hmac.new(secret, role + nonces, hashlib.sha256).digest() for role in roles)
    writer.write(mine)
    if not hmac.compare_digest(await reader.readexactly(len(theirs)), theirs):
        raise LinkClosed("the peer did not authenticate")
