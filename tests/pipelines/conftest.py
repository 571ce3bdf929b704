from pathlib import Path

import pytest

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
