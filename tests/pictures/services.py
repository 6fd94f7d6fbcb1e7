"""The deployments that are compared, and what both sides read: frames and an adapter file.

Every row runs alone (`max_batch` 1): a batch of two is not bit-equal to two batches of one, and which rows
meet in a batch depends on the machine's load. Only a window of frames stays together whatever the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from rearview.config import ServiceConfig, load_config
from rearview.samples import sample_clip_path
from safetensors.numpy import save_file

__all__ = ["SERVICES", "SIZE", "read_frames", "service_config", "write_inputs"]

SIZE = 64
"""Pixels of a side: the least that a service takes. Bits do not care, and the comparison is sooner done."""
NUM_FRAMES = 24
"""No scenario has more."""
SLOTS = 2
"""A session may begin before the one before it has left its slot."""
STRIDE = 3
"""Of the clip's frames, so that much moves from one to the next."""

SERVICES: Mapping[str, tuple[Mapping[str, str], Mapping[str, Any]]] = {
    "fused": ({"fused": "encode denoise-0 denoise-1 decode"}, {}),
    "pipeline": (
        {"first": "encode", "second": "denoise-0", "third": "denoise-1 decode"},
        {"policy": "queue", "max_frames": 2},
    ),
}
"""Spans with their operators, and the feature bank's pool. Starting a span's replica is most of the time that
a comparison takes, so the first service has one and the second three.
"""


def service_config(name: str, inputs: Path) -> ServiceConfig:
    """One of SERVICES; `inputs` is the folder that `write_inputs` has filled."""
    spans, bank = SERVICES[name]
    adapters = {"tint": [{"path": str(_adapter_path(inputs)), "scale": 1.0}]}
    return load_config(
        {
            "name": "pictures",
            "model": {
                "checkpoint": "pocket",
                "device": "cpu",
                "dtype": "float32",
                "width": SIZE,
                "height": SIZE,
                "max_steps": 2,
                "adapters": adapters,
                **_merged(adapters),
            },
            "topology": "fused" if len(spans) == 1 else "pipeline",
            "spans": [
                {
                    "name": span,
                    "operators": operators.split(),
                    "max_batch": 1,
                    "num_threads": 1,
                    "slots": SLOTS,
                }
                for span, operators in spans.items()
            ],
            "bank": dict(bank),
            "cache": {},
            "ingress": {"port": 0, "drain_grace_s": 1, "resume_grace_s": 1},
        }
    )


def write_inputs(folder: Path) -> None:
    """What both sides read, so that they read the same."""
    with av.open(str(sample_clip_path())) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    step = len(images[0]) // SIZE
    np.save(_frames_path(folder), np.stack(images[: STRIDE * NUM_FRAMES : STRIDE])[:, ::step, ::step])
    _write_adapter(_adapter_path(folder))


def read_frames(folder: Path, num_frames: int, cut_at: int | None = None) -> list[NDArray[np.uint8]]:
    """Frames (SIZE, SIZE, 3). From `cut_at` on they are upside down and inverted: another scene."""
    frames = list(np.load(_frames_path(folder))[:num_frames])
    cut_at = num_frames if cut_at is None else cut_at
    return frames[:cut_at] + [np.ascontiguousarray(255 - frame[::-1]) for frame in frames[cut_at:]]


def _write_adapter(path: Path) -> None:
    """A random LoRA in kohya's format, of one layer of the bundled checkpoint's UNet: 64 to 64 channels."""
    layer, rank, channels = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_v", 2, 64
    generator = np.random.default_rng(0)
    tensors = {
        f"{layer}.lora_down.weight": generator.standard_normal((rank, channels)),
        f"{layer}.lora_up.weight": generator.standard_normal((channels, rank)),
    }
    save_file({key: value.astype(np.float32) for key, value in tensors.items()}, path)


def _frames_path(folder: Path) -> Path:
    return folder / "frames.npy"


def _adapter_path(folder: Path) -> Path:
    return folder / "tint.safetensors"


def _merged(names: Iterable[str]) -> Mapping[str, Any]:
    """Merged sets are what earlier versions had: of those that there are now they alone give equal bits."""
    model: Any = ServiceConfig.model_fields["model"].annotation
    is_known = "merged_adapters" in model.model_fields
    return {"merged_adapters": list(names)} if is_known else {}
