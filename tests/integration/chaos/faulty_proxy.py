"""HTTP proxy before a real server (S3, web, MLflow) that answers wrongly for a while, on command."""

import math
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

Kind = Literal["500", "503", "429", "half", "empty", "other", "longer", "dropped", "hangs", "late"]
"""Statuses; half a body; an empty one with status 200; another body of the same length, or of another; a connection
that is closed without an answer; no answer until the fault is over; an answer that comes only then."""
KINDS: tuple[Kind, ...] = get_args(Kind)

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
"""Headers that each connection sets itself."""


@dataclass
class Fault:
    """What the proxy does instead of forwarding.

    Attributes:
        kind: What it does.
        paths: Pattern that the request's method and path must contain, such as "GET .*index".
        over: Set at its end.
        hits: Number of requests that it has hit.
        until: Number of them after which it is over.
    """

    kind: Kind
    paths: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    hits: int = 0
    until: float = math.inf


class FaultyProxy:
    """Proxy on loopback; a context manager.

    Args:
        upstream: Address of the real server.

    Attributes:
        address: Its own address.
        hits: Requests that faults have hit, by kind.
        requests: Number of requests.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.hits: Counter[str] = Counter()
        self.requests = 0
        self.fault: Fault | None = None
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextmanager
    def faulty(self, kind: Kind, paths: str = "") -> Iterator[Fault]:
        """Answer wrongly until the context ends.

        Args:
            kind: How.
            paths: Pattern of the requests' method and path.

        Yields:
            The fault.
        """
        self.fault = fault = Fault(kind, paths)
        try:
            yield fault
        finally:
            self.fault = None
            fault.over.set()

    def __enter__(self) -> "FaultyProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Report nothing: clients hang up when they have waited long enough."""


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    protocol_version = "HTTP/1.1"
    # Header and body are two writes, and clients delay their acknowledgement of the first.
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        body = self._body()
        self.proxy.requests += 1
        fault = self.proxy.fault
        if (
            fault is None
            or fault.hits >= fault.until
            or not re.search(fault.paths, f"{self.command} {self.path}")
        ):
            self._send(*self._forward(body))
            return
        fault.hits += 1
        self.proxy.hits[fault.kind] += 1
        self._fail(fault, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _handle  # noqa: N815 # the names of http.server

    def _fail(self, fault: Fault, body: bytes) -> None:
        if fault.kind in ("500", "503", "429"):
            self._send(int(fault.kind), [("Retry-After", "1")] if fault.kind == "429" else [], b"")
        elif fault.kind == "dropped":
            self._hang_up()
        elif fault.kind in ("hangs", "late"):
            fault.over.wait()
            if fault.kind == "late":
                self._send(*self._forward(body))
            else:
                self._hang_up()
        else:
            # The server has done what it was asked for, and its answer gets lost.
            status, headers, content = self._forward(body)
            if self.command == "HEAD" or not content:
                self._hang_up()
            elif fault.kind == "half":
                self._send(status, headers, content, sent=len(content) // 2)
            elif fault.kind == "empty":
                self._send(200, headers, b"")
            else:
                other = bytes(byte ^ 0x55 for byte in content[:4096]) + content[4096:]
                self._send(status, headers, other if fault.kind == "other" else other + b"more")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers, such as a checksum
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(self.proxy.upstream, timeout=120)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except (OSError, HTTPException):
            return 502, [], b""
        finally:
            connection.close()

    def _send(
        self, status: int, headers: list[tuple[str, str]], content: bytes, sent: int | None = None
    ) -> None:
        self.send_response_only(status)
        length = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header(
            "Content-Length", length[0] if self.command == "HEAD" and length else str(len(content))
        )
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(content[:sent])
        if sent is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def wait(seconds: float) -> None:
    """Let time pass: the moment of a fault is what is tested."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        threading.Event().wait(left)
