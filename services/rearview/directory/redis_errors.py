"""What every error of redis-py means: ask again, the server is away, or a bug of ours.

The table holds every class of `redis.exceptions` (a test enumerates them). An answer that has no class of
its own, such as MISCONF, is a plain ResponseError and is judged by its code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from redis import exceptions as e

__all__ = ["KIND_OF", "Kind", "kind_of"]


class Kind(Enum):
    """What to do about an error."""

    RETRY = "retry"
    """The same call may succeed now: a lost connection, a lost answer."""
    UNAVAILABLE = "unavailable"
    """The server cannot serve before somebody or some time mends it."""
    BUG = "bug"
    """We asked what makes no sense."""


KIND_OF: Mapping[type[BaseException], Kind] = {
    # Connections and answers that were lost.
    e.ConnectionError: Kind.RETRY,
    e.TimeoutError: Kind.RETRY,
    e.MaxConnectionsError: Kind.RETRY,
    e.NoScriptError: Kind.RETRY,
    e.TryAgainError: Kind.RETRY,
    OSError: Kind.RETRY,
    # A server that starts, lost its master or its disk, or takes no writes.
    e.BusyLoadingError: Kind.UNAVAILABLE,
    e.ReadOnlyError: Kind.UNAVAILABLE,
    e.MasterDownError: Kind.UNAVAILABLE,
    e.OutOfMemoryError: Kind.UNAVAILABLE,
    # A cluster that is not in order, or that serves these keys elsewhere.
    e.ClusterError: Kind.UNAVAILABLE,
    e.ClusterDownError: Kind.UNAVAILABLE,
    e.RedisClusterException: Kind.UNAVAILABLE,
    e.SlotNotCoveredError: Kind.UNAVAILABLE,
    e.AskError: Kind.UNAVAILABLE,
    e.MovedError: Kind.UNAVAILABLE,
    # A password or a permission that was changed, until it is changed here too.
    e.AuthenticationError: Kind.UNAVAILABLE,
    e.AuthenticationWrongNumberOfArgsError: Kind.UNAVAILABLE,
    e.AuthorizationError: Kind.UNAVAILABLE,
    e.ExternalAuthProviderError: Kind.UNAVAILABLE,
    e.NoPermissionError: Kind.UNAVAILABLE,
    # Not a Redis at all.
    e.InvalidResponse: Kind.UNAVAILABLE,
    # Calls that we do not make, or make wrongly.
    e.RedisError: Kind.BUG,
    e.ResponseError: Kind.BUG,
    e.DataError: Kind.BUG,
    e.ExecAbortError: Kind.BUG,
    e.ModuleError: Kind.BUG,
    e.NoSuchFieldsetError: Kind.BUG,
    e.PubSubError: Kind.BUG,
    e.WatchError: Kind.BUG,
    e.LockError: Kind.BUG,
    e.LockNotOwnedError: Kind.BUG,
    e.ClusterCrossSlotError: Kind.BUG,
    e.CrossSlotTransactionError: Kind.BUG,
    e.InvalidPipelineStack: Kind.BUG,
    e.IncorrectPolicyType: Kind.BUG,
    e.ChildDeadlockedError: Kind.BUG,
}
"""By class. A class that a newer redis-py adds counts as its nearest base."""

_KIND_OF_CODE: Mapping[str, Kind] = {
    "BUSY": Kind.UNAVAILABLE,
    "CLUSTERDOWN": Kind.UNAVAILABLE,
    "LOADING": Kind.UNAVAILABLE,
    "MASTERDOWN": Kind.UNAVAILABLE,
    "MISCONF": Kind.UNAVAILABLE,
    "NOAUTH": Kind.UNAVAILABLE,
    "NOPERM": Kind.UNAVAILABLE,
    "NOREPLICAS": Kind.UNAVAILABLE,
    "OOM": Kind.UNAVAILABLE,
    "READONLY": Kind.UNAVAILABLE,
    "TRYAGAIN": Kind.RETRY,
    "UNKILLABLE": Kind.UNAVAILABLE,
}
# Older servers put the code of what failed inside a script behind "ERR Error running script (...): -".
_CODE = re.compile(rf"(?:^|[\s-])({'|'.join(_KIND_OF_CODE)})\s")


def kind_of(error: BaseException) -> Kind:
    """What to do about `error`. What does not come from redis-py is a bug."""
    if type(error) is e.ResponseError and (found := _CODE.search(f"{error} ")):
        return _KIND_OF_CODE[found.group(1)]
    return next((KIND_OF[base] for base in type(error).__mro__ if base in KIND_OF), Kind.BUG)
