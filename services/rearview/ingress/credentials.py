"""The tenants and keys in force. Their files are looked at all the time: a token can be revoked at once."""

from __future__ import annotations

import logging

from rearview.config import ServiceConfig
from rearview.contract.events import Events, FileReloaded
from rearview.files import Refreshed, Watched
from rearview.ingress.auth import Caller, Metadata, Tenants

__all__ = ["Credentials"]

logger = logging.getLogger(__name__)


class Credentials:
    """Who may come in now."""

    def __init__(self, config: ServiceConfig, events: Events) -> None:
        """Raises ConfigError for files that cannot be used."""
        jwt, path = config.access.jwt, config.tenants_file
        self._events = events
        paths = [each for each in (path, None if jwt is None else jwt.keys_file) if each is not None]
        self._tenants = Watched(paths, lambda: Tenants.load(path, jwt))

    def authenticate(self, metadata: Metadata) -> Caller:
        """Raises InvalidRequest(TOKEN_INVALID)."""
        return self._tenants.value.authenticate(metadata)

    def __contains__(self, tenant: object) -> bool:
        return tenant in self._tenants.value

    def refresh(self) -> bool:
        """Look at the files; whether others hold from now on. A broken one changes nothing, and is said."""
        found = self._tenants.refresh()
        if found is Refreshed.CHANGED:
            logger.info("tenants and keys were read again")
        elif found is Refreshed.BROKEN:
            logger.error("tenants or keys cannot be read, the former ones hold: %s", self._tenants.error)
        if found is not Refreshed.SAME:
            self._events(FileReloaded("tenants", is_good=found is Refreshed.CHANGED))
        return found is Refreshed.CHANGED
