"""Replicas on a node of four GPUs, in which Ray is made to believe: which ones each of them may use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from rearview.config import load_config
from rearview.local.ray_service import deploy
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.declared import declared

from .conftest import Stream

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

GPUS = 4
SPANS: list[dict[str, Any]] = [
    {"name": "encode", "operators": ["encode"], "num_gpus": 0.5},
    {"name": "denoise", "operators": ["denoise-0", "denoise-1"], "num_gpus": 1, "replicas": 3},
    {"name": "decode", "operators": ["decode"], "num_gpus": 0.5},
]
"""All that there is: three whole ones, and two halves of the fourth."""
CONFIG: dict[str, Any] = {
    "model": {"checkpoint": "null"},
    "topology": "pipeline",
    "spans": [{"num_cpus": 0.1, **span} for span in SPANS],
    "ingress": {"port": 0, "idle_timeout_s": 120},
}


@pytest.fixture(scope="module")
def described() -> Iterator[Mapping[str, Any]]:
    with declared({}, num_gpus=GPUS):
        yield deploy(load_config(CONFIG)).describe.remote().result(timeout_s=60)


def test_every_replica_has_the_gpus_that_its_span_reserves(described: Mapping[str, Any]) -> None:
    """A model on `cuda` runs on the first that is visible, so none but a replica's own may be."""
    by_span: dict[str, list[str]] = {span["name"]: [] for span in SPANS}
    for stage in described["stages"]:
        by_span[stage["span"]].append(stage["gpus"])
    whole, shared = by_span["denoise"], by_span["encode"] + by_span["decode"]
    used = Counter(whole + shared)
    assert set(used) == {str(number) for number in range(GPUS)}, "each replica sees one, and all are used"
    assert [used[gpu] for gpu in whole] == [1, 1, 1]
    assert shared[0] == shared[1]


def test_frames_pass_replicas_of_several_gpus(
    described: Mapping[str, Any], open_stream: Callable[[str, pb.Open], Stream]
) -> None:
    request = pb.Open(settings=settings_pb2.Settings(prompt="x"), drop_policy=pb.DROP_POLICY_LOSSLESS)
    streams = [open_stream(described["address"], request) for _ in range(3)]
    for stream in streams:
        assert stream.translate([b"payload"] * 3, pb.IMAGE_FORMAT_OPAQUE) == [b"payload"] * 3
        stream.finish()
