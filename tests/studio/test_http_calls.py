"""How calls are refused by HTTP: the status, what is said beside it, and what is read of a request at all."""

from __future__ import annotations

import json

import pytest
from rearview.errors import InvalidRequest, RearviewError, Reason, Refused
from rearview.studio.http_calls import refusal
from rearview.studio.webrtc.ice import Ice
from support.studio import StudioUnderTest, studio

pytestmark = pytest.mark.integration

NOBODY = "127.0.0.1:9"
"""An address at which no service answers: these calls are refused before it is asked."""
OFFER = {"Content-Type": "application/sdp"}


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (InvalidRequest(Reason.TOKEN_INVALID, ""), 401, None),
        (InvalidRequest(Reason.MESSAGE_INVALID, ""), 400, None),
        (InvalidRequest(Reason.MESSAGE_TOO_LARGE, ""), 413, None),
        (InvalidRequest(Reason.SESSION_UNKNOWN, ""), 404, None),
        (Refused(Reason.TAKEN_OVER, ""), 409, None),
        (Refused(Reason.CALLS_EXHAUSTED, "", retry_after_s=0.2), 429, "1"),
        (Refused(Reason.TENANT_STREAMS_EXHAUSTED, "", retry_after_s=59.1), 429, "60"),
        (Refused(Reason.CALLS_EXHAUSTED, ""), 429, None),
        (Refused(Reason.NO_CAPACITY, "", retry_after_s=10.0), 503, "10"),
        (Refused(Reason.REPLICA_LOST, ""), 503, "1"),
        (RearviewError(Reason.INTERNAL, ""), 500, None),
    ],
)
def test_a_refusal_has_the_status_of_its_reason_and_says_when_to_ask_again(
    error: RearviewError, status: int, retry_after: str | None
) -> None:
    answer = refusal(error)
    assert (answer.status, answer.headers.get("Retry-After")) == (status, retry_after)
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert answer.headers["Cache-Control"] == "no-store"
    assert json.loads(answer.text or "") == {"reason": error.reason.name, "message": ""}


async def said_to(
    under: StudioUnderTest, path: str, data: bytes, headers: dict[str, str]
) -> tuple[int, object]:
    async with under.http.post(under.url + path, data=data, headers=headers) as answer:
        return answer.status, (await answer.json())["reason"]


@pytest.mark.parametrize(("path", "headers"), [("/whip/cam", OFFER), ("/api/tokens", {})])
async def test_what_cannot_be_read_is_refused_by_every_call_alike(path: str, headers: dict[str, str]) -> None:
    async with studio(NOBODY, ice=Ice()) as under:
        assert await said_to(under, path, bytes(1 << 17), headers) == (413, "MESSAGE_TOO_LARGE")
        assert await said_to(under, path, b"\xff", headers) == (400, "MESSAGE_INVALID")
        for shown in ("Basic abc", "Bearer", "Bearer  ", "Bearer \u00e9", "abc"):
            strange = {**headers, "Authorization": shown}
            assert await said_to(under, path, b"", strange) == (401, "TOKEN_INVALID"), shown


async def test_options_that_are_nested_too_deep_are_no_options() -> None:
    async with studio(NOBODY, ice=Ice()) as under:
        path = "/whip/cam?options=" + 1500 * "["
        assert await said_to(under, path, b"", OFFER) == (400, "MESSAGE_INVALID")
