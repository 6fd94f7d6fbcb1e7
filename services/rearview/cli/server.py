"""Which server a command talks to: the one named, or one started on this machine for its time."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rearview.cli.failure import interrupt_on_sigterm
from rearview.errors import ConfigError
from rearview.machine import this_machine

if TYPE_CHECKING:
    from rearview.client import Client, Tls
    from rearview.config import ServiceConfig
    from rearview.local import LocalService, PlainService, RayService

__all__ = [
    "PATIENCE_S",
    "Named",
    "Server",
    "TlsChoice",
    "connect",
    "local_config",
    "local_server",
    "plain_service",
    "ray_service",
]

ServiceT = TypeVar("ServiceT", bound="LocalService")

PATIENCE_S = 3.0
"""A server that was named may be about to come up."""


@dataclass(frozen=True, kw_only=True)
class TlsChoice:
    """What the `--tls` options say. Raises ConfigError for a certificate or a key alone."""

    on: bool = False
    """Any file or name switches it on too."""
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("--tls-cert and --tls-key go together")

    def tls(self) -> Tls | bool:
        """For `Client`. Raises ConfigError for a file that cannot be read."""
        from rearview.client import Tls

        for option, path in (("ca", self.ca), ("cert", self.cert), ("key", self.key)):
            if path is not None and not os.access(path, os.R_OK):
                raise ConfigError(f"--tls-{option} {path}: cannot be read")
        if (self.ca, self.cert, self.name) == (None, None, None):
            return self.on
        return Tls(ca_file=self.ca, cert_file=self.cert, key_file=self.key, server_name=self.name)


@dataclass(frozen=True)
class Server:
    """Where to connect, and as whom."""

    address: str
    token: str | Callable[[], str] | None = None
    tls: TlsChoice = TlsChoice()
    ready_s: float | None = None
    """Set if the service was started for this command."""

    @classmethod
    def named(cls, address: str, token_file: Path | None, tls: TlsChoice) -> Server:
        """A running server. Raises ConfigError for what is no address and a token that cannot be read."""
        from rearview.client.routes import addresses_of

        try:
            addresses_of(address)
        except ValueError as error:
            raise ConfigError(f"--server {error}") from None
        return cls(address, _token_of(token_file), tls)


@dataclass(frozen=True, kw_only=True)
class Named:
    """The server that was named, if one was."""

    address: str | None
    token_file: Path | None
    tls: TlsChoice

    def server(self) -> Server | None:
        """None: one is to be started here. Raises ConfigError for a token that cannot be read."""
        if self.address is None:
            return None
        return Server.named(self.address, self.token_file, self.tls)


def connect(server: Server, *, patience_s: float = PATIENCE_S) -> Client:
    """A client for `server`, which is given up if it cannot be reached for `patience_s`."""
    from rearview.client import Client, Reconnect

    reconnect = Reconnect(open_timeout_s=patience_s)
    return Client(server.address, server.token, tls=server.tls.tls(), reconnect=reconnect)


def local_config(
    topology: str = "fused",
    *,
    config_file: Path | None = None,
    port: int | None = None,
    model: Mapping[str, Any] | None = None,
    sessions: int | None = None,
) -> ServiceConfig:
    """The configuration of a service on this machine: the file's, or `model` (the bundled one) on all cores.

    `model`: what `choose_model` made. `pipeline` is two spans, the cut that serves one stream best on few
    cores. `sessions`: that it has memory for; None: as many as there is memory for (`slots: auto`).
    """
    from rearview.config import load_config
    from rearview.contract.card import ModelCard

    if config_file is not None:
        config = load_config(config_file)
        if port is None:
            return config
        ingress = config.ingress.model_copy(update={"port": port})
        return config.model_copy(update={"ingress": ingress})
    chosen = load_config({"model": dict(model or {})})
    content: dict[str, Any] = {"topology": topology, "spans": _local_spans(topology, chosen.operators)}
    content["spans"] = [{**span, "slots": sessions or "auto"} for span in content["spans"]]
    content["model"] = chosen.model.model_dump(mode="json")
    content["ingress"] = {"port": port or 0, "reflection": True}
    # Sessions may choose the method; a bank is as the bundled model was trained with.
    content |= {"bank": ModelCard.read(chosen.model.checkpoint).bank, "cache": {}}
    return load_config(content)


def _local_spans(topology: str, operators: tuple[str, ...]) -> list[dict[str, Any]]:
    cores = this_machine().cores
    if topology == "fused":
        return [{"name": "fused", "operators": operators, "num_threads": min(cores, 8)}]
    half = len(operators) // 2
    threads = max(1, min(cores // 2, 8))
    return [
        {"name": "encode", "operators": operators[:half], "num_threads": threads},
        {"name": "decode", "operators": operators[half:], "num_threads": threads},
    ]


@contextlib.contextmanager
def local_server(config: ServiceConfig, on_progress: Callable[[str], None]) -> Iterator[Server]:
    """A server for `connect`, of a `plain_service`."""
    from rearview.cli.model_choice import remember_costs

    with plain_service(config, on_progress) as service:
        remember_costs(config, service.stages)
        yield Server(service.address, ready_s=service.ready_s)


@contextlib.contextmanager
def plain_service(config: ServiceConfig, on_progress: Callable[[str], None]) -> Iterator[PlainService]:
    """Start the service without Ray, and stop all of it at the end, also after Ctrl-C or a failure."""
    from rearview.local import PlainService

    interrupt_on_sigterm()
    with _stopped_at_the_end(PlainService(config, on_progress)) as service:
        yield service


@contextlib.contextmanager
def ray_service(
    config: ServiceConfig, on_progress: Callable[[str], None], ray_address: str | None = None
) -> Iterator[RayService]:
    """The same through the Ray at `host:port`; None: one of its own."""
    from rearview.local import JoinedRayService, RayService

    def progress(text: str) -> None:
        interrupt_on_sigterm()  # Ray's start takes the signal away
        on_progress(text)

    if ray_address is None:
        started = RayService(config, progress)
    else:
        started = JoinedRayService(config, ray_address, progress)
    with _stopped_at_the_end(started) as service:
        interrupt_on_sigterm()
        yield service


@contextlib.contextmanager
def _stopped_at_the_end(service: ServiceT) -> Iterator[ServiceT]:
    former = signal.getsignal(signal.SIGINT)
    try:
        with service:
            try:
                yield service
            finally:
                # A second Ctrl-C must not leave processes behind.
                _set_interrupt(signal.SIG_IGN)
    finally:
        _set_interrupt(former)


def _set_interrupt(handler: Any) -> None:
    """Set what SIGINT does, for the main thread: signals belong to it."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, handler)


def _token_of(path: Path | None) -> Callable[[], str] | None:
    """Reads the file anew for each call; while that fails, the token before holds. Raises ConfigError."""
    if path is None:
        return None
    token = _read_token(path)

    def present() -> str:
        nonlocal token
        with contextlib.suppress(ConfigError):
            token = _read_token(path)
        return token

    return present


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: {getattr(error, 'strerror', None) or error}") from None
    if not token:
        raise ConfigError(f"--token-file {path}: is empty")
    return token
