"""Settings by themselves."""

from __future__ import annotations

import pytest
from rearview.contract.settings import Settings, WeightedPrompt

pytestmark = pytest.mark.unit

PLAIN = Settings(prompt="a", steps=1)
MIXED = Settings(prompts=(WeightedPrompt("a", 1.0), WeightedPrompt("b", 2.0)), blend_frames=3)
OTHER = Settings(prompt="c", seed=9)


@pytest.mark.parametrize("settings", [PLAIN, MIXED], ids=["prompt", "mix"])
@pytest.mark.parametrize("before", [PLAIN, MIXED, OTHER], ids=["plain", "mixed", "other"])
def test_settings_as_a_change_lead_back_to_them_from_anywhere(settings: Settings, before: Settings) -> None:
    assert settings.as_change().apply(before) == settings
