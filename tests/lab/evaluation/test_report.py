"""The table of methods: ratios, guards and the forms in which it leaves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("cv2")
pytest.importorskip("skimage")
from rearview_lab.evaluation.metrics import Drift, Scores
from rearview_lab.evaluation.parts import Floor, Run
from rearview_lab.evaluation.report import ALL_STYLES, Evaluation, Line

pytestmark = pytest.mark.unit

BASE = Scores(0.030, 0.20, 0.040, 0.95, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
FLOOR = Floor("pan", replace(BASE, warp_error=0.004), replace(BASE, warp_error=0.010))


def evaluation(*banked: Scores, floors: tuple[Floor, ...] = (FLOOR,)) -> Evaluation:
    """One style a banked score, each beside the same per-frame one."""
    runs = []
    for index, scores in enumerate(banked):
        runs += [
            Run("pan", "per frame", "fixed", f"style {index}", BASE),
            Run("pan", "streamv2v", "fixed", f"style {index}", scores),
        ]
    return Evaluation({"checkpoint": "tiny"}, floors=list(floors), runs=runs)


def line(found: Evaluation, method: str = "streamv2v", style: str = "style 0") -> Line:
    (one,) = [each for each in found.lines() if (each.method, each.style) == (method, style)]
    return one


def test_excess_is_above_the_autoencoder_and_relative_to_per_frame() -> None:
    found = evaluation(replace(BASE, warp_error=0.022))
    assert line(found, "per frame").excess == pytest.approx(0.020)
    assert line(found, "per frame").excess_ratio is None
    banked = line(found)
    assert banked.excess == pytest.approx(0.012)
    assert banked.excess_ratio == pytest.approx(0.6)
    assert banked.keeps_look
    assert banked.reaches_goal


@pytest.mark.parametrize("change", [{"gradient": 0.037}, {"gradient": 0.043}, {"input_difference": 0.195}])
def test_blur_and_another_look_do_not_win(change: dict[str, float]) -> None:
    banked = line(evaluation(replace(BASE, warp_error=0.012, **change)))
    assert banked.excess_ratio == pytest.approx(0.1)
    assert not banked.keeps_look
    assert not banked.reaches_goal


def test_a_base_without_excess_gives_no_ratio() -> None:
    high = replace(FLOOR, autoencoder=replace(BASE, warp_error=0.031))
    banked = line(evaluation(replace(BASE, warp_error=0.020), floors=(high,)))
    assert banked.excess == pytest.approx(-0.011)
    assert banked.excess_ratio is None
    assert banked.reaches_goal is None


def test_the_last_lines_are_means_over_styles() -> None:
    found = evaluation(replace(BASE, warp_error=0.022), replace(BASE, warp_error=0.026))
    assert line(found, style=ALL_STYLES).excess == pytest.approx(0.014)
    assert line(found, style=ALL_STYLES).excess_ratio == pytest.approx(0.7)
    assert ALL_STYLES not in {one.style for one in evaluation(BASE).lines()}


def test_json_has_every_table_and_no_numbers_that_are_none(tmp_path: Path) -> None:
    found = evaluation(replace(BASE, warp_error=math.nan))
    found.drift = {"streamv2v": {"style 0": Drift(BASE, replace(BASE, warp_error=0.033))}}
    found.write_json(tmp_path / "new" / "eval.json")
    content = json.loads((tmp_path / "new" / "eval.json").read_text())
    assert content["table"][1]["scores"]["warp_error"] is None
    assert content["floors"][0]["autoencoder"]["warp_error"] == 0.01
    assert content["drift"]["streamv2v"]["style 0"]["worst"] == pytest.approx(0.1)
    assert content["drift"]["streamv2v"]["style 0"]["holds"] is False
    assert content["classifier"] is None


def test_markdown_has_one_table_a_part(tmp_path: Path) -> None:
    found = evaluation(replace(BASE, warp_error=0.022))
    found.autoencoder_db = {"coffee": 27.1}
    found.write_markdown(tmp_path / "eval.md")
    text = (tmp_path / "eval.md").read_text()
    assert text.count("\n|---|") == 3
    assert "| fixed | style 0 | streamv2v | 0.0220 | 0.0120 | 0.60 |" in text
    assert "| mean | 27.1 |" in text
