"""`rearview probe`: whether frames that go in come out as pictures. For start-up probes and people."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rearview.cli.failure import fails_in_one_line
from rearview.cli.printing import JsonOption, print_json
from rearview.cli.server import Server, TlsChoice, connect
from rearview.errors import Fault, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rearview.client import Client

__all__ = ["probe"]

PATIENCE_S = 1.0
"""Whoever runs it again and again needs no client that tries again."""
FRAMES = 2
"""The second one meets a session that has a past. More where a model warms up."""
GREY = 128


@fails_in_one_line
def probe(
    server: Annotated[str, typer.Option("--server", help="host:port.")] = "127.0.0.1:50051",
    token_file: Annotated[Path | None, typer.Option(help="File with the tenant's token.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM of who signed the server.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate of this client.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of --tls-cert.")] = None,
    tls_name: Annotated[
        str | None, typer.Option(help="Name in the server's certificate, if not the address.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Seconds that it may take.", min=0.1)] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Send two frames through every span; exit 0 if both come back as pictures, else 1 with a line.

    It opens a session as the token's tenant with the model's defaults, and ends it.
    """
    choice = TlsChoice(on=tls, ca=tls_ca, cert=tls_cert, key=tls_key, name=tls_name)
    named = Server.named(server, token_file, choice)
    first_s, following_s = asyncio.run(_probe(named, timeout_s))
    if as_json:
        print_json({"first_frame_s": round(first_s, 4), "following_s": round(following_s, 4)})
        return
    typer.echo(f"frames flow: the first after {first_s:.2f} s, the next {1000 * following_s:.0f} ms later")


async def _probe(server: Server, timeout_s: float) -> tuple[float, float]:
    """Seconds until the first picture and from it to the last. Raises RearviewError."""
    started_s, times = time.monotonic(), list[float]()
    try:
        async with asyncio.timeout(timeout_s), connect(server, patience_s=PATIENCE_S) as client:
            async for at_s in _pictures(client):
                times.append(at_s)
    except TimeoutError:
        message = f"{len(times)} of {FRAMES} pictures came within {timeout_s:g} s"
        raise Fault(Reason.UNREACHABLE, message) from None
    return times[0] - started_s, times[-1] - times[0]


async def _pictures(client: Client) -> AsyncIterator[float]:
    """When each picture came. Raises Fault for a frame without one, and what the session raises."""
    import numpy as np

    from rearview.client import Dropped, DropPolicy, ImageFormat, Translated

    model = await client.describe_model()
    prompt = next((style.prompt for style in model.styles if style.prompt), "a photo")
    is_opaque = model.formats == (ImageFormat.OPAQUE,)
    answers = ImageFormat.OPAQUE if is_opaque else ImageFormat.JPEG
    async with client.open(prompt=prompt, drop_policy=DropPolicy.LOSSLESS, answer_format=answers) as session:
        opened = session.opened
        picture = np.full((opened.height, opened.width, 3), GREY, np.uint8)
        for index in range(max(FRAMES, opened.warm_up_frames)):
            await session.send(b"probe" if is_opaque else picture, index=index, format=answers)
        await session.finish()
        async for answer in session:
            if isinstance(answer, Dropped):
                raise Fault(message=f"a frame was dropped: {answer.reason.name.lower()}")
            if isinstance(answer, Translated):
                yield time.monotonic()
