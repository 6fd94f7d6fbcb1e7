"""The traffic and the validators of the suite on a Ray of several nodes, with a replica of every span and an
ingress on each: a node is ended or lost, or the GCS is, for a while.

python -m loadtest.reliability.nodes                          all kinds, and the result file
python -m loadtest.reliability.nodes --kind "node killed"     one of them
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rearview.config import ServiceConfig, load_config
from rearview.control.circuit import Circuit
from rearview.directory import open_directory

from loadtest.figures import RESULTS, Figure, ResultFile, show
from loadtest.reliability.counters import scrape
from loadtest.reliability.history import Fault, Run, Snapshot, read_history
from loadtest.reliability.plan import Plan, make_plan
from loadtest.reliability.ray_nodes import RayNode, RayNodes, free_port, wait_until
from loadtest.reliability.recovery import recoveries
from loadtest.reliability.runs import LIMITS, Outcome, RunPlan, config_of
from loadtest.reliability.spawner import Spawner
from loadtest.reliability.validators import validate

__all__ = ["KINDS", "NAME", "main", "section"]

NAME = "nodes"
CLIENTS, LATER = "clients", "clients-later"
BEGIN_S = 3.0
"""Traffic runs for so long before anything is hurt."""
AFTER_S = 4.0
"""Sessions that are opened when all is over: how long they run."""
CLIENTS_S = 240.0
"""After the last frame was due: the clients must have ended."""
WHOLE_S = 240.0
SETTLE_S = 30.0
LOOK_EVERY_S = 0.5
WRONGS = {"silently lost": "V1", "reordered": "V2", "doubled": "V3", "of another session": "V4"}
"""By the validator that finds it."""


class NodesService:
    """The service on all nodes, as Ray Serve runs it."""

    def __init__(self, config: ServiceConfig, nodes: int) -> None:
        self.config, self._nodes = config, nodes
        self._ingress: Any = None

    def start(self) -> None:
        """Until it serves."""
        from ray import serve
        from rearview.app import INGRESS
        from rearview.local import deploy

        deploy(self.config)
        self._ingress = serve.get_deployment_handle(INGRESS, self.config.name)
        self.until_whole()

    @property
    def address(self) -> str:
        """All ingresses share it: a new connection finds one that lives."""
        return f"{self.config.ingress.host}:{self.config.ingress.port}"

    def ingresses(self) -> list[Mapping[str, Any]]:
        """What each says of itself; who does not answer is not there."""
        answers = self._ingress.broadcast("describe").results(timeout_s=30, return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def stages(self) -> list[Mapping[str, Any]]:
        """What each replica says of itself."""
        return list(self.ingresses()[0]["stages"])

    def until_whole(self) -> None:
        """Every node has an ingress and a replica of every span."""

        def is_whole() -> bool:
            ingresses = self.ingresses()
            stages = ingresses[0]["stages"] if ingresses else []
            wanted = self._nodes * len(self.config.spans)
            living = [stage for stage in stages if not stage["draining"]]
            return len(ingresses) == self._nodes and len(stages) == len(living) == wanted

        wait_until(is_whole, WHOLE_S, "every node serves")

    def busiest_node(self, but: str) -> str:
        """Ray's id of the node with most sessions; never of `but`."""
        sessions: dict[str, int] = {}
        for stage in self.stages():
            sessions[stage["node"]] = sessions.get(stage["node"], 0) + len(stage["sessions"])
        return max((node for node in sessions if node != but), key=lambda node: sessions[node])

    async def snapshot(self, *, is_whole: bool = True) -> Snapshot:
        """What it holds and has counted now."""
        ingresses = await asyncio.to_thread(self.ingresses)
        directory = open_directory(self.config.directory, Circuit())
        try:
            leases = [lease for lease in await directory.list(None) if lease.expiry_s > time.time()]
        finally:
            await directory.close()
        return Snapshot(
            slots={stage["replica_id"]: len(stage["sessions"]) for stage in ingresses[0]["stages"]},
            leases=len(leases),
            frames=await scrape(ingress["metrics_urls"][0] for ingress in ingresses),
            is_whole=is_whole,
        )


@dataclass
class Scene:
    """All that a fault may touch."""

    ray_nodes: RayNodes
    service: NodesService
    resources: Mapping[str, float]
    outage_s: float
    done: list[Fault] = field(default_factory=list)

    def note(self, kind: str, target: str) -> None:
        """A fault begins now."""
        self.done.append(Fault(kind, target, time.monotonic()))

    def over(self) -> None:
        """The last one is over now."""
        self.done.append(replace(self.done.pop(), until_s=time.monotonic()))


def _node_killed(scene: Scene) -> None:
    """Its raylet, replicas and ingress at once; then another one comes."""
    node = _victim(scene)
    scene.note("SIGKILL", "node")
    node.kill()
    scene.ray_nodes.add(scene.resources)


def _node_ended(scene: Scene) -> None:
    """As a pod: SIGTERM, and its replacement starts at the same time."""
    node = _victim(scene)
    scene.note("SIGTERM", "node")
    node.end()
    scene.ray_nodes.add(scene.resources)
    node.wait()
    scene.over()


def _gcs_killed(scene: Scene) -> None:
    """It comes back under its address, with what its storage knows."""
    gcs = scene.ray_nodes.gcs
    scene.note("SIGKILL", "GCS")
    gcs.kill()
    time.sleep(scene.outage_s)
    gcs.start()
    scene.over()


def _gcs_frozen(scene: Scene) -> None:
    gcs = scene.ray_nodes.gcs
    scene.note("SIGSTOP", "GCS")
    gcs.freeze()
    time.sleep(scene.outage_s)
    gcs.wake()
    scene.over()


def _victim(scene: Scene) -> RayNode:
    """The busiest node; never the head."""
    import ray

    node = scene.ray_nodes.node_of(scene.service.busiest_node(ray.get_runtime_context().get_node_id()))
    assert node is not None, "the head is never hurt"
    return node


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault."""

    deed: Callable[[Scene], None]
    """Blocks until it is over."""
    hurts_gcs: bool = False


KINDS: Mapping[str, Kind] = {
    "node ended": Kind(_node_ended),
    "node killed": Kind(_node_killed),
    "GCS killed": Kind(_gcs_killed, hurts_gcs=True),
    "GCS frozen": Kind(_gcs_frozen, hurts_gcs=True),
}
"""By name."""


def nodes_config(folder: Path, nodes: int, redis_url: str) -> ServiceConfig:
    """The service of the suite, spread over nodes by resources that each has once."""
    plain = config_of(RunPlan(0, ingresses=nodes), folder, redis_url).model_dump(mode="json")
    plain["ingress"] |= {"replicas": nodes, "port": free_port(), "resources": {"ingress": 1}}
    for span in plain["spans"]:
        span |= {"replicas": nodes, "resources": {span["name"]: 1}}
    return load_config(plain)


def resources_of(config: ServiceConfig) -> dict[str, float]:
    """What a node needs to hold one of each."""
    return {"ingress": 1, **{span.name: 1 for span in config.spans}}


async def perform(plan: RunPlan, scene: Scene, folder: Path, spawner: Spawner) -> Outcome:
    """One run on the cluster, which is whole afterwards."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    began_s, kind = time.monotonic(), KINDS[plan.kind]
    scene.done.clear()
    base = await scene.service.snapshot()
    seconds = max(plan.seconds, BEGIN_S + scene.outage_s + AFTER_S) if kind.hurts_gcs else plan.seconds
    traffic = make_plan(plan.seed, streams=plan.streams, seconds=seconds)
    first = await _clients(spawner, folder, traffic, scene.service.address, CLIENTS)
    await asyncio.sleep(BEGIN_S)
    await asyncio.to_thread(kind.deed, scene)
    await asyncio.to_thread(scene.service.until_whole)
    later = make_plan(plan.seed + 1, streams=plan.streams, seconds=AFTER_S)
    later = replace(later, streams=tuple(replace(s, key=f"{s.key}0000") for s in later.streams))
    second = await _clients(spawner, folder, later, scene.service.address, LATER)
    async with asyncio.timeout(seconds + CLIENTS_S):
        await asyncio.gather(first, second)
    run = Run(
        replace(traffic, streams=(*traffic.streams, *later.streams)),
        read_history([folder / f"{name}.jsonl" for name in (CLIENTS, LATER)]),
        tuple(scene.done),
        base,
        await _settled(scene.service, base, is_whole=kind.hurts_gcs),
    )
    load = round(os.getloadavg()[0], 1)
    outcome = Outcome(plan, run, validate(run, LIMITS), recoveries(run), time.monotonic() - began_s, load)
    content = {"outcome": outcome.as_json(), **run.as_json()}
    (folder / "run.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return outcome


async def _clients(
    spawner: Spawner, folder: Path, plan: Plan, address: str, name: str
) -> asyncio.Future[int]:
    """Start a process of clients; its status, once it has ended."""
    ended: Future[int] = Future()
    order = {
        "run": "clients",
        "folder": str(folder),
        "log": str(folder / "logs" / f"{name}.log"),
        "plan": plan.to_json(),
        "addresses": [address],
        "start_s": time.monotonic() + 0.2,
        "history": str(folder / f"{name}.jsonl"),
    }
    await asyncio.wrap_future(spawner.start(name, order, ended.set_result))
    return asyncio.wrap_future(ended)


async def _settled(service: NodesService, base: Snapshot, *, is_whole: bool) -> Snapshot:
    """The state once all is given back, or when there was time enough for it."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        end = await service.snapshot(is_whole=is_whole)
        if (not any(end.slots.values()) and end.leases <= base.leases) or time.monotonic() > until_s:
            return end
        await asyncio.sleep(LOOK_EVERY_S)


async def perform_all(
    wanted: Sequence[RunPlan], scene: Scene, folder: Path, spawner: Spawner
) -> list[dict[str, Any]]:
    """Run after run on one cluster."""
    found = []
    for plan in wanted:
        where = folder / f"{plan.kind.replace(' ', '-')}-{plan.seed}"
        outcome = (await perform(plan, scene, where, spawner)).as_json()
        found.append(outcome)
        print(f"{plan.kind}: {outcome['frames']} frames, {outcome['seconds']} s", flush=True)
        for violation in outcome["violations"][:10]:
            print(f"    {violation}", flush=True)
    return found


def result(runs: Sequence[dict[str, Any]], nodes: int, outage_s: float, command: str) -> ResultFile:
    """What all runs say."""
    setting = f"chain model, {nodes} nodes, {len(runs)} runs"
    found = [violation.split()[0] for run in runs for violation in run["violations"]]
    figures = [Figure("frames checked", setting, sum(run["frames"] for run in runs), "")]
    for what, validator in WRONGS.items():
        figures.append(Figure(what, setting, found.count(validator), "", 0.0, at_most=True))
    figures.append(Figure("violations of any kind", setting, len(found), "", 0.0, at_most=True))
    loads = [run["load"] for run in runs]
    detail = {"nodes": nodes, "outage_s": outage_s, "runs": list(runs), "load": [min(loads), max(loads)]}
    return ResultFile.of(NAME, command, figures, detail)


def section(result: ResultFile) -> Iterator[str]:
    """What the document says of it."""
    detail = result.detail
    low, high = detail["load"]
    yield "## Several nodes\n"
    yield (
        f"`{result.command}` on {result.machine['date'][:10]}, commit {result.machine['commit']}: a Ray of"
        f" {detail['nodes']} nodes on one machine, each with an address, a raylet, a replica of both spans"
        " and an ingress of its own, a directory in Valkey, and the GCS with a Valkey of its own. A node is"
        " ended as a pod is (SIGTERM, and Ray drains it) or lost with everything on it, and another one takes"
        f" its place; the GCS is killed or frozen for {detail['outage_s']:g} s. After it, more sessions"
        f" are opened. The machine's load average was {low:g} to {high:g} meanwhile.\n"
    )
    yield (
        "| fault | frames | moved exact / approximate / reset | resumed | ended | back p50 | worst | wrong |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for run in detail["runs"]:
        moved, times = run["moved"], sorted(run["recovery_s"])
        said = f"{moved['exact']} / {moved['approximate']} / {moved['reset']}"
        back = f"{times[len(times) // 2]:.2f} s | {times[-1]:.2f} s" if times else "|"
        yield (
            f"| {run['kind']} | {run['frames']:,} | {said} | {run['resumed']} | {run['ended_announced']} |"
            f" {back} | {len(run['violations'])} |"
        )
    yield ""


def main(
    kind: Annotated[list[str] | None, typer.Option(help="Only these kinds of fault.")] = None,
    nodes: Annotated[int, typer.Option(min=2, help="Of the Ray.")] = 3,
    streams: Annotated[int, typer.Option(min=3, help="Of clients, in each run.")] = 8,
    seconds: Annotated[float, typer.Option(min=5.0, help="Of traffic, in each run.")] = 20.0,
    outage_s: Annotated[float, typer.Option("--outage", min=1.0, help="Of the GCS, seconds.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the first run.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the result file.")] = RESULTS,
    keep: Annotated[bool, typer.Option("--keep", help="Keep histories and logs.")] = False,
) -> None:
    """Hurt nodes of a Ray, and its GCS, and judge what became of the sessions."""
    kinds = kind or list(KINDS)
    if unknown := [each for each in kinds if each not in KINDS]:
        raise typer.BadParameter(f"there is no {unknown[0]!r}; there are: {', '.join(KINDS)}")
    from support.valkey import Server

    folder = Path(tempfile.mkdtemp(prefix="rearview-nodes-"))
    plans = [
        RunPlan(seed + number, each, "pipeline", nodes, streams, seconds) for number, each in enumerate(kinds)
    ]
    with ExitStack() as stack:
        for name in ("directory", "gcs"):
            (folder / name).mkdir()
        redis, storage = Server(folder / "directory"), Server(folder / "gcs")
        for server in (redis, storage):
            server.start()
            stack.callback(server.stop)
        config = nodes_config(folder, nodes, redis.url)
        resources = resources_of(config)
        ray_nodes = stack.enter_context(RayNodes(resources, storage=f"127.0.0.1:{storage.port}"))
        ray_nodes.connect()
        ray_nodes.add(resources, nodes - 1)
        service = NodesService(config, nodes)
        service.start()
        spawner = stack.enter_context(Spawner())
        scene = Scene(ray_nodes, service, resources, outage_s)
        found = asyncio.run(perform_all(plans, scene, folder, spawner))
    command = f"python -m loadtest.reliability.nodes {shlex.join(sys.argv[1:])}".strip()
    report = result(found, nodes, outage_s, command)
    show(report, report.write(out))
    is_wrong = any(run["violations"] for run in found)
    if is_wrong or keep:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    raise typer.Exit(1 if is_wrong else 0)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests")]
    typer.run(main)
