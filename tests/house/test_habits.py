"""Habits of the code: nothing too long to read, nothing public without a word about it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.laws import oversized, undocumented

pytestmark = pytest.mark.unit

LIMITS = {"max_file": 400, "max_class": 250, "max_function": 60}


def test_nothing_is_too_long(root: Path) -> None:
    assert oversized(root / "services", **LIMITS) == {}


def test_in_the_laboratory_a_command_is_short_with_its_options(root: Path) -> None:
    assert oversized(root / "services" / "rearview_lab", **LIMITS, counts_options=True) == {}


def test_every_module_and_every_public_class_has_a_docstring(root: Path) -> None:
    found = undocumented(root / "services")
    assert {name for name in found if "::" not in name or name.split("::")[1][0].isupper()} == set()


BODY = "    value = 1\n"
COMMAND = "def run(\n" + "    one: Annotated[int, Option()],\n" * 70 + "):\n"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("# a line\n" * 401, "module.py"),
        ("class Hub:\n" + BODY * 250, "module.py::Hub"),
        ("class Hub:\n    def run(self):\n" + ("    " + BODY) * 60, "module.py::Hub.run"),
        ("async def run():\n" + BODY * 60, "module.py::run"),
        ("if True:\n    def run():\n" + ("    " + BODY) * 60, "module.py::run"),
        (COMMAND + BODY * 61, "module.py::run"),
    ],
)
def test_what_is_too_long_is_seen(tmp_path: Path, text: str, seen: str) -> None:
    (tmp_path / "module.py").write_text(text, encoding="utf-8")
    assert set(oversized(tmp_path, **LIMITS)) == {seen}


@pytest.mark.parametrize("text", ["# a line\n" * 400, "def run():\n" + BODY * 59, COMMAND + BODY * 60])
def test_what_is_as_long_as_it_may_be_passes(tmp_path: Path, text: str) -> None:
    (tmp_path / "module.py").write_text(text, encoding="utf-8")
    assert oversized(tmp_path, **LIMITS) == {}


def test_where_options_count_a_long_command_is_seen(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(COMMAND + BODY, encoding="utf-8")
    assert set(oversized(tmp_path, **LIMITS, counts_options=True)) == {"module.py::run"}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("x = 1\n", {"module.py"}),
        ('"""M."""\nclass One:\n    pass\n', {"module.py::One"}),
        ('"""M."""\ndef one(): ...\n', {"module.py::one"}),
        ('"""M."""\ndef _one(): ...\n', set()),
        ("", set()),
    ],
)
def test_what_nobody_explains_is_seen(tmp_path: Path, text: str, seen: set[str]) -> None:
    (tmp_path / "module.py").write_text(text, encoding="utf-8")
    assert undocumented(tmp_path) == seen


def test_a_newcomer_has_at_most_900_lines_to_read(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d\. `(services/rearview/\S+\.py)`", text, flags=re.MULTILINE)
    assert len(listed) == 5
    assert sum(len((root / name).read_text(encoding="utf-8").splitlines()) for name in listed) <= 900
