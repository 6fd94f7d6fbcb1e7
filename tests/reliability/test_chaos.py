"""Many runs as a plan, a result file and a document: what is made of them, without making them."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from rearview.cli.main import app
from rearview.failpoints import PLACES
from typer.testing import CliRunner

from loadtest.figures import RESULTS, Figure, ResultFile
from loadtest.reliability.chaos import CAMPAIGNS, perform_all, plans, replay, section
from loadtest.reliability.document import DOCUMENT, markdown
from loadtest.reliability.faults import KINDS
from loadtest.reliability.recovery import recovered
from loadtest.reliability.relay import Relay, Way
from loadtest.reliability.runs import RunPlan
from loadtest.reliability.sections import NAME, Journal, Section, merged
from loadtest.reliability.spawner import Spawner

pytestmark = pytest.mark.unit


def test_every_kind_comes_with_one_and_two_ingresses_and_both_topologies() -> None:
    made = list(plans(4 * len(KINDS), 7, list(KINDS), 8, 4.0))
    assert [plan.seed for plan in made] == list(range(7, 7 + len(made)))
    for kind, wanted in KINDS.items():
        mine = [plan for plan in made if plan.kind == kind]
        assert {plan.ingresses for plan in mine} == {1, 2}, kind
        topologies = {"pipeline"} if "two spans" in wanted.wants else {"fused", "pipeline"}
        assert {plan.topology for plan in mine} == topologies, kind


def test_the_kinds_are_enough_and_reach_every_kind_of_place() -> None:
    assert len(KINDS) - 1 >= 16
    armed = {part.split("=")[0] for kind in KINDS.values() for part in kind.failpoints.split(";") if part}
    assert armed == PLACES


def test_the_command_of_a_failure_makes_the_same_run_again() -> None:
    plan = RunPlan(9, "killed after a commit", "fused", 2, 5, 3.5, 1.5)
    words = replay(plan).split("'")
    assert words[1] == plan.kind
    options = dict(zip(words[0].split()[2:-1:2], words[0].split()[3:-1:2], strict=True))
    assert options == {"--runs": "1", "--seed": "9"}
    assert "--topology fused --ingresses 2 --streams 5 --seconds 3.5 --pace 1.5" in words[2]


def run(kind: str, *violations: str, **fields: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("results", "dropped", "sessions", "refused", "resumed", "ended_ok"), 1)
    return {
        **counts,
        "seed": 1,
        "kind": kind,
        "topology": "fused",
        "ingresses": 1,
        "streams": 8,
        "frames": 100,
        "ended_announced": 2,
        "moved": {"exact": 3, "approximate": 0, "reset": 0},
        "reached": kind != "none",
        **recovered(()),
        "hurt": 3,
        "recovery_s": [0.2, 0.4, 3.0],
        "violations": list(violations),
        "seconds": 4.0,
        "load": 1.5,
        **fields,
    }


def test_what_came_of_runs_is_in_figures_and_in_words() -> None:
    runs = [
        run("first span killed", "V3 alpha/0: frame 3 has a second outcome", never=["beta/1"]),
        run("none"),
        run("killed after a commit", reached=False, recovery_s=[]),
        run("two spans killed at once"),
    ]
    found = merged(None, [section(runs, "rearview chaos", (1.5, 9.0))], tuple(CAMPAIGNS))
    values = {figure.what: (figure.value, figure.met) for figure in found.figures}
    assert values["doubled"] == (1, False)
    assert values["silently lost"] == (0, True)
    assert values["frames checked"] == (400, False)
    assert values["fault runs"] == (2, False)
    assert values["hurt streams that never got a picture again"] == (1, False)
    assert values["first good picture after a replica was killed, worst"] == (3.0, False)
    text = markdown(found)
    assert "| first span killed | 1 |  | 100 | 3 / 0 / 0 | 1 | 2 | 3 | 0.40 s | 3.00 s | 1 | 1 |" in text
    assert "| killed after a commit | 1 | 1 | 100 |" in text
    assert "two spans killed at once, 1 runs: 3 sessions went on" in text
    assert "1.5 to 9" in text


def test_a_run_that_does_not_end_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(plan: RunPlan, folder: Path, spawner: Spawner) -> None:
        raise TimeoutError

    monkeypatch.setattr("loadtest.reliability.chaos.perform", endless)
    (found,) = asyncio.run(perform_all([RunPlan(1)], tmp_path, Spawner(), keep=False))
    assert found["violations"] == ["harness: TimeoutError: "]
    assert found.keys() == run("none").keys()


def test_a_part_that_is_measured_anew_replaces_its_former_self_alone(tmp_path: Path) -> None:
    def part(name: str, value: float) -> Section:
        return Section(name, f"measure {name}", [Figure("what", "how", value, "s", 2.0, at_most=True)])

    first = merged(None, [part("leaks", 1.0), part("repeated", 3.0)], tuple(CAMPAIGNS))
    first.write(tmp_path)
    again = merged(ResultFile.read(tmp_path / f"{NAME}.json"), [part("leaks", 1.5)], tuple(CAMPAIGNS))
    assert [(figure.value, figure.met) for figure in again.figures] == [(3.0, False), (1.5, True)]
    assert "measure repeated" in markdown(again)


async def test_a_campaign_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(plan: RunPlan, folder: Path, spawner: Spawner) -> None:
        raise TimeoutError

    monkeypatch.setattr("loadtest.reliability.chaos.perform", fails)
    one, two = RunPlan(1), RunPlan(2)
    path = tmp_path / "journal"
    Journal(path, "abc").put(replay(one), run("none"))
    found = await perform_all([one, two], tmp_path, Spawner(), Journal(path, "abc"), keep=False)
    assert [bool(each["violations"]) for each in found] == [False, True]
    assert Journal(path, "another commit").get(replay(one)) is None
    journal = Journal(path, "abc")
    assert journal.get(replay(two)) == found[1]
    journal.done()
    assert not path.exists()


def test_the_document_is_that_of_the_result() -> None:
    path = RESULTS / f"{NAME}.json"
    assert DOCUMENT.read_text(encoding="utf-8") == markdown(ResultFile.read(path))


def test_the_command_says_where_it_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["chaos"])
    assert done.exit_code == 1
    assert "root of a checkout" in done.output


def test_the_command_finds_its_options(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert "no such thing" in CliRunner().invoke(app, ["chaos", "--kind", "no such thing"]).output


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


async def test_a_relay_passes_stalls_and_cuts() -> None:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Relay(lambda: ("127.0.0.1", port)) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"one")
        assert await reader.read(100) == b"one"
        relay.set(Way.STALLED)
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(100), 0.1)
        relay.set(Way.OPEN)
        assert await reader.read(100) == b"two"
        relay.set(Way.CUT)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
    server.close()
    await server.wait_closed()


def test_a_run_plan_has_redis_where_it_needs_it() -> None:
    assert RunPlan(1, ingresses=2).has_redis
    assert RunPlan(1, "directory frozen").has_redis
    assert not RunPlan(1).has_redis
    assert dataclasses.replace(RunPlan(1), kind="ingress killed after it took a lease").has_redis
