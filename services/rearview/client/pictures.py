"""What sources of pictures have in common, and the error of those that cannot be read or written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import av
import av.error

from rearview.client.answers import Image
from rearview.client.fitting import Fit

__all__ = ["MediaError", "Picture", "Source", "open_container", "scheme_of", "without_secrets"]

NETWORK_TIMEOUT_S = (5.0, 10.0)
"""To open an address, and to wait for its next packet."""
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)


class MediaError(Exception):
    """A source that cannot be read or an output that cannot be written; the text is for the user."""


@dataclass(frozen=True)
class Picture:
    """One frame of the source."""

    image: Image
    pts: int
    """Presentation time from the start of the source, in `time_base`."""
    time_base: Fraction
    duration: int = 0
    """In `time_base`; 0 if unknown."""

    @property
    def presentation_s(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)


class Source(Protocol):
    """Something that gives pictures. `pictures` may be iterated once."""

    name: str
    size: tuple[int, int]
    """Width and height of its pictures, in square pixels and upright."""
    frame_rate: Fraction
    """Mean frames per second; a variable rate shows in the pictures' times."""
    time_base: Fraction
    num_frames: int | None
    """None if it is not known or has no end."""
    audio_path: str | None
    """The file or address whose audio track belongs to the pictures."""
    paths: tuple[Path, ...]
    """The files that it is read from."""
    is_live: bool

    def pictures(self, width: int, height: int, fit: Fit) -> Iterator[Picture]:
        """The pictures, each (height, width, 3). Raises MediaError."""
        ...


def scheme_of(name: str) -> str | None:
    """The scheme of an address such as rtsp://host/path, in lower case; None for a path."""
    found = _URL.match(name)
    return None if found is None else found[1].lower()


def without_secrets(address: str) -> str:
    """An address as it may be shown: without user, password and query."""
    if scheme_of(address) is None:
        return address
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def open_container(place: str, shown: str, **options: Any) -> Any:
    """`av.open`; an address may not take for ever. Raises MediaError that begins with `shown`."""
    if scheme_of(place) is not None:
        options["timeout"] = NETWORK_TIMEOUT_S
    try:
        return av.open(place, **options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).replace(place, shown)
        raise MediaError(f"{shown}: cannot be opened: {reason}") from None
