"""Every test of a JavaScript module is in a folder that is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkout import checked_out
from support.module_tests import INSTALLED, PURE, astray, is_test

pytestmark = pytest.mark.unit

A_TEST = 'test("it is so", () => {});\n'


def test_every_folder_of_module_tests_has_tests_and_is_run(root: Path) -> None:
    names = {path.relative_to(root).as_posix(): path for path in checked_out(root)}
    files = {name: path.read_text(encoding="utf-8") for name, path in names.items() if is_test(name)}
    assert astray(files, {*PURE, *INSTALLED}) == set()


@pytest.mark.parametrize("name", ["web", "node"])
def test_npm_runs_them_as_every_node_understands(root: Path, name: str) -> None:
    """Node 20 takes a folder for the tests in it, Node 22 for a module."""
    package = json.loads((root / "clients" / name / "package.json").read_text(encoding="utf-8"))
    command, how, files = package["scripts"]["test"].split()
    assert (command, how) == ("node", "--test")
    found = [path.relative_to(root).as_posix() for path in (root / "clients" / name).glob(files)]
    assert found
    assert all(is_test(each) for each in found)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a/one.test.js": A_TEST}, set()),
        ({"a/one.test.js": A_TEST, "b/two.test.mjs": A_TEST}, {"b/two.test.mjs"}),
        ({"a/one.test.js": A_TEST, "a/two.test.js": "// test()\n"}, {"a/two.test.js"}),
        ({"a/one.js": A_TEST}, {"a"}),
    ],
    ids=["all is well", "nobody runs it", "no test in it", "no tests in a folder"],
)
def test_a_test_that_is_not_run_is_seen(files: dict[str, str], found: set[str]) -> None:
    assert astray(files, {"a"}) == found
