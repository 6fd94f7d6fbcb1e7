"""What an ingress does, without gRPC: tenants in, sessions on lanes, leases kept, everything released.

`Ingress` puts the parts together and lets each do its own: admission says what a session is, placing finds it
a lane, leases keep it, the table knows who feeds it. It learns of replicas through `members`, so that it runs
the same over Ray Serve and over stages in one process.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from numpy.typing import NDArray

from rearview.config import ServiceConfig, TenantConfig
from rearview.contract.card import is_chain
from rearview.contract.events import Direction, LinkBytes, SessionClosed, SessionOpened, told_to
from rearview.contract.frame import Frame
from rearview.contract.lease import Lease, LeaseRequest, Load
from rearview.contract.opening import OpenRequest
from rearview.contract.settings import SettingsChange
from rearview.control.admission import Admission, quota_of
from rearview.control.circuit import Circuit
from rearview.directory import Directory, open_directory
from rearview.errors import Fault, RearviewError, Reason, Refused, StreamEnded
from rearview.ingress.admission import read_served
from rearview.ingress.adoption import Adoptions, Resumption, unknown, wrong_token
from rearview.ingress.catalogue import Catalogue
from rearview.ingress.checkpoints import Checkpoints
from rearview.ingress.choosing import Choosing
from rearview.ingress.clusters import Clusters
from rearview.ingress.credentials import Credentials
from rearview.ingress.demand import Demand
from rearview.ingress.edge import Edge
from rearview.ingress.emptying import Emptying
from rearview.ingress.handover import Handovers
from rearview.ingress.inherited import Inherited
from rearview.ingress.lane import Lane
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.leaving import leave_to_others
from rearview.ingress.members import Members, Present, Roster, unasked
from rearview.ingress.moving import Moving
from rearview.ingress.options import SessionOptions, Terms
from rearview.ingress.parking import Parking
from rearview.ingress.placing import Placing
from rearview.ingress.recovery import Recovery
from rearview.ingress.references import check_pictures
from rearview.ingress.resizes import changed
from rearview.ingress.session import IngressSession
from rearview.ingress.sessions import Record, Sessions
from rearview.ingress.spares import Spares
from rearview.ingress.telling import Telling
from rearview.ingress.unfed import Unfed
from rearview.ingress.wording import Advice
from rearview.telemetry.logging import log_fault
from rearview.transport.wire import plane_bytes

__all__ = ["Ingress"]

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2.0
PEER = "ingress"
"""Who counts bytes of links here."""


class Ingress:
    """The sessions of one ingress process. For one event loop."""

    def __init__(
        self,
        config: ServiceConfig,
        ingress_id: str,
        node: str,
        members: Members,
        directory: Directory | None = None,
        generation: str = "",
        present: Present = unasked,
    ) -> None:
        """`directory`: one that ingresses of this process share; None: the one of `config`. `generation`: of
        this cluster (`Clusters`).
        """
        self.config, self.admission = config, Admission(read_served(config))
        self._advice = Advice(self.admission.served.card, config.model)
        self._telling, self.demand = Telling(config, ingress_id), Demand(ingress_id, time.monotonic)
        self.metrics, self.events = self._telling.metrics, told_to(self._telling.events, self.demand)
        self.sessions = Sessions(
            config.ingress.resume_grace_s,
            on_closed=self._on_closed,
            on_fed=lambda session: self._unfed.fed(session),
            on_unfed=lambda session: self._unfed.unfed(session),
        )
        self.credentials = Credentials(config, self.events)
        self._directory = directory or open_directory(config.directory, Circuit())
        self._is_shared = directory is not None or config.directory.redis_url is not None
        self.clusters = Clusters(self._directory, config, ingress_id, generation, members, node, present)
        self._lanes = Lanes(
            [span.name for span in config.spans],
            config.link,
            node,
            on_frame=self._on_frame,
            on_lane_lost=self._on_lane_lost,
            on_lane_drains=self._on_lane_drains,
            source=lambda request: self.clusters.source(request, self._handovers.source),
            events=self.events,
        )
        self._checkpoints = Checkpoints(self._lanes, config.link, node, config.recovery, self.events)
        self.roster = Roster(self.clusters.members, self._lanes, config.spans, self.clusters.present)
        self._leases = Leases(
            self._directory,
            ingress_id,
            config.directory.lease_s,
            on_granted=self._on_granted,
            on_taken=self._on_taken,
            held=self.roster.held,
        )
        self._choose_lanes(ingress_id)
        self._executor = ThreadPoolExecutor(config.ingress.codec_threads, thread_name_prefix="codec")
        self._outlive_lanes(ingress_id)
        self._outlive_ingresses(node)
        self._edge = Edge.of(config, self._executor, self.events)
        self._background: set[asyncio.Task[None]] = set()
        self.draining = False
        """Whether new streams are refused."""

    async def start(self) -> None:
        """Take links, and wait for a replica of each span that always has one: before that none is served."""
        self.metrics.sessions.count = self.sessions.standing
        await self._lanes.start()
        await self.roster.wait_until_complete()
        await asyncio.to_thread(self._advice.prepare)
        await self._leases.begin(self._lanes.address)
        await self.clusters.begin(self._lanes.address)
        await self._spares.try_look()
        looking = (self.roster, self._leases, self._spares, self._moving, self._unfed)
        running = (*looking, self.clusters, self._telling)
        self._background = {asyncio.create_task(each.run()) for each in running}

    async def stop(self) -> None:
        """End every session and let go of everything."""
        self.draining = True
        self.sessions.close_all(StreamEnded(Reason.DRAINING, "the service has stopped", retry_after_s=1.0))
        for each in (self._adoptions, self._unfed, self._checkpoints, self._moving, self._recovery):
            await each.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._spares.stop()
        await self._lanes.stop()
        await self._placing.settle()
        await self._leases.settle()
        await self._directory.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        await self._telling.stop()

    async def refresh(self) -> Sequence[Mapping[str, Any]]:
        """Ask the replicas who they are; returns their descriptions, which placement uses from now on."""
        return await self.roster.refresh()

    def drain(self) -> None:
        """Take no new streams and tell the others."""
        self.draining = True
        for record in self.sessions:
            record.session.wake()

    def leave(self) -> None:
        """The drain grace is over: see `leave_to_others`."""
        parts, stays = (self.sessions, self._lanes, self._leases), self.clusters.is_superseded
        leave_to_others(*parts, is_shared=self._is_shared, stays=stays)

    async def open(self, tenant: TenantConfig, request: OpenRequest) -> Record:
        """Admit, place and open a session. Raises InvalidRequest or Refused; then nothing is held."""
        if self.draining:
            raise Refused(Reason.DRAINING, "the service is draining", retry_after_s=RETRY_AFTER_S)
        spec = self.admission.session(uuid.uuid4().hex, tenant, request)
        await check_pictures(request.settings, self._executor)
        warm_up_frames = self.admission.served.offer.warm_up_frames(spec)
        lasting, now = is_chain(self.config.model.checkpoint), self._edge.clock()
        terms = Terms(spec, SessionOptions.of(request), tenant, warm_up_frames, not lasting, asked_s=now)
        load = Load.of(request.frame_rate, spec.width, spec.height)
        wanted = LeaseRequest(spec.session_id, tenant.name, load, quota_of(tenant), terms.token_sha256)
        lease, lane = await self._placing.place(spec, wanted)
        # No word can come between: a session has its lane and its lease, or neither is there.
        return self._begin(terms, lease, lane, Inherited.none(terms))

    async def resume(self, tenant: TenantConfig, asked: Resumption) -> Record:
        """A session that this ingress feeds, or one that it takes over. Raises as `Adoptions.adopt` does."""
        record = self.sessions.get(asked.session_id)
        if record is not None and await self._leases.is_taken(record.session.lease):
            # This process has slept, or the session was parked here: it does not know yet.
            self._on_taken(asked.session_id, StreamEnded(Reason.TAKEN_OVER, "the session was taken over"))
        record = self.sessions.get(asked.session_id)
        if record is None:
            if self.draining:
                raise Refused(Reason.DRAINING, "the service is draining", retry_after_s=RETRY_AFTER_S)
            record = await self._adoptions.adopt(tenant, asked)
        if record.session.tenant.name != tenant.name:
            raise unknown()
        if not record.session.holds(asked.token):
            raise wrong_token()
        return record

    async def change_settings(self, session: IngressSession, change: SettingsChange) -> str:
        """Apply a change from the next frame on; returns advice. Raises as `changed` does."""
        await check_pictures(change, self._executor)
        session.apply(await changed(session, change, self.admission, self.choosing, self._leases))
        return self.advice(session)

    def advice(self, session: IngressSession) -> str:
        """What to tell a user about the prompts in force."""
        return self._advice.on(session.settings)

    def _choose_lanes(self, ingress_id: str) -> None:
        config, lanes, leases, mine = self.config, self._lanes, self._leases, (self._directory, ingress_id)
        self._spares = Spares(*mine, config, lanes, leases)
        self._emptying = Emptying(*mine, config, lanes, self._spares)
        self.choosing = Choosing(lanes, leases, self._spares, self._emptying, config.placement)
        finds = (lanes, leases, self.choosing, self.demand)
        self._placing = Placing(
            *finds,
            refresh=self.roster.try_refresh,
            evict=lambda tenant, for_slots: self._unfed.evict(tenant, for_slots),
            is_draining=lambda: self.draining,
        )
        self.catalogue = Catalogue(self.sessions, self._lanes, self._leases, self.roster.try_refresh)

    def _outlive_lanes(self, ingress_id: str) -> None:
        """What a session needs to go on in another lane."""
        config, lanes, leases, kept = self.config.recovery, self._lanes, self._leases, self._checkpoints
        self._recovery = Recovery(self._placing, lanes, config, events=self.events, end=self._end)
        parking = Parking(lanes, leases, kept, self._recovery, after_s=config.park_after_s)
        moves = (self._directory, ingress_id, lanes, leases, self.choosing, self._emptying, kept)
        self._moving = Moving(self.config, *moves, self.sessions, self.roster, self.events)
        mine = (self._directory, ingress_id)
        self.clusters.vacate = partial(self._moving.moves.vacate, self.sessions)
        grace_s, is_shared = self.config.ingress.resume_grace_s, self._is_shared
        self._unfed = Unfed(*mine, self.sessions, parking, self.catalogue, grace_s, is_shared)

    def _outlive_ingresses(self, node: str) -> None:
        """What it needs to go on at another ingress."""
        self._handovers = Handovers(
            self._placing, self._leases, self._checkpoints, self.sessions, self.config.link, node
        )
        self._adoptions = Adoptions(
            self._lanes, self._leases, self._handovers, refresh=self.roster.try_refresh, begin=self._begin
        )

    def _begin(self, terms: Terms, lease: Lease, lane: Lane, inherited: Inherited) -> Record:
        """A session that nobody feeds yet."""
        session = IngressSession(
            terms, lease, lane, self._edge, lambda error: self._on_fault(lease.session_id, error), inherited
        )
        record = Record(session, lease.open_time_s)
        self.sessions.add(record)
        self._leases.keep(lease)
        self._checkpoints.watch(session)
        self.events(SessionOpened(terms.tenant.name))
        return record

    def _on_closed(self, session: IngressSession) -> None:
        for each in (self._unfed, self._checkpoints, self._moving, self._recovery):
            each.forget(session)
        self._lanes.close(session.lane)
        self._leases.let_go(session.spec.session_id)
        session.outcomes.end()
        self.events(SessionClosed(session.tenant.name))

    def _on_frame(self, frame: Frame[NDArray[Any]]) -> None:
        self.demand.passed(frame.timings)
        record = self.sessions.get(frame.session_id)
        if record is None:
            self._adoptions.on_frame(frame)
            return
        try:
            record.session.on_frame(frame)
        except Exception as error:  # The edge of a session: others share the link.
            self._on_fault(frame.session_id, error)
        self.events(LinkBytes(PEER, Direction.RECEIVED, plane_bytes(frame)))

    def _on_lane_lost(self, session_id: str, epoch: int, why: RearviewError) -> None:
        record = self.sessions.get(session_id)
        if record is None or record.session.lane.epoch != epoch:
            return
        if why.reason is Reason.REPLICA_LOST:
            self._moving.forget(record.session)
            self._recovery.lane_lost(record.session, why)
        else:
            self.sessions.close(record, why)

    def _on_lane_drains(self, session_id: str, epoch: int) -> None:
        record = self.sessions.get(session_id)
        if record is not None and record.session.lane.epoch == epoch:
            self._moving.leave(record.session)

    def _end(self, session: IngressSession, why: RearviewError) -> None:
        record = self.sessions.get(session.spec.session_id)
        if record is not None and record.session is session:
            self.sessions.close(record, why)

    def _on_granted(self, lease: Lease) -> None:
        record = self.sessions.get(lease.session_id)
        if record is not None:
            record.session.lease = lease

    def _on_taken(self, session_id: str, why: RearviewError) -> None:
        record = self.sessions.get(session_id)
        if record is not None:
            self._lanes.give_away(record.session.lane)  # Its slots are the other's, or about to be.
            self.sessions.close(record, why)

    def _on_fault(self, session_id: str, error: BaseException) -> None:
        record = self.sessions.get(session_id)
        whose = {} if record is None else {"tenant": record.session.tenant.name}
        error_id = log_fault(logger, "session failed", error, session_id=session_id, **whose)
        if record is not None:
            self.sessions.close(record, Fault(metadata={"error_id": error_id}))
