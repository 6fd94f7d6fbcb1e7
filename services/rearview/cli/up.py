"""`rearview up`: the service on this machine until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rearview.cli.failure import fails_in_one_line, interrupt_on_sigterm

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
) -> None:
    """Start the service on this machine and serve until Ctrl-C; then stop all that was started.

    It starts anew when Ray's control service (GCS) has died or is silent for 20 s: sessions are lost then.
    """
    from rich.console import Console

    from rearview.cli.progress import show_progress
    from rearview.cli.server import local_config, local_service
    from rearview.cli.watch import LOOK_EVERY_S, Watch, start_anew

    interrupt_on_sigterm()
    chosen = port if port is not None or config is not None else DEFAULT_PORT
    service_config = local_config(topology.value, config_file=config, port=chosen)
    console = Console()
    progress = show_progress(console)
    stop = threading.Event()
    with progress, local_service(service_config, progress.step) as service:
        progress.step("serving")
        console.print(f"READY {service.address} after {service.ready_s:.1f} s; Ctrl-C stops", highlight=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        watch = Watch(service.gcs_address)
        while not stop.wait(LOOK_EVERY_S):  # a wait without end would not let the handler run
            if watch.is_gone():
                console.print("Ray's control service is gone: starting anew", highlight=False)
                start_anew(service.address)
    console.print("stopped")
