"""A hub on loopback: the few endpoints that fetching a model needs, and the ways in which they fail."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")
"""Endings of files that are kept as LFS, by their SHA-256."""


@dataclass
class Hub:
    """Repositories by hub id, each a folder; and what goes wrong."""

    repositories: Mapping[str, Path]
    endpoint: str = ""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """File to the bytes after which its next answers break off."""
    damaged: set[str] = field(default_factory=set)
    """Files whose first byte comes wrong."""
    gated: set[str] = field(default_factory=set)
    """Hub ids whose files need a licence to be accepted."""
    hidden: set[str] = field(default_factory=set)
    """Files that are listed and not given."""
    ranges: list[tuple[str, int]] = field(default_factory=list)
    """(file, first byte) of every answer with bytes of a file."""
    licence: str = "mit"

    def commit(self, hub_id: str) -> str:
        return hashlib.sha1(hub_id.encode()).hexdigest()

    def listing(self, hub_id: str) -> dict[str, Any]:
        folder = self.repositories[hub_id]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [self._sibling(folder, path) for path in files]
        card = {"license": "other", "license_name": self.licence}
        ids = {"_id": "0", "id": hub_id, "modelId": hub_id, "sha": self.commit(hub_id)}
        return {**ids, "siblings": siblings, "cardData": card, "private": False, "tags": [], "downloads": 0}

    def _sibling(self, folder: Path, path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        said: dict[str, Any] = {
            "rfilename": path.relative_to(folder).as_posix(),
            "size": len(content),
            "blobId": blob,
        }
        if path.suffix in LARGE:
            digest = hashlib.sha256(content).hexdigest()
            said["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return said


@contextmanager
def serve_hub(repositories: Mapping[str, Path]) -> Iterator[Hub]:
    """`hub.endpoint` answers until the block ends."""
    hub = Hub(repositories)

    class Handler(_Handler):
        shown = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shown: Hub

    def handle(self) -> None:
        with suppress(ConnectionError):  # Who is told to stop does not say good-bye.
            super().handle()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._list("/".join(parts[2:4]))
        elif len(parts) > 4 and parts[2] == "resolve":
            self._give("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._refuse(404, "RepoNotFound")

    def _list(self, hub_id: str) -> None:
        if hub_id not in self.shown.repositories:
            self._refuse(401, "RepoNotFound")
            return
        self._answer(200, json.dumps(self.shown.listing(hub_id)).encode(), {})

    def _give(self, hub_id: str, name: str) -> None:
        hub = self.shown
        if hub_id in hub.gated:
            self._refuse(403, "GatedRepo")
            return
        path = hub.repositories[hub_id] / name
        if name in hub.hidden or not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        content = bytearray(path.read_bytes())
        if name in hub.damaged:
            content[0] ^= 1
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        hub.ranges.append((name, start))
        rest = bytes(content[start:])
        cuts = hub.cuts.get(name)
        told = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self._answer(206 if start else 200, rest, told, cuts.pop(0) if cuts else None)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
