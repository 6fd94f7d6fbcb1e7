"""The pipeline over a real Ray Serve: same pictures as the local engine, and sessions that outlive their
replicas. One service for all tests: each leaves it whole. What does not depend on Ray is in `test_plain.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
from rearview.config import ServiceConfig, load_config
from rearview.contract.card import ModelCard
from rearview.contract.chain import Span, chain
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_model
from rearview.local import RayService
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.frames import content, entering
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.toy import drain
from support.waiting import eventually

from .conftest import Stream

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FRAMES = 12


def config(checkpoint: Path) -> ServiceConfig:
    halves = [("first", ["encode", "denoise-0"]), ("second", ["denoise-1", "decode"])]
    return load_config(
        {
            "model": {
                "name": "tiny",
                "checkpoint": str(checkpoint),
                "dtype": "float32",
                "width": SIZE,
                "height": SIZE,
            },
            "topology": "pipeline",
            "spans": [{"name": name, "operators": ops, "replicas": 2} for name, ops in halves],
            # Streams say nothing while a replica starts, which may take long on a busy machine.
            "ingress": {"port": 0, "drain_grace_s": 1, "resume_grace_s": 1, "idle_timeout_s": 120},
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def service(checkpoint: Path) -> Iterator[RayService]:
    with RayService(config(checkpoint)) as running:
        yield running


def request(seed: int) -> pb.Open:
    settings = settings_pb2.Settings(prompt="a", seed=seed)
    return pb.Open(settings=settings, drop_policy=pb.DROP_POLICY_LOSSLESS, answer_format=pb.IMAGE_FORMAT_RGB)


def local_pictures(checkpoint: Path, frames: list[torch.Tensor], seed: int) -> list[bytes]:
    """The same frames through one engine in this process that owns the whole chain."""
    span = Span("whole", chain(2))
    model = load_model(str(checkpoint), span, torch.device("cpu"), torch.float32)
    engine = Engine(span, model, Memoryless(1), Scheduler(CostTable(), max_batch=1))
    card = ModelCard.read(str(checkpoint))
    engine.open(SessionSpec("s", SIZE, SIZE, 2, Settings("a", card.strength, card.steps, seed)))
    pictures: dict[int, bytes] = {}
    for ordinal, frame in enumerate(frames):
        engine.admit(entering("s", ordinal, frame), 0.0)
    for frame in drain(engine):
        assert content(frame) is not None
        pictures[frame.ordinal] = content(frame).numpy().tobytes()
    return [pictures[ordinal] for ordinal in range(len(frames))]


def largest_difference(a: list[bytes], b: list[bytes]) -> int:
    pairs = zip(a, b, strict=True)
    as_int = lambda data: torch.frombuffer(bytearray(data), dtype=torch.uint8).int()  # noqa: E731
    return max(int((as_int(x) - as_int(y)).abs().max()) for x, y in pairs)


def test_pipeline_over_serve_gives_the_pictures_of_the_local_engine(
    service: RayService, checkpoint: Path, open_stream: Callable[[str, pb.Open], Stream]
) -> None:
    frames = random_frames(FRAMES)
    stream = open_stream(service.address, request(seed=7))
    served = stream.translate([f.numpy().tobytes() for f in frames], pb.IMAGE_FORMAT_RGB)
    stream.finish()
    local = local_pictures(checkpoint, frames, seed=7)
    assert len({*local}) > 1, "the pictures do not depend on the frames"
    # The latents differ by float32 rounding at most, which can move a pixel over a rounding edge.
    assert largest_difference(served, local) <= 1


def wait_for_another_than(service: RayService, gone: str, within_s: float) -> None:
    """Wait until there are as many replicas as there should be, and this one is not among them."""

    def is_whole() -> bool:
        ids = {stage["replica_id"] for stage in service.stages}
        return len(ids) == 4 and gone not in ids

    eventually(is_whole, within_s=within_s)


def test_a_replica_that_is_drained_by_hand_is_replaced_and_its_sessions_go_on(
    service: RayService, open_stream: Callable[[str, pb.Open], Stream]
) -> None:
    stream, image = open_stream(service.address, request(1)), [random_frames(1)[0].numpy().tobytes()]
    assert len(stream.translate(image * 3, pb.IMAGE_FORMAT_RGB)) == 3
    holder = next(stage["replica_id"] for stage in service.stages if stage["sessions"])
    command = [sys.executable, "-m", "rearview.cli.main", "drain", holder[:8]]
    address = ray.get_runtime_context().gcs_address
    subprocess.run([*command, "--address", address], check=True, timeout=120)
    assert holder not in {stage["replica_id"] for stage in service.stages}
    assert len(stream.translate(image * 3, pb.IMAGE_FORMAT_RGB, first=3)) == 3
    stream.finish()
    wait_for_another_than(service, holder, within_s=60)


def test_sessions_of_a_killed_replica_go_on_in_another_and_it_is_replaced(
    service: RayService, open_stream: Callable[[str, pb.Open], Stream]
) -> None:
    streams = [open_stream(service.address, request(seed)) for seed in range(2)]
    image = [random_frames(1)[0].numpy().tobytes()]
    victim = next(s for s in service.stages if streams[0].opened.session_id in s["sessions"])
    os.kill(victim["pid"], signal.SIGKILL)
    assert streams[1].opened.session_id not in victim["sessions"]
    for stream in streams:
        assert len(stream.translate(image, pb.IMAGE_FORMAT_RGB)) == 1
        stream.finish()
    wait_for_another_than(service, victim["replica_id"], within_s=60)
