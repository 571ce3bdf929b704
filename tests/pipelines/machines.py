"""What tests on Ray clusters share."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.pipelines.toy import Result, Toy, add_dvc

MIB = 1 << 20
CONFIG = "kind: ray\naddress: null\nlocal_nodes: 2\nstore: shared\nretries: 2\n"


def add_node(cluster: Any) -> Any:
    return cluster.add_node(
        wait=False,
        num_cpus=2,
        memory=1024 * MIB,
        object_store_memory=80 * MIB,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
    )


def words(cluster: Any, *more: str) -> list[str]:
    return ["executor=ray", f"executor.address={cluster.address}", *more]


def in_thread(run: Callable[[], Result]) -> tuple[threading.Thread, list[Result]]:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run()), daemon=True)
    thread.start()
    return thread, results


def until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.05)


def with_remote(toy: Toy, depot: Path) -> None:
    """Give the toy a DVC remote, and stages that will not read the project's folder."""
    add_dvc(toy)
    toy.write(".dvc/config", f"[core]\n    analytics = false\n['remote \"depot\"']\n    url = {depot}\n")
    toy.edit(
        "toystages/folder.py",
        "        self.path = path\n",
        f"        self.path = path\n        for each in (str(path), __file__):\n"
        f"            assert not each.startswith({str(toy.root)!r}), each\n",
    )
