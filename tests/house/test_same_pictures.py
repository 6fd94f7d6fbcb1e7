"""What compares two versions' pictures sees every difference, asks for enough, and outlives moved modules."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import same_pictures
from numpy.typing import NDArray
from pictures.compare import compare, read_pictures, table, write_pictures
from pictures.scenarios import SCENARIOS, Scenario
from pictures.services import NUM_FRAMES, SERVICES
from rearview.client import CacheOptions, Guidance, Method, NoiseRule, Rewarm
from support.require import skip_or_fail

NOISES = {NoiseRule.FIXED, NoiseRule.FRESH}
"""That the commits know which are compared: FIRST is newer."""

pytestmark = pytest.mark.unit

FRAMES = 3
STAYS = {"rearview", "rearview.client", "rearview.config", "rearview.local", "rearview.samples"}
"""Modules that a refactoring must leave where they are."""
KINDS = {
    (method, has_bank)
    for method in (Method.PER_FRAME, Method.STREAMV2V, Method.LIVE2DIFF)
    for has_bank in (False, True)
    if has_bank or method is not Method.STREAMV2V
    if not has_bank or method is not Method.PER_FRAME
}


def pictures() -> dict[int, NDArray[np.uint8]]:
    values = np.random.default_rng(0).integers(1, 255, (FRAMES, 4, 6, 3), np.uint8)
    return dict(enumerate(values))


def kind(scenario: Scenario) -> tuple[Method, bool]:
    return scenario.options["method"], "feature_bank" in scenario.options


def imported(source: str) -> Iterator[str]:
    """Modules of `rearview` that a file's text imports."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name for name in names if name.split(".")[0] == "rearview")


def test_equal_pictures_are_equal(tmp_path: Path) -> None:
    write_pictures(tmp_path, "s", pictures())
    verdict = compare("s", FRAMES, pictures(), read_pictures(tmp_path, "s"))
    assert verdict.is_equal
    assert verdict.digests[0] == verdict.digests[1]
    assert list(table([verdict]))[1].endswith("equal")


@pytest.mark.parametrize("change", [1, -1])
def test_one_level_in_one_value_is_seen(change: int) -> None:
    found = pictures()
    found[1][2, 3, 0] = int(found[1][2, 3, 0]) + change
    verdict = compare("s", FRAMES, pictures(), found)
    assert not verdict.is_equal
    assert (verdict.different, verdict.missing, verdict.max_levels) == ([1], [], 1)
    assert "1 differ, first 1" in list(table([verdict]))[1]
    assert verdict.digests[0] != verdict.digests[1]


@pytest.mark.parametrize("sides", ["other", "this", "both"])
def test_a_missing_frame_is_seen_on_either_side_and_on_both(sides: str) -> None:
    expected, found = pictures(), pictures()
    if sides != "this":
        del expected[2]
    if sides != "other":
        del found[2]
    verdict = compare("s", FRAMES, expected, found)
    assert not verdict.is_equal
    assert (verdict.different, verdict.missing) == ([], [2])


def test_a_scenario_that_failed_misses_every_frame(tmp_path: Path) -> None:
    assert compare("s", FRAMES, pictures(), read_pictures(tmp_path, "s")).missing == [0, 1, 2]


def test_a_picture_of_another_size_differs() -> None:
    found = pictures() | {0: np.zeros((4, 4, 3), np.uint8)}
    assert compare("s", FRAMES, pictures(), found).different == [0]


def test_every_method_meets_every_kind_of_guidance_noise_and_change() -> None:
    assert {kind(scenario) for scenario in SCENARIOS} == KINDS
    for each in KINDS:
        its = [scenario for scenario in SCENARIOS if kind(scenario) == each]
        changed = {name for one in its for change in one.changes.values() for name in change}
        assert {one.service for one in its} == set(SERVICES)
        assert {one.options.get("guidance", Guidance.NONE) for one in its} == set(Guidance)
        assert {one.options["noise_rule"] for one in its if "noise_rule" in one.options} == NOISES
        assert changed >= {"prompt", "prompts", "blend_frames", "strength", "steps", "seed"}


def test_a_cache_meets_every_way_to_start_again() -> None:
    caches = [s.options["temporal_cache"] for s in SCENARIOS if "temporal_cache" in s.options]
    assert all(isinstance(cache, CacheOptions) for cache in caches)
    assert {cache.prompt_change for cache in caches} >= {Rewarm.RESET, Rewarm.KEEP}
    assert {cache.scene_cut for cache in caches} >= {Rewarm.RESET, Rewarm.SHADOW}
    assert any(cache.instant_start for cache in caches)


def test_scenarios_have_names_of_their_own_and_as_many_frames_as_there_are() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert max(scenario.frames for scenario in SCENARIOS) <= NUM_FRAMES
    for scenario in SCENARIOS:
        assert all(at < scenario.frames for at in scenario.changes)
        sent = [index for group in scenario.groups(8) for index in group]
        assert sent == list(range(scenario.frames))


def test_what_runs_on_both_sides_imports_only_what_stays(root: Path) -> None:
    files = [root / "tests/same_pictures.py", *(root / "tests/pictures").glob("*.py")]
    found = {name for file in files for name in imported(file.read_text(encoding="utf-8"))}
    assert found <= STAYS
    assert "rearview.local" in found
    planted = "from rearview.engine.card import ModelCard\nimport rearview.stages.stage"
    assert set(imported(planted)) - STAYS == {"rearview.engine.card", "rearview.stages.stage"}


def test_a_pattern_that_fits_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert same_pictures.main(["--only", "nothing-like-this"]) == 2
    assert "nothing-like-this" in capsys.readouterr().err


def test_an_unknown_commit_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("git") is None:
        skip_or_fail("there is no git")
    assert same_pictures.main(["no-such-commit"]) == 2
    assert "no-such-commit" in capsys.readouterr().err
