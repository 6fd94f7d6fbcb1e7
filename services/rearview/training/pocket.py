"""Make the pocket checkpoint: data, autoencoder, denoiser, export, figures.

``python -m rearview.training.pocket`` runs everything within the minutes given and resumes where it
stopped. A checkpoint is exported early and replaced by better ones, so there is always something to run.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch

from rearview.training.autoencoder import train_autoencoder
from rearview.training.budget import load_if_present, pick_device
from rearview.training.card import Report, model_card
from rearview.training.dataset import Dataset, write_dataset
from rearview.training.denoiser import train_denoiser
from rearview.training.export import Pocket, checkpoint_bytes, load_pocket, random_pocket, write_checkpoint
from rearview.training.flicker import flicker_figures
from rearview.training.sheets import (
    Setting,
    held_out_pictures,
    reconstruction_figures,
    sheet,
    style_distances,
    style_figures,
    write_picture,
)

PACKAGE = Path(__file__).resolve().parents[1]
FIRST_EXPORT_AT = 0.1  # share of the denoiser's budget
FLICKER_STYLES = ("natural", "pencil", "oil", "watercolor", "clay", "neon", "cartoon", "blueprint")
SETTINGS = {
    "S=2, strength .4": Setting(0.4, 2),
    "S=1, strength .4": Setting(0.4, 1),
    "S=4, strength .4": Setting(0.4, 4),
    "S=2, strength .6": Setting(0.6, 2),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything a run can choose; minutes are wall-clock."""

    work: Path = Path("out/pocket-training")
    """Data, resumable states and previews."""
    checkpoint: Path = PACKAGE / "checkpoints" / "pocket"
    """Where the exported folder goes; replaced whole."""
    docs: Path = Path("docs/pocket")
    """Where the contact sheet goes."""
    num_scenes: int = 4000
    """Generated scenes; each takes 0.54 MB of memory."""
    vae_minutes: float = 27.0
    unet_minutes: float = 42.0
    """Budget of each stage, earlier runs included."""
    seed: int = 1
    device: str = "auto"
    num_threads: int = 2
    """Torch threads on the CPU."""
    machine: str = "2 CPU cores, shared with other work"
    """Named in the model card."""


def train_pocket(options: Options) -> Path:
    """Run or resume the whole recipe; return the checkpoint folder."""
    torch.set_num_threads(options.num_threads)
    cv2.setNumThreads(1)
    device = pick_device(options.device)
    scenes = options.work / "scenes.u8"
    write_dataset(scenes, num_scenes=options.num_scenes, seed=options.seed, num_workers=options.num_threads)
    data = Dataset.load(scenes)
    start = time.monotonic()
    vae = train_autoencoder(
        data, options.work / "vae.pt", minutes=options.vae_minutes, device=device, seed=options.seed
    )
    print(f"autoencoder ready after {(time.monotonic() - start) / 60:.1f} minutes", flush=True)

    def preview(pocket: Pocket, step: int, fraction: float) -> None:
        if fraction >= FIRST_EXPORT_AT:
            write_checkpoint(pocket, options.checkpoint, training={"unet_steps": step, "finished": False})
            picture = sheet(held_out_pictures(), pocket, Setting(), cell=192)
            write_picture(options.work / "previews" / f"step-{step:06d}.png", picture)
            print(f"unet: step {step}, exported", flush=True)

    train_denoiser(
        data, vae, options.work / "unet.pt", minutes=options.unet_minutes, device=device, seed=options.seed,
        on_save=preview,
    )  # fmt: skip
    return finish(options)


def finish(options: Options) -> Path:
    """Measure the exported checkpoint as it is on disk, write its card and the contact sheet."""
    pocket = load_pocket(options.checkpoint)
    report = measure(pocket, options)
    write_checkpoint(pocket, options.checkpoint, training=report.training(), card=model_card(report))
    write_picture(options.docs / "styles.png", sheet(held_out_pictures(), pocket, Setting()))
    return options.checkpoint


def measure(pocket: Pocket, options: Options) -> Report:
    """Figures for the card: reconstruction, distance to the teachers, distance between styles."""
    cpu = torch.device("cpu")
    stages = {
        name: load_if_present(options.work / f"{name}.pt", cpu) or {"step": 0, "spent_s": 0.0}
        for name in ("vae", "unet")
    }
    parts = {"autoencoder": pocket.vae, "denoiser": pocket.unet, "text encoder": pocket.text_encoder}
    return Report(
        num_scenes=options.num_scenes,
        seed=options.seed,
        vae_steps=stages["vae"]["step"],
        vae_minutes=stages["vae"]["spent_s"] / 60,
        unet_steps=stages["unet"]["step"],
        unet_minutes=stages["unet"]["spent_s"] / 60,
        machine=options.machine,
        size_bytes=checkpoint_bytes(options.checkpoint),
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        reconstruction=reconstruction_figures(pocket),
        style_psnr={name: style_figures(pocket, setting) for name, setting in SETTINGS.items()},
        distances=style_distances(pocket, Setting()),
        flicker=flicker_figures(pocket, FLICKER_STYLES, Setting()),
    )


def main() -> None:
    """Command line: every option of ``Options``, plus ``--random`` and ``--finish-only``."""
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = Options()
    for name, value in vars(defaults).items():
        kind = Path if isinstance(value, Path) else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value)
    parser.add_argument("--random", action="store_true", help="export untrained weights and stop")
    parser.add_argument("--finish-only", action="store_true", help="measure the exported checkpoint and stop")
    chosen = vars(parser.parse_args())
    random, finish_only = chosen.pop("random"), chosen.pop("finish_only")
    options = Options(**chosen)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if random:
        write_checkpoint(random_pocket(options.seed), options.checkpoint, training={"finished": False})
    elif finish_only:
        finish(options)
    else:
        train_pocket(options)


if __name__ == "__main__":
    main()
