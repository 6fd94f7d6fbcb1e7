"""Networks compiled ahead of time: what is made, what is kept, and what runs from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from rearview.engine.acceleration import making
from rearview.engine.acceleration.compiled import CompiledCall, use
from rearview.engine.acceleration.making import Seen, Watched, make
from rearview.engine.acceleration.stock import LIST, Artefact, Stock
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.weights.adapters import NO_ADAPTERS
from rearview.engine.weights.formats import Additions
from support.graphs import loaded, play
from torch import Tensor, nn

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]

PLAIN = Additions()
FRAMES = 14
DTYPE = torch.float32
"""Kernels with packed weights know no wider one."""


class Doubled(nn.Module):
    """A network of one line, which compiles in seconds."""

    def forward(self, given_BN: Tensor) -> tuple[Tensor]:
        return (2.0 * given_BN,)


def seen(network: nn.Module | None = None, samples: int = 1) -> Seen:
    return Seen("encode", "of rows", samples, network or Doubled(), (torch.ones(samples, 8),), [[0]])


def artefact(file: str = "") -> Artefact:
    return Artefact("encode", "of rows", False, file, [[]], 0.0, 0.0, 1.0, 2.0)


def differences(found: Mapping[tuple[str, int], Tensor], wanted: Mapping[tuple[str, int], Tensor]) -> int:
    """The largest, in levels of 255."""
    assert found.keys() == wanted.keys()
    return max(int((found[key].int() - wanted[key].int()).abs().max()) for key in wanted)


@pytest.fixture
def anything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny network gains nothing by being compiled."""
    monkeypatch.setattr(making, "LEAST_GAIN", 0.0)


@pytest.mark.usefixtures("anything_pays")
@pytest.mark.parametrize(
    ("method", "names"), [("queue", ("a",)), pytest.param("merge", ("a", "c"), marks=pytest.mark.load)]
)
def test_sessions_run_from_what_was_made_with_the_same_pictures(
    folder: Path, tmp_path: Path, method: str, names: Sequence[str]
) -> None:
    model, _ = loaded(folder, PLAIN, DTYPE)
    eager = play(model, method, FRAMES, names, DTYPE)
    watched, stock = Watched(model), Stock(tmp_path)
    assert differences(play(model, method, FRAMES, names, DTYPE), eager) == 0
    unets = [call for call in watched.calls if call.part == "unet"]
    assert {call.samples > 1 for call in unets} == {False, len(names) > 1}
    for call in unets:
        made = make(call, stock, pytest.fail)
        assert made.file, made
        assert made.error <= 1e-5
    again, denoiser = loaded(folder, PLAIN, DTYPE)
    use(Stock(tmp_path), again)  # As another process reads it.
    assert differences(play(again, method, FRAMES, names, DTYPE), eager) <= 1
    assert isinstance(denoiser.call, CompiledCall)
    assert denoiser.call.counts.share > 0.9


def test_what_was_not_made_runs_as_it_is(folder: Path, tmp_path: Path) -> None:
    model, denoiser = loaded(folder, PLAIN)
    eager = play(model, "queue", FRAMES)
    use(Stock(tmp_path), model)
    assert differences(play(model, "queue", FRAMES), eager) == 0
    assert isinstance(denoiser.call, CompiledCall)
    assert denoiser.call.counts.share == 0.0


@pytest.mark.usefixtures("anything_pays")
def test_one_artefact_serves_any_number_of_samples(tmp_path: Path) -> None:
    stock = Stock(tmp_path)
    assert make(seen(samples=3), stock, pytest.fail).file
    assert stock.find("encode", "of rows", 1, Doubled()) is None
    for samples in (2, 3, 7):
        compiled = stock.find("encode", "of rows", samples, Doubled())
        assert compiled is not None
        given_BN = torch.arange(8.0 * samples).reshape(samples, 8)
        assert torch.equal(compiled(given_BN)[0], 2.0 * given_BN)


def test_what_is_no_faster_is_known_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "LEAST_GAIN", math.inf)
    made = make(seen(), Stock(tmp_path), pytest.fail)
    assert (made.file, made.eager_error) == ("", 0.0)
    again = Stock(tmp_path)
    assert again.knows(seen().key)
    assert again.find("encode", "of rows", 1, Doubled()) is None
    assert again.digest == ""
    assert [each.name for each in tmp_path.iterdir()] == [LIST]


@pytest.mark.usefixtures("anything_pays")
def test_what_is_less_exact_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(package: Path, *call: object) -> making.Compiled:
        package.write_bytes(b"code")
        return lambda given_BN: [2.001 * given_BN]

    monkeypatch.setattr(making, "compile_to", wrong)
    made = make(seen(), Stock(tmp_path), pytest.fail)
    assert made.file == ""
    assert made.error == pytest.approx(5e-4, rel=0.01)


@pytest.mark.usefixtures("anything_pays")
def test_what_is_not_the_same_twice_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def unsteady(package: Path, *call: object) -> making.Compiled:
        package.write_bytes(b"code")
        return lambda given_BN: [2.0 * given_BN + 1e-5 * next(calls)]

    monkeypatch.setattr(making, "compile_to", unsteady)
    made = make(seen(), Stock(tmp_path), pytest.fail)
    assert (made.file, made.error) == ("", math.inf)


def test_what_cannot_be_compiled_is_told_once(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, given_BN: Tensor) -> tuple[Tensor]:
            return (given_BN if given_BN.sum() > 0 else -given_BN,)

    told: list[str] = []
    assert make(seen(Branching()), Stock(tmp_path), told.append).file == ""
    assert len(told) == 1
    assert told[0].startswith("encode: ")
    assert Stock(tmp_path).knows(seen().key)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1, "artefacts": [{"part": 1}]}', '{"format": 99}']
)
def test_a_list_that_cannot_be_read_is_no_list(tmp_path: Path, content: str) -> None:
    (tmp_path / LIST).write_text(content)
    assert Stock(tmp_path).artefacts == ()


def test_a_file_that_is_gone_or_broken_runs_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "package").write_bytes(b"no code")
    stock = Stock(tmp_path / "stock")
    kept = stock.add(artefact(), tmp_path / "package")
    assert stock.digest
    assert stock.find("encode", "of rows", 1, Doubled()) is None
    assert "cannot be loaded" in caplog.text
    (tmp_path / "stock" / kept.file).unlink()
    assert Stock(tmp_path / "stock").artefacts == ()


def test_files_are_named_by_their_content(tmp_path: Path) -> None:
    names = []
    for number, content in enumerate((b"one", b"one", b"other")):
        (package := tmp_path / "package").write_bytes(content)
        names.append(Stock(tmp_path / str(number)).add(artefact(), package).file)
    assert names[0] == names[1] != names[2]
    assert json.loads((tmp_path / "0" / LIST).read_text())["artefacts"][0]["file"] == names[0]


def test_the_autoencoder_runs_as_it_is_where_nothing_was_made(folder: Path, tmp_path: Path) -> None:
    model, _ = loaded(folder, PLAIN)
    assert isinstance(model, DiffusionModel)
    pixels_BCHW = torch.rand(1, 3, 64, 64, dtype=torch.float64) * 2 - 1
    encoded = model.vae.encode(pixels_BCHW)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    picture = model.vae.decode(latents).sample
    use(Stock(tmp_path), model)
    assert torch.equal(model.vae.encode(pixels_BCHW).latents, latents)
    assert torch.equal(model.vae.decode(latents).sample, picture)
    assert model.vae.counts.share == 0.0
    assert model.denoisers[NO_ADAPTERS].unet is not None


@pytest.mark.usefixtures("anything_pays")
def test_two_networks_with_the_same_file_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the CPU there are no weights in a file: those of two adapter sets may be the same."""
    stock = Stock(tmp_path)
    package = tmp_path / "call.cache"
    networks = {"unet": Doubled(), "unet:oil": Doubled()}
    for part in networks:
        package.write_bytes(b"code without weights")
        stock.add(Artefact(part, "", False, "", [[]], 0.0, 0.0, 1.0, 2.0), package)
    monkeypatch.setattr("rearview.engine.acceleration.stock.load", lambda path, network, dims: network)
    assert {part: stock.find(part, "", 1, network) for part, network in networks.items()} == networks
