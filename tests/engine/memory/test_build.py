"""The builder: which memories a span keeps, of what type, whom it refuses, and that nobody else makes any."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.contract.chain import Span, chain
from rearview.contract.memories import BankPolicy, BankSettings, CacheSettings, MergeMetric
from rearview.contract.session import SessionSpec
from rearview.engine.memory.bank.layers import KeptOutputs
from rearview.engine.memory.build import KINDS, CacheOptions, Layouts, MemoryOptions, build_memories
from rearview.engine.memory.cache.layers import read_cache_layout
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.compose import Memories
from rearview.errors import InvalidRequest
from support.tiny_motion import SIZE, banked_unet

pytestmark = pytest.mark.unit

WHOLE = Span("whole", chain(2))
WANTED = MemoryOptions(
    num_slots=2,
    height=SIZE,
    width=SIZE,
    dtype=torch.float32,
    bank=BankSettings(),
    cache=CacheOptions(CacheWindow(3, 2)),
)


def layouts(*, depth: bool = True) -> Layouts:
    unet, layout = banked_unet()
    return Layouts(layout, read_cache_layout(unet), depth)


def kind(memory: Memories, name: str) -> Any:
    return memory._kinds[name]


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        (["encode"], {"depth"}),
        (["denoise-0", "denoise-1"], {"bank", "cache"}),
        (["decode"], set()),
        (["encode", "denoise-0", "denoise-1", "decode"], {"bank", "cache", "depth"}),
    ],
)
def test_a_span_keeps_the_kinds_of_its_operators(operators: list[str], expected: set[str]) -> None:
    memory = build_memories(Span.parse("span", operators), layouts(), WANTED)
    assert memory.names == expected
    assert memory.free_slots == 2
    memory.check_integrity()


def test_a_pool_has_the_steps_of_its_span() -> None:
    memory = build_memories(Span.parse("second", ["denoise-1"]), layouts(), WANTED)
    assert kind(memory, "bank")._shape.steps == kind(memory, "cache")._shape.steps == (1,)


@pytest.mark.parametrize(
    ("networks", "ranges"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)],
)
def test_depth_is_in_the_type_in_which_latents_travel(networks: torch.dtype, ranges: torch.dtype) -> None:
    """Two of five former assemblies forgot it: float32 ranges under float64 networks."""
    memory = build_memories(WHOLE, layouts(), replace(WANTED, dtype=networks))
    assert kind(memory, "depth")._ranges.dtype is ranges
    assert kind(memory, "cache")._dtype is kind(memory, "bank")._dtype is networks


def test_options_reach_the_pools() -> None:
    queue = BankSettings(policy=BankPolicy.QUEUE, max_frames=3)
    options = replace(WANTED, bank=queue, cache=CacheOptions(CacheWindow(3, 2), torch.float8_e4m3fn))
    memory = build_memories(WHOLE, layouts(), options)
    assert kind(memory, "bank")._shape.size_frames == 3.0
    assert kind(memory, "cache")._dtype is torch.float8_e4m3fn
    by_outputs = replace(WANTED, bank=BankSettings(metric=MergeMetric.OUTPUTS))
    assert kind(build_memories(WHOLE, layouts(), by_outputs), "bank")._shape.kept_outputs is KeptOutputs.ALL


@pytest.mark.parametrize(
    ("have", "options", "field"),
    [
        (Layouts(), WANTED, "bank"),
        (Layouts(), WANTED, "cache"),
        (layouts(), replace(WANTED, bank=None), "bank"),
        (layouts(), replace(WANTED, cache=None), "cache"),
    ],
)
def test_who_asks_for_what_is_not_kept_is_refused(have: Layouts, options: MemoryOptions, field: str) -> None:
    memory = build_memories(WHOLE, have, options)
    asked: dict[str, Any] = {"bank": BankSettings()} if field == "bank" else {"cache": CacheSettings()}
    title = {"bank": "feature bank", "cache": "temporal cache"}[field]
    with pytest.raises(InvalidRequest, match=f"this service keeps no {title}") as refused:
        memory.allocate(SessionSpec("s", SIZE, SIZE, 2, **asked))
    assert refused.value.metadata == {"field": field}
    assert memory.free_slots == 2
    memory.allocate(SessionSpec("s", SIZE, SIZE, 2))


def test_depth_is_nobodys_to_ask_for() -> None:
    memory = build_memories(WHOLE, layouts(depth=False), WANTED)
    assert memory.names == {"bank", "cache"}
    memory.allocate(SessionSpec("s", SIZE, SIZE, 2, cache=CacheSettings()))
    assert "depth" not in build_memories(WHOLE, layouts(), replace(WANTED, cache=None)).names


def test_every_kind_is_one_line_of_the_registry_under_the_name_of_its_views() -> None:
    assert [each.name for each in KINDS] == ["bank", "cache", "depth", "chain"]
    memory = build_memories(WHOLE, replace(layouts(), chain=True), WANTED)
    for each in KINDS:
        assert kind(memory, each.name).kind.name == each.name
        assert kind(memory, each.name).operators == each.operators


POOLS = {"FeatureBank", "TemporalKVCache", "DepthRange", "Chains"}


def assemblies(sources: dict[str, str]) -> Iterator[str]:
    """Files that make a pool."""
    for name, text in sources.items():
        calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
        named = {getattr(call, "id", getattr(call, "attr", "")) for call in calls}
        if named & POOLS:
            yield name


def test_memories_are_put_together_in_one_place(root: Path) -> None:
    folders = ("services/rearview", "services/rearview_lab", "loadtest")
    files = [
        path for folder in folders for path in sorted((root / folder).rglob("*.py")) if "v1" not in path.parts
    ]
    sources = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in files}
    assert list(assemblies(sources)) == ["services/rearview/engine/memory/build.py"]
    planted = {"loadtest/new_bench.py": "bank = pool.FeatureBank(layout, shape, dtype=dtype)"}
    assert list(assemblies(planted)) == ["loadtest/new_bench.py"]
