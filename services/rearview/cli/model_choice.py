"""`--model`: a folder, a file, a hub id or a known id, as the model of a service that is started here.

What can be known from names, settings and headers is checked before anything starts. What surprises: size
and steps come from what a frame of this model cost the last time that it ran here, which is kept beside the
fetched models; the first time it starts with the smallest size that the device is for.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rearview.errors import ConfigError

if TYPE_CHECKING:
    from rearview.client import OpenOptions
    from rearview.config import ServiceConfig
    from rearview.contract.cost import FrameCost
    from rearview.contract.settings import SettingsChange

__all__ = ["RUN_SESSIONS", "choose_model", "config_for", "expected_rate", "model_config", "remember_costs"]

LCM_LORA = "lcm_lora"
"""Folder in a fetched model whose LoRA belongs to it."""
OPEN_CLIP = "cond_stage_model.model."
"""First part of the text encoder's names in files of Stable Diffusion 2."""
COSTS = "costs.json"
MAX_STEPS = 4
RUN_SESSIONS = 2
"""Of a service for one run: its session, and room for the one before while that is closed."""


def model_config(
    name: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    topology: str = "fused",
    port: int | None = None,
    device: str = "auto",
    sessions: int | None = None,
) -> ServiceConfig:
    """A service on this machine with the model `name` (None: the bundled one), sized for `size` and `steps`,
    with memory for `sessions`.

    Fetches a model that is not here, with its licences shown. Raises ConfigError, FetchFailed.
    """
    from rearview.cli.server import local_config

    model = choose_model(name, size=size, steps=steps, device=device)
    return local_config(topology, port=port, model=model, sessions=sessions)


def config_for(
    name: str | None, options: OpenOptions, device: str = "auto", changes: Iterable[SettingsChange] = ()
) -> ServiceConfig:
    """A service on this machine that has room for a session of `options`, and for `changes` of it. Raises as
    `model_config`.
    """
    width, height = options.get("width"), options.get("height")
    size = (width, height) if width and height else None
    return model_config(
        name, size=size, steps=_most_steps(options, changes), device=device, sessions=RUN_SESSIONS
    )


def _most_steps(options: OpenOptions, changes: Iterable[SettingsChange]) -> int:
    """The most denoising steps that a session may come to. 0: it leaves them to the service."""
    said: list[Mapping[str, Any]] = [cast("Mapping[str, Any]", options)]
    said += [change.named() for change in changes]
    visited = (len(one.get("timestep_indices") or ()) for one in said)
    return max(options.get("max_steps", 0), *visited, *(one.get("steps") or 0 for one in said))


def choose_model(
    name: str | None,
    *,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """The fields of `ModelConfig`. `size`: width and height; None: what the machine keeps up with. `steps`:
    that there is room for at least. Raises ConfigError, also for a device that is not there.
    """
    from rearview.config import ModelConfig
    from rearview.contract.card import ModelCard, size_multiple
    from rearview.contract.family import check_checkpoint

    if steps is not None and steps > MAX_STEPS:
        raise ConfigError(f"{steps} denoising steps: a service here takes {MAX_STEPS} at most")
    checkpoint = ModelConfig().checkpoint if name is None else _place(name)
    check_checkpoint(checkpoint)
    card = ModelCard.read(checkpoint)
    content: dict[str, Any] = {"checkpoint": checkpoint, "device": device}
    if device != "auto":
        _device(device)
    if name is not None:
        content |= {"name": _title(name, checkpoint), **_beside(checkpoint)}
    if name is None or _is_bundled(checkpoint):
        planned, side = ModelConfig().max_steps, ModelConfig().width
    else:
        planned, side = _fitting(checkpoint, _steps(name, card), _device(device))
    width, height = size or (side, side)
    multiple = size_multiple(checkpoint)
    # Memory is for as many pixels at least as sessions have; a cache wants whole levels.
    content |= {"width": _up(width, multiple), "height": _up(height, multiple)}
    content["max_steps"] = max(planned, steps or 1)
    return content


def remember_costs(config: ServiceConfig, stages: Sequence[Mapping[str, Any]]) -> None:
    """Keep what a frame of the model costs here. `stages`: what replicas say of themselves. Never raises."""
    from rearview.models import models_folder

    costs = {one["span"]: one["cost"] for one in stages if one.get("cost")}
    if not costs or _is_bundled(config.model.checkpoint):
        return
    # A replica says where it runs: nothing here has to import torch to know.
    said = next((one["device"].partition(":")[0] for one in stages if one.get("device")), "")
    key = _key(config.model.checkpoint, said or _device(config.model.device))
    path = models_folder() / COSTS
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {**_known_costs(), key: list(costs.values())}
        written = path.with_suffix(".tmp")
        written.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        written.replace(path)


def _place(name: str) -> str:
    """The checkpoint on this machine; fetched if need be. Raises ConfigError, FetchFailed."""
    from rearview.cli.fetch import fetch_shown
    from rearview.contract.card import bundled_names, is_hub_id, is_opaque, is_single_file
    from rearview.models import known_models

    if is_opaque(name) or name in bundled_names():
        return name
    if name in known_models():
        return str(fetch_shown(name))
    if is_single_file(name) or Path(name).is_dir():
        return str(Path(name).resolve())
    if is_hub_id(name):
        return str(fetch_shown(name))
    ids = [*bundled_names(), *known_models()]
    meant = "".join(f"; did you mean {one}?" for one in get_close_matches(name, ids, 1))
    text = f"is no folder, no file, no hub id (owner/name) and none of {', '.join(ids)}{meant}"
    raise ConfigError(f"--model {name!r} {text}")


def _beside(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint needs beside itself. Raises ConfigError for a file that does not say it."""
    from rearview.contract.card import is_single_file
    from rearview.contract.family import is_xl_file, tensor_shapes
    from rearview.models import fetched, model_folder

    if is_single_file(checkpoint):
        path = Path(checkpoint)
        if path.suffix == ".safetensors" and any(key.startswith(OPEN_CLIP) for key in tensor_shapes(path)):
            text = (
                "is of Stable Diffusion 2, and does not say what it predicts: name a folder with its settings"
            )
            raise ConfigError(f"--model {path} {text} in model.single_file_config of a --config")
        if is_xl_file(path):
            text = "is of Stable Diffusion XL, and does not say for which sampler and how many steps: name a"
            raise ConfigError(
                f"--model {path} {text} folder with its settings in model.single_file_config of a --config"
            )
        settings = model_folder("sd15-lcm")
        if not fetched(settings):
            return {}
        return {"single_file_config": str(settings), "vae": str(settings / "vae")}
    lora = Path(checkpoint) / LCM_LORA
    return {"lcm_lora": str(lora)} if lora.is_dir() else {}


def _steps(name: str, card: Any) -> int:
    from rearview.models import known_models

    known = known_models().get(name)
    return int(card.steps if known is None else known.steps)


def expected_rate(config: ServiceConfig) -> float | None:
    """Frames a second that one stream is expected to get, per frame, by what the model cost here when it ran
    last; None: it has not run here.
    """
    from rearview.contract.card import ModelCard
    from rearview.contract.fit import rate

    model = config.model
    costs = _costs_of(model.checkpoint, _device(model.device))
    steps = min(ModelCard.read(model.checkpoint).steps, model.max_steps)
    return rate(costs, model.width * model.height, steps) if costs else None


def _fitting(checkpoint: str, steps: int, device: str) -> tuple[int, int]:
    """Steps and side, by what was measured."""
    from rearview.contract.fit import fit

    chosen = fit(device, _costs_of(checkpoint, device), steps)
    return chosen.steps, chosen.side


def _costs_of(checkpoint: str, device: str) -> list[FrameCost]:
    """What a frame cost, span by span; none if it is not known."""
    from rearview.contract.cost import FrameCost

    said = _known_costs().get(_key(checkpoint, device), [])
    with contextlib.suppress(TypeError, LookupError):  # Of another version.
        return list(map(FrameCost.of, said))
    return []


def _known_costs() -> dict[str, Any]:
    from rearview.models import models_folder

    try:
        known = json.loads((models_folder() / COSTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _key(checkpoint: str, device: str) -> str:
    return f"{checkpoint} on {device}"


def _device(name: str) -> str:
    """Type of the device. Raises ConfigError for one that is not there."""
    from rearview.engine.devices import pick_device

    return str(pick_device(name).type)


def _is_bundled(checkpoint: str) -> bool:
    return "/" not in checkpoint


def _title(name: str, checkpoint: str) -> str:
    """By which clients ask for it."""
    return Path(checkpoint).stem if "/" in name else name


def _up(side: int, multiple: int) -> int:
    return math.ceil(side / multiple) * multiple
