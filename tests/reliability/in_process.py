"""A run against the whole service in this process: what validators and planted bugs need takes a second."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from rearview.config import ServiceConfig, load_config
from rearview.ingress.auth import Caller, Metadata, Tenants
from support.raw_stream import quickly_stopped
from support.service import InProcessService, in_process_service

from loadtest.reliability.counters import scrape
from loadtest.reliability.history import Event, Fault, Log, Run, Snapshot, What
from loadtest.reliability.plan import Plan, StreamPlan, token_of, token_sha256
from loadtest.reliability.traffic import drive

OPERATORS = ("encode", "denoise-0", "denoise-1", "decode")
PIPELINE = (OPERATORS[:2], OPERATORS[2:])
TENANTS = ("alpha", "beta", "gamma")
SETTLE_S = 8.0
"""How long what is held may take to be given back."""


def chain_config(
    folder: Path, *, spans: Sequence[Sequence[str]] = PIPELINE, slots: int = 16, **sections: Any
) -> ServiceConfig:
    """The chain model behind tenants with tokens, with short graces."""
    tenants = folder / "tenants.yaml"
    content = [
        {"name": name, "token_sha256": token_sha256(name), "max_streams": 64, "max_frames_per_s": 5000.0}
        for name in TENANTS
    ]
    tenants.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_config(
        {
            "topology": "fused" if len(spans) == 1 else "pipeline",
            "spans": [
                {"name": f"span-{number}", "operators": list(operators), "slots": slots}
                for number, operators in enumerate(spans)
            ],
            "model": {"checkpoint": "chain:1+0.1", "width": 64, "height": 64},
            "ingress": {
                "port": 0,
                "resume_grace_s": 0.5,
                "idle_timeout_s": 2.0,
                **sections.get("ingress", {}),
            },
            "link": {"orphan_grace_s": 0.5},
            "tenants_file": str(tenants),
        }
    )


async def run_in_process(
    plan: Plan, config: ServiceConfig, faults: Sequence[Fault] = (), settle_s: float = SETTLE_S
) -> Run:
    """Start the service, make the traffic, and wait until what was held is given back, or is not."""
    log = Log()
    with ExitStack() as stack:
        stack.enter_context(quickly_stopped())
        async with in_process_service(config) as service:
            # Links between processes come with the first session, and stay.
            await drive(
                Plan(streams=(StreamPlan("alpha/99", "alpha", token_of("alpha"), frames=4),)),
                [service.address],
                Log(),
            )
            base = await snapshot(service)
            await drive(plan, [service.address], log)
            end, until_s = await snapshot(service), time.monotonic() + settle_s
            while not _is_settled(base, end) and time.monotonic() < until_s:
                await asyncio.sleep(0.05)
                end = await snapshot(service)
    return Run(plan, tuple(log.events), faults, base, end)


async def snapshot(service: InProcessService) -> Snapshot:
    """What the service holds now."""
    slots = {
        stage.describe()["replica_id"]: stage.describe()["slots"] - stage.describe()["free_slots"]
        for stage in service.stages
    }
    engines: dict[str, int] = {}
    for stage in service.stages:
        assert stage._runner is not None
        engines[f"engine of {stage.describe()['replica_id']}"] = await stage._runner.call(
            lambda engine: len(engine.sessions)
        )
    gc.collect()  # A channel of gRPC that is closed lets go of its socket when nobody has it any more.
    return Snapshot(
        slots={**slots, **engines},
        leases=len(await service.directory.list(None)),
        tasks={"service": len(asyncio.all_tasks())},
        fds={"service": len(os.listdir("/proc/self/fd"))},
        frames=await scrape(service.metrics_urls),
    )


def tokens_end_in(seconds: float) -> AbstractContextManager[object]:
    """Whoever calls from now on has a token that ends so soon: as a signed one says of itself."""
    authenticate = Tenants.authenticate

    def ending(self: Tenants, metadata: Metadata) -> Caller:
        return replace(authenticate(self, metadata), expires_s=time.time() + seconds)

    return mock.patch.object(Tenants, "authenticate", ending)


def _is_settled(base: Snapshot, end: Snapshot) -> bool:
    return (
        all(end.slots[name] <= base.slots[name] for name in base.slots)
        and end.leases <= base.leases
        and end.tasks["service"] <= base.tasks["service"] + 2
        and end.fds["service"] <= base.fds["service"] + 2
    )


def events_of(run: Run, what: What) -> list[Event]:
    """The events of one kind."""
    return [event for event in run.events if event.what is what]
