"""The protos, their generated stubs, and our enums say the same."""

from __future__ import annotations

import enum
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rearview.errors import STATUS_OF_REASON, DropReason, Reason
from rearview.v1 import error_reason_pb2
from support.require import skip_or_fail

pytestmark = pytest.mark.unit


def proto_values(descriptor: error_reason_pb2.ErrorReason, prefix: str) -> dict[str, int]:
    values = {name.removeprefix(prefix): number for name, number in descriptor.items()}
    assert values.pop("UNSPECIFIED") == 0
    return values


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (Reason, error_reason_pb2.ErrorReason, "ERROR_REASON_"),
        (DropReason, error_reason_pb2.DropReason, "DROP_REASON_"),
    ],
)
def test_enum_has_the_names_and_numbers_of_the_proto(
    ours: type[enum.Enum], theirs: object, prefix: str
) -> None:
    assert {member.name: member.value for member in ours} == proto_values(theirs, prefix)


def test_status_of_each_reason_is_the_one_in_the_protos_comment(root: Path) -> None:
    lines = (root / "proto/rearview/v1/error_reason.proto").read_text(encoding="utf-8").splitlines()
    status, stated = "", {}
    for line in map(str.strip, lines):
        if line.startswith("// ["):
            status = line[4:].split("]")[0].split(",")[0]
        elif line.startswith("ERROR_REASON_") and status:
            stated[line.split()[0].removeprefix("ERROR_REASON_")] = status
    assert stated == {reason.name: code for reason, code in STATUS_OF_REASON.items()}


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
