"""The metrics port: bounded in connections and in time, on loopback unless told otherwise, behind a token."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rearview.access import MetricsAccess
from rearview.telemetry.exposition import MetricsServer, serve_metrics
from rearview.telemetry.metrics import Metrics, new_registry
from support.raw_stream import running
from support.tokens import Registry
from support.waiting import eventually

pytestmark = pytest.mark.integration

TOKEN = "a-scraper's-token"


@contextmanager
def serving(**access: object) -> Iterator[MetricsServer]:
    server = serve_metrics(Metrics(new_registry()).registry, 0, MetricsAccess(**access))  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.close()


def half_sent(server: MetricsServer) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
    return connection


def scrape(server: MetricsServer, **headers: str) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return bytes(response.read())


def threads() -> int:
    return sum(not thread.daemon or "process_request" in thread.name for thread in threading.enumerate())


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_fault_15_half_sent_requests_hold_few_threads_and_none_for_long() -> None:
    before = threads()
    with serving(max_connections=8, max_connections_per_address=8, timeout_s=0.5) as server:
        connections = [half_sent(server) for _ in range(60)]
        assert threads() <= before + 8
        for connection in connections:
            assert is_closed(connection)
            connection.close()
        assert b"rearview_streams_open" in scrape(server)
        eventually(lambda: threads() <= before, within_s=10)


def drip(connection: socket.socket) -> None:
    """A byte at a time, until the other side hangs up."""
    connection.settimeout(0.02)
    for _ in range(1000):
        connection.sendall(b"X")
        try:
            if not connection.recv(1):
                return
        except TimeoutError:
            continue
        except ConnectionError:
            return
    raise AssertionError("it may drip for ever")


def test_fault_15_a_request_that_drips_is_cut_off_when_its_time_is_over() -> None:
    with (
        serving(timeout_s=0.5) as server,
        half_sent(server) as connection,
        contextlib.suppress(BrokenPipeError),
    ):
        drip(connection)


def test_an_address_has_its_share_of_connections() -> None:
    with serving(max_connections=8, max_connections_per_address=2, timeout_s=30) as server:
        held = [half_sent(server) for _ in range(2)]
        with half_sent(server) as third:
            assert is_closed(third)
        held.pop().close()

        def answers() -> bool:
            try:
                return b"rearview" in scrape(server)
            except (urllib.error.URLError, ConnectionError):
                return False

        eventually(answers, within_s=10)
        held.pop().close()


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer \u00e4"]
)
def test_without_the_token_there_are_no_metrics(value: str | None) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    with serving(token_sha256=digest) as server:
        with pytest.raises(urllib.error.HTTPError) as refused:
            scrape(server, **({} if value is None else {"Authorization": value}))
        assert refused.value.code == 401
        assert refused.value.read() == b""
        assert b"rearview_streams_open" in scrape(server, Authorization=f"Bearer {TOKEN}")


def is_reached(port: int) -> bool:
    """Of a server that listens on every address, another one of loopback leads to it, too."""
    try:
        socket.create_connection(("127.0.0.2", port), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127/8 is loopback there")
@pytest.mark.parametrize("host", [None, "0.0.0.0"])
async def test_fault_15_a_service_for_everyone_shows_its_metrics_to_this_machine_unless_told_otherwise(
    tmp_path: Path, host: str | None
) -> None:
    access = {} if host is None else {"metrics": {"host": host}}
    everyone = {"ingress": {"host": "0.0.0.0"}, "link": {"host": "0.0.0.0"}, "access": access}
    async with running(**everyone, tenants_file=str(Registry(tmp_path).path)) as service:
        ports = [server.metrics_port for server in service.servers]
        ports += [stage._metrics_port for stage in service.stages]
        assert [is_reached(port) for port in ports] == [host is not None] * len(ports)
