"""The service as plain processes: they are watched, replaced and named, and sessions outlive them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rearview.config import ServiceConfig, load_config
from rearview.errors import ConfigError, NotFound
from rearview.local import PlainService, SpanOfReplicas
from rearview.local.processes import Process
from rearview.local.words import Order
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.waiting import eventually

from .conftest import Stream

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

OPAQUE = pb.IMAGE_FORMAT_OPAQUE
HALVES = [("first", ["encode", "denoise-0"]), ("second", ["denoise-1", "decode"])]
OPEN = pb.Open(settings=settings_pb2.Settings(prompt="x"), drop_policy=pb.DROP_POLICY_LOSSLESS)
HEALED_S = 60.0
"""A process is back in less than a second; on a busy machine nobody knows."""


def config(*, replicas: int = 1, checkpoint: str = "chain", port: int = 0) -> ServiceConfig:
    return load_config(
        {
            "model": {"name": "model", "checkpoint": checkpoint},
            "topology": "pipeline",
            "spans": [{"name": name, "operators": ops, "replicas": replicas} for name, ops in HALVES],
            "ingress": {"port": port, "idle_timeout_s": 120},
        }
    )


@pytest.fixture(scope="module")
def service() -> Iterator[PlainService]:
    """Two replicas of each span. Each test leaves it whole."""
    with PlainService(config(replicas=2)) as running:
        yield running


def span(service: PlainService, name: str) -> SpanOfReplicas:
    return next(span for span in service.lanes() if span.name == name)


def is_whole(service: PlainService) -> bool:
    return all(replica.state == "up" for span in service.lanes() for replica in span.replicas)


def is_whole_without(service: PlainService, gone: str) -> bool:
    return is_whole(service) and gone not in {r.id for found in service.lanes() for r in found.replicas}


def holder(service: PlainService, session_id: str, name: str) -> str:
    """Id of the replica of a span that holds the session; empty if none says so."""
    return next((r.id for r in span(service, name).replicas if session_id in r.sessions), "")


def payloads(first: int, count: int) -> list[bytes]:
    return [bytes([number]) * 64 for number in range(first, first + count)]


def test_who_there_is_and_what_they_hold_can_be_asked(
    service: PlainService, open_stream: Callable[[str, pb.Open], Stream]
) -> None:
    assert [found.name for found in service.lanes()] == ["first", "second"]
    assert is_whole(service)
    streams = [open_stream(service.address, OPEN) for _ in range(2)]
    ids = [stream.opened.session_id for stream in streams]
    for name, _ in HALVES:
        eventually(lambda name=name: all(holder(service, each, name) for each in ids), 10)
        assert len({holder(service, each, name) for each in ids}) == 2, "sessions did not spread"
    lanes = {each: [holder(service, each, name) for name, _ in HALVES] for each in ids}
    for stream in streams:
        assert len(stream.translate(payloads(0, 3), OPAQUE)) == 3
    eventually(lambda: frames_by_replica(service, ids) == expected(lanes, 3), 10)
    for stream in streams:
        stream.finish()
    eventually(lambda: all(stage["free_slots"] == stage["slots"] for stage in service.stages), 10)
    assert not any(replica.sessions for found in service.lanes() for replica in found.replicas)


def frames_by_replica(service: PlainService, session_ids: list[str]) -> dict[tuple[str, str], int]:
    """How many frames of each session each replica has had."""
    return {
        (stage["replica_id"], session_id): count
        for stage in service.stages
        for session_id, count in stage["frames_by_session"].items()
        if session_id in session_ids
    }


def expected(lanes: dict[str, list[str]], frames: int) -> dict[tuple[str, str], int]:
    """The same if every frame meets the same replicas."""
    return {(replica, session_id): frames for session_id, lane in lanes.items() for replica in lane}


def test_metrics_of_every_process_answer(service: PlainService) -> None:
    texts = [urllib.request.urlopen(url, timeout=5).read().decode() for url in service.metrics_urls]
    assert len(texts) == 5
    assert "rearview_frame_latency_seconds_bucket" in texts[0]
    assert sum('rearview_span_compute_seconds_count{span="' in text for text in texts) == 4


def test_a_killed_replica_is_replaced_under_a_new_name_and_its_session_goes_on(
    service: PlainService, open_stream: Callable[[str, pb.Open], Stream]
) -> None:
    stream = open_stream(service.address, OPEN)
    session_id = stream.opened.session_id
    first = stream.translate(payloads(0, 3), OPAQUE)
    eventually(lambda: bool(holder(service, session_id, "second")), 10)
    victim = holder(service, session_id, "second")
    assert service.kill("second") == victim, "it holds most sessions"
    rest = stream.translate(payloads(3, 3), OPAQUE, first=3)
    stream.finish()
    assert len({*first, *rest}) == 6, "the chain model remembers all that came before"
    eventually(
        lambda: is_whole(service) and victim not in {r.id for r in span(service, "second").replicas}, HEALED_S
    )
    with pytest.raises(NotFound, match="no replica of 'third'"):
        service.kill("third")


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_replica_that_hangs_is_killed_and_replaced(
    service: PlainService, open_stream: Callable[[str, pb.Open], Stream]
) -> None:
    stream = open_stream(service.address, OPEN)
    assert len(stream.translate(payloads(0, 1), OPAQUE)) == 1
    eventually(lambda: bool(holder(service, stream.opened.session_id, "first")), 10)
    victim = holder(service, stream.opened.session_id, "first")
    pid = next(stage["pid"] for stage in service.stages if stage["replica_id"] == victim)
    os.kill(pid, signal.SIGSTOP)
    assert len(stream.translate(payloads(1, 1), OPAQUE, first=1)) == 1, "nobody waits for it"
    eventually(lambda: not Path(f"/proc/{pid}").exists(), HEALED_S)
    stream.finish()
    eventually(
        lambda: is_whole(service) and victim not in {r.id for r in span(service, "first").replicas}, HEALED_S
    )


def test_a_lone_replica_that_is_killed_costs_no_session(
    open_stream: Callable[[str, pb.Open], Stream],
) -> None:
    with PlainService(config()) as service:
        stream = open_stream(service.address, OPEN)
        pictures = stream.translate(payloads(0, 3), OPAQUE)
        service.kill("first")
        pictures += stream.translate(payloads(3, 3), OPAQUE, first=3)
        stream.finish()
        assert len({*pictures}) == 6


def test_an_ingress_that_dies_is_found_again_where_it_was(
    open_stream: Callable[[str, pb.Open], Stream],
) -> None:
    with PlainService(config(checkpoint="null")) as service:
        (place,) = (p for p in service._crew._processes if p.span is None)  # type: ignore[union-attr]
        former = place.id
        service._crew._processes[place].kill()  # type: ignore[union-attr]
        eventually(lambda: place.id != former and place.state.value == "up", HEALED_S)
        stream = open_stream(service.address, OPEN)
        assert stream.translate(payloads(0, 2), OPAQUE) == payloads(0, 2)
        stream.finish()


def test_a_second_service_runs_beside_the_first_and_ends_alone(
    service: PlainService, open_stream: Callable[[str, pb.Open], Stream]
) -> None:
    with PlainService(config(checkpoint="null")) as other:
        assert other.address != service.address
        for each in (other, service):
            stream = open_stream(each.address, OPEN)
            assert len(stream.translate(payloads(0, 1), OPAQUE)) == 1
            stream.finish()
        pids = [stage["pid"] for stage in other.stages]
        thread = threading.Thread(target=other.stop)  # Any thread may.
        thread.start()
        thread.join(30)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    stream = open_stream(service.address, OPEN)
    assert len(stream.translate(payloads(0, 1), OPAQUE)) == 1
    stream.finish()


def test_a_checkpoint_that_cannot_be_loaded_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir(parents=True)
    (tmp_path / "unet" / "config.json").write_text("{}")
    wrong = load_config({"model": {"checkpoint": str(tmp_path)}, "ingress": {"port": 0}})
    with pytest.raises(ConfigError) as caught, PlainService(wrong):
        pass
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_that_is_in_use_is_named(service: PlainService) -> None:
    port = int(service.address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"ingress.port: {port}"), PlainService(config(port=port)):
        pass


def killed_at_once(order: Order) -> Process:
    process = Process(order)
    process.kill()
    return process


def test_a_process_that_ends_at_the_start_is_no_riddle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rearview.local.crew.Process", killed_at_once)
    with pytest.raises(ConfigError, match=r"#\d: it has ended by signal 9"), PlainService(config()):
        pass
