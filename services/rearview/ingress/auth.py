"""Who is calling: a bearer token in the call's metadata → a tenant. Fails closed.

Only SHA-256 hashes of tokens are known here. Tokens are random, not passwords, so a fast hash is enough.
Without a tenants file everyone is the tenant `local`: meant for loopback, see `tenants_file`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from rearview.config import TenantConfig
from rearview.errors import ConfigError, InvalidRequest, Reason

__all__ = ["LOCAL_TENANT", "MAX_TOKEN_BYTES", "Metadata", "Tenants"]

Metadata = Iterable[tuple[str, str | bytes]]
"""Of a call."""

MAX_TOKEN_BYTES = 4096
"""A longer token is refused before it is hashed."""

LOCAL_TENANT = TenantConfig(
    name="local",
    token_sha256="0" * 64,
    max_streams=4096,
    max_frames_per_s=1e6,
    max_pixels=1 << 24,
)
"""Who everyone is without a tenants file. No limit of its own; those of the service still hold."""


class Tenants:
    """The tenants of a service."""

    def __init__(self, tenants: Sequence[TenantConfig] | None) -> None:
        """None: no authentication. Raises ConfigError if two share a name or a token, or none is left."""
        if tenants is not None:
            _check(tenants)
        self._tenants = None if tenants is None else tuple(tenants)

    @classmethod
    def load(cls, path: Path | None) -> Tenants:
        """Read a YAML list of tenants; None: no authentication.

        Raises ConfigError naming file and keys, never a value.
        """
        if path is None:
            return cls(None)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls(TypeAdapter(list[TenantConfig]).validate_python(content))
        except ValidationError as error:
            raise ConfigError(f"{path}: {_where(error)}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def authenticate(self, metadata: Metadata) -> TenantConfig:
        """The tenant whose token the call carries as `authorization: Bearer <token>`.

        Raises InvalidRequest(TOKEN_INVALID), with the same text whatever is wrong. Every tenant is
        compared, in constant time, so that the time taken tells nothing about the tokens.
        """
        if self._tenants is None:
            return LOCAL_TENANT
        token = _bearer_token(metadata)
        found: TenantConfig | None = None
        if token is not None:
            digest = hashlib.sha256(token).hexdigest()
            for tenant in self._tenants:
                if hmac.compare_digest(digest, tenant.token_sha256):
                    found = tenant
        if found is None:
            raise InvalidRequest(Reason.TOKEN_INVALID, "a valid bearer token is needed")
        return found


def _bearer_token(metadata: Metadata) -> bytes | None:
    """The one token; None if there is no header, more than one, another scheme or a senseless token."""
    headers = [value for key, value in metadata if key.lower() == "authorization"]
    if len(headers) != 1 or not isinstance(headers[0], str):
        return None
    scheme, _, token = headers[0].partition(" ")
    if scheme.lower() != "bearer" or not token or not token.isascii() or not token.isprintable():
        return None
    return token.encode("ascii") if len(token) <= MAX_TOKEN_BYTES and " " not in token else None


def _check(tenants: Sequence[TenantConfig]) -> None:
    if not tenants:
        raise ConfigError("no tenant is named, so nobody could come in")
    for what, values in (
        ("name", [tenant.name for tenant in tenants]),
        ("token_sha256", [tenant.token_sha256 for tenant in tenants]),
    ):
        if len(set(values)) != len(values):
            raise ConfigError(f"two tenants have the same {what}")


def _where(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'tenants'}: {item['msg']}" for item in error.errors()
    )
