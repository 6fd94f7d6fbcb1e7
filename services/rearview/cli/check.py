"""`rearview models check`: what works with a model here, what a session takes, how fast it is expected to be.

All of it is told by settings, headers of files and what the model cost when it ran here last: nothing is
loaded, fetched or started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rearview.cli.choices import DeviceOption, ModelOption, parse_size
from rearview.cli.failure import fails_in_one_line
from rearview.cli.printing import JsonOption, print_json

if TYPE_CHECKING:
    from rearview.config import ModelConfig, ServiceConfig

__all__ = ["Checked", "Way", "check_model", "checked"]

FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
"""By the width of prompts."""
NO_MOTION = "needs motion modules (model.motion); this checkpoint has none"
XL_MOTION = "motion modules are of Stable Diffusion 1.x"


@dataclass(frozen=True, slots=True)
class Way:
    """How frames may relate to those before them."""

    method: str
    works: bool
    session_bytes: int | None
    """What one session remembers. None: not known before the model is loaded."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of a model."""

    model: str
    family: str
    sampler: str
    steps: int
    width: int
    height: int
    ways: tuple[Way, ...]
    adapters: tuple[str, ...]
    controls: tuple[str, ...]
    takes_reference: bool
    frames_per_s: float | None
    """Expected of one stream, per frame. None: it has not run here yet."""


@fails_in_one_line
def check_model(
    config: Annotated[Path | None, typer.Option(help="A deployment file, such as deploy/*.yaml.")] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    size: Annotated[str | None, typer.Option(help="Without --config: WIDTHxHEIGHT of the sessions.")] = None,
    steps: Annotated[int | None, typer.Option(help="Without --config: denoising steps.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what works with a model that is here: family and sampler, methods with the bytes that a session
    takes, adapters, ControlNets, and the frames a second that it is expected to make. Loads nothing.
    """
    from rearview.cli.model_choice import model_config
    from rearview.cli.server import local_config
    from rearview.errors import ConfigError

    if config is not None:
        if model or size or steps or device != "auto":
            raise typer.BadParameter("names model, size, steps and device already", param_hint="--config")
        service = local_config(config_file=config)
    else:
        if model is not None and not _is_here(model):
            text = f"`rearview models fetch {model}` says its licence and bytes first"
            raise ConfigError(f"--model {model} is not on this machine: {text}")
        wanted = parse_size(size) if size else None
        service = model_config(model, size=wanted, steps=steps, device=device)
    found = checked(service)
    if as_json:
        print_json(asdict(found))
    else:
        typer.echo("\n".join(_lines(found)))


def checked(config: ServiceConfig) -> Checked:
    """What is known of a service's model. Raises ConfigError for one that does not work at all."""
    from rearview.cli.model_choice import expected_rate
    from rearview.contract.card import ModelCard
    from rearview.contract.family import check_checkpoint
    from rearview.contract.sampler import sampler_of

    model = config.model
    check_checkpoint(model.checkpoint)
    scheduler = _settings(model, "scheduler", "scheduler_config.json")
    return Checked(
        model=model.checkpoint,
        family=_family(_settings(model, "unet", "config.json")),
        sampler=sampler_of(scheduler, lcm_lora=bool(model.lcm_lora)).value,
        steps=min(ModelCard.read(model.checkpoint).steps, model.max_steps),
        width=model.width,
        height=model.height,
        ways=tuple(_ways(config)),
        adapters=tuple(sorted(model.adapters)),
        controls=tuple(sorted(model.controls)),
        takes_reference=model.reference is not None,
        frames_per_s=expected_rate(config),
    )


def _ways(config: ServiceConfig) -> Iterator[Way]:
    from rearview.contract.card import has_motion
    from rearview.contract.family import is_xl

    known = _session_bytes(config)
    yield Way("per-frame", True, 0)
    if config.bank is not None:
        yield Way("streamv2v", True, known.get("bank"))
    if config.cache is None:
        return
    is_of_xl = is_xl(_settings(config.model, "unet", "config.json"))
    works = has_motion(config.model.checkpoint, config.model.motion) and not is_of_xl
    note = "" if works else XL_MOTION if is_of_xl else NO_MOTION
    yield Way("live2diff", works, known.get("cache") if works else None, note)


def _session_bytes(config: ServiceConfig) -> Mapping[str, int]:
    """Of all spans together, by kind of memory."""
    from rearview.contract.memory_plan import Budget
    from rearview.engine.devices import pick_device, pick_dtype
    from rearview.replica.needs import known_plan

    dtype = str(pick_dtype(config.model.dtype, pick_device(config.model.device))).removeprefix("torch.")
    found: dict[str, int] = {}
    for span in config.spans:
        for kind, num_bytes in known_plan(config, span, dtype, Budget("this machine", 0, 0)).slot.items():
            found[kind] = found.get(kind, 0) + num_bytes
    return found


def _family(unet: Mapping[str, Any]) -> str:
    from rearview.contract.family import is_xl

    if not unet:
        return "told when it is loaded"
    width = int(unet.get("cross_attention_dim", 0))
    name = "Stable Diffusion XL" if is_xl(unet) else FAMILIES.get(width, f"its own, prompts {width} wide")
    return f"{name}, guidance built in" if unet.get("time_cond_proj_dim") else name


def _settings(model: ModelConfig, part: str, name: str) -> Mapping[str, Any]:
    """Of a part of the checkpoint; empty where no folder has any."""
    from rearview.contract.card import checkpoint_folder, is_hub_id, is_opaque, is_single_file, settings_in

    checkpoint = model.checkpoint
    if is_single_file(checkpoint):
        checkpoint = model.single_file_config
    if is_opaque(checkpoint) or is_hub_id(checkpoint):
        return {}
    return settings_in(checkpoint_folder(checkpoint) / part / name)


def _is_here(name: str) -> bool:
    """Whether a known model or one of the hub was fetched; folders and files are looked at later."""
    from rearview.contract.card import bundled_names, is_hub_id, is_opaque, is_single_file
    from rearview.models import fetched, known_models, model_folder

    if is_opaque(name) or name in bundled_names() or is_single_file(name) or Path(name).is_dir():
        return True
    return fetched(model_folder(name)) if name in known_models() or is_hub_id(name) else True


def _lines(found: Checked) -> Iterator[str]:
    from rearview.contract.memory_plan import told

    def remembers(way: Way) -> str:
        if not way.works:
            return f"no: {way.note}"
        if way.session_bytes is None:
            return "yes; what a session takes is known once it is loaded"
        return f"yes, {told(way.session_bytes)} a session" if way.session_bytes else "yes"

    rate = "not known: it has not run here yet"
    if found.frames_per_s is not None:
        rate = f"{found.frames_per_s:.1f} a second of one stream, per frame, by what it took last time"
    yield f"model       {found.model}"
    yield f"family      {found.family}"
    yield f"sampler     {found.sampler}, {found.steps} steps"
    yield f"size        {found.width}x{found.height}"
    for way in found.ways:
        yield f"{way.method:11} {remembers(way)}"
    yield f"adapters    {', '.join(found.adapters) or 'none named; LoRAs fit (model.adapters)'}"
    yield f"controls    {', '.join(found.controls) or 'none named (model.controls)'}"
    yield f"reference   {'yes' if found.takes_reference else 'no adapter named (model.reference)'}"
    yield f"frames      {rate}"
