"""Compiled calls in files: both forms do what the network does, for any number of samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rearview.engine.acceleration import packages
from rearview.engine.acceleration.packages import AHEAD, BESIDE, compile_to, in_process, load, suffix_for
from torch import Tensor, nn
from torch._dynamo.utils import counters

pytestmark = [
    pytest.mark.unit,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # torch's own, of its export.
]


class Scaled(nn.Module):
    """A network of one line and one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 3.0), requires_grad=False)

    def forward(self, given_BN: Tensor) -> tuple[Tensor]:
        return (self.weight * given_BN,)


@pytest.fixture(autouse=True)
def fresh_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where nothing was compiled before."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()


def rows(samples: int) -> Tensor:
    return torch.arange(8.0 * samples).reshape(samples, 8)


@pytest.mark.parametrize("suffix", [AHEAD, BESIDE])
def test_a_file_serves_any_number_of_samples(tmp_path: Path, suffix: str) -> None:
    package, network = tmp_path / f"call{suffix}", Scaled()
    compile_to(package, network, [rows(3)], [[0]])
    loaded = load(package, network, [[0]])
    for samples in (2, 3, 7):
        assert torch.equal(loaded(rows(samples))[0], 3.0 * rows(samples))


@torch.inference_mode()
def test_what_lies_beside_weights_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, network = tmp_path / f"call{BESIDE}", Scaled()
    compile_to(package, network, [rows(3)], [[0]])
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "another machine"))
    counters.clear()
    other = Scaled()
    other.weight.fill_(5.0)
    loaded = load(package, other, [[0]])
    for samples in (2, 5):
        assert torch.equal(loaded(rows(samples))[0], 5.0 * rows(samples))
    found = {**counters["inductor"], **counters["aot_autograd"]}
    assert found.get("fxgraph_cache_miss", 0) + found.get("autograd_cache_miss", 0) == 0, found
    assert found.get("fxgraph_cache_hit", 0) + found.get("autograd_cache_hit", 0) > 0, found


def test_a_file_of_something_else_is_told(tmp_path: Path) -> None:
    package = tmp_path / f"call{BESIDE}"
    package.write_bytes(b"nothing that was compiled")
    with pytest.raises(Exception, match=r"."):
        load(package, Scaled(), [[0]])(rows(2))


def test_too_many_shapes_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MOST_FORMS", 1)

    class Particular(nn.Module):
        def forward(self, given_BN: Tensor) -> tuple[Tensor]:
            return (given_BN * (1.0 if given_BN.shape[0] == 3 else 2.0),)

    run = in_process(Particular(), [[0]])
    with torch._dynamo.config.patch(recompile_limit=1):
        for samples, times in ((3, 1.0), (4, 2.0), (5, 2.0)):
            assert torch.equal(run(rows(samples))[0], times * rows(samples))


def test_weights_lie_in_the_file_on_a_cpu_alone() -> None:
    assert suffix_for(torch.device("cpu")) == AHEAD
    assert suffix_for(torch.device("cuda", 1)) == BESIDE


def test_many_calls_of_one_piece_of_python_are_compiled() -> None:
    """More than torch's own limit: what a service runs has more sorts of calls than that."""
    for number in range(12):
        network = Scaled()
        network.weight.fill_(float(number))
        compiled = in_process(network, [[0]], backend="eager")
        assert torch.equal(compiled(rows(2))[0], number * rows(2))
        assert torch.equal(compiled(rows(3))[0], number * rows(3))
