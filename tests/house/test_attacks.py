"""Every fault that an attack has found has tests, and they are there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from loadtest.reliability.attacks import ATTACKS

pytestmark = pytest.mark.unit


@cache
def functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_none_is_without_a_test() -> None:
    assert list(ATTACKS) == list(range(1, 25))
    assert all(attack.tests for attack in ATTACKS.values())


@pytest.mark.parametrize("number", ATTACKS)
def test_those_that_are_named_are_there(root: Path, number: int) -> None:
    for name in ATTACKS[number].tests:
        path, _, function = name.partition("::")
        assert function in functions(root / "tests" / path), name
