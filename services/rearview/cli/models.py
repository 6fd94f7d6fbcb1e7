"""`rearview models`: run released weights through the engine on this machine, and look at what comes out."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rearview.cli.check import check_model
from rearview.cli.compile import compile_networks
from rearview.cli.failure import fails_in_one_line
from rearview.cli.fetch import fetch_wanted, list_known
from rearview.cli.printing import JsonOption, print_json
from rearview.cli.trial import bundled_frames, translate, ways, whole_span

if TYPE_CHECKING:
    import torch

    from rearview.cli.contact_sheet import Row
    from rearview.client.answers import Image
    from rearview.engine.networks.depth import DepthEstimator
    from rearview.engine.networks.model import DiffusionModel

__all__ = ["Figures", "app", "problems"]

STEPS = 4
SHOWN_PAIRS = 3
MOTION_FRAMES = 20
"""Warm-up, one turn of the ring, and some more."""
MIN_AUTOENCODER_DB = 18.0
"""What the VAE gives back of an input must be its picture: wrong weights or scaling give far less."""
MIN_CONTRAST = 8.0
"""Standard deviation of a picture, in levels of 255: less is a flat or broken one."""

app = typer.Typer(no_args_is_help=True, help="Fetch and check model weights.")
app.command("list")(list_known)
app.command("fetch")(fetch_wanted)
app.command("check")(check_model)
app.command("compile")(compile_networks)


@dataclass(frozen=True)
class Figures:
    """What translating the clip in one way gave."""

    fps: float
    latency_p50_ms: float
    contrast: float
    """Standard deviation of the pictures, levels of 255."""
    distance: float
    """Mean absolute difference from the input, levels of 255."""
    flicker: float
    """Mean absolute difference between neighbouring pictures, levels of 255."""


@app.callback()
def models() -> None:
    """Fetch and check model weights."""


@app.command()
@fails_in_one_line
def verify(
    checkpoint: Annotated[
        str, typer.Option(help="Folder, single file or hub id.")
    ] = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    lcm_lora: Annotated[
        str, typer.Option(help="LoRA to fuse; empty: none.")
    ] = "latent-consistency/lcm-lora-sdv1-5",
    vae: Annotated[str, typer.Option(help="VAE to use; empty: the checkpoint's.")] = "madebyollin/taesd",
    motion: Annotated[
        str, typer.Option(help="Motion modules: file, folder or hub id; empty: the checkpoint's, if any.")
    ] = "",
    depth: Annotated[
        str, typer.Option(help="DPT model, for motion modules that were trained with depth; empty: none.")
    ] = "",
    beta_schedule: Annotated[
        str, typer.Option(help="linear or scaled_linear; empty: the checkpoint's.")
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="What to make of the clip.")
    ] = "oil painting, thick brush strokes",
    strength: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.6,
    frames: Annotated[
        int, typer.Option(help="Frames of the bundled clip; at least 20 with motion modules.", min=2, max=60)
    ] = 8,
    size: Annotated[int, typer.Option(help="Side of the pictures, pixels.", min=64, max=1024)] = 512,
    device: Annotated[str, typer.Option(help="auto: CUDA, MPS, XPU or CPU, the first there is.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for models.png and models.json.")] = Path("out"),
    as_json: JsonOption = False,
) -> None:
    """Load released weights (from the hub's cache or the hub), translate the bundled clip in every way that
    they allow (per frame, with a feature bank, with motion modules and their cache), print the figures and
    write a contact sheet to look at. Exit code 1 if a picture is broken.
    """
    options = VerifyOptions(
        checkpoint=checkpoint,
        lcm_lora=lcm_lora,
        vae=vae,
        motion=motion,
        depth=depth,
        beta_schedule=beta_schedule,
        prompt=prompt,
        strength=strength,
        frames=frames,
        size=size,
        device=device,
        out=out,
    )
    report = _verify(options, partial(typer.echo, err=as_json))
    if as_json:
        print_json(report)
    broken = report["problems"]
    for problem in broken:
        typer.secho(f"problem: {problem}", fg="red", err=True)
    if broken:
        raise typer.Exit(1)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What is loaded, and what is made of the clip with it. Raises OSError for an `out` that is a file."""

    checkpoint: str
    lcm_lora: str
    vae: str
    motion: str
    depth: str
    beta_schedule: str
    prompt: str
    strength: float
    frames: int
    size: int
    device: str
    out: Path

    def __post_init__(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise NotADirectoryError(f"{self.out} is not a folder")

    @property
    def weights(self) -> dict[str, str]:
        """Where they come from, for the report."""
        names = ("checkpoint", "lcm_lora", "vae", "motion", "depth", "beta_schedule")
        return {name: getattr(self, name) for name in names}


def _verify(options: VerifyOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Load, translate, tell, and write both files. Returns the report, with what cannot be right."""

    from rearview.cli.contact_sheet import write_contact_sheet
    from rearview.engine.devices import device_name, pick_device, pick_dtype

    place = pick_device(options.device)
    dtype = pick_dtype("auto", place)
    started_s = time.perf_counter()
    model = _load(options, place, dtype)
    load_s = time.perf_counter() - started_s
    say(f"loaded in {load_s:.1f} s on {place}, {str(dtype).removeprefix('torch.')}")
    frames = max(options.frames, MOTION_FRAMES) if model.layouts.cache is not None else options.frames
    clip = bundled_frames(frames, options.size)
    quality_db = _autoencoder_db(model, clip, dtype, place)
    say(f"autoencoder: {quality_db:.1f} dB")
    depths = None if model.depth is None else _depth_pictures(model.depth, clip, place)
    found, rows = _try_every_way(model, options, clip, depths, dtype, place, say)
    options.out.mkdir(parents=True, exist_ok=True)
    write_contact_sheet(options.out / "models.png", rows)
    broken = problems(quality_db, found, depths)
    report: dict[str, Any] = {
        **options.weights,
        "device": device_name(place),
        "dtype": str(dtype).removeprefix("torch."),
        "size": options.size,
        "steps": STEPS,
        "load_s": load_s,
        "autoencoder_db": quality_db,
        "figures": {name: asdict(figures) for name, figures in found.items()},
        "problems": broken,
    }
    sheet, figures = options.out / "models.png", options.out / "models.json"
    figures.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {sheet} and {figures}: look at the pictures")
    return report


def _load(options: VerifyOptions, device: torch.device, dtype: torch.dtype) -> DiffusionModel:
    from rearview.engine.networks.model import DiffusionModel
    from rearview.engine.weights.checkpoint import load_model
    from rearview.engine.weights.formats import Additions

    additions = Additions(
        options.vae,
        options.lcm_lora,
        motion=options.motion,
        depth=options.depth,
        beta_schedule=options.beta_schedule,
    )
    model = load_model(options.checkpoint, whole_span(STEPS), device, dtype, additions)
    if not isinstance(model, DiffusionModel):
        raise typer.BadParameter("this checkpoint has no weights")
    return model


def _try_every_way(
    model: DiffusionModel,
    options: VerifyOptions,
    clip: Sequence[Image],
    depths: Sequence[Image] | None,
    dtype: torch.dtype,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[dict[str, Figures], list[Row]]:
    """Figures of every way in which the model translates, and rows of pictures to look at."""
    from rearview.cli.contact_sheet import Row
    from rearview.contract.settings import Settings

    found: dict[str, Figures] = {}
    shown = range(0, len(clip), max(1, len(clip) // SHOWN_PAIRS))[:SHOWN_PAIRS]
    rows = [Row("depth", [(clip[n], depths[n]) for n in shown])] if depths is not None else []
    settings = Settings(prompt=options.prompt, strength=options.strength, steps=STEPS)
    for spec, memory in ways(model, settings, options.size, dtype, device):
        name = spec.session_id
        pictures, latencies_s = translate(model, memory, spec, clip)
        found[name] = _figures(clip, pictures, latencies_s[max(1, memory.warm_up_frames(spec)) :])
        say(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in asdict(found[name]).items()))
        rows.append(Row(f"{name}: {options.prompt}", [(clip[n], pictures[n]) for n in shown]))
    return found, rows


def problems(
    autoencoder_db: float, figures: Mapping[str, Figures], depths: Sequence[Image] | None = None
) -> list[str]:
    """What cannot be right, whatever the style. `depths`: maps of the clip as pictures, if there are any."""
    found = []
    if not autoencoder_db >= MIN_AUTOENCODER_DB:
        found.append(f"the VAE gives inputs back at {autoencoder_db:.1f} dB, not {MIN_AUTOENCODER_DB:g}")
    found += [
        f"{name}: pictures are flat, contrast {one.contrast:.1f}"
        for name, one in figures.items()
        if not one.contrast >= MIN_CONTRAST
    ]
    contrast = float(statistics.median(float(picture.std()) for picture in depths)) if depths else None
    if contrast is not None and not contrast >= MIN_CONTRAST:
        found.append(f"depth maps are flat, contrast {contrast:.1f}")
    return found


def _autoencoder_db(
    model: DiffusionModel, clip: Sequence[Image], dtype: torch.dtype, device: torch.device
) -> float:
    """Peak signal to noise of the first frame through the VAE and back."""
    import torch

    from rearview.engine.networks.decode import decode
    from rearview.engine.networks.encode import encode

    with torch.inference_mode():
        source = torch.from_numpy(clip[0].copy())[None].to(device)
        back = decode(model.vae, encode(model.vae, source, dtype), dtype)
        error = (back.float() - source.float()).square().mean()
    return float(10.0 * torch.log10(255.0**2 / error.clamp(min=1e-6)))


def _depth_pictures(estimator: DepthEstimator, clip: Sequence[Image], device: torch.device) -> list[Image]:
    """The clip's depth maps, each in its own range: near is white."""
    import torch

    from rearview.engine.networks.depth import depth_picture, range_of

    pictures = []
    with torch.inference_mode():
        for image in clip:
            pixels = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None] / 127.5 - 1.0
            depth = estimator(pixels)
            levels = (depth_picture(depth, range_of(depth), *image.shape[:2]) + 1.0) * 127.5
            pictures.append(levels[0].permute(1, 2, 0).round().to("cpu", torch.uint8).numpy())
    return pictures


def _figures(clip: Sequence[Image], pictures: Sequence[Image], steady_s: Sequence[float]) -> Figures:
    """`steady_s`: seconds of the frames after those that warm up."""
    import numpy as np

    levels = np.stack(pictures).astype(np.float32)
    return Figures(
        fps=len(steady_s) / sum(steady_s),
        latency_p50_ms=1e3 * statistics.median(steady_s),
        contrast=float(levels.std(axis=(1, 2, 3)).mean()),
        distance=float(np.abs(levels - np.stack(clip)).mean()),
        flicker=float(np.abs(np.diff(levels, axis=0)).mean()),
    )
