"""Planes stay on the device inside a span and leave it on the host, in storage of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.contract.chain import OperatorKind, Span
from rearview.contract.frame import LATENT, PICTURE
from rearview.contract.settings import Settings
from rearview.engine.devices import same_device
from rearview.engine.engine import Engine
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.finite import broken_planes
from rearview.engine.networks.model import DiffusionModel, Forward
from rearview.engine.planes import kept, moved, on_host, stacked
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_model
from support.frames import entering
from support.pretend import OnDevice, PretendDevice
from support.tiny import random_frames, session, whole_chain, write_tiny_checkpoint
from support.toy import drain
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.unit

CPU, MPS = torch.device("cpu"), torch.device("mps", 0)


class Noting(DiffusionModel):
    """Notes what each operator is given, and where it lay."""

    seen: list[tuple[OperatorKind, bool]]

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        found = [tensor for row in rows for tensor in row.planes.values()]
        self.seen.append((rows[0].operator.kind, all(isinstance(each, OnDevice) for each in found)))
        return super().forward(rows, views)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def engine_of(folder: Path, span: Span) -> tuple[Engine, Noting]:
    model = load_model(str(folder), span, MPS, torch.float32)
    assert isinstance(model, DiffusionModel)
    model.__class__ = Noting
    assert isinstance(model, Noting)
    model.seen = []
    return Engine(span, model, Memoryless(2), Scheduler(CostTable(), 4)), model


def test_planes_come_to_the_host_where_they_leave_the_span(folder: Path) -> None:
    with PretendDevice():
        engine, model = engine_of(folder, whole_chain())
        for name in ("a", "b"):
            engine.open(session(name, Settings("a", steps=2)))
            engine.admit(entering(name, 0, random_frames(1)[0]), 0.0)
        left = drain(engine)
    assert model.seen == [
        (OperatorKind.ENCODE, False),
        *[(OperatorKind.DENOISE, True)] * 2,
        (OperatorKind.DECODE, True),
    ]
    for frame in left:
        assert frame.planes is not None
        assert type(frame.planes[PICTURE]) is Tensor


def test_a_span_in_the_middle_gives_what_the_next_one_takes(folder: Path) -> None:
    whole, (first, *rest) = whole_chain(), whole_chain().operators
    with PretendDevice():
        engine, _ = engine_of(folder, Span("first", (first,)))
        engine.open(session("a", Settings("a", steps=2)))
        engine.admit(entering("a", 0, random_frames(1)[0]), 0.0)
        (latent,) = drain(engine)
        assert latent.planes is not None
        assert type(latent.planes[LATENT]) is Tensor
        engine, model = engine_of(folder, Span("rest", tuple(rest)))
        engine.open(session("a", Settings("a", steps=2)))
        engine.admit(latent, 0.0)
        (left,) = drain(engine)
    assert model.seen[0] == (OperatorKind.DENOISE, False)
    assert left.planes is not None
    assert whole.operators[-1].kind is OperatorKind.DECODE


def test_outputs_do_not_keep_their_batch() -> None:
    batch = torch.zeros(4, 8)
    (host,) = on_host([{LATENT: batch[1]}])
    assert host[LATENT].untyped_storage().nbytes() == batch[1].nbytes
    assert kept({LATENT: batch[1]})[LATENT].untyped_storage().nbytes() == batch[1].nbytes
    (whole,) = on_host([{LATENT: batch}])
    assert whole[LATENT] is batch


def test_planes_of_two_places_and_two_shapes_move() -> None:
    with PretendDevice():
        there = torch.ones(3, device=MPS)
        samples = [{LATENT: there}, {LATENT: torch.zeros(3)}, {LATENT: torch.zeros(5), PICTURE: there}]
        found = moved(samples, MPS)
        assert all(isinstance(each, OnDevice) for planes in found for each in planes.values())
        assert found[0][LATENT] is there
        assert moved([{LATENT: there}], torch.device("mps"))[0][LATENT] is there
        assert stacked(samples[:2], LATENT, MPS).cpu().tolist() == [[1.0] * 3, [0.0] * 3]


def test_a_device_without_a_number_is_the_first() -> None:
    assert same_device(torch.device("cuda"), torch.device("cuda", 0))
    assert not same_device(torch.device("cuda", 1), torch.device("cuda"))
    assert not same_device(torch.device("cuda"), CPU)


def test_one_operator_for_each_plane_tells_whether_all_are_finite() -> None:
    class Launches(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return func(*args, **(kwargs or {}))

    planes = [{LATENT: plane} for plane in torch.ones(8, 4)]
    with Launches() as launches:
        assert broken_planes(planes) == frozenset()
    assert launches.count <= 8 + 8


def test_broken_samples_are_told_apart() -> None:
    good, huge, nan = torch.ones(4), torch.full((4,), 3e38), torch.tensor([0.0, float("nan")])
    assert broken_planes([]) == frozenset()
    assert broken_planes([{LATENT: good}, {LATENT: huge}]) == frozenset()
    assert broken_planes([{LATENT: good}, {LATENT: good, "depth": nan}]) == {1}
