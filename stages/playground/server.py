"""A web server for a playground's folder, on this machine alone.

It speaks as a good static host does: types, strong ETags (the content's sha256), conditional and partial requests
(RFC 9110), and the headers with which browsers give a page threads. Nothing outside the folder is served, and only to
requests that name this machine (a page elsewhere that has its own name lead here gets nothing).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines.errors import ConfigError
from stages.playground.site import HEADERS

HOST = "127.0.0.1"
PORT = 8021  # the same each time: what a browser keeps for offline, it keeps by address
PIECE = 1 << 16
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
OTHER = "application/octet-stream"
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self' blob:; worker-src 'self' blob:; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ALWAYS = {
    **HEADERS,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Accept-Ranges": "bytes",
}


class Server(ThreadingHTTPServer):
    """Serves a folder; `url` is its address."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder.resolve()
        self.digests: dict[tuple[str, int, int], str] = {}
        self.connections: set[socket.socket] = set()
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def close(self) -> None:
        """End, with the connections that browsers hold open."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of an error; a browser that is gone is none."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def allows(self, host: str) -> bool:
        """Whether a request's Host names this machine; by which port it is reached does not matter."""
        return host.rpartition(":")[0] in (HOST, "localhost") or host in (HOST, "localhost")

    def etag(self, path: Path, file: BufferedReader) -> str:
        """Return the sha256 of an open file, in quotation marks; hashed once while it stays as it is."""
        status = os.fstat(file.fileno())
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in self.digests:
            self.digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return f'"{self.digests[key]}"'


@contextlib.contextmanager
def serving(folder: Path, port: int | None = None) -> Iterator[Server]:
    """Serve a folder in a thread. port: None for PORT, or any where that is taken. Raises ConfigError where the port
    that was asked for cannot be had."""
    server = opened(folder, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()


def opened(folder: Path, port: int | None) -> Server:
    try:
        return Server(folder, PORT if port is None else port)
    except (OSError, OverflowError) as cause:
        if port is None:
            return Server(folder, 0)
        reason = getattr(cause, "strerror", None) or cause
        raise ConfigError(
            f"tapeout playground: --port {port}: {reason}", hint="name another, or none: a free one is found then"
        ) from cause


@dataclass(frozen=True)
class Part:
    """Bytes first to last of a file, both included."""

    first: int
    last: int


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_version, sys_version = "tapeout", ""
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):  # a browser that has seen enough, or a file that is gone
            self.answer(body=True)

    def do_HEAD(self) -> None:
        with contextlib.suppress(OSError):
            self.answer(body=False)

    def answer(self, body: bool) -> None:
        if not self.server.allows(self.headers.get("Host", "")):
            self.refuse(HTTPStatus.MISDIRECTED_REQUEST, body)
            return
        path = self.place(self.path)
        if path is None:
            self.refuse(HTTPStatus.NOT_FOUND, body)
            return
        with open(path, "rb") as file:
            etag, size = self.server.etag(path, file), os.fstat(file.fileno()).st_size
            if matches(self.headers.get("If-None-Match"), etag):
                self.begin(HTTPStatus.NOT_MODIFIED, {"ETag": etag})
                return
            described = {"Content-Type": TYPES.get(path.suffix, OTHER), "ETag": etag}
            wanted = self.headers.get("Range") if self.headers.get("If-Range", etag) == etag else None
            part = part_of(wanted, size)
            if part == "beyond":
                self.refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, body, {"Content-Range": f"bytes */{size}"})
                return
            first, last = (part.first, part.last) if isinstance(part, Part) else (0, size - 1)
            described["Content-Length"] = str(last - first + 1)
            if isinstance(part, Part):
                described["Content-Range"] = f"bytes {first}-{last}/{size}"
            self.begin(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK, described)
            if body:
                file.seek(first)
                self.send(file, last - first + 1)

    def place(self, asked: str) -> Path | None:
        """Return the file that an address names; None for what is not a file in the folder, links followed."""
        try:
            name = unquote(urlsplit(asked).path, errors="strict").removeprefix("/") or "index.html"
            parts = name.split("/")
            if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
                return None
            path = self.server.folder.joinpath(*parts).resolve()
            return path if path.is_relative_to(self.server.folder) and path.is_file() else None
        except (OSError, ValueError, RuntimeError):
            return None

    def send(self, file: BufferedReader, count: int) -> None:
        while count and (piece := file.read(min(PIECE, count))):
            self.wfile.write(piece)
            count -= len(piece)
        if count:
            self.close_connection = True  # the file became shorter: the browser is to notice

    def begin(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        self.send_header("Date", formatdate(usegmt=True))
        for name, value in {**ALWAYS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def refuse(self, status: HTTPStatus, body: bool, headers: dict[str, str] | None = None) -> None:
        text = f"{status.value} {status.phrase}\n".encode()
        described = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text)), **(headers or {})}
        self.begin(status, described)
        if body:
            self.wfile.write(text)

    def log_message(self, *words: object) -> None:
        pass


def matches(wanted: str | None, etag: str) -> bool:
    """Whether If-None-Match names this content."""
    tags = [each.strip().removeprefix("W/") for each in (wanted or "").split(",")]
    return etag in tags or tags == ["*"]


def part_of(wanted: str | None, size: int) -> Part | str:
    """Return the one part that is asked for; "" for the whole file (also for what is no range, or several), "beyond"
    where none of it is there."""
    found = re.fullmatch(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", wanted or "")
    if found is None or not (found[1] or found[2]):
        return ""
    if not found[1]:
        count = min(int(found[2]), size)
        return Part(size - count, size - 1) if count else "beyond"
    first, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and last < first:
        return ""
    return Part(first, min(last, size - 1)) if first < size else "beyond"
