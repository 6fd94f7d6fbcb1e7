"""Make the pocket checkpoint: data, autoencoder, denoiser, motion modules, export, figures.

`rearview train pocket` (`command.py`) runs everything within the minutes given and resumes where it
stopped. A checkpoint is exported early and replaced by better ones, so there is always something to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import torch
from diffusers import MotionAdapter

from rearview_lab.data.dataset import Dataset, write_dataset
from rearview_lab.data.photos import Image
from rearview_lab.training.autoencoder import POLISH, train_autoencoder
from rearview_lab.training.budget import load_if_present, pick_device
from rearview_lab.training.card import Report, Stage, model_card
from rearview_lab.training.denoiser import train_denoiser
from rearview_lab.training.export import (
    MOTION,
    Pocket,
    checkpoint_bytes,
    load_pocket,
    write_checkpoint,
)
from rearview_lab.training.motion import read_motion, train_motion, write_motion
from rearview_lab.training.options import Options
from rearview_lab.training.sheets import (
    Setting,
    clip_pictures,
    every_style,
    every_teacher,
    held_out_pictures,
    reconstruction_figures,
    sheet,
    style_distances,
    style_figures,
    write_picture,
)
from rearview_lab.training.vocabulary import build_tokenizer

FIRST_EXPORT_AT = 0.1  # share of the denoiser's budget
STAGES = ("vae", "vae-polished", "unet", "motion")
SETTINGS = {
    "S=2, strength .4": Setting(0.4, 2),
    "S=1, strength .4": Setting(0.4, 1),
    "S=4, strength .4": Setting(0.4, 4),
    "S=2, strength .6": Setting(0.6, 2),
}


def train_pocket(options: Options) -> Path:
    """Run or resume the whole recipe; return the checkpoint folder."""
    torch.set_num_threads(options.num_threads)
    cv2.setNumThreads(1)
    device = pick_device(options.device)
    start = load_start(Path(options.start_from)) if options.start_from else None
    scenes = options.work / "scenes.u8"
    write_dataset(scenes, num_scenes=options.num_scenes, seed=options.seed, num_workers=options.num_threads)
    data = Dataset.load(scenes)
    began = time.monotonic()
    vae = train_autoencoder(
        data, options.work / "vae.pt", minutes=options.vae_minutes, device=device, seed=options.seed,
        batch=options.batch, start=start.vae if start is not None else None,
    )  # fmt: skip
    if options.polish_minutes > 0:
        vae = train_autoencoder(
            data, options.work / "vae-polished.pt", minutes=options.polish_minutes, device=device,
            seed=options.seed + 1, batch=options.batch, goal=POLISH, start=vae,
        )  # fmt: skip
    print(f"autoencoder ready after {(time.monotonic() - began) / 60:.1f} minutes", flush=True)

    def preview(pocket: Pocket, step: int, fraction: float) -> None:
        if fraction >= FIRST_EXPORT_AT:
            write_checkpoint(pocket, options.checkpoint, training={"unet_steps": step, "finished": False})
            picture = sheet(held_out_pictures(), drawn_by(pocket), cell=192)
            write_picture(options.work / "previews" / f"step-{step:06d}.png", picture)
            print(f"unet: step {step}, exported", flush=True)

    pocket = train_denoiser(
        data, vae, options.work / "unet.pt", minutes=options.unet_minutes, device=device, seed=options.seed,
        batch=options.batch, start=start, on_save=preview,
    )  # fmt: skip
    write_checkpoint(pocket, options.checkpoint, training={"finished": False})
    if options.motion_minutes > 0:
        _train_motion(options, data, device)
    return finish(options)


def load_start(folder: Path) -> Pocket:
    """What training begins as. Raises ValueError if it has other words: an embedding would stand for another
    one.
    """
    start = load_pocket(folder)
    if start.tokenizer.get_vocab() != build_tokenizer().get_vocab():
        raise ValueError(f"{folder} has another vocabulary")
    return start


def _train_motion(options: Options, data: Dataset, device: torch.device) -> None:
    """Motion modules for the checkpoint as it lies on disk, exported into it."""
    pocket = load_pocket(options.checkpoint)

    def export(weights: dict[str, torch.Tensor], step: int) -> None:
        write_motion(weights, pocket.unet.config, options.checkpoint / MOTION)
        print(f"motion: step {step}, exported", flush=True)

    weights = train_motion(
        data, pocket, options.work / "motion.pt", minutes=options.motion_minutes, device=device,
        seed=options.seed, batch=options.batch, on_save=export,
        start=_earlier_motion(options),
    )  # fmt: skip
    write_motion(weights, pocket.unet.config, options.checkpoint / MOTION)


def _earlier_motion(options: Options) -> dict[str, torch.Tensor] | None:
    """None: there are none to begin as."""
    folder = Path(options.start_from) / MOTION
    return read_motion(folder) if options.start_from and folder.is_dir() else None


def finish(options: Options) -> Path:
    """Measure the exported checkpoint as it is on disk, write its card and the contact sheets."""
    pocket = load_pocket(options.checkpoint)
    report = measure(pocket, options)
    write_checkpoint(
        pocket, options.checkpoint, training=report.training(), card=model_card(report), keep_motion=True
    )
    draw = drawn_by(pocket)
    write_picture(options.docs / "teachers.png", sheet(held_out_pictures(), every_teacher))
    write_picture(options.docs / "styles.png", sheet(held_out_pictures(), draw))
    if options.clips:
        pictures = clip_pictures(Path(options.clips))
        write_picture(options.docs / "clips.png", sheet(pictures, draw))
    return options.checkpoint


def drawn_by(pocket: Pocket) -> Callable[[Image], dict[str, Image]]:
    """What the contact sheets show of a checkpoint: its default setting."""
    return partial(every_style, pocket, setting=Setting())


def measure(pocket: Pocket, options: Options) -> Report:
    """Figures for the card: reconstruction, distance to the teachers, distance between styles."""
    parts = {"autoencoder": pocket.vae, "denoiser": pocket.unet, "text encoder": pocket.text_encoder}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    if (options.checkpoint / MOTION).is_dir():
        adapter = MotionAdapter.from_pretrained(options.checkpoint / MOTION)
        counts["motion modules"] = sum(p.numel() for p in adapter.parameters())
    return Report(
        num_scenes=options.num_scenes,
        batch=options.batch,
        seed=options.seed,
        stages=_stages(options),
        warm_start=bool(options.start_from),
        machine=options.machine,
        notes=Path(options.notes).read_text(encoding="utf-8") if options.notes else "",
        size_bytes=checkpoint_bytes(options.checkpoint),
        parameters=counts,
        reconstruction=reconstruction_figures(pocket),
        style_psnr={name: style_figures(pocket, setting) for name, setting in SETTINGS.items()},
        distances=style_distances(pocket, Setting()),
    )


def _stages(options: Options) -> dict[str, Stage]:
    """Steps and minutes of the stages that have run."""
    states = {name: load_if_present(options.work / f"{name}.pt", torch.device("cpu")) for name in STAGES}
    return {
        name: Stage(state["step"], state["spent_s"] / 60)
        for name, state in states.items()
        if state is not None
    }
