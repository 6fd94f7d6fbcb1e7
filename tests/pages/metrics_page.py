"""docs/metrics.md, made of the metrics themselves: `python tests/pages/metrics_page.py`; a test compares."""

from __future__ import annotations

import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics import MetricWrapperBase
from rearview.contract.failure import Failure
from rearview.contract.scaling import Why
from rearview.errors import DropReason
from rearview.telemetry.metrics import Metrics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
LABELS = {
    "model": "the model's name in the configuration; one in a service",
    "span": "a span of the configuration; `link_bytes` also has `ingress`",
    "tenant": "a name in the tenants file, `local` without one",
    "outcome": "`translated`, `dropped`, of usage the reason of the drop; of a file `good`, `broken`",
    "reason": "of a drop "
    + ", ".join(f"`{each.name.lower()}`" for each in DropReason)
    + "; of a refusal or an end a value of [error_reason.proto](../proto/rearview/v1/error_reason.proto)",
    "state": "of play `played`, `stalled`, `queued`; of a session `streaming`, `detached`, `moving`,"
    " `parked`",
    "cause": "of a failed forward "
    + ", ".join(f"`{each.value}`" for each in Failure)
    + "; of a condemned replica `silent`, `hung`, `broken`",
    "operation": "`decode`, `encode`",
    "peer": "who counts: a span or `ingress`",
    "direction": "`sent`, `received`",
    "kind": "`move` (planned) or `recovery`",
    "continuity": "`exact`, `approximate`, `reset`",
    "why": ", ".join(f"`{each.value}`" for each in Why),
    "file": "`tenants` and other watched files",
}
HEAD = """# Metrics

Made of the metrics themselves by `python tests/pages/metrics_page.py`, not edited by hand.

Every ingress and every replica answers `/metrics` (`metrics_port` of the ingress and of each span;
`describe` names the URLs) with its own; sums and quantiles over processes are for whoever asks. Names of
sessions, prompts and pictures are in none of them, and every label has few values: a process has at most 50
series for each tenant, 100 for each span and 400 besides, which a test counts. [Recording and alert
rules](../k8s/base/prometheus-rule.yaml) have unit tests, and say how busy devices, how full batches and how
old queues are; [four dashboards](../deploy/grafana) (`service`, `capacity`, `tenants`, `stages`: import the
JSON, or mount the folder) show nothing that a test has not seen in a real Prometheus beside a running
service. No Grafana has rendered them yet.

**Continuous play ratio**, the one figure to promise: the share of session time in which the next picture
was there when it was due.

```promql
sum(rate(rearview_play_seconds_total{state="played"}[5m])) / sum(rate(rearview_play_seconds_total[5m]))
```

A viewer is taken who shows the first picture 0.1 s after it could be sent, and each later one as long after
the one before as its frame came after the frame before. A picture that is late has stalled its whole
interval and until it is shown; a frame without a picture stalls its interval, unless it was left out as
`unchanged`; a pause of the source over a second counts as nothing. Waiting for a session counts as queued,
also if it ends in a refusal. Refused opens themselves have no length: they are
`rearview_session_opens_refused_total`, to be shown beside it. A client that sends faster than its frames
can be translated (`latest`) reads a low ratio, rightly.
"""


def page() -> str:
    """The whole page."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    found = {each._name: each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)}
    used = {label for metric in found.values() for label in metric._labelnames}
    assert used == set(LABELS), f"labels without a word: {used ^ set(LABELS)}"
    lines = [HEAD, "\n| metric | labels | what it says |\n|---|---|---|\n"]
    lines += [_row(metric) for metric in found.values()]
    lines += [
        "\n| label | values |\n|---|---|\n",
        *(f"| `{name}` | {text} |\n" for name, text in LABELS.items()),
    ]
    return "".join(lines)


def _row(metric: MetricWrapperBase) -> str:
    name = metric._name + ("_total" if isinstance(metric, Counter) else "")
    kind = metric._type
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"| `{name}` ({kind}) | {labels} | {metric._documentation} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
