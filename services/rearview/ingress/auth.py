"""Who is calling: a bearer token in the call's metadata → a tenant. Fails closed.

A token's SHA-256 hash is in the tenants file (such tokens are random, not passwords, so a fast hash is
enough), or an issuer has signed it (`signed_tokens`).
Without a tenants file everyone is the tenant `local`: meant for loopback, see `tenants_file`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from rearview.access import JwtConfig
from rearview.config import TenantConfig
from rearview.errors import ConfigError, InvalidRequest, Reason, own_words
from rearview.ingress.signed_tokens import SignedTokens

__all__ = ["LOCAL_TENANT", "MAX_TOKEN_BYTES", "Caller", "Metadata", "Tenants"]

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


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    tenant: TenantConfig
    expires_s: float | None = None
    """When the token ends, wall clock; None: it does not."""


class Tenants:
    """The tenants of a service, and whose tokens are whose."""

    def __init__(self, tenants: Sequence[TenantConfig] | None, signed: SignedTokens | None = None) -> None:
        """None: no authentication. Raises ConfigError if two share a name or a token, none is left, or one
        has no token and `signed` ones are not taken.
        """
        if tenants is not None:
            _check(tenants, signed)
        self._tenants = None if tenants is None else {tenant.name: tenant for tenant in tenants}
        self._signed = signed

    @classmethod
    def load(cls, path: Path | None, jwt: JwtConfig | None = None) -> Tenants:
        """Read a YAML list of tenants, None: no authentication, and the keys of signed tokens.

        Raises ConfigError naming file and keys, never a value.
        """
        if path is None:
            return cls(None)
        signed = None if jwt is None else SignedTokens.load(jwt)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls(TypeAdapter(list[TenantConfig]).validate_python(content), signed)
        except ValidationError as error:
            raise ConfigError(f"{path}: {_where(error)}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def __contains__(self, name: object) -> bool:
        return self._tenants is None or name in self._tenants

    def authenticate(self, metadata: Metadata) -> Caller:
        """Whose token the call carries as `authorization: Bearer <token>`.

        Raises InvalidRequest(TOKEN_INVALID), with the same text whatever is wrong.
        """
        if self._tenants is None:
            return Caller(LOCAL_TENANT)
        token = _bearer_token(metadata)
        caller = None if token is None else self._owner(token) or self._signer(token)
        if caller is None:
            raise InvalidRequest(Reason.TOKEN_INVALID, "a valid bearer token is needed")
        return caller

    def _owner(self, token: bytes) -> Caller | None:
        """Every hash is compared, in constant time, so that the time taken tells nothing about tokens."""
        digest, found = hashlib.sha256(token).hexdigest(), None
        for tenant in (self._tenants or {}).values():
            for known in tenant.hashes:
                if hmac.compare_digest(digest, known):
                    found = Caller(tenant)
        return found

    def _signer(self, token: bytes) -> Caller | None:
        claim = None if self._signed is None else self._signed.claim(token)
        tenant = None if claim is None else (self._tenants or {}).get(claim.tenant)
        return None if claim is None or tenant is None else Caller(tenant, claim.expires_s)


def _bearer_token(metadata: Metadata) -> bytes | None:
    """The one token; None if there is no header, more than one, another scheme or a senseless token."""
    headers = [value for key, value in metadata if key.lower() == "authorization"]
    if len(headers) != 1 or not isinstance(headers[0], str):
        return None
    scheme, _, token = headers[0].partition(" ")
    if scheme.lower() != "bearer" or not token or not token.isascii() or not token.isprintable():
        return None
    return token.encode("ascii") if len(token) <= MAX_TOKEN_BYTES and " " not in token else None


def _check(tenants: Sequence[TenantConfig], signed: SignedTokens | None) -> None:
    if not tenants:
        raise ConfigError("no tenant is named, so nobody could come in")
    hashes = [known for tenant in tenants for known in tenant.hashes]
    if signed is None and not all(tenant.hashes for tenant in tenants):
        raise ConfigError("a tenant without token_sha256 needs access.jwt")
    for what, values in (("name", [tenant.name for tenant in tenants]), ("token_sha256", hashes)):
        if len(set(values)) != len(values):
            raise ConfigError(f"two tenants have the same {what}")


def _where(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'tenants'}: {own_words(item['msg'])}" for item in error.errors()
    )
