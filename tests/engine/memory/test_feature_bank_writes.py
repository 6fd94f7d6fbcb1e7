"""What one session's bank holds and when: writes, policies, changes of prompt, export, freeing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rearview.contract.memories import BankPolicy, BankSettings, MergeMetric, PromptChange
from rearview.contract.session import SessionSpec
from rearview.engine.memory.bank.layers import KeptOutputs
from rearview.engine.memory.bank.merge import merge_tokens
from rearview.engine.memory.bank.pool import FeatureBank
from rearview.engine.memory.export import NO_STEP, Chunk
from rearview.engine.memory.memoryless import Memoryless
from rearview.errors import InvalidRequest, Refused
from support.frames import stacked
from support.memories import exported, gather, scatter
from support.tiny_bank import (
    Stream,
    advance,
    banked,
    by_reference,
    forward,
    gap,
    make_row,
    tiny_bank,
    tiny_denoiser,
    tiny_model,
    video,
)

pytestmark = pytest.mark.unit

EXACT = 1e-9
VISIBLE = 1e-4
MERGED = BankSettings(interval=2, fusion_threshold=0.9)
QUEUE = BankSettings(policy=BankPolicy.QUEUE, max_frames=3, interval=1, fusion_threshold=0.8)


def opened(spec: SessionSpec, **shape: Any) -> FeatureBank:
    memory = tiny_bank(2, **shape)
    memory.allocate(spec)
    return memory


def raw(memory: FeatureBank) -> torch.Tensor:
    """Every number in the pool."""
    return torch.cat([pool.flatten() for storage in memory._storage for pool in storage.tensors])


@pytest.mark.parametrize(
    ("bank", "size_frames"), [(MERGED, 1.0), (QUEUE, 3.0), (replace(MERGED, merge_ratio=0.3), 2.4)]
)
def test_bank_equals_the_plain_one_of_the_reference(bank: BankSettings, size_frames: float) -> None:
    spec = banked("s", bank, seed=3)
    result = advance(opened(spec, size_frames=size_frames), spec, video(7))
    assert gap(result, by_reference(Stream(spec, video(7)))) <= EXACT


@pytest.mark.parametrize("metric", MergeMetric)
def test_every_metric_equals_the_reference_and_they_differ(metric: MergeMetric) -> None:
    spec = banked("s", replace(MERGED, metric=metric, interval=1), seed=3)
    result = advance(opened(spec, kept_outputs=KeptOutputs.ALL), spec, video(5))
    assert gap(result, by_reference(Stream(spec, video(5)))) <= EXACT
    assert spec.bank is not None
    other = MergeMetric.VALUES if metric is MergeMetric.KEYS else MergeMetric.KEYS
    changed = replace(spec, bank=replace(spec.bank, metric=other))
    assert gap(result, by_reference(Stream(changed, video(5)))) > VISIBLE


def test_f8_a_frame_does_not_see_its_own_write() -> None:
    spec = banked("s", MERGED)
    memory = opened(spec)
    advance(memory, spec, video(3))
    row = make_row(spec, video(4)[3], 4)
    rows = [row, replace(row, shadow=True)]
    assert [memory.num_writes(row) for row in rows] == [1, 0]
    with_write, without = (tiny_model().forward([row], gather(memory, [row])) for row in rows)
    assert torch.equal(stacked(with_write.outputs[0]), stacked(without.outputs[0]))
    assert with_write.updates["bank"].tensors
    assert not without.updates["bank"].tensors


@pytest.mark.parametrize(
    ("interval", "phase", "expected"),
    [(1, 0, [0, 1, 2, 3, 4, 5, 6]), (3, 0, [0, 3, 6]), (3, 1, [0, 1, 4]), (4, 6, [0, 2, 6])],
)
def test_f9_writes_are_at_ordinals_of_the_interval_and_wherever_the_bank_is_empty(
    interval: int, phase: int, expected: list[int]
) -> None:
    spec = banked("s", BankSettings(interval=interval, phase=phase), steps=1)
    memory = opened(spec)
    written = []
    for n, latent in enumerate(video(7)):
        row = make_row(spec, latent, n)
        written += [n] * memory.num_writes(row)
        forward(memory, [row])
    assert written == expected


def test_fault_24_gather_and_scatter_alone_write_when_a_write_is_due() -> None:
    """Nobody tells the bank: a row says what it is, and the bank knows the rest."""
    spec = banked("s", BankSettings(interval=3), steps=1)
    memory = opened(spec)
    written = []
    for n, latent in enumerate(video(5)):
        before = raw(memory).clone()
        rows = [make_row(spec, latent, n)]
        views = gather(memory, rows)
        scatter(memory, rows, tiny_model().forward(rows, views).updates)
        written += [n] if not torch.equal(raw(memory), before) else []
    assert written == [0, 3]
    assert exported(memory, "s").steps[0]["writes"] == 2


def test_what_a_row_says_of_its_cost_does_not_decide_what_is_written() -> None:
    spec = banked("s", BankSettings(interval=3), steps=1)
    memories = [opened(spec) for _ in range(2)]
    for writes, memory in enumerate(memories):
        for n, latent in enumerate(video(4)):
            forward(memory, [replace(make_row(spec, latent, n), writes=writes)])
    assert torch.equal(raw(memories[0]), raw(memories[1]))
    assert raw(memories[0]).any()


def test_a_merge_that_fails_leaves_every_past_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last layer, after the others were computed."""
    specs = [banked(name, MERGED, steps=1) for name in "st"]
    memory = tiny_bank(2)
    for spec in specs:
        memory.allocate(spec)
        advance(memory, spec, video(2))
    rows = [make_row(spec, video(3)[2], 2) for spec in specs]
    before, state = raw(memory).clone(), exported(memory, "s").steps
    updates = tiny_model().forward(rows, gather(memory, rows)).updates
    layers = len(tiny_model().layouts.bank.layers)  # type: ignore[union-attr]
    calls = iter(range(layers))

    def failing(*arguments: Any) -> Any:
        if next(calls) == layers - 1:
            raise RuntimeError("out of memory")
        return merge_tokens(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("rearview.engine.memory.bank.write.merge_tokens", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            scatter(memory, rows, updates)
    assert torch.equal(raw(memory), before)
    assert exported(memory, "s").steps == state
    scatter(memory, rows, updates)
    assert not torch.equal(raw(memory), before)


def test_a_session_that_starts_at_any_ordinal_writes_at_once() -> None:
    spec = banked("s", BankSettings(interval=4), steps=1)
    assert opened(spec).num_writes(make_row(spec, video(1)[0], 3)) == 1


def test_a_queue_holds_its_last_frames_whole() -> None:
    spec = banked("s", QUEUE, steps=1)
    memory = opened(spec, size_frames=3.0)
    fresh = []
    for n, latent in enumerate(video(5)):
        row = make_row(spec, latent, n)
        result = tiny_model().forward([row], gather(memory, [row]))
        fresh.append(result.updates["bank"].tensors[0][0, :64])
        scatter(memory, [row], result.updates)
    keys, _ = next(iter(exported(memory, "s").layers.values()))
    kept = keys.view(3, 64, -1)
    assert [[bool(torch.equal(frame, new)) for new in fresh].index(True) for frame in kept] == [3, 4, 2]


def test_a_partly_filled_queue_equals_the_reference_at_every_frame() -> None:
    spec = banked("s", QUEUE, steps=1)
    result = advance(opened(spec, size_frames=3.0), spec, video(5))
    for n, expected in enumerate(by_reference(Stream(spec, video(5)))):
        assert gap([result[n]], [expected]) <= EXACT, n


def test_g8_clear_finds_an_empty_bank_at_the_first_frame_of_a_new_prompt() -> None:
    spec = banked("s", replace(MERGED, prompt_change=PromptChange.CLEAR))
    memory = opened(spec)
    advance(memory, spec, video(3))
    changed = replace(spec, settings=replace(spec.settings, prompt="another"))
    plain = by_reference(Stream(replace(changed, bank=None), video(4)))
    latent = video(4)[3]
    for step in range(2):
        latent = forward(memory, [make_row(spec, latent, 3, step, settings=changed.settings)])[0]
    assert gap([latent], plain[3:]) <= EXACT
    stream = Stream(spec, video(7), {3: changed.settings})
    follow_up = advance(memory, replace(spec, settings=changed.settings), video(7)[4:], first=4)
    assert gap(follow_up, by_reference(stream)[4:]) <= EXACT
    memory.check_integrity()


def test_keep_carries_the_bank_over_a_new_prompt() -> None:
    results = {}
    for policy in PromptChange:
        spec = banked("s", replace(MERGED, prompt_change=policy, fade_frames=4))
        stream = Stream(spec, video(9), {3: replace(spec.settings, prompt="another")})
        memory = opened(spec)
        outputs = advance(memory, spec, stream.latents[:3])
        outputs += advance(memory, replace(spec, settings=stream.changes[3]), stream.latents[3:], first=3)
        assert gap(outputs, by_reference(stream)) <= EXACT
        results[policy] = outputs
    keep, clear, fade = (results[policy] for policy in PromptChange)
    assert gap(keep[3:4], clear[3:4]) > VISIBLE
    assert gap(keep[3:4], fade[3:4]) > VISIBLE
    assert gap(keep[:3], fade[:3]) == gap(keep[:3], clear[:3]) == 0.0


def test_fade_starts_without_fusion() -> None:
    spec = banked("s", replace(MERGED, prompt_change=PromptChange.FADE), steps=1)
    changed = replace(spec.settings, prompt="another")
    without = replace(spec, bank=replace(MERGED, fusion_strength=0.0, prompt_change=PromptChange.FADE))
    memory, other = opened(spec), opened(without)
    advance(memory, spec, video(1))
    header, *chunks = memory.export("s")
    settings = next(other.export("s")).values["settings"]
    other.import_("s", [replace(header, values={**header.values, "settings": settings}), *chunks])
    rows = [make_row(s, video(2)[1], 1, settings=changed) for s in (spec, without)]
    faded, unfused = forward(memory, rows[:1]), forward(other, rows[1:])
    assert gap([faded], [unfused]) == 0.0


@pytest.mark.parametrize("keep", [False, True])
def test_a_step_whose_timestep_changes_clears_its_bank_unless_it_is_kept(keep: bool) -> None:
    spec = banked("s", replace(MERGED, keep_on_timestep_change=keep))
    memory, fresh = opened(spec), opened(spec)
    advance(memory, spec, video(2))
    assert memory.num_writes(make_row(spec, video(4)[3], 3)) == 0
    row = make_row(spec, video(4)[3], 3, settings=replace(spec.settings, strength=0.9))
    assert memory.num_writes(row) == (not keep)
    difference = gap([forward(memory, [row])], [forward(fresh, [row])])
    assert difference > VISIBLE if keep else difference == 0.0
    memory.check_integrity()


@pytest.mark.parametrize("bank", [MERGED, QUEUE])
def test_nothing_of_a_former_tenant_is_in_the_pool(bank: BankSettings) -> None:
    spec, stays = banked("s", bank), banked("stays", bank)
    memory = opened(spec, size_frames=3.0)
    memory.allocate(stays)
    untouched = advance(memory, stays, video(1, seed=9))
    advance(memory, spec, video(4))
    held = int(raw(memory).count_nonzero())
    memory.free("s")
    alone = opened(stays, size_frames=3.0)
    assert gap(advance(alone, stays, video(1, seed=9)), untouched) <= EXACT
    assert int(raw(memory).count_nonzero()) == int(raw(alone).count_nonzero()) < held
    memory.check_integrity()
    memory.free("stays")
    assert not raw(memory).any()


def test_reset_is_a_new_session_in_the_same_slot() -> None:
    spec = banked("s", MERGED)
    memory = opened(spec)
    first = advance(memory, spec, video(4))
    memory.reset("s")
    assert not raw(memory).any()
    assert gap(advance(memory, spec, video(4)), first) == 0.0


def test_check_integrity_finds_a_leftover() -> None:
    memory = opened(banked("s", MERGED))
    memory._storage[1].values[-1, 3, 5] = 1e-3
    with pytest.raises(AssertionError, match="holds more"):
        memory.check_integrity()


@pytest.mark.parametrize(("bank", "size_frames"), [(MERGED, 1.0), (QUEUE, 3.0), (None, 1.0)])
def test_a_moved_session_continues_bit_for_bit(bank: BankSettings | None, size_frames: float) -> None:
    spec = banked("s", bank)
    stayed = opened(spec, size_frames=size_frames)
    expected = advance(stayed, spec, video(7))
    left, arrived = opened(spec, size_frames=size_frames), tiny_bank(3, size_frames=size_frames)
    advance(left, spec, video(7)[:3])
    for other in ("in the way", "too"):
        arrived.allocate(banked(other, bank))
    arrived.allocate(spec)
    arrived.import_("s", left.export("s"))
    assert gap(advance(arrived, spec, video(7)[3:], first=3), expected[3:]) == 0.0
    arrived.check_integrity()


def test_an_export_of_a_whole_chain_is_taken_apart_and_put_together() -> None:
    spec = banked("s", MERGED)
    whole = opened(spec)
    advance(whole, spec, video(3))
    pieces = [tiny_bank(1, steps=(0,)), tiny_bank(1, steps=(1, 2))]
    again = opened(spec)
    for piece in pieces:
        piece.allocate(spec)
        piece.import_("s", whole.export("s"))
        again.import_("s", piece.export("s"))
    assert (
        gap(advance(again, spec, video(4)[3:], first=3), advance(whole, spec, video(4)[3:], first=3)) == 0.0
    )


def test_an_export_is_a_copy() -> None:
    spec = banked("s", MERGED)
    memory = opened(spec)
    advance(memory, spec, video(1))
    state = exported(memory, "s").layers
    kept = {key: [tensor.clone() for tensor in tensors] for key, tensors in state.items()}
    advance(memory, spec, video(3)[1:], first=1)
    memory.free("s")
    assert kept
    assert all(gap(kept[key], state[key]) == 0.0 for key in kept)


def test_chunks_are_made_one_after_another_and_not_of_two_moments() -> None:
    spec = banked("s", MERGED)
    memory = opened(spec)
    advance(memory, spec, video(1))
    chunks = memory.export("s")
    assert [next(chunks).step for _ in range(3)] == [NO_STEP, 0, 0]
    advance(memory, spec, video(3)[1:], first=1)
    with pytest.raises(AssertionError, match="ran while it was exported"):
        next(chunks)


def _with(chunk: Chunk, **values: Any) -> Chunk:
    return replace(chunk, values={**chunk.values, **values})


def _other_size(chunk: Chunk) -> Chunk:
    return _with(chunk, size=[128, 64]) if "size" in chunk.values else chunk


def _other_format(chunk: Chunk) -> Chunk:
    return _with(chunk, format=99) if "format" in chunk.values else chunk


def _other_settings(chunk: Chunk) -> Chunk:
    settings: Any = chunk.values.get("settings")
    return _with(chunk, settings={**settings, "interval": 3}) if settings else chunk


def _other_dtype(chunk: Chunk) -> Chunk:
    return replace(chunk, tensors=tuple(tensor.float() for tensor in chunk.tensors))


def _other_unet(chunk: Chunk) -> Chunk:
    return replace(chunk, layer=chunk.layer and chunk.layer + "x")


def _truncated(chunk: Chunk) -> Chunk:
    return replace(chunk, tensors=tuple(tensor[:-1] for tensor in chunk.tensors))


def _no_step(chunk: Chunk) -> Chunk:
    return replace(chunk, step=chunk.step + 9) if chunk.step >= 0 else chunk


def _no_layer(chunk: Chunk) -> Chunk | None:
    return None if chunk.step == 0 and chunk.layer.startswith("mid_block") else chunk


def _no_header(chunk: Chunk) -> Chunk | None:
    return None if chunk.step == NO_STEP else chunk


def _record(**values: Any) -> Any:
    return lambda chunk: _with(chunk, **values) if "writes" in chunk.values else chunk


_SPOILT_RECORDS = (
    *(_record(writes=-1), _record(writes=True), _record(writes=None), _record(writes=1.0)),
    *(_record(prompt=None), _record(changed_at=""), _record(changed_at=10**400), _record(timestep_index=-2)),
)


@pytest.mark.parametrize(
    "spoil",
    [
        *(_other_size, _other_format, _other_settings, _other_dtype, _other_unet, _truncated, _no_step),
        *(_no_layer, _no_header, *_SPOILT_RECORDS),
    ],
)
def test_an_export_that_does_not_fit_is_refused_and_changes_nothing(spoil: Any) -> None:
    spec = banked("s", MERGED)
    source, target = opened(spec), opened(spec)
    advance(source, spec, video(3))
    advance(target, spec, video(3, seed=8))
    before = raw(target).clone()
    chunks = [spoil(chunk) for chunk in source.export("s")]
    with pytest.raises(ValueError, match=r"export|shapes"):
        target.import_("s", [chunk for chunk in chunks if chunk is not None])
    assert torch.equal(raw(target), before)


@pytest.mark.parametrize("kept_outputs", KeptOutputs)
@pytest.mark.parametrize("size_frames", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_g10_bytes_per_session_are_those_of_the_storage(
    kept_outputs: KeptOutputs, size_frames: float, dtype: torch.dtype
) -> None:
    memory = tiny_bank(3, size_frames=size_frames, kept_outputs=kept_outputs, dtype=dtype)
    assert memory.storage_bytes == 3 * memory.bytes_per_session(banked("s", MERGED))


@pytest.mark.parametrize(
    ("bank", "field"),
    [
        (QUEUE, "bank.max_frames"),
        (replace(MERGED, merge_ratio=0.25), "bank.max_frames"),
        (replace(MERGED, metric=MergeMetric.OUTPUTS), "bank.metric"),
    ],
)
def test_a_bank_that_the_pool_has_no_room_for_is_refused(bank: BankSettings, field: str) -> None:
    memory = tiny_bank(1)
    with pytest.raises(InvalidRequest) as refused:
        memory.allocate(banked("s", bank))
    assert refused.value.metadata == {"field": field}
    assert memory.free_slots == 1


def test_a_larger_frame_is_refused_and_a_smaller_one_uses_part_of_a_place() -> None:
    memory = tiny_bank(1)
    with pytest.raises(InvalidRequest):
        memory.allocate(banked("large", MERGED, width=128))
    small = banked("small", MERGED, height=32)
    memory.allocate(small)
    latents = video(4, height=32)
    assert gap(advance(memory, small, latents), by_reference(Stream(small, latents))) <= EXACT
    memory.check_integrity()


def test_a_full_pool_refuses_and_keeps_what_it_has() -> None:
    memory = tiny_bank(1)
    memory.allocate(banked("s", MERGED))
    with pytest.raises(Refused):
        memory.allocate(banked("t", MERGED))
    memory.check_integrity()
    memory.free("nobody")
    assert memory.free_slots == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interval", 0),
        ("phase", -1),
        ("max_frames", 0),
        ("max_frames", 2),
        ("merge_ratio", 0.0),
        ("merge_ratio", 1.0),
        ("merge_ratio", float("nan")),
        ("fusion_strength", 1.5),
        ("fusion_strength", float("nan")),
        ("fusion_threshold", float("inf")),
        ("fade_frames", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as refused:
        BankSettings(**{field: value})  # type: ignore[arg-type]
    assert refused.value.metadata == {"field": f"bank.{field}"}


def test_a_service_without_banks_refuses_a_session_that_asks_for_one() -> None:
    memory = Memoryless(1)
    with pytest.raises(InvalidRequest, match="no feature bank"):
        memory.allocate(banked("s", MERGED))
    assert memory.free_slots == 1


def test_rows_without_a_bank_alone_take_the_plain_path() -> None:
    memory = tiny_bank(1)
    spec = banked("s", None)
    memory.allocate(spec)
    row = make_row(spec, video(1)[0])
    assert memory.gather([row]) is None
    assert memory.num_writes(row) == 0
    assert tiny_denoiser().bank_layout is not None
