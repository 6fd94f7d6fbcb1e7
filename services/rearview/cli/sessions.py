"""`rearview sessions`: list, get and close the tenant's sessions on a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from rearview.cli.failure import fails_in_one_line
from rearview.cli.printing import JsonOption, print_json, table_console
from rearview.cli.server import Server, TlsChoice, connect

if TYPE_CHECKING:
    from rearview.client import Client, SessionInfo

__all__ = ["app"]

_T = TypeVar("_T")

app = typer.Typer(no_args_is_help=True, help="Show and end the tenant's sessions.")

ServerOption = Annotated[str, typer.Option("--server", help="host:port.")]
TokenOption = Annotated[Path | None, typer.Option("--token-file", help="File with the tenant's token.")]
TlsOption = Annotated[bool, typer.Option("--tls", help="Speak TLS.")]
CaOption = Annotated[Path | None, typer.Option("--tls-ca", help="PEM of who signed the server.")]
CertOption = Annotated[Path | None, typer.Option("--tls-cert", help="PEM certificate of this client.")]
KeyOption = Annotated[Path | None, typer.Option("--tls-key", help="PEM key of --tls-cert.")]
NameOption = Annotated[
    str | None, typer.Option("--tls-name", help="Name in the server's certificate, if not the address.")
]


@app.command("list")
@fails_in_one_line
def list_sessions(
    server: ServerOption = "127.0.0.1:50051",
    token_file: TokenOption = None,
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tenant's sessions, oldest first."""
    choice = TlsChoice(on=tls, ca=tls_ca, cert=tls_cert, key=tls_key, name=tls_name)
    found = _call(server, token_file, choice, lambda client: client.list_sessions())
    if as_json:
        print_json([_as_json(info) for info in found])
        return
    if not found:
        typer.echo("no sessions")
        return
    from rich.table import Table

    table = Table(
        "session", "state", "model", "size", "frames", "dropped", "opened", box=None, pad_edge=False
    )
    for info in found:
        size, opened = f"{info.width}x{info.height}", f"{info.open_time:%Y-%m-%d %H:%M:%S}Z"
        counts = (str(info.received_frames), str(info.dropped_frames))
        table.add_row(info.session_id, info.state.name.lower(), info.model, size, *counts, opened)
    table_console().print(table)


@app.command("get")
@fails_in_one_line
def get_session(
    session_id: str,
    server: ServerOption = "127.0.0.1:50051",
    token_file: TokenOption = None,
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one session."""
    choice = TlsChoice(on=tls, ca=tls_ca, cert=tls_cert, key=tls_key, name=tls_name)
    info = _call(server, token_file, choice, lambda client: client.get_session(session_id))
    if as_json:
        print_json(_as_json(info))
        return
    for name, value in _lines(info):
        typer.echo(f"{name:<18}{value}")


@app.command("close")
@fails_in_one_line
def close_session(
    session_id: str,
    server: ServerOption = "127.0.0.1:50051",
    token_file: TokenOption = None,
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a session and the stream that feeds it."""
    choice = TlsChoice(on=tls, ca=tls_ca, cert=tls_cert, key=tls_key, name=tls_name)
    _call(server, token_file, choice, lambda client: client.close_session(session_id))
    if as_json:
        print_json({"session_id": session_id})
    else:
        typer.echo(f"closed {session_id}")


def _call(
    server: str,
    token_file: Path | None,
    tls: TlsChoice,
    work: Callable[[Client], Awaitable[_T]],
) -> _T:
    async def call() -> _T:
        async with connect(Server.named(server, token_file, tls)) as client:
            return await work(client)

    return asyncio.run(call())


def _as_json(info: SessionInfo) -> dict[str, object]:
    return asdict(info) | {"state": info.state.name.lower(), "open_time": info.open_time.isoformat()}


def _lines(info: SessionInfo) -> list[tuple[str, object]]:
    return [
        ("session", info.session_id),
        ("tenant", info.tenant),
        ("state", info.state.name.lower()),
        ("model", info.model),
        ("size", f"{info.width}x{info.height}"),
        ("opened", info.open_time.isoformat()),
        ("received frames", info.received_frames),
        ("translated frames", info.translated_frames),
        ("dropped frames", info.dropped_frames),
        ("lane", ", ".join(info.lane)),
        ("epoch", info.epoch),
    ]
