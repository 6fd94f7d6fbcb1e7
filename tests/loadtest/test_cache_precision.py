"""What a smaller temporal cache costs: the comparison itself, on a tiny checkpoint with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rearview.contract.settings import Settings
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_motion_files import write_motion_adapter
from typer import Exit

from loadtest.cache_precision import compare, main, resized, rms
from loadtest.figures import ResultFile
from loadtest.report import markdown

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")
    write_motion_adapter(folder / "motion_adapter")
    return folder


def test_fewer_bits_cost_more_and_fewer_pixels_too(checkpoint: Path) -> None:
    looks = [Settings(prompt, 0.9, 2, seed=1) for prompt in ("a", "b")]
    arms = {arm.name: arm for arm in compare(str(checkpoint), looks, random_frames(18))}
    exact, half, brain, eighth, none, seed, *tiers = arms.values()
    assert exact.error == 0.0
    assert 0 < half.error < brain.error < eighth.error < min(none.error, seed.error)
    assert exact.cache_bytes == 2 * half.cache_bytes == 4 * eighth.cache_bytes
    assert [tier.name for tier in tiers[::2]] == [f"frames of {side}² enlarged" for side in (48, 32)]
    assert [tier.cache_bytes / exact.cache_bytes for tier in tiers[::2]] == pytest.approx([9 / 16, 1 / 4])
    assert all(tier.error > 0 for tier in tiers)
    assert all(len(arm.errors) == 18 for arm in arms.values())


def test_its_figures_are_a_result_and_all_in_the_report(checkpoint: Path, tmp_path: Path) -> None:
    main(str(checkpoint), ["a"], frames=17, side=SIZE, threads=1, results=tmp_path)
    result = ResultFile.read(tmp_path / "cache_precision.json")
    assert len(result.figures) == 9
    assert result.detail["arms"][0]["rms_levels"] == 0.0
    table = markdown([result])
    assert all(figure.what in table for figure in result.figures)


def test_a_checkpoint_without_motion_modules_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_tiny_checkpoint(tmp_path / "plain")
    with pytest.raises((Exit, SystemExit)):
        main(str(plain), results=tmp_path)
    assert "no motion modules" in capsys.readouterr().err


def test_a_flat_picture_is_the_same_at_any_size() -> None:
    flat = torch.full((1, 3, 16, 16), 0.25)
    torch.testing.assert_close(resized(resized(flat, 8), 16), flat)
    assert rms([3.0, 4.0]) == pytest.approx(12.5**0.5)
