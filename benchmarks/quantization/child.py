"""Run as a script: python -m quantization.child PEER SETTINGS FOLDER. One peer's variants in a process of its own.

SETTINGS: a JSON object {folder's name: settings}. What a variant made lies in FOLDER/<name> as soon as it is done.
"""

import importlib
import json
import shutil
import sys
import time
import traceback
from pathlib import Path

import torch

from quantization.packed import Packed


def main(peer: str, variants: dict[str, dict[str, object]], out: Path) -> None:
    torch.set_num_threads(1)
    module = importlib.import_module(f"quantization.{peer}_peer")
    for name, settings in variants.items():
        torch.manual_seed(0)
        started = time.monotonic()
        try:
            packed = module.run(settings)
        except Exception as error:  # whatever the peer raises: the table says so
            traceback.print_exc()
            packed = Packed(
                missing=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )
        folder = out / f"{name}.part"
        packed.save(folder)
        shutil.rmtree(out / name, ignore_errors=True)
        folder.rename(out / name)
        print(f"{peer} {settings}: {time.monotonic() - started:.0f} s {packed.missing}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
