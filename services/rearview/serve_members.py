"""Asking the replicas of Serve deployments who they are, each by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle

from rearview.ingress.describing import Described, Description

__all__ = ["ServeMembers"]


class ServeMembers:
    """Those of all spans. For one event loop."""

    def __init__(self, spans: Sequence[DeploymentHandle[Any]]) -> None:
        self._spans = [Described(partial(_ask, span)) for span in spans]

    async def describe(self) -> Sequence[Mapping[str, Any]]:
        """See `Members`."""
        described = await asyncio.gather(*(span.refresh() for span in self._spans))
        return [word for of_span in described for word in of_span]

    async def stop(self) -> None:
        """Wait for nobody any more."""
        await asyncio.gather(*(span.stop() for span in self._spans))


async def _ask(span: DeploymentHandle[Any]) -> Sequence[Awaitable[Description]]:
    # `results_async` gives nothing of anybody before all have answered, and fails if one does not.
    answers = await span.broadcast("describe")._fetch_replica_results_async()
    return [answer.get_async() for answer in answers]
