"""Tokens of one session: who gets one, what it may do, how long it lives, and how it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from aiohttp import WSMsgType, WSServerHandshakeError
from rearview.errors import InvalidRequest, Refused
from rearview.studio import doors, http_calls, server
from rearview.studio import grants as grants_module
from rearview.studio import sessions as sessions_module
from rearview.studio.doors import Doors, own_origins
from rearview.studio.grants import MAX_OF_TENANT, REMEMBERED_S, Grants
from rearview.studio.said import Lanes, ModelSaid, ServiceSaid
from rearview.studio.sessions import MAX_ASKING, Sessions
from support.raw_stream import assert_nothing_held, null_config, quickly_stopped, running
from support.service import InProcessService, in_process_service
from support.studio import Page, StudioUnderTest, studio
from support.tokens import sha256

pytestmark = pytest.mark.integration

LOSSLESS = {"drop_policy": "lossless"}


@asynccontextmanager
async def tenants(tmp_path: Path) -> AsyncIterator[InProcessService]:
    """A service of two tenants."""
    path = tmp_path / "tenants.yaml"
    named = ("alpha", "beta")
    path.write_text(yaml.safe_dump([{"name": each, "token_sha256": sha256(each)} for each in named]))
    with quickly_stopped():
        async with in_process_service(null_config(tenants_file=str(path))) as service:
            yield service


async def ask(
    under: StudioUnderTest, bearer: str | None = None, origin: str | None = None, **body: Any
) -> tuple[int, dict[str, Any]]:
    """The call: its status and what it says."""
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    headers |= {} if origin is None else {"Origin": origin}
    async with under.http.post(f"{under.url}/api/tokens", json=body, headers=headers) as answer:
        is_json = answer.content_type == "application/json"
        return answer.status, await answer.json() if is_json else {}


async def minted(under: StudioUnderTest, bearer: str | None = None, **body: Any) -> str:
    status, said = await ask(under, bearer, **body)
    assert status == 201, said
    assert said["expires_in_s"] == 60 * body.get("minutes", 10)
    return str(said["token"])


def page(under: StudioUnderTest, token: str, **hello: Any) -> Page:
    return under.page(path="/session", token=token, **hello)


async def refusal(under: StudioUnderTest, token: str) -> str:
    """Why a page with this token gets no session."""
    refused = page(under, token)
    await refused.connect()
    said = await refused.until("error")
    assert await refused.ended() == 1008
    return str(said["reason"])


async def test_a_token_opens_one_session_of_its_tenant(tmp_path: Path) -> None:
    async with (
        tenants(tmp_path) as service,
        studio(service.address) as under,
        page(under, await minted(under, "alpha")) as guest,
    ):
        await guest.open(**LOSSLESS)
        assert [each.session.tenant.name for each in service.sessions] == ["alpha"]
        await guest.frame(0, b"a frame")
        await guest.wait(lambda: [each.picture for each in guest.pictures] == [b"a frame"])
        await guest.say({"type": "control", "tile": 0, "id": 1, "settings": {"seed": 3}})
        assert (await guest.until("applied"))["settings"]["seed"] == 3
        await guest.say({"type": "close", "tile": 0})
        await assert_nothing_held(service)
        await guest.say({"type": "open", "tile": 0, "options": {**LOSSLESS, "settings": {"prompt": "b"}}})
        await guest.until("opened", count=2)


async def test_it_may_do_nothing_else(tmp_path: Path) -> None:
    forbidden: list[dict[str, Any]] = [
        {"type": "open", "tile": 1, "options": LOSSLESS},
        {"type": "program", "a": 0},
        {"type": "model", "id": "null", "action": "look"},
        {"type": "kill", "span": "fused"},
    ]
    async with (
        tenants(tmp_path) as service,
        studio(service.address) as under,
        page(under, await minted(under, "alpha")) as guest,
    ):
        await guest.open(**LOSSLESS)
        for count, message in enumerate(forbidden, 1):
            await guest.say(message)
            await guest.until("error", count, reason="METHOD_UNSUPPORTED")
        await guest.say({"type": "control", "tile": 1, "id": 0, "settings": {"seed": 1}})
        assert (await guest.until("applied"))["rejected"]["reason"] == "METHOD_UNSUPPORTED"
        news = Lanes(spans=[]), ModelSaid(id="m", state="ready"), ServiceSaid(state="ready", message="heard")
        for said in news:
            under.gateway._tell_all(said)
        await guest.until("service", message="heard")
        assert not [each for each in guest.messages if each["type"] in ("lanes", "model")]
        wall = guest.said("welcome")[0]["wall"]
        async with under.page(wall=wall) as thief:
            assert not thief.said("welcome")[0]["resumed"], "its key opens nothing at the studio's door"
        assert len(list(service.sessions)) == 1


async def test_its_viewers_watch_and_cannot_steer(tmp_path: Path) -> None:
    async with (
        tenants(tmp_path) as service,
        studio(service.address) as under,
        page(under, await minted(under, "alpha")) as guest,
    ):
        await guest.open(**LOSSLESS)
        viewer = under.page(path=f"/view/{guest.said('welcome')[0]['viewer']}/feed")
        await viewer.connect()
        await viewer.until("program", a=0)
        await guest.frame(0, b"a frame")
        await viewer.wait(lambda: [each.picture for each in viewer.pictures] == [b"a frame"])
        await viewer.say({"type": "control", "tile": 0, "id": 1, "settings": {"seed": 3}})
        assert (await viewer.until("error"))["reason"] == "METHOD_UNSUPPORTED"
        assert await viewer.ended() == 1008
        await guest.frame(1)
        await guest.wait(lambda: len(guest.pictures) == 2)


async def test_who_has_no_valid_token_is_told_why_and_gets_no_session(tmp_path: Path) -> None:
    async with tenants(tmp_path) as service, studio(service.address) as under:
        token = await minted(under, "alpha", minutes=1)
        assert await refusal(under, "x" + token[1:]) == "TOKEN_INVALID"
        assert await refusal(under, "alpha") == "TOKEN_INVALID", "a tenant's token is for no page"
        loop = asyncio.get_running_loop()
        with mock.patch.object(loop, "time", lambda now=loop.time: now() + 61):
            assert await refusal(under, token) == "TOKEN_EXPIRED"
        await ask(under, "alpha", token=token, minutes=0)
        assert await refusal(under, token) == "TOKEN_REVOKED"
        await assert_nothing_held(service)


async def test_a_session_ends_with_its_token(tmp_path: Path) -> None:
    async with tenants(tmp_path) as service, studio(service.address) as under:
        token = await minted(under, "alpha", minutes=0.01)
        async with page(under, token) as guest:
            await guest.until("error", reason="TOKEN_EXPIRED")
            await guest.ended()
        token = await minted(under, "alpha")
        async with page(under, token) as guest:
            await guest.open(**LOSSLESS)
            assert (await ask(under, "alpha", token=token, minutes=30))[0] == 200
            assert (await ask(under, "beta", token=token, minutes=0))[1]["reason"] == "TOKEN_INVALID"
            await guest.frame(0)
            await guest.wait(lambda: len(guest.pictures) == 1)
            assert (await ask(under, "alpha", token=token, minutes=0))[0] == 200
            await guest.until("error", reason="TOKEN_REVOKED")
            await guest.ended()
        await assert_nothing_held(service)


async def test_who_shows_a_token_later_takes_its_session_over(tmp_path: Path) -> None:
    async with tenants(tmp_path) as service, studio(service.address) as under:
        token = await minted(under, "alpha")
        async with page(under, token) as first:
            opened = await first.open(**LOSSLESS)
            async with page(under, token) as second:
                found = second.said("welcome")[0]
                assert [each["session_id"] for each in found["tiles"]] == [opened["session_id"]]
                await first.until("error", reason="TAKEN_OVER")
                await first.ended()
                hello = {"page": found["page"], "received": 0}
                async with page(under, token, **hello) as again:
                    assert again.said("welcome")[0]["page"] == found["page"]
                    await second.ended()
                    assert not second.said("error"), "it is the same page, by another socket"
        assert len(list(service.sessions)) == 1


async def test_who_comes_while_a_page_says_bye_gets_a_session_of_its_own(tmp_path: Path) -> None:
    async with tenants(tmp_path) as service, studio(service.address) as under:
        token = await minted(under, "alpha")
        async with under.http.ws_connect(
            f"{under.url}/session", headers={"Origin": under.url}, autoclose=False
        ) as first:
            await first.send_json({"type": "hello", "token": token})
            await first.send_json({"type": "bye"})
            while (await first.receive()).type is not WSMsgType.CLOSE:
                pass  # The studio waits for the close to be answered, which it is not.
            async with page(under, token) as second:
                assert not second.said("welcome")[0]["resumed"]
                await second.open(**LOSSLESS)
                await second.frame(0)
                await second.wait(lambda: len(second.pictures) == 1)


async def test_sockets_without_a_token_are_few_and_leave_room_for_those_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_STRANGERS", 1)
    async with tenants(tmp_path) as service, studio(service.address) as under:
        token, headers = await minted(under, "alpha"), {"Origin": under.url}
        async with under.http.ws_connect(f"{under.url}/session", headers=headers) as first:
            with pytest.raises(WSServerHandshakeError) as caught:
                await under.http.ws_connect(f"{under.url}/session", headers=headers)
            assert caught.value.status == 503
            await (await under.http.ws_connect(f"{under.url}/wall", headers=headers)).close()
            await first.send_json({"type": "hello", "token": token})
            assert (await first.receive_json())["type"] == "welcome"
            assert await refusal(under, "nonsense") == "TOKEN_INVALID"
            async with page(under, await minted(under, "beta")) as second:
                await second.open(**LOSSLESS)


async def test_only_a_tenant_gets_tokens(tmp_path: Path) -> None:
    async with tenants(tmp_path) as service, studio(service.address) as under:
        assert await ask(under) == (401, mock.ANY)
        status, said = await ask(under, "nobody")
        assert (status, said["reason"]) == (401, "TOKEN_INVALID")
        assert (await ask(under, "alpha", origin="https://elsewhere.example"))[0] == 403
        for body in ({"minutes": 61}, {"minutes": -1}, {"minutes": 0}, {"minutes": "1"}, {"for": "me"}):
            status, said = await ask(under, "alpha", **body)
            assert (status, said["reason"]) == (400, "MESSAGE_INVALID"), body


async def test_a_tenant_with_too_many_tokens_is_told_when_to_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants_module, "MAX_OF_TENANT", 0)
    async with tenants(tmp_path) as service, studio(service.address) as under:
        headers = {"Authorization": "Bearer alpha"}
        async with under.http.post(f"{under.url}/api/tokens", headers=headers) as answer:
            assert (answer.status, (await answer.json())["reason"]) == (429, "CALLS_EXHAUSTED")
            assert answer.headers["Retry-After"] == "60"


async def test_from_elsewhere_only_what_the_service_knows_gets_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "is_loopback", lambda remote: False)
    monkeypatch.setattr(server, "is_loopback", lambda remote: False)

    def with_key(port: int) -> Doors:
        return Doors(frozenset(own_origins(port, None, (), ())), "the key")

    async with tenants(tmp_path) as service, studio(service.address, doors=with_key) as under:
        assert (await ask(under))[1]["reason"] == "TOKEN_INVALID"
        async with page(under, await minted(under, "alpha")) as guest:
            await guest.open(**LOSSLESS)
    async with running() as service, studio(service.address, doors=with_key) as under:
        assert (await ask(under, "anything"))[1]["reason"] == "TOKEN_INVALID", "it knows no tenants"


async def test_any_page_may_import_the_client() -> None:
    async with (
        studio("127.0.0.1:1") as under,
        under.http.get(f"{under.url}/static/client/link.js") as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"


async def test_so_many_calls_ask_the_service_at_a_time() -> None:
    may_answer = asyncio.Event()

    async def describe(_: str | None) -> None:
        await may_answer.wait()

    sessions = Sessions(describe, mock.Mock(), mock.Mock(), mock.Mock())
    asking = [asyncio.create_task(sessions.mint("alpha", 1, is_known=True)) for _ in range(MAX_ASKING)]
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="at once"):
        await sessions.mint("alpha", 1, is_known=True)
    may_answer.set()
    assert len(set(await asyncio.gather(*asking))) == MAX_ASKING
    assert await sessions.mint("alpha", 1, is_known=True)


async def test_a_call_waits_for_a_service_that_is_starting_for_a_while_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def describe(_: str | None) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(sessions_module, "ASK_S", 0.0)
    sessions = Sessions(describe, mock.Mock(), mock.Mock(), mock.Mock())
    for _ in range(MAX_ASKING + 1):
        with pytest.raises(Refused, match="may be starting") as caught:
            await sessions.mint("alpha", 1, is_known=True)
        assert http_calls.refusal(caught.value).status == 503


def test_a_token_that_is_over_is_known_for_a_while_and_then_forgotten() -> None:
    grants = Grants()
    one = grants.mint("alpha", 60.0, 0.0)
    with pytest.raises(InvalidRequest, match="expired"):
        grants.find(one, 60.0)
    grants.forget(60.0 + REMEMBERED_S)
    with pytest.raises(InvalidRequest, match="expired"):
        grants.find(one, 60.0 + REMEMBERED_S)
    grants.forget(61.0 + REMEMBERED_S)
    with pytest.raises(InvalidRequest, match="needed"):
        grants.find(one, 61.0 + REMEMBERED_S)


def test_one_tenant_leaves_tokens_to_the_others() -> None:
    grants = Grants()
    tokens = {grants.mint("alpha", 60.0, 0.0) for _ in range(MAX_OF_TENANT)}
    assert len(tokens) == MAX_OF_TENANT
    with pytest.raises(Refused, match="of this tenant are in use"):
        grants.mint("alpha", 60.0, 0.0)
    assert grants.mint("beta", 60.0, 0.0)
    assert grants.mint(None, 60.0, 0.0)
    grants.find(tokens.pop(), 1.0).revoke(1.0)
    assert grants.mint("alpha", 60.0, 1.0)


def test_tokens_that_are_over_make_room_for_new_ones_the_oldest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grants_module, "MAX_GRANTS", 3)
    grants = Grants()
    first, second, third = (grants.mint("alpha", 10.0 * each, 0.0) for each in (2, 1, 3))
    with pytest.raises(Refused, match="3 tokens are in use"):
        grants.mint("beta", 60.0, 0.0)
    wall = mock.Mock()
    grants.find(second, 0.0).wall = wall
    grants.find(third, 0.0).revoke(25.0)
    assert grants.mint("beta", 60.0, 26.0)
    for token, reason in ((first, "needed"), (second, "expired"), (third, "taken back")):
        with pytest.raises(InvalidRequest, match=reason):
            grants.find(token, 26.0)


async def test_a_session_that_is_gone_is_not_kept_by_its_token(tmp_path: Path) -> None:
    async with (
        tenants(tmp_path) as service,
        studio(service.address) as under,
        page(under, await minted(under, "alpha")) as guest,
    ):
        await guest.say({"type": "bye"})
        await guest.ended()
        sessions = under.gateway.sessions
        sessions.tick(asyncio.get_running_loop().time())
        assert [each.wall for each in sessions._grants] == [None]
