"""Habits of the tree: short files, nothing left over, nothing of one machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.checkout import checked_out

pytestmark = pytest.mark.unit

MAX_LINES = 500
TEXT = {".py", ".pyi", ".proto", ".yaml", ".yml", ".toml", ".md", ".txt", ".lua", ".cfg", ".sh", ""}
GENERATED = "services/rearview/v1/"
WEIGHTS = "services/rearview/checkpoints/"
# Written apart, so that this file does not find itself.
ONE_MACHINE = re.compile(
    "|".join(
        [
            "/" + r"root/",
            "/" + r"home/(?!rearview\b)\w",
            "/" + r"Users/\w",
            "/" + r"work/",
            "/" + "opt/wheels",
        ]
    )
)
LEFT_OVER = re.compile(
    r"\b(" + "TO" + "DO|FIX" + "ME|X" + r"XX)\b|\bbreak" + r"point\(|\bp" + r"db\.set_trace"
)


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, str]:
    """Text of every file that is, or would be, in the repository."""
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in checked_out(root)
        if path.suffix in TEXT
    }


def test_no_file_is_longer_than_can_be_read_in_one_sitting(files: dict[str, str]) -> None:
    # Modules of the services have a limit of their own (test_habits.py).
    written = {
        name: text
        for name, text in files.items()
        if not name.startswith((GENERATED, WEIGHTS))
        and not (name.startswith("services/") and name.endswith(".py"))
    }
    long = {name: text.count("\n") for name, text in written.items()}
    assert {
        name: lines
        for name, lines in long.items()
        if lines > MAX_LINES and name not in {"LICENSE", "docs/api.md"}
    } == {}


def test_no_file_names_a_path_of_one_machine(files: dict[str, str]) -> None:
    assert {name: found.group() for name, text in files.items() if (found := ONE_MACHINE.search(text))} == {}


def test_data_beside_the_checkout_is_found_by_environment_only(files: dict[str, str]) -> None:
    beside = ".." + "/shared"
    assert {name for name, text in files.items() if beside in text} == set()


def test_nothing_is_left_over(files: dict[str, str]) -> None:
    found = {name: hit.group() for name, text in files.items() if (hit := LEFT_OVER.search(text))}
    assert {name: hit for name, hit in found.items() if not name.startswith(GENERATED)} == {}


def test_constraints_pin_torch_and_name_no_source(files: dict[str, str]) -> None:
    lines = [line for line in files["constraints.txt"].splitlines() if not line.startswith("#")]
    pin = re.compile(r"[a-z0-9._-]+==[^\s@/]+( ; .+)?")
    assert [line for line in lines if not pin.fullmatch(line)] == []
    assert "torch==2.13.0" in lines
    assert not any(line.startswith(("nvidia", "cuda", "triton")) for line in lines)
