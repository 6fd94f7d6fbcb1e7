"""What the engine must reach on a GPU, and what the rows of a run say about it.

A row is what `engine_bench` writes of one cell or peer. Figures are as in `figures.py`, without its class:
the bench runs where its libraries are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.peers import DIFFUSERS, STREAM_DIFFUSION

__all__ = ["TARGETS", "Found", "Row", "Target", "figures", "problems"]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A value, and the rows that it is of."""

    value: float
    of: str


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to reach."""

    what: str
    unit: str
    target: float
    find: Callable[[Sequence[Row]], Found | None]
    """None: no row says anything about it."""
    at_most: bool = False
    sizes: tuple[str, ...] = ("sd15",)
    on: tuple[str, ...] = ("cuda",)
    """Kinds of device."""

    def is_for(self, size: str, kind: str) -> bool:
        """Whether it is meant for a size of model on a kind of device."""
        return size in self.sizes and kind in self.on

    def figure(self, rows: Sequence[Row], size: str, kind: str, setting: str) -> dict[str, Any] | None:
        """None: it is not for this size or device (`kind`), or no row says anything about it."""
        found = self.find(rows) if self.is_for(size, kind) else None
        if found is None:
            return None
        return _figure(self.what, f"{setting}, {found.of}", found.value, self.unit, self.target, self.at_most)


def _cells(rows: Sequence[Row], method: str, steps: int, sessions: range, **like: Any) -> list[Row]:
    like = {"order": "back_to_back", "storage": "", "paced_fps": 0.0, **like}
    return [
        row
        for row in _measured(rows)
        if row["kind"] == "cell"
        and (row["method"], row["steps"]) == (method, steps)
        and row["sessions"] in sessions
        and all(row[name] == value for name, value in like.items())
    ]


def _peers(rows: Sequence[Row], who: str, batch: int, accelerators: Sequence[str]) -> list[Row]:
    return [
        row
        for row in _measured(rows)
        if row["kind"] == "peer"
        and (row["who"], row["steps"], row["batch"]) == (who, 4, batch)
        and row["accelerator"] in accelerators
    ]


def _measured(rows: Sequence[Row]) -> list[Row]:
    """Those that are to be believed."""
    return [row for row in rows if not row["problem"]]


def _best(rows: Sequence[Row], key: str, *, least: bool = False) -> Row | None:
    known = [row for row in rows if row[key] is not None]
    return (min if least else max)(known, key=lambda row: row[key], default=None)


def _of_cells(key: str, scale: float, method: str, steps: int, sessions: range, **like: Any) -> Any:
    """The best of some cells, whatever accelerates them."""

    def find(rows: Sequence[Row]) -> Found | None:
        of = "fps" if key == "idle_share" else key  # A slow network hides what the host takes.
        row = _best(_cells(rows, method, steps, sessions, **like), of, least=of in LEAST)
        return None if row is None or row[key] is None else Found(scale * row[key], row["name"])

    return find


def _over_peer(who: str, batches: Sequence[int], accelerators: Sequence[str]) -> Any:
    """The best cell over the best peer, of the batch where that is least."""

    def find(rows: Sequence[Row]) -> Found | None:
        found = []
        for batch in batches:
            ours = _best(_cells(rows, "plain", 4, range(batch, batch + 1)), "fps")
            theirs = _best(_peers(rows, who, batch, accelerators), "fps")
            if ours is not None and theirs is not None:
                found.append(Found(ours["fps"] / theirs["fps"], f"{ours['name']} over {theirs['name']}"))
        return min(found, key=lambda each: each.value, default=None)

    return find


def _over_stream_batch(rows: Sequence[Row]) -> Found | None:
    """p50 of one paced stream over that in stream-batch order."""
    paced = {"paced_fps": 30.0}
    ours = _best(_cells(rows, "plain", 4, ONE, **paced), "latency_p50_ms", least=True)
    other = _best(_cells(rows, "plain", 4, ONE, order="stream_batch", **paced), "latency_p50_ms", least=True)
    if ours is None or other is None:
        return None
    return Found(ours["latency_p50_ms"] / other["latency_p50_ms"], ours["name"])


def _over_one_by_one(rows: Sequence[Row]) -> Found | None:
    """Sessions of everything together over the same rows one by one."""
    every = _cells(rows, "streamv2v", 0, range(1, 65))
    together = _best([row for row in every if row["max_batch"] > 1], "fps")
    alone = _best([row for row in every if row["max_batch"] == 1], "fps")
    if together is None or alone is None:
        return None
    return Found(together["fps"] / alone["fps"], together["name"])


def _under_adapters(rows: Sequence[Row]) -> Found | None:
    """Time of a frame under adapters over that of a frame without, by one accelerator and at equally many
    sessions: the worst of them.
    """
    found = []
    for row in _cells(rows, "adapters", 4, range(1, 65)):
        sessions = range(row["sessions"], row["sessions"] + 1)
        plain = _best(_cells(rows, "plain", 4, sessions, accelerator=row["accelerator"]), "fps")
        if plain is not None:
            found.append(Found(plain["fps"] / row["fps"], row["name"]))
    return max(found, key=lambda each: each.value, default=None)


LEAST = frozenset({"latency_p50_ms"})
ONE, EIGHT, MANY = range(1, 2), range(8, 9), range(8, 65)
COMPILED = ("compiled", "compiled graphs")

TARGETS = (
    Target(
        "plain, 4 steps, from 8 sessions on: share of the bound",
        "%",
        45.0,
        _of_cells("share_of_bound", 100.0, "plain", 4, MANY),
    ),
    Target(
        "bank, 4 steps, from 8 sessions on: share of the bound",
        "%",
        40.0,
        _of_cells("share_of_bound", 100.0, "streamv2v", 4, MANY),
    ),
    Target(
        "plain, 4 steps, from 8 sessions on",
        "FPS",
        102.0,
        _of_cells("fps", 1.0, "plain", 4, MANY),
    ),
    Target("bank, 4 steps, from 8 sessions on", "FPS", 80.0, _of_cells("fps", 1.0, "streamv2v", 4, MANY)),
    Target(
        "Live2Diff, 2 steps, from 8 sessions on", "FPS", 110.0, _of_cells("fps", 1.0, "live2diff", 2, MANY)
    ),
    Target(
        "plain, 1 step with TAESD, in place of SD-Turbo",
        "FPS",
        280.0,
        _of_cells("fps", 1.0, "plain", 1, range(1, 65)),
    ),
    Target(
        "one stream at 30 FPS, 4 steps: latency, p50",
        "ms",
        30.0,
        _of_cells("latency_p50_ms", 1.0, "plain", 4, ONE, paced_fps=30.0),
        at_most=True,
    ),
    Target("the same over stream-batch order", "x", 0.35, _over_stream_batch, at_most=True),
    Target(
        "one session over diffusers' loop, eager, one picture at a time",
        "x",
        3.0,
        _over_peer(DIFFUSERS, (1,), ("eager",)),
    ),
    Target(
        "over diffusers' loop, compiled, at equal batch", "x", 0.95, _over_peer(DIFFUSERS, (1, 8), COMPILED)
    ),
    Target(
        "device idle at 8 sessions, 4 steps",
        "%",
        5.0,
        _of_cells("idle_share", 100.0, "plain", 4, EIGHT),
        at_most=True,
    ),
    Target(
        "mixed sessions together over one by one",
        "x",
        0.95,
        _over_one_by_one,
        sizes=("sd15", "pocket", "smoke"),
        on=("cuda", "cpu"),
    ),
    Target(
        "a frame under an adapter set of rank 16 over one without",
        "x",
        1.15,
        _under_adapters,
        at_most=True,
        on=("cuda", "cpu"),
    ),
    Target(
        "one session over StreamDiffusion's own code",
        "x",
        1.3,
        _over_peer(STREAM_DIFFUSION, (1,), ("eager", *COMPILED)),
        sizes=("pocket",),
        on=("cpu",),
    ),
    Target(
        "four sessions over StreamDiffusion's own code",
        "x",
        1.5,
        _over_peer(STREAM_DIFFUSION, (4,), ("eager", *COMPILED)),
        sizes=("pocket",),
        on=("cpu",),
    ),
)


def figures(rows: Sequence[Row], size: str, kind: str, setting: str) -> list[dict[str, Any]]:
    """Targets first, then what each row gave; what failed gave nothing. `kind`: of the device."""
    found = [figure for target in TARGETS if (figure := target.figure(rows, size, kind, setting))]
    for row in _measured(rows):
        who = "engine, " if row["kind"] == "cell" else ""
        found.append(_figure(f"{who}{row['name']}", setting, row["fps"], "FPS"))
        if row.get("window_ms") is not None:
            found.append(_figure(f"warm-up of a session, {row['name']}", setting, row["window_ms"], "ms"))
        if row.get("storage"):
            error = row["check"]["rms_levels"]
            found.append(_figure(f"error of the pictures, {row['name']}", setting, error, "levels"))
    return found


def problems(rows: Sequence[Row]) -> list[str]:
    """Why some of them should not be believed."""
    return [f"{row['name']}: {row['problem']}" for row in rows if row["problem"]]


def _figure(
    what: str, setting: str, value: float, unit: str, target: float | None = None, at_most: bool = False
) -> dict[str, Any]:
    figure = {"what": what, "setting": setting, "value": value, "unit": unit}
    return {**figure, "target": target, "at_most": at_most}
