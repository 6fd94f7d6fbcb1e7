"""Engines on one thread, audited after every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rearview.engine.engine import Engine
from support.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks lose more by sharing a core than they gain by a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def every_engine_is_audited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`check_integrity` of every engine that the test made, when it ends."""
    engines: list[Engine] = []
    construct = Engine.__init__

    def recording(engine: Engine, *arguments: object, **options: object) -> None:
        construct(engine, *arguments, **options)  # type: ignore[arg-type]
        engines.append(engine)

    monkeypatch.setattr(Engine, "__init__", recording)
    yield
    for engine in engines:
        engine.check_integrity()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint; not to be changed."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
