"""Certificates of an authority of the test's own, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme

__all__ = ["Authority", "Pair"]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert_file: Path
    key_file: Path

    @property
    def cert(self) -> bytes:
        return self.cert_file.read_bytes()

    @property
    def key(self) -> bytes:
        return self.key_file.read_bytes()


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._ca = folder, trustme.CA()
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._ca.cert_pem.bytes())

    @property
    def cert(self) -> bytes:
        return self.file.read_bytes()

    def issue(self, name: str = "one", *hosts: str) -> Pair:
        """A pair for hosts, by default this machine; with a known name it replaces that one's files."""
        issued = self._ca.issue_cert(*(hosts or ("localhost", "127.0.0.1")))
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.cert_file.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        pair.key_file.write_bytes(issued.private_key_pem.bytes())
        return pair
