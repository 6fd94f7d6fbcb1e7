"""What the chains in the answers of one stream say of its past: unbroken, begun anew, or corrupt. Pure.

The reference run is computed: a chain is a function of the inputs that were admitted, so the answer that an
undisturbed service would have given is known bit by bit. What a client cannot see is which of the frames that
were dropped had an ordinal, and which steps had seen a frame before a fault took it: all cases are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations, product

from rearview.contract.watermark import Link, first_chain, next_chain

__all__ = ["Break", "Input", "Past", "breaks"]

MAX_CASES = 4096


@dataclass(frozen=True, slots=True)
class Input:
    """One frame that a client has sent, and what became of it."""

    index: int
    content: bytes
    settings: int
    """Digest of those that were in force."""
    ordinal: int | None = None
    """None: no picture came."""
    links: tuple[Link, ...] = ()
    may_have_ordinal: bool = False
    """Without a picture: whether it may have been admitted all the same."""
    may_be_unseen: bool = False
    """Whether a fault took it, so that any of the steps may not have seen it."""


class Past(Enum):
    """What a step knew that should know everything."""

    ANEW = "anew"
    """It began anew, and knows the last inputs."""
    CORRUPT = "corrupt"
    """Its chain is that of no such past."""


@dataclass(frozen=True, slots=True)
class Break:
    """An answer whose chain does not follow from the one before."""

    index: int
    step: int
    past: Past
    count: int
    """Inputs that the step said to have seen."""


Admitted = Sequence[tuple[int, Input]]
"""Ordinals with their inputs."""


def breaks(session_id: str, inputs: Sequence[Input]) -> list[Break]:
    """All breaks in the answers of a session. `inputs`: in the order of sending."""
    found: list[Break] = []
    known: dict[int, Link] = {}
    """By step, after the last answer."""
    last: tuple[int, int] = (-1, -1)
    """Position and ordinal of the last answer."""
    for position, each in enumerate(inputs):
        if each.ordinal is None:
            continue
        between = inputs[last[0] + 1 : position]
        for link in each.links:
            before = known.get(link.step) or Link(link.step, 0, first_chain(session_id, link.step))
            if not any(
                _after(before, admitted) == link for admitted in _cases(between, each, last[1], each.ordinal)
            ):
                past = _past(session_id, inputs[: position + 1], link)
                found.append(Break(each.index, link.step, past, link.count))
            known[link.step] = link
        last = position, each.ordinal
    return found


def _after(link: Link, admitted: Admitted) -> Link:
    chain = link.chain
    for ordinal, each in admitted:
        chain = next_chain(chain, ordinal, each.settings, each.content)
    return Link(link.step, link.count + len(admitted), chain)


def _cases(between: Sequence[Input], last: Input, after: int, ordinal: int) -> Iterator[Admitted]:
    """The inputs that a step may have seen after ordinal `after`, up to `last` with its `ordinal`."""
    candidates = [each for each in between if each.may_have_ordinal]
    missing = ordinal - after - 1
    cases = 0
    for chosen in combinations(candidates, missing) if 0 <= missing <= len(candidates) else ():
        numbered = [(after + 1 + number, each) for number, each in enumerate(chosen)]
        unsure = [place for place, (_, each) in enumerate(numbered) if each.may_be_unseen]
        for seen in product((True, False), repeat=len(unsure)):
            unseen = {place for place, is_seen in zip(unsure, seen, strict=True) if not is_seen}
            cases += 1
            if cases > MAX_CASES:
                return
            yield [*(pair for place, pair in enumerate(numbered) if place not in unseen), (ordinal, last)]


def _past(session_id: str, inputs: Sequence[Input], link: Link) -> Past:
    """Whether the chain is that of the last inputs alone."""
    admitted = _admitted(inputs)
    if not 0 < link.count <= len(admitted):
        return Past.CORRUPT
    first = Link(link.step, 0, first_chain(session_id, link.step))
    return Past.ANEW if _after(first, admitted[-link.count :]) == link else Past.CORRUPT


def _admitted(inputs: Sequence[Input]) -> Admitted:
    """The inputs that certainly had an ordinal: those with a picture, and those that fill a gap exactly."""
    found: list[tuple[int, Input]] = []
    between: list[Input] = []
    for each in inputs:
        if each.ordinal is None:
            between += [each] if each.may_have_ordinal else []
            continue
        begin = found[-1][0] + 1 if found else 0
        if len(between) == each.ordinal - begin:
            found += list(enumerate(between, begin))
        found.append((each.ordinal, each))
        between = []
    return found
