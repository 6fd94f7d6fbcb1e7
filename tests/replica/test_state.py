"""What a session is, as bytes: nothing lost on the way, and nothing believed that does not fit together."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.chain import Operator
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.reference import MAX_MASK_BYTES, MAX_PICTURE_BYTES, ImageFile
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Blend, Guidance, Settings, WeightedPrompt
from rearview.contract.warmup import Changes, StepWarmUp, WarmUpPlan
from rearview.engine.memory.export import Chunk
from rearview.engine.sessions import SessionState
from rearview.engine.windows import ShadowInput, WindowsState
from rearview.replica.state import Kept, Origin, OtherModel, StateReader, encode_state
from rearview.transport.wire import encode_settings

pytestmark = pytest.mark.unit

HERE = Origin("fingerprint", "float32")
UNDER = Settings(
    "",
    0.7,
    3,
    seed=2**64 - 1,
    guidance=Guidance.FULL,
    guidance_scale=1.5,
    negative_prompt="dull",
    prompts=(WeightedPrompt("a", 1 / 3), WeightedPrompt("ü", 2.0)),
    blend=Blend((WeightedPrompt("z", 1.0),), 4, 9),
    reference=ImageFile.of(bytes(MAX_PICTURE_BYTES)),
    reference_mask=ImageFile.of(bytes(MAX_MASK_BYTES)),
)


def a_state() -> Kept:
    """One with everything in it."""
    spec = SessionSpec(
        "5" * 32, 64, 32, 3, Settings("p"), "tenant", 2.5, BankSettings(interval=3), CacheSettings()
    )
    changes = Changes(3, 8, 3)
    planes = {"latent": torch.randn(4, 2, 3), "depth": torch.randn(1, 2, 3).double()}
    inputs = (
        ShadowInput(8, UNDER, planes, changes),
        ShadowInput(9, UNDER, {"latent": torch.ones(2)}, changes),
    )
    plan = WarmUpPlan(4, CacheSettings(), UNDER, changes)
    steps = {0: (StepWarmUp(4, 3, 8, 3), inputs), 1: (StepWarmUp(4, 3), ())}
    memory = [
        Chunk("bank", values={"header": True}),
        Chunk("bank", 0, "mid", {}, (torch.randn(3, 5), torch.randn(2))),
        Chunk("cache", 1, "up", {"n": 3}, (torch.randn(0, 4),)),
    ]
    operators = frozenset(map(Operator.parse, ("encode", "denoise-0", "denoise-1")))
    known = {7: UNDER, 9: Settings("q")}
    state = SessionState(
        operators, spec, known, 10, 14, {0: 9, 1: 9}, True, memory, WindowsState(plan, steps)
    )
    return Kept(state, {5: encode_settings(Settings("old")), 7: encode_settings(UNDER)})


def content(kept: Kept, origin: Origin = HERE) -> bytes:
    return b"".join(encode_state(kept, origin))


def read(data: bytes, part: int = 1 << 20) -> list[Kept]:
    reader = StateReader(HERE)
    for at in range(0, len(data), part):
        reader.feed(data[at : at + part])
    return list(reader.states())


def assert_same(found: Kept, expected: Kept) -> None:
    bare = [
        replace(each.session, memory=(), windows=replace(each.session.windows, steps={}))
        for each in (found, expected)
    ]
    assert bare[0] == bare[1]
    assert found.announced == expected.announced
    chunks = zip(found.session.memory, expected.session.memory, strict=True)
    for ours, theirs in chunks:
        assert (ours.kind, ours.step, ours.layer, ours.values) == (
            theirs.kind,
            theirs.step,
            theirs.layer,
            theirs.values,
        )
        assert_equal(ours.tensors, theirs.tensors)
    ours_by_step, theirs_by_step = found.session.windows.steps, expected.session.windows.steps
    assert ours_by_step.keys() == theirs_by_step.keys()
    for step, (warm_up, inputs) in theirs_by_step.items():
        assert ours_by_step[step][0] == warm_up
        for mine, other in zip(ours_by_step[step][1], inputs, strict=True):
            assert replace(mine, planes={}) == replace(other, planes={})
            assert list(mine.planes) == list(other.planes)
            assert_equal(mine.planes.values(), other.planes.values())


def assert_equal(ours: Any, theirs: Any) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype is other.dtype
        assert torch.equal(mine, other)


@pytest.mark.parametrize("part", [1, 7, 1000, 1 << 20])
def test_nothing_is_lost_on_the_way_however_it_is_cut(part: int) -> None:
    expected = a_state()
    (found,) = read(content(expected), part)
    assert_same(found, expected)


def test_states_of_several_spans_may_follow_each_other() -> None:
    first, second = a_state(), a_state()
    found = read(content(first) + content(second))
    for ours, theirs in zip(found, (first, second), strict=True):
        assert_same(ours, theirs)


def test_a_span_may_ask_for_its_steps_alone() -> None:
    part = a_state().session.of_steps([1])
    assert {each.name for each in part.operators} == {"encode", "denoise-1"}
    assert [(chunk.kind, chunk.step) for chunk in part.memory] == [("bank", -1), ("cache", 1)]
    assert (part.committed, list(part.windows.steps)) == ({1: 9}, [1])
    (found,) = read(content(Kept(part, {})))
    assert_same(found, Kept(part, {}))


@pytest.mark.parametrize("origin", [Origin("another", "float32"), Origin("fingerprint", "float16")])
def test_another_model_is_told_apart(origin: Origin) -> None:
    with pytest.raises(OtherModel, match=r"another (model|dtype)"):
        read(content(a_state(), origin))


def test_another_format_is_told_apart() -> None:
    with pytest.raises(OtherModel, match="another format"):
        read(changed(format=2))


def changed(**fields: Any) -> bytes:
    """The state with other fields in its first record."""
    data = content(a_state())
    (length,) = struct.unpack_from("<Q", data)
    (size,) = struct.unpack_from("<I", data, 8)
    header = json.loads(data[12 : 12 + size])
    header["values"] |= fields
    text = json.dumps(header).encode()
    record = struct.pack("<I", len(text)) + text
    return struct.pack("<Q", len(record)) + record + data[8 + length :]


@pytest.mark.parametrize(
    "fields",
    [
        {"num_memory": 4},
        {"num_memory": 2},
        {"num_shadow": 1},
        {"num_settings": 2},
        {"num_settings": -1},
        {"expected": 9},
        {"expected": -1},
        {"expected": 1 << 70},
        {"place": -2},
        {"committed": {"0": 10}},
        {"committed": {"2": 1}},
        {"operators": ["encode", "denoise-0"]},
        {"operators": ["encode", "denoise-0", "denoise-1", "nonsense"]},
        {"plan": None},
        {"steps": []},
        {"spec": {"session_id": 3}},
        {"flushing": "maybe"},
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        read(changed(**fields))


def test_settings_that_nobody_could_ask_for_are_refused() -> None:
    data = content(a_state()).replace(b'"guidance_scale":1.5', b'"guidance_scale":9e9')
    with pytest.raises(ValueError, match="guidance_scale is out of range"):
        read(data)


@pytest.mark.parametrize("end", [0, 5, 100, -1])
def test_a_state_that_is_cut_short_is_refused(end: int) -> None:
    with pytest.raises(ValueError, match="cut short"):
        read(content(a_state())[:end])


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_state_or_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        read(data)


@settings(deadline=None, max_examples=300)
@given(
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
    dropped=st.tuples(st.integers(0, 1 << 16), st.integers(0, 40)),
)
def test_damaged_states_are_states_or_value_errors(edits: Any, dropped: tuple[int, int]) -> None:
    data = bytearray(WHOLE)
    for at, byte in edits:
        data[at % len(data)] = byte
    start = dropped[0] % len(data)
    del data[start : start + dropped[1]]
    try:
        found = read(bytes(data))
    except ValueError:
        return
    assert found


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(
        ["num_settings", "num_shadow", "operators", "spec", "expected", "place", "committed", "plan", "steps"]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["0", "frames", "step", "warm_up", "shadow", "cache"]), inner)
        ),
        max_leaves=6,
    ),
)
def test_any_value_in_a_header_is_read_or_a_value_error(name: str, value: Any) -> None:
    try:
        read(changed(**{name: value}))
    except ValueError:
        return


WHOLE = content(a_state())
