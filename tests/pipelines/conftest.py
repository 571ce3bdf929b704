import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.machines import add_node
from tests.pipelines.toy import Toy, make_toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """A project that nothing has been built in."""
    return make_toy(tmp_path / "toy")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A project in which everything has been built. Tests that change it take `toy_built`."""
    project = make_toy(tmp_path_factory.mktemp("built") / "toy")
    assert project.build().status == 0
    return project


@pytest.fixture
def toy_built(built: Toy, tmp_path: Path) -> Toy:
    """A copy of the built project, which a test may change."""
    import shutil

    shutil.copytree(built.root, tmp_path / "toy")
    return Toy(tmp_path / "toy")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes of two cores and 1 GiB each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", f"/tmp/tapeout-test-{uuid.uuid4().hex[:8]}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        Path(os.environ["RAY_TMPDIR"], "ray").mkdir(parents=True)
        cluster = Cluster()
        for _ in range(2):
            add_node(cluster)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()
        subprocess.run(["rm", "-rf", os.environ["RAY_TMPDIR"]], check=False)
