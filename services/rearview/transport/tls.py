"""TLS of links between hosts. Inside it both ends still prove that they know the secret.

What surprises: the server's certificate is chosen anew for every connection, so that a file that was replaced
is used from the next one on. Its authority is read once.
"""

from __future__ import annotations

import functools
import logging
import ssl

from rearview.access import LinkTls
from rearview.errors import ConfigError
from rearview.files import Refreshed, Watched

__all__ = ["client_context", "server_context"]

logger = logging.getLogger(__name__)


def server_context(tls: LinkTls | None) -> ssl.SSLContext | None:
    """For who is dialled. Raises ConfigError for files that cannot be used."""
    if tls is None:
        return None
    watched = _watched(tls, ssl.Purpose.CLIENT_AUTH)
    context = _context(tls, ssl.Purpose.CLIENT_AUTH)

    def pick(connection: ssl.SSLObject, name: str | None, initial: ssl.SSLContext) -> None:
        connection.context = _latest(watched)

    context.sni_callback = pick
    return context


def client_context(tls: LinkTls | None) -> ssl.SSLContext | None:
    """For who dials, with the certificate of now. Raises ConfigError."""
    return None if tls is None else _latest(_watched(tls, ssl.Purpose.SERVER_AUTH))


@functools.cache
def _watched(tls: LinkTls, purpose: ssl.Purpose) -> Watched[ssl.SSLContext]:
    return Watched([tls.cert_file, tls.key_file], lambda: _context(tls, purpose))


def _latest(watched: Watched[ssl.SSLContext]) -> ssl.SSLContext:
    if watched.refresh() is Refreshed.BROKEN:
        logger.error("certificates of links cannot be read, the former ones hold: %s", watched.error)
    return watched.value


def _context(tls: LinkTls, purpose: ssl.Purpose) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=str(tls.ca_file))
        context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ssl.SSLError) as error:
        text = f"link.tls: {tls.cert_file}, {tls.key_file} or {tls.ca_file}"
        raise ConfigError(f"{text}: cannot be used ({type(error).__name__})") from None
    context.check_hostname = False  # Peers are found by address.
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
