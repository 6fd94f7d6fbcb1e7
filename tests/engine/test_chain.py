"""The chain and its names."""

from __future__ import annotations

import pytest
from rearview.contract.chain import Operator, OperatorKind, Span, chain

pytestmark = pytest.mark.unit


def test_the_chain_encodes_denoises_in_order_and_decodes() -> None:
    assert [link.name for link in chain(3)] == ["encode", "denoise-0", "denoise-1", "denoise-2", "decode"]


def test_names_are_read_back() -> None:
    for link in chain(12):
        assert Operator.parse(link.name) == link


@pytest.mark.parametrize(
    "name", ["", "denoise", "denoise-", "denoise--1", "denoise-x", "encode-1", "decode-0", "Encode", "depth"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        Operator.parse(name)


def test_a_span_knows_its_networks() -> None:
    assert Span.parse("edges", ["encode", "decode"]).kinds == {OperatorKind.ENCODE, OperatorKind.DECODE}
    assert Span.parse("middle", ["denoise-1"]).kinds == {OperatorKind.DENOISE}
