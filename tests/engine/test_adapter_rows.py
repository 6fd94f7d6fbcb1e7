"""Stacked adapter sets: rows under different sets, at weights of their own, in one forward.

The oracle is a checkpoint into whose weights the same sum was merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.contract.memories import BankSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, Settings, WeightedAdapters
from rearview.engine.acceleration.flat import FlatCall, FlatUNet, free_dims
from rearview.engine.acceleration.graphs import GraphCall
from rearview.engine.acceleration.packages import in_process
from rearview.engine.engine import Engine
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.call import EagerCall, UNetInputs
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Clip
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.adapters import NO_ADAPTERS
from rearview.engine.weights.checkpoint import load_denoisers
from rearview.engine.weights.formats import Additions, LoraFile
from rearview.errors import InvalidRequest
from support.frames import content, planes_of
from support.loras import CONV, LINEAR, OUT, POINTWISE, TEXT, random_lora, write_kohya, write_peft
from support.memories import composed
from support.moves import play_moving
from support.stand_in_graphs import StandInRecorder
from support.tiny import write_tiny_checkpoint
from support.tiny_bank import Stream, banked, denoise_span, gap, play, tiny_bank, video

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
STRIDED = "down_blocks.0.downsamplers.0.conv"
TIME = "down_blocks.0.resnets.0.time_emb_proj"
FILES = {"oil": [LINEAR, TEXT, CONV, STRIDED], "ink": [LINEAR, OUT, POINTWISE, TIME], "pen": [TEXT]}
RANKS = {"oil": 3, "ink": 2, "pen": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A LoRA for each of three sets, of layers that overlap in part."""
    denoiser = load_denoisers(checkpoint, CPU, torch.float64, Additions())[NO_ADAPTERS]
    text = {key.removeprefix("text_model."): value for key, value in text_weights(denoiser).items()}
    weights, folder = {**denoiser.unet.state_dict(), **text}, tmp_path_factory.mktemp("loras")
    writers = {"oil": write_kohya, "ink": write_peft, "pen": write_kohya}
    return {
        name: str(
            writers[name](
                folder / f"{name}.safetensors",
                random_lora(weights, layers, rank=RANKS[name], seed=seed),
                1.0,
            )
        )
        for seed, (name, layers) in enumerate(FILES.items())
    }


def text_weights(denoiser: Denoiser) -> Mapping[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = denoiser.conditioning.text_encoder.state_dict()
    return found


def stacked(checkpoint: Path, files: Mapping[str, str]) -> DiffusionModel:
    """`both` is a set of two files."""
    sets = {name: [LoraFile(path, 0.5)] for name, path in files.items()}
    sets["both"] = [LoraFile(files["oil"], 0.4), LoraFile(files["ink"], -0.3)]
    denoisers = load_denoisers(checkpoint, CPU, torch.float64, Additions(adapters=sets))
    assert denoisers.keys() == {NO_ADAPTERS}
    return DiffusionModel(None, denoisers[NO_ADAPTERS], device=CPU, dtype=torch.float64)


def merged(checkpoint: Path, files: Mapping[str, str], scales: Mapping[str, float]) -> DiffusionModel:
    """The same at these scales, in one merged set `sum`."""
    sets = {"sum": [LoraFile(files[name], scale) for name, scale in scales.items()]}
    denoisers = load_denoisers(checkpoint, CPU, torch.float64, Additions(merged=sets))
    plain, adapted = denoisers[NO_ADAPTERS], {"sum": denoisers["sum"]}
    return DiffusionModel(None, plain, device=CPU, dtype=torch.float64, adapted=adapted)


def engine_of(model: DiffusionModel, batches: list[list[str]] | None = None) -> Engine:
    engine = Engine(
        denoise_span(), model, composed(tiny_bank(8)), Scheduler(CostTable(), 16), clock=lambda: 0.0
    )
    if batches is not None:
        forward = model.forward

        def noted(rows: Sequence[Any], views: Views) -> Any:
            batches.append([" ".join(row.settings.adapter_names) for row in rows])
            return forward(rows, views)

        engine._forwards._model = _Noted(model, noted)
    return engine


class _Noted:
    def __init__(self, model: DiffusionModel, forward: Any) -> None:
        self.group, self.prepare, self.forward = model.group, model.prepare, forward


def mix(**weights: float) -> tuple[WeightedAdapters, ...]:
    return tuple(WeightedAdapters(name, weight) for name, weight in weights.items())


LOOKS: Mapping[str, tuple[dict[str, Any], dict[str, float]]] = {
    "one": ({"adapters": "oil"}, {"oil": 0.5}),
    "weighted": ({"adapter_mix": mix(ink=-1.5)}, {"ink": -0.75}),
    "text alone": ({"adapter_mix": mix(pen=2.0)}, {"pen": 1.0}),
    "three": ({"adapter_mix": mix(pen=1.0, ink=0.5, oil=0.25)}, {"oil": 0.125, "ink": 0.25, "pen": 0.5}),
    "of two files": ({"adapters": "both"}, {"oil": 0.4, "ink": -0.3}),
    "twice": ({"adapter_mix": (*mix(ink=1.5), *mix(ink=-0.5), *mix(oil=0.0))}, {"ink": 0.5}),
}
GUIDED = {"guidance": Guidance.FULL, "guidance_scale": 2.0, "negative_prompt": "grey"}


def alone(model: DiffusionModel, settings: Mapping[str, Any], bank: BankSettings | None = None) -> Any:
    stream = Stream(banked("s", bank, **settings), video(4))
    return play(engine_of(model), [stream])["s"]


@pytest.mark.parametrize("bank", [None, BankSettings(interval=2)], ids=["per frame", "bank"])
@pytest.mark.parametrize("more", [{}, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_stacked_set_makes_what_the_merged_sum_makes(
    checkpoint: Path, files: dict[str, str], look: str, more: dict[str, Any], bank: BankSettings | None
) -> None:
    asked, scales = LOOKS[look]
    model = stacked(checkpoint, files)
    found = alone(model, {**more, **asked}, bank)
    expected = alone(merged(checkpoint, files, scales), {**more, "adapters": "sum"}, bank)
    assert gap(found, expected) <= 1e-9
    plain = alone(model, more, bank)
    moved = torch.stack([a - b for a, b in zip(found, plain, strict=True)]).square().mean().sqrt()
    assert moved >= 0.05, "the set moves nothing"


def streams() -> list[Stream]:
    """Sessions under every look and none, with and without a bank; one of them turns a weight at each frame,
    another one switches its sets.
    """
    looks = [{}, *(asked for asked, _ in LOOKS.values()), {}]
    made = []
    for number, look in enumerate(looks):
        bank = BankSettings(interval=2) if number % 2 else None
        guided = GUIDED if number % 3 == 0 else {}
        spec = banked(f"s{number}", bank, prompt=f"p{number % 2}", seed=number, steps=2, **guided, **look)
        made.append(Stream(spec, video(5, seed=number)))
    turning = Stream(banked("turning", BankSettings(interval=2)), video(6, seed=20))
    turning.changes.update({n: under(turning, mix(oil=0.3 * n)) for n in range(1, 6)})
    switching = Stream(banked("switching", None, adapter_mix=mix(pen=1.0)), video(6, seed=21))
    switching.changes.update({1: under(switching, mix(oil=1.0)), 3: under(switching, mix(ink=1, oil=1))})
    switching.changes[5] = under(switching, ())
    return [*made, turning, switching]


def under(stream: Stream, sets: tuple[WeightedAdapters, ...]) -> Settings:
    return replace(stream.spec.settings, adapters="", adapter_mix=sets)


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_of_all_sets_share_forwards_and_look_as_they_do_alone(
    checkpoint: Path, files: dict[str, str], seed: int
) -> None:
    model, batches = stacked(checkpoint, files), list[list[str]]()
    together = play(engine_of(model, batches), streams(), seed)
    for stream in streams():
        name = stream.spec.session_id
        assert gap(together[name], play(engine_of(model), [stream])[name]) <= 1e-9, name
    assert max(len(set(batch)) for batch in batches) >= 4, "the sets part the forwards"


def test_a_row_without_a_set_is_untouched_by_those_beside_it(checkpoint: Path, files: dict[str, str]) -> None:
    """To the bit: beside the same session under a set of weight 0, and under one that acts."""
    model = stacked(checkpoint, files)

    def beside(sets: tuple[WeightedAdapters, ...]) -> Any:
        pair = [
            Stream(banked("plain", BankSettings(interval=2)), video(4)),
            Stream(banked("other", None, adapter_mix=sets), video(4, seed=1)),
        ]
        return play(engine_of(model), pair)

    without, acting = beside(mix(oil=0.0)), beside(mix(oil=1.0, pen=2.0))
    assert gap(without["plain"], acting["plain"]) == 0.0
    assert gap(without["other"], acting["other"]) > 1e-3


def test_a_weight_turns_the_picture_from_its_frame_on(checkpoint: Path, files: dict[str, str]) -> None:
    model = stacked(checkpoint, files)
    spec = banked("live", None, adapter_mix=mix(ink=1.0))
    stays = play(engine_of(model), [Stream(spec, video(4))])["live"]
    changes = {2: replace(spec.settings, adapter_mix=mix(ink=0.5))}
    turned = play(engine_of(model), [Stream(spec, video(4), changes)])["live"]
    half = play(engine_of(model), [Stream(banked("live", None, adapter_mix=mix(ink=0.5)), video(4))])["live"]
    assert gap(turned, [*stays[:2], *half[2:]]) == 0.0
    assert gap(stays, half) > 1e-3


def test_only_another_choice_of_sets_is_a_change_of_style() -> None:
    plain = Settings(prompt="a", adapter_mix=mix(ink=1.0))
    assert plain.style == replace(plain, adapter_mix=mix(ink=0.2)).style
    assert plain.style == Settings(prompt="a", adapters="ink").style
    assert plain.style != replace(plain, adapter_mix=mix(ink=1.0, oil=0.1)).style
    assert plain.style != replace(plain, adapter_mix=mix(ink=0.0)).style


def test_prompts_are_encoded_once_for_each_weight_that_the_encoder_feels(
    checkpoint: Path, files: dict[str, str]
) -> None:
    model = stacked(checkpoint, files)
    denoiser = model.denoisers[NO_ADAPTERS]
    encoded, honest = list[tuple[str, Any]](), denoiser.conditioning.embed

    def noted(prompt: str, adapters: Any = ()) -> torch.Tensor:
        encoded.append((prompt, adapters))
        return honest(prompt, adapters)

    denoiser.conditioning.embed = noted  # type: ignore[method-assign]
    for sets in [mix(), mix(ink=1.0), mix(ink=0.5), mix(pen=1.0), mix(pen=1.0, ink=0.1), mix(pen=0.5)]:
        for _ in range(2):
            model.prepare(Settings(prompt="a", adapter_mix=sets))
    assert encoded == [("a", ()), ("a", mix(pen=1.0)), ("a", mix(pen=0.5))]


@pytest.mark.parametrize("frames", [1, 3])
def test_a_session_under_sets_that_moved_goes_on_as_if_it_had_not(
    checkpoint: Path, files: dict[str, str], frames: int
) -> None:
    model = stacked(checkpoint, files)
    stream = streams()[-2]
    clip = Clip(stream.spec, [planes_of(latent) for latent in stream.latents], stream.changes)
    stayed, moved = (
        play_moving(clip, [[engine_of(model)] for _ in range(legs)], [frames] * (legs - 1)) for legs in (1, 2)
    )
    pairs = zip(stayed, moved, strict=True)
    assert all(torch.equal(content(a), content(b)) for a, b in pairs)  # type: ignore[arg-type]
    assert len(stayed) == len(stream.latents)


def test_captured_forwards_give_every_set_its_pictures(checkpoint: Path, files: dict[str, str]) -> None:
    """Sets and weights change under each graph, and nothing is captured anew for them."""
    model = stacked(checkpoint, files)
    eager = play(engine_of(model), streams())
    denoiser = model.denoisers[NO_ADAPTERS]
    denoiser.call = call = GraphCall(EagerCall(denoiser.unet), recorder := StandInRecorder())
    engine = engine_of(model)
    play(engine, streams())
    captured, known = play(engine, streams()), recorder.recorded
    assert all(gap(captured[name], eager[name]) <= 1e-9 for name in eager)
    assert call.counts.accelerated > call.counts.eager
    others = [replace(each, changes={}, spec=_turned(each.spec)) for each in streams()]
    play(engine, others)
    assert recorder.recorded == known > 0


def _turned(spec: SessionSpec) -> SessionSpec:
    """The same session under other sets, as many as before."""
    mix = spec.settings.acting_adapters
    others = {"oil": "ink", "ink": "pen", "pen": "both", "both": "oil"}
    turned = tuple(WeightedAdapters(others[one.adapters], 0.9 * one.weight) for one in mix)
    return replace(spec, settings=replace(spec.settings, adapters="", adapter_mix=turned))


def test_a_choice_of_sets_is_part_of_a_compiled_call(checkpoint: Path, files: dict[str, str]) -> None:
    """The whole call is one piece to the compiler, for any choice."""
    model = stacked(checkpoint, files)
    denoiser = model.denoisers[NO_ADAPTERS]
    looks = [Settings(prompt="a", adapter_mix=sets) for sets in (mix(oil=1.0), mix(), mix(ink=-2.0))]

    def inputs(settings: Sequence[Settings]) -> UNetInputs:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(len(settings), *video(1)[0].shape, generator=generator, dtype=torch.float64)
        prompts = torch.cat([denoiser.conditioning.embed("a") for _ in settings])
        steps = torch.full((len(settings),), 499)
        return UNetInputs(latents, steps, prompts, denoiser.adapter_rows(settings))

    first = inputs(looks)
    flat, tensors = FlatUNet(denoiser.unet, first, Views()), FlatCall.tensors(first, Views())
    compiled = in_process(flat, free_dims(flat.grows, len(looks), tensors), "eager")
    exported = torch.export.export(flat, tuple(tensors), strict=False).module()
    with torch.inference_mode():
        for settings in (looks, looks[::-1]):
            given = FlatCall.tensors(inputs(settings), Views())
            wanted = EagerCall(denoiser.unet)(inputs(settings), Views())[0]
            assert torch.equal(compiled(*given)[0], wanted)
            assert torch.equal(exported(*given)[0], wanted)


def test_what_cannot_be_asked_of_sets_is_refused_by_its_field(
    checkpoint: Path, files: dict[str, str]
) -> None:
    model = stacked(checkpoint, files)
    with pytest.raises(InvalidRequest, match="there are: both, ink, oil, pen") as caught:
        model.prepare(Settings(prompt="a", adapter_mix=mix(ink=1.0, charcoal=1.0)))
    assert caught.value.metadata == {"field": "adapter_mix"}
    model = merged(checkpoint, files, {"oil": 1.0})
    for sets in (mix(sum=0.5), mix(sum=-1.0)):
        with pytest.raises(InvalidRequest, match="alone and at weight 1: sum"):
            model.prepare(Settings(prompt="a", adapter_mix=sets))
    model.prepare(Settings(prompt="a", adapter_mix=mix(sum=1.0)))
    for bad in (mix(a=4.5), mix(a=float("nan")), mix(**{f"s{i}": 1.0 for i in range(5)})):
        with pytest.raises(InvalidRequest):
            Settings(adapter_mix=bad)


def test_a_row_under_an_unknown_set_ends_alone(checkpoint: Path, files: dict[str, str]) -> None:
    model = stacked(checkpoint, files)
    good = Stream(banked("good", None, adapters="oil"), video(2))
    bad = Stream(banked("bad", None, adapter_mix=mix(charcoal=1.0)), video(2))
    outputs = play(engine_of(model), [good, bad])
    assert outputs["bad"] == [None, None]
    assert gap(outputs["good"], play(engine_of(model), [good])["good"]) <= 1e-9
