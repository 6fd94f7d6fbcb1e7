"""Who sends what, and how: seeded, so that a run can be made again. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import sha256

from pydantic import TypeAdapter
from rearview.contract.stream import DropPolicy
from rearview.contract.watermark import digest

__all__ = [
    "ClientKind",
    "Expected",
    "Manners",
    "Plan",
    "StreamPlan",
    "make_plan",
    "payload",
    "steady_plan",
    "token_of",
]

RATES = (15.0, 25.0, 30.0, 60.0)
SIZES = (64, 400, 3_000, 12_000)
"""Bytes of a frame."""


class ClientKind(Enum):
    """Who speaks for the stream."""

    LIBRARY = "library"
    RAW = "raw"
    """Stubs alone: what a client of any language would do."""


class Manners(Enum):
    """How a client ends its stream."""

    ORDERLY = "orderly"
    """Half-closes, and reads to the end."""
    LEAVES = "leaves"
    """Cancels the call in the middle."""
    VANISHES = "vanishes"
    """Cuts its connection in the middle, and never comes back."""
    DAWDLES = "dawdles"
    """Reads slowly, and is orderly in all else."""


class Expected(Enum):
    """What the service owes a stream."""

    SERVED = "served"
    REFUSED = "refused"
    """Its token is worth nothing."""
    EITHER = "either"
    """There may be no room for it."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """One stream, from its open to its end."""

    key: str
    """Its name in the history: `tenant/number`, and behind a point how often it was opened anew."""
    tenant: str
    token: str | None = None
    client: ClientKind = ClientKind.LIBRARY
    start_s: float = 0.0
    """After the start of the traffic."""
    frames: int = 60
    rate: float = 30.0
    """Frames a second, on a clock of their own."""
    size: int = 64
    policy: DropPolicy = DropPolicy.LOSSLESS
    budget_s: float = 0.5
    """DEADLINE: what an answer may be old."""
    steps: int = 2
    manners: Manners = Manners.ORDERLY
    leaves_at: int = 0
    """LEAVES, VANISHES: after so many frames."""
    controls: tuple[tuple[int, int], ...] = ()
    """(frame before which, new seed)."""
    expected: Expected = Expected.SERVED
    reopens: int = 0
    """How often it is opened anew after an announced end that was not its own."""
    token_until_s: float | None = None
    """When the token is worth nothing any more, after the start of the traffic."""

    def due_s(self, index: int) -> float:
        """When a frame is due, after the start of the traffic."""
        return self.start_s + index / self.rate

    def anew(self) -> StreamPlan:
        """The same stream once more, under a name of its own."""
        name, _, count = self.key.partition(".")
        return replace(self, key=f"{name}.{int(count or 0) + 1}", reopens=self.reopens - 1, controls=())


@dataclass(frozen=True, slots=True)
class Plan:
    """The traffic of a run."""

    seed: int = 0
    streams: tuple[StreamPlan, ...] = field(default=())

    def of(self, key: str) -> StreamPlan | None:
        """The plan of a stream, those opened anew included."""
        name = key.partition(".")[0]
        return next((stream for stream in self.streams if stream.key == name), None)

    def to_json(self) -> str:
        """To hand to another process, or to keep."""
        return _PLANS.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Undo `to_json`. Raises ValueError."""
        return _PLANS.validate_json(text)

    @property
    def seconds(self) -> float:
        """From the first open to the last frame."""
        return max((stream.due_s(stream.frames) for stream in self.streams), default=0.0)


_PLANS = TypeAdapter(Plan)


def token_of(tenant: str) -> str:
    """The bearer token of a tenant of these tests."""
    return f"token-of-{tenant}"


def token_sha256(tenant: str) -> str:
    """As the tenants file wants it."""
    return sha256(token_of(tenant).encode()).hexdigest()


def payload(key: str, index: int, size: int) -> bytes:
    """The bytes of a frame: nobody else's, and different in every frame."""
    begin = digest(key.encode(), index.to_bytes(8, "little"))
    return (begin * (size // len(begin) + 1))[:size]


def steady_plan(seed: int, tenants: Sequence[str], *, streams: int, frames: int, rate: float) -> Plan:
    """So many streams of the tenants in turn, each `frames` long at `rate` frames a second; every second one
    is of a raw client.
    """

    def stream(number: int) -> StreamPlan:
        tenant = tenants[number % len(tenants)]
        return StreamPlan(
            f"{tenant}/{number}",
            tenant,
            token_of(tenant),
            client=ClientKind.RAW if number % 2 else ClientKind.LIBRARY,
            start_s=0.05 * number,
            frames=frames,
            rate=rate,
            size=400,
        )

    return Plan(seed, tuple(map(stream, range(streams))))


def make_plan(
    seed: int,
    *,
    streams: int = 8,
    seconds: float = 4.0,
    tenants: tuple[str, ...] = ("alpha", "beta", "gamma"),
    rude: bool = True,
    reopens: int = 3,
    pace: float = 1.0,
) -> Plan:
    """Mixed traffic. With `rude` some clients misbehave, and one has a token that is worth nothing. `pace`
    multiplies the frame rates.
    """
    chance = random.Random(seed)
    made = []
    for number in range(streams):
        tenant = tenants[number % len(tenants)]
        rate = pace * chance.choice(RATES)
        manners = Manners.ORDERLY
        if rude and number % 4 == 3:  # By stubs: the library does not vanish.
            manners = chance.choice([Manners.LEAVES, Manners.VANISHES, Manners.DAWDLES])
        elif rude and number % 8 == 6:
            manners = chance.choice([Manners.LEAVES, Manners.DAWDLES])
        frames = max(4, round(rate * seconds * chance.uniform(0.85, 1.0)))
        made.append(
            StreamPlan(
                f"{tenant}/{number}",
                tenant,
                token_of(tenant),
                client=ClientKind.RAW if number % 2 else ClientKind.LIBRARY,
                start_s=chance.uniform(0.0, 0.3),
                frames=frames,
                rate=rate,
                size=chance.choice(SIZES),
                policy=chance.choice([DropPolicy.LOSSLESS, DropPolicy.LOSSLESS, DropPolicy.LATEST]),
                steps=chance.choice([1, 2, 2]),
                manners=manners,
                leaves_at=chance.randrange(2, frames),
                controls=((frames // 2, chance.randrange(1 << 32)),) if number % 3 == 0 else (),
                reopens=reopens,
            )
        )
    if rude:
        made.append(StreamPlan("nobody/0", "nobody", "worth nothing", frames=4, expected=Expected.REFUSED))
    return Plan(seed, tuple(made))
