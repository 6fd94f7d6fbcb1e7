"""The bearer token of a client: one for ever, or what a function says before each call."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from rearview.client.losses import Loss
from rearview.errors import RearviewError, Reason

__all__ = ["Metadata", "Token", "Tokens"]

Token = str | Callable[[], str | Awaitable[str]] | None
"""A function must not block: one that has to wait is async. What it raises ends the session or call."""

Metadata = tuple[tuple[str, str], ...]

_REFUSALS = (Reason.TOKEN_INVALID, Reason.TOKEN_EXPIRED, Reason.TOKEN_REVOKED)


class Tokens:
    """What a client shows of itself."""

    def __init__(self, token: Token) -> None:
        self._token = token

    async def metadata(self) -> Metadata:
        """For the next call; empty without a token."""
        token = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(token):
            token = await token
        return (("authorization", f"Bearer {token}"),) if token else ()

    async def may_come_again(self, error: RearviewError, shown: Metadata) -> bool:
        """Whether the call that showed `shown` was refused for its token, and there is another one now."""
        is_refused = error.reason in _REFUSALS and callable(self._token)
        return is_refused and await self.metadata() != shown

    async def judge(self, loss: Loss, shown: Metadata) -> Loss:
        """The loss of a connection that showed `shown`: with another token, the session may go on."""
        return Loss(loss.error, loss.is_transient or await self.may_come_again(loss.error, shown))
