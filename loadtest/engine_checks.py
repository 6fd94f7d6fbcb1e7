"""Whether the pictures of a cell are right: against those of each session alone, eager, one row at a time.

Without a memory that is the plain path of `rearview.engine.reference`, with one an engine of one session. Its
pictures depend on method, steps and session only, so they are made once for many cells.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rearview.contract.frame import PICTURE
from rearview.contract.session import SessionSpec
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Player, planes_of
from rearview.engine.reference.frame import translate_frame
from torch import Tensor

from loadtest.engine_cells import Bench, Cell, specs
from loadtest.engine_loop import Answer, Frames

__all__ = ["Check", "Reference", "Tolerance", "checked_sessions", "tolerance"]

PLAIN_FRAMES = 3
"""Compared of each session that remembers nothing: each is by itself."""
MIN_CONTRAST = 3.0
"""By how many tolerances pictures of different frames must differ, so that equal ones mean something."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far equal pictures may be apart, levels of 255."""

    rms: float
    level: int = 255
    """Anywhere."""


def tolerance(cell: Cell, dtype: torch.dtype) -> Tolerance:
    """In half precision batches of other sizes run other kernels, which round otherwise: two steps of Stable
    Diffusion's size in bfloat16 are 6.3 levels from float32, so in float16 about 0.8. With a bank what is
    nearly equal may be merged otherwise, even in float32. A cache of fewer bits is another method: it is
    reported, and bounded widely.
    """
    if cell.storage:
        return Tolerance(8.0)
    if dtype is torch.bfloat16:
        return Tolerance(10.0)
    if dtype is torch.float16:
        return Tolerance(3.0 if cell.method == "plain" else 4.0)
    return Tolerance(0.25, level=8 if cell.banked else 1)


@dataclass(frozen=True, slots=True)
class Check:
    """What came of a comparison."""

    pictures: int
    rms_levels: float
    """Of all compared pictures together."""
    max_levels: int
    contrast_levels: float | None
    """RMS between neighbouring pictures of a session as they should be. None: there is but one."""
    rms_allowed: float
    max_allowed: int

    @property
    def problem(self) -> str:
        """Empty: the pictures are right."""
        if self.rms_levels > self.rms_allowed or self.max_levels > self.max_allowed:
            return (
                f"pictures deviate from the plain path by {self.rms_levels:.3g} levels RMS"
                f" ({self.rms_allowed:g} allowed), {self.max_levels} at most ({self.max_allowed} allowed)"
            )
        if self.contrast_levels is not None and self.contrast_levels < MIN_CONTRAST * self.rms_allowed:
            return (
                f"pictures differ by {self.contrast_levels:.3g} levels only: that they are equal says little"
            )
        return ""


def checked_sessions(cell: Cell) -> tuple[str, ...]:
    """The first and the last."""
    return tuple(sorted({"s0", f"s{cell.sessions - 1}"}))


@dataclass
class Reference:
    """Pictures as they should be."""

    bench: Bench
    frames: Frames
    _known: dict[tuple[str, int, str], dict[int, Tensor]] = field(default_factory=dict)
    """By method, steps and session."""

    def check(self, cell: Cell, answers: Sequence[Answer]) -> Check:
        """Compare what came of some sessions. Leaves the model eager."""
        allowed, found = tolerance(cell, self.bench.dtype), list[Answer]()
        for name in checked_sessions(cell):
            of_session = [answer for answer in answers if answer.session_id == name]
            found += of_session if cell.banked or cell.cached else of_session[:PLAIN_FRAMES]
        assert found, "no picture of a session that is compared came back"
        expected = self._pictures(cell, found)
        errors, largest, changes = [], 0, []
        for name in checked_sessions(cell):
            before: Tensor | None = None
            for answer in (each for each in found if each.session_id == name):
                right = expected[name, answer.ordinal]
                apart = _picture(answer, right) - right
                errors.append(float(apart.square().mean()))
                largest = max(largest, int(apart.abs().max()))
                if before is not None:
                    changes.append(float((right - before).square().mean()))
                before = right
        return Check(
            pictures=len(found),
            rms_levels=statistics.fmean(errors) ** 0.5,
            max_levels=largest,
            contrast_levels=statistics.fmean(changes) ** 0.5 if changes else None,
            rms_allowed=allowed.rms,
            max_allowed=allowed.level,
        )

    def _pictures(self, cell: Cell, wanted: Sequence[Answer]) -> Mapping[tuple[str, int], Tensor]:
        """Those of the answers' sessions and ordinals, float."""
        networks = self.bench.of(cell)
        networks.accelerators.use("eager")
        found = {}
        for spec in specs(cell, self.bench.size):
            ordinals = [answer.ordinal for answer in wanted if answer.session_id == spec.session_id]
            if not ordinals:
                continue
            known = self._known.setdefault((cell.method, cell.steps, spec.session_id), {})
            if not known.keys() >= set(ordinals):
                known.update(self._made(cell, spec, ordinals, networks.model))
            found |= {(spec.session_id, n): known[n].float() for n in ordinals}
        return found

    def _made(
        self, cell: Cell, spec: SessionSpec, ordinals: Sequence[int], model: DiffusionModel
    ) -> Mapping[int, Tensor]:
        if not (cell.banked or cell.cached):
            return {n: self._by_itself(model, spec, n) for n in ordinals}
        return self._after_its_past(cell, spec, max(ordinals))

    def _by_itself(self, model: DiffusionModel, spec: SessionSpec, ordinal: int) -> Tensor:
        denoiser, dtype = model.denoisers[""], self.bench.dtype
        image = self.frames.picture(spec.session_id, ordinal).to(self.bench.device)
        return translate_frame(model.vae, denoiser, image, spec.settings, ordinal, dtype).cpu()

    def _after_its_past(self, cell: Cell, spec: SessionSpec, last: int) -> Mapping[int, Tensor]:
        """Every frame up to the last one, in the type of the networks."""
        player = Player(self.bench.engine(cell.alone))
        player.open(spec)
        found = {}
        for ordinal in range(last + 1):
            player.admit(spec.session_id, ordinal, {PICTURE: self.frames.picture(spec.session_id, ordinal)})
            for left in player.left():
                found[left.ordinal] = planes_of(left)[PICTURE].cpu()
        return found


def _picture(answer: Answer, like: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(answer.picture), dtype=torch.uint8).view(like.shape).float()
