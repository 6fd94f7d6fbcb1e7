"""`rearview up`: the service on this machine until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rearview.cli.choices import DeviceOption, ModelOption, parse_size
from rearview.cli.failure import fails_in_one_line, interrupt_on_sigterm
from rearview.cli.printing import JsonOption, people_console, print_json

if TYPE_CHECKING:
    from rearview.config import ServiceConfig

__all__ = ["TopologyChoice", "up"]

DEFAULT_PORT = 50051


class TopologyChoice(StrEnum):
    """`--topology`."""

    FUSED = "fused"
    PIPELINE = "pipeline"


@fails_in_one_line
def up(
    config: Annotated[Path | None, typer.Option(help="A deployment file, such as deploy/*.yaml.")] = None,
    port: Annotated[
        int | None, typer.Option(help="gRPC port, 0 for a free one. Default: the file's, else 50051.", min=0)
    ] = None,
    topology: Annotated[
        TopologyChoice, typer.Option(help="Without --config: how the chain is cut.")
    ] = TopologyChoice.FUSED,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    size: Annotated[
        str | None, typer.Option(help="Without --config: WIDTHxHEIGHT that there is room for.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a Ray that runs already, to serve on. Default: one of its own."),
    ] = None,
    studio: Annotated[
        bool, typer.Option("--studio", help="Serve the studio's page too, on this machine alone.")
    ] = False,
    studio_port: Annotated[
        int | None, typer.Option(help="Of that page, 0 for a free one. Default: 8600.", min=0, max=65534)
    ] = None,
    lan: Annotated[
        bool, typer.Option("--lan", help="With --studio: for phones too, as `rearview studio --lan`.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start the service on this machine and serve until Ctrl-C; then stop all that was started.

    It starts anew when Ray's control service (GCS) has died or is silent for 20 s: sessions are lost then.
    With --ray it ends then, and from that Ray it deletes this one application at the end.
    """
    from rearview.cli.model_choice import choose_model, remember_costs
    from rearview.cli.progress import show_progress
    from rearview.cli.server import local_config, ray_service
    from rearview.cli.studio import STUDIO_PORT, Beside, show_page
    from rearview.cli.watch import LOOK_EVERY_S, Watch, start_anew
    from rearview.errors import RearviewError, Reason

    interrupt_on_sigterm()
    chosen = port if port is not None or config is not None else DEFAULT_PORT
    if config is not None and (model or size or device != "auto"):
        raise typer.BadParameter("names model, size and device already", param_hint="--config")
    if not studio and (lan or studio_port is not None):
        raise typer.BadParameter("needs --studio", param_hint="--lan" if lan else "--studio-port")
    wanted = parse_size(size) if size else None
    own = None if config is not None else choose_model(model, size=wanted, device=device)
    service_config = local_config(topology.value, config_file=config, port=chosen, model=own)
    _check_port(service_config)
    page_port = STUDIO_PORT if studio_port is None else studio_port
    beside = Beside.bind(service_config, page_port, lan=lan) if studio else None
    console = people_console(as_json=as_json)
    progress = show_progress(console)
    stop = threading.Event()
    with progress, ray_service(service_config, progress.step, ray) as service, ExitStack() as stack:
        progress.pause()
        remember_costs(service_config, service.stages)
        for one in service.stages:
            if one.get("device"):  # A replica of the release before does not say.
                gpus = f", GPU {one['gpus']}" if one.get("gpus") else ""
                text = f"{one['span']}: {one['device_name']} ({one['device']}{gpus}), {one['dtype']}"
                console.print(text, highlight=False)
            if one.get("memory"):
                console.print(f"memory of {one['memory']}", highlight=False)
        console.print(f"READY {service.address} after {service.ready_s:.1f} s; Ctrl-C stops", highlight=False)
        link = None if beside is None else stack.enter_context(beside.serve(service.address))
        if beside is not None:
            show_page(console, beside.ports.url, link)
        if as_json:
            page = None if beside is None else beside.ports.url
            print_json({"address": service.address, "studio": page, "studio_lan": link})
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        watch = Watch(service.gcs_address)
        while not stop.wait(LOOK_EVERY_S):  # a wait without end would not let the handler run
            if watch.is_gone():
                if ray is not None:
                    raise RearviewError(Reason.UNREACHABLE, f"the Ray at {ray} is gone")
                console.print("Ray's control service is gone: starting anew", highlight=False)
                start_anew(service.address)
    console.print("stopped")


def _check_port(config: ServiceConfig) -> None:
    """Raises ConfigError for a gRPC port that is taken, with the option that chooses another."""
    from rearview.errors import ConfigError
    from rearview.local.checks import check_free

    try:
        check_free(config.ingress)
    except ConfigError as error:
        raise ConfigError(f"{error}; --port chooses another one, --port 0 a free one") from None
