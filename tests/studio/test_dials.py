"""What a controller turns: names, ranges, and the change that comes of it. No socket, no clock."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.client import (
    Guidance,
    Model,
    NoiseRule,
    Settings,
    SettingsChange,
    WeightedAdapters,
    WeightedControl,
    WeightedPrompt,
)
from rearview.errors import InvalidRequest, Reason
from rearview.studio.changing import merged, under
from rearview.studio.dials import CHOICES, NOT_TURNED, RANGES, TEXTS, Dials, Range, Turn, Value
from rearview.studio.service import described

pytestmark = pytest.mark.unit

MODEL = Model(
    name="m", max_steps=4, adapters=("ink", "gold", "whole"), merged_adapters=("whole",), controls=("edges",)
)
MIX = (WeightedPrompt("a", 1.0), WeightedPrompt("b", 1.0))
MANY = ("adapter", "control", "share")


def turned(
    name: str, value: Value, settings: Settings | None = None, *, fader: bool = False
) -> SettingsChange:
    return Dials(MODEL).change(Turn(name, value, fader), settings or Settings())


def test_every_setting_is_turned_or_known_not_to_be() -> None:
    known = {*RANGES, *CHOICES, *TEXTS} - set(MANY)
    assert known | NOT_TURNED == {one.name for one in fields(SettingsChange)}
    assert known & NOT_TURNED == set()


@pytest.mark.parametrize(
    "name", [*sorted(set(RANGES) - set(MANY)), "adapter/ink", "control/edges", "share/2"]
)
def test_a_fader_goes_from_end_to_end_and_the_service_takes_all_of_it(name: str) -> None:
    within: Range = Dials(MODEL)._ranges[name.partition("/")[0]]
    settings = Settings(prompts=MIX)
    for share, end in ((0.0, within.low), (1.0, within.high)):
        assert within.at(share) == end
        assert within.least <= end <= within.most
        turned(name, share, settings, fader=True).apply(settings)
    for end in (within.least, within.most):
        turned(name, end, settings).apply(settings)


@given(st.floats(0.0, 1.0))
def test_places_of_a_fader_are_steps_of_its_slider(share: float) -> None:
    for name in RANGES:
        within = RANGES[name]
        value = within.at(share)
        assert within.low <= value <= within.high
        steps = (value - within.low) / within.step
        assert math.isclose(steps, round(steps), abs_tol=1e-6), name


def test_a_value_is_the_settings_own_and_a_faders_a_place_in_its_range() -> None:
    assert turned("strength", 0.5) == SettingsChange(strength=0.5)
    assert turned("strength", 0.5, fader=True) == SettingsChange(strength=0.53)
    assert turned("steps", 3.0) == SettingsChange(steps=3)
    assert turned("steps", 1.0, fader=True) == SettingsChange(steps=4)
    assert turned("seed", 12345) == SettingsChange(seed=12345)
    assert turned("prompt", "oil") == SettingsChange(prompt="oil")
    assert turned("adapters", "whole") == SettingsChange(adapters="whole")
    assert turned("guidance", "self") == SettingsChange(guidance=Guidance.SELF)
    assert turned("noise_rule", 0.5, fader=True) == SettingsChange(noise_rule=NoiseRule.FRESH)
    assert turned("noise_rule", 1.0, fader=True) == SettingsChange(noise_rule=NoiseRule.FIRST)


def test_a_session_of_fewer_steps_has_a_shorter_fader_and_never_a_longer_one_than_its_model() -> None:
    for asked, most in ((0, 4), (2, 2), (9, 4)):
        change = Dials(MODEL, asked).change(Turn("steps", 1.0, is_share=True), Settings())
        assert change == SettingsChange(steps=most)


def test_a_weight_leaves_the_others_and_goes_at_0() -> None:
    gold = Settings(adapters="gold")
    ink = WeightedAdapters("ink", 0.5)
    assert turned("adapter/ink", 0.5, gold) == SettingsChange(adapter_mix=(WeightedAdapters("gold"), ink))
    assert turned("adapter/ink", 0.0, Settings(adapter_mix=(ink,))) == SettingsChange(adapters="")
    assert turned("adapter/ink", 0.5, Settings(adapters="whole")) == SettingsChange(adapter_mix=(ink,))
    held = Settings(controls=(WeightedControl("edges", 1.0),))
    assert turned("control/edges", 0.0, held) == SettingsChange(controls=())
    mixed = turned("share/2", 0.25, Settings(prompts=MIX))
    assert mixed == SettingsChange(prompts=(MIX[0], WeightedPrompt("b", 0.25)))


def test_two_weights_turned_before_one_frame_are_both_there() -> None:
    first = turned("adapter/ink", 0.5)
    second = Dials(MODEL).change(Turn("adapter/gold", 1.5), under(Settings(), [first]))
    assert [one.adapters for one in second.adapter_mix or ()] == ["ink", "gold"]


def test_a_change_that_will_be_refused_is_none() -> None:
    both = SettingsChange(prompt="a", prompts=MIX)
    assert under(Settings(), [both, SettingsChange(seed=3)]) == Settings(seed=3)


@pytest.mark.parametrize(
    "changes",
    [
        [SettingsChange(timestep_indices=(0, 9)), SettingsChange(steps=3)],
        [SettingsChange(timestep_indices=(0, 9)), SettingsChange(strength=0.3)],
        [SettingsChange(steps=1), SettingsChange(timestep_indices=(0, 9))],
        [SettingsChange(timestep_indices=(0, 9)), SettingsChange(timestep_indices=(), steps=3)],
        [SettingsChange(prompts=MIX), SettingsChange(prompt="c")],
        [SettingsChange(prompt="c"), SettingsChange(prompts=MIX)],
    ],
)
def test_changes_put_together_lead_where_they_lead_one_by_one(changes: list[SettingsChange]) -> None:
    assert merged(*changes).apply(Settings()) == under(Settings(), changes)


def test_an_empty_list_of_places_says_nothing() -> None:
    places = SettingsChange(timestep_indices=(0, 9))
    assert merged(places, SettingsChange(timestep_indices=())) == places


@pytest.mark.parametrize(
    ("value", "is_set_to"), [(0.01, 0.01), (0.3, 0.3), (1.0, 1.0), (0.123456789, 0.123457)]
)
def test_a_float_of_32_bits_is_the_value_that_was_meant(value: float, is_set_to: float) -> None:
    (arrives,) = struct.unpack(">f", struct.pack(">f", value))
    assert turned("strength", arrives) == SettingsChange(strength=is_set_to)
    assert turned("seed", 16_777_213.0) == SettingsChange(seed=16_777_213)


@pytest.mark.parametrize(
    ("name", "value", "fader", "why"),
    [
        ("colour", 1, False, "there is no such setting; there are: strength"),
        ("width", 512, False, "no such setting"),
        ("strength/x", 1, False, "no such setting"),
        ("adapter", 1, False, "no such setting"),
        ("strength", 1.5, False, "from 0.01 to 1"),
        ("strength", math.nan, False, "a number"),
        ("strength", math.inf, True, "a number"),
        ("strength", "high", False, "a number"),
        ("strength", 1.1, True, "place is from 0 to 1"),
        ("steps", 5, False, "from 1 to 4"),
        ("steps", 1.5, False, "whole number"),
        ("prompt", 1.0, False, "words"),
        ("prompt", "oil", True, "words"),
        ("guidance", "SELF", False, "one of none, self"),
        ("guidance", 2, False, "one of"),
        ("guidance", math.nan, True, "from 0 to 1"),
        ("guidance", "self", True, "from 0 to 1"),
        ("adapters", "silver", False, "there are: ink"),
        ("adapter/silver", 1, False, "no such adapter"),
        ("adapter/whole", 1, False, "takes a weight"),
        ("adapter/ink", 5, False, "from -4 to 4"),
        ("control/depth", 1, False, "no such control"),
        ("share/1", 1, False, "has 0 prompts"),
        ("share/²", 1, False, "has 0 prompts"),
    ],
)
def test_what_cannot_be_turned_is_refused_with_the_reason(
    name: str, value: Any, fader: bool, why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        turned(name, value, fader=fader)
    assert caught.value.reason is Reason.SETTING_OUT_OF_RANGE


def test_the_table_of_the_docs_has_the_ranges(root: Path) -> None:
    text = (root / "docs/stage.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)(?:/\w+)?` \| (\S+) \| (\S+)", text, flags=re.MULTILINE)
    told = {name: (float(low), high) for name, low, high in rows}
    assert set(told) == set(RANGES)
    assert told.pop("steps") == (1.0, "the")
    assert told == {name: (RANGES[name].low, f"{RANGES[name].high:g}") for name in told}


def test_pages_are_told_the_ranges_of_the_model_they_have() -> None:
    dials = described(MODEL)["dials"]
    assert set(dials) == set(RANGES)
    assert dials["strength"] == {"low": 0.05, "high": 1.0, "step": 0.01}
    assert dials["steps"]["high"] == 4
