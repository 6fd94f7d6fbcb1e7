"""A call as its handler gets it: whose it is, and messages that were checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from rearview.config import TenantConfig
from rearview.errors import InvalidRequest, Reason
from rearview.ingress.auth import Caller

__all__ = ["Context", "Parse", "ReadingContext", "tenant_of"]

Context = grpc.aio.ServicerContext[Any, Any]
Parse = Callable[[bytes], Any]
"""The message in some bytes. Raises InvalidRequest."""


class ReadingContext:
    """gRPC's context of a call whose requests come as bytes: all of it, but what is read is parsed here."""

    def __init__(self, context: Context, parse: Parse, caller: Caller | None) -> None:
        """`caller`: None where the method is open to everyone."""
        self._context, self._parse = context, parse
        self.caller = caller
        self.num_bytes = 0
        """Of the last request that was read."""

    async def read(self) -> Any:
        """The next request, or `grpc.aio.EOF`. Raises InvalidRequest for bytes that are none."""
        content = await self._context.read()
        self.num_bytes = len(content) if isinstance(content, bytes) else 0
        return self._parse(content) if isinstance(content, bytes) else content

    async def request(self) -> Any:
        """The only request of a unary method. Raises InvalidRequest if there is none."""
        request = await self.read()
        if request is grpc.aio.EOF:
            raise InvalidRequest(Reason.MESSAGE_EMPTY, "a call without a request")
        return request

    async def requests(self) -> AsyncIterator[Any]:
        """Every request, for handlers that iterate."""
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def tenant_of(context: Any) -> TenantConfig:
    """Whose call it is."""
    assert isinstance(context, ReadingContext), "the call came past the door"
    assert context.caller is not None, "a method that is open to everyone asks who calls"
    return context.caller.tenant
