"""TLS of the gRPC port. Its files are read again when they change: the next connection gets the new ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc

from rearview.config import IngressConfig
from rearview.errors import ConfigError
from rearview.files import Refreshed, Watched

__all__ = ["server_credentials"]

logger = logging.getLogger(__name__)


def server_credentials(edge: IngressConfig, client_ca_file: Path | None) -> grpc.ServerCredentials | None:
    """None: the port speaks plain HTTP/2. `client_ca_file`: clients must show a certificate of this
    authority. Raises ConfigError for files that cannot be read.
    """
    cert_file, key_file = edge.tls_cert_file, edge.tls_key_file
    if cert_file is None or key_file is None:
        return None

    def read() -> grpc.ServerCertificateConfiguration:
        try:
            authority = None if client_ca_file is None else client_ca_file.read_bytes()
            pair = (key_file.read_bytes(), cert_file.read_bytes())
        except OSError as error:
            raise ConfigError(f"{error.filename}: cannot be read ({type(error).__name__})") from None
        return grpc.ssl_server_certificate_configuration([pair], authority)

    paths = [path for path in (cert_file, key_file, client_ca_file) if path is not None]
    watched = Watched(paths, read)

    def fetch() -> Any:
        """Those of the next connection, on a thread of gRPC's own; None: as before."""
        found = watched.refresh()
        if found is Refreshed.BROKEN:
            logger.error("certificates cannot be read, the former ones hold: %s", watched.error)
        return watched.value if found is Refreshed.CHANGED else None

    return grpc.dynamic_ssl_server_credentials(watched.value, fetch, client_ca_file is not None)
