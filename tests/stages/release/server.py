"""A web server for tests, of a folder, which can do what servers, caches and networks do."""

from __future__ import annotations

import contextlib
import hashlib
import mimetypes
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

UNTOLD = -1
mimetypes.add_type("text/javascript", ".mjs")


@dataclass
class Fault:
    """What goes wrong with the files whose path holds `path`, for so many answers (None: all).

    cut: the connection ends after so many bytes. status: an error instead. ranges: whether parts can be had. length:
    what is announced instead of the true length. data: what is sent instead. more: sent after the end. pause: seconds
    after each `piece` bytes. headers: beside the others. drip: sent instead of any answer; then "x", byte by byte.
    hold: what comes after so many bytes, be it the connection's end, waits for the event `go`.
    """

    path: str = ""
    times: int | None = None
    cut: int | None = None
    status: int = 0
    ranges: bool = True
    length: int | None = None
    data: bytes | None = None
    more: bytes = b""
    pause: float = 0.0
    piece: int = 1 << 16
    headers: dict[str, str] = field(default_factory=dict)
    drip: bytes = b""
    hold: int | None = None
    go: threading.Event = field(default_factory=threading.Event)


class Server:
    """Serves a folder at `url` until `close`; requests: "path" or "path bytes=N-" of each; sent: bytes of bodies.

    budget: bytes of bodies after which every connection is dropped, None: never. pause: seconds after 64 KiB.
    mounts: {first part of a path: the folder that it leads to}. headers: of every answer with a body. tags: whether
    answers have an ETag, and If-Range is held against it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.requests, self.sent = folder, [], [], 0
        self.faults: list[Fault]
        self.requests: list[str]
        self.budget: int | None = None
        self.pause = 0.0
        self.mounts: dict[str, Path] = {}
        self.headers: dict[str, str] = {}
        self.tags = False
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def fault(self, path: str) -> Fault:
        for fault in self.faults:
            if fault.path in path and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return Fault(pause=self.pause)

    def file(self, path: str) -> Path:
        first, _, rest = path.partition("/")
        return self.mounts[first] / rest if first in self.mounts else self.folder / path

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path, wanted = unquote(self.path.partition("?")[0]).lstrip("/"), self.headers.get("Range", "")
            server.requests.append(f"{path} {wanted}".strip())
            if server.budget is not None and server.sent >= server.budget:
                self.close_connection = True
                return
            fault = server.fault(path)
            file = server.file(path)
            if fault.drip:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.wfile.write(fault.drip)
                    for _ in range(300):
                        self.wfile.write(b"x")
                        time.sleep(0.01)
                return
            if fault.status in (301, 302):
                self.send_response(fault.status)
                for name, value in fault.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault.status or (fault.data is None and not file.is_file()):
                self.send_error(fault.status or 404)
                return
            data = (file.read_bytes() if fault.data is None else fault.data) + fault.more
            found = re.match(r"bytes=(\d+)-(\d*)", wanted) if fault.ranges else None
            start, whole = int(found[1]) if found else 0, len(data)
            tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"'} if server.tags else {}
            if tag and self.headers.get("If-Range", tag["ETag"]) != tag["ETag"]:
                start, found = 0, None
            if start and found and found[2]:
                data = data[: int(found[2]) + 1]
            if start and start >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{whole}")
            if fault.length != UNTOLD:
                self.send_header("Content-Length", str(len(data) - start if fault.length is None else fault.length))
            kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
            for name, value in {"Content-Type": kind, **tag, **server.headers, **fault.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.send(memoryview(data)[start:], fault)

        def send(self, data: memoryview, fault: Fault) -> None:
            end = len(data) if fault.cut is None else min(fault.cut, len(data))
            if server.budget is not None and server.sent + end > server.budget:
                end, self.close_connection = server.budget - server.sent, True
            for place in range(0, end, fault.piece):
                if fault.hold is not None and place >= fault.hold:
                    fault.go.wait(60)
                piece = data[place : min(place + fault.piece, end)]
                self.wfile.write(piece)
                server.sent += len(piece)
                time.sleep(fault.pause)
            if fault.hold is not None:
                fault.go.wait(60)
            if fault.cut is not None or fault.length is not None:
                self.wfile.flush()
                self.close_connection = True
                if fault.cut is not None and fault.cut % 2:  # half of the cuts reset the connection, half end it
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()

        def log_message(self, *words: object) -> None:
            pass

    return Handler
