"""Names, labels and values of the metrics, as a scraper sees them."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from rearview.contract.scaling import Why
from rearview.errors import DropReason, Reason
from rearview.telemetry.exposition import serve_metrics
from rearview.telemetry.metrics import FrameRate, Metrics, new_registry
from support.require import skip_or_fail

pytestmark = pytest.mark.unit


class Clock:
    """Seconds that only the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def used() -> Metrics:
    """Metrics with a value in every series."""
    metrics = Metrics(new_registry(), clock=Clock())
    metrics.frame_translated("pocket", 0.040)
    metrics.frame_jitter_seconds.labels("pocket").observe(0.002)
    metrics.first_picture_seconds.labels("pocket").observe(0.4)
    metrics.play_seconds.labels("alpha", "played").inc(10)
    metrics.frame_dropped(DropReason.LATE)
    metrics.open_refused(Reason.NO_CAPACITY)
    metrics.calls_ended.labels("idle").inc()
    metrics.file_reloads.labels("tenants", "good").inc()
    metrics.span_queue_seconds.labels("fused").observe(0.001)
    metrics.span_compute_seconds.labels("fused").observe(0.030)
    metrics.batch_rows.labels("fused").observe(3)
    metrics.forward_seconds.labels("fused").observe(0.03)
    metrics.queue_age_seconds.labels("fused").set(0.01)
    metrics.outputs_forgotten.labels("fused").inc(3)
    metrics.replica_started("fused", 16, 8)
    metrics.slots_used.labels("fused").set(2)
    metrics.sessions.count = lambda: {("alpha", "streaming"): 2}
    metrics.sessions_opened.labels("alpha").inc(2)
    metrics.sessions_closed.labels("alpha").inc()
    metrics.usage_frames.labels("alpha", "translated").inc()
    metrics.usage_pixel_steps.labels("alpha").inc(8192)
    metrics.usage_device_seconds.labels("alpha").inc(0.03)
    metrics.streams_open.inc()
    metrics.image_codec_seconds.labels("decode").observe(0.001)
    metrics.link_bytes.labels("fused", "sent").inc(4096)
    metrics.session_move_seconds.labels("recovery", "exact").observe(0.2)
    metrics.checkpoint_seconds.observe(0.05)
    metrics.checkpoint_bytes.inc(4096)
    metrics.replicas_condemned.labels("fused", "hung").inc()
    metrics.replicas_decided("fused", 3, 1, Why.LOAD)
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    text = generate_latest(metrics.registry).decode()
    return {f.name: f for f in text_string_to_metric_families(text) if f.name.startswith("rearview_")}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_names_are_lower_case_with_base_units_and_help() -> None:
    for family in families(used()).values():
        assert re.fullmatch(r"rearview(_[a-z]+)+", family.name)
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|millis|milliseconds|kb|kib|count|sum|bucket|info)$", family.name)


def test_counters_alone_end_in_total() -> None:
    for family in families(used()).values():
        names = {sample.name for sample in family.samples if not sample.name.endswith("_created")}
        if family.type == "counter":
            assert all(name.endswith("_total") for name in names)
        else:
            assert not any(name.endswith("_total") for name in names)


def test_every_metric_has_a_series_once_used() -> None:
    assert all(family.samples for family in families(used()).values())


def test_labels_have_bounded_values() -> None:
    allowed = {"model", "span", "outcome", "reason", "tenant", "operation", "peer", "direction", "le"}
    allowed |= {"kind", "continuity", "file", "cause", "state", "why"}
    for family in families(used()).values():
        for sample in family.samples:
            assert set(sample.labels) <= allowed, sample


@pytest.mark.parametrize("name", ["rearview_frame_latency_seconds", "rearview_span_compute_seconds"])
def test_buckets_separate_one_to_three_frame_intervals(name: str) -> None:
    samples = families(used())[name].samples
    bounds = {float(s.labels["le"]) for s in samples if s.name.endswith("_bucket")}
    assert {0.033, 0.066, 0.1} <= bounds


def test_frames_are_counted_by_outcome_and_reason() -> None:
    metrics = Metrics(new_registry())
    for _ in range(3):
        metrics.frame_translated("pocket", 0.05)
    metrics.frame_dropped(DropReason.SUPERSEDED)
    metrics.frame_dropped(DropReason.LATE)
    assert value(metrics, "rearview_frames_total", outcome="translated") == 3
    assert value(metrics, "rearview_frames_total", outcome="dropped") == 2
    assert value(metrics, "rearview_frames_dropped_total", reason="superseded") == 1
    assert value(metrics, "rearview_frame_latency_seconds_count", model="pocket") == 3
    assert value(metrics, "rearview_frame_latency_seconds_bucket", model="pocket", le="0.04") == 0


def test_drop_reasons_start_at_zero_so_that_rates_see_the_first() -> None:
    metrics = Metrics(new_registry())
    for reason in DropReason:
        assert value(metrics, "rearview_frames_dropped_total", reason=reason.name.lower()) == 0


def test_frames_per_second_follows_the_last_seconds() -> None:
    clock = Clock()
    metrics = Metrics(CollectorRegistry(), clock=clock)
    for _ in range(150):
        clock.now += 1 / 30
        metrics.frame_translated("pocket", 0.05)
    assert value(metrics, "rearview_frames_per_second") == pytest.approx(30, abs=0.5)
    clock.now += 10
    assert value(metrics, "rearview_frames_per_second") == 0


def test_frame_rate_keeps_no_more_than_its_window() -> None:
    clock = Clock()
    rate = FrameRate(2.0, clock)
    for _ in range(1_000):
        clock.now += 0.1
        rate.count()
    assert len(rate._times) <= 21


def test_two_replicas_in_one_process_do_not_share_values() -> None:
    first, second = Metrics(new_registry()), Metrics(new_registry())
    first.streams_open.inc()
    assert value(second, "rearview_streams_open") == 0


def test_the_process_reports_its_own_memory() -> None:
    assert (used().registry.get_sample_value("process_resident_memory_bytes") or 0) > 1e6


def test_metrics_are_served_on_a_free_port_until_closed() -> None:
    server = serve_metrics(used().registry)
    url = f"http://127.0.0.1:{server.port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            assert b'rearview_slots_used{span="fused"} 2.0' in response.read()
    finally:
        server.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=10)


def test_promtool_finds_nothing() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        skip_or_fail("promtool is not installed (Debian: apt install prometheus)")
    text = generate_latest(used().registry)
    result = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=30, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
