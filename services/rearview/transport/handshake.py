"""How two ends of a connection greet: which versions they speak, and a proof that both know the secret.

    greeting = "rearview-link" | oldest version u8 | newest version u8 | nonce 32 bytes
    proof    = HMAC-SHA256(secret, role | nonce of who dialled | nonce of who accepted)

Who dialled speaks first. What surprises: a peer that speaks version 1 alone says "-1" in place of the two
versions and hangs up on hearing anything else, since version 1 knew of no other. So who accepts waits for
what is said, and who dialled tries again in the old words. Who accepts also waits for the proof, and answers
with the secret that it shows: while secrets are replaced, two are good.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import Sequence

from rearview.transport.codec import Versions

__all__ = ["VERSION_1_ALONE", "LinkClosed", "OldPeer", "WrongSecret", "accept", "dial"]

PROTOCOL = b"rearview-link"
NONCE_BYTES = 32
PROOF_BYTES = 32
GREETING_BYTES = len(PROTOCOL) + 2 + NONCE_BYTES
VERSION_1_ALONE = Versions(1, 1)
_FIELD_OF_VERSION_1 = b"-1"


class LinkClosed(ConnectionError):
    """The link is closed: the peer is gone, does not know the secret, or speaks no version of ours."""


class WrongSecret(LinkClosed):
    """The peer does not know the secret that was shown to it, or is gone: another one may do."""


class OldPeer(LinkClosed):
    """The peer speaks version 1 alone: dial it again as one that does too."""


async def accept(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secrets: Sequence[bytes], ours: Versions
) -> int:
    """Greet who has dialled and must know one of `secrets`; returns the version of the link. Raises
    LinkClosed and IncompleteReadError.
    """
    theirs, nonce = await _read_greeting(reader)
    if theirs == VERSION_1_ALONE and 1 in ours:
        ours = VERSION_1_ALONE
    nonces = nonce + _write_greeting(writer, ours)
    version = _agreed(ours, theirs)
    theirs_proof = await reader.readexactly(PROOF_BYTES)
    for secret in secrets:
        if hmac.compare_digest(theirs_proof, _proof(secret, b"dialled", nonces)):
            writer.write(_proof(secret, b"accepted", nonces))
            return version
    raise LinkClosed("the peer did not authenticate")


async def dial(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes, ours: Versions
) -> int:
    """Greet who was dialled; returns the version of the link. Raises OldPeer, WrongSecret, LinkClosed and
    IncompleteReadError.
    """
    mine = _write_greeting(writer, ours)
    theirs, nonce = await _read_greeting(reader)
    if theirs == VERSION_1_ALONE and theirs != ours and 1 in ours:
        raise OldPeer("the peer speaks version 1 alone")
    version = _agreed(ours, theirs)
    writer.write(_proof(secret, b"dialled", mine + nonce))
    try:
        answer = await reader.readexactly(PROOF_BYTES)
    except (asyncio.IncompleteReadError, ConnectionError):
        raise WrongSecret("the peer hung up on our proof") from None
    if not hmac.compare_digest(answer, _proof(secret, b"accepted", mine + nonce)):
        raise LinkClosed("the peer did not authenticate")
    return version


def _proof(secret: bytes, role: bytes, nonces: bytes) -> bytes:
    """`role`: of who proves, so that a proof cannot be mirrored."""
    return hmac.new(secret, role + nonces, hashlib.sha256).digest()


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
