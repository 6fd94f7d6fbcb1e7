"""The temporal KV cache computes what attention over the whole video would; l1 to l27: docs/methods.md, 4."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.networks.attention.temporal import attend_stored
from rearview.engine.networks.motion_module import PositionTables
from rearview.engine.reference.cache import PlainCache
from support.memories import gather
from support.tiny_motion import (
    WINDOW,
    WINDOWS,
    advance,
    clip,
    gap,
    opened,
    plain_unet,
    play,
    predict,
    run,
    stream_row,
    tiny_unet,
    whole_clip,
    window_row,
    with_motion,
)
from torch import Tensor

pytestmark = pytest.mark.unit

EXACT = 1e-12
WINDOW_IDS = [f"{w.sink_frames}+{w.ring_frames}" for w in WINDOWS]


class WholeVideo:
    """The oracle of l3: all frames in one pass, and positions that depend on who looks at whom."""

    def __init__(self, window: CacheWindow) -> None:
        self._sinks, self._ring = window.sink_frames, window.ring_frames

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, tables: PositionTables) -> Tensor:
        outputs = []
        for i in range(len(query)):
            seen = [j for j in range(len(query)) if self._sees(i, j)]
            places = [self._place(i, j) for j in seen]
            heads = (tables.heads, -1)
            q = (query[i] + tables.query[min(i, self._sinks + self._ring - 1)]).unflatten(-1, heads)
            k = (key[seen] + tables.key[places][:, None]).unflatten(-1, heads)
            v = (value[seen] + tables.value[places][:, None]).unflatten(-1, heads)
            shares = (torch.einsum("nhd,fnhd->fnh", q, k) / math.sqrt(q.shape[-1])).softmax(0)
            outputs.append(torch.einsum("fnh,fnhd->nhd", shares, v).flatten(1))
        return torch.stack(outputs)

    def _sees(self, i: int, j: int) -> bool:
        return j < self._sinks or (i >= self._sinks and i - self._ring < j <= i)

    def _place(self, i: int, j: int) -> int:
        last = self._sinks + self._ring - 1
        return j if j < self._sinks or i <= last else last - (i - j)


@pytest.mark.parametrize("window", WINDOWS, ids=WINDOW_IDS)
def test_l2_filling_equals_one_forward_under_the_training_mask(window: CacheWindow) -> None:
    memory, spec = opened(window)
    latents = clip(window.frames)
    found = play(memory, spec, latents, sinks=window.sink_frames)
    assert gap(found, whole_clip(latents, window.sink_frames)) <= EXACT
    memory.check_integrity()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("window", WINDOWS, ids=WINDOW_IDS)
def test_l3_rolling_equals_one_pass_over_the_whole_video(window: CacheWindow, dtype: torch.dtype) -> None:
    """Over three turns of the ring."""
    unet = tiny_unet(dtype)
    latents = clip(window.frames + 2 * window.ring_frames + 4, dtype=dtype)
    memory, spec = opened(window, dtype=dtype)
    found = play(memory, spec, latents, unet=unet, sinks=window.sink_frames)
    expected = run({"attend": WholeVideo(window).attend}, [window_row(spec, latents)], unet)
    assert gap(found, expected) <= (EXACT if dtype is torch.float64 else 1e-5)
    memory.check_integrity()


def test_l3_replaying_the_last_frames_is_not_the_same() -> None:
    """The trap: cached keys and values know what has left the window; the oracles have teeth."""
    latents = clip(20)
    memory, spec = opened()
    found = play(memory, spec, latents)
    replayed = whole_clip(torch.cat([latents[:4], latents[-4:]]), 4)
    assert gap(found[-1], replayed[-1]) > 1e-3
    no_roll = run({"attend": WholeVideo(CacheWindow(4, 5)).attend}, [window_row(spec, latents)])
    assert gap(found, no_roll) > 1e-3


@pytest.mark.parametrize("window", WINDOWS, ids=WINDOW_IDS)
def test_plain_cache_is_the_same(window: CacheWindow) -> None:
    memory, spec = opened(window)
    latents, plain = (
        clip(window.frames + window.ring_frames + 3),
        PlainCache(window.sink_frames, window.ring_frames),
    )
    view = plain.window(0)
    outputs = [run({"attend": view.attend}, [window_row(spec, latents[: window.sink_frames])])]
    view.commit()
    for latent in latents[window.sink_frames :]:
        view = plain.frame(0)
        outputs.append(run({"attend": view.attend}, [stream_row(spec, latent)]))
        view.commit()
    assert gap(play(memory, spec, latents, sinks=window.sink_frames), torch.cat(outputs)) <= EXACT


def test_l4_a_layer_alone_forgets_what_left_the_ring() -> None:
    """With one temporal layer that attends, nothing older than the ring but the sinks has weight."""
    unet = with_motion(plain_unet().to(torch.float64))
    for name, weight in unet.named_parameters():
        first = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1."
        if ".to_out.0." in name and ".motion_modules." in name and first not in name:
            weight.zero_()
    latents = clip(16)
    before = _played(latents, unet)
    older, newer = latents.clone(), latents.clone()
    older[11] += 1.0
    newer[12] += 1.0
    assert gap(_played(older, unet)[15], before[15]) <= EXACT
    assert gap(_played(newer, unet)[15], before[15]) > 1e-6


def _played(latents: Tensor, unet: Any = None) -> Tensor:
    memory, spec = opened()
    return play(memory, spec, latents, unet=unet)


def test_l5_sinks_never_change_and_each_step_writes_one_slot_of_the_ring() -> None:
    memory, spec = opened()
    latents = clip(16)
    play(memory, spec, latents[:4])
    before = _pools(memory)
    for n in range(12):
        play_one(memory, spec, latents[4 + n], 4 + n)
        after = _pools(memory)
        for old, new in zip(before, after, strict=True):
            changed = (old != new).flatten(0, 2).any(-1).any(0)
            assert changed.nonzero().flatten().tolist() == [WINDOW.slot(n)]
        before = after


def play_one(memory: Any, spec: Any, latent: Tensor, ordinal: int) -> None:
    advance(memory, [stream_row(spec, latent, ordinal)])


def _pools(memory: Any) -> list[Tensor]:
    return [tensor.clone() for pool in memory._pools[0] for tensor in pool.tensors]


@pytest.mark.parametrize("window", WINDOWS, ids=WINDOW_IDS)
def test_l6_positions_are_a_permutation_with_the_present_last(window: CacheWindow) -> None:
    """Also the closed form of methods 3.6."""
    sinks, last = window.sink_frames, window.frames - 1
    for n in range(4 * window.ring_frames):
        positions = window.positions(n)
        assert positions[:sinks] == tuple(range(sinks))
        assert sorted(positions[sinks:]) == list(range(sinks, last + 1))
        assert positions[window.slot(n)] == window.position(n) == min(sinks + n, last)
        ages = {window.slot(m): n - m for m in range(max(0, n - window.ring_frames + 1), n + 1)}
        assert all(positions[slot] == window.position(n) - age for slot, age in ages.items())
        seen = {slot for slot, visible in enumerate(window.visible(n)) if visible}
        assert seen == {*range(sinks), *ages} - {window.slot(n)}


def test_l7_keys_and_values_are_stored_without_positions() -> None:
    """A slot is the projection of the normalised tokens."""
    memory, spec = opened()
    path = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1"
    attention: Any = tiny_unet().get_submodule(path)
    tokens: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    try:
        play(memory, spec, clip(5))
    finally:
        hook.remove()
    keys, values = memory._pools[0][0].tensors
    for slot, frame in enumerate([*tokens[0], tokens[1][0]]):
        for pool, projection in ((keys, attention.to_k), (values, attention.to_v)):
            assert gap(pool[0, :, :, slot].flatten(1), projection(frame)) <= EXACT


def test_l8_folded_attention_equals_the_plain_form() -> None:
    """In float64, with hidden slots that hold large values."""
    torch.manual_seed(0)
    rows, pixels, heads, frames, width = 3, 5, 2, 6, 4
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    query, key, value = (draw(rows, pixels, heads * width) for _ in range(3))
    stored_key, stored_value = (draw(rows, pixels, heads, frames, width) for _ in range(2))
    tables = PositionTables(heads, *(draw(frames, heads * width) for _ in range(3)))
    places = torch.stack([torch.randperm(frames) for _ in range(rows)])
    own, visible = torch.tensor([3, 5, 0]), torch.rand(rows, frames) < 0.6
    hidden = ~visible[:, None, None, :, None]
    found = attend_stored(
        query, key, value,
        stored_key.masked_fill(hidden, 1e30), stored_value.masked_fill(hidden, 1e30),
        tables, own, places, visible,
    )  # fmt: skip
    for row in range(rows):
        seen = visible[row]
        keys = (
            stored_key[row][:, :, seen].permute(2, 0, 1, 3).flatten(2)
            + tables.key[places[row][seen]][:, None]
        )
        values = stored_value[row][:, :, seen].permute(2, 0, 1, 3).flatten(2)
        values = values + tables.value[places[row][seen]][:, None]
        keys = torch.cat([keys, (key[row] + tables.key[own[row]])[None]]).unflatten(-1, (heads, width))
        values = torch.cat([values, (value[row] + tables.value[own[row]])[None]]).unflatten(
            -1, (heads, width)
        )
        q = (query[row] + tables.query[own[row]]).unflatten(-1, (heads, width))
        shares = (torch.einsum("nhd,fnhd->fnh", q, keys) / math.sqrt(width)).softmax(0)
        assert gap(found[row], torch.einsum("fnh,fnhd->nhd", shares, values).flatten(1)) <= EXACT


def test_l9_warm_up_frames_see_each_other_and_nothing_later() -> None:
    latents = clip(10)
    before = _played(latents)
    last, streamed = latents.clone(), latents.clone()
    last[3] += 1.0
    streamed[7] += 1.0
    assert gap(_played(last)[0], before[0]) > 1e-6
    assert torch.equal(_played(streamed)[:7], before[:7])
    assert gap(_played(streamed)[8], before[8]) > 1e-6


def test_l10_what_hidden_slots_hold_has_no_weight() -> None:
    """Through the whole UNet: empty slots and the one that is about to be taken."""
    for frames in (5, 12):
        latents = clip(frames + 1)
        memory, spec = opened()
        play(memory, spec, latents[:frames])
        rows = [stream_row(spec, latents[frames], frames)]
        expected = predict(gather(memory, rows), rows)
        hidden = [not visible for visible in WINDOW.visible(frames - WINDOW.sink_frames)]
        for tensor in (tensor for pool in memory._pools[0] for tensor in pool.tensors):
            tensor[0, :, :, torch.tensor(hidden)] = 1e20
        assert torch.equal(predict(gather(memory, rows), rows), expected)
