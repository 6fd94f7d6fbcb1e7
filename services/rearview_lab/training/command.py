"""`rearview train pocket`: its options, and which part of the work they ask for.

torch is imported only once they have been read, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rearview.contract.card import BUNDLED_CHECKPOINTS

__all__ = ["Options", "main"]

CHECKPOINT = BUNDLED_CHECKPOINTS / "pocket"
DESCRIPTION = (
    """Make the pocket checkpoint within the minutes given, resuming where an earlier run stopped."""
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything a run can choose; minutes are wall-clock."""

    work: Path = Path("out/pocket-training")
    """Data, resumable states and previews."""
    checkpoint: Path = CHECKPOINT
    """Where the exported folder goes; replaced whole."""
    docs: Path = Path("docs/pocket")
    """Where the contact sheet goes."""
    clips: str = ""
    """A folder of videos, for a second contact sheet. Empty: none."""
    num_scenes: int = 4000
    """Generated scenes; each takes 0.54 MB of memory."""
    vae_minutes: float = 32.0
    polish_minutes: float = 28.0
    """Of a second schedule over the autoencoder, for fidelity and steadiness."""
    unet_minutes: float = 90.0
    motion_minutes: float = 45.0
    """Budget of each stage, earlier runs included. 0 leaves a stage out."""
    start_from: str = ""
    """State file (unet.pt) of an earlier denoiser for a warm start. Empty: from random weights."""
    seed: int = 1
    device: str = "auto"
    num_threads: int = 2
    """Torch threads on the CPU."""
    machine: str = "2 CPU cores, shared with other work"
    """Named in the model card."""
    notes: str = ""
    """A file of Markdown about this one run, put at the end of the model card. Empty: none."""


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> None:
    """Every option of `Options`, plus `--random` and `--finish-only`."""
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    for name, value in vars(Options()).items():
        kind = Path if isinstance(value, Path) else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value)
    parser.add_argument("--random", action="store_true", help="export untrained weights and stop")
    parser.add_argument("--finish-only", action="store_true", help="measure the exported checkpoint and stop")
    chosen = vars(parser.parse_args(arguments))
    random, finish_only = chosen.pop("random"), chosen.pop("finish_only")
    options = Options(**chosen)
    for file in filter(None, (options.start_from, options.notes)):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such file")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from rearview_lab.training.export import random_pocket, write_checkpoint
    from rearview_lab.training.pocket import finish, train_pocket

    if random:
        write_checkpoint(random_pocket(options.seed), options.checkpoint, training={"finished": False})
    elif finish_only:
        finish(options)
    else:
        train_pocket(options)
