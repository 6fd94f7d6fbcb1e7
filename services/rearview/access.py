"""Who may come in, over what, and how much they may take before it is known who they are: the options.

A section of a deployment (`access:`), and an entry of the tenants file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["STRICT", "AccessConfig", "JwtConfig", "LinkTls", "MetricsAccess", "PeerLimits", "TenantConfig"]

STRICT = ConfigDict(extra="forbid", frozen=True)
"""Of every section: an unknown key is an error."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TenantConfig(BaseModel):
    """Who may come in, and how much of the service they get."""

    model_config = STRICT

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Who is billed, limited and isolated."""
    token_sha256: Sha256 | tuple[Sha256, ...] | None = None
    """SHA-256 (hex) of the bearer token, which is stored nowhere; or a list, while one token takes the place
    of another. None: comes with signed tokens alone."""
    max_streams: int = Field(default=4, ge=1)
    """Sessions at a time, over all ingresses; one whose connection was lost counts as long as it is kept."""
    max_frames_per_s: float = Field(default=240.0, gt=0)
    """Frames per second that the tenant's sessions may declare together (`frame_rate`), over all ingresses;
    and that it may send to one of them. One second's worth may come at once, though large frames are read
    one by one. What is beyond it is dropped, and more than as much again is not read: the connection holds
    its sender back. Controls have twice the rate, and wait beyond it."""
    max_pixels: int = Field(default=1024 * 1024, ge=64 * 64)
    """Width times height of one frame."""
    max_pixels_per_s: float | None = Field(default=None, gt=0)
    """Pixels per second that they may declare together. None: no limit but those of frames."""
    max_kept_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Images that one ingress keeps of the tenant's sessions, to send them again where a replica is lost;
    beyond it their frames wait. Their checkpoints may take as much besides; sessions beyond that have
    none. And pictures that one replica of the last span, and one ingress, each keep of them until they are
    acknowledged: beyond it the oldest that was sent goes of the session that keeps most."""
    weight: float = Field(default=1.0, gt=0)
    """Share of a replica beside other tenants."""

    @property
    def hashes(self) -> tuple[str, ...]:
        """Of all tokens that are the tenant's."""
        known = self.token_sha256 or ()
        return (known,) if isinstance(known, str) else known


class JwtConfig(BaseModel):
    """Tokens that an issuer signs, beside those whose hashes are in the tenants file."""

    model_config = STRICT

    keys_file: Path
    """The issuer's public keys: a JWKS, or one key in PEM. Read again when it changes."""
    algorithms: tuple[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"], ...
    ] = Field(min_length=1)
    """Those that may have signed a token; all with a public key."""
    audience: str = Field(min_length=1)
    """What `aud` must be, or hold."""
    issuer: str = Field(min_length=1)
    """What `iss` must be."""
    tenant_claim: str = Field(default="sub", min_length=1)
    """The claim that names the tenant. Its limits are in the tenants file; who is not there is refused."""
    leeway_s: float = Field(default=0.0, ge=0, le=60)
    """How far clocks may differ."""


class LinkTls(BaseModel):
    """TLS of links between hosts, both ways: each end shows a certificate of one authority of the service's
    own. Names are not compared, since replicas come and go with their addresses.
    """

    model_config = STRICT

    cert_file: Path
    """PEM certificate chain. Read again when it changes, as is `key_file`."""
    key_file: Path
    """PEM private key."""
    ca_file: Path
    """PEM certificate of the authority."""


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

    jwt: JwtConfig | None = None
    """Set: signed tokens are taken too. Needs `tenants_file`."""
    tls_client_ca_file: Path | None = None
    """PEM certificate of an authority; set: clients must show a certificate of its own (mTLS), besides a
    token. Needs `ingress.tls_cert_file`."""
    peers: PeerLimits = PeerLimits()
    metrics: MetricsAccess = MetricsAccess()
