"""Tokens that come and go while calls run: files that change, tokens that end, keys that are replaced."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from rearview.access import JwtConfig
from rearview.errors import ConfigError, Reason
from rearview.ingress.signed_tokens import SignedTokens
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import End, RawStream, assert_nothing_held, eventually, null_config, running
from support.service import InProcessService
from support.tokens import Registry, replace

pytestmark = pytest.mark.integration

WITHIN_S = 1.0
LOADED_MACHINE_S = 2.0
"""Other work may hold the machine for so long."""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


async def ended(stream: RawStream, since_s: float) -> End:
    end = await stream.read_to_end()
    assert time.monotonic() - since_s < WITHIN_S + LOADED_MACHINE_S
    assert end.code is grpc.StatusCode.UNAUTHENTICATED, end
    return end


async def is_let_in(address: str, token: str | None) -> bool:
    async with RawStream(address, token) as stream:
        request = sessions_pb.ListSessionsRequest()
        code = await stream.sessions.ListSessions(request, metadata=stream.metadata).code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
        return code is grpc.StatusCode.OK


async def test_fault_20_a_tenant_that_is_taken_out_loses_its_streams_and_sessions(registry: Registry) -> None:
    async with (
        running(**registry.sections) as service,
        RawStream(service.address, "beta-token") as stream,
        RawStream(service.address, "alpha-token") as other,
    ):
        await stream.start()
        await other.start()
        async with RawStream(service.address, "beta-token") as lost:
            opened = await lost.start()
            lost.call.cancel()
        await eventually(lambda: service.sessions[opened.session_id].stream is None)
        del registry.tenants["beta"]
        registry.write()
        assert (await ended(stream, time.monotonic())).reason is Reason.TOKEN_REVOKED
        await assert_nothing_held(service, sessions=1)
        assert not await is_let_in(service.address, "beta-token")
        await other.frame(1)
        await other.read_answers(1)


async def test_a_token_that_is_replaced_ends_its_streams_and_the_new_one_resumes_them(
    registry: Registry,
) -> None:
    async with running(**registry.sections) as service, RawStream(service.address, "beta-token") as stream:
        opened = await stream.start()
        registry.tenants["beta"] = "fresh-token"
        registry.write()
        assert (await ended(stream, time.monotonic())).reason is Reason.TOKEN_REVOKED
        for address in service.addresses:
            await eventually(lambda address=address: is_let_in(address, "fresh-token"))  # type: ignore[misc]
        async with RawStream(service.address, "fresh-token") as back:
            await back.resume(opened, 0)
            await back.frame(1)
            await back.read_answers(1)


async def test_a_new_tenant_comes_in_without_a_restart(registry: Registry) -> None:
    async with running(**registry.sections) as service:
        assert not await is_let_in(service.address, "gamma-token")
        registry.tenants["gamma"] = "gamma-token"
        registry.write()
        await eventually(lambda: is_let_in(service.address, "gamma-token"))


@pytest.mark.parametrize("content", [None, "", "[]", "- [", "- {name: a, token_sha256: planted-secret}"])
async def test_a_broken_file_leaves_the_former_one_in_force_and_says_so(
    registry: Registry, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(**registry.sections) as service, RawStream(service.address, "alpha-token") as stream:
        await stream.start()
        before = registry.path.read_text()
        if content is None:
            registry.path.unlink()
        else:
            replace(registry.path, content)
        all_of_them = len(service.ingresses)

        def reloads(outcome: str) -> float:
            return service.counted("rearview_file_reloads_total", file="tenants", outcome=outcome)

        await eventually(lambda: reloads("broken") == all_of_them)
        assert "the former ones hold" in caplog.text
        assert "planted-secret" not in caplog.text
        await stream.frame(1)
        await stream.read_answers(1)
        assert await is_let_in(service.address, "beta-token")
        replace(registry.path, before)
        await eventually(lambda: reloads("good") == all_of_them)


async def test_a_signed_token_that_expires_ends_its_stream_and_a_fresh_one_resumes_it(
    registry: Registry,
) -> None:
    token = registry.issuer.token(exp=time.time() + 2)
    async with running(**registry.sections) as service, RawStream(service.address, token) as stream:
        opened = await stream.start()
        await stream.frame(1)
        await stream.read_answers(1)
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.TOKEN_EXPIRED)
        async with RawStream(service.address, registry.issuer.token()) as back:
            await back.resume(opened, 1)
            await back.frame(2)
            await back.read_answers(1)


async def test_a_key_that_is_withdrawn_ends_the_streams_of_its_tokens_alone(registry: Registry) -> None:
    async with (
        running(**registry.sections) as service,
        RawStream(service.address, registry.issuer.token("rsa")) as stream,
        RawStream(service.address, registry.issuer.token("ec")) as other,
    ):
        await stream.start()
        await other.start()
        registry.issuer.publish("ec")
        assert (await ended(stream, time.monotonic())).reason is Reason.TOKEN_REVOKED
        await other.frame(1)
        await other.read_answers(1)


def calls(service: InProcessService) -> list[Any]:
    return [call for server in service.servers for call in server._running._calls]


async def test_a_revoked_call_that_is_not_a_session_ends_too(registry: Registry) -> None:
    sections = registry.sections
    async with running(**sections, ingress={"open_timeout_s": 60}) as service:
        async with RawStream(service.address, "beta-token") as stream:
            await stream.call.wait_for_connection()
            await eventually(lambda: len(calls(service)) == 1)
            del registry.tenants["beta"]
            registry.write()
            assert (await ended(stream, time.monotonic())).reason is Reason.TOKEN_REVOKED
        assert not calls(service)


async def test_a_tenant_without_a_token_of_its_own_comes_with_signed_ones(registry: Registry) -> None:
    registry.tenants["alpha"] = None
    registry.write()
    async with (
        running(**registry.sections) as service,
        RawStream(service.address, registry.issuer.token()) as stream,
    ):
        await stream.start()
        stub, page = stream.sessions, sessions_pb.ListSessionsRequest()
        (session,) = (await stub.ListSessions(page, metadata=stream.metadata)).sessions
        assert session.tenant == "alpha"


@pytest.mark.parametrize("kid", ["rsa", "ec"])
async def test_one_key_in_pem_needs_no_name(registry: Registry, kid: str) -> None:
    registry.issuer.path.write_bytes(registry.issuer.pem(kid))
    config = JwtConfig(**registry.jwt)
    claim = SignedTokens.load(config).claim(registry.issuer.token(kid, headers={"kid": None}).encode())
    assert claim is not None
    assert claim.tenant == "alpha"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither"),
        (b"{", "neither"),
        (b"[]", "object"),
        (b'{"keys": []}', "object"),
        (b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}', "secret"),
        (b'{"keys": [{"kty": "RSA", "n": "AQ", "e": "AQAB", "d": "AQ", "kid": "a"}]}', "secret"),
        (b'{"keys": [{"kty": "what"}]}', "neither"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "neither"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "neither"),
        (None, "cannot be read"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_by_file(
    registry: Registry, content: bytes | None, says: str
) -> None:
    path = registry.issuer.path
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        SignedTokens.load(JwtConfig(**registry.jwt))
    assert str(path) in str(caught.value)


def test_keys_with_one_name_are_refused(registry: Registry) -> None:
    registry.issuer.publish("rsa", "rsa")
    with pytest.raises(ConfigError, match="same key id"):
        SignedTokens.load(JwtConfig(**registry.jwt))


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"access": {"jwt": {"algorithms": ["HS256"]}}}, "algorithms"),
        ({"access": {"jwt": {"algorithms": ["none"]}}}, "algorithms"),
        ({"access": {"jwt": {"algorithms": []}}}, "algorithms"),
        ({"access": {"jwt": {"audience": ""}}}, "audience"),
        ({"access": {"tls_client_ca_file": "ca.pem"}}, "tls_cert_file"),
        ({"tenants_file": None}, "tenants_file"),
    ],
)
def test_a_configuration_that_lets_too_many_in_is_refused(
    registry: Registry, sections: dict[str, object], says: str
) -> None:
    content = registry.sections
    access = sections.get("access", {})
    jwt = {**registry.jwt, **access.get("jwt", {})}  # type: ignore[attr-defined]
    content["access"] = {**access, "jwt": jwt}  # type: ignore[dict-item]
    if "tenants_file" in sections:
        content["tenants_file"] = None
    with pytest.raises(ConfigError, match=says):
        null_config(**content)


async def test_a_session_is_opened_and_resumed_by_whichever_kind_of_token_its_tenant_shows(
    registry: Registry,
) -> None:
    async with running(**registry.sections) as service:
        async with RawStream(service.address, registry.issuer.token()) as stream:
            opened = await stream.start()
        async with RawStream(service.address, "beta-token") as thief:
            resume = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
            await thief.write(pb.TranslateRequest(resume=resume))
            assert (await thief.read_to_end()).reason is Reason.SESSION_UNKNOWN
        async with RawStream(service.address, "alpha-token") as back:
            await back.resume(opened, 0)
