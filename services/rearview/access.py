"""Who may come in, over what, and how much they may take before it is known who they are: the options.

A section of a deployment (`access:`). What each tenant may do is in the tenants file.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["STRICT", "AccessConfig", "MetricsAccess", "PeerLimits"]

STRICT = ConfigDict(extra="forbid", frozen=True)
"""Of every section: an unknown key is an error."""


class PeerLimits(BaseModel):
    """What one ingress takes from connections and addresses, whoever they may be."""

    model_config = STRICT

    max_calls_per_connection: int = Field(default=128, ge=1)
    """Calls at a time on one connection; a client that respects HTTP/2 waits with more."""
    max_connections: int = Field(default=4096, ge=1)
    """TCP connections at a time; further ones are closed at once."""
    max_open_calls: int = Field(default=32, ge=1)
    """Calls without a tenant (health) from one address at a time; more are refused. Behind a proxy every
    call has the proxy's address: let the proxy limit its own clients, and this hold for all of them."""
    handshake_timeout_s: float = Field(default=5.0, gt=0)
    """A connection that does not greet, by TLS and HTTP/2, for so long is closed."""
    idle_connection_s: float = Field(default=300.0, gt=0)
    """A connection without a call for so long is closed; clients connect again by themselves."""


class MetricsAccess(BaseModel):
    """Who may read `/metrics` of the ingress and of the replicas."""

    model_config = STRICT

    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` for scrapers of other machines."""
    token_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 (hex) of the bearer token that scrapers show. None: whoever reaches the port may read."""
    max_connections: int = Field(default=32, ge=1)
    """Connections at a time; further ones are closed at once."""
    max_connections_per_address: int = Field(default=8, ge=1)
    """The same, from one address."""
    timeout_s: float = Field(default=5.0, gt=0)
    """A request that is not sent and answered within so long is cut off."""


class AccessConfig(BaseModel):
    """The section."""

    model_config = STRICT

    peers: PeerLimits = PeerLimits()
    metrics: MetricsAccess = MetricsAccess()
