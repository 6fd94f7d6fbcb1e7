"""Banks that remember some layers only: elsewhere a row attends as it would without a bank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rearview.contract.memories import BankPolicy, BankSettings
from rearview.contract.session import SessionSpec
from rearview.engine.engine import Order
from rearview.engine.memory.bank.pool import FeatureBank
from rearview.engine.networks.attention.extended import Attend, attend_concatenated, attend_segments
from rearview.engine.networks.attention.processors import install_processors
from rearview.engine.reference.bank import PlainBank
from rearview.engine.reference.frame import denoise_latent
from rearview.errors import InvalidRequest
from support.memories import exported, gather
from support.tiny_bank import (
    Stream,
    advance,
    alone,
    banked,
    by_reference,
    forward,
    gap,
    make_row,
    play,
    tiny_bank,
    tiny_denoiser,
    tiny_engine,
    video,
)

pytestmark = pytest.mark.unit

EXACT = 1e-9
VISIBLE = 1e-4
MERGED = BankSettings(interval=1, fusion_threshold=0.5)
QUEUE = BankSettings(policy=BankPolicy.QUEUE, max_frames=2, interval=1, fusion_threshold=0.5)
GROWING = replace(MERGED, merge_ratio=0.4)
LAYERS = [("mid_block",), ("up_blocks",), ("down_blocks", "mid_block"), ("up_blocks.1.attentions.1",)]


def opened(*specs: SessionSpec, size_frames: float = 1.0) -> FeatureBank:
    memory = tiny_bank(len(specs), size_frames=size_frames)
    for spec in specs:
        memory.allocate(spec)
    return memory


def held(memory: FeatureBank, spec: SessionSpec) -> set[str]:
    """Layers in which something is stored."""
    banks = exported(memory, spec.session_id).layers
    return {layer for (_, layer), tensors in banks.items() if any(tensor.any() for tensor in tensors)}


@pytest.mark.parametrize("bank", [MERGED, QUEUE, GROWING])
@pytest.mark.parametrize("layers", LAYERS)
def test_a_bank_of_some_layers_equals_the_plain_one_of_the_reference(
    bank: BankSettings, layers: tuple[str, ...]
) -> None:
    spec = banked("s", replace(bank, layers=layers), seed=3)
    memory = opened(spec, size_frames=2.0)
    result = advance(memory, spec, video(5))
    assert gap(result, by_reference(Stream(spec, video(5)))) <= EXACT
    memory.check_integrity()


def test_every_choice_of_layers_gives_pictures_of_its_own() -> None:
    pictures = []
    for layers in [*LAYERS, ()]:
        spec = banked("s", replace(MERGED, layers=layers), seed=3)
        pictures.append(advance(opened(spec), spec, video(4))[-1])
    pairs = [(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(gap([a], [b]) for a, b in pairs) > VISIBLE


@pytest.mark.parametrize("attend", [attend_concatenated, attend_segments])
@torch.inference_mode()
def test_in_a_layer_left_out_a_row_attends_as_without_a_bank_beside_rows_that_bank_it(attend: Attend) -> None:
    """The first layer of the forward: what it gives depends on nothing else that the bank changes."""
    without = banked("without", None)
    left_out = banked("left-out", replace(MERGED, layers=("up_blocks",)))
    full = banked("full", MERGED)
    memory = opened(without, left_out, full)
    for spec in (left_out, full):
        advance(memory, spec, video(2))
    denoiser, seen = tiny_denoiser(), {}
    first = denoiser.unet.get_submodule(denoiser.bank_layout.layers[0].name)  # type: ignore[union-attr]
    hook = first.register_forward_hook(lambda _module, _inputs, output: seen.update(out=output))
    try:
        install_processors(denoiser.unet, attend)
        for company in ([without, left_out, full], [left_out]):
            rows = [make_row(spec, video(3)[2], 2) for spec in company]
            denoiser([row.planes for row in rows], rows, gather(memory, rows))
            seen.update(
                {spec.session_id + str(len(company)): seen["out"][i] for i, spec in enumerate(company)}
            )
    finally:
        hook.remove()
        install_processors(denoiser.unet)
    assert gap([seen["left-out3"]], [seen["without3"]]) <= EXACT
    assert gap([seen["left-out1"]], [seen["without3"]]) <= EXACT
    assert gap([seen["full3"]], [seen["without3"]]) > VISIBLE


def test_a_layer_left_out_is_never_written() -> None:
    some, full = banked("some", replace(MERGED, layers=("mid_block",))), banked("full", MERGED)
    memory = opened(some, full)
    for n, latent in enumerate(video(3)):
        forward(memory, [make_row(spec, latent, n) for spec in (some, full)])
    assert {name.split(".")[0] for name in held(memory, some)} == {"mid_block"}
    assert {name.split(".")[0] for name in held(memory, full)} == {"down_blocks", "mid_block", "up_blocks"}
    memory.check_integrity()


@pytest.mark.parametrize("order", Order)
def test_g1_sessions_with_different_layers_share_forwards_as_if_alone(order: Order) -> None:
    banks = [None, *(replace(MERGED, layers=layers) for layers in [*LAYERS, ()])]
    streams = [Stream(banked(f"s{i}", bank, seed=i), video(4, seed=i)) for i, bank in enumerate(banks)]
    sizes: list[int] = []
    engine = tiny_engine(tiny_bank(len(streams)), order=order)
    step = engine.step

    def watched(now: float) -> object:
        result = step(now)
        if result.batch is not None:
            sizes.append(result.batch.rows)
        return result

    engine.step = watched  # type: ignore[method-assign,assignment]
    together = play(engine, streams)
    assert max(sizes) > 2
    assert all(gap(together[s.spec.session_id], alone(s)) <= EXACT for s in streams)


@pytest.mark.parametrize("bank", [MERGED, QUEUE])
def test_a_moved_session_with_some_layers_continues_bit_for_bit(bank: BankSettings) -> None:
    spec = banked("s", replace(bank, layers=("up_blocks",)))
    source, target = (opened(spec, size_frames=2.0) for _ in range(2))
    advance(source, spec, video(3))
    target.import_("s", source.export("s"))
    following = video(5)[3:]
    assert gap(advance(source, spec, following, 3), advance(target, spec, following, 3)) == 0.0


def test_memory_does_not_depend_on_the_layers_and_a_path_to_nowhere_is_refused() -> None:
    memory = tiny_bank(1)
    sizes = {
        memory.bytes_per_session(banked("s", replace(MERGED, layers=layers))) for layers in [*LAYERS, ()]
    }
    assert len(sizes) == 1
    for layers in (("mid",), ("up_blocks", "up_blocks.0"), ("up_blocks.1.attentions.",), ("",)):
        with pytest.raises(InvalidRequest) as refused:
            memory.allocate(banked("s", replace(MERGED, layers=layers)))
        assert refused.value.metadata == {"field": "bank.layers"}
    assert memory.free_slots == 1


def test_the_plain_bank_of_some_layers_holds_those_alone() -> None:
    layout = tiny_denoiser().bank_layout
    assert layout is not None
    bank = PlainBank(replace(MERGED, layers=("mid_block",)), layout)
    stream = Stream(banked("s", bank.settings), video(2))
    with torch.inference_mode():
        for n, latent in enumerate(stream.latents):
            denoise_latent(tiny_denoiser(), latent[None], stream.settings(n), n, torch.float64, bank)
    assert {layout.layers[layer].name.split(".")[0] for _, layer in bank.frames} == {"mid_block"}
