"""What rows say about targets, and the table that is made of them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from rearview.engine.engine import Order

from loadtest.device_time import busy_share
from loadtest.engine_cells import Cell
from loadtest.engine_table import engine_markdown
from loadtest.engine_targets import TARGETS, figures, problems
from loadtest.figures import Figure, ResultFile
from loadtest.peers import DIFFUSERS, Peer
from loadtest.report import BEGIN_ENGINE, END, insert, markdown

pytestmark = pytest.mark.unit

WHERE = "sd15, 512², float16, NVIDIA H200"


def cell_row(cell: Cell, fps: float, **more: Any) -> dict[str, Any]:
    row = {"name": cell.name, "kind": "cell", **asdict(cell), "order": cell.order.value, "problem": ""}
    measured = {"fps": fps, "latency_p50_ms": 10.0, "latency_p95_ms": 12.0, "share_of_bound": 0.5}
    rest = {"idle_share": None, "accelerated_share": 1.0, "memory_mib": 4000.0, "window_ms": None}
    return row | measured | rest | {"check": {"rms_levels": 0.1}} | more


def peer_row(peer: Peer, fps: float) -> dict[str, Any]:
    row = {"name": peer.name, "kind": "peer", **asdict(peer), "problem": "", "fps": fps}
    return row | {"latency_p50_ms": 10.0, "latency_p95_ms": 12.0, "share_of_bound": 0.1, "memory_mib": None}


def reached(rows: list[dict[str, Any]], size: str = "sd15", kind: str = "cuda") -> dict[str, Figure]:
    found = [Figure(**figure) for figure in figures(rows, size, kind, WHERE)]
    return {figure.what: figure for figure in found if figure.target is not None}


def test_the_best_accelerator_counts_and_is_named() -> None:
    rows = [
        cell_row(Cell("plain", 4, 8, accelerator="graphs"), 90.0, share_of_bound=0.4, idle_share=0.02),
        cell_row(Cell("plain", 4, 16, accelerator="compiled graphs"), 120.0, share_of_bound=0.52),
        cell_row(Cell("plain", 4, 4, accelerator="graphs"), 500.0, share_of_bound=0.9),
    ]
    found = reached(rows)
    share = found["plain, 4 steps, from 8 sessions on: share of the bound"]
    assert (share.value, share.target, share.met) == (52.0, 45.0, True)
    assert "16 sessions, compiled graphs" in share.setting
    assert found["plain, 4 steps, from 8 sessions on"].value == 120.0
    idle = found["device idle at 8 sessions, 4 steps"]
    assert (idle.value, idle.met) == (2.0, True)
    assert "Live2Diff, 2 steps, from 8 sessions on" not in found


def test_the_device_is_idle_as_long_as_beside_the_fastest_networks() -> None:
    """Slow ones hide what the host takes."""
    rows = [
        cell_row(Cell("plain", 4, 8, accelerator="graphs"), 60.0, idle_share=0.02),
        cell_row(Cell("plain", 4, 8, accelerator="compiled graphs"), 90.0, idle_share=0.12),
    ]
    assert reached(rows)["device idle at 8 sessions, 4 steps"].value == 12.0


def test_a_wrong_row_reaches_nothing() -> None:
    rows = [cell_row(Cell("plain", 4, 8), 900.0, share_of_bound=0.9, problem="pictures deviate")]
    assert figures(rows, "sd15", "cuda", WHERE) == []
    assert problems(rows) == ["plain, 4 steps, 8 sessions, eager: pictures deviate"]


def test_peers_are_compared_at_their_own_batch_and_the_worst_counts() -> None:
    rows = [
        cell_row(Cell("plain", 4, 1), 40.0),
        cell_row(Cell("plain", 4, 8), 100.0),
        peer_row(Peer(DIFFUSERS, 4, 1, "eager"), 8.0),
        peer_row(Peer(DIFFUSERS, 4, 1, "compiled graphs"), 20.0),
        peer_row(Peer(DIFFUSERS, 4, 8, "compiled"), 125.0),
    ]
    found = reached(rows)
    assert found["one session over diffusers' loop, eager, one picture at a time"].value == 5.0
    compiled = found["over diffusers' loop, compiled, at equal batch"]
    assert (compiled.value, compiled.met) == (0.8, False)
    assert "batch 8" in compiled.setting


def test_a_paced_stream_is_compared_with_stream_batch_order() -> None:
    rows = [
        cell_row(Cell("plain", 4, 1, paced_fps=30.0), 30.0, latency_p50_ms=28.0),
        cell_row(Cell("plain", 4, 1, Order.STREAM_BATCH, paced_fps=30.0), 30.0, latency_p50_ms=112.0),
        cell_row(Cell("plain", 4, 1), 30.0, latency_p50_ms=1.0),
    ]
    found = reached(rows)
    assert found["one stream at 30 FPS, 4 steps: latency, p50"].value == 28.0
    assert found["the same over stream-batch order"].value == 0.25


def test_rows_together_are_compared_with_the_same_one_by_one() -> None:
    mixed = Cell("streamv2v", 0, 4)
    rows = [cell_row(mixed, 30.0), cell_row(replace(mixed, max_batch=1), 20.0)]
    for size, kind in (("sd15", "cuda"), ("smoke", "cpu")):
        assert reached(rows, size, kind)["mixed sessions together over one by one"].value == 1.5
    assert reached(rows[:1], "smoke", "cpu") == {}


def test_targets_are_of_a_gpu_and_of_one_size() -> None:
    rows = [cell_row(Cell("plain", 4, 8), 900.0)]
    assert reached(rows, "smoke") == reached(rows, kind="cpu") == {}


def test_a_warm_up_and_the_error_of_a_smaller_cache_are_figures() -> None:
    cell = Cell("live2diff", 2, 1, storage="float8_e4m3fn")
    found = figures([cell_row(cell, 9.0, window_ms=250.0)], "smoke", "cpu", WHERE)
    assert [(figure["value"], figure["unit"]) for figure in found] == [
        (9.0, "FPS"),
        (250.0, "ms"),
        (0.1, "levels"),
    ]


def result(name: str, rows: list[dict[str, Any]]) -> ResultFile:
    detail = {"device": "NVIDIA H200", "size": "sd15", "pixels": 512, "dtype": "float16", "threads": 1}
    detail |= {"torch": "2.11.0", "diffusers": "0.42", "peak_tflops": 750.0, "rows": rows}
    found = [Figure(**figure) for figure in figures(rows, "sd15", "cuda", WHERE)]
    return ResultFile.of(name, "python -m loadtest.engine_bench", found, detail, problems(rows))


def test_the_table_has_rows_targets_and_what_was_not_measured() -> None:
    rows = [
        cell_row(Cell("plain", 4, 8, accelerator="graphs"), 110.25, idle_share=0.031),
        peer_row(Peer(DIFFUSERS, 4, 1, "eager"), 8.0),
        {"name": "both, 4 steps, 64 sessions, eager", "kind": "cell", "problem": "MemoryError: no room"},
    ]
    text = engine_markdown([result("engine_h200", rows)])
    assert "| plain, 4 steps, 8 sessions, graphs | 110 | 10.0 | 12.0 | 50.0 % | 3.1 % | 100.0 % |" in text
    assert "| plain, 4 steps, from 8 sessions on | 110 FPS | ≥ 102 FPS | met |" in text
    assert "| Live2Diff, 2 steps, from 8 sessions on | not yet measured | ≥ 110 FPS | |" in text
    assert "| both, 4 steps, 64 sessions, eager | failed |" in text
    assert "Not to be relied on:** both, 4 steps" in text
    assert "### CPU\n\nnot yet measured." in text
    assert text.count("mixed sessions together") == 1


def test_one_command_puts_it_into_the_document() -> None:
    document = f"before\n{BEGIN_ENGINE}\nold\n{END}\nafter\n"
    text = insert(document, [result("engine_h200", [])])
    assert text.startswith(f"before\n{BEGIN_ENGINE}\n\n### NVIDIA H200")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text


def test_the_table_of_all_results_has_the_engines_targets_alone() -> None:
    rows = [cell_row(Cell("plain", 4, 8, accelerator="graphs"), 110.25)]
    text = markdown([result("engine_h200", rows)])
    assert "| plain, 4 steps, from 8 sessions on |" in text
    assert "engine, plain" not in text


def test_every_target_has_a_name_of_its_own() -> None:
    assert len({target.what for target in TARGETS}) == len(TARGETS)


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0.0, 1.0), (1.0, 2.0)], 1.0),
        ([(0.0, 1.0), (3.0, 4.0)], 0.5),
        ([(3.0, 4.0), (0.0, 4.0), (1.0, 2.0)], 1.0),
        ([(0.0, 2.0), (1.0, 3.0), (9.0, 10.0)], 0.4),
        ([(5.0, 5.0)], 1.0),
    ],
)
def test_what_overlaps_is_busy_once(spans: list[tuple[float, float]], share: float) -> None:
    assert busy_share(spans) == pytest.approx(share)


def test_adapters_are_held_against_as_many_sessions_on_the_same_networks() -> None:
    what = "a frame under an adapter set of rank 16 over one without"
    rows = [
        cell_row(Cell("plain", 4, 1, accelerator="graphs"), 40.0),
        cell_row(Cell("plain", 4, 8), 60.0),
        cell_row(Cell("plain", 4, 8, accelerator="graphs"), 110.0),
        cell_row(Cell("adapters", 4, 8, accelerator="graphs"), 100.0),
    ]
    assert (reached(rows)[what].value, reached(rows)[what].met) == (pytest.approx(1.1), True)
    rows.append(cell_row(Cell("adapters", 4, 1, accelerator="graphs"), 32.0))
    assert (reached(rows)[what].value, reached(rows)[what].met) == (1.25, False)
