"""deploy/haproxy in the real program, before a real ingress: TLS, HTTP/2, tokens and limits."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rearview.client import Client, DropPolicy, ImageFormat, Tls, Translated
from rearview.client.exchange import Frame
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1.session_service_pb2_grpc import SessionServiceStub
from support.certificates import Authority
from support.raw_stream import eventually, running
from support.require import skip_or_fail
from support.service import InProcessService
from support.tokens import ISSUER, Issuer, Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

HOST, FRAMES = "127.0.0.1", 30


@dataclass(frozen=True)
class Edge:
    """HAProxy and what is behind it."""

    address: str
    authority: Authority
    registry: Registry
    service: InProcessService

    def channel(self) -> grpc.aio.Channel:
        options = (("grpc.use_local_subchannel_pool", 1),)
        credentials = grpc.ssl_channel_credentials(self.authority.cert)
        return grpc.aio.secure_channel(self.address, credentials, options)

    async def status(self, token: str | None) -> grpc.StatusCode:
        """Of a call that lists sessions."""
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        async with self.channel() as channel:
            stub = SessionServiceStub(channel)
            try:
                await stub.ListSessions(sessions_pb.ListSessionsRequest(), metadata=metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK


def begun(command: Sequence[str], environment: Mapping[str, str], path: Path) -> subprocess.Popen[bytes]:
    with path.open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@asynccontextmanager
async def edge(root: Path, folder: Path) -> AsyncIterator[Edge]:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        skip_or_fail("haproxy is not installed (Debian: apt install haproxy)")
    registry, authority, port = Registry(folder), Authority(folder / "ca"), free_port()
    pair, key = authority.issue(), folder / "issuer.pem"
    (folder / "edge.pem").write_bytes(pair.cert + pair.key)
    key.write_bytes(registry.issuer.pem("rsa"))
    async with running(**registry.sections) as service:
        environment = {
            "REARVIEW_LISTEN": f"{HOST}:{port}",
            "REARVIEW_CERT": str(folder / "edge.pem"),
            "REARVIEW_JWT_KEY": str(key),
            "REARVIEW_JWT_ISSUER": ISSUER,
            "REARVIEW_INGRESS": service.address,
        }
        command = [program, "-db", "-f", str(root / "deploy/haproxy/haproxy.cfg")]
        process = begun(command, environment, folder / "haproxy.log")
        try:
            await eventually(lambda: is_open(port) or process.poll() is not None)
            said = (folder / "haproxy.log").read_text()
            assert process.poll() is None, said
            assert "WARNING" not in said, said
            yield Edge(f"localhost:{port}", authority, registry, service)
        finally:
            process.terminate()
            process.wait(10)


async def test_a_stream_goes_through_as_it_is(root: Path, tmp_path: Path) -> None:
    async with edge(root, tmp_path) as found:
        frames = [Frame(b"%d" % n, index=n, format=ImageFormat.OPAQUE) for n in range(FRAMES)]
        tls = Tls(ca_file=found.authority.file)
        async with Client(found.address, "alpha-token", tls=tls) as client:
            options: dict[str, Any] = {"prompt": "a", "drop_policy": DropPolicy.LOSSLESS}
            came = client.translate_frames(frames, answer_format=ImageFormat.OPAQUE, **options)
            answers = [answer async for answer in came if isinstance(answer, Translated)]
        assert [answer.data for answer in answers] == [b"%d" % n for n in range(FRAMES)]


Make = Callable[[Issuer], str | None]
TOKENS: dict[str, tuple[Make, grpc.StatusCode]] = {
    "signed": (lambda issuer: issuer.token(), grpc.StatusCode.OK),
    "hashed": (lambda _: "alpha-token", grpc.StatusCode.OK),
    "none": (lambda _: None, grpc.StatusCode.UNAUTHENTICATED),
    "hashed, of nobody": (lambda _: "another", grpc.StatusCode.UNAUTHENTICATED),
    "expired": (lambda issuer: issuer.token(exp=time.time() - 5), grpc.StatusCode.UNAUTHENTICATED),
    "without an expiry": (lambda issuer: issuer.token(exp=None), grpc.StatusCode.UNAUTHENTICATED),
    "of another issuer": (lambda issuer: issuer.token(iss="x"), grpc.StatusCode.UNAUTHENTICATED),
    "of another algorithm": (lambda issuer: issuer.token("ec"), grpc.StatusCode.UNAUTHENTICATED),
    "of another tenant": (lambda issuer: issuer.token(sub="nobody"), grpc.StatusCode.UNAUTHENTICATED),
    "changed": (lambda issuer: issuer.token()[:-6] + "AAAAAA", grpc.StatusCode.UNAUTHENTICATED),
    "not signed": (lambda issuer: issuer.token().rpartition(".")[0] + ".", grpc.StatusCode.UNAUTHENTICATED),
}
HEARD = ("hashed, of nobody", "of another tenant")
"""Those that the ingress has to refuse: HAProxy knows no tenants."""


async def test_only_good_tokens_reach_a_tenant_and_bad_ones_not_even_the_ingress(
    root: Path, tmp_path: Path
) -> None:
    async with edge(root, tmp_path) as found:
        for name, (make, wanted) in TOKENS.items():
            before = refused(found.service)
            assert await found.status(make(found.registry.issuer)) is wanted, name
            assert refused(found.service) - before == (name in HEARD), name


def refused(service: InProcessService) -> float:
    """Calls that the ingress has ended for their token."""
    return service.counted("rearview_calls_ended_total", reason="token_invalid")


async def test_health_needs_no_token_and_other_services_are_not_there(root: Path, tmp_path: Path) -> None:
    async with edge(root, tmp_path) as found, found.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        other = channel.unary_unary("/grpc.reflection.v1alpha.ServerReflection/Any")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await other(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_address_that_calls_too_often_waits(root: Path, tmp_path: Path) -> None:
    async with edge(root, tmp_path) as found, found.channel() as channel:
        health, seen = health_pb2_grpc.HealthStub(channel), list[grpc.StatusCode]()
        for _ in range(230):
            try:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            except grpc.aio.AioRpcError as error:
                seen.append(error.code())
        assert set(seen) == {grpc.StatusCode.UNAVAILABLE}
        assert 0 < len(seen) <= 230 - 190
        assert await found.status("alpha-token") is grpc.StatusCode.UNAVAILABLE


async def test_an_ingress_that_is_gone_is_said_to_be_unavailable(root: Path, tmp_path: Path) -> None:
    async with edge(root, tmp_path) as found:
        assert await found.status("alpha-token") is grpc.StatusCode.OK
        await found.service.server._server.stop(None)
        assert await found.status("alpha-token") is grpc.StatusCode.UNAVAILABLE
