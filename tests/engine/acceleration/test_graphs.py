"""Captured calls give the pictures of eager ones, whatever sessions come, change and go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rearview.engine.acceleration.graphs import GraphCall
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import EagerCall, UNetInputs
from rearview.engine.weights.formats import Additions
from support.graphs import METHODS, loaded, play
from support.stand_in_graphs import HostSync, NoHostSync, StandInRecorder
from torch import Tensor

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("method", METHODS)
def test_captured_forwards_give_the_same_pictures(folder: Path, additions: Additions, method: str) -> None:
    model, denoiser = loaded(folder, additions)
    eager = play(model, method)
    denoiser.call = call = GraphCall(EagerCall(denoiser.unet), recorder := StandInRecorder())
    captured = play(model, method)
    assert captured.keys() == eager.keys()
    assert [key for key in eager if not torch.equal(eager[key], captured[key])] == []
    assert recorder.recorded
    assert call.counts.accelerated > call.counts.eager


def test_what_waits_for_the_device_is_seen_and_runs_eager(folder: Path, additions: Additions) -> None:
    with NoHostSync(), pytest.raises(HostSync, match="_local_scalar_dense"):
        torch.ones(1).item()

    class Waiting(EagerCall):
        def __call__(self, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
            assert inputs.timestep_B.sum().item() > 0
            return super().__call__(inputs, views)

    model, denoiser = loaded(folder, additions)
    eager = play(model, "per-frame")
    denoiser.call = call = GraphCall(Waiting(denoiser.unet), StandInRecorder())
    found = play(model, "per-frame")
    assert all(torch.equal(eager[key], found[key]) for key in eager)
    assert call.counts.accelerated == 0


def test_pools_that_are_exchanged_are_not_read_on(folder: Path, additions: Additions) -> None:
    model, denoiser = loaded(folder, additions)
    eager = play(model, "queue")
    denoiser.call = call = GraphCall(EagerCall(denoiser.unet), StandInRecorder())
    for _ in range(2):  # Each engine has pools of its own.
        found = play(model, "queue")
        assert all(torch.equal(eager[key], found[key]) for key in eager)
    assert call.counts.share > 0.8


def test_there_are_no_more_graphs_than_may_be_kept(folder: Path, additions: Additions) -> None:
    model, denoiser = loaded(folder, additions)
    recorder = StandInRecorder()
    denoiser.call = GraphCall(EagerCall(denoiser.unet), recorder, most=2)
    play(model, "per-frame")
    assert recorder.recorded == 2
