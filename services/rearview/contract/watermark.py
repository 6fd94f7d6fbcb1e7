"""What the chain model writes into its answers: whose frame it believes this is, and what it remembers.

An answer is the input with a *watermark* behind it: the session, the ordinal, a digest of the settings, and
for every denoising step how many inputs of the session it has seen and a hash chain over them. So a frame of
another session, and a past that was swapped, skipped or silently reset, show in every later answer.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from rearview.contract.settings import Settings

__all__ = ["CHAIN_BYTES", "Link", "Watermark", "digest", "first_chain", "next_chain", "settings_digest"]

CHAIN_BYTES = 16
MAGIC = b"rvchain1"
_HEAD = struct.Struct("<16sqQB")
"""Session, ordinal, digest of the settings, number of steps."""
_STEP = struct.Struct(f"<Bq{CHAIN_BYTES}s")
_TAIL = struct.Struct("<H8s")
"""Bytes of head and steps, and the magic word: a watermark is read from the end."""


@dataclass(frozen=True, slots=True)
class Link:
    """What one denoising step knew of the session after a frame."""

    step: int
    count: int
    """Inputs in the chain."""
    chain: bytes


@dataclass(frozen=True, slots=True)
class Watermark:
    """What an answer says of its frame."""

    session_id: str
    ordinal: int
    settings: int
    """`settings_digest` of those that it was translated under."""
    links: tuple[Link, ...] = ()
    """Of the steps that the frame has passed, in order."""

    def behind(self, content: bytes) -> bytes:
        """`content`, watermarked."""
        head = _HEAD.pack(bytes.fromhex(self.session_id), self.ordinal, self.settings, len(self.links))
        steps = b"".join(_STEP.pack(link.step, link.count, link.chain) for link in self.links)
        mark = head + steps
        return content + mark + _TAIL.pack(len(mark), MAGIC)

    @classmethod
    def read(cls, data: bytes) -> tuple[bytes, Watermark | None]:
        """The content and its watermark; None if it has none. Undoes `behind`."""
        if len(data) < _TAIL.size or not data.endswith(MAGIC):
            return data, None
        length, _ = _TAIL.unpack(data[-_TAIL.size :])
        end = len(data) - _TAIL.size
        if not _HEAD.size <= length <= end:
            return data, None
        mark = data[end - length : end]
        session, ordinal, settings, steps = _HEAD.unpack(mark[: _HEAD.size])
        if length != _HEAD.size + steps * _STEP.size:
            return data, None
        links = tuple(Link(*each) for each in _STEP.iter_unpack(mark[_HEAD.size :]))
        return data[: end - length], cls(session.hex(), ordinal, settings, links)


def first_chain(session_id: str, step: int) -> bytes:
    """The chain of a session that has seen nothing."""
    return digest(f"{session_id}/{step}".encode())


def next_chain(chain: bytes, ordinal: int, settings: int, content: bytes) -> bytes:
    """The chain after one more input."""
    return digest(chain, struct.pack("<qQ", ordinal, settings), content)


def settings_digest(settings: Settings) -> int:
    """64 bits over those settings that read alike on both sides of the protocol."""
    said = (settings.prompt, settings.seed, settings.steps)
    return int.from_bytes(digest(repr(said).encode())[:8], "little")


def digest(*parts: bytes) -> bytes:
    """16 bytes over the parts, each with its length."""
    found = hashlib.blake2b(digest_size=CHAIN_BYTES)
    for part in parts:
        found.update(struct.pack("<Q", len(part)))
        found.update(part)
    return found.digest()
