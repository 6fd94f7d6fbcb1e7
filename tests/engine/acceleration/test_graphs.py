"""Captured calls give the pictures of eager ones, whatever sessions come, change and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from rearview.contract.settings import Settings
from rearview.engine.acceleration.autoencoder import AcceleratedAutoencoder
from rearview.engine.acceleration.flat import lengthened, padded
from rearview.engine.acceleration.graphs import CudaRecorder, GraphCall, capture
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import EagerCall, UNetInputs
from rearview.engine.weights.formats import Additions
from support.frames import entering
from support.graphs import MAX_BATCH, METHODS, engine_of, loaded, play
from support.stand_in_graphs import HostSync, NoHostSync, StandInRecorder
from support.tiny import random_frames, session
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


class Filled(EagerCall):
    """Calls as they are, with so many samples."""

    def __init__(self, unet: object, samples: int) -> None:
        super().__init__(unet)
        self._samples = samples

    def __call__(self, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
        own = len(inputs.latent_BCHW)
        more = views.beside([0] * (self._samples - own))
        prediction, updates = super().__call__(padded(inputs, self._samples), more)
        return prediction[:own], updates.first(own)


@pytest.mark.parametrize("method", ["per-frame", "merge", "queue"])
def test_calls_are_filled_up_to_the_size_that_is_captured(
    folder: Path, additions: Additions, method: str
) -> None:
    """Pictures are those of forwards of that size, to the bit, with guidance and with writes to a bank."""
    model, denoiser = loaded(folder, additions)
    eager = play(model, method)
    denoiser.call = Filled(denoiser.unet, MAX_BATCH)
    full = play(model, method)
    call = GraphCall(EagerCall(denoiser.unet), recorder := StandInRecorder(), sizes=(MAX_BATCH,))
    denoiser.call = call
    play(model, method)  # What is met for the first time runs as it is.
    recorded, eager_calls = recorder.recorded, call.counts.eager
    found = play(model, method)
    assert call.counts.eager == eager_calls
    assert recorder.recorded - recorded <= 12, "one for each kind of call"
    assert [key for key in full if not torch.equal(full[key], found[key])] == []
    assert max((eager[key].int() - found[key].int()).abs().max() for key in eager) <= 1


def test_calls_that_say_which_pasts_they_read_are_not_filled(folder: Path, additions: Additions) -> None:
    model, denoiser = loaded(folder, additions)
    eager = play(model, "live2diff")
    denoiser.call = GraphCall(EagerCall(denoiser.unet), recorder := StandInRecorder(), sizes=(MAX_BATCH,))
    found = play(model, "live2diff")
    assert recorder.recorded
    assert [key for key in eager if not torch.equal(eager[key], found[key])] == []


def test_what_is_filled_lies_in_memory_as_before() -> None:
    """A network that was captured with its channels last would be captured again, and slower."""
    wide = lengthened(torch.rand(2, 4, 8, 8).contiguous(memory_format=torch.channels_last), 5)
    assert wide.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(wide[2:], wide[:1].expand(3, -1, -1, -1))


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


class Streams:
    """Stands in for what a recorder uses of torch.cuda, with captures whose end fails as torch's does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = MagicMock(name="default")
        for name in ("Stream", "CUDAGraph", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, MagicMock())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self._on)
        monkeypatch.setattr(torch.cuda, "graph", self._graph)

    @contextmanager
    def _on(self, stream: MagicMock) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _graph(self, *_: object, **__: object) -> Iterator[None]:
        self.current = MagicMock(name="capture")
        yield
        raise RuntimeError("the capture was invalidated")


def test_a_capture_whose_end_fails_leaves_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    before = streams.current
    with pytest.raises(RuntimeError, match="invalidated"):
        CudaRecorder().record(lambda: None)
    assert streams.current is before


def test_there_are_no_more_graphs_than_may_be_kept(folder: Path, additions: Additions) -> None:
    model, denoiser = loaded(folder, additions)
    recorder = StandInRecorder()
    denoiser.call = GraphCall(EagerCall(denoiser.unet), recorder, most=2)
    play(model, "per-frame")
    assert recorder.recorded == 2


def test_without_memory_to_spare_nothing_more_is_captured(folder: Path, additions: Additions) -> None:
    model, denoiser = loaded(folder, additions)
    recorder = StandInRecorder()
    recorder.has_room = False
    denoiser.call = call = GraphCall(EagerCall(denoiser.unet), recorder)
    play(model, "per-frame")
    assert (recorder.recorded, call.counts.accelerated) == (0, 0)


def test_an_engine_says_which_forwards_were_replayed(folder: Path, additions: Additions) -> None:
    model, _ = loaded(folder, additions)
    capture(model, StandInRecorder())
    engine = engine_of(model, "per-frame", torch.float64)
    engine.open(session("a", Settings("a", steps=2)))
    said = []
    for ordinal, frame in enumerate(random_frames(3)):
        engine.admit(entering("a", ordinal, frame), 0.0)
        batches = []
        while engine.has_work:
            batches += [batch] if (batch := engine.step(0.0).batch) is not None else []
        said.append([batch.is_accelerated for batch in batches])
        assert [batch.is_fallback for batch in batches] == [not each for each in said[-1]]
    # What is met for the first time runs as it is; both steps are one kind of call.
    assert said == [[False, False, True, False], [True] * 4, [True] * 4]


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_model_is_captured(folder: Path, additions: Additions, method: str) -> None:
    model, _ = loaded(folder, additions)
    eager = play(model, method)
    counts = capture(model, StandInRecorder())
    assert isinstance(model.vae, AcceleratedAutoencoder)
    captured = play(model, method)
    assert [key for key in eager if not torch.equal(eager[key], captured[key])] == []
    assert len(counts) == 2
    assert all(each.accelerated > each.eager for each in counts)


def test_in_a_mixed_run_nearly_all_calls_are_replayed(folder: Path, additions: Additions) -> None:
    """Sessions that come, go, are guided and change their settings, with a bank: of calls whose shapes were
    met before 95 in 100 are replays.
    """
    model, _ = loaded(folder, additions)
    counts = capture(model, StandInRecorder())
    play(model, "merge")
    before = [(each.accelerated, each.eager) for each in counts]
    graphs_before = before[0]
    play(model, "merge")
    accelerated, eager = (counts[1].accelerated - before[1][0], counts[1].eager - before[1][1])
    assert accelerated / (accelerated + eager) >= 0.95
    assert counts[0].accelerated > graphs_before[0]


def test_graphs_leave_what_they_leave_in_one_place(folder: Path, additions: Additions) -> None:
    """A bank's update has the keys and values of every sample in every layer: gigabytes, for each size."""
    model, denoiser = loaded(folder, additions)
    denoiser.call = call = GraphCall(EagerCall(denoiser.unet), recorder := StandInRecorder())
    places: set[int] = set()
    updates_seen = 0

    def noted(inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
        nonlocal updates_seen
        accelerated = call.counts.accelerated
        prediction, updates = call(inputs, views)
        left = [tensor for update in updates.values() for tensor in update.tensors]
        if call.counts.accelerated > accelerated and left:
            updates_seen += 1
            places.add(left[0].untyped_storage().data_ptr())
        return prediction, updates

    denoiser.call = noted
    play(model, "merge", names=("b", "a", "c"))
    assert recorder.recorded > 2
    assert updates_seen > 2
    assert len(places) <= 2, "it may have grown once"
