"""`rearview train` and `rearview eval` without the laboratory, and what the two distributions hold."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from rearview.cli.laboratory import NEEDED

pytestmark = pytest.mark.unit

LAB = "services/rearview_lab"
COMMANDS = [("eval",), ("eval", "--help"), ("eval", "--quick", "video.mp4"), ("train", "pocket", "--random")]
RUN = """
import sys, time
for name in {hidden!r}:
    sys.modules[name] = None
from rearview.cli.main import app
try:
    app({arguments!r})
finally:
    print(time.process_time(), [m for m in ("torch", "rearview_lab.evaluation") if m in sys.modules])
"""


def without(hidden: tuple[str, ...], *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`rearview ARGUMENTS` in a process of its own that sees only `folder` of our code."""
    script = f"import sys; sys.path.insert(0, {str(folder)!r})" + RUN.format(
        hidden=hidden, arguments=list(arguments)
    )
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )


@pytest.fixture
def service_alone(root: Path, tmp_path: Path) -> Path:
    """A folder with `rearview` in it and no `rearview_lab`."""
    (tmp_path / "rearview").symlink_to(root / "services/rearview")
    return tmp_path


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_without_the_laboratory_one_line_says_how_to_install_it(
    service_alone: Path, arguments: tuple[str, ...]
) -> None:
    run = without(("rearview_lab",), *arguments, folder=service_alone)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: rearview_lab is missing: pip install 'rearview[lab]'")
    seconds, _, loaded = run.stdout.partition(" ")
    assert loaded.strip() == "[]"
    assert float(seconds) < 2.0  # of CPU: others may be at work here


@pytest.mark.parametrize("name", [name for name in NEEDED if name != "rearview_lab"])
def test_what_the_laboratory_needs_is_asked_for_by_name(root: Path, name: str) -> None:
    run = without((name,), "eval", "--quick", folder=root / "services")
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {name} is missing: pip install 'rearview[lab]'")
    assert run.stdout.split(" ", 1)[1].strip() == "[]"


def test_its_commands_get_their_options_and_their_help() -> None:
    program = Path(sys.executable).with_name("rearview")
    helps = [(("eval", "--help"), "--drift-styles"), (("train", "pocket", "-h"), "--finish-only")]
    for arguments, text in helps:
        run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=100, check=True)
        assert text in run.stdout
    wrong = subprocess.run([program, "eval", "--holiday"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "--holiday" in wrong.stderr


def test_paths_that_cannot_be_are_named_before_torch_is_imported(root: Path, tmp_path: Path) -> None:
    for arguments in (["holiday.mp4"], ["--json", str(tmp_path / "none/eval.json")]):
        run = without((), "eval", *arguments, folder=root / "services")
        assert run.returncode == 1
        assert arguments[-1] in run.stderr
        assert "torch" not in run.stdout


def test_what_is_looked_for_is_what_its_distribution_asks_for(root: Path) -> None:
    project = tomllib.loads((root / LAB / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {text.split("==")[0].split(">=")[0] for text in project["dependencies"]} - {"rearview"}
    owners = packages_distributions()
    needed = set(NEEDED) - {"rearview_lab"}
    assert {name for one in needed for name in owners[one]} == asked


def test_the_extra_is_the_laboratory_of_the_same_version(root: Path) -> None:
    ours = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lab = tomllib.loads((root / LAB / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ours["version"] == lab["version"]
    assert ours["optional-dependencies"]["lab"] == [f"rearview-lab=={lab['version']}"]
    assert f"rearview=={ours['version']}" in lab["dependencies"]


def built(project: Path, out: Path) -> set[str]:
    """Names in the wheel that hatchling makes of a project, without isolation or network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=project, capture_output=True, check=True, timeout=100)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_of_the_service_has_nothing_of_the_laboratory(root: Path, tmp_path: Path) -> None:
    names = built(root, tmp_path)
    assert {name.split("/")[0] for name in names} == {"rearview"}
    assert {"rearview/cli/main.py", "rearview/checkpoints/pocket/rearview.json"} <= names
    assert "rearview/proto/rearview/v1/translation_service.proto" in names
    assert {"rearview/studio/page/index.html", "rearview/studio/page/client/link.js"} <= names


def test_the_wheel_of_the_laboratory_is_its_modules(root: Path, tmp_path: Path) -> None:
    modules = {path.relative_to(root / "services").as_posix() for path in (root / LAB).rglob("*.py")}
    assert built(root / LAB, tmp_path) == modules


def test_the_container_is_built_without_the_laboratory(root: Path) -> None:
    ignored = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored.index(LAB) > ignored.index("!services")
