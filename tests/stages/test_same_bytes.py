"""The same checkpoint through every stage, in another folder and another process, gives the same bytes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import PROJECT, main


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow  # the shipped model's bundles are held to it in tests/test_reference.py
def test_two_folders_two_processes_the_same_bytes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "another place" / "second"
    for name in ("temporary", "elsewhere", "home"):
        (tmp_path / name).mkdir()
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(PROJECT.root),
        "TMPDIR": str(tmp_path / "temporary"),
        "HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-m", "tests.tiny", str(second)]
    other = subprocess.Popen(command, env=environment, cwd=tmp_path / "elsewhere", stderr=subprocess.PIPE, text=True)
    main(first)
    _, errors = other.communicate()
    assert other.returncode == 0, errors
    found = digests(first)
    assert digests(second) == found
    endings = (
        ".mlmodel",
        "weight.bin",
        "Manifest.json",
        "decoder.onnx",
        "encoder.onnx",
        ".onnx.data",
        "genai_config.json",
    )
    assert all(any(name.endswith(ending) for name in found) for ending in endings), list(found)
    words = [word.encode() for word in (str(first), str(second), str(PROJECT.root))]
    for folder in (first, second):
        for path in folder.rglob("*"):
            assert not path.is_file() or not any(word in path.read_bytes() for word in words), path
