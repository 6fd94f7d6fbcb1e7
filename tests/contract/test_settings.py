"""Settings by themselves: what is in range, and which changes are no business of the engine's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.contract.controls import MAX_CONTROLS, WeightedControl
from rearview.contract.reference import (
    MAX_MASK_BYTES,
    MAX_PICTURE_BYTES,
    NO_IMAGE,
    ImageFile,
    check_reference,
)
from rearview.contract.settings import Settings, SettingsChange, WeightedPrompt
from rearview.errors import InvalidRequest, Reason
from rearview.schema import from_message, to_message
from rearview.schema.tables import SETTINGS

pytestmark = pytest.mark.unit

PLAIN = Settings(prompt="a", steps=1)
MIXED = Settings(prompts=(WeightedPrompt("a", 1.0), WeightedPrompt("b", 2.0)), blend_frames=3)
OTHER = Settings(prompt="c", seed=9)
CONTROLLED = Settings(prompt="a", controls=(WeightedControl("tile", 0.5), WeightedControl("edges")))

FACE = ImageFile.of(bytes(range(256)))
REFERRING = Settings(prompt="a", reference=FACE, reference_scale=0.6, reference_mask=ImageFile.of(b"mask"))


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
    others = {"prompt": "b", "seed": 1, "adapters": "ink", "scene": 1, "delta": 0.5, "reference": FACE}
    for name, value in others.items():
        assert replace(PLAIN, **{name: value}).pictured != PLAIN.pictured, name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [PLAIN, MIXED, CONTROLLED, REFERRING], ids=["prompt", "mix", "controls", "reference"]
)
@pytest.mark.parametrize(
    "before",
    [PLAIN, MIXED, OTHER, CONTROLLED, REFERRING],
    ids=["plain", "mixed", "other", "controlled", "referring"],
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


def test_a_scale_moves_without_the_picture_and_a_picture_can_be_taken_away() -> None:
    louder = SettingsChange(reference_scale=1.5).apply(REFERRING)
    assert (louder.reference, louder.reference_scale) == (FACE, 1.5)
    off = SettingsChange(reference=NO_IMAGE)
    message = to_message(SETTINGS, off)
    assert (message.HasField("reference"), message.reference) == (True, b"")
    read = from_message(SETTINGS, SettingsChange, message, refuses=True)
    assert read == off
    assert not read.apply(REFERRING).refers


def test_a_picture_travels_as_its_bytes() -> None:
    message = to_message(SETTINGS, REFERRING.as_change())
    assert message.reference == FACE.data == bytes(range(256))
    assert from_message(SETTINGS, SettingsChange, message, refuses=True).apply(PLAIN) == REFERRING


@pytest.mark.parametrize("scale", [-0.1, 2.1, float("nan")])
def test_scales_out_of_range_are_refused_by_their_name(scale: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SettingsChange(reference_scale=scale).apply(PLAIN)
    assert caught.value.metadata == {"field": "reference_scale"}


def test_another_picture_is_a_change_of_style_and_another_scale_is_none() -> None:
    styles = {
        replace(REFERRING, **change).style  # type: ignore[arg-type]
        for change in ({}, {"reference_scale": 1.0}, {"reference_mask": NO_IMAGE})
    }
    assert styles == {REFERRING.style}
    others = [
        replace(REFERRING, **change).style  # type: ignore[arg-type]
        for change in ({"reference": ImageFile.of(b"other")}, {"reference_scale": 0.0}, {"adapters": "ink"})
    ]
    assert len({REFERRING.style, *others}) == 4
    assert others[1] == PLAIN.style


@pytest.mark.parametrize("size", range(6))
def test_a_file_knows_its_size_and_shows_nobody_its_content(size: int) -> None:
    file = ImageFile.of(bytes(size))
    assert (file.num_bytes, len(file.data), bool(file)) == (size, size, size > 0)
    assert repr(ImageFile.of(b"secret")) == "ImageFile()"


@pytest.mark.parametrize("text", ["a", "é", "====", "ab cd"])
def test_text_that_is_no_file_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ImageFile(text)
    assert caught.value.reason is Reason.REFERENCE_INVALID


def test_pictures_are_refused_without_an_adapter_and_beyond_their_size() -> None:
    check_reference(NO_IMAGE, NO_IMAGE, has_adapter=False)
    most = ImageFile.of(bytes(MAX_PICTURE_BYTES)), ImageFile.of(bytes(MAX_MASK_BYTES))
    check_reference(*most, has_adapter=True)
    for pair in ((FACE, NO_IMAGE), (NO_IMAGE, FACE)):
        with pytest.raises(InvalidRequest) as caught:
            check_reference(*pair, has_adapter=False)
        assert caught.value.reason is Reason.REFERENCE_UNSUPPORTED
    over = ImageFile.of(bytes(MAX_PICTURE_BYTES + 1)), ImageFile.of(bytes(MAX_MASK_BYTES + 1))
    for pair, field in (((over[0], NO_IMAGE), "reference"), ((FACE, over[1]), "reference_mask")):
        with pytest.raises(InvalidRequest) as caught:
            check_reference(*pair, has_adapter=True)
        assert caught.value.reason is Reason.REFERENCE_TOO_LARGE
        assert caught.value.metadata["field"] == field
