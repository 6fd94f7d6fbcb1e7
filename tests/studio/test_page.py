"""What the page consists of: its own logic, its types, its libraries, its size."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import pytest
from rearview.contract.memories import BankOptions, CacheOptions
from rearview.contract.settings import SettingsChange
from rearview.contract.similarity import SimilarityOptions
from support.module_tests import PURE, passed
from support.require import skip_or_fail

pytestmark = pytest.mark.integration

TYPESCRIPT = "typescript@7.0.2"
MAX_BYTES = 500_000
MAX_LINES = 400
SIMPLE = {str: "text", float: "number", int: "whole", bool: "switch"}
"""Types of the contract as the page names them."""
GLOBALS = re.compile(r"\b(document|window|navigator|location|fetch|setTimeout|performance|Date\.now)\b")


@pytest.fixture(scope="module")
def page(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is served and packed: with the client in its place."""
    folder = tmp_path_factory.mktemp("served") / "page"
    shutil.copytree(root / "services/rearview/studio/page", folder)
    shutil.copytree(root / "clients/web/src", folder / "client")
    return folder


def needs(tool: str) -> None:
    if shutil.which(tool) is None:
        skip_or_fail(f"{tool} is missing")


@pytest.mark.parametrize("folder", PURE)
def test_the_pure_modules_do_what_they_say(root: Path, folder: str) -> None:
    assert passed(root / folder, cwd=root) >= 30


def check_types(root: Path, page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """tsc over a copy of the page in which the libraries are replaced by their types."""
    needs("npx")
    shutil.copytree(page, folder / "page", ignore=shutil.ignore_patterns("vendor"), dirs_exist_ok=True)
    shutil.copytree(root / "tests/studio/types", folder / "page/vendor", dirs_exist_ok=True)
    shutil.copy(root / "tests/studio/tsconfig.json", folder)
    command = ["npx", "--yes", "-p", TYPESCRIPT, "tsc", "-p", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)


def test_its_types_hold_and_a_breach_is_seen(root: Path, page: Path, tmp_path: Path) -> None:
    run = check_types(root, page, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    breach = 'import { packFrame } from "./client/protocol.js";\npackFrame("one", 1, new Uint8Array(1));\n'
    (tmp_path / "page/breach.js").write_text(breach, encoding="utf-8")
    run = check_types(root, page, tmp_path)
    assert re.search(r"breach\.js.*'string' is not assignable", run.stdout), run.stdout
    assert run.returncode != 0


def test_libraries_are_those_that_were_vendored(page: Path) -> None:
    listed = json.loads((page / "vendor/vendor.json").read_text(encoding="utf-8"))
    present = {path.name for path in (page / "vendor").iterdir()} - {"vendor.json"}
    assert present == set(listed)
    for name, about in listed.items():
        content = (page / "vendor" / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (about["sha256"], about["bytes"]), name
        assert about["version"]
        assert about["licence"]


def test_imports_are_relative_and_their_files_are_there(page: Path) -> None:
    for path in page.rglob("*.js"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r'(?:\bfrom\s*|\bimport\s*)"([^"\n]+)"', text):
            assert name.startswith("."), f"{path.name} imports {name}"
            assert (path.parent / name).is_file(), f"{path.name} imports {name}"


def test_pages_ask_no_other_host_and_hold_no_inline_script_or_style(page: Path) -> None:
    for path in (page / "index.html", page / "view.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(src|href)=\"(https?:)?//", text)
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", text)
    for path in page.rglob("*.css"):
        assert "http" not in path.read_text(encoding="utf-8"), path.name


def test_everything_together_is_small(page: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in page.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= MAX_BYTES, sorted(sizes.items(), key=lambda one: one[1])[-5:]


def test_no_module_of_the_page_is_too_long(page: Path) -> None:
    own = [path for path in page.rglob("*.js") if path.parent.name != "vendor"]
    lines = {path.name: path.read_text(encoding="utf-8").count("\n") for path in own}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_pure_modules_know_no_browser(page: Path) -> None:
    """They run in node, in the worker and in the page: neither globals of a browser nor other rooms."""
    pure = ("credit.js", "errors.js", "ledger.js", "names.js", "pacing.js", "protocol.js", "size.js")
    for path in (*(page / "state").glob("*.js"), *(page / "client" / name for name in pure)):
        text = re.sub(r"/\*.*?\*/|//.*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not GLOBALS.search(text), path.name
        assert all(name.startswith("./") for name in re.findall(r'from "([^"]+)"', text)), path.name


def test_a_preset_may_say_what_the_protocol_takes_and_nothing_else(root: Path) -> None:
    """The page keeps a table of its own of names, types and words."""
    needs("node")
    module = (root / "services/rearview/studio/page/state/asking.js").as_uri()
    script = (
        f"import {{ SETTINGS, MOTION }} from '{module}'; console.log(JSON.stringify([SETTINGS, MOTION]));"
    )
    command = ["node", "--input-type=module", "-e", script]
    settings, motion = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    kinds = {
        "feature_bank": BankOptions,
        "temporal_cache": CacheOptions,
        "similarity_filter": SimilarityOptions,
    }
    assert set(motion) == {"method", *kinds}
    tables = [(SettingsChange, settings), *((kind, motion[name]["parts"]) for name, kind in kinds.items())]
    for kind, types in tables:
        hints = get_type_hints(kind)
        assert set(types) == {one.name for one in fields(kind)} - {"width", "height"}
        for name, said in types.items():
            hint = next(one for one in get_args(hints[name]) if one is not NoneType)
            if isinstance(hint, type) and issubclass(hint, Enum):
                assert set(said) == {member.name.lower() for member in hint}, name
            elif hint in SIMPLE:
                assert said == SIMPLE[hint], name
            else:
                assert isinstance(said, dict), name
