"""Records of usage add up to what clients got, whatever happens to those who feed their sessions."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rearview.cli.main import app
from rearview.config import ServiceConfig, load_config
from rearview.contract.events import FrameUsed
from rearview.contract.usage import UsageRecord, read_record, summed
from rearview.errors import ConfigError
from rearview.ingress.telling import Telling
from rearview.replica.stage import Stage
from rearview.telemetry.usage import UsageListener
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import crash, several
from support.pocket_sessions import FUSED, HALVES, SIDE, play, pocket_config, session_of, start
from support.raw_stream import RawStream, eventually, null_config, quickly_stopped
from support.service import InProcessService, in_process_service
from typer.testing import CliRunner

pytestmark = pytest.mark.integration

NOON = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


def with_usage(config: ServiceConfig, folder: Path, interval_s: float = 3600.0) -> ServiceConfig:
    content = config.model_dump(mode="json")
    content["telemetry"] = {"usage": {"folder": str(folder), "interval_s": interval_s}}
    return load_config(content)


def told(folder: Path, *options: str) -> list[dict[str, Any]]:
    """What the command prints."""
    ran = CliRunner().invoke(app, ["usage", str(folder), "--json", *options])
    assert ran.exit_code == 0, ran.output
    sums: list[dict[str, Any]] = json.loads(ran.output)
    return sums


def outcomes(*streams: RawStream) -> Counter[str]:
    """What clients got, each frame once."""
    got: Counter[str] = Counter()
    for stream in streams:
        got["translated"] += len(stream.answers) - len(stream.drops)
        got.update(reason.name.lower() for reason in stream.drops)
    return +got


async def finish(stream: RawStream) -> None:
    await stream.half_close()
    await stream.read_to_end()
    await stream.__aexit__()


async def test_usage_is_what_clients_got_with_drops_moves_and_batches(tmp_path: Path) -> None:
    config = with_usage(pocket_config(HALVES), tmp_path)
    with quickly_stopped():
        async with in_process_service(config) as service:
            streams = [await start(service.address, "per-frame"), await start(service.address, "bank")]
            for stream in streams:
                await play(stream, range(6), answers=6)
                await stream.frame(2, b"of a lower number", pb.IMAGE_FORMAT_RGB)
                await stream.frame(6, b"no picture", pb.IMAGE_FORMAT_RGB)
                await stream.read_answers(2)
            await drained(service, streams[0])
            for stream in streams:
                await play(stream, range(7, 12), answers=13)
                await finish(stream)
            got = outcomes(*streams)
            assert got["translated"] == 22
            busy_s = sum(
                stage._metrics.registry.get_sample_value(
                    "rearview_forward_seconds_sum", {"span": f"span-{n}"}
                )
                or 0
                for stage in service.stages
                for n in (0, 1)
            )
    (total,) = told(tmp_path)
    assert total["frames"] == dict(got)
    assert (total["tenant"], total["sessions"], total["unrecorded_frames"]) == ("local", 2, 0)
    assert total["pixel_steps"] == 22 * SIDE * SIDE * 2
    # No more than the replicas were busy; what was run again for a move is nobody's to pay.
    assert 0.5 * busy_s < total["device_seconds"] <= busy_s


def busy(stage: Stage) -> float:
    """Seconds that its forwards took."""
    labels = {"span": str(stage.describe()["span"])}
    return stage._metrics.registry.get_sample_value("rearview_forward_seconds_sum", labels) or 0.0


async def drained(service: InProcessService, stream: RawStream) -> None:
    replica = session_of(service, stream).lane.replicas[0]
    stage = next(each for each in service.stages if each.describe()["replica_id"] == replica)
    await stage.drain(20.0)
    assert replica not in session_of(service, stream).lane.replicas


async def test_a_killed_ingress_costs_what_was_not_written_and_nothing_counts_twice(
    tmp_path: Path,
) -> None:
    config = with_usage(null_config(), tmp_path)
    async with several(2, config) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            for number in range(10):
                await first.frame(number, b"%d" % number)
            await first.read_answers(10)
            await acknowledged(first, 6)
            await eventually(lambda: session_of(service, first).book.first_kept == 6)
            await write(service.ingresses[0]._telling)
            await acknowledged(first, 8)
            await eventually(lambda: session_of(service, first).book.first_kept == 8)
            await crash(service.servers[0])
            service.ingresses[0]._telling._usage = None  # Its memory is gone.
        async with RawStream(service.addresses[1]) as second:
            await second.resume(opened, 9)
            for number in range(10, 15):
                await second.frame(number, b"%d" % number)
            await second.half_close()
            await second.read_to_end()
            assert second.indices == list(range(9, 15))
    (total,) = told(tmp_path)
    # Places 0 to 5 were written, 6 to 8 lost with the ingress; 9 was answered there, and is the other's.
    assert total["frames"] == {"translated": 12}
    assert total["unrecorded_frames"] == 3
    assert total["frames_total"] + total["unrecorded_frames"] == 15


async def test_an_ingress_that_loses_a_session_leaves_it_what_is_not_acknowledged(tmp_path: Path) -> None:
    config = with_usage(null_config(), tmp_path)
    async with (
        several(2, config) as service,
        RawStream(service.addresses[0]) as first,
        RawStream(service.addresses[1]) as second,
    ):
        opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number in range(6):
            await first.frame(number, b"%d" % number)
        await first.read_answers(6)
        await acknowledged(first, 4)
        await eventually(lambda: session_of(service, first).book.first_kept == 4)
        await second.resume(opened, 4)
        await first.read_to_end()
        await second.frame(6, b"6")
        await second.half_close()
        await second.read_to_end()
        assert second.indices == [4, 5, 6]
    (total,) = told(tmp_path)
    assert (total["frames"], total["unrecorded_frames"]) == ({"translated": 7}, 0)


async def acknowledged(stream: RawStream, answers: int) -> None:
    await stream.write(pb.TranslateRequest(credit=pb.Credit(received_answers=answers)))


async def write(telling: Telling) -> None:
    assert telling._usage is not None
    await telling._write(telling._usage)


async def test_records_are_written_while_sessions_last(tmp_path: Path) -> None:
    config = with_usage(null_config(), tmp_path, interval_s=0.01)
    async with several(1, config) as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await stream.frame(0, b"0")
        await stream.read_answers(1)
        await acknowledged(stream, 1)
        await eventually(lambda: [each["frames_total"] for each in told(tmp_path)] == [1])


def used(place: int, outcome: str = "translated", tenant: str = "alpha", session: str = "a") -> FrameUsed:
    return FrameUsed(tenant, session, "pocket", place, outcome, 8192, 0.25)


def test_what_could_not_be_written_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = UsageListener(tmp_path, "ingress#0", lambda: NOON)
    listener(used(0))
    due = listener.due()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        listener.write(due)  # All of it may be there, or none: here it is.
    monkeypatch.undo()
    (file,) = tmp_path.iterdir()
    with file.open("a") as more:
        more.write('{"v":1,"id":"cut')
    listener(used(1, "late"))
    again = listener.due()
    listener.write(again)
    listener.written(again)
    assert listener.due() == []
    (total,) = told(tmp_path)
    assert (total["frames"], total["frames_total"]) == ({"late": 1, "translated": 1}, 2)
    assert (total["pixel_steps"], total["device_seconds"]) == (16384, 0.5)


def full(_: int) -> None:
    raise OSError(28, "no space")


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in (0, 1):
        listener = UsageListener(tmp_path, "ingress", lambda: NOON)
        listener(used(place))
        listener.write(listener.due())
    assert told(tmp_path)[0]["frames_total"] == 2


def record(number: int, begin: int, end: int, time: str, **more: str) -> UsageRecord:
    fields = {"tenant": "alpha", "session": "a", "model": "pocket"} | more
    return UsageRecord(
        f"x/{number}", time, from_place=begin, to_place=end, frames={"translated": end - begin},
        pixel_steps=0, device_s=0.0, **fields,
    )  # fmt: skip


def test_what_is_missing_counts_where_the_next_record_does(tmp_path: Path) -> None:
    records = [
        record(1, 0, 5, "2026-11-28T11:59:59.000+00:00"),
        record(2, 7, 9, "2026-11-28T12:00:09.000+00:00"),
        record(3, 2, 3, "2026-11-29T00:00:00.000+00:00", tenant="beta", session="b"),
    ]
    assert [read_record(each.to_json()) for each in records] == records
    file = tmp_path / "usage-2026-11-28-x.jsonl"
    file.write_text("".join(f"{each.to_json()}\n" for each in [*records, records[0]]))
    hours = {(each["tenant"], each["interval"]): each for each in told(tmp_path, "--by", "hour")}
    assert {key: (each["frames_total"], each["unrecorded_frames"]) for key, each in hours.items()} == {
        ("alpha", "2026-11-28T11"): (5, 0),
        ("alpha", "2026-11-28T12"): (2, 2),
        ("beta", "2026-11-29T00"): (1, 2),
    }
    assert [each["frames_total"] for each in told(tmp_path, "--tenant", "beta")] == [1]
    later = told(tmp_path, "--since", "2026-11-28T12:00", "--until", "2026-11-29")
    assert [(each["frames_total"], each["unrecorded_frames"]) for each in later] == [(2, 2)]
    table = CliRunner().invoke(app, ["usage", str(file), "--by", "day"])
    assert [line.split()[:2] for line in table.output.splitlines()[1:]] == [
        ["alpha", "2026-11-28"],
        ["beta", "2026-11-29"],
    ]
    refused = CliRunner().invoke(app, ["usage", str(file), "--since", "yesterday"])
    assert refused.exit_code != 0
    assert CliRunner().invoke(app, ["usage", str(tmp_path / "nothing")]).exit_code != 0


@pytest.mark.parametrize("line", ["", "{", "[]", '"a"', "1", '{"id": "a"}', '{"v":1,"id":"cut'])
def test_what_is_no_record_is_none(line: str) -> None:
    assert read_record(line) is None


def test_sums_of_nothing_are_none() -> None:
    assert summed([], lambda one: (one.tenant, "")) == {}


def test_a_folder_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"telemetry\.usage\.folder"):
        Telling(with_usage(pocket_config(FUSED), tmp_path / "file" / "folder"), "ingress#0")
