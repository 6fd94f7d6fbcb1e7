"""`rearview models compile`: make a model's networks faster on this machine, once, ahead of its use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rearview.cli.choices import DeviceOption, ModelOption, parse_size
from rearview.cli.failure import fails_in_one_line, interrupt_on_sigterm
from rearview.cli.printing import JsonOption, print_json
from rearview.cli.up import TopologyChoice

if TYPE_CHECKING:
    from rearview.config import ServiceConfig

__all__ = ["compile_networks"]


@fails_in_one_line
def compile_networks(
    config: Annotated[Path | None, typer.Option(help="A deployment file, such as deploy/*.yaml.")] = None,
    topology: Annotated[
        TopologyChoice, typer.Option(help="Without --config: how the chain is cut.")
    ] = TopologyChoice.FUSED,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    size: Annotated[str | None, typer.Option(help="Without --config: WIDTHxHEIGHT of the sessions.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Without --config: denoising steps that there is room for.", min=1)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a model's networks for this machine. Takes minutes; later starts with the same model, size,
    steps and topology find and use what was made, and pictures differ by rounding alone. On a CPU a service
    that runs takes it up as soon as it has no session.

    What was made before is not made again. `model.compiled: false` in a deployment file leaves it unused.
    """
    from rearview.engine.acceleration.making import CannotCompile
    from rearview.errors import ConfigError
    from rearview.replica.compiling import compile_span

    interrupt_on_sigterm()
    service = _config(config, topology, model, device, size, steps)
    kept = 0
    for span in service.spans:
        try:
            made = compile_span(service, span, lambda text: typer.echo(text, err=True))
        except CannotCompile as error:
            raise ConfigError(str(error)) from None
        kept += sum(bool(artefact.file) for artefact in made)
    if as_json:
        print_json({"model": service.model.name, "compiled_networks": kept})
        return
    number = f"{kept} compiled network{'' if kept == 1 else 's'}"
    typer.echo(f"{service.model.name} has {number} on this machine; its next start uses them")


def _config(
    config: Path | None,
    topology: TopologyChoice,
    model: str | None,
    device: str,
    size: str | None,
    steps: int | None,
) -> ServiceConfig:
    """Raises BadParameter, ConfigError, FetchFailed."""
    from rearview.cli.model_choice import model_config
    from rearview.cli.server import local_config

    if config is not None:
        if model or size or steps or device != "auto":
            raise typer.BadParameter("names model, size, steps and device already", param_hint="--config")
        return local_config(topology.value, config_file=config)
    wanted = parse_size(size) if size else None
    return model_config(model, size=wanted, steps=steps, topology=topology.value, device=device)
