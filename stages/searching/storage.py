"""Where studies are kept: a journal file, Optuna's gRPC proxy, or a database."""

import contextlib
import logging
import re
import warnings
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from pipelines.errors import StageError
from stages.schema.search import StorageConfig, StorageKind


def opened(config: StorageConfig, folder: Path) -> optuna.storages.BaseStorage:
    """The storage that the configuration names; a journal lies in `folder`, which nobody else writes to. Raises
    StageError for one that does not answer, or whose driver is not installed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if config.kind is StorageKind.journal:
        return _journal(folder / f"{config.name}.journal")
    try:
        if config.kind is StorageKind.grpc:
            host, _, port = str(config.url).rpartition(":")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
            proxy.wait_server_ready(timeout=10)
            return proxy
        return optuna.storages.RDBStorage(str(config.url))
    except Exception as cause:  # grpc's, SQLAlchemy's and each driver's own
        text = _shown(" ".join(str(cause).split()))[:300] or type(cause).__name__
        raise StageError(
            f"search.storage: {config.kind.value} at {_shown(str(config.url))} cannot be opened: {text}",
            hint="Is it running, and its driver installed? search.storage.kind=journal needs neither.",
        ) from cause


def _shown(text: str) -> str:
    """Without the password of an address."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]*@", r"\1:***@", text)


def _journal(path: Path) -> optuna.storages.BaseStorage:
    """A kill can leave the last line unfinished, and a lock that nobody holds."""
    lock = Path(f"{path}.lock")
    for left in path.parent.glob(f"{lock.name}*"):
        with contextlib.suppress(OSError):
            left.unlink()
    if path.exists():
        content = path.read_bytes()
        path.write_bytes(content[: content.rfind(b"\n") + 1])
    backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
    return optuna.storages.JournalStorage(backend)
