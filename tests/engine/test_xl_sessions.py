"""Sessions of Stable Diffusion XL, without and with a bank: shared, cut, moved, captured, and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from rearview.contract.memories import BankPolicy, BankSettings
from rearview.contract.settings import Guidance, NoiseRule, Settings, WeightedPrompt
from rearview.engine.acceleration.compiled import CompiledCall
from rearview.engine.acceleration.flat import CallShape, FlatUNet
from rearview.engine.acceleration.graphs import GraphCall
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.attention.processors import install_processors
from rearview.engine.networks.call import EagerCall, UNetInputs
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.player import Clip
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_denoiser
from rearview.engine.weights.formats import Additions
from support import graphs, tiny_bank
from support.frames import content, planes_of
from support.memories import composed
from support.moves import play_moving
from support.stand_in_graphs import StandInRecorder
from support.tiny_bank import Stream, banked, by_reference, denoise_span, gap, play, tiny_engine, video
from support.tiny_pipeline import in_pieces
from support.tiny_xl import write_tiny_xl
from torch import Tensor

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
EXACT = 1e-9
VISIBLE = 1e-4
MERGED = BankSettings(interval=2, fusion_threshold=0.9)
QUEUED = BankSettings(BankPolicy.QUEUE, max_frames=1, interval=1, fusion_threshold=0.8)
BANKS = [None, MERGED, QUEUED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Denoiser:
    """In float64, its self-attention made sharp: flat attention would hide a bank."""
    denoiser = load_denoiser(folder, CPU, torch.float64)
    for name, parameter in denoiser.unet.named_parameters():
        if ".attn1.to_q." in name or ".attn1.to_k." in name or ".attn1.to_out." in name:
            parameter.mul_(6.0)
    return denoiser


@pytest.fixture
def xl(monkeypatch: pytest.MonkeyPatch, loaded: Denoiser) -> Denoiser:
    """In place of the tiny checkpoint's."""
    monkeypatch.setattr(tiny_bank, "tiny_denoiser", lambda: loaded)
    monkeypatch.setattr(tiny_bank, "LATENT_CHANNELS", 4)
    return loaded


def streams(count: int, frames: int = 4) -> list[Stream]:
    """At mixed steps, strengths, prompts, rules and guidance; some mix or change their prompts on the way."""
    made = []
    for i in range(count):
        settings = {
            "prompt": f"p{i % 3}",
            "steps": 1 + i % 3,
            "seed": i,
            "strength": 0.9 - 0.1 * (i % 4),
            "noise_rule": list(NoiseRule)[i % 3],
            "guidance": Guidance.FULL if i % 4 == 3 else Guidance.NONE,
            "guidance_scale": 1.5,
            "negative_prompt": "fog",
        }
        spec = banked(f"s{i}", BANKS[i % 3], **settings)
        mixed = Settings(
            prompts=(WeightedPrompt("a", 1.0), WeightedPrompt("b", 2.0), WeightedPrompt("c", 1.0)),
            steps=1 + i % 3,
        )
        made.append(Stream(spec, video(frames, seed=i), {2: mixed} if i % 2 else {}))
    return made


@pytest.mark.parametrize("order", Order)
def test_each_of_many_sessions_is_as_if_alone(xl: Denoiser, order: Order) -> None:
    clips = streams(8)
    together = play(tiny_engine(tiny_bank.tiny_bank(8, size_frames=2.0), order=order), clips)
    for clip in clips:
        assert gap(together[clip.spec.session_id], by_reference(clip)) <= EXACT, clip.spec


def test_the_bank_changes_the_pictures_from_the_second_frame_on(xl: Denoiser) -> None:
    for bank in (MERGED, QUEUED):
        with_bank, without = (
            by_reference(Stream(banked("s", each, steps=2), video(4))) for each in (bank, None)
        )
        assert gap(with_bank[:1], without[:1]) <= EXACT
        assert gap(with_bank[1:], without[1:]) > VISIBLE


@pytest.mark.parametrize("bank", BANKS)
def test_pieces_give_the_bits_of_the_whole(xl: Denoiser, bank: BankSettings | None) -> None:
    spec = banked("s", bank, steps=3, timestep_indices=(12, 25, 37), seed=5, noise_rule=NoiseRule.FRESH)
    stream = Stream(spec, video(4), {2: Settings("b", 0.7, 3)})
    whole = in_pieces(stream, [[0, 1, 2]])
    for found, wanted in zip(in_pieces(stream, [[0], [1, 2]]), whole, strict=True):
        assert found is not None
        assert wanted is not None
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("bank", BANKS)
def test_a_session_that_moves_goes_on_as_if_it_had_not(xl: Denoiser, bank: BankSettings | None) -> None:
    """One row at a time: equal means bit-equal."""

    def engines(steps: Sequence[Sequence[int]]) -> list[Engine]:
        return [
            Engine(
                denoise_span(each),
                tiny_bank.tiny_model(),
                composed(tiny_bank.tiny_bank(2, steps=each)),
                Scheduler(CostTable(), 1),
                clock=lambda: 0.0,
            )
            for each in steps
        ]

    spec = banked("s", bank, steps=2, seed=3, noise_rule=NoiseRule.FRESH)
    clip = Clip(spec, [planes_of(latent) for latent in video(6)], {3: Settings("b", 0.7, 3)})
    stayed = play_moving(clip, [engines([[0, 1, 2]])], [])
    moved = play_moving(clip, [engines([[0, 1, 2]]), engines([[0], [1, 2]])], [2])
    assert [frame.ordinal for frame in moved] == [frame.ordinal for frame in stayed] == list(range(6))
    for one, other in zip(moved, stayed, strict=True):
        assert torch.equal(content(one), content(other))


@pytest.mark.parametrize("method", ["per-frame", "merge"])
def test_captured_and_flat_calls_give_the_same_pictures(folder: Path, method: str) -> None:
    """Pooled texts and sizes are buffers of a graph, and tensors of an export, as all inputs are."""
    model, denoiser = graphs.loaded(folder, Additions())
    eager = graphs.play(model, method, frames=8)
    denoiser.call = captured = GraphCall(EagerCall(denoiser.unet), StandInRecorder())
    found = graphs.play(model, method, frames=8)
    assert [key for key in eager if not torch.equal(eager[key], found[key])] == []
    assert captured.counts.accelerated

    def compile(shape: CallShape, call: FlatUNet, tensors: Sequence[Tensor]) -> FlatUNet:
        assert set(shape.given) >= {"text_embeds", "time_ids"}
        return call

    denoiser.call = CompiledCall(denoiser.unet, compile)
    found = graphs.play(model, method, frames=8)
    assert [key for key in eager if not torch.equal(eager[key], found[key])] == []


def test_a_call_can_be_exported_for_any_number_of_samples(loaded: Denoiser) -> None:
    """As it is compiled ahead of time. One level is enough."""
    config = {**loaded.unet.config, "transformer_layers_per_block": [1], "block_out_channels": [8]}
    one_level = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    config |= {**one_level, "attention_head_dim": [1], "layers_per_block": 1}
    unet = UNet2DConditionModel.from_config(config).double().requires_grad_(False)
    install_processors(unet)

    def inputs(samples: int) -> UNetInputs:
        generator = torch.Generator().manual_seed(samples)
        latent = torch.randn(samples, 4, 8, 8, generator=generator, dtype=torch.float64)
        text, more = loaded.text(loaded.conditioning.embed("a").expand(samples, -1, -1), latent)
        return UNetInputs(latent, torch.full((samples,), 499), text, more)

    network, given = FlatUNet(unet, inputs(2), Views({})), inputs(2).tensors
    sizes = tuple({0: torch.export.Dim.DYNAMIC} for _ in given)
    with torch.no_grad():
        program = torch.export.export(network, given, dynamic_shapes={"tensors": sizes}, strict=False)
        exported = program.module()
        for samples in (2, 5):
            found, wanted = (each(*inputs(samples).tensors)[0] for each in (exported, network))
            torch.testing.assert_close(found, wanted)
        # What is exported reads all of its inputs.
        changed = [*given[:4], given[4] + 8.0]
        assert not torch.allclose(exported(*changed)[0], exported(*given)[0])
        changed = [*given[:3], given[3] + 1.0, given[4]]
        assert not torch.allclose(exported(*changed)[0], exported(*given)[0])
