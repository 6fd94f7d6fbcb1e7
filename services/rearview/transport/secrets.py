"""The secrets that prove that a peer belongs to the service: the one in force, and the one before it.

In a file they are lines, and the file is read again when it changes, so that a secret can be replaced in a
running service: who dials shows the first and then, if the peer hangs up, the second; who is dialled takes
either. Links that are up stay up.
"""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from rearview.config import LinkConfig
from rearview.environment import environment
from rearview.errors import ConfigError
from rearview.files import Refreshed, Watched

__all__ = ["MIN_SECRET_BYTES", "Secrets", "new_secret", "secrets_of", "with_secret"]

logger = logging.getLogger(__name__)

MIN_SECRET_BYTES = 16
MAX_SECRETS = 2

Secrets = tuple[bytes, ...]
"""At least one; that in force comes first."""


def new_secret() -> str:
    """One that nobody knows yet."""
    return secrets.token_hex(32)


def with_secret(config: LinkConfig, made: Callable[[], str] = new_secret) -> LinkConfig:
    """With a secret for a whole service: the configuration's, the environment's, or one that is made. Where a
    file holds the secrets, none is made.
    """
    if config.secret_file is not None:
        return config
    secret = config.secret or environment("LINK_SECRET") or made()
    return config.model_copy(update={"secret": secret})


def secrets_of(config: LinkConfig) -> Secrets:
    """Those that hold now. Raises ConfigError for a file that cannot be used and never could."""
    if config.secret_file is None:
        return (config.secret.encode(),)
    watched = _watched(config.secret_file)
    found = watched.refresh()
    if found is Refreshed.BROKEN:
        logger.error("link secrets cannot be read, the former ones hold: %s", watched.error)
    elif found is Refreshed.CHANGED:
        logger.info("link secrets were read again")
    return watched.value


@functools.cache
def _watched(path: Path) -> Watched[Secrets]:
    return Watched([path], lambda: _read(path))


def _read(path: Path) -> Secrets:
    try:
        secrets = tuple(path.read_bytes().split())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from None
    if not 1 <= len(secrets) <= MAX_SECRETS:
        raise ConfigError(f"{path}: has {len(secrets)} secrets, where one or two are meant")
    if any(len(secret) < MIN_SECRET_BYTES for secret in secrets):
        raise ConfigError(f"{path}: a secret has at least {MIN_SECRET_BYTES} bytes")
    return secrets
