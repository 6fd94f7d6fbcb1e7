"""What an ingress does, without gRPC: tenants in, sessions on lanes, leases kept, everything released.

`Ingress` owns the sessions that it feeds. It learns of replicas through `members`, an awaitable that
returns their descriptions, so that it runs the same over Ray Serve and over stages in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from rearview.config import ServiceConfig, TenantConfig
from rearview.contract.card import ModelCard, has_motion, size_multiple
from rearview.contract.events import Direction, Events, LinkBytes, SessionClosed, SessionOpened
from rearview.contract.frame import Frame
from rearview.contract.opening import OpenRequest
from rearview.contract.session import SessionSpec
from rearview.contract.settings import DEFAULT_JPEG_QUALITY, Settings, SettingsChange, check_adapters
from rearview.control.admission import Admission, check_settings, check_sides
from rearview.control.methods import Offer, choose_method
from rearview.directory import open_directory
from rearview.directory.protocol import DirectoryUnavailable, Lease, LeaseHeld, LeaseLost
from rearview.errors import Fault, InvalidRequest, NotFound, RearviewError, Reason, Refused, StreamEnded
from rearview.ingress.auth import Tenants
from rearview.ingress.lanes import Lane, Lanes
from rearview.ingress.options import SessionOptions, Terms
from rearview.ingress.session import Edge, IngressSession
from rearview.telemetry.listener import MetricsListener
from rearview.telemetry.logging import log_fault
from rearview.telemetry.metrics import Metrics, new_registry
from rearview.transport.wire import plane_bytes

__all__ = ["Feeder", "Ingress", "Record"]

logger = logging.getLogger(__name__)

MEMBERS_INTERVAL_S = 0.5
"""How often replicas are asked to describe themselves; also what a new replica waits to be used."""
START_INTERVAL_S = 0.1
PLACEMENT_TRIES = 3
"""A replica may have filled up, or gone, since it described itself."""
MEMBERS_TIMEOUT_S = 5.0
PLACEMENT_REFRESH_TIMEOUT_S = 0.03
"""A client that cannot be placed learns so within 100 ms, also when a replica does not answer."""
RETRY_AFTER_S = 2.0

Members = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]


class Feeder(Protocol):
    """A stream, as the ingress sees it."""

    def end(self, error: RearviewError) -> None:
        """The session is over, or another stream feeds it now."""


@dataclass(slots=True)
class Record:
    """A session and the stream that feeds it."""

    session: IngressSession
    open_time_s: float
    """Wall clock."""
    stream: Feeder | None = None
    """Who feeds it now; None: its connection was lost."""
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)


class Ingress:
    """The sessions of one ingress process. For one event loop."""

    def __init__(self, config: ServiceConfig, ingress_id: str, node: str, members: Members) -> None:
        self.config = config
        self.tenants = Tenants.load(config.tenants_file)
        self.admission = Admission(config.limits)
        self.metrics = Metrics(new_registry())
        self.events: Events = MetricsListener(self.metrics)
        self.card = ModelCard.read(config.model.checkpoint)
        moves = has_motion(config.model.checkpoint, config.model.motion)
        self.offer = Offer(config.bank, config.cache, has_motion=moves)
        self._id = ingress_id
        self._members = members
        self._directory = open_directory(config.directory)
        self._lanes = Lanes(
            [span.name for span in config.spans],
            config.link,
            node,
            on_frame=self._on_frame,
            on_lane_lost=self._on_lane_lost,
            on_replica_lost=self._on_replica_lost,
        )
        self._executor = ThreadPoolExecutor(config.ingress.codec_threads, thread_name_prefix="codec")
        self._edge = Edge(config.model.name, config.limits, self._lanes, self._executor, self.events)
        self._records: dict[str, Record] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._releases: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self._unfed = asyncio.Event()
        """Set while no stream feeds a session."""
        self._unfed.set()

    async def start(self) -> None:
        """Take links, and wait until every span has a replica: before that nothing can be served."""
        await self._lanes.start()
        while not self._lanes.complete:
            await self._try_refresh()
            await asyncio.sleep(0 if self._lanes.complete else START_INTERVAL_S)
        self._spawn(self._keep_members(), self._background)
        self._spawn(self._keep_leases(), self._background)

    async def stop(self) -> None:
        """End every session and let go of everything."""
        self.close_all(StreamEnded(Reason.DRAINING, "the service has stopped", retry_after_s=1.0))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, *self._releases, return_exceptions=True)
        await self._lanes.stop()
        await self._directory.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def refresh(self) -> Sequence[Mapping[str, Any]]:
        """Ask the replicas who they are; returns their descriptions, which placement uses from now on."""
        descriptions = await self._members()
        self._lanes.update(descriptions)
        return descriptions

    def drain(self) -> None:
        """Take no new streams and tell the others."""
        self._draining.set()
        for record in self._records.values():
            record.session.wake()

    async def wait_until_empty(self, timeout_s: float) -> None:
        """Return when no stream feeds a session, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._unfed.wait()

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    @property
    def num_sessions(self) -> int:
        return len(self._records)

    async def open(self, tenant: TenantConfig, request: OpenRequest) -> Record:
        """Admit, place and open a session. Raises InvalidRequest or Refused; then nothing is held."""
        spec, options = self._checked(tenant, request), SessionOptions.of(request)
        lease, lane = await self._place(spec)
        session = IngressSession(
            Terms(spec, options, tenant, self.offer.warm_up_frames(spec)),
            lease,
            lane,
            self._edge,
            lambda error: self._on_fault(spec.session_id, error),
        )
        record = Record(session, time.time())
        self._records[spec.session_id] = record
        self.events(SessionOpened(tenant.name))
        return record

    def change_settings(self, session: IngressSession, change: SettingsChange) -> str:
        """Apply a change from the next frame on; returns advice. Raises InvalidRequest, changing nothing."""
        check_settings(
            max_steps=session.spec.max_steps, strength=change.strength, steps=change.steps, seed=change.seed
        )
        settings = change.apply(session.settings)
        check_adapters(settings.adapters, self.config.model.adapters)
        for text in settings.texts:
            self.admission.check_prompt(text)
        session.apply(settings)
        return self.card.advice(settings.wording)

    def find(self, tenant: TenantConfig, session_id: str) -> Record:
        """A session of the tenant that this ingress feeds. Raises NotFound."""
        record = self._records.get(session_id)
        if record is None or record.session.tenant.name != tenant.name:
            raise NotFound(Reason.SESSION_UNKNOWN, "there is no such session")
        return record

    def records(self, tenant: TenantConfig) -> Iterator[Record]:
        """The tenant's sessions, oldest first."""
        mine = (r for r in self._records.values() if r.session.tenant.name == tenant.name)
        return iter(sorted(mine, key=lambda r: (r.open_time_s, r.session.spec.session_id)))

    def attach(self, record: Record, stream: Feeder) -> None:
        """`stream` feeds the session from now on; the one that did before ends."""
        if record.stream is not None:
            record.stream.end(StreamEnded(Reason.TAKEN_OVER, "another stream has resumed the session"))
        record.stream = stream
        self._unfed.clear()
        if record.expiry is not None:
            record.expiry.cancel()
            record.expiry = None

    def detach(self, record: Record, stream: Feeder) -> None:
        """The connection is lost: keep the session for the grace time."""
        if record.stream is not stream or record.session.spec.session_id not in self._records:
            return
        record.stream = None
        self._note_unfed()
        grace_s = self.config.ingress.resume_grace_s
        closed = StreamEnded(Reason.SESSION_UNKNOWN, "the grace time is over")
        record.expiry = asyncio.get_running_loop().call_later(grace_s, self.close, record, closed)

    def close(self, record: Record, why: RearviewError) -> None:
        """End a session and release all that it holds. Idempotent."""
        session = record.session
        if self._records.pop(session.spec.session_id, None) is None:
            return
        if record.expiry is not None:
            record.expiry.cancel()
        session.end()
        if record.stream is not None:
            record.stream.end(why)
        self._note_unfed()
        self._lanes.close(session.lane)
        self.events(SessionClosed(session.tenant.name))
        self._spawn(self._release(session.lease), self._releases)

    def close_all(self, why: RearviewError) -> None:
        """End every session."""
        for record in tuple(self._records.values()):
            self.close(record, why)

    def _checked(self, tenant: TenantConfig, request: OpenRequest) -> SessionSpec:
        if self.draining:
            raise Refused(Reason.DRAINING, "the service is draining", retry_after_s=RETRY_AFTER_S)
        model = self.config.model
        if request.model not in ("", model.name):
            raise InvalidRequest(
                Reason.MODEL_UNKNOWN, "the model is not served here", metadata={"served": model.name}
            )
        width, height = request.width or model.width, request.height or model.height
        self.admission.check_resolution(tenant, width, height)
        max_steps = request.max_steps or model.max_steps
        check_settings(
            max_steps=model.max_steps,
            strength=request.settings.strength,
            steps=request.settings.steps,
            seed=request.settings.seed,
            session_max_steps=max_steps,
            frame_rate=request.frame_rate,
            frame_budget_s=request.frame_budget_s,
        )
        defaults = Settings(
            strength=self.card.strength,
            steps=min(self.card.steps, max_steps),
            jpeg_quality=request.jpeg_quality or DEFAULT_JPEG_QUALITY,
        )
        settings = request.settings.apply(defaults)
        check_adapters(settings.adapters, model.adapters)
        for text in settings.texts:
            self.admission.check_prompt(text)
        check_settings(max_steps=max_steps, steps=settings.steps)
        bank, cache = choose_method(self.offer, request.method, request.feature_bank, request.temporal_cache)
        if cache is not None:
            check_sides(width, height, size_multiple(model.checkpoint))
        return SessionSpec(
            uuid.uuid4().hex,
            width,
            height,
            max_steps,
            settings,
            tenant.name,
            tenant.weight,
            bank=bank,
            cache=cache,
        )

    async def _place(self, spec: SessionSpec) -> tuple[Lease, Lane]:
        refused: Refused | None = None
        for _ in range(PLACEMENT_TRIES):
            try:
                replicas = self._lanes.choose(await self._directory.sessions_by_replica())
                return await self._take(spec, replicas)
            except Refused as error:
                if error.reason not in (Reason.NO_CAPACITY, Reason.REPLICA_LOST, Reason.DRAINING):
                    raise
                refused = error
                if error.reason is Reason.NO_CAPACITY:
                    await self._try_refresh(PLACEMENT_REFRESH_TIMEOUT_S)
        evicted = self._evict_detached()
        if evicted is None:
            assert refused is not None, "not placed and not refused"
            raise refused
        # On the same links, where the close goes before the open: its slots are free for sure.
        return await self._take(spec, evicted.session.lane.replicas)

    async def _take(self, spec: SessionSpec, replicas: tuple[str, ...]) -> tuple[Lease, Lane]:
        lease = await self._directory.acquire(spec.session_id, spec.tenant, replicas, self._id, time.time())
        try:
            return lease, await self._lanes.open(spec, lease.epoch, replicas)
        except BaseException:
            await self._release(lease)
            raise

    def _note_unfed(self) -> None:
        if all(record.stream is None for record in self._records.values()):
            self._unfed.set()

    def _evict_detached(self) -> Record | None:
        """A session that nobody feeds makes room for one that somebody will."""
        detached = [r for r in self._records.values() if r.expiry is not None]
        if not detached:
            return None
        oldest = min(detached, key=lambda record: record.expiry.when() if record.expiry else 0.0)
        self.close(oldest, StreamEnded(Reason.SESSION_UNKNOWN, "the slot was needed"))
        return oldest

    def _on_frame(self, frame: Frame[NDArray[Any]]) -> None:
        record = self._records.get(frame.session_id)
        if record is None:
            return
        try:
            record.session.on_frame(frame)
        except Exception as error:  # The edge of a session: others share the link.
            self._on_fault(frame.session_id, error)
        self.events(LinkBytes("ingress", Direction.RECEIVED, plane_bytes(frame)))

    def _on_lane_lost(self, session_id: str, epoch: int) -> None:
        record = self._records.get(session_id)
        if record is not None and record.session.lane.epoch == epoch:
            self.close(record, _replica_lost())

    def _on_replica_lost(self, replica_id: str) -> None:
        for record in tuple(self._records.values()):
            if replica_id in record.session.lane.replicas:
                self.close(record, _replica_lost())

    def _on_fault(self, session_id: str, error: BaseException) -> None:
        error_id = log_fault(logger, "session failed", error, session_id=session_id)
        record = self._records.get(session_id)
        if record is not None:
            self.close(record, Fault(metadata={"error_id": error_id}))

    async def _keep_members(self) -> None:
        while True:
            await asyncio.sleep(MEMBERS_INTERVAL_S)
            await self._try_refresh()

    async def _try_refresh(self, timeout_s: float = MEMBERS_TIMEOUT_S) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.refresh()
        except Exception as error:  # No replica yet, or Serve is away: what is known stays in use.
            logger.info("replicas could not be asked: %s", type(error).__name__)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self.config.directory.lease_s / 3)
            for record in tuple(self._records.values()):
                await self._renew(record)

    async def _renew(self, record: Record) -> None:
        lease = record.session.lease
        try:
            record.session.lease = await self._directory.renew(lease.session_id, lease.epoch, time.time())
        except LeaseLost as error:
            if error.current is None:
                await self._acquire_again(record)
            else:
                self.close(record, error)
        except DirectoryUnavailable:
            logger.warning("the session directory does not answer; sessions go on")

    async def _acquire_again(self, record: Record) -> None:
        """The store forgot the lease of a live session: it came back empty."""
        session, held = record.session, record.session.lease
        try:
            lease = await self._directory.acquire(
                held.session_id, held.tenant, held.lane, self._id, time.time(), min_epoch=held.epoch
            )
        except LeaseHeld as error:
            self.close(record, StreamEnded(error.reason, error.message))
            return
        except DirectoryUnavailable:
            return  # The next renewal tries again.
        session.lease = lease
        if self._records.get(held.session_id) is not record:  # Closed meanwhile.
            await self._release(lease)

    async def _release(self, lease: Lease) -> None:
        with contextlib.suppress(DirectoryUnavailable):  # The lease then expires by itself.
            await self._directory.release(lease.session_id, lease.epoch)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _replica_lost() -> StreamEnded:
    return StreamEnded(Reason.REPLICA_LOST, "a replica was lost with the session", retry_after_s=1.0)
