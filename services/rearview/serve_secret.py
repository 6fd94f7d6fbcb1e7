"""The links' secret of a service that names none: made once in a Ray, and kept by its control service.

Serve builds the application anew for every update. With a secret made by each build the new replicas would
refuse the links of the old ones, and every session would be lost.
"""

from __future__ import annotations

from rearview.config import ServiceConfig
from rearview.errors import ConfigError
from rearview.transport.secrets import new_secret

__all__ = ["kept_secret"]

NAMESPACE = b"rearview"


def kept_secret(config: ServiceConfig) -> str:
    """The same for every build of the application in this Ray; a new one where there is no Ray. Raises
    ConfigError where clusters share it: each would make its own, and refuse the links of the others.
    """
    from ray.experimental import internal_kv

    directory, is_made = config.directory, config.link.secret_file is None
    if is_made and directory.takes_over and directory.redis_url is not None:
        raise ConfigError("directory.takes_over needs link.secret or link.secret_file: clusters share one")
    if not internal_kv._internal_kv_initialized():
        return new_secret()
    key = f"link-secret/{config.name}".encode()
    internal_kv._internal_kv_put(key, new_secret().encode(), overwrite=False, namespace=NAMESPACE)
    kept: bytes = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
    return kept.decode()
