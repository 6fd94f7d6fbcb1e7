"""Tokens of one session each, minutes long. Values alone: no I/O, no clock; seconds are monotonic."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from rearview.errors import InvalidRequest, Reason, Refused
from rearview.studio.secrecy import same_secret
from rearview.studio.wall import Wall

__all__ = ["LIFE_MINUTES", "MAX_GRANTS", "MAX_LIFE_MINUTES", "MAX_OF_TENANT", "Grant", "Grants"]

LIFE_MINUTES, MAX_LIFE_MINUTES = 10, 60
MAX_GRANTS, MAX_OF_TENANT = 4096, 1024
"""Tokens of all tenants, those that are over and remembered included; and of one, that live."""
REMEMBERED_S = 3600.0
"""How long a token that is over is told apart from one that never was, while there is room."""


@dataclass(eq=False)
class Grant:
    """What a token is for."""

    tenant: str | None
    """The bearer token of the tenant for whom it was minted; None: the gateway's own."""
    ends_s: float
    wall: Wall | None = None
    """The session that it was used for last, while there is one."""
    is_revoked: bool = False

    def revoke(self, now: float) -> None:
        """Take it back."""
        self.is_revoked, self.ends_s = True, now

    def check(self, now: float) -> None:
        """Raises InvalidRequest(TOKEN_REVOKED or TOKEN_EXPIRED) once it is over."""
        if self.is_revoked:
            raise InvalidRequest(Reason.TOKEN_REVOKED, "the token was taken back")
        if now >= self.ends_s:
            raise InvalidRequest(Reason.TOKEN_EXPIRED, "the token has expired")


class Grants:
    """Of one gateway, by the hash of the token: the tokens themselves are kept nowhere."""

    def __init__(self) -> None:
        self._grants: dict[bytes, Grant] = {}

    def __iter__(self) -> Iterator[Grant]:
        return iter(tuple(self._grants.values()))

    def mint(self, tenant: str | None, ends_s: float, now: float) -> str:
        """A new token. Raises Refused(CALLS_EXHAUSTED) if the tenant has too many, or all have."""
        live = (each for each in self._grants.values() if now < each.ends_s)
        if sum(same_secret(each.tenant, tenant) for each in live) >= MAX_OF_TENANT:
            text = f"{MAX_OF_TENANT} tokens of this tenant are in use"
            raise Refused(Reason.CALLS_EXHAUSTED, text, retry_after_s=60.0)
        if len(self._grants) >= MAX_GRANTS and not self._make_room(now):
            raise Refused(Reason.CALLS_EXHAUSTED, f"{MAX_GRANTS} tokens are in use", retry_after_s=60.0)
        token = secrets.token_urlsafe(32)
        self._grants[_hash(token)] = Grant(tenant, ends_s)
        return token

    def find(self, token: str | None, now: float) -> Grant:
        """What a token is for. Raises InvalidRequest(TOKEN_INVALID, TOKEN_REVOKED or TOKEN_EXPIRED)."""
        grant = self._grants.get(_hash(token or ""))
        if grant is None:
            raise InvalidRequest(Reason.TOKEN_INVALID, "a token of a session is needed")
        grant.check(now)
        return grant

    def owned(self, token: str, tenant: str | None, now: float) -> Grant:
        """The same, for the tenant alone for whom it was minted."""
        grant = self.find(token, now)
        if not same_secret(grant.tenant, tenant):
            raise InvalidRequest(Reason.TOKEN_INVALID, "the token was minted for another tenant")
        return grant

    def forget(self, now: float) -> None:
        """Those that have been over for long."""
        for key, grant in tuple(self._grants.items()):
            if now > grant.ends_s + REMEMBERED_S and grant.wall is None:
                del self._grants[key]

    def _make_room(self, now: float) -> bool:
        """Forget the one that has been over for longest; False: none is, but those whose session ends now."""
        ended = ((key, each) for key, each in self._grants.items() if now >= each.ends_s)
        over = [(each.ends_s, key) for key, each in ended if each.wall is None]
        if over:
            del self._grants[min(over)[1]]
        return bool(over)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
