"""The Node client as users get it, packed and installed, against real services: every frame is answered once
and in order, whatever is cut, moved or killed meanwhile; refusals come with their reason.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from support.ingresses import cut_at, several
from support.module_tests import INSTALLED, passed
from support.raw_stream import assert_nothing_held, eventually, null_config, quickly_stopped, running
from support.require import skip_or_fail
from support.service import in_process_service
from support.tiny import write_tiny_checkpoint
from support.tokens import sha256

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

TYPESCRIPT = "typescript@7.0.2"
FRAMES = 14
QUICK = {"firstWaitS": 0.01, "maxWaitS": 0.02, "acceptTimeoutS": 5}
LOSSLESS = {"dropPolicy": "lossless", "settings": {"prompt": "a"}, "reconnect": QUICK}
ITEMS: Sequence[Mapping[str, Any]] = [
    item
    for number in range(FRAMES)
    for item in (
        *([{"control": {"seed": number}}] if number in (3, 6) else []),
        {"frame": f"{number}", "index": 3 * number + 1},
    )
]
"""Frames whose numbers have gaps, and controls between them."""


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package is installed, with nothing of the checkout."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            skip_or_fail(f"{tool} is missing")
    folder = tmp_path_factory.mktemp("node")
    source = folder / "source/clients/node"
    shutil.copytree(root / "clients/node", source, ignore=shutil.ignore_patterns("node_modules", "proto"))
    shutil.copytree(root / "proto", folder / "source/proto")
    npm(source, "pack", "--pack-destination", str(folder))
    shutil.rmtree(folder / "source")
    (package,) = folder.glob("*.tgz")
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    npm(folder, "install", "--no-audit", "--no-fund", "--ignore-scripts", str(package))
    shutil.copy(root / "tests/client/node_session.mjs", folder)
    return folder


def npm(folder: Path, *arguments: str) -> None:
    run = subprocess.run(["npm", *arguments], cwd=folder, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stdout + run.stderr


async def session(installed: Path, address: str, opened: asyncio.Event | None = None, **asked: Any) -> Any:
    """What one session of the client came to."""
    told = {"address": address, "options": LOSSLESS, "items": ITEMS, **asked}
    process = await asyncio.create_subprocess_exec(
        "node", "node_session.mjs", json.dumps(told), cwd=installed, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    last: Any = {}
    async for line in process.stdout:
        last = json.loads(line)
        if "opened" in last and opened is not None:
            opened.set()
    assert await process.wait() == 0
    return last


def frames(found: Mapping[str, Any]) -> list[tuple[int, str]]:
    assert "error" not in found, found
    return [(each["index"], each["image"]) for each in found["answers"] if each["kind"] == "frame"]


def seeds(found: Mapping[str, Any]) -> list[tuple[int, int]]:
    applied = [each for each in found["answers"] if each["kind"] == "control-applied"]
    return [(each["seed"], each["receivedFrames"]) for each in applied]


WHOLE = [(3 * number + 1, f"{number}") for number in range(FRAMES)]
APPLIED = [(3, 3), (6, 6)]


def test_its_own_tests_pass(root: Path, installed: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(installed / "node_modules/@rearview/client", package)
    (folder,) = INSTALLED
    shutil.copytree(root / folder, package / "test")
    (package / "node_modules").symlink_to(installed / "node_modules")
    assert passed(package / "test", cwd=package) >= 14


async def test_every_frame_is_answered_in_order_and_controls_say_from_where(installed: Path) -> None:
    async with running() as service:
        found = await session(installed, service.address)
        assert frames(found) == WHOLE
        assert seeds(found) == APPLIED
        assert found["connections"] == 1
        await assert_nothing_held(service)


@pytest.mark.one_ingress
async def test_wherever_its_ingress_dies_nothing_is_lost_or_doubled(installed: Path) -> None:
    async with several(1) as service:
        for number in (5, 12, 19, 27):
            doomed = await service.add()
            with cut_at(doomed, number) as cut:
                found = await session(installed, f"{doomed.address},{service.addresses[0]}")
            assert cut.is_dead, number
            assert frames(found) == WHOLE, f"cut at {number}"
            assert seeds(found) == APPLIED
            assert found["connections"] == 2


async def test_a_session_that_moves_goes_on_and_says_so(installed: Path) -> None:
    async with running(replicas=2) as service:
        opened = asyncio.Event()
        going = asyncio.create_task(session(installed, service.address, opened, pauseMs=30))
        await opened.wait()
        await eventually(lambda: any(stage.num_sessions for stage in service.stages))
        (old,) = (stage for stage in service.stages if stage.num_sessions)
        await old.drain(20.0)
        found = await going
        assert frames(found) == WHOLE
        told = [each for each in found["answers"] if each["kind"] == "notice"]
        assert [(each["notice"], each["continuity"]) for each in told] == [("moved", "exact")]


async def test_a_service_without_room_refuses_and_says_when_to_ask_again(installed: Path) -> None:
    async with running(slots=1) as service:
        opened = asyncio.Event()
        first = asyncio.create_task(session(installed, service.address, opened, pauseMs=100))
        await opened.wait()
        refused = (await session(installed, service.address))["error"]
        assert (refused["name"], refused["reason"], refused["kind"]) == (
            "RearviewError",
            "NO_CAPACITY",
            "refused",
        )
        assert refused["retryAfterS"] > 0
        assert frames(await first) == WHOLE


async def test_a_tenant_over_its_quota_and_a_wrong_token_are_told_apart(
    installed: Path, tmp_path: Path
) -> None:
    tenant = {"name": "alpha", "token_sha256": sha256("alpha"), "max_streams": 1}
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump([tenant]))
    with quickly_stopped():
        async with in_process_service(null_config(tenants_file=str(path))) as service:
            opened = asyncio.Event()
            options = {**LOSSLESS, "token": "alpha"}
            how = {"options": options, "pauseMs": 100}
            first = asyncio.create_task(session(installed, service.address, opened, **how))
            await opened.wait()
            second = await session(installed, service.address, options=options)
            wrong = await session(installed, service.address, options={**LOSSLESS, "token": "beta"})
            assert second["error"]["reason"] == "TENANT_STREAMS_EXHAUSTED"
            assert second["error"]["metadata"] == {"max_streams": "1"}
            assert (wrong["error"]["reason"], wrong["error"]["kind"]) == ("TOKEN_INVALID", "invalid")
            assert frames(await first) == WHOLE


async def test_a_session_that_is_left_holds_nothing(installed: Path) -> None:
    async with running() as service:
        found = await session(installed, service.address, leave=True)
        assert found["error"]["reason"] == "CLOSED"
        await assert_nothing_held(service)


def check_types(folder: Path, name: str, text: str) -> subprocess.CompletedProcess[str]:
    (folder / name).write_text(text, encoding="utf-8")
    command = ["npx", "--yes", "-p", TYPESCRIPT, "tsc", "--noEmit", "--strict", "--skipLibCheck"]
    how = ["--module", "nodenext", "--target", "es2022", "--types", "", name]
    return subprocess.run([*command, *how], cwd=folder, capture_output=True, text=True, timeout=110)


USE = """
import { connect, RearviewError, type Answer } from "@rearview/client";

export async function run(image: Uint8Array): Promise<Answer[]> {
  const session = await connect(["one", "two:1"], { settings: { prompt: "a" }, dropPolicy: "latest" });
  await session.control({ guidance: "self", controls: [{ name: "edges", weight: 0.5 }] });
  await session.send(image, { format: "rgb" });
  const found: Answer[] = [];
  for await (const answer of session) if (answer.kind !== "dropped" || answer.reason) found.push(answer);
  return found;
}
export const isLater = (error: RearviewError): boolean => (error.retryAfterS ?? 0) > 0;
"""


def test_its_types_take_what_it_takes_and_nothing_else(installed: Path) -> None:
    run = check_types(installed, "use.ts", USE)
    assert run.returncode == 0, run.stdout + run.stderr
    run = check_types(
        installed, "breach.ts", USE.replace('"latest"', '"never"').replace("guidance:", "guide:")
    )
    assert '"never"' in run.stdout
    assert "guide" in run.stdout


async def test_the_readmes_example_runs(root: Path, installed: Path, tmp_path: Path) -> None:
    text = (root / "clients/node/README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```js\n(.*?)```", text, flags=re.DOTALL)
    checkpoint = str(write_tiny_checkpoint(tmp_path / "tiny"))
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(installed / "256x256.jpg")
    async with running(model={"checkpoint": checkpoint}) as service:
        (installed / "example.mjs").write_text(example.replace("127.0.0.1:50051", service.address))
        process = await asyncio.create_subprocess_exec(
            "node", "example.mjs", cwd=installed, stdout=asyncio.subprocess.PIPE
        )
        told, _ = await process.communicate()
    assert process.returncode == 0
    assert [line.split()[0] for line in told.decode().splitlines()] == [str(n) for n in range(8)]
