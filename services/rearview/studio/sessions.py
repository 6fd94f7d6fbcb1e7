"""Pages of others: a backend mints a token, and a page with it has one session, as long as the token lives.

backend ─tenant's token─► mint ─token of a session─► page ─► enter ─► a wall that opens one tile
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from rearview.errors import InvalidRequest, RearviewError, Reason, Refused
from rearview.studio.grants import Grants
from rearview.studio.protocol import Hello
from rearview.studio.wall import Wall

__all__ = ["Sessions"]

Describe = Callable[[str | None], Awaitable[object]]
"""Asks the service something with a bearer token; None: as the gateway. Raises what the service refuses."""
NOBODY = "-"
"""A bearer token of no tenant."""
MAX_ASKING = 16
"""Calls for which the service is asked at a time."""
ASK_S = 5.0
"""How long one waits for the service, which may be starting."""


class Sessions:
    """For one event loop."""

    def __init__(
        self,
        describe: Describe,
        begin: Callable[[str | None], Wall],
        is_there: Callable[[Wall], bool],
        leave: Callable[[Wall], None],
    ) -> None:
        """`begin` a wall for a bearer token, which may be Refused; `leave` ends one."""
        self._describe, self._begin, self._is_there, self._leave = describe, begin, is_there, leave
        self._grants = Grants()
        self._num_asking = 0

    async def mint(self, tenant: str | None, minutes: float, *, is_known: bool) -> str:
        """A token of one session for that tenant; None: for the gateway's own.

        `is_known`: the peer may do what the studio's page may. Raises InvalidRequest for a bearer token that
        the service does not know, and for any of a peer that is not known if the service knows no tenants.
        """
        await self._admit(tenant, is_known=is_known)
        now = _now()
        return self._grants.mint(tenant, now + 60 * minutes, now)

    async def prolong(self, token: str, tenant: str | None, minutes: float, *, is_known: bool) -> None:
        """Let a token live for so long from now; 0: take it back, and its session ends. Raises as `mint`."""
        await self._admit(tenant, is_known=is_known)
        now = _now()
        grant = self._grants.owned(token, tenant, now)
        if minutes > 0:
            grant.ends_s = now + 60 * minutes
        else:
            grant.revoke(now)
            self.tick(now)

    def enter(self, hello: Hello) -> tuple[Wall, bool]:
        """The wall of a token's session, or a new one; and which of both. Who comes later takes it over.

        Raises InvalidRequest for a token that is not valid now, and Refused.
        """
        grant = self._grants.find(hello.token, _now())
        if grant.wall is not None and self._is_there(grant.wall):
            return grant.wall, True
        grant.wall = self._begin(grant.tenant)
        return grant.wall, False

    def tick(self, now: float) -> None:
        """End the sessions of tokens that are over, and keep nothing of those that are gone."""
        for grant in self._grants:
            if grant.wall is None:
                continue
            if not self._is_there(grant.wall):
                grant.wall = None
                continue
            try:
                grant.check(now)
            except InvalidRequest as error:
                grant.wall.page.refuse(error, now)
                self._leave(grant.wall)
                grant.wall = None
        self._grants.forget(now)

    async def _admit(self, tenant: str | None, *, is_known: bool) -> None:
        if tenant is None and not is_known:
            raise InvalidRequest(Reason.TOKEN_INVALID, "a tenant's bearer token is needed")
        if self._num_asking >= MAX_ASKING:
            raise Refused(Reason.CALLS_EXHAUSTED, "too many calls at once", retry_after_s=1.0)
        self._num_asking += 1
        try:
            async with asyncio.timeout(ASK_S):
                await self._ask(tenant, is_known=is_known)
        except TimeoutError:
            text = f"the service has not answered within {ASK_S:g} s: it may be starting"
            raise Refused(Reason.REPLICA_LOST, text, retry_after_s=ASK_S) from None
        finally:
            self._num_asking -= 1

    async def _ask(self, tenant: str | None, *, is_known: bool) -> None:
        await self._describe(tenant)
        if is_known:
            return
        try:
            await self._describe(NOBODY)
        except RearviewError as error:
            if error.reason is Reason.TOKEN_INVALID:
                return
            raise
        raise InvalidRequest(Reason.TOKEN_INVALID, "this service knows no tenants: ask on its own machine")


def _now() -> float:
    return asyncio.get_running_loop().time()
