"""`rearview studio`: the page in the browser, before a service of this machine or one that runs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from rearview.cli.choices import DeviceOption, ModelOption, check_started_here
from rearview.cli.failure import fails_in_one_line, interrupt_on_sigterm
from rearview.cli.printing import JsonOption, people_console, print_json
from rearview.cli.server import Server, TlsChoice
from rearview.cli.stage import (
    NdiAddressOption,
    NdiInOption,
    NdiOutOption,
    NdiPromptOption,
    OscOption,
    Stage,
    VirtualCameraOption,
)

if TYPE_CHECKING:
    from rich.console import Console

    from rearview.config import ServiceConfig
    from rearview.local import PlainService
    from rearview.studio.gateway import Gateway
    from rearview.studio.lanes import Span
    from rearview.studio.said import ServiceSaid
    from rearview.studio.service import Endpoint
    from rearview.studio.serving import Ports
    from rearview.studio.webrtc.ice import Ice

__all__ = ["STUDIO_PORT", "Beside", "LocalStart", "show_page", "studio"]

STUDIO_PORT = 8600
FIRST_VISIT = (
    "A phone warns once that the connection is not private: this machine has signed the certificate itself,"
    " since no authority signs for an address at home. Go on (Advanced, Proceed): what is sent is encrypted."
)


@fails_in_one_line
def studio(
    port: Annotated[int, typer.Option(help="Of the page; 0: a free one.", min=0, max=65534)] = STUDIO_PORT,
    lan: Annotated[
        bool, typer.Option("--lan", help="For phones too: HTTPS at the next port, with a QR code.")
    ] = False,
    server: Annotated[str | None, typer.Option(help="host:port. Default: start a service here.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the tenant's token.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS to --server.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM of who signed the server.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate of this client.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of --tls-cert.")] = None,
    tls_name: Annotated[
        str | None, typer.Option(help="Name in the server's certificate, if not the address.")
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Another name for the page, as https://studio.example behind a proxy. Repeat it."),
    ] = None,
    webrtc: Annotated[
        bool, typer.Option("--webrtc", help="Cameras by WHIP, watchers by WHEP (needs the extra `webrtc`).")
    ] = False,
    ice_server: Annotated[
        list[str] | None, typer.Option(help="stun:HOST:PORT or turn:HOST:PORT, for --webrtc. Repeat it.")
    ] = None,
    turn_login: Annotated[Path | None, typer.Option(help="File with username:password of turn:.")] = None,
    osc: OscOption = None,
    virtual_camera: VirtualCameraOption = False,
    ndi_in: NdiInOption = None,
    ndi_out: NdiOutOption = None,
    ndi_address: NdiAddressOption = None,
    ndi_prompt: NdiPromptOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the studio: a camera, screen or clip through the model, live, in the browser, until Ctrl-C."""
    from rearview.forks import begin_imports

    check_started_here(server, model, device)
    ice = _ice(webrtc, ice_server or (), turn_login)
    stage = Stage.of(
        osc=osc,
        virtual_camera=virtual_camera,
        ndi_in=ndi_in,
        ndi_out=ndi_out,
        ndi_addresses=ndi_address or (),
        ndi_prompt=ndi_prompt,
    )
    if server is None:
        begin_imports()
    from rearview.cli.model_choice import model_config
    from rearview.studio.protocol import MAX_TILES

    interrupt_on_sigterm()
    console = people_console(as_json=as_json)
    choice = TlsChoice(on=tls, ca=tls_ca, cert=tls_cert, key=tls_key, name=tls_name)
    tell = partial(_tell, console)
    if server is not None:
        gateway = _before(Server.named(server, token_file, choice), tell)
    else:
        # Memories of the bundled model cost little, and several people may come; of others a wall has room.
        sessions = None if model is None else MAX_TILES
        gateway = LocalStart(model_config(model, device=device, sessions=sessions)).gateway(tell)
    ports = _ports(port, lan=lan, allowed=allow_origin or ())
    asyncio.run(_run(gateway, ports, console, opens=open_page, as_json=as_json, ice=ice, stage=stage))
    console.print("stopped")


class LocalStart:
    """A service of this machine for a studio: how it is started, and its replicas once it is."""

    def __init__(self, config: ServiceConfig) -> None:
        """Raises ConfigError for what can be known to fail."""
        from rearview.local.checks import check

        check(config)
        self._config = config
        self._service: PlainService | None = None

    def gateway(self, on_service: Callable[[ServiceSaid], None]) -> Gateway:
        """The gateway before it; `on_service` hears how the service is."""
        from rearview.cli.studio_models import HubModels
        from rearview.studio.gateway import Gateway

        return Gateway(
            self.start, models=HubModels(self._config.model.device), lanes=self, on_service=on_service
        )

    @contextlib.contextmanager
    def start(self, on_progress: Callable[[str], None]) -> Iterator[Endpoint]:
        """The service until the block ends. Blocks."""
        from rearview.cli.model_choice import remember_costs
        from rearview.local import PlainService
        from rearview.studio.service import Endpoint

        with PlainService(self._config, on_progress) as service:
            remember_costs(self._config, service.stages)
            self._service = service
            try:
                yield Endpoint(service.address)
            finally:
                self._service = None

    def lanes(self) -> Sequence[Span]:
        """Its replicas; none while it starts."""
        return () if self._service is None else self._service.lanes()

    def kill(self, span_name: str) -> str:
        """Kill one of them; its id. Raises NotFound."""
        assert self._service is not None, "nobody could have named a span"
        return self._service.kill(span_name)


@dataclass(frozen=True)
class Beside:
    """The page of `rearview up --studio`: before a service that another part of the process has started."""

    ports: Ports

    @classmethod
    def bind(cls, config: ServiceConfig, port: int, *, lan: bool = False) -> Self:
        """`port`: of the page, 0 for a free one; `lan`: HTTPS for other machines at the next one.

        Raises ConfigError if one is taken, and before an ingress whose TLS it could not check.
        """
        from rearview.errors import ConfigError

        if config.ingress.tls_cert_file is not None:
            raise ConfigError("--studio: this ingress speaks TLS; run rearview studio --server … --tls-ca …")
        return cls(_ports(port, lan=lan, option="--studio-port"))

    @contextlib.contextmanager
    def serve(self, address: str) -> Iterator[str | None]:
        """In a thread until the block ends; yields the link for other machines, if there is to be one."""
        from rearview.studio.gateway import Gateway
        from rearview.studio.service import Endpoint
        from rearview.studio.serving import serve

        loop, stop = asyncio.new_event_loop(), asyncio.Event()
        found: Future[str | None] = Future()

        async def work() -> None:
            try:
                async with Gateway(Endpoint(address)) as gateway, serve(gateway, self.ports) as link:
                    found.set_result(link)
                    await stop.wait()
            except Exception as error:
                if found.done():
                    raise
                found.set_exception(error)

        thread = threading.Thread(target=loop.run_until_complete, args=(work(),), name="studio")
        thread.start()
        try:
            yield found.result()
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()


def _before(server: Server, on_service: Callable[[ServiceSaid], None]) -> Gateway:
    from rearview.studio.gateway import Gateway
    from rearview.studio.service import Endpoint

    return Gateway(Endpoint(server.address, server.token, server.tls.tls()), on_service=on_service)


def _tell(console: Console, said: ServiceSaid) -> None:
    """What pages are told of the service, for whoever has started the studio; not every step of its start."""
    words = {
        "ready": "the service answers",
        "unreachable": f"{said.message}; the studio keeps trying",
        "failed": f"the service did not start: {said.message}",
    }
    if said.state in words:
        console.print(words[said.state], highlight=False, markup=False, soft_wrap=True)


def _ports(port: int, *, lan: bool = False, allowed: Sequence[str] = (), option: str = "--port") -> Ports:
    from rearview.errors import ConfigError
    from rearview.studio.folders import CLIENT, PAGE
    from rearview.studio.serving import Ports

    if missing := [file for file in (PAGE / "index.html", CLIENT / "link.js") if not file.is_file()]:
        raise ConfigError(f"the page is not where it belongs: {missing[0]}")
    folder = Path(typer.get_app_dir("rearview")) / "studio" if lan else None
    return Ports.bind(port, key_folder=folder, allowed=allowed, option=option)


def _ice(is_on: bool, servers: Sequence[str], login: Path | None) -> Ice | None:
    from rearview.errors import ConfigError
    from rearview.studio.webrtc.ice import Ice, check_installed

    if not is_on:
        if servers or login is not None:
            raise ConfigError("--ice-server and --turn-login are for --webrtc")
        return None
    check_installed()
    try:
        return Ice.of(servers, None if login is None else login.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--turn-login {login}: {error}") from None


def show_page(console: Console, url: str, link: str | None) -> None:
    """Where the page is, and for other machines."""
    console.print(f"STUDIO {url}", highlight=False, soft_wrap=True)
    if link is None:
        return
    from rearview.studio.lan import qr_text

    console.print(f"from other machines: {link}", highlight=False, soft_wrap=True)
    console.file.write(qr_text(link))
    console.file.flush()
    console.print(FIRST_VISIT, highlight=False, soft_wrap=True)


async def _run(
    gateway: Gateway,
    ports: Ports,
    console: Console,
    *,
    opens: bool,
    as_json: bool,
    ice: Ice | None,
    stage: Stage,
) -> None:
    from rearview.studio.serving import serve

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with gateway, serve(gateway, ports, ice=ice) as link, stage.open(gateway):
        show_page(console, f"{ports.url}  (Ctrl-C stops)", link)
        if ice is not None:
            words = f"cameras: WHIP at {ports.url}whip/NAME; watchers: WHEP at {ports.url}whep/NAME"
            console.print(words, highlight=False, soft_wrap=True)
        for words in stage.words:
            console.print(words, highlight=False, soft_wrap=True)
        if as_json:
            print_json({"studio": ports.url, "studio_lan": link})
        if opens:
            await asyncio.to_thread(webbrowser.open, ports.url)
        await stop.wait()
        console.print("stopping")
