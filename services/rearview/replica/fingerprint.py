"""What a model is, in few characters: two replicas with the same weights say the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from rearview.config import ModelConfig
from rearview.contract.card import BUNDLED_CHECKPOINTS, is_single_file
from rearview.engine.devices import pick_device, pick_dtype
from rearview.replica.state import Origin

__all__ = ["origin_of"]

CARD = "rearview.json"
"""What a checkpoint says about itself: no weight follows from it."""
SAMPLES, SAMPLE_BYTES = 64, 1 << 12
"""Read of each file, evenly spread: they tell weights apart without reading gigabytes."""
SUFFIXES = frozenset({".safetensors", ".ckpt", ".bin", ".json", ".txt"})
"""Of files in a folder that the model follows from, or its tokenizer."""


def origin_of(config: ModelConfig) -> Origin:
    """What sessions of this model say they are of. Reads a little of each file; raises OSError."""
    digest = hashlib.sha256()
    for part in _parts(config):
        digest.update(len(part).to_bytes(8, "little") + part)
    return Origin(digest.hexdigest()[:32], str(pick_dtype(config.dtype, pick_device(config.device))))


def _parts(config: ModelConfig) -> Iterator[bytes]:
    """All that the weights follow from, whatever the files are called here."""
    yield config.beta_schedule.encode()
    if config.clip_skip:
        yield f"clip_skip {config.clip_skip}".encode()
    if is_single_file(config.checkpoint):
        yield from _source(config.single_file_config)
    for source in (config.checkpoint, config.vae, config.lcm_lora, config.motion, config.depth):
        yield from _source(source)
    for name, control in sorted(config.controls.items()):
        yield f"control {name} {control.picture}".encode()
        yield from _source(control.path)
        yield from _source(control.depth)
    if config.reference is not None:
        yield b"reference"
        yield from _source(config.reference.path)
        yield from _source(config.reference.image_encoder)
    for name, files in sorted(config.adapters.items()):
        for one in files:
            kind = "merged" if name in config.merged_adapters else "stacked"
            yield f"{name} {one.scale!r} {kind}".encode()
            yield from _source(one.path)


def _source(name: str) -> Iterator[bytes]:
    """Of files their content; of what is on the hub its name."""
    bundled = BUNDLED_CHECKPOINTS / name
    path = bundled if name and "/" not in name and bundled.is_dir() else Path(name)
    if not name or not path.exists():
        yield name.encode()
        return
    if path.is_file():
        yield _sample(path)
        return
    for each in sorted(path.rglob("*")):
        if each.is_file() and each.suffix in SUFFIXES and each.name != CARD:
            yield str(each.relative_to(path)).encode()
            yield _sample(each)


def _sample(path: Path) -> bytes:
    size = path.stat().st_size
    found = [size.to_bytes(8, "little")]
    with path.open("rb") as file:
        for at in (*range(0, size, max(SAMPLE_BYTES, size // SAMPLES)), max(0, size - SAMPLE_BYTES)):
            file.seek(at)
            found.append(file.read(SAMPLE_BYTES))
    return b"".join(found)
