"""The protos, their generated stubs and the table of statuses say the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rearview.errors import STATUS_OF_REASON, Reason
from support.require import skip_or_fail

pytestmark = pytest.mark.unit


def test_status_of_each_reason_is_the_one_in_the_protos_comment(root: Path) -> None:
    lines = (root / "proto/rearview/v1/error_reason.proto").read_text(encoding="utf-8").splitlines()
    status, stated = "", {}
    for line in map(str.strip, lines):
        if line.startswith("// ["):
            status = line[4:].split("]")[0].split(",")[0]
        elif line.startswith("ERROR_REASON_") and status:
            stated[line.split()[0].removeprefix("ERROR_REASON_")] = status
    sent = {reason: code for reason, code in STATUS_OF_REASON.items() if reason is not Reason.UNREACHABLE}
    assert stated == {reason.name: code for reason, code in sent.items()}


def test_regenerating_the_stubs_changes_nothing(root: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        skip_or_fail("grpcio-tools is not installed")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    protos = sorted(str(path.relative_to(root)) for path in (root / "proto").rglob("*.proto"))
    plugins = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", *outputs, *protos]
    run = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PATH": plugins},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    made = {path.name: path.read_text() for path in (tmp_path / "rearview/v1").iterdir()}
    kept = {path.name: path.read_text() for path in (root / "services/rearview/v1").glob("*_pb2*.py*")}
    assert made == kept, "run `make stubs`"
