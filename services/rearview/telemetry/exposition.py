"""`/metrics` over HTTP, on threads of its own: bounded in connections and in time.

A request is one connection (HTTP/1.0). Each has a thread, of which there are no more than may be, and is cut
off when its time is over, whether its peer sends slowly, reads slowly or does neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from rearview.access import MetricsAccess

__all__ = ["MetricsServer", "serve_metrics"]

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsServer:
    """The HTTP server, until it is closed."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self.port = server.server_port
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port. May be called once."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(
    registry: CollectorRegistry, port: int = 0, access: MetricsAccess | None = None
) -> MetricsServer:
    """Serve `/metrics` where `access` says; `port` 0 takes a free one. Raises OSError if it is taken."""
    allowed = access or MetricsAccess()

    class Bounded(_BoundedServer):
        limits = allowed
        address_family = socket.AF_INET6 if ":" in allowed.host else socket.AF_INET

    application: Application = make_wsgi_app(registry)
    if allowed.token_sha256 is not None:
        application = _with_token(application, allowed.token_sha256)
    return MetricsServer(make_server(allowed.host, port, application, Bounded, _Quiet))


def _with_token(application: Application, token_sha256: str) -> Application:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        digest = hashlib.sha256(token.encode("latin-1")).hexdigest()
        if scheme.lower() == "bearer" and hmac.compare_digest(digest, token_sha256):
            return application(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
        return []

    return answer


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A line per scrape would say nothing."""


class _BoundedServer(ThreadingMixIn, WSGIServer):
    limits: MetricsAccess
    request_queue_size = 128
    """Connections that wait to be taken. Five, as a rule; who finds no room tries again after a second."""
    daemon_threads = True
    block_on_close = False
    """Who does not read when the server closes is cut off by its time, or by the end of the process."""

    def __init__(self, *args: Any) -> None:
        self._connections: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__(*args)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room; if not, the connection is closed."""
        with self._lock:
            address, limits = client_address[0], self.limits
            has_room = (
                self._connections.total() < limits.max_connections
                and self._connections[address] < limits.max_connections_per_address
            )
            self._connections[address] += has_room
            return has_room

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer on a thread of the connection's own."""
        over = threading.Timer(self.limits.timeout_s, _cut, (request,))
        over.daemon = True
        over.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            over.cancel()
            with self._lock:
                self._connections[client_address[0]] -= 1
                self._connections += Counter()  # Without those at zero.

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who was cut off, or hung up, is no fault of ours."""


def _cut(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
