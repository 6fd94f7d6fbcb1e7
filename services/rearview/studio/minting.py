"""The call that mints a token of one session: `POST /api/tokens`, with a tenant's bearer token."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from rearview.errors import InvalidRequest, RearviewError, Reason
from rearview.studio.grants import LIFE_MINUTES, MAX_LIFE_MINUTES
from rearview.studio.sessions import Sessions
from rearview.studio.spoken import STRICT

__all__ = ["mint"]

HTTP_STATUS = {"UNAUTHENTICATED": 401, "INVALID_ARGUMENT": 400, "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503}


class _Asked(BaseModel):
    model_config = STRICT

    minutes: Annotated[float, Field(ge=0, le=MAX_LIFE_MINUTES)] = LIFE_MINUTES
    """How long the token lives from now; 0 takes back the one that is named."""
    token: Annotated[str, Field(max_length=256)] | None = None
    """One that was minted before: it lives on. None: a new one."""


async def mint(sessions: Sessions, request: web.Request, *, is_known: bool) -> web.Response:
    """Answers the call; what is refused has `reason` and `message`. `is_known`: see `Sessions.mint`."""
    try:
        asked = _read(await request.read())
        tenant = _bearer(request)
        if asked.token is None:
            token = await sessions.mint(tenant, asked.minutes, is_known=is_known)
        else:
            token = asked.token
            await sessions.prolong(token, tenant, asked.minutes, is_known=is_known)
    except RearviewError as error:
        content: dict[str, object] = {"reason": error.reason.name, "message": error.message}
        return _answer(content, HTTP_STATUS.get(error.status, 500))
    is_new = asked.token is None
    return _answer({"token": token, "expires_in_s": 60 * asked.minutes}, 201 if is_new else 200)


def _read(body: bytes) -> _Asked:
    try:
        asked = _Asked.model_validate_json(body or b"{}")
    except ValidationError:
        text = f"the body is a JSON object with minutes, 0 to {MAX_LIFE_MINUTES}, and token"
        raise InvalidRequest(Reason.MESSAGE_INVALID, text) from None
    if asked.token is None and asked.minutes == 0:
        raise InvalidRequest(Reason.MESSAGE_INVALID, "a new token lives for more than 0 minutes")
    return asked


def _bearer(request: web.Request) -> str | None:
    header = request.headers.get("Authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token or not token.isascii() or not token.isprintable():
        raise InvalidRequest(Reason.TOKEN_INVALID, "the Authorization header is no bearer token")
    return token


def _answer(content: dict[str, object], status: int) -> web.Response:
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store"})
