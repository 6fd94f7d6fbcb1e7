"""Sessions that move from engine to engine: frozen, exported, imported, and fed the rest elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rearview.contract.frame import Frame
from rearview.engine.engine import Engine
from rearview.engine.player import Clip, Player
from rearview.engine.sessions import SessionState, joined
from rearview.replica.state import Kept, Origin, StateReader, encode_state
from torch import Tensor

HELD = 2
"""Frames that come after the freeze and are held."""


def frozen(engines: Sequence[Engine], session_id: str, ordinal: int = -1) -> int:
    """Freeze the session in all of them at one ordinal."""
    while (at := max(engine.freeze(session_id, ordinal) for engine in engines)) > ordinal:
        ordinal = at
    return ordinal


def move(here: Sequence[Engine], there: Sequence[Engine], session_id: str) -> None:
    """What is quiet `here` goes on `there`, as bytes on the way."""
    assert all(engine.is_quiet(session_id) for engine in here)
    state = joined([through_bytes(engine.export(session_id)) for engine in here])
    for engine in here:
        engine.close(session_id)
    for engine in there:
        engine.import_(state)


def through_bytes(state: SessionState) -> SessionState:
    """The state as it comes to another process."""
    origin = Origin("model", "float32")
    reader = StateReader(origin)
    for piece in encode_state(Kept(state, {}), origin):
        reader.feed(piece)
    (kept,) = reader.states()
    return kept.session


def play_moving(clip: Clip, legs: Sequence[Sequence[Engine]], at: Sequence[int]) -> list[Frame[Tensor]]:
    """A clip through engines, and, from the first ordinal on that it can be frozen at, not before `at`,
    through others. It is frozen with frames in flight, and later frames come before it has moved.
    """
    name, sent, left = clip.spec.session_id, 0, {}
    players = [Player(*leg, clock=lambda: 0.0) for leg in legs]
    players[0].open(clip.spec)

    def send(player: Player, ordinal: int) -> None:
        if ordinal in clip.changes:
            player.update(name, clip.version(ordinal), clip.changes[ordinal])
        player.admit(name, ordinal, clip.frames[ordinal], clip.version(ordinal))

    for number, player in enumerate(players):
        is_last = number + 1 == len(players)
        while sent < len(clip.frames) and (is_last or sent <= at[number]):
            send(player, sent)
            sent += 1
            # Only some of the rows run: the session is frozen with frames in flight.
            for _ in range(1 + sent % 3):
                left |= {frame.ordinal: frame for frame in _one_round(player)}
        if is_last:
            player.flush(name)
            left |= {frame.ordinal: frame for frame in player.left()}
            continue
        is_quiet = False
        while not is_quiet:
            while (last := frozen(player.engines, name)) >= sent and sent < len(clip.frames):
                send(player, sent)
                sent += 1
            for held in range(sent, min(sent + HELD, len(clip.frames))):
                send(player, held)
            left |= {frame.ordinal: frame for frame in player.left()}
            is_quiet = all(engine.is_quiet(name) for engine in player.engines)
            assert is_quiet or last < len(clip.frames), "the clip ends in a warm-up"
            # A loss may have moved the last ordinal: of those that were held some have run.
            moved = frozen(player.engines, name)
            assert is_quiet or moved > last, "it is not quiet, and nothing is missing"
            assert max(left, default=-1) <= moved, f"frame {max(left)} was not held"
            sent = max(sent, _expected(player.engines, name))
        move(player.engines, players[number + 1].engines, name)
    for engine in {id(engine): engine for player in players for engine in player.engines}.values():
        engine.check_integrity()
    return [left[ordinal] for ordinal in sorted(left)]


def _expected(engines: Sequence[Engine], session_id: str) -> int:
    """The next ordinal that the first of them lets in."""
    standing = engines[0].standing(session_id)
    assert standing is not None
    return standing.expected


def _one_round(player: Player) -> list[Frame[Tensor]]:
    """One step of each engine."""
    left: Sequence[Frame[Tensor]] = ()
    for engine, following in zip(player.engines, (*player.engines[1:], None), strict=True):
        left = player._step(engine, following)
    return list(left)
