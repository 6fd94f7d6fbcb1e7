"""The command line against a server that asks clients for their certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from rearview.cli.main import app
from rearview.samples import sample_clip_path
from support.certificates import Authority
from support.raw_stream import running
from typer.testing import CliRunner, Result

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

NAME = "rearview.example"
"""In the server's certificate, which says nothing of the address."""
TLS = {"--tls", "--tls-ca", "--tls-cert", "--tls-key", "--tls-name"}


@dataclass(frozen=True)
class Guarded:
    """A server with an authority for clients, and what a client of it says."""

    address: str
    who: list[str]
    identity: list[str]

    async def run(self, *arguments: str) -> Result:
        command = [*arguments, "--server", self.address]
        return await asyncio.to_thread(CliRunner().invoke, app, command)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Guarded]:
    ours, clients = Authority(tmp_path / "ours"), Authority(tmp_path / "clients")
    pair, own = ours.issue("one", NAME), clients.issue("client", "client.example")
    ingress = {"tls_cert_file": str(pair.cert_file), "tls_key_file": str(pair.key_file)}
    access = {"tls_client_ca_file": str(clients.file)}
    async with running(ingress=ingress, access=access) as service:
        yield Guarded(
            service.address,
            ["--tls-ca", str(ours.file), "--tls-name", NAME],
            ["--tls-cert", str(own.cert_file), "--tls-key", str(own.key_file)],
        )


async def test_sessions_are_listed_by_a_client_that_proves_itself(server: Guarded) -> None:
    result = await server.run("sessions", "list", *server.who, *server.identity)
    assert (result.exit_code, result.output.strip()) == (0, "no sessions"), result.output
    assert (await server.run("sessions", "list", *server.who)).exit_code == 1
    nameless = await server.run("sessions", "list", *server.who[:2], *server.identity)
    assert nameless.exit_code == 1


async def test_translate_reaches_the_server_with_a_certificate(server: Guarded, tmp_path: Path) -> None:
    asked = ["translate", str(sample_clip_path()), str(tmp_path / "out.mp4"), "--prompt", "a"]
    asked += ["--size", "8192x8192", "--max-frames", "1"]
    result = await server.run(*asked, *server.who, *server.identity)
    assert "RESOLUTION_UNSUPPORTED" in result.output, result.output  # The server's own word.


@pytest.mark.parametrize("given", ["--tls-cert", "--tls-key"])
async def test_a_certificate_goes_with_its_key(server: Guarded, given: str) -> None:
    half = server.identity[:2] if given == "--tls-cert" else server.identity[2:]
    result = await server.run("sessions", "list", *server.who, *half)
    assert result.exit_code == 1
    assert "--tls-cert and --tls-key go together" in result.output


async def test_a_file_that_cannot_be_read_is_named(server: Guarded) -> None:
    result = await server.run("sessions", "list", "--tls-ca", "/nowhere.pem")
    assert result.exit_code == 1
    assert "--tls-ca /nowhere.pem" in result.output


def test_every_command_that_speaks_tls_has_all_its_options() -> None:
    commands = [typer.main.get_command(app)]
    speaking = 0
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        options = {name for parameter in command.params for name in parameter.opts}
        speaking += bool(options & TLS)
        assert options & TLS in (set(), TLS), command.name
    assert speaking == 6
