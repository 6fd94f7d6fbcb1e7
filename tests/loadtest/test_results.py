"""Results: merged, stored, read again and judged."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from rich.console import Console

from loadtest.histograms import LARGEST_S, Histograms
from loadtest.ledger import StreamResult
from loadtest.results import LoadResult, jain

pytestmark = pytest.mark.unit


def result(stream: int, latencies_ms: list[float], **fields: object) -> LoadResult:
    histograms = Histograms()
    for latency in latencies_ms:
        histograms.record("latency", latency / 1e3)
    count = len(latencies_ms)
    made = StreamResult(stream, due=count, sent=count, translated=count, end="OK", seconds=1.0)
    for name, value in fields.items():
        setattr(made, name, value)
    return LoadResult([made], histograms)


def printed(load: LoadResult) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(load.render())
    return console.export_text()


def test_parts_merged_have_the_percentiles_of_the_whole() -> None:
    low, high = [float(ms) for ms in range(1, 501)], [float(ms) for ms in range(501, 1001)]

    merged = LoadResult.merge([result(1, high), result(0, low)])
    whole = result(0, low + high)

    for percentile in (50.0, 90.0, 99.0, 99.9):
        assert merged.histograms.percentile_ms("latency", percentile) == whole.histograms.percentile_ms(
            "latency", percentile
        )
    assert merged.histograms.percentile_ms("latency", 90) == pytest.approx(900, rel=0.002)
    assert [stream.stream for stream in merged.streams] == [0, 1]
    assert merged.translated == 1000


def test_a_result_that_went_through_json_is_the_same() -> None:
    before = result(3, [1.0, 2.0, 70.0], dropped=Counter(late=2), violations=Counter(missing=1))
    before.server_cpu_s = 1.5

    after = LoadResult.from_json(json.loads(json.dumps(before.to_json())))

    assert after.summary() == before.summary()
    assert after.streams == before.streams
    assert after.server_cpu_s == 1.5


def test_a_duration_beyond_the_largest_is_kept_as_the_largest() -> None:
    histograms = Histograms()
    histograms.record("latency", 10 * LARGEST_S)
    histograms.record("latency", -1.0)

    assert histograms.count("latency") == 2
    assert histograms.max_ms("latency") == pytest.approx(LARGEST_S * 1e3, rel=0.01)
    assert histograms.percentile_ms("latency", 1) == 0


@pytest.mark.parametrize(
    ("fps", "fairness"), [([30.0, 30.0], 1.0), ([30.0, 0.0], 0.5), ([1.0, 0.0, 0.0, 0.0], 0.25)]
)
def test_fairness_is_one_for_equals_and_one_nth_when_one_has_all(fps: list[float], fairness: float) -> None:
    assert jain(fps) == pytest.approx(fairness)


def test_fairness_of_nothing_is_not_a_number_and_stays_out_of_json() -> None:
    assert math.isnan(jain([0.0, 0.0]))
    assert LoadResult([StreamResult(0)]).summary()["fairness_jain"] is None


def test_a_clean_run_has_no_problems() -> None:
    assert result(0, [1.0]).problems == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"violations": Counter(duplicate=2)}, "2 x duplicate"),
        ({"end": "UNAVAILABLE"}, "stream ended with UNAVAILABLE"),
        ({"translated": 0}, "no picture came back"),
    ],
)
def test_what_makes_a_figure_worthless_is_said_and_printed(fields: dict[str, object], problem: str) -> None:
    load = result(0, [1.0], **fields)

    assert load.problems == [problem]
    assert f"problem: {problem}" in printed(load)


def test_a_client_that_was_late_itself_makes_the_run_worthless() -> None:
    load = result(0, [1.0])
    load.histograms.record("client_lateness", 0.050)

    assert load.problems == ["client lateness p99 50.0 ms > 5 ms"]


def test_cpu_per_frame_is_known_only_when_someone_watched() -> None:
    load = result(0, [1.0, 1.0])
    assert load.cpu_ms_per_frame is None

    load.server_cpu_s = 0.010
    assert load.cpu_ms_per_frame == pytest.approx(5.0)


def test_the_table_shows_the_percentiles_and_the_counts() -> None:
    text = printed(result(0, [2.0] * 99 + [80.0], dropped=Counter(late=7)))

    assert "p99.9" in text
    assert "80.0" in text
    assert "dropped late 7" in text
