"""A score: read, checked, and written as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.client.scores import read_score, write_score
from rearview.contract.memories import BankOptions, CacheOptions, Rewarm
from rearview.contract.methods import Method
from rearview.contract.opening import OpenRequest
from rearview.contract.plain import from_plain, plain
from rearview.contract.score import Event, Score
from rearview.contract.settings import Guidance, NoiseRule, SettingsChange, WeightedPrompt
from rearview.contract.stream import DropPolicy
from rearview.errors import InvalidRequest, Reason

pytestmark = pytest.mark.unit

EXAMPLE = Path(__file__).parents[1] / "studio" / "score.json"
"""The page's module is checked against it too."""


def content(**changes: Any) -> dict[str, Any]:
    return {**json.loads(EXAMPLE.read_text(encoding="utf-8")), **changes}


def test_the_example_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    score = read_score(EXAMPLE)
    assert score.plain() == json.loads(EXAMPLE.read_text(encoding="utf-8"))
    write_score(tmp_path / "again.json", score)
    assert read_score(tmp_path / "again.json") == score


def test_the_example_says_what_it_says() -> None:
    score = read_score(EXAMPLE)
    assert (score.frame_rate, score.source) == (30, "walk.mp4")
    assert score.open == OpenRequest(
        settings=SettingsChange(prompt="oil painting", strength=0.5, steps=2, seed=7),
        width=320,
        height=192,
        max_steps=4,
        jpeg_quality=90,
        method=Method.LIVE2DIFF,
        feature_bank=BankOptions(interval=2, fusion_strength=0.5),
        temporal_cache=CacheOptions(prompt_change=Rewarm.SHADOW, instant_start=True),
    )
    assert [event.frame for event in score.events] == [0, 45, 45, 90, 300]
    assert score.events[1].settings == SettingsChange(
        prompts=(WeightedPrompt("oil painting", 0.25), WeightedPrompt("neon lights", 0.75)), blend_frames=30
    )
    assert score.events[3].settings == SettingsChange(
        guidance=Guidance.SELF, guidance_scale=1.5, delta=0.75, noise_rule=NoiseRule.FRESH
    )


def test_options_are_those_of_a_client(tmp_path: Path) -> None:
    options = read_score(EXAMPLE).options
    assert options["method"] is Method.LIVE2DIFF
    assert (options["prompt"], options["steps"], options["width"]) == ("oil painting", 2, 320)
    assert "drop_policy" not in options
    assert "answer_credit" not in options


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"format": "midi"}, Reason.MESSAGE_INVALID, "format"),
        ({"version": 2}, Reason.MESSAGE_INVALID, "version"),
        ({"tempo": 3}, Reason.MESSAGE_INVALID, "tempo"),
        ({"frame_rate": 0}, Reason.SETTING_OUT_OF_RANGE, "frame_rate"),
        ({"frame_rate": "30"}, Reason.MESSAGE_INVALID, "frame_rate"),
        ({"frame_rate": float("nan")}, Reason.MESSAGE_INVALID, "frame_rate"),
        ({"frame_rate": float("inf")}, Reason.MESSAGE_INVALID, "frame_rate"),
        ({"frame_rate": 10**400}, Reason.MESSAGE_INVALID, "frame_rate"),
        ({"open": {"width": -(10**400)}}, Reason.MESSAGE_INVALID, "open.width"),
        ({"source": 3}, Reason.MESSAGE_INVALID, "source"),
        ({"open": []}, Reason.MESSAGE_INVALID, "open"),
        ({"open": {"width": 2.5}}, Reason.MESSAGE_INVALID, "open.width"),
        ({"open": {"method": "magic"}}, Reason.MESSAGE_INVALID, "open.method"),
        ({"open": {"settings": {"steps": True}}}, Reason.MESSAGE_INVALID, "open.settings.steps"),
        ({"open": {"settings": {"strength": 1.5}}}, Reason.SETTING_OUT_OF_RANGE, "open.settings.strength"),
        ({"events": {}}, Reason.MESSAGE_INVALID, "events"),
        ({"events": [{"settings": {}}]}, Reason.MESSAGE_INVALID, "events[0].frame"),
        ({"events": [{"frame": -1, "settings": {}}]}, Reason.MESSAGE_INVALID, "events[0].frame"),
        (
            {"events": [{"frame": 4, "settings": {}}, {"frame": 3, "settings": {}}]},
            Reason.MESSAGE_INVALID,
            "events[1].frame",
        ),
        (
            {"events": [{"frame": 4, "settings": {"delta": 11}}]},
            Reason.SETTING_OUT_OF_RANGE,
            "events[0].settings.delta",
        ),
        (
            {"events": [{"frame": 4, "settings": {"prompts": [{"prompt": "x"}]}}]},
            Reason.MESSAGE_INVALID,
            "events[0].settings.prompts[0].weight",
        ),
        (
            {
                "events": [
                    {"frame": 4, "settings": {"prompt": "x", "prompts": [{"prompt": "y", "weight": 1}]}}
                ]
            },
            Reason.SETTING_OUT_OF_RANGE,
            "events[0].settings.prompt",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(changes: dict[str, Any], reason: Reason, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Score.parse(content(**changes))
    assert (caught.value.reason, caught.value.metadata["field"]) == (reason, field)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\x00", "[" * 10_000])
def test_a_file_that_is_no_score_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "take.json"
    path.write_text(text)
    with pytest.raises((InvalidRequest, OSError), match=r"take\.json"):
        read_score(path)


prompts = st.text(min_size=1, max_size=9)
mixes = st.lists(
    st.builds(WeightedPrompt, prompts, st.floats(0.01, 1000.0, allow_nan=False)), min_size=1, max_size=8
).map(tuple)
changes = st.one_of(
    st.builds(SettingsChange, prompt=prompts, strength=st.floats(0.01, 1.0), seed=st.integers(0, 2**64 - 1)),
    st.builds(SettingsChange, prompts=mixes, guidance=st.sampled_from(Guidance)),
)
requests = st.builds(
    OpenRequest, settings=changes, method=st.sampled_from(Method), drop_policy=st.sampled_from(DropPolicy)
)


@given(requests, st.lists(changes, max_size=4))
def test_every_score_comes_back_as_it_was(request: OpenRequest, settings: list[SettingsChange]) -> None:
    events = tuple(Event(frame, change) for frame, change in enumerate(settings))
    score = Score(frame_rate=24.5, open=request, events=events)
    assert Score.parse(json.loads(json.dumps(score.plain()))) == score
    assert from_plain(OpenRequest, plain(request)) == request
