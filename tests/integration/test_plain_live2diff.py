"""Live2Diff over plain processes: every cut gives the pictures of the local engine, through a new prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.client import DropPolicy, ImageFormat, Method, OpenOptions, SettingsChange, Translated, sync
from rearview.client.exchange import Item
from rearview.config import ServiceConfig, load_config
from rearview.contract.chain import Span, chain
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings as EngineSettings
from rearview.engine.engine import Engine
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_model
from rearview.local import PlainService
from support.frames import content, entering
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_motion_files import write_motion_adapter
from support.toy import drain

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WINDOW = CacheWindow(3, 2)
CHANGE_AT = 5
"""The first frame under the new prompt; the shadow window ends with frame 7."""
FRAMES = random_frames(11)
CUTS: Mapping[str, list[dict[str, Any]]] = {
    "fused": [{"name": "fused", "operators": ["encode", "denoise-0", "denoise-1", "decode"]}],
    "pipeline": [
        {"name": "first", "operators": ["encode", "denoise-0"]},
        {"name": "second", "operators": ["denoise-1", "decode"]},
    ],
}
ASKED: OpenOptions = {
    "prompt": "a",
    "strength": 0.9,
    "seed": 7,
    "method": Method.LIVE2DIFF,
    "drop_policy": DropPolicy.LOSSLESS,
    "answer_format": ImageFormat.RGB,
    "send_quality": 0,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With motion modules of its own."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")
    write_motion_adapter(folder / "motion_adapter")
    return folder


@pytest.fixture(scope="module")
def local_pictures(checkpoint: Path) -> list[bytes]:
    """From one engine in this process that owns the whole chain; the prompt changes on the way."""
    torch.set_num_threads(1)
    span, dtype = Span("whole", chain(2)), torch.float64
    model = load_model(str(checkpoint), span, torch.device("cpu"), dtype)
    assert isinstance(model, DiffusionModel)
    options = MemoryOptions(num_slots=1, height=SIZE, width=SIZE, dtype=dtype, cache=CacheOptions(WINDOW))
    memory = build_memories(span, model.layouts, options)
    assert "cache" in memory.names
    engine = Engine(span, model, memory, Scheduler(CostTable(), max_batch=1))
    settings = [EngineSettings(prompt, 0.9, 2, seed=7) for prompt in ("a", "b")]
    engine.open(SessionSpec("s", SIZE, SIZE, 2, settings[0], cache=CacheSettings()))
    engine.update("s", 1, settings[1])
    pictures: dict[int, bytes] = {}
    for ordinal, frame in enumerate(FRAMES):
        engine.admit(entering("s", ordinal, frame, int(ordinal >= CHANGE_AT)), 0.0)
    for frame in drain(engine):
        assert content(frame) is not None
        pictures[frame.ordinal] = content(frame).numpy().tobytes()
    return [pictures[ordinal] for ordinal in range(len(FRAMES))]


def config(checkpoint: Path, topology: str) -> ServiceConfig:
    return load_config(
        {
            "name": topology,
            "model": {"checkpoint": str(checkpoint), "dtype": "float64", "width": SIZE, "height": SIZE},
            "topology": topology,
            "spans": [{**span, "max_batch": 1, "slots": 2} for span in CUTS[topology]],
            "cache": {"sink_frames": WINDOW.sink_frames, "ring_frames": WINDOW.ring_frames},
            "ingress": {"port": 0, "drain_grace_s": 1, "resume_grace_s": 1},
        }
    )


def translated(address: str, items: Sequence[Item]) -> list[bytes]:
    with sync.Client(address) as client:
        answers = list(client.translate_frames(items, **ASKED))
    return [answer.image.tobytes() for answer in answers if isinstance(answer, Translated)]


@pytest.mark.parametrize("topology", CUTS)
def test_every_cut_gives_the_pictures_of_the_local_engine(
    topology: str, checkpoint: Path, local_pictures: list[bytes]
) -> None:
    images: list[Item] = [frame.numpy() for frame in FRAMES]
    items: list[Item] = [*images[:CHANGE_AT], SettingsChange(prompt="b"), *images[CHANGE_AT:]]
    with PlainService(config(checkpoint, topology)) as service:
        assert translated(service.address, items) == local_pictures
        calm = translated(service.address, images)
    assert calm[:CHANGE_AT] == local_pictures[:CHANGE_AT]
    assert calm[CHANGE_AT + WINDOW.sink_frames :] != local_pictures[CHANGE_AT + WINDOW.sink_frames :]
