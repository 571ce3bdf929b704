"""What every test runs under."""

import os

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # test processes share the cores
settings.register_profile("tapeout", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("tapeout")

LONGEST = (
    "tests/test_reference.py",
    "tests/test_search.py",
    "pipelines/test_dvc.py",
    "pipelines/test_ray_map.py",
    "pipelines/test_ray.py",
    "stages/test_train.py",
    "mobile/test_store.py",
    "mobile/test_playground.py",
    "mobile/test_engine.py",
    "mobile/test_node.py",
    "stages/test_parity.py",
    "pipelines/test_execute.py",
    "stages/test_predictors.py",
    "stages/test_narrow.py",
    "tests/test_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: each goes to one of the processes, and none is to begin when the others have nothing."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(places)))
