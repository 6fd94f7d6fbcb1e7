"""One call that renews many leases, and what its answer means for each."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rearview.contract.lease import Lease
from rearview.control import leases as decide
from rearview.directory.protocol import Directory, DirectoryUnavailable, LeaseLost
from rearview.telemetry.logging import log_fault

__all__ = ["renewals"]

logger = logging.getLogger(__name__)


async def renewals(directory: Directory, leases: Sequence[Lease], ingress: str) -> Sequence[decide.Event]:
    """Ask for more time for those of `ingress`, at most `MAX_RENEWED`; what has come of each."""
    try:
        answers = await directory.renew_all(leases) if leases else ()
    except DirectoryUnavailable:
        return [decide.Unanswered()] * len(leases)
    except Exception as error:  # The edge of a renewal: the others, and the next one, go on.
        log_fault(logger, "leases could not be renewed", error)
        return [decide.Unanswered()] * len(leases)
    return [
        decide.not_renewed(lease, answer.current, ingress, answer.message)
        if isinstance(answer, LeaseLost)
        else decide.Granted(answer)
        for lease, answer in zip(leases, answers, strict=True)
    ]
