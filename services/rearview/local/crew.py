"""The processes of a service: started, heard, replaced when they fail, ended. One thread does all that.

`places.py` decides about each process by itself, `processes.py` starts and ends one. Everything here that is
public may be called by any thread.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rearview.config import ServiceConfig
from rearview.environment import everything
from rearview.errors import ConfigError, NotFound, Reason
from rearview.local.places import INGRESS, Place, State
from rearview.local.processes import Process
from rearview.local.speaker import Speaker
from rearview.local.words import Ask, Card, Failed, Go, Order, Starting, They

__all__ = ["Crew"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
LATE_S = 1.0
"""A thread that wakes so much later than it wanted to was stopped, with all that it should have heard."""
FRESH_S = 2.0
"""A replica that was not heard for so long is not told to an ingress."""
STOP_S = 3.0
"""How long processes may take to end in order."""
KILLED_S = 5.0
"""The same where nothing is asked of them."""


class Crew:
    """The replicas and ingresses that `config` names, from `start` to `stop`."""

    def __init__(self, config: ServiceConfig, folder: Path) -> None:
        """`folder`: for what processes write."""
        self._config, self._folder, self._generation = config, folder, f"{time.time_ns():020d}"
        self._places = [
            *(Place(span.name, n) for n, span in enumerate(config.spans) for _ in range(span.replicas)),
            *(Place(INGRESS, None) for _ in range(config.ingress.replicas)),
        ]
        self._processes: dict[Place, Process] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        """Guards all of this; notified when something has happened that others wait for."""
        self._texts: list[str] = []
        self._speaker = Speaker()
        self._failure: str | None = None
        self._is_complete = self._stops = False
        self._woken, self._wake = multiprocessing.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="crew", daemon=True)

    def start(self, on_progress: Callable[[str], None]) -> None:
        """Start all and wait until all are ready. Raises ConfigError with the reason if one cannot be."""
        self._thread.start()
        while True:
            with self._changed:
                self._changed.wait(LOOK_EVERY_S)
                texts, self._texts = self._texts, []
                failure, is_complete = self._failure, self._is_complete
            for text in texts:
                on_progress(text)
            if failure is not None:
                raise ConfigError(f"the service did not start: {failure}")
            if is_complete:
                return

    def stop(self) -> None:
        """End all. Idempotent; where nothing is ready yet, at once."""
        with self._changed:
            self._stops = True
            is_starting = not self._processes
        if self._thread.is_alive():
            self._wake.send(None)
            # A thread that still waits for imports has nothing to end, and goes with this process.
            self._thread.join(LOOK_EVERY_S if is_starting else STOP_S + KILLED_S)

    def kill(self, span: str) -> str:
        """Kill the replica of a span that has most sessions; returns its id. Raises NotFound if none runs."""
        with self._changed:
            running = [p for p in self._processes if p.name == span and p.span is not None]
            if not running:
                raise NotFound(Reason.REPLICA_LOST, f"no replica of {span!r} runs")
            chosen = max(running, key=lambda place: len(place.card.get("sessions", ())))
            self._processes[chosen].kill()
            return chosen.id

    def look(self) -> Sequence[tuple[str, str, State, Mapping[str, Any]]]:
        """Name, id, state and card of every place: spans in their order, then ingresses."""
        with self._changed:
            return [(place.name, place.id, place.state, place.card) for place in self._places]

    # -- the thread

    def _run(self) -> None:
        try:
            self._look_after()
        except Exception as error:  # The edge of the thread: nobody would be watched any more.
            logger.exception("the processes of a service are not looked after any more")
            self._failure = f"{type(error).__name__}: {error}"
        self._end()

    def _look_after(self) -> None:
        turned_s = time.monotonic()
        while not self._stops:
            for place in self._places:
                if place.is_due(time.monotonic()) and not self._stops:
                    self._fill(place)
            ready = self._wait(LOOK_EVERY_S)
            former_s, turned_s = turned_s, time.monotonic()
            with self._changed:
                if (late_s := turned_s - former_s - LOOK_EVERY_S) > LATE_S:
                    for place in self._places:
                        place.excuse(late_s)
                self._hear(ready)
                self._judge()
                self._changed.notify_all()

    def _wait(self, timeout_s: float) -> set[Any]:
        pipes = [process.pipe for process in self._processes.values() if not process.pipe.closed]
        sentinels = [process.sentinel for process in self._processes.values()]
        return set(wait([self._woken, *pipes, *sentinels], timeout_s))

    def _fill(self, place: Place) -> None:
        id = f"{place.name}#{next(self._numbers)}"
        if self._config.directory.takes_over:  # Another service may know it.
            id = f"{id}.{self._generation}"
        log = str(self._folder / f"{id}.log")
        try:
            process = Process(Order(id, self._config, place.span, log, everything(), self._generation))
        except OSError as error:
            with self._changed:
                place.filled(id, time.monotonic())
                self._ended(place, f"it cannot be started: {error}")
            return
        with self._changed:
            self._processes[place] = process
            place.filled(id, time.monotonic())
            self._texts += [] if self._is_complete else self._loading()

    def _loading(self) -> Iterator[str]:
        if all(place.state is not State.DOWN for place in self._places):
            yield f"loading the model ({', '.join(span.name for span in self._config.spans)})"

    def _hear(self, ready: set[Any]) -> None:
        for place, process in tuple(self._processes.items()):
            if process.pipe in ready:
                self._listen(place, process)
            if process.sentinel in ready:
                self._listen(place, process)  # What it said last.
                del self._processes[place]
                self._ended(place, process.close())
        self._is_complete = self._is_complete or all(p.state is State.UP for p in self._places)

    def _listen(self, place: Place, process: Process) -> None:
        try:
            while process.pipe.poll():
                said = process.pipe.recv()
                place.heard(said, time.monotonic())
                if isinstance(said, Ask):
                    process.tell(They(self._replicas()))
                elif isinstance(said, Failed):
                    self._fail(place, said.reason)
                elif isinstance(said, Starting) and said.text and not self._is_complete:
                    self._texts += [said.text] if self._speaker.hears(place, said.text) else []
                elif isinstance(said, Card) and place.span is None:
                    self._keep_port(said)
        except (EOFError, OSError):
            process.pipe.close()  # It ends: its sentinel tells when.

    def _keep_port(self, card: Card) -> None:
        """An ingress that takes the place of another is found where that one was."""
        port = int(card.content["address"].rpartition(":")[2])
        if self._config.ingress.port != port:
            edge = self._config.ingress.model_copy(update={"port": port})
            self._config = self._config.model_copy(update={"ingress": edge})

    def _replicas(self) -> Sequence[Mapping[str, Any]]:
        """Those that answer; at the start none before all do, or the first sessions knew half of them."""
        now, replicas = time.monotonic(), [p for p in self._places if p.span is not None]
        fresh = [place.card for place in replicas if place.is_fresh(FRESH_S, now)]
        return fresh if self._is_complete or len(fresh) == len(replicas) else []

    def _judge(self) -> None:
        now = time.monotonic()
        for place, process in self._processes.items():
            if place.fails(now):
                process.kill()

    def _ended(self, place: Place, how: str) -> None:
        place.ended(time.monotonic())
        logger.info("%s: %s", place.id, how)
        self._fail(place, how)

    def _fail(self, place: Place, why: str) -> None:
        """The first reason counts: what ends later may do so because of it."""
        if not self._is_complete and self._failure is None:
            self._failure = why if place.id in why else f"{place.id}: {why}"

    def _end(self) -> None:
        for place, process in self._processes.items():
            if place.state is State.UP and self._is_complete:
                process.tell(Go())
            else:
                process.kill()
        self._until_ended(STOP_S)
        for process in self._processes.values():
            process.kill()
        self._until_ended(KILLED_S)

    def _until_ended(self, within_s: float) -> None:
        until_s = time.monotonic() + within_s
        while self._processes and (left_s := until_s - time.monotonic()) > 0:
            ended = set(wait([process.sentinel for process in self._processes.values()], left_s))
            for place, process in tuple(self._processes.items()):
                if process.sentinel in ended:
                    with self._changed:
                        del self._processes[place]
                    process.close()
