"""Costs kept from an earlier start: used while they hold, measured anew when they may not."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from rearview.config import ServiceConfig, load_config
from rearview.contract.chain import OperatorKind
from rearview.engine.bench import Timing
from rearview.replica import build, kept
from rearview.replica.build import build_engine
from rearview.replica.kept import MAX_AGE_S, KeptTimings, key_of
from support.tiny import SIZE, write_tiny_checkpoint

pytestmark = pytest.mark.unit

KEY = {"model": "m", "threads": 1}
TIMINGS = [
    {
        OperatorKind.ENCODE: Timing({1: 0.02, 2: 0.03}, {}, 0.0, draw_s={"edges": 0.004}),
        OperatorKind.DENOISE: Timing(
            {1: 0.04, 2: 0.07}, {8: 0.3}, 0.001, {1: 10, 2: 15}, {8: 70}, 0.013, {1: 20, 2: 25}
        ),
    },
    {OperatorKind.DECODE: Timing({1: 0.5}, {}, 0.0)},
]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def costs(tmp_path: Path, clock: Clock) -> KeptTimings:
    found = KeptTimings(KEY, tmp_path, clock)
    found.write(TIMINGS)
    return found


def test_what_was_written_is_read(costs: KeptTimings) -> None:
    assert costs.read(2) == TIMINGS


def test_of_another_key_nothing_is_known(costs: KeptTimings, tmp_path: Path, clock: Clock) -> None:
    assert KeptTimings({**KEY, "threads": 2}, tmp_path, clock).read(2) is None
    assert KeptTimings(KEY, tmp_path / "elsewhere", clock).read(2) is None


@pytest.mark.parametrize("passed_s", [MAX_AGE_S + 1, -1.0])
def test_old_ones_and_ones_of_the_future_are_not_used(
    costs: KeptTimings, clock: Clock, passed_s: float
) -> None:
    clock.now_s += passed_s
    assert costs.read(2) is None


def broken(text: str) -> list[str]:
    """Ways in which a file may be damaged."""
    content = json.loads(text)
    first = content["timings"][0]
    return [
        "",
        text[: len(text) // 2],
        "[]",
        json.dumps({**content, "format": 1}),
        json.dumps({**content, "key": {"model": "another"}}),
        json.dumps({**content, "timings": content["timings"][:1]}),
        json.dumps({**content, "timings": [{**first, "paint": first["encode"]}, content["timings"][1]]}),
        text.replace("0.02", "NaN"),
        text.replace("0.02", "-1"),
        text.replace("0.02", '"fast"'),
        text.replace('"row_s": {"1"', '"row_s": {"3"', 1),
        text.replace('"row_bytes": {"1": 10', '"row_bytes": {"1": -10'),
        text.replace('"edges": 0.004', '"edges": -0.004'),
        text.replace('"control_bytes": {"1": 20', '"control_bytes": {"1": -20'),
        "\x00" * 100,
    ]


def test_a_damaged_file_is_ignored_with_a_line_in_the_log(
    costs: KeptTimings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = (tmp_path / "costs").iterdir()
    for text in broken(path.read_text()):
        path.write_text(text)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert costs.read(2) is None, text
        assert len(caplog.records) == 1, text


def test_costs_that_cannot_be_kept_hold_up_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    costs = KeptTimings(KEY, tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        costs.write(TIMINGS)
        assert costs.read(2) is None
    assert "costs cannot be kept" in caplog.text


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("REARVIEW_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    costs = KeptTimings(KEY)
    costs.write(TIMINGS)
    assert costs.read(2) is None


@pytest.mark.parametrize(
    ("factor", "holds"), [(1.0, True), (2.5, True), (0.4, True), (4.0, False), (0.2, False)]
)
def test_they_hold_if_a_forward_takes_about_as_long_now(
    costs: KeptTimings, factor: float, holds: bool
) -> None:
    now_s = {kind: factor * timing.row_s[1] for kind, timing in TIMINGS[0].items()}
    assert costs.holds(TIMINGS[0], now_s) is holds


def test_what_takes_nothing_holds_whatever_it_takes_now(costs: KeptTimings) -> None:
    quick = {OperatorKind.ENCODE: Timing({1: 1e-5}, {}, 0.0)}
    assert costs.holds(quick, {OperatorKind.ENCODE: 1e-3})
    assert not costs.holds(quick, {OperatorKind.ENCODE: 1e-1})
    assert not costs.holds(quick, {OperatorKind.DECODE: 1e-1}), "of that nothing is known"


# -- with a real engine


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceConfig:
    monkeypatch.setenv("REARVIEW_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    return load_config(
        {
            "model": {"checkpoint": str(checkpoint), "dtype": "float32", "width": SIZE, "height": SIZE},
            "bank": {},
        }
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each time that something was measured."""
    words: list[str] = []
    real = build.measure

    def noted(*arguments: object) -> object:
        words.append("measured")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "measure", noted)
    monkeypatch.setattr(kept, "NEGLIGIBLE_S", 1.0)  # A tiny model's forwards are as long as the load allows.
    return words


def test_a_second_start_measures_nothing_and_knows_the_same_costs(
    config: ServiceConfig, measured: list[str]
) -> None:
    first = build_engine(config, config.spans[0])
    assert measured == ["measured"]
    second = build_engine(config, config.spans[0])
    assert measured == ["measured"]
    assert second.frame_cost == first.frame_cost
    assert second.frame_cost.step_s > 0
    second.check_integrity()


def test_what_does_not_hold_any_more_is_measured_and_kept_anew(
    config: ServiceConfig, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engine(config, config.spans[0])
    (path,) = Path(os.environ["REARVIEW_CACHE"], "costs").iterdir()
    content = json.loads(path.read_text())
    content["timings"][0]["denoise"]["row_s"]["1"] = 100.0
    path.write_text(json.dumps(content))
    build_engine(config, config.spans[0])
    assert measured == ["measured"] * 2
    assert json.loads(path.read_text())["timings"][0]["denoise"]["row_s"]["1"] < 100.0


def test_costs_follow_from_the_weights_the_span_the_threads_and_the_sizes(config: ServiceConfig) -> None:
    cpu, span = torch.device("cpu"), config.spans[0]
    other_model = config.model.model_copy(update={"width": 2 * SIZE})
    keys = [
        key_of(config, span, cpu),
        key_of(config, span.model_copy(update={"num_threads": 2}), cpu),
        key_of(config, span.model_copy(update={"operators": span.operators[:1]}), cpu),
        key_of(config.model_copy(update={"model": other_model}), span, cpu),
        key_of(config.model_copy(update={"bank": None}), span, cpu),
    ]
    weights = Path(config.model.checkpoint) / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    keys.append(key_of(config, span, cpu))
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)
