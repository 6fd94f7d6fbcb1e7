"""TLS of the gRPC port: with real certificates, both ways, and replaced under running streams."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rearview.errors import ConfigError
from rearview.ingress.tls import server_credentials
from rearview.v1 import settings_pb2, translation_service_pb2_grpc
from rearview.v1 import translation_service_pb2 as pb
from support.certificates import Authority, Pair
from support.raw_stream import eventually, null_config, running

pytestmark = pytest.mark.integration


def sections(pair: Pair, client_ca: Path | None = None) -> dict[str, Any]:
    ingress = {"tls_cert_file": str(pair.cert_file), "tls_key_file": str(pair.key_file)}
    return {
        "ingress": ingress,
        "access": {"tls_client_ca_file": None if client_ca is None else str(client_ca)},
    }


def channel(address: str, authority: Authority, own: Pair | None = None) -> grpc.aio.Channel:
    identity = () if own is None else (own.key, own.cert)
    credentials = grpc.ssl_channel_credentials(authority.cert, *identity)
    return grpc.aio.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])


async def answers(address: str, authority: Authority, own: Pair | None = None) -> bool:
    async with channel(address, authority, own) as opened:
        check = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return await check.code() is grpc.StatusCode.OK


async def test_a_client_speaks_tls_and_checks_the_server(tmp_path: Path) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    async with running(**sections(ours.issue())) as service:
        assert await answers(service.address, ours)
        assert not await answers(service.address, others)
        async with grpc.aio.insecure_channel(service.address) as plain:
            check = health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert await check.code() is grpc.StatusCode.UNAVAILABLE


async def test_with_an_authority_for_clients_each_must_have_its_certificate(tmp_path: Path) -> None:
    ours, clients, others = (Authority(tmp_path / name) for name in ("ours", "clients", "others"))
    async with running(**sections(ours.issue(), clients.file)) as service:
        assert await answers(service.address, ours, clients.issue("client", "client.example"))
        assert not await answers(service.address, ours)
        assert not await answers(service.address, ours, others.issue("client", "client.example"))


async def test_certificates_are_replaced_under_a_running_stream(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    before, after = Authority(tmp_path / "before"), Authority(tmp_path / "after")
    pair = before.issue()
    async with running(**sections(pair)) as service, AsyncExitStack() as stack:
        opened = await stack.enter_async_context(channel(service.address, before))
        call = translation_service_pb2_grpc.TranslationServiceStub(opened).Translate()
        await call.write(pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"))))
        assert (await call.read()).opened.session_id
        fresh = after.issue()
        pair.cert_file.write_bytes(fresh.cert)  # For a moment they are not a pair.
        pair.key_file.write_bytes(fresh.key)
        await eventually(lambda: answers(service.address, after))
        assert not await answers(service.address, before)
        pair.key_file.unlink()
        assert await answers(service.address, after)
        assert "the former ones hold" in caplog.text
        await call.write(
            pb.TranslateRequest(frame=pb.Frame(frame_index=1, format=pb.IMAGE_FORMAT_OPAQUE, image=b"x"))
        )
        assert (await call.read()).frame.frame_index == 1
        call.cancel()


def test_files_that_are_not_there_are_refused_at_start(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue()
    pair.key_file.unlink()
    with pytest.raises(ConfigError, match=r"one\.key"):
        server_credentials(null_config(**sections(pair)).ingress, None)
