"""One forward and its write to memory: what came of it, and which rows are to blame if nothing did.

A forward changes nothing before it has succeeded as a whole, so its rows may run again. Of one that does not
fit into memory no row is blamed while it has company: they run again in smaller forwards (`sizes.py`), and
only a row that does not fit alone has failed. An error after which the device answers nothing more is raised.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rearview.contract.failure import Failure
from rearview.engine.devices import release_unused
from rearview.engine.failures import failure_of, is_sticky
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import Forward, Model
from rearview.engine.planes import Planes, on_host
from rearview.engine.rows import Row, Running
from rearview.engine.scheduler import Scheduler
from rearview.engine.underway import Underway
from rearview.failpoints import reach

__all__ = ["Forwards", "Outcome"]

logger = logging.getLogger(__name__)

MAX_NAMED = 5
"""Sessions of a batch that failed, in one line of the log."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a forward."""

    forward: Forward | None
    """Its updates are in memory, and what leaves the span is on the host. None: it has failed, and memory is
    as it was."""
    failure: Failure | None = None
    blamed: Sequence[Row] = ()
    """Rows that count it as a failure of their own. The others of a failed forward run again as they were."""


class Forwards:
    """Runs rows and remembers which sizes work. For one thread."""

    def __init__(self, model: Model, memory: Memories, scheduler: Scheduler) -> None:
        self._model, self._memory = model, memory
        self._sizes = scheduler.sizes
        self._underway = Underway(scheduler.costs)

    @property
    def running(self) -> Running | None:
        """The forward under way; any thread may ask."""
        return self._underway.running

    def run(self, rows: Sequence[Row], now: float) -> Outcome:
        """Run rows of one group, and write what they leave. Raises what `is_sticky`, and nothing else."""
        group, samples = rows[0].group, sum(row.width for row in rows)
        try:
            outcome = self._try(rows)
        except Exception as error:  # The edge of a batch: what fails here ends frames, never the engine.
            if is_sticky(error):
                raise
            failure = failure_of(error)
            if failure is Failure.RAISED:
                name = rows[0].operator.name
                logger.exception("forward of %d rows of %s failed", len(rows), name, extra=_whose(rows))
        else:
            self._sizes.ran(group, samples, now)
            return outcome
        if failure is Failure.RAISED:
            return Outcome(None, failure, rows)
        # Only here, since the error held what the forward had allocated.
        release_unused()
        return Outcome(None, failure, self._without_memory(rows, samples, now))

    def _try(self, rows: Sequence[Row]) -> Outcome:
        with self._underway.forward(rows):
            views = self._memory.gather(rows)
            reach("engine.forward")
            forward = self._model.forward(rows, views)
            assert len(forward.outputs) == sum(len(row.frames) for row in rows), "an output for each sample"
            assert forward.updates.keys() == views.keys(), "a model leaves something to each memory read"
            if broken := forward.broken_rows(rows):
                name = rows[0].operator.name
                text = "%d of %d rows of %s: results are not finite"
                logger.error(text, len(broken), len(rows), name, extra=_whose(broken))
                return Outcome(None, Failure.NOT_FINITE, broken)
            reach("engine.commit.before")
            outputs = _where_they_belong(rows, forward.outputs)
            self._memory.scatter(rows, forward.updates)
            return Outcome(replace(forward, outputs=outputs))

    def _without_memory(self, rows: Sequence[Row], samples: int, now: float) -> Sequence[Row]:
        """Those to blame."""
        name = rows[0].operator.name
        if len(rows) == 1:
            text = "out of memory: a row of %s with %d samples does not fit alone"
            logger.error(text, name, samples, extra=_whose(rows))
            return rows
        most = self._sizes.did_not_fit(rows[0].group, samples, now)
        logger.warning("out of memory in a forward of %d samples of %s: %d for now", samples, name, most)
        return ()


def _where_they_belong(rows: Sequence[Row], outputs: Sequence[Planes]) -> Sequence[Planes]:
    """What leaves the span with these rows' frames on the host, all else where it is."""
    # What a shadow window leaves is in memory alone.
    leaves = [frame.leaves_next and not row.shadow for row in rows for frame in row.frames]
    leaving = [index for index, is_leaving in enumerate(leaves) if is_leaving]
    found = list(outputs)
    for index, planes in zip(leaving, on_host([outputs[index] for index in leaving]), strict=True):
        found[index] = planes
    return found


def _whose(rows: Sequence[Row]) -> Mapping[str, Mapping[str, str]]:
    """For the log, by names: of one session as lines about it have them, else of the first few."""
    specs = {row.session_id: row.frame.spec for row in rows}
    if len(specs) == 1:
        (spec,) = specs.values()
        return {"fields": {"session_id": spec.session_id, "tenant": spec.tenant}}
    tenants = dict.fromkeys(spec.tenant for spec in specs.values())
    return {"fields": {"session_ids": " ".join(list(specs)[:MAX_NAMED]), "tenants": " ".join(tenants)}}
