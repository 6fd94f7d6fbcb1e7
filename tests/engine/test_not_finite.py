"""Numbers that are not finite: weights are refused at load, and a frame with one is dropped, alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rearview.contract.chain import Operator, Span
from rearview.contract.memories import BankSettings
from rearview.engine.engine import Engine
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.networks.model import DiffusionModel, Forward
from rearview.engine.player import Player
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.adapters import NO_ADAPTERS
from rearview.engine.weights.checkpoint import load_denoisers, load_model
from rearview.engine.weights.formats import Additions, LoraFile
from rearview.errors import ConfigError
from safetensors.torch import load_file, save_file
from support.frames import entering
from support.loras import LINEAR, random_lora, write_kohya
from support.tiny import LATENT_CHANNELS, SIZE, random_frames, session, whole_chain
from support.tiny_bank import Stream, banked, by_reference, gap, make_row, play, tiny_bank, tiny_engine, video
from support.toy import ToyModel
from support.toy_cache import ToyCache
from support.toy_clips import (
    CHANGES,
    assert_same,
    cached_engine,
    cached_spec,
    per_frame,
    pictures,
    plain_pictures,
)

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
BANK = BankSettings(interval=1, fusion_threshold=0.9)
EXACT = 1e-9


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, part: str, value: float) -> None:
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[7] = value
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"checkpoint/{part}: 1 of \d+ weights of .* not finite"):
        load_model(str(folder), whole_chain(), CPU, torch.float32)


def test_weights_that_a_narrow_type_cannot_hold_are_refused(folder: Path) -> None:
    (file,) = (folder / "unet").glob("*.safetensors")
    weights = load_file(file)
    weights["conv_in.bias"][0] = 1e5
    save_file(weights, file, {"format": "pt"})
    load_model(str(folder), whole_chain(), CPU, torch.float32)
    with pytest.raises(ConfigError, match=r"conv_in\.bias are not finite in float16"):
        load_model(str(folder), whole_chain(), CPU, torch.float16)


def test_a_lora_that_is_not_finite_is_refused_by_its_layer(checkpoint: Path, tmp_path: Path) -> None:
    unet = load_denoisers(checkpoint, CPU, torch.float32, Additions())[NO_ADAPTERS].unet.state_dict()
    lora = random_lora(unet, [LINEAR])
    lora[LINEAR].down[0, 0] = float("nan")
    style = LoraFile(str(write_kohya(tmp_path / "style.safetensors", lora, None)))
    with pytest.raises(ConfigError, match=r"style\.safetensors: weights of .* are not finite"):
        load_denoisers(checkpoint, CPU, torch.float32, Additions(adapters={"style": [style]}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_frame_that_is_not_finite_is_dropped_and_memory_is_as_if_it_had_never_run(
    value: float, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled = Stream(banked("bad", BANK), video(6, seed=1))
    spoiled.latents[3] = spoiled.latents[3].clone()
    spoiled.latents[3][0, 0, 0] = value
    without = replace(spoiled, lost=frozenset({3}))
    beside = [Stream(banked(name, BANK, seed=n), video(6, seed=n)) for n, name in enumerate("ab")]
    engine = tiny_engine(tiny_bank(3))
    outputs = play(engine, [spoiled, *beside], seed=5)
    assert [picture is None for picture in outputs["bad"]] == [n == 3 for n in range(6)]
    assert gap(outputs["bad"], by_reference(without)) <= EXACT
    for stream in beside:
        assert gap(outputs[stream.spec.session_id], by_reference(stream)) <= EXACT
    assert "rows of denoise-0: results are not finite" in caplog.text


@pytest.mark.parametrize("change", ["none", "prompt", "weights"])
@pytest.mark.parametrize("operator", ["encode", "denoise-0", "denoise-1", "decode"])
def test_neighbours_of_rows_that_are_not_finite_have_pictures_and_caches_as_if_alone(
    operator: str, change: str
) -> None:
    """By the toy, bit by bit: windows, streamed frames and shadow windows share forwards with broken ones."""
    settings = per_frame(14, CHANGES[change])
    specs = [cached_spec(name, settings=settings[0]) for name in ("a", "bad", "b")]
    model, cache = ToyModel(breaks=_breaks(operator)), ToyCache()
    found = pictures([cached_engine(model=model, memory=cache)], specs, settings, burst=3)
    assert any(len({name for name, *_ in batch}) > 1 for batch in model.batches)
    assert found["bad"][9] is None
    for spec in (specs[0], specs[2]):
        assert_same(found[spec.session_id], plain_pictures(spec, settings))
    whole = ToyCache()
    pictures([cached_engine(memory=whole)], [specs[0], specs[2]], settings, burst=3)
    assert {key: past for key, past in cache.pasts.items() if key[0] != "bad"} == whole.pasts


def _breaks(operator: str) -> Callable[[Row], bool]:
    def breaks(sample: Row) -> bool:
        is_bad = sample.session_id == "bad" and sample.operator.name == operator
        return is_bad and sample.ordinal in (1, 9)

    return breaks


@pytest.mark.parametrize(("operator", "part"), [("encode", "vae"), ("denoise-0", "unet"), ("decode", "vae")])
def test_networks_that_break_while_they_serve_give_no_picture(
    checkpoint: Path, operator: str, part: str
) -> None:
    """Each operator sees it by itself: pictures are bytes, in which it would be a shade of grey."""
    span = Span("s", (Operator.parse(operator),))
    model = load_model(str(checkpoint), span, CPU, torch.float32)
    assert isinstance(model, DiffusionModel)
    network = model.vae if part == "vae" else model._denoiser.unet  # type: ignore[union-attr]
    for parameter in network.parameters():
        parameter.fill_(float("nan"))
    engine = Engine(span, model, Memoryless(1), Scheduler(CostTable(), 1), clock=lambda: 0.0)
    engine.open(session("s"))
    shape = (LATENT_CHANNELS, SIZE // 8, SIZE // 8)
    given = random_frames(1)[0] if operator == "encode" else torch.zeros(shape)
    engine.admit(entering("s", 0, given), 0.0)
    (left,) = Player(engine, clock=lambda: 0.0).left()
    assert left.is_lost


def test_only_the_rows_that_are_broken_fail() -> None:
    """Windows are rows of several samples."""
    spec = banked("s", None)
    one, three = make_row(spec, video(1)[0]), make_row(spec, video(1)[0])
    three = replace(three, frames=three.frames * 3)
    rows = [one, three, one]
    expected = [set(), {0}, {1}, {1}, {1}, {2}]
    for sample, broken in zip((None, 0, 1, 2, 3, 4), expected, strict=True):
        forward = Forward((), broken=frozenset() if sample is None else frozenset({sample}))
        assert [id(row) for row in forward.broken_rows(rows)] == [id(rows[n]) for n in broken]
