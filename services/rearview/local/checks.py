"""What can be known of a service before anything is started, in well under two seconds: no torch, no Ray."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from rearview.config import IngressConfig, ModelConfig, ServiceConfig
from rearview.contract.card import has_motion, is_hub_id, is_opaque, is_single_file
from rearview.contract.family import check_checkpoint
from rearview.errors import ConfigError
from rearview.machine import this_machine
from rearview.replica.needs import check_host
from rearview.telemetry_config import check_traces

__all__ = ["check", "check_free"]


def check(config: ServiceConfig) -> None:
    """Raises ConfigError that names the option for a checkpoint, a file or a port that cannot be used, and
    one with the sum for what does not fit into memory.
    """
    check_checkpoint(config.model.checkpoint)
    check_traces(config.telemetry.traces)
    if not is_opaque(config.model.checkpoint):
        _check_model(config.model)
    if config.cache is not None and config.cache.default and not _may_have_motion(config.model):
        raise ConfigError("cache.default: the model has no motion modules: set model.motion")
    check_host(config, this_machine())
    for option, path in _files(config):
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"{option}: {path} cannot be read")
    check_free(config.ingress)


def _may_have_motion(model: ModelConfig) -> bool:
    return is_opaque(model.checkpoint) or has_motion(model.checkpoint, model.motion)


def _check_model(model: ModelConfig) -> None:
    if is_single_file(model.checkpoint):
        _check_place("model.single_file_config", model.single_file_config)
    for option, place in (("vae", model.vae), ("depth", model.depth)):
        _check_place(f"model.{option}", place)


def _check_place(option: str, place: str) -> None:
    """A folder, or the id of something on the hub, which nobody asks for it here."""
    if place and not is_hub_id(place) and not Path(place).exists():
        raise ConfigError(f"{option}: {place} is neither there nor a hub id (owner/name)")


def _files(config: ServiceConfig) -> Iterator[tuple[str, Path | None]]:
    edge, access = config.ingress, config.access
    yield "tenants_file", config.tenants_file
    yield "ingress.tls_cert_file", edge.tls_cert_file
    yield "ingress.tls_key_file", edge.tls_key_file
    yield "access.tls_client_ca_file", access.tls_client_ca_file
    yield "link.secret_file", config.link.secret_file
    if access.jwt is not None:
        yield "access.jwt.keys_file", access.jwt.keys_file


def check_free(edge: IngressConfig) -> None:
    """Raises ConfigError for a port that cannot be taken now: a moment later somebody else may have it."""
    if not edge.port:
        return
    family = socket.AF_INET6 if ":" in edge.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((edge.host, edge.port))
        except OSError as error:
            taken = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be taken: {error.strerror}"
            raise ConfigError(f"ingress.port: {edge.port} of {edge.host} {taken}") from None
