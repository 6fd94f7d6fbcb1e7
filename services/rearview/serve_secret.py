"""The links' secret of a service that names none: made once in a Ray, and kept by its control service.

Serve builds the application anew for every update. With a secret made by each build the new replicas would
refuse the links of the old ones, and every session would be lost.
"""

from __future__ import annotations

from rearview.transport.secrets import new_secret

__all__ = ["kept_secret"]

NAMESPACE = b"rearview"


def kept_secret(application: str) -> str:
    """The same for every build of the application in this Ray; a new one where there is no Ray."""
    from ray.experimental import internal_kv

    if not internal_kv._internal_kv_initialized():
        return new_secret()
    key = f"link-secret/{application}".encode()
    internal_kv._internal_kv_put(key, new_secret().encode(), overwrite=False, namespace=NAMESPACE)
    kept: bytes = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
    return kept.decode()
