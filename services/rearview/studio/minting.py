"""The call that mints a token of one session: `POST /api/tokens`, with a tenant's bearer token."""

from __future__ import annotations

from typing import Annotated

from aiohttp import hdrs, web
from pydantic import BaseModel, Field, ValidationError

from rearview.errors import InvalidRequest, Reason
from rearview.studio.grants import LIFE_MINUTES, MAX_LIFE_MINUTES
from rearview.studio.http_calls import bearer, body_text, refusing
from rearview.studio.sessions import Sessions
from rearview.studio.spoken import STRICT

__all__ = ["mint"]


class _Asked(BaseModel):
    model_config = STRICT

    minutes: Annotated[float, Field(ge=0, le=MAX_LIFE_MINUTES)] = LIFE_MINUTES
    """How long the token lives from now; 0 takes back the one that is named."""
    token: Annotated[str, Field(max_length=256)] | None = None
    """One that was minted before: it lives on. None: a new one."""


@refusing
async def mint(sessions: Sessions, request: web.Request, *, is_known: bool) -> web.Response:
    """Answers the call; what is refused has `reason` and `message`. `is_known`: see `Sessions.mint`."""
    asked, tenant = _read(await body_text(request)), bearer(request)
    token = asked.token
    if token is None:
        token = await sessions.mint(tenant, asked.minutes, is_known=is_known)
    else:
        await sessions.prolong(token, tenant, asked.minutes, is_known=is_known)
    content = {"token": token, "expires_in_s": 60 * asked.minutes}
    status = 201 if asked.token is None else 200
    return web.json_response(content, status=status, headers={hdrs.CACHE_CONTROL: "no-store"})


def _read(body: str) -> _Asked:
    try:
        asked = _Asked.model_validate_json(body or "{}")
    except ValidationError:
        text = f"the body is a JSON object with minutes, 0 to {MAX_LIFE_MINUTES}, and token"
        raise InvalidRequest(Reason.MESSAGE_INVALID, text) from None
    if asked.token is None and asked.minutes == 0:
        raise InvalidRequest(Reason.MESSAGE_INVALID, "a new token lives for more than 0 minutes")
    return asked
