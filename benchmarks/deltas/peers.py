"""General tools on the same two files: bytes of their patches."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BSDIFF = "bsdiff4==1.3.2"


def patch_from(old: Path, new: Path) -> int:
    """As `zstd --patch-from=OLD -19 --long=27 NEW`."""
    import zstandard

    held = zstandard.ZstdCompressionDict(old.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    settings = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
    return len(zstandard.ZstdCompressor(dict_data=held, compression_params=settings).compress(new.read_bytes()))


def bsdiff(peers: Path) -> Callable[[Path, Path], int] | None:
    """Return what measures bsdiff4, installed in `peers` alone, where it is not there yet; None where that fails."""
    home = peers / "bsdiff4"
    if not (home / "bsdiff4").is_dir():
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home), BSDIFF]
        if subprocess.run(words, check=False).returncode:
            return None
    sys.path.append(str(home))
    diff = importlib.import_module("bsdiff4").diff
    return lambda old, new: len(diff(old.read_bytes(), new.read_bytes()))
