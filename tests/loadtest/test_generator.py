"""The generator against a real server: it keeps its schedule, and every planted fault is caught."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from rearview.contract.stream import DropPolicy

from loadtest.echo import EchoServicer, start_server
from loadtest.generator import generate, run_load
from loadtest.payloads import OpaquePayloads
from loadtest.plan import Arrival, ClosedLoop, LoadPlan, OpenLoop
from loadtest.results import LoadResult
from loadtest.transport import measure
from tests.loadtest.planted_service import MARKED, Fault, PlantedServicer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

FPS = 200.0
FRAMES = 20
PLAN = LoadPlan(
    "",
    OpenLoop(FPS, FRAMES / FPS),
    policy=DropPolicy.LOSSLESS,
    open_timeout_s=10.0,
    drain_timeout_s=10.0,
)
IMPATIENT = replace(PLAN, open_timeout_s=0.5, drain_timeout_s=0.5)
PAYLOADS = OpaquePayloads(1000)

Run = Callable[[PlantedServicer | EchoServicer, LoadPlan], Awaitable[LoadResult]]


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    servers = []

    async def start_and_run(servicer: PlantedServicer | EchoServicer, plan: LoadPlan) -> LoadResult:
        server, address = await start_server(servicer)
        servers.append(server)
        return await run_load(replace(plan, target=address), PAYLOADS)

    yield start_and_run
    for server in servers:
        await server.stop(None)


async def test_against_an_honest_server_every_frame_is_a_picture_and_no_rule_is_broken(run: Run) -> None:
    result = await run(PlantedServicer(), replace(PLAN, streams=3))

    assert result.violations == {}
    assert result.ends == {"OK": 3}
    assert result.translated == result.due == 3 * FRAMES
    assert result.histograms.count("latency") == 3 * FRAMES
    assert result.histograms.count("server/echo/compute") == 3 * FRAMES


@pytest.mark.parametrize(
    ("fault", "caught", "plan"),
    [
        (Fault.NO_ANSWER, {"missing": 1}, PLAN),
        (Fault.ANSWER_TWICE, {"duplicate": 1}, PLAN),
        (Fault.SWAP, {"out_of_order": 1}, PLAN),
        (Fault.INVENT, {"unknown_frame": 1, "missing": 1}, PLAN),
        (Fault.FOREIGN_IMAGE, {"wrong_image": 1}, PLAN),
        (Fault.OTHER_TIME, {"wrong_time": 1}, PLAN),
        (Fault.CREDIT_FALLS, {"credit_fell": 1}, PLAN),
        (Fault.OPENED_TWICE, {"not_opened": 1}, PLAN),
        (Fault.NO_OPENED, {"not_opened": 1}, IMPATIENT),
        (Fault.NO_END, {"no_end": 1}, IMPATIENT),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
async def test_each_planted_fault_is_caught_by_its_own_rule_and_by_no_other(
    run: Run, fault: Fault, caught: dict[str, int], plan: LoadPlan
) -> None:
    result = await run(PlantedServicer(fault), plan)

    assert result.violations == caught
    assert result.problems


async def test_a_stall_is_paid_for_by_every_frame_that_was_due_during_it(run: Run) -> None:
    result = await run(PlantedServicer(Fault.STALL, stall_s=0.3), PLAN)

    # 14 frames follow the marked one, due every 5 ms: the last of them still waits 230 ms.
    assert result.translated == FRAMES
    assert result.histograms.percentile_ms("latency", 50) > 200
    assert result.histograms.max_ms("latency") >= 300
    assert result.histograms.count("held") > 0, "no frame waited for credit"


async def test_a_frame_held_by_the_server_is_no_lateness_of_the_client(run: Run) -> None:
    result = await run(PlantedServicer(Fault.STALL, stall_s=0.3), PLAN)

    # Five answers and a window of eight let 13 frames go; the other seven were due during the stall.
    held, late = result.histograms.count("held"), result.histograms.count("client_lateness")
    assert held >= 7
    assert held + late == FRAMES


async def test_without_credit_a_live_frame_is_not_sent_and_counted(run: Run) -> None:
    result = await run(PlantedServicer(Fault.CREDIT_WITHHELD), replace(PLAN, policy=DropPolicy.LATEST))

    assert result.translated == 8
    assert result.unsent == {"no_credit": FRAMES - 8}
    assert result.due == FRAMES
    assert result.violations == {}


async def test_without_credit_a_frame_with_a_budget_expires(run: Run) -> None:
    plan = replace(PLAN, policy=DropPolicy.DEADLINE, frame_budget_s=0.02)

    result = await run(PlantedServicer(Fault.CREDIT_WITHHELD), plan)

    assert result.unsent == {"expired": FRAMES - 8}


async def test_a_lossless_stream_that_never_gets_credit_gives_up_instead_of_hanging(run: Run) -> None:
    result = await run(PlantedServicer(Fault.CREDIT_WITHHELD), IMPATIENT)

    assert result.unsent == {"no_credit": FRAMES - 8}
    assert result.ends == {"OK": 1}


async def test_drops_are_counted_by_reason(run: Run) -> None:
    result = await run(PlantedServicer(Fault.DROPS), PLAN)

    assert result.dropped == {"superseded": FRAMES // 2}
    assert result.translated == FRAMES // 2
    assert result.violations == {}


async def test_a_refused_stream_is_reported_with_status_and_reason(run: Run) -> None:
    result = await run(PlantedServicer(Fault.REFUSED), replace(PLAN, streams=2))

    assert result.ends == {"RESOURCE_EXHAUSTED/NO_CAPACITY": 2}
    assert result.unsent == {"stream_ended": 2 * FRAMES}
    assert result.violations == {}


async def test_what_an_error_cuts_off_is_cut_not_missing(run: Run) -> None:
    result = await run(PlantedServicer(Fault.CUT), PLAN)

    stream = result.streams[0]
    assert result.ends == {"UNAVAILABLE": 1}
    assert stream.translated == MARKED
    assert stream.cut >= 1
    assert stream.due == FRAMES == stream.translated + stream.cut + sum(stream.unsent.values())
    assert result.violations == {}


@pytest.mark.parametrize(("in_flight", "translated"), [(3, 9), (2, 0)])
async def test_a_closed_loop_keeps_exactly_so_many_frames_in_flight(
    run: Run, in_flight: int, translated: int
) -> None:
    plan = replace(IMPATIENT, pace=ClosedLoop(9, in_flight))

    result = await run(PlantedServicer(Fault.GROUPS_OF_THREE), plan)

    assert result.translated == translated


async def test_warm_up_frames_are_checked_but_not_measured(run: Run) -> None:
    result = await run(PlantedServicer(Fault.NO_ANSWER), replace(PLAN, warmup_frames=MARKED + 1))

    assert result.translated == result.due == FRAMES - MARKED - 1
    assert result.violations == {"missing": 1}


async def test_answers_are_acknowledged_so_that_the_server_may_forget_them(run: Run) -> None:
    servicer = PlantedServicer()

    await run(servicer, replace(PLAN, pace=ClosedLoop(40), ack_every=8))

    assert servicer.acknowledged == [8, 16, 24, 32]


async def test_the_session_is_opened_as_planned(run: Run) -> None:
    servicer = PlantedServicer()
    plan = replace(PLAN, policy=DropPolicy.DEADLINE, frame_budget_s=0.25, steps=3, width=128)

    await run(servicer, plan)

    opened = servicer.opens[0]
    assert (opened.drop_policy, opened.width, opened.settings.steps) == (3, 128, 3)
    assert opened.frame_budget.ToMilliseconds() == 250
    assert opened.frame_rate == FPS
    assert not opened.settings.HasField("strength")


async def test_the_transport_benchmark_measures_each_server_both_ways() -> None:
    servers = {name: await start_server(EchoServicer()) for name in ("echo", "service")}
    addresses = {name: (address, []) for name, (_, address) in servers.items()}

    # The generator makes its own event loop, as in the benchmark.
    closed, opened = await asyncio.to_thread(
        measure, addresses, streams=2, seconds=0.1, frames=10, rounds=2, size=100
    )

    for server, _ in servers.values():
        await server.stop(None)
    assert {name: result.translated for name, result in closed.items()} == {"echo": 20, "service": 20}
    assert {name: result.translated for name, result in opened.items()} == {"echo": 6, "service": 6}
    assert all(not result.violations for result in (*closed.values(), *opened.values()))


async def test_streams_that_arrive_at_random_all_run(run: Run) -> None:
    plan = replace(PLAN, streams=3, arrival=Arrival.POISSON, arrival_rate=50.0)

    result = await run(EchoServicer(), plan)

    assert result.translated == 3 * FRAMES


async def test_a_server_that_is_not_there_is_a_result_not_an_exception() -> None:
    result = await run_load(replace(IMPATIENT, target="127.0.0.1:1"), PAYLOADS)

    assert result.translated == 0
    assert set(result.ends) <= {"UNAVAILABLE", "NO_END"}
    assert result.problems


def test_several_processes_make_one_result() -> None:
    from loadtest.echo import echo_server

    with echo_server() as (address, pid):
        plan = replace(PLAN, target=address, streams=3)
        result = generate(plan, PAYLOADS, processes=2, watch_pids=[pid])

    assert [stream.stream for stream in result.streams] == [0, 1, 2]
    assert result.translated == 3 * FRAMES
    assert result.histograms.count("latency") == 3 * FRAMES
    assert result.violations == {}
    assert result.server_cpu_s is not None
    assert result.server_cpu_s > 0
