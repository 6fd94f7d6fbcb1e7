"""A Ray of several nodes, one of which is ended as a pod is, or lost; and its GCS, killed and frozen.

The traffic and the validators are those of the reliability suite, in a process of their own: what Ray reads
of the environment, it reads once. `make nodes` is the same with outages of a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.load, pytest.mark.timeout(600)]

KINDS = ("node ended", "node killed", "GCS killed", "GCS frozen")
TIMEOUT_S = 540


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """What came of each kind, on one cluster."""
    out = tmp_path_factory.mktemp("nodes")
    kinds = [word for kind in KINDS for word in ("--kind", kind)]
    options = [*kinds, "--streams", "6", "--seconds", "20", "--outage", "5", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.reliability.nodes", *options],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root / 'services'}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    path = out / "nodes.json"
    assert path.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return {run["kind"]: run for run in json.loads(path.read_text(encoding="utf-8"))["detail"]["runs"]}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_doubled_or_crossed(runs: Mapping[str, Mapping[str, Any]], kind: str) -> None:
    assert runs[kind]["violations"] == []
    assert runs[kind]["results"] > 100


def test_sessions_move_off_a_node_that_is_ended(runs: Mapping[str, Mapping[str, Any]]) -> None:
    run = runs["node ended"]
    assert run["moved"]["exact"] > 0
    assert run["moved"]["approximate"] == run["moved"]["reset"] == 0
    assert run["ended_announced"] == 0


def test_sessions_of_a_lost_node_go_on_elsewhere(runs: Mapping[str, Mapping[str, Any]]) -> None:
    run = runs["node killed"]
    assert run["moved"]["exact"] > 0
    assert run["moved"]["approximate"] == run["moved"]["reset"] == 0
    assert run["resumed"] > 0


@pytest.mark.parametrize("kind", ["GCS killed", "GCS frozen"])
def test_no_stream_notices_what_happens_to_the_gcs(runs: Mapping[str, Mapping[str, Any]], kind: str) -> None:
    run = runs[kind]
    assert sum(run["moved"].values()) == run["resumed"] == run["ended_announced"] == 0
