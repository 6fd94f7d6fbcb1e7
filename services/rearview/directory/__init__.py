"""Leases: which ingress feeds which session on which lane, behind one small interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rearview.directory.memory import MemoryDirectory
from rearview.directory.protocol import (
    Directory,
    DirectoryEmpty,
    DirectoryUnavailable,
    Lease,
    LeaseHeld,
    LeaseLost,
    QuotaExceeded,
)
from rearview.environment import environment

if TYPE_CHECKING:
    from rearview.config import DirectoryConfig
    from rearview.directory.connection import Circuit

__all__ = [
    "Directory",
    "DirectoryEmpty",
    "DirectoryUnavailable",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "MemoryDirectory",
    "QuotaExceeded",
    "open_directory",
]


def open_directory(config: DirectoryConfig, circuit: Circuit) -> Directory:
    """The directory that `config` asks for: Redis with a `redis_url`, else this process's memory.

    `REARVIEW_REDIS_PASSWORD` is used with a URL that names no password. Connects on first use, so a Redis
    that is not there yet, or refuses the password, shows as DirectoryUnavailable then. `circuit` decides
    whether a Redis that was found away is asked.
    Raises ConfigError if the URL cannot be read.
    """
    if config.redis_url is None:
        return MemoryDirectory(lease_s=config.lease_s)
    from rearview.directory.redis_store import RedisDirectory

    return RedisDirectory.from_url(
        config.redis_url,
        circuit,
        lease_s=config.lease_s,
        key_prefix=config.key_prefix,
        password=environment("REDIS_PASSWORD") or None,
    )
