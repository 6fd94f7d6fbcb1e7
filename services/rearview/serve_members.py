"""Asking the replicas of Serve deployments who they are, each by itself; telling them of demand.

What surprises: a span without a replica hears nothing, and Serve starts one where a call waits for it. So
where a session found none, one is called for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from rearview.config import SpanConfig
from rearview.ingress.describing import Described, Description

__all__ = ["ServeMembers"]

logger = logging.getLogger(__name__)

TELL_EVERY_S = 1.0
TELL_WITHIN_S = 5.0


class ServeMembers:
    """Those of all spans. For one event loop."""

    def __init__(self, handles: Sequence[DeploymentHandle[Any]], spans: Sequence[SpanConfig]) -> None:
        """`handles`: of the deployments of `spans`."""
        self._handles = handles
        each = list(zip(handles, spans, strict=True))
        self._scaling = [handle for handle, span in each if span.max_replicas is not None]
        self._telling: list[asyncio.Task[None]] = []
        self._spans = [Described(partial(_ask, handle, span.min_replicas == 0)) for handle, span in each]

    async def describe(self) -> Sequence[Mapping[str, Any]]:
        """See `Members`."""
        described = await asyncio.gather(*(span.refresh() for span in self._spans))
        return [word for of_span in described for word in of_span]

    def tell(self, told: Callable[[], Mapping[str, Any]]) -> None:
        """Tell what `told` gives to the replicas of all spans that scale, again and again until `stop`."""
        self._telling = [asyncio.create_task(_Telling(span).run(told)) for span in self._scaling]

    def present(self) -> frozenset[str] | None:
        """See `Present`."""
        here = [_running(span) for span in self._handles]
        return None if None in here else frozenset().union(*(each for each in here if each is not None))

    async def stop(self) -> None:
        """Wait for nobody any more, and tell nobody."""
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
        await asyncio.gather(*(span.stop() for span in self._spans))


async def _ask(span: DeploymentHandle[Any], may_be_empty: bool) -> Sequence[Awaitable[Description]]:
    # `results_async` gives nothing of anybody before all have answered, and fails if one does not.
    try:
        answers = await span.broadcast("describe")._fetch_replica_results_async()
    except DeploymentUnavailableError:
        if not may_be_empty:  # Else Serve says so of a span that has none.
            raise
        return []
    return [answer.get_async() for answer in answers]


class _Telling:
    """Of one span."""

    def __init__(self, span: DeploymentHandle[Any]) -> None:
        self._span = span
        self._asked = 0
        self._calls: asyncio.Task[Any] | None = None
        """Waits for a replica, where there is none."""

    async def run(self, told: Callable[[], Mapping[str, Any]]) -> None:
        """Tell for ever."""
        try:
            while True:
                await self._tell(told())
                await asyncio.sleep(TELL_EVERY_S)
        finally:
            if self._calls is not None:
                self._calls.cancel()

    async def _tell(self, words: Mapping[str, Any]) -> None:
        """Tell every replica; where there is none and a session was asked for since, call for one."""
        before, self._asked = self._asked, words["asked"]
        try:
            async with asyncio.timeout(TELL_WITHIN_S):
                heard = await self._span.broadcast("hear", words)._fetch_replica_results_async()
        except Exception as error:  # Serve is away, or no replica is known yet.
            logger.info("replicas could not be told: %s", type(error).__name__)
            heard = []
        if not heard and self._asked > before and (self._calls is None or self._calls.done()):
            self._calls = asyncio.create_task(self._call())

    async def _call(self) -> None:
        try:
            await self._span.describe.remote()
        except Exception as error:  # It was gone again, or the service stops.
            logger.info("no replica came: %s", type(error).__name__)


def _running(span: DeploymentHandle[Any]) -> frozenset[str] | None:
    """The replicas that Serve has told this process of, which it does as soon as they change. None: that
    cannot be read, in this version of Ray or so early.
    """
    try:
        router = span._router._asyncio_router._active_request_router
        return frozenset(each.unique_id for each in router.curr_replicas)
    except AttributeError:
        return None
