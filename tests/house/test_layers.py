"""Who may know whom: the contracts of pyproject.toml, and every room alone in a fresh process.

Each law is run a second time on a copy in which it is broken, and must see it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.laws import Room, effects, environment_reads, load, loaded, modules_of, room_breaches

pytestmark = pytest.mark.unit


def room(name: str, neighbours: str, never: str) -> Room:
    return Room(name, frozenset(neighbours.split()), frozenset(never.split()))


SERVERS = "ray grpc redis prometheus_client"
NETWORKS = "torch diffusers transformers"
# `errors` is everybody's.
ROOMS = {
    one.name: one
    for one in (
        room("contract", "errors", f"{SERVERS} {NETWORKS} numpy google.protobuf pydantic yaml asyncio"),
        room("schema", "errors contract v1", f"{SERVERS} {NETWORKS} pydantic yaml"),
        room("engine", "errors contract failpoints machine", f"{SERVERS} google.protobuf pydantic"),
        room("client", "errors contract schema v1", f"ray redis prometheus_client {NETWORKS} pydantic yaml"),
        room(
            "control",
            "errors contract access config model_config placement_config recovery_config telemetry_config",
            f"{SERVERS} {NETWORKS} numpy google.protobuf",
        ),
        room(
            "transport",
            "errors environment files machine contract access config model_config placement_config"
            " recovery_config telemetry_config",
            f"{SERVERS} {NETWORKS}",
        ),
        room(
            "directory",
            "errors contract access config model_config placement_config recovery_config environment"
            " telemetry_config",
            f"ray grpc prometheus_client {NETWORKS}",
        ),
        room("telemetry", "errors contract access telemetry_config", f"ray grpc redis {NETWORKS}"),
        room(
            "ingress",
            "errors environment failpoints files machine contract access config placement_config"
            " model_config recovery_config telemetry_config schema v1 control transport directory telemetry",
            f"ray {NETWORKS}",
        ),
        room(
            "planning",
            "errors failpoints machine contract control engine ingress",
            f"{SERVERS} google.protobuf pydantic",
        ),
    )
}
NO_EVENT_LOOP = frozenset({"asyncio", "ray", "grpc", "redis", "prometheus_client"})
NO_DEEDS = NO_EVENT_LOOP | frozenset(
    {"time", "datetime", "os", "io", "socket", "threading", "subprocess", "logging", "random", "secrets"}
    | {"urllib", "torch"}
)
NO_CALLS = frozenset(
    {"open", "print", "input", "read_text", "read_bytes", "write_text", "write_bytes", "sleep", "connect"}
)


@pytest.fixture(scope="module", autouse=True)
def importing(root: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A process per room that imports it, at work while other tests run: the engine's takes longest."""
    running = {name: load(root / "services", name) for name in ROOMS}
    yield running
    for process in running.values():
        process.kill()
        process.communicate()


BREACHES = {
    "another's module": ("import redis", {"redis"}),
    "another room": ("from rearview.cli import demo", {"rearview.cli"}),
    "through a neighbour": ("import rearview.errors", {"grpc"}),
    "inside a function that runs": ("def start():\n    import grpc\nstart()", {"grpc"}),
}


@pytest.mark.parametrize("kind", BREACHES)
def test_a_breach_deep_in_a_room_is_seen(tmp_path: Path, kind: str) -> None:
    text, seen = BREACHES[kind]
    for folder in ("engine/networks", "cli"):
        (tmp_path / "rearview" / folder).mkdir(parents=True)
    for package in ("", "engine", "engine/networks", "cli"):
        (tmp_path / "rearview" / package / "__init__.py").touch()
    (tmp_path / "rearview/cli/demo.py").touch()
    (tmp_path / "rearview/errors.py").write_text("import grpc" if kind == "through a neighbour" else "")
    assert room_breaches(ROOMS["engine"], loaded(load(tmp_path, "engine"))) == set()
    (tmp_path / "rearview/engine/networks/deep.py").write_text(text, encoding="utf-8")
    assert room_breaches(ROOMS["engine"], loaded(load(tmp_path, "engine"))) == seen


def test_the_engine_has_no_event_loop_and_control_does_nothing(root: Path) -> None:
    # torch itself imports asyncio: what is loaded proves nothing here, what is written does.
    services = root / "services/rearview"
    assert effects(services / "engine", NO_EVENT_LOOP) == set()
    assert effects(services / "control", NO_DEEDS, NO_CALLS) == set()


@pytest.mark.parametrize(
    "text",
    [
        "import time\nNOW = time.monotonic",
        "from datetime import datetime",
        "import urllib.request",
        "def load(path):\n    return path.read_text()",
        "def load(path):\n    with open(path) as file:\n        return file",
        "async def later(): ...",
        "def decide(state):\n    import socket",
    ],
)
def test_control_that_does_something_is_seen(tmp_path: Path, text: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/moves.py").write_text(text, encoding="utf-8")
    assert effects(tmp_path, NO_DEEDS, NO_CALLS)


def test_only_one_module_reads_the_environment(root: Path) -> None:
    assert environment_reads(root / "services") == set()


@pytest.mark.parametrize(
    ("text", "is_seen"),
    [
        ("import os\nHOME = os.environ['HOME']", True),
        ("import os\nHOME = os.environ.get('HOME')", True),
        ("from os import getenv", True),
        ("NAME = 'REARVIEW_TOKEN'", True),
        ("import os\nos.environ.setdefault('HF_HUB_OFFLINE', '1')", False),
    ],
)
def test_reading_the_environment_is_seen(tmp_path: Path, text: str, is_seen: bool) -> None:
    (tmp_path / "rearview").mkdir()
    for name in ("app", "environment"):
        (tmp_path / f"rearview/{name}.py").write_text(text, encoding="utf-8")
    assert {one.split(":")[0] for one in environment_reads(tmp_path)} == (
        {"rearview/app.py"} if is_seen else set()
    )


# --- the contracts of pyproject.toml

PLANTED = {
    "rooms": ("rearview/transport/breach.py", "import rearview.directory"),
    "contract": ("rearview/contract/breach.py", "import numpy"),
    "engine": ("rearview/engine/memory/breach.py", "from rearview.config import load_config"),
    "client": ("rearview/client/breach.py", "import rearview.config"),
    "client-machine": ("rearview/client/inbox.py", "import asyncio"),
    "control": ("rearview/control/breach.py", "def decide():\n    import time"),
    "edge": ("rearview/ingress/breach.py", "from rearview.engine import rows"),
    "schema": ("rearview/schema/breach.py", "import grpc"),
    "links": ("rearview/replica/breach.py", "import rearview.schema.enums"),
    "planning": ("rearview/planning/breach.py", "import rearview.transport"),
    "callers": ("rearview/ingress/breach.py", "from rearview.client import aio"),
    "studio": ("rearview/studio/breach.py", "from rearview.config import load_config"),
    "laboratory": ("rearview/cli/breach.py", "import rearview_lab.data.styles"),
    "laboratory-knows": ("rearview_lab/training/breach.py", "import rearview.ingress.codec"),
    "laboratory-rooms": ("rearview_lab/data/breach.py", "from rearview_lab.training import model"),
}
"""Contract to a module that breaks it."""
INDIRECT = {
    "contract": ("rearview/errors.py", "import numpy"),
    "engine": ("rearview/contract/chain.py", "import rearview.v1"),
    "client-machine": ("rearview/client/options.py", "from rearview.client import faults"),
    "edge": ("rearview/errors.py", "import torch"),
    "laboratory-knows": ("rearview/engine/rows.py", "import rearview.config"),
    "callers": ("rearview/telemetry/logging.py", "import rearview.client"),
}
"""Contract to what breaks it although no module that it names changes."""


def contracts(root: Path) -> list[dict[str, object]]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, object]] = project["tool"]["importlinter"]["contracts"]
    return found


def lint(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    command = [str(program), "--no-cache", "--config", str(folder / "pyproject.toml"), *options]
    environment = {**os.environ, "PYTHONPATH": str(folder / "services")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture(scope="module")
def copied(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules of both packages, and the contracts."""
    copy = tmp_path_factory.mktemp("house")
    no_modules = shutil.ignore_patterns("checkpoints", "__pycache__", "*.pyi", "*.mp4", "*.npy")
    shutil.copytree(root / "services", copy / "services", ignore=no_modules)
    shutil.copy(root / "pyproject.toml", copy)
    return copy


@pytest.fixture
def house(copied: Path) -> Iterator[Path]:
    """The copy, to be changed by one test."""
    before = {path: path.read_bytes() for path in copied.rglob("*.py")}
    yield copied
    for path in set(copied.rglob("*.py")) - set(before):
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


def test_import_contracts_hold(root: Path) -> None:
    run = lint(root)
    assert run.returncode == 0, run.stdout + run.stderr


def test_contracts_count_indirect_imports_and_each_is_planted(root: Path) -> None:
    assert {str(one["id"]) for one in contracts(root)} == set(PLANTED)
    assert [one["id"] for one in contracts(root) if one.get("allow_indirect_imports")] == []


@pytest.mark.parametrize("law", PLANTED)
def test_a_contract_sees_its_breach(house: Path, law: str) -> None:
    path, text = PLANTED[law]
    (house / "services" / path).write_text(text, encoding="utf-8")
    run = lint(house, "--contract", law)
    assert run.returncode == 1
    assert Path(path).stem in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("law", INDIRECT)
def test_a_contract_sees_a_breach_through_another_module(house: Path, law: str) -> None:
    path, text = INDIRECT[law]
    with (house / "services" / path).open("a", encoding="utf-8") as file:
        file.write(text)
    run = lint(house, "--contract", law)
    assert run.returncode == 1
    assert "BROKEN" in run.stdout, run.stdout + run.stderr


def test_a_room_without_a_place_is_seen(house: Path) -> None:
    (house / "services/rearview/attic.py").write_text("", encoding="utf-8")
    run = lint(house, "--contract", "rooms")
    assert run.returncode == 1
    assert "attic" in run.stdout, run.stdout + run.stderr


# --- last, since the engine is being imported meanwhile


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_loads_nothing_that_it_may_not_know(
    root: Path, importing: dict[str, subprocess.Popen[str]], name: str
) -> None:
    modules = loaded(importing[name])
    assert modules_of(root / "services", name) <= modules
    assert room_breaches(ROOMS[name], modules) == set()
