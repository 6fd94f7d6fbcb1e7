"""The Grafana dashboards beside this file: `python deploy/grafana/build.py [FOLDER]`; a test compares.

A dashboard is rows of panels, a panel a title, a unit and its queries with their legends. Names are those of
docs/metrics.md and of the recording rules in k8s/base/prometheus-rule.yaml.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8


@dataclass(frozen=True)
class Panel:
    """One chart."""

    title: str
    unit: str
    """As Grafana names it: s, percentunit, reqps, bytes, short."""
    queries: Mapping[str, str]
    """Legend to expression."""
    help: str = ""
    kind: str = "timeseries"


Rows = Mapping[str, Sequence[Panel]]


def quantile(share: float, metric: str, by: str) -> str:
    """Of a histogram over five minutes."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[5m])))"


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    """Median and tail, by one label or over all."""
    legend = f"{{{{{by}}}}} " if by else ""
    return {f"{legend}p{share * 100:g}": quantile(share, metric, by) for share in (0.5, 0.95, 0.99)}


def rate(metric: str, by: str, window: str = "5m") -> dict[str, str]:
    """Of a counter, by one label."""
    return {f"{{{{{by}}}}}": f"sum by ({by}) (rate({metric}[{window}]))"}


PLAYED = (
    'sum(rate(rearview_play_seconds_total{state="played"}[5m])) / sum(rate(rearview_play_seconds_total[5m]))'
)
REFUSED = "sum(rate(rearview_session_opens_refused_total[5m]))"

SERVICE: Rows = {
    "What users feel": [
        Panel(
            "Continuous play ratio",
            "percentunit",
            {"all": PLAYED, "{{tenant}}": "tenant:rearview_play:ratio_rate5m"},
            "Share of session time in which the next picture was there when it was due. Queued and stalled"
            " count as 0; refused opens are beside it.",
        ),
        Panel("Frame latency", "s", quantiles("rearview_frame_latency_seconds", "model")),
        Panel("First picture", "s", quantiles("rearview_first_picture_seconds", "model")),
        Panel("Jitter", "s", quantiles("rearview_frame_jitter_seconds", "model")),
    ],
    "What is done": [
        Panel("Frames", "reqps", {"{{outcome}}": "outcome:rearview_frames:rate5m"}),
        Panel("Frames without a picture", "reqps", rate("rearview_frames_dropped_total", "reason")),
        Panel("Pictures after their deadline", "reqps", rate("rearview_frames_late_total", "model")),
        Panel("Streams", "short", {"open": "sum(rearview_streams_open)"}),
    ],
    "What goes wrong": [
        Panel("Opens refused", "reqps", rate("rearview_session_opens_refused_total", "reason")),
        Panel("Calls that ended with an error", "reqps", rate("rearview_calls_ended_total", "reason")),
        Panel(
            "Sessions that went on elsewhere",
            "reqps",
            {
                "{{kind}} {{continuity}}": "sum by (kind, continuity)"
                " (rate(rearview_session_move_seconds_count[5m]))"
            },
        ),
        Panel("Gap of a move or recovery", "s", quantiles("rearview_session_move_seconds", "kind")),
    ],
}
CAPACITY: Rows = {
    "Room": [
        Panel("Slots used", "percentunit", {"{{span}}": "span:rearview_slots:used_ratio"}),
        Panel(
            "Slots",
            "short",
            {
                "{{span}}": "sum by (span) (rearview_slots)",
                "{{span}} used": "sum by (span) (rearview_slots_used)",
            },
        ),
        Panel("Replicas", "short", {"{{span}}": "count by (span) (rearview_slots)"}),
        Panel(
            "Refused for lack of room",
            "reqps",
            {"refused": REFUSED.replace("[5m]", '{reason="no_capacity"}[5m]')},
        ),
    ],
    "Load": [
        Panel(
            "Busy",
            "percentunit",
            {"{{span}}": "span:rearview_forward_seconds:busy_rate5m"},
            "Share of time that a replica of the span spends in forwards; 1 is a device that never rests.",
        ),
        Panel("Batches filled", "percentunit", {"{{span}}": "span:rearview_batch_rows:fill_rate5m"}),
        Panel("Oldest row that waits", "s", {"{{span}}": "max by (span) (rearview_queue_age_seconds)"}),
        Panel(
            "Cores that each process takes",
            "short",
            {"{{instance}}": "rate(process_cpu_seconds_total[5m])"},
        ),
    ],
    "Memory": [
        Panel("Resident memory", "bytes", {"{{instance}}": "process_resident_memory_bytes"}),
        Panel("Checkpoints", "Bps", {"all": "sum(rate(rearview_checkpoint_bytes_total[5m]))"}),
        Panel(
            "Links",
            "Bps",
            {"{{peer}} {{direction}}": "sum by (peer, direction) (rate(rearview_link_bytes_total[5m]))"},
        ),
        Panel("Outputs forgotten", "reqps", rate("rearview_outputs_forgotten_total", "span")),
    ],
}
TENANTS: Rows = {
    "Tenants": [
        Panel("Sessions", "short", {"{{tenant}}": "sum by (tenant) (rearview_sessions)"}),
        Panel("Sessions by state", "short", {"{{state}}": "sum by (state) (rearview_sessions)"}),
        Panel("Continuous play ratio", "percentunit", {"{{tenant}}": "tenant:rearview_play:ratio_rate5m"}),
        Panel(
            "Viewers that stall",
            "short",
            rate('rearview_play_seconds_total{state="stalled"}', "tenant"),
            "At a time: seconds stalled in a second.",
        ),
        Panel(
            "Clients that queue",
            "short",
            rate('rearview_play_seconds_total{state="queued"}', "tenant"),
            "At a time: seconds queued in a second.",
        ),
    ],
    "At the door": [
        Panel("Opens refused", "reqps", rate("rearview_session_opens_refused_total", "reason")),
        Panel(
            "Above a tenant's rate",
            "reqps",
            {"frames": 'sum(rate(rearview_frames_dropped_total{reason="rate_limited"}[5m]))'},
        ),
        Panel(
            "Files reloaded",
            "short",
            {"{{file}} {{outcome}}": "sum by (file, outcome) (increase(rearview_file_reloads_total[1h]))"},
        ),
        Panel("Codecs", "s", quantiles("rearview_image_codec_seconds", "operation")),
    ],
}
STAGES: Rows = {
    "A frame in each span": [
        Panel("In the networks", "s", quantiles("rearview_span_compute_seconds", "span")),
        Panel("Waiting", "s", quantiles("rearview_span_queue_seconds", "span")),
        Panel("Frames", "reqps", rate("rearview_span_compute_seconds_count", "span")),
        Panel("One forward", "s", quantiles("rearview_forward_seconds", "span")),
    ],
    "Forwards": [
        Panel("Rows in a forward", "short", quantiles("rearview_batch_rows", "span")),
        Panel("Forwards", "reqps", rate("rearview_batch_rows_count", "span")),
        Panel(
            "Replayed or compiled",
            "percentunit",
            {
                "{{span}}": "sum by (span) (rate(rearview_forwards_accelerated_total[5m]))"
                " / sum by (span) (rate(rearview_batch_rows_count[5m]))"
            },
            "The rest ran eager.",
        ),
        Panel("Fallen back to eager", "reqps", rate("rearview_graph_fallbacks_total", "span")),
        Panel(
            "Forwards that failed",
            "reqps",
            {"{{span}} {{cause}}": "sum by (span, cause) (rate(rearview_forwards_failed_total[5m]))"},
        ),
    ],
    "Sessions' pasts": [
        Panel("Checkpoint", "s", quantiles("rearview_checkpoint_seconds")),
        Panel(
            "Frames repeated to warm up", "reqps", {"fillers": "sum(rate(rearview_filler_frames_total[5m]))"}
        ),
        Panel(
            "Replicas taken for dead",
            "short",
            {"{{span}} {{cause}}": "sum by (span, cause) (increase(rearview_replicas_condemned_total[1h]))"},
        ),
        Panel("Gap of a move or recovery", "s", quantiles("rearview_session_move_seconds", "kind")),
    ],
}
DASHBOARDS: Mapping[str, tuple[str, Rows]] = {
    "service": ("rearview: what users feel", SERVICE),
    "capacity": ("rearview: capacity", CAPACITY),
    "tenants": ("rearview: tenants", TENANTS),
    "stages": ("rearview: stages", STAGES),
}


def dashboard(name: str) -> dict[str, Any]:
    """As Grafana imports it."""
    title, rows = DASHBOARDS[name]
    return {
        "uid": f"rearview-{name}",
        "title": title,
        "tags": ["rearview"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["rearview"], "title": "rearview", "asDropdown": True}],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
            ]
        },
        "panels": list(_panels(rows)),
    }


def _panels(rows: Rows) -> Iterator[dict[str, Any]]:
    numbers, y = count(1), 0
    for title, panels in rows.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {
            "id": next(numbers),
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        width = WIDTH // len(panels)
        for at, panel in enumerate(panels):
            place = {"x": at * width, "y": y + 1, "w": width, "h": HEIGHT}
            yield {"id": next(numbers), "gridPos": place, **_panel(panel)}
        y += 1 + HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + at), "expr": expr, "legendFormat": legend, "datasource": DATASOURCE}
        for at, (legend, expr) in enumerate(panel.queries.items())
    ]
    limits: dict[str, Any] = {"min": 0}
    if panel.unit == "percentunit":
        limits["max"] = 1
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, **limits}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def text(name: str) -> str:
    """The file."""
    return json.dumps(dashboard(name), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    for each in DASHBOARDS:
        (folder / f"{each}.json").write_text(text(each), encoding="utf-8")
