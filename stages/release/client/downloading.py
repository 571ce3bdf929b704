"""Files of an update repository, over HTTP or from a folder: never more bytes than were asked for, and what broke off
is gone on with.

Nothing that comes from here is trusted: whoever asks knows the size and the sha256 from signed metadata.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from pipelines.errors import ConfigError, UpdateError, VerificationError
from stages.release.manifest import sha256_of

CHUNK = 256 << 10  # bytes that are read at once
GAIN = 64 << 10  # bytes: an attempt that brings fewer counts as one that failed
SPARE = 1 << 20  # bytes that may come for one file, beyond twice its size, before its server is given up
REDIRECTS = 5  # in a row
LEAST = 500  # bytes a second; a server that is slower, over a whole timeout, is given up
ADDRESSES = "http://..., https://... or a folder's path"
STAYS = "what is in place stays; try again later, what came is kept"
PROGRESS = Callable[[int], object]  # is told how many bytes came


@dataclass(frozen=True)
class Patience:
    """timeout: seconds without a byte. attempts: in a row that bring nothing. pause: seconds after the first of them,
    doubled after each."""

    timeout: float = 30.0
    attempts: int = 4
    pause: float = 0.5


class Refusal(UpdateError):
    """The server answers with an error; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, hint=STAYS)
        self.status = status


class Cut(UpdateError):
    """The connection broke, or never came to be. Another attempt may succeed."""


@dataclass(frozen=True)
class Stream:
    """start: the place in the file of the first byte, None where the server cannot begin where it was asked to.
    promised: how many bytes it announces from there, if it does."""

    start: int | None
    promised: int | None
    chunks: Iterator[bytes]


class Source(Protocol):
    """Where a repository lies. where: for messages. patience: with it. received: bytes so far."""

    where: str
    patience: Patience
    received: int

    def stream(self, path: str, start: int) -> AbstractContextManager[Stream]:
        """Open the file at a path below the repository. Raises Refusal, Cut and UpdateError."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def open_source(url: str, patience: Patience | None = None) -> Source:
    """Return the source for http(s)://..., file://... or a folder's path. Raises ConfigError for anything else."""
    patience = patience or Patience()
    try:
        parts = urlsplit(url)
    except ValueError as cause:
        raise ConfigError(f"{url} is no address of a repository: {cause}", hint=ADDRESSES) from cause
    if parts.scheme in ("http", "https") and parts.netloc:
        return HTTPSource(url, patience)
    if "://" in url and parts.scheme != "file":
        raise ConfigError(f"{url} is no address of a repository", hint=ADDRESSES)
    return FolderSource(Path(url2pathname(parts.path) if parts.scheme == "file" else url), patience)


def read(source: Source, path: str, limit: int) -> bytes:
    """Return a small file. Raises VerificationError where it has more than `limit` bytes; Refusal, UpdateError."""
    for attempt in attempts(source.patience):
        try:
            with source.stream(path, 0) as stream:
                data = bytearray()
                for chunk in paced(stream, source):
                    data += chunk
                    if len(data) > limit:
                        raise VerificationError(
                            f"{source.where}: {path} has more than the {limit} bytes that it may have", hint=STAYS
                        )
                if stream.promised is not None and len(data) < stream.promised:
                    raise Cut(f"{source.where}: the connection was cut in {path}", hint=STAYS)
                return bytes(data)
        except Cut:
            if attempt == source.patience.attempts:
                raise
    raise AssertionError("the last attempt returns or raises")


def download(source: Source, path: str, partial: Path, size: int, sha256: str, said: PROGRESS = int) -> None:
    """Make `partial` the file at `path`, going on behind what it holds already.

    Raises VerificationError where the server sends anything but the `size` bytes with this sha256 (`partial` is then
    removed), UpdateError where it cannot be had (`partial` keeps what came).
    """
    most = source.received + 2 * size + SPARE
    while True:
        with partial.open("ab") as file:
            began = file.seek(0, os.SEEK_END)
        if began < size:
            fill(source, path, partial, size, most, said)
        if partial.stat().st_size == size and sha256_of(partial) == sha256:
            return
        partial.unlink()
        if not began:
            raise VerificationError(
                f"{source.where}: {path} is not what the signed metadata says: its sha256 is another",
                hint="nothing of it is used; the server or its copy is damaged, or somebody changed it. " + STAYS,
            )


def fill(source: Source, path: str, partial: Path, size: int, most: int, said: PROGRESS) -> None:
    """Append to `partial` until it has `size` bytes. most: what the source may have received by then.

    What comes again after it was dropped is no progress. Raises VerificationError and UpdateError.
    """
    failed, pause, held = 0, source.patience.pause, partial.stat().st_size
    while True:
        try:
            append(source, path, partial, size, most, said)
            return
        except Cut as cut:
            have = partial.stat().st_size
            failed = 0 if have - held >= GAIN else failed + 1
            held = max(held, have)
            if failed >= source.patience.attempts:
                raise UpdateError(f"{cut.message}, with {have} of {size} bytes here", hint=STAYS) from cut
        time.sleep(pause * 2 ** max(failed - 1, 0))


def append(source: Source, path: str, partial: Path, size: int, most: int, said: PROGRESS) -> None:
    """Append what one connection brings. Raises Cut where that was not all."""
    have = partial.stat().st_size
    with source.stream(path, have) as stream, partial.open("r+b") as file:
        if stream.start not in (0, have):
            file.truncate(0)
            raise Cut(f"{source.where}: {path} cannot be resumed", hint=STAYS)
        have = stream.start
        file.truncate(have)
        file.seek(have)
        if stream.promised is not None and have + stream.promised != size:
            file.truncate(0)
            raise VerificationError(
                f"{source.where}: {path} has {have + stream.promised} bytes there; the signed metadata says {size}",
                hint="nothing of it is used; " + STAYS,
            )
        for chunk in paced(stream, source):
            have += len(chunk)
            if have > size:
                file.truncate(0)
                raise VerificationError(
                    f"{source.where}: {path} goes on after the {size} bytes that the signed metadata says",
                    hint="nothing of it is used; " + STAYS,
                )
            file.write(chunk)
            said(len(chunk))
            if have < size and source.received >= most:
                raise UpdateError(
                    f"{source.where}: {path} has {size} bytes, of which it sends the same ones again and again",
                    hint=STAYS,
                )
    if have < size:
        raise Cut(f"{source.where}: the connection was cut in {path}", hint=STAYS)


def attempts(patience: Patience) -> Iterator[int]:
    """Yield 1, 2, ... with longer and longer pauses between."""
    for attempt in range(1, patience.attempts + 1):
        yield attempt
        time.sleep(patience.pause * 2 ** (attempt - 1))


def paced(stream: Stream, source: Source) -> Iterator[bytes]:
    """Yield a stream's chunks. Raises UpdateError where they trickle, as a server does that wants to hold us up."""
    began, count = time.monotonic(), 0
    for chunk in stream.chunks:
        source.received += len(chunk)
        count += len(chunk)
        yield chunk
        passed = time.monotonic() - began
        if passed > source.patience.timeout:
            if count < LEAST * passed:
                raise UpdateError(f"{source.where}: it sends fewer than {LEAST} bytes a second", hint=STAYS)
            began, count = time.monotonic(), 0


class FolderSource:
    """A repository in a folder of this machine."""

    def __init__(self, folder: Path, patience: Patience) -> None:
        self.folder, self.where, self.patience, self.received = folder, str(folder), patience, 0

    @contextlib.contextmanager
    def stream(self, path: str, start: int) -> Iterator[Stream]:
        try:
            file = (self.folder / path).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as cause:
            raise Refusal(f"{self.where}: {path} is not there", 404) from cause
        except OSError as cause:
            raise UpdateError(f"{self.where}: {path}: {cause.strerror or cause}", hint=STAYS) from cause
        with file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            yield Stream(start if start <= size else None, max(size - start, 0), self.chunks(file, path))

    def close(self) -> None:
        pass

    def chunks(self, file: Any, path: str) -> Iterator[bytes]:
        try:
            while chunk := file.read(CHUNK):
                yield chunk
        except OSError as cause:
            raise UpdateError(f"{self.where}: {path}: {cause.strerror or cause}", hint=STAYS) from cause


class HTTPSource:
    """A repository behind a web server or a CDN; proxies and certificates as `requests` finds them."""

    def __init__(self, url: str, patience: Patience) -> None:
        from stages.release.client.connecting import Session

        self.base, self.where, self.patience, self.received = url.rstrip("/"), without_password(url), patience, 0
        self.session = Session()

    @contextlib.contextmanager
    def stream(self, path: str, start: int) -> Iterator[Stream]:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        response = self.answer(path, headers)
        with contextlib.closing(response):
            if response.status_code == 416:
                yield Stream(None, None, iter(()))
                return
            if response.status_code == 429 or response.status_code >= 500:
                raise Cut(f"{self.where}: {path}: the server fails (HTTP {response.status_code})", hint=STAYS)
            if response.status_code not in (200, 206):
                what = "is not there" if response.status_code == 404 else "is refused"
                raise Refusal(f"{self.where}: {path} {what} (HTTP {response.status_code})", response.status_code)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise UpdateError(
                    f"{self.where}: {path} comes compressed, which was not asked for",
                    hint="turn compression off for these files at the server",
                )
            begins, promised = place_of(response)
            yield Stream(begins, promised, self.chunks(response, path))

    def answer(self, path: str, headers: dict[str, str]) -> Any:
        """Return the answer for a path, whose body is still to be read, from wherever redirects lead."""
        url = f"{self.base}/{quote(path)}"
        for _ in range(REDIRECTS + 1):
            with self.refusals(path):
                response = self.session.get(url, headers=headers, stream=True, timeout=self.patience.timeout)
                target = self.session.target(response)
            if target is None:
                return response
            response.close()
            url = redirected(url, target, f"{self.where}: {path}")
        raise UpdateError(f"{self.where}: {path} is redirected more than {REDIRECTS} times", hint=STAYS)

    def close(self) -> None:
        self.session.close()

    def chunks(self, response: Any, path: str) -> Iterator[bytes]:
        with self.refusals(path):
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                yield chunk

    @contextlib.contextmanager
    def refusals(self, path: str) -> Iterator[None]:
        """Turn what the network does into Cut, and an address that is none into UpdateError."""
        import requests
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as cause:
            raise UpdateError(f"{self.where}: leads to no address: {words_of(cause)}", hint=STAYS) from cause
        except requests.Timeout as cause:
            raise Cut(f"{self.where}: no answer for {path} in {self.patience.timeout:g} s", hint=STAYS) from cause
        except (requests.RequestException, HTTPError, OSError, ValueError) as cause:
            raise Cut(f"{self.where}: the connection was cut in {path}: {words_of(cause)}", hint=STAYS) from cause


def redirected(url: str, target: str, where: str) -> str:
    """Return where a redirect leads. Raises UpdateError for anything but http and https, and where it gives up TLS."""
    try:
        parts, before = urlsplit(urljoin(url, target)), urlsplit(url)
    except ValueError as cause:
        raise UpdateError(f"{where} is redirected to no address: {cause}", hint=STAYS) from cause
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UpdateError(f"{where} is redirected to another scheme than http: {ascii(target)[:200]}", hint=STAYS)
    if before.scheme == "https" and parts.scheme == "http":
        raise UpdateError(f"{where} is redirected from https to http", hint="nothing is asked for there; " + STAYS)
    if parts.netloc == before.netloc.rpartition("@")[2]:
        parts = parts._replace(netloc=before.netloc)  # the same server, which may have asked for a password
    return urlunsplit(parts)


def place_of(response: Any) -> tuple[int | None, int | None]:
    """Return where in the file an answer begins, and how many bytes it announces."""
    length = response.headers.get("Content-Length", "")
    promised = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    if response.status_code == 200:
        return 0, promised
    found = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None, promised


def words_of(error: BaseException) -> str:
    """Return what the innermost cause of a network's error says, in printable characters."""
    while True:
        inner = error.__cause__ or error.__context__ or getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return "".join(letter if letter.isprintable() else " " for letter in said)[:200]


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
