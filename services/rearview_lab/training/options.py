"""What a run of the pocket's training can choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rearview.contract.card import BUNDLED_CHECKPOINTS

__all__ = ["Options"]

CHECKPOINT = BUNDLED_CHECKPOINTS / "pocket"


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
    """Folder of an earlier checkpoint that every part begins as. Empty: random weights."""
    seed: int = 1
    device: str = "auto"
    batch: int = 1
    """Times the pictures of a step: 10 crops, 25 frames, 2 clips of motion. A GPU is idle below 4."""
    num_threads: int = 2
    """Torch threads on the CPU."""
    machine: str = "2 CPU cores, shared with other work"
    """Named in the model card."""
    notes: str = ""
    """A file of Markdown about this one run, put at the end of the model card. Empty: none."""
