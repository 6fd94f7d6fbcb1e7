"""Settings by themselves: what is in range, and which changes are no business of the engine's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.contract.controls import MAX_CONTROLS, WeightedControl
from rearview.contract.settings import Settings, SettingsChange, WeightedPrompt
from rearview.errors import InvalidRequest, Reason
from rearview.schema import from_message, to_message
from rearview.schema.tables import SETTINGS

pytestmark = pytest.mark.unit

PLAIN = Settings(prompt="a", steps=1)
MIXED = Settings(prompts=(WeightedPrompt("a", 1.0), WeightedPrompt("b", 2.0)), blend_frames=3)
OTHER = Settings(prompt="c", seed=9)
CONTROLLED = Settings(prompt="a", controls=(WeightedControl("tile", 0.5), WeightedControl("edges")))


@pytest.mark.parametrize("quality", [0, -1, 101])
def test_a_quality_out_of_range_is_refused_by_its_name(quality: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SettingsChange(jpeg_quality=quality).apply(PLAIN)
    assert caught.value.reason is Reason.SETTING_OUT_OF_RANGE
    assert caught.value.metadata == {"field": "jpeg_quality"}


@pytest.mark.parametrize("quality", [1, 100])
def test_a_quality_at_both_ends_of_its_range_passes(quality: int) -> None:
    assert SettingsChange(jpeg_quality=quality).apply(PLAIN).jpeg_quality == quality


def test_a_picture_depends_on_everything_but_the_quality_of_its_answer() -> None:
    assert replace(PLAIN, jpeg_quality=10).pictured == PLAIN.pictured
    others = {"prompt": "b", "seed": 1, "adapters": "ink", "scene": 1, "delta": 0.5}
    for name, value in others.items():
        assert replace(PLAIN, **{name: value}).pictured != PLAIN.pictured, name  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [PLAIN, MIXED, CONTROLLED], ids=["prompt", "mix", "controls"])
@pytest.mark.parametrize(
    "before", [PLAIN, MIXED, OTHER, CONTROLLED], ids=["plain", "mixed", "other", "controlled"]
)
def test_settings_as_a_change_lead_back_to_them_from_anywhere(settings: Settings, before: Settings) -> None:
    assert settings.as_change().apply(before) == settings


def test_controls_act_in_the_order_of_their_names_and_not_with_a_weight_of_0() -> None:
    assert [one.name for one in CONTROLLED.acting_controls] == ["edges", "tile"]
    idle = replace(CONTROLLED, controls=(WeightedControl("tile", 0.0), WeightedControl("edges")))
    assert idle.acting_controls == (WeightedControl("edges"),)


@pytest.mark.parametrize(
    "controls",
    [
        (WeightedControl("a", -0.1),),
        (WeightedControl("a", 2.1),),
        (WeightedControl("a", float("nan")),),
        (WeightedControl("a"), WeightedControl("a", 0.5)),
        tuple(WeightedControl(f"c{i}") for i in range(MAX_CONTROLS + 1)),
    ],
)
def test_controls_out_of_range_are_refused_by_their_name(controls: tuple[WeightedControl, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SettingsChange(controls=controls).apply(PLAIN)
    assert caught.value.metadata == {"field": "controls"}


def test_that_there_are_no_controls_can_be_said() -> None:
    """Else a client that restores settings could not turn them off."""
    off = from_message(SETTINGS, SettingsChange, to_message(SETTINGS, PLAIN.as_change()), refuses=True)
    assert off.controls == ()
    assert off.apply(CONTROLLED) == PLAIN
    silent = from_message(SETTINGS, SettingsChange, to_message(SETTINGS, SettingsChange()), refuses=True)
    assert silent.apply(CONTROLLED) == CONTROLLED
