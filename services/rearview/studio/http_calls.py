"""What the studio's HTTP calls have in common: the token they show, their body, and how one is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from math import ceil
from typing import ParamSpec

from aiohttp import hdrs, web

from rearview.errors import InvalidRequest, RearviewError, Reason

__all__ = ["bearer", "body_text", "refusal", "refusing"]

HTTP_STATUS = {
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 503,
}
"""By canonical status; any other one is our own fault, 500."""
HTTP_STATUS_OF_REASON = {Reason.MESSAGE_TOO_LARGE: 413, Reason.NO_CAPACITY: 503}
"""Where HTTP tells apart what gRPC does not: no room for anybody is no quota of the caller's."""
RETRY_S = 1.0
"""When to ask again after a 503 that does not say it itself."""

Arguments = ParamSpec("Arguments")


def refusing(
    handler: Callable[Arguments, Awaitable[web.Response]],
) -> Callable[Arguments, Awaitable[web.Response]]:
    """A handler whose RearviewErrors become answers."""

    @wraps(handler)
    async def answer(*args: Arguments.args, **named: Arguments.kwargs) -> web.Response:
        try:
            return await handler(*args, **named)
        except RearviewError as error:
            return refusal(error)

    return answer


def refusal(error: RearviewError) -> web.Response:
    """An error as HTTP: its status, a JSON `reason` and `message`, and when to ask again if that is known."""
    status = HTTP_STATUS_OF_REASON.get(error.reason) or HTTP_STATUS.get(error.status, 500)
    content = {"reason": error.reason.name, "message": error.message}
    response = web.json_response(content, status=status, headers={hdrs.CACHE_CONTROL: "no-store"})
    if status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    if status == 503 or (status == 429 and error.retry_after_s is not None):
        response.headers[hdrs.RETRY_AFTER] = str(ceil(error.retry_after_s or RETRY_S))
    return response


def bearer(request: web.Request) -> str | None:
    """The bearer token that a request shows. Raises InvalidRequest(TOKEN_INVALID) for other credentials."""
    shown = request.headers.get(hdrs.AUTHORIZATION)
    if shown is None:
        return None
    scheme, _, rest = shown.partition(" ")
    token = rest.strip()
    if scheme.lower() != "bearer" or not token or not token.isascii() or not token.isprintable():
        raise InvalidRequest(Reason.TOKEN_INVALID, "the Authorization header is no bearer token")
    return token


async def body_text(request: web.Request) -> str:
    """The body of a request. Raises InvalidRequest(MESSAGE_TOO_LARGE, or MESSAGE_INVALID: no UTF-8)."""
    try:
        return (await request.read()).decode("utf-8")
    except web.HTTPRequestEntityTooLarge:
        text = f"a body of more than {request.client_max_size} bytes"
        raise InvalidRequest(Reason.MESSAGE_TOO_LARGE, text) from None
    except UnicodeDecodeError:
        raise InvalidRequest(Reason.MESSAGE_INVALID, "the body is no UTF-8") from None
