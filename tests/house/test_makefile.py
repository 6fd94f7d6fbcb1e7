"""The Makefile runs on what macOS brings: GNU make 3.81, bash 3.2 and BSD's tools. None of them is here, so
what they lack is looked for by name, and `make help` runs with POSIX's tools alone.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.require import skip_or_fail

pytestmark = pytest.mark.unit

TOOLS = (
    "awk",
    "bash",
    "cat",
    "cksum",
    "cut",
    "echo",
    "env",
    "grep",
    "make",
    "mv",
    "rm",
    "tail",
    "touch",
    "tr",
)
"""POSIX's, and those that a Makefile needs."""
LACKING = {
    "GNU coreutils": r"\b(sha(256|512|1)sum|md5sum|nproc|realpath|readlink -f|timeout|tac|numfmt|getent)\b",
    "options of GNU": r"\b(sed -[ir]|grep -P|cp -[a-z]*t|xargs -r|date -d|stat -c|mktemp -p|sort -V)",
    "grep of GNU": r"grep [^|\n]*\\[bwd<>]",
    "bash 4": r"\$\{\w+(\^\^?|,,?)\}|\b(mapfile|readarray|coproc|declare -A)\b|&>>|\|&|\*\*/",
    "make 3.82": r"^\.ONESHELL|\$\(file |^define \w+ *[:?+]?=|^undefine |^\w+ *!=|::=",
}


@pytest.fixture(scope="module")
def makefile(root: Path) -> str:
    return (root / "Makefile").read_text(encoding="utf-8")


def lacking(text: str) -> set[str]:
    """What macOS would not run, by kind and words."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return {
        f"{kind}: {found.group().strip()}"
        for kind, pattern in LACKING.items()
        for found in re.finditer(pattern, lines, re.MULTILINE)
    }


def test_it_uses_nothing_that_macos_lacks(makefile: str) -> None:
    assert lacking(makefile) == set()


@pytest.mark.parametrize(
    "breach",
    [
        "KEY := $(shell cat a | sha256sum)",
        "\t@sed -i s/a/b/ file",
        "\t@grep -vE '^nvidia\\b' file",
        "\t@echo $${kind^^}",
        "\t@mapfile -t lines < file",
        "define install =",
        "PYTHON != which python3",
    ],
)
def test_what_macos_lacks_is_seen(makefile: str, breach: str) -> None:
    assert len(lacking(f"{makefile}\n{breach}\n")) == 1


def test_help_needs_posix_tools_alone(root: Path, tmp_path: Path) -> None:
    for tool in TOOLS:
        where = shutil.which(tool)
        if where is None:
            skip_or_fail(f"{tool} is missing")
        (tmp_path / tool).symlink_to(where)
    done = subprocess.run(
        ["make", "help"],
        cwd=root,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "LANG": os.environ.get("LANG", "C")},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"^  make demo +translate the bundled clip", done.stdout, re.MULTILINE)
    assert "make picture" in done.stdout


def test_every_target_is_phony_or_a_file(makefile: str) -> None:
    named = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", makefile, re.MULTILINE)
    assert named is not None
    phony = set(named.group(1).replace("\\", " ").split())
    assert phony == set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))


def test_a_python_that_is_too_old_is_told_for_both_systems(root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "demo", "PYTHON=", f"VENV={tmp_path / 'venv'}"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "Debian: apt install" in done.stderr
    assert "macOS: brew install" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("name", ["torch", "diffusers", "ray"])
def test_packages_are_compiled_when_they_are_installed(name: str) -> None:
    """Else every process compiles them anew where bytecode is not written: 7 s for one that loads a model."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    assert Path(importlib.util.cache_from_source(found.origin)).exists()
