"""Compiled calls stand in for eager ones: with a compiler that changes nothing, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rearview.engine.acceleration import compiled
from rearview.engine.acceleration.compiled import CompiledCall, by_inductor
from rearview.engine.acceleration.flat import CallShape, FlatUNet
from rearview.engine.acceleration.packages import Compiled, Dims
from rearview.engine.weights.formats import Additions
from support.graphs import loaded, play
from torch import Tensor, nn

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("method", ["merge", "both"])
def test_flat_calls_give_the_same_pictures(folder: Path, additions: Additions, method: str) -> None:
    model, denoiser = loaded(folder, additions)
    eager = play(model, method)
    asked: list[CallShape] = []

    def compile(shape: CallShape, call: FlatUNet, tensors: Sequence[Tensor]) -> FlatUNet:
        asked.append(shape)
        return call

    denoiser.call = call = CompiledCall(denoiser.unet, compile)
    found = play(model, method)
    assert [key for key in eager if not torch.equal(eager[key], found[key])] == []
    assert len(asked) == len(set(asked))
    assert call.counts.accelerated > len(asked)
    assert call.counts.eager == 0


def test_what_has_no_compiled_form_runs_eager_and_is_counted(folder: Path, additions: Additions) -> None:
    model, denoiser = loaded(folder, additions)
    eager = play(model, "queue")
    denoiser.call = call = CompiledCall(denoiser.unet, lambda shape, call, tensors: None)
    found = play(model, "queue")
    assert all(torch.equal(eager[key], found[key]) for key in eager)
    assert call.counts.share == 0.0


@pytest.mark.parametrize("method", ["merge", "both"])
def test_a_call_is_one_graph_for_the_compiler(folder: Path, additions: Additions, method: str) -> None:
    """`fullgraph`: nothing of it is left to Python."""
    model, denoiser = loaded(folder, additions)
    eager = play(model, method, frames=8, names=("a",))
    denoiser.call = call = CompiledCall(denoiser.unet, by_inductor(backend="eager"))
    found = play(model, method, frames=8, names=("a",))
    assert [key for key in eager if not torch.equal(eager[key], found[key])] == []
    assert call.counts.accelerated


@pytest.mark.timeout(300)
def test_inductor_compiles_once_for_one_sample_and_once_for_several(
    folder: Path, additions: Additions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that another one joins for a while: forwards of one sample and of two."""
    made: list[Dims] = []

    def counted(network: nn.Module, dims: Dims, backend: str) -> Compiled:
        made.append(dims)
        return network

    monkeypatch.setattr(compiled, "in_process", counted)
    model, denoiser = loaded(folder, additions)
    denoiser.call = call = CompiledCall(denoiser.unet, by_inductor())
    eager = play(loaded(folder, additions)[0], "per-frame", names=("a", "c"))
    found = play(model, "per-frame", names=("a", "c"))
    assert all(torch.equal(eager[key], found[key]) for key in eager)
    assert len(made) == 2
    assert call.counts.share == 1.0
