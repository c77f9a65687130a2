"""A proxy in front of an S3 server that does what object stores do on a bad day."""

from __future__ import annotations

import http.client
import itertools
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
SLOW_S = 3.0
HOP = {"connection", "transfer-encoding", "keep-alive", "expect"}


class Proxy(BaseHTTPRequestHandler):
    """Passes a request on; every `period`-th one meets the next of the faults."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    period = 11
    numbers: Iterator[int] = itertools.count()
    faults = ("503", "reset", "truncated", "slow")
    done: Counter[str]
    owed: list[str]  # cuts that wait for a GET

    def handle_request(self) -> None:
        body = self._body()
        number = next(self.numbers)
        fault = self.faults[number // self.period % len(self.faults)] if number % self.period == 0 else ""
        if fault == "503":
            self.done[fault] += 1
            return self._answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
        if fault == "reset":
            self.done[fault] += 1
            return self._reset()
        if fault == "slow":
            self.done[fault] += 1
            time.sleep(SLOW_S)
        status, headers, answer = self._pass_on(body)
        if fault == "truncated":
            self.owed.append(fault)
        if self.owed and len(answer) > 1 and self.command == "GET":
            self.done[self.owed.pop()] += 1
            self._answer(status, headers, answer, len(answer) // 2)
            return self._reset()
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        there = urlsplit(self.upstream)
        connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            connection.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP]
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        told = {name.lower() for name, _value in headers}
        for name, value in headers:
            self.send_header(name, value)
        if "content-length" not in told:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])

    def _reset(self) -> None:
        """RST instead of FIN, so that the client sees a broken connection."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


class Holding(Proxy):
    """Passes every request on, but for writes to paths that hold some words: they get no answer before `over`."""

    words = ""
    met: threading.Event
    over: threading.Event

    def handle_request(self) -> None:
        body = self._body()
        if self.words in self.path and self.command in ("PUT", "POST"):
            self.met.set()
            self.over.wait()
            return self._reset()
        self._answer(*self._pass_on(body))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request  # noqa: N815


@contextmanager
def faulty(endpoint: str, period: int = 11) -> Iterator[tuple[str, Counter[str]]]:
    """(endpoint of the proxy, how often each fault was met)."""
    done: Counter[str] = Counter()
    members = {"upstream": endpoint, "period": period, "numbers": itertools.count(1), "done": done, "owed": []}
    with serving(type("Proxied", (Proxy,), members)) as proxy:
        yield proxy, done


@contextmanager
def holding(endpoint: str, words: str) -> Iterator[tuple[str, threading.Event]]:
    """(endpoint of a proxy that never answers a write to a path with these words, set when there was one)."""
    met, over = threading.Event(), threading.Event()
    members = {"upstream": endpoint, "words": words, "met": met, "over": over}
    try:
        with serving(type("Held", (Holding,), members)) as proxy:
            yield proxy, met
    finally:
        over.set()


@contextmanager
def serving(handler: type[Proxy]) -> Iterator[str]:
    """The endpoint of a proxy."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
