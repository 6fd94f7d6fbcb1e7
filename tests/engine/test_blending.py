"""Mixes of prompts, and changes of prompt that are spread over frames."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.blending import is_blending, mix_at, progress, settings_under
from rearview.contract.memories import BankSettings, PromptChange
from rearview.contract.settings import Guidance, Settings, SettingsChange, WeightedPrompt
from rearview.engine.engine import Order
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.networks.conditioning import slerp
from rearview.errors import InvalidRequest
from rearview.transport.wire import decode_settings, encode_settings
from support.frames import entering
from support.memories import exported
from support.tiny_bank import (
    Stream,
    alone,
    banked,
    by_reference,
    gap,
    play,
    tiny_bank,
    tiny_denoiser,
    tiny_engine,
    video,
)
from support.tiny_pipeline import in_pieces
from support.toy import drain

pytestmark = pytest.mark.unit

EXACT = 1e-9
VISIBLE = 1e-4


def mixed(**weights: float) -> tuple[WeightedPrompt, ...]:
    return tuple(WeightedPrompt(prompt, weight) for prompt, weight in weights.items())


def weights_at(found: Settings, ordinal: int) -> dict[str, float]:
    return {one.prompt: pytest.approx(one.weight, abs=1e-12) for one in mix_at(found, ordinal)}


def changed(before: Settings, ordinal: int, **change: Any) -> Settings:
    return settings_under(before, SettingsChange(**change).apply(before), ordinal)


A = Settings("a", strength=0.6, blend_frames=4)
A_TO_B = changed(A, 10, prompt="b")


def test_a_blend_ends_exactly_and_begins_at_once() -> None:
    assert [weights_at(A_TO_B, n) for n in range(10, 15)] == [
        {"a": 0.75, "b": 0.25},
        {"a": 0.5, "b": 0.5},
        {"a": 0.25, "b": 0.75},
        {"b": 1.0},
        {"b": 1.0},
    ]
    assert mix_at(A_TO_B, 13) == (WeightedPrompt("b", 1.0),)
    assert [is_blending(A_TO_B, n) for n in (10, 12, 13, 99)] == [True, True, False, False]
    assert not is_blending(A, 0)


@pytest.mark.parametrize("frames", [0, 1])
def test_a_blend_over_one_frame_is_a_change_at_once(frames: int) -> None:
    found = changed(replace(A, blend_frames=frames), 10, prompt="b")
    assert found.blend is None
    assert mix_at(found, 10) == (WeightedPrompt("b", 1.0),)


@given(st.integers(0, 200), st.integers(0, 100))
@settings(deadline=None, derandomize=True)
def test_progress_never_falls_and_reaches_one_with_the_last_frame(since: int, frames: int) -> None:
    assert 0.0 < progress(since, frames) <= progress(since + 1, frames) <= 1.0
    assert (progress(since, frames) == 1.0) is (since + 1 >= frames)


def test_a_change_in_mid_blend_starts_from_the_current_mix() -> None:
    then = changed(A_TO_B, 12, prompt="c")
    assert weights_at(then, 12) == {"a": 0.375, "b": 0.375, "c": 0.25}
    assert weights_at(then, 15) == {"c": 1.0}
    back = changed(A_TO_B, 12, prompt="a")
    assert [weights_at(back, n) for n in (12, 15)] == [{"a": 0.625, "b": 0.375}, {"a": 1.0}]


def test_a_change_of_something_else_lets_the_blend_go_on() -> None:
    then = changed(A_TO_B, 11, strength=0.9, blend_frames=100)
    assert then.strength == 0.9
    assert [mix_at(then, n) for n in range(11, 15)] == [mix_at(A_TO_B, n) for n in range(11, 15)]


def test_a_change_that_no_frame_was_under_leaves_no_trace() -> None:
    """Controls sent while every frame is dropped: the blend starts from what was last seen."""
    asked = SettingsChange(prompt="b").apply(A)
    asked = SettingsChange(prompt="c").apply(asked)
    assert weights_at(settings_under(A, asked, 10), 10) == {"a": 0.75, "c": 0.25}


def test_the_first_frame_of_a_session_has_nothing_to_blend_from() -> None:
    assert changed(A, 0, prompt="b").blend is None


def test_changes_in_mid_blend_without_end_stay_bounded() -> None:
    found = replace(A, blend_frames=10_000)
    for n in range(1, 200):
        found = changed(found, n, prompt=f"p{n:03}")
        mix = mix_at(found, n)
        assert len(mix) <= 9
        assert sum(one.weight for one in mix) == pytest.approx(1.0, abs=1e-9)
        assert [one.prompt for one in mix] == sorted(one.prompt for one in mix)
    assert decode_settings(encode_settings(found)) == found


def test_a_mix_is_of_weights_beside_each_other_in_any_order() -> None:
    first = Settings(prompts=mixed(b=3, a=1))
    again = Settings(prompts=(*mixed(a=0.5), *mixed(b=1.0), *mixed(b=0.5)))
    assert first.mix == again.mix == mixed(a=0.25, b=0.75)
    assert first.wording == again.wording != Settings(prompts=mixed(a=1, b=1)).wording


def test_prompt_and_prompts_replace_each_other() -> None:
    one = Settings("a")
    two = SettingsChange(prompts=mixed(b=1, c=1)).apply(one)
    assert (two.prompt, len(two.prompts)) == ("", 2)
    assert SettingsChange(prompt="d").apply(two) == replace(one, prompt="d")
    with pytest.raises(InvalidRequest):
        SettingsChange(prompt="d", prompts=mixed(e=1)).apply(one)


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": mixed(a=0.0)},
        {"prompts": mixed(a=-1.0, b=2.0)},
        {"prompts": mixed(a=math.nan)},
        {"prompts": mixed(a=math.inf)},
        {"prompts": tuple(WeightedPrompt(str(n), 1.0) for n in range(9))},
        {"blend_frames": -1},
        {"blend_frames": 10_001},
    ],
)
def test_what_has_no_meaning_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        SettingsChange(**change).apply(Settings("a"))
    assert raised.value.metadata == {"field": next(iter(change))}


def embedding(found: Settings, ordinal: int = 0) -> torch.Tensor:
    return tiny_denoiser().conditioning.embed_frame(found, ordinal)


def angle(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(left, right, dim=-1).clamp(-1, 1).acos()


def test_the_ends_of_a_blend_are_the_prompts_bit_by_bit() -> None:
    embed = tiny_denoiser().conditioning.embed
    assert torch.equal(embedding(A_TO_B, 13), embed("b"))
    assert torch.equal(embedding(A, 9), embed("a"))
    a, b = embed("a"), embed("b")
    assert gap([slerp(a, b, 0.0)], [a]) <= 1e-12
    assert gap([slerp(a, b, 1.0)], [b]) <= 1e-12


def test_a_blend_turns_evenly_from_one_prompt_to_the_other() -> None:
    """Token by token: the angle to the old prompt grows by the same amount with every frame."""
    found = changed(replace(A, blend_frames=20), 5, prompt="b")
    start, end = embedding(A), embedding(found, 24)
    whole = angle(start, end)
    for n in range(5, 25):
        here = embedding(found, n)
        assert gap([angle(start, here)], [whole * (n - 4) / 20]) <= 1e-6
        assert gap([angle(here, end)], [whole * (24 - n) / 20]) <= 1e-6


def test_a_mix_of_two_is_their_slerp() -> None:
    embed = tiny_denoiser().conditioning.embed
    found = embedding(Settings(prompts=mixed(a=7, b=3)))
    assert gap([found], [slerp(embed("a"), embed("b"), 0.3)]) <= 1e-12
    omega = angle(embed("a"), embed("b"))[..., None]
    by_hand = ((0.7 * omega).sin() * embed("a") + (0.3 * omega).sin() * embed("b")) / omega.sin()
    turning = (omega > 1e-2).expand_as(found)
    assert turning.any()
    assert gap([found[turning]], [by_hand[turning]]) <= 1e-9


@pytest.mark.parametrize("way", [1.0, -1.0, -1.0 + 1e-9, 1.0 - 1e-9])
def test_embeddings_that_are_parallel_or_opposite_mix_in_a_straight_line(way: float) -> None:
    start = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert gap([slerp(start, way * start, 0.25)], [(0.75 + 0.25 * way) * start]) <= 1e-6


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), st.integers(0, 2), st.floats(1e-9, 1e-6))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_a_small_change_of_weights_is_a_small_change_of_the_embedding(
    weights: list[float], at: int, by: float
) -> None:
    """Also where a prompt of the mix comes in or goes out."""
    names = ("a", "b", "c")
    before = dict(zip(names, weights, strict=True))
    after = {**before, names[at]: before[names[at]] + by}
    without = {name: weight for name, weight in before.items() if name != names[at]}
    entering = {**without, names[at]: by}
    for left, right in ((before, after), (without, entering)):
        found = [embedding(Settings(prompts=mixed(**each))) for each in (left, right)]
        assert gap(found[:1], found[1:]) <= 1e-3 * max(1.0, by * 1e6)


def test_a_change_in_mid_blend_does_not_jump() -> None:
    """The step from the last frame before it to the first under it is as small as a blend's other steps."""
    found, steps = replace(A, blend_frames=50), []
    at = [embedding(found, 0)]
    for n in range(1, 100):
        if n in (1, 20, 35):
            found = changed(found, n, prompt="bcd"[(1, 20, 35).index(n)])
        at.append(embedding(found, n))
    steps = [float((left - right).abs().max()) for left, right in pairwise(at)]
    whole = max(gap([embedding(Settings(x))], [embedding(Settings(y))]) for x in "abcd" for y in "abcd")
    assert max(steps) <= 3 * whole / 50
    assert torch.equal(at[-1], embedding(Settings("d")))


def blended(name: str, bank: BankSettings | None, seed: int, frames: int = 8) -> Stream:
    """A session with a blend, a change in the middle of it, and a mix at the end."""
    spec = banked(name, bank, prompt="a", steps=1 + seed % 3, seed=seed, blend_frames=4)
    first = changed(spec.settings, 2, prompt="b")
    second = changed(first, 4, prompts=mixed(c=2, a=1))
    third = changed(second, 6, guidance=Guidance.FULL, guidance_scale=1.3, negative_prompt="d")
    return Stream(spec, video(frames, seed=seed), {2: first, 4: second, 6: third})


@pytest.mark.parametrize("order", Order)
def test_blends_are_alone_as_in_a_batch(order: Order) -> None:
    banks = [None, BankSettings(interval=2, fusion_threshold=0.9), None]
    streams = [blended(f"s{i}", banks[i % 3], seed=i) for i in range(6)]
    together = play(tiny_engine(tiny_bank(6), order=order), streams, seed=2)
    for stream in streams:
        assert gap(together[stream.spec.session_id], by_reference(stream)) <= EXACT
        assert gap(together[stream.spec.session_id], alone(stream)) <= EXACT


def test_a_blend_is_visible_in_every_frame_of_it() -> None:
    """A still picture under a blend: each frame differs from the one before, until it is over."""
    spec = banked("s", None, prompt="a", blend_frames=4)
    stream = Stream(spec, video(1) * 8, {2: changed(spec.settings, 2, prompt="b")})
    pictures = by_reference(stream)
    moves = [gap([left], [right]) > VISIBLE for left, right in pairwise(pictures)]
    assert moves == [False, True, True, True, True, False, False]


@pytest.mark.parametrize("cut", [1, 2])
def test_a_blend_is_the_same_in_every_cut_of_the_chain(cut: int) -> None:
    stream = blended("s", BankSettings(interval=2, fusion_threshold=0.9), seed=2)
    assert gap(in_pieces(stream, [range(cut), range(cut, 3)]), by_reference(stream)) <= EXACT


@pytest.mark.parametrize("policy", PromptChange)
def test_a_blend_is_one_change_to_the_bank(policy: PromptChange) -> None:
    """Cleared once, faded once: the bank has one change of prompt, at the blend's first frame."""
    bank = BankSettings(interval=1, fusion_threshold=-1.0, prompt_change=policy, fade_frames=4)
    spec = banked("s", bank, prompt="a", steps=1, blend_frames=5)
    blend = changed(spec.settings, 3, prompt="b")
    memory = tiny_bank(1)
    engine = tiny_engine(memory)
    engine.open(spec)
    engine.update("s", 1, blend)
    writes, changes = [], []
    for n, latent in enumerate(video(9)):
        engine.admit(entering("s", n, latent, int(n >= 3)), 0.0)
        drain(engine)
        record = exported(memory, "s").steps[0]
        writes.append(record["writes"])
        changes.append(record["changed_at"])
    assert changes == [None] * 3 + [3] * 6
    restart = [1, 2, 3, 1, 2, 3, 4, 5, 6] if policy is PromptChange.CLEAR else list(range(1, 10))
    assert writes == restart


def test_g7_frames_before_a_change_do_not_see_it() -> None:
    """Bound at admission: those in flight when the change comes finish under what they came in with."""
    spec = banked("s", None, prompt="a", steps=3, blend_frames=3)
    change = {3: changed(spec.settings, 3, prompt="b", strength=0.9, seed=5, steps=2)}
    with_it, without = Stream(spec, video(6), change), Stream(spec, video(6))
    for seed in range(3):
        found = play(tiny_engine(Memoryless(1), order=Order.STREAM_BATCH), [with_it], seed)["s"]
        plain = play(tiny_engine(Memoryless(1)), [without], seed)["s"]
        assert gap(found[:3], plain[:3]) <= EXACT
        assert all(gap([a], [b]) > VISIBLE for a, b in zip(found[3:], plain[3:], strict=True))
        assert gap(found, by_reference(with_it)) <= EXACT


def test_a_blend_asks_for_every_embedding_ahead() -> None:
    """No frame waits for the text encoder: the prompts are encoded when the settings come."""
    table = tiny_denoiser().prompts
    asked = Settings(
        prompts=mixed(**{"ahead one": 1.0, "ahead two": 2.0}),
        guidance=Guidance.INITIALIZE,
        guidance_scale=2.0,
        negative_prompt="ahead three",
    )
    table.prepare(asked)
    table.prepare(changed(A, 3, prompt="ahead four"))
    assert {"ahead one", "ahead two", "ahead three", "ahead four", "a"} <= table.prompts
