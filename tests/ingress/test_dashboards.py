"""Dashboards and rules against a real Prometheus, which scrapes a running service."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import OPERATORS, RawStream, running
from support.require import skip_or_fail

NAMES = ("service", "capacity", "tenants", "stages")
PIPELINE = ((OPERATORS[0],), OPERATORS[1:])
FRAMES = 40
TRANSLATED = 'sum(rearview_frames_total{outcome="translated"})'
FILL = "max(span:rearview_batch_rows:fill_rate5m)"


def expressions(root: Path) -> Iterator[tuple[str, str]]:
    """Panel and expression, of all dashboards."""
    for name in NAMES:
        board = json.loads((root / f"deploy/grafana/{name}.json").read_text(encoding="utf-8"))
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield f"{name}: {panel['title']}", target["expr"]


@pytest.mark.unit
def test_the_dashboards_are_those_that_are_built(root: Path, tmp_path: Path) -> None:
    folder = root / "deploy/grafana"
    subprocess.run([sys.executable, folder / "build.py", tmp_path], check=True, timeout=60)
    assert {path.stem for path in folder.glob("*.json")} == set(NAMES)
    for name in NAMES:
        found = (folder / f"{name}.json").read_text(encoding="utf-8")
        assert found == (tmp_path / f"{name}.json").read_text(encoding="utf-8"), "run deploy/grafana/build.py"
        panels = json.loads(found)["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)


class Prometheus:
    """A server that scrapes every second, and has the rules of the cluster."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def query(self, expression: str) -> Sequence[Mapping[str, Any]]:
        """What it answers now. Raises HTTPError for an expression that it cannot read."""
        url = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        answer = await asyncio.to_thread(self._get, url)
        assert answer["status"] == "success"
        result: Sequence[Mapping[str, Any]] = answer["data"]["result"]
        return result

    async def value(self, expression: str) -> float:
        """Of the one series; NaN if there is not one."""
        found = await self.query(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else float("nan")

    async def rules(self) -> Sequence[Mapping[str, Any]]:
        """All, with what came of them."""
        answer = await asyncio.to_thread(self._get, f"{self._url}/api/v1/rules")
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    async def answers(self) -> bool:
        try:
            await self.query("up")
        except OSError:
            return False
        return True

    @staticmethod
    def _get(url: str) -> Any:
        with urllib.request.urlopen(url, timeout=20) as response:
            return json.load(response)


@asynccontextmanager
async def prometheus(root: Path, folder: Path, targets: Sequence[str]) -> AsyncIterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        skip_or_fail("prometheus is not installed (Debian: apt install prometheus)")
    manifest = yaml.safe_load((root / "k8s/base/prometheus-rule.yaml").read_text(encoding="utf-8"))
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": manifest["spec"]["groups"]}))
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "rearview", "static_configs": [{"targets": list(targets)}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = (folder / "log").open("wb")
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    server = Prometheus(f"http://{address}")
    try:
        await eventually(server.answers)
        yield server
    finally:
        process.terminate()
        await process.wait()
        log.close()


@pytest.mark.integration
async def test_every_panel_and_rule_reads_what_a_running_service_exposes(
    root: Path, tmp_path: Path, image_checkpoint: str, images: dict[str, bytes]
) -> None:
    """Every expression is one that Prometheus reads; those of a healthy service have values."""
    model = {"checkpoint": image_checkpoint}
    async with running(model=model, spans=PIPELINE) as service:
        urls = [*service.metrics_urls, *(stage.describe()["metrics_url"] for stage in service.stages)]
        targets = [urllib.parse.urlsplit(url).netloc for url in urls]
        async with prometheus(root, tmp_path, targets) as server, RawStream(service.address) as stream:
            await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            await eventually(lambda: is_value(server, "sum(up)", len(targets)))
            for number in range(FRAMES):
                await stream.frame(number, images["good"], pb.IMAGE_FORMAT_JPEG)
                await stream.read_answers(1)
                if number in (0, 1, FRAMES - 1):  # A rate is of what two scrapes have seen.
                    await eventually(lambda n=number: is_value(server, TRANSLATED, n + 1))
            await eventually(lambda: is_value(server, "tenant:rearview_play:ratio_rate5m > bool 0", 1))
            assert await server.value("sum(rearview_first_picture_seconds_count)") == 1
            assert await server.value("sum(rearview_frame_jitter_seconds_count)") == FRAMES - 1
            assert await server.value('count(rearview_slots{span=~"span-."})') == len(PIPELINE)
            await eventually(lambda: is_value(server, f"{FILL} > bool 0", 1))
            assert await server.value(FILL) <= 1
            await eventually(
                lambda: is_value(server, "max(span:rearview_forward_seconds:busy_rate5m) > bool 0", 1)
            )
            empty = [panel for panel, expr in expressions(root) if not await server.query(expr)]
            assert set(empty) <= SELDOM, "these panels show nothing"
            assert {rule["health"] for rule in await server.rules()} == {"ok"}
            series = await server.value('count({__name__=~"rearview_.*"})')
            assert series < 1500, "labels without a bound"


SELDOM = frozenset(
    {
        "service: Opens refused",
        "service: Calls that ended with an error",
        "service: Sessions that went on elsewhere",
        "service: Gap of a move or recovery",
        "capacity: Refused for lack of room",
        "capacity: Outputs forgotten",
        "tenants: Opens refused",
        "tenants: Files reloaded",
        "stages: Checkpoint",
        "stages: Replicas taken for dead",
        "stages: Gap of a move or recovery",
    }
)
"""Of what has not happened there is no series yet."""


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """A scrape in time takes several intervals beside other load."""
    async with asyncio.timeout(90):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def is_value(server: Prometheus, expression: str, expected: float) -> bool:
    return await server.value(expression) == expected
