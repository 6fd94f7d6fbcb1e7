"""Why a model could not be fetched: one error, one reason a program can act on."""

from __future__ import annotations

from enum import Enum

from rearview.errors import ConfigError

__all__ = ["FetchFailed", "FetchReason"]


class FetchReason(Enum):
    """The value is what one may do about it."""

    UNKNOWN_MODEL = "name a known model or a hub id"
    NOT_FOUND = "check the name"
    GATED = "accept the licence on its page and log in (hf auth login)"
    INCOMPLETE = "this repository has no such files: take another one"
    OFFLINE = "check the network; what was fetched before still works"
    INTERRUPTED = "try again: it goes on where it stopped"
    CHECKSUM = "try again: the file was damaged on the way, and is deleted"
    NO_SPACE = "free some space"
    NOT_WRITABLE = "choose another folder"
    BUSY = "another process fetches it: wait for that one"
    CANCELLED = "it goes on where it stopped when it is asked for again"


class FetchFailed(ConfigError):
    """A model was not fetched. Its folder is as it was before."""

    def __init__(self, reason: FetchReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.message}: {self.reason.value} ({self.reason.name})"
