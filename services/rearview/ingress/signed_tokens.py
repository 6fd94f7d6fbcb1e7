"""JSON Web Tokens: whose key signed them, for whom, and until when. A library verifies them (PyJWT).

Only algorithms with a public key are known here, so none of "none" and no public key that is taken for a
shared secret can be asked for. Every claim that is checked must be there, `nbf` apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from rearview.access import JwtConfig
from rearview.errors import ConfigError

__all__ = ["Claim", "SignedTokens"]

PEM = b"-----BEGIN "
REFUSALS = (jwt.PyJWTError, TypeError, ValueError, UnsupportedAlgorithm)
"""What PyJWT and cryptography raise over tokens and keys that are not what they should be."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a valid token says."""

    tenant: str
    expires_s: float
    """Wall clock."""


class SignedTokens:
    """The keys of an issuer, and what its tokens must say."""

    def __init__(self, config: JwtConfig, keys: Mapping[str | None, Any]) -> None:
        """`keys` by key id; a lone key may have none."""
        self._config, self._keys = config, keys

    @classmethod
    def load(cls, config: JwtConfig) -> SignedTokens:
        """Read the keys. Raises ConfigError naming the file, never what is in it."""
        path = config.keys_file
        try:
            content = path.read_bytes()
            keys = _pem_keys(content) if content.lstrip().startswith(PEM) else _jwks_keys(content)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except REFUSALS:
            raise ConfigError(f"{path}: neither a JWKS nor a public key in PEM") from None
        return cls(config, keys)

    def claim(self, token: bytes) -> Claim | None:
        """What a token says; None for one that is not valid now, whatever is wrong with it."""
        config = self._config
        try:
            header = jwt.get_unverified_header(token)
            key = self._key(header)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(config.algorithms),
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway_s,
                options={"require": ["exp", "iat", "aud", "iss"]},
            )
            tenant, expires_s = claims.get(config.tenant_claim), float(claims["exp"]) + config.leeway_s
        except REFUSALS:
            return None
        return Claim(tenant, expires_s) if isinstance(tenant, str) else None

    def _key(self, header: Mapping[str, Any]) -> Any:
        """Raises InvalidKeyError for a key that is not ours; one that is not named is the only one."""
        if "crit" in header:
            raise jwt.InvalidTokenError("extensions are not understood")
        kid = header.get("kid")
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if kid is None or kid not in self._keys:
            raise jwt.InvalidKeyError("no such key")
        return self._keys[kid]


def _pem_keys(content: bytes) -> dict[str | None, Any]:
    return {None: load_pem_public_key(content)}


def _jwks_keys(content: bytes) -> dict[str | None, Any]:
    """Raises ConfigError for keys that nobody can tell apart, or that are secrets."""
    known = json.loads(content)
    if not isinstance(known, dict) or not isinstance(known.get("keys"), list) or not known["keys"]:
        raise ConfigError("a JWKS is an object with a list of keys")
    keys: dict[str | None, Any] = {}
    for each in known["keys"]:
        if each.get("kty") == "oct" or "d" in each:
            raise ConfigError("holds a secret: tokens are verified with public keys alone")
        key = jwt.PyJWK(each)
        if key.key_id in keys:
            raise ConfigError("two keys have the same key id")
        keys[key.key_id] = key
    if None in keys and len(keys) > 1:
        raise ConfigError("of several keys each needs a key id (kid)")
    return keys
