"""A span's networks are compiled for later starts, which find and use them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rearview.config import ServiceConfig, load_config
from rearview.engine.acceleration import making
from rearview.engine.acceleration.autoencoder import AcceleratedAutoencoder
from rearview.engine.acceleration.making import CannotCompile, Seen, make
from rearview.engine.acceleration.stock import Artefact, Stock
from rearview.errors import ConfigError
from rearview.replica import compiling
from rearview.replica.build import build_engine
from rearview.replica.compiled import stock_of
from rearview.replica.compiling import compile_span, told

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REARVIEW_CACHE", str(tmp_path / "cache"))


def config(operators: tuple[str, ...] = ("encode",), **model: object) -> ServiceConfig:
    chain = ("encode", "denoise-0", "denoise-1", "decode")
    at = chain.index(operators[0])
    pieces = {"before": chain[:at], "own": operators, "after": chain[at + len(operators) :]}
    spans = [{"name": name, "operators": piece} for name, piece in pieces.items() if piece]
    fields = {"checkpoint": "pocket", "width": 64, "height": 64, "dtype": "float32", **model}
    return load_config({"model": fields, "topology": "pipeline", "spans": spans, "bank": {"interval": 2}})


def of_span(given: ServiceConfig) -> Stock:
    stock = stock_of(given, given.spans[0], CPU)
    assert stock is not None
    return stock


@pytest.fixture
def only_one(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Compile the first of what is missing alone, whatever it gains; the rest is only noted."""
    monkeypatch.setattr(making, "LEAST_GAIN", 0.0)
    asked: list[Seen] = []

    def first_alone(seen: Seen, stock: Stock, on_error: object) -> Artefact:
        asked.append(seen)
        if len(asked) == 1:
            return make(seen, stock, pytest.fail)
        return stock.add(Artefact(*seen.key, "", [], 0.0, 0.0, 1.0, 1.0), None)

    monkeypatch.setattr(compiling, "make", first_alone)
    return asked


@pytest.mark.load
def test_a_start_uses_what_was_compiled_and_says_so(only_one: list[Seen]) -> None:
    given, progress = config(), list[str]()
    before = build_engine(given, given.spans[0])
    made = compile_span(given, given.spans[0], progress.append)
    assert [(each.part, each.samples) for each in only_one] == [("encode", 1), ("encode", 2)]
    assert [bool(each.file) for each in made] == [True, False]
    assert any("compiling 1 of 2" in line for line in progress)
    after = build_engine(given, given.spans[0])
    unused = config(compiled=False)
    assert before.kernels == build_engine(unused, unused.spans[0]).kernels != after.kernels
    vae = after._model.vae  # type: ignore[attr-defined]
    assert vae.counts.accelerated > 0
    # Nothing is missing any more.
    assert compile_span(given, given.spans[0], progress.append) == made
    assert len(only_one) == 2


def test_a_start_counts_the_weights_of_networks_that_run_compiled(
    only_one: list[Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else stands in for the autoencoder then."""
    only_one.append(Seen("none", "", 1, torch.nn.Identity(), (), []))
    given = config()
    compile_span(given, given.spans[0], lambda _: None)
    monkeypatch.setattr(Stock, "digest", "of something that cannot be loaded")
    engine = build_engine(given, given.spans[0])
    assert isinstance(engine._model.vae, AcceleratedAutoencoder)  # type: ignore[attr-defined]


def test_every_call_of_a_banked_session_is_watched(only_one: list[Seen]) -> None:
    only_one.append(Seen("none", "", 1, torch.nn.Identity(), (), []))  # So that none is compiled here.
    given = config(("denoise-0", "denoise-1", "decode"))
    span = next(each for each in given.spans if each.name == "own")
    compile_span(given, span, lambda _: None)
    unets = [seen for seen in only_one if seen.part == "unet"]
    banked = {(seen.samples > 1, "leaves=True" in seen.sort) for seen in unets if "bank" in seen.sort}
    assert banked == {(False, True), (False, False), (True, True), (True, False)}
    assert {seen.samples > 1 for seen in unets if "bank" not in seen.sort} == {False, True}


def test_of_another_size_or_type_nothing_is_known(only_one: list[Seen], tmp_path: Path) -> None:
    only_one.append(Seen("none", "", 1, torch.nn.Identity(), (), []))
    given = config()
    compile_span(given, given.spans[0], lambda _: None)
    assert len(of_span(given).artefacts) == 2
    for other in (config(width=128), config(dtype="float64")):
        assert not of_span(other).artefacts


def test_a_model_without_networks_has_nothing_to_compile() -> None:
    given = load_config({"model": {"checkpoint": "null"}})
    with pytest.raises(ConfigError, match="nothing to compile"):
        compile_span(given, given.spans[0], lambda _: None)


def test_without_a_compiler_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise CannotCompile("there is no C++ compiler")

    monkeypatch.setattr(compiling, "check_compiler", none)
    given = config()
    with pytest.raises(CannotCompile, match="compiler"):
        compile_span(given, given.spans[0], lambda _: None)


@pytest.mark.parametrize(
    ("artefact", "text"),
    [
        (Artefact("unet", "", False, "f", [], 0.1, 0.1, 0.010, 0.015), "15.0 -> 10.0 ms (1.50 x)"),
        (
            Artefact("unet", "", False, "", [], 0.1, 0.1, 0.010, 0.009),
            "9.0 -> 10.0 ms (0.90 x), not kept: no faster",
        ),
        (
            Artefact("unet", "", False, "", [], 9.0, 0.1, 0.010, 0.015),
            "15.0 -> 10.0 ms (1.50 x), not kept: not exact enough",
        ),
        (Artefact("unet", "", False, "", [], 9.0, 0.0, 9.0, 0.0), "cannot be compiled"),
    ],
)
def test_what_came_of_it_is_told(artefact: Artefact, text: str) -> None:
    assert told(artefact) == text
