"""Settings by themselves: what is in range, and which changes are no business of the engine's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.contract.settings import Settings, SettingsChange, WeightedPrompt
from rearview.errors import InvalidRequest, Reason

pytestmark = pytest.mark.unit

PLAIN = Settings(prompt="a", steps=1)
MIXED = Settings(prompts=(WeightedPrompt("a", 1.0), WeightedPrompt("b", 2.0)), blend_frames=3)
OTHER = Settings(prompt="c", seed=9)


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


@pytest.mark.parametrize("settings", [PLAIN, MIXED], ids=["prompt", "mix"])
@pytest.mark.parametrize("before", [PLAIN, MIXED, OTHER], ids=["plain", "mixed", "other"])
def test_settings_as_a_change_lead_back_to_them_from_anywhere(settings: Settings, before: Settings) -> None:
    assert settings.as_change().apply(before) == settings
