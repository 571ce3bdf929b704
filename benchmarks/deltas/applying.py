"""How fast a delta of a large weight file is applied, in a process of its own, beside `cp` and `sha256sum` of it."""

import json
import os
import struct
import sys
import time
from pathlib import Path

from convert.spent import spend
from engine.figures import Figure

MIB = 1 << 20
LAYER = 32 * MIB  # bytes of a tensor's int4 codes; it has an eighth of that in float16 scales
CHANGED, SCALES = (
    0.1,
    9.0,
)  # share of codes that move by one, and the spread of scales' moves in units of the last place
SPEED, MEMORY = 100.0, 200.0  # MB/s of output, MiB
NAME = "decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


def applying(folder: Path, gigabytes: float) -> list[Figure]:
    """Make the files and the delta in `folder`, then measure; all four files lie there together."""
    old, new, delta, out = (folder / name for name in ("old", "new", "delta", "out"))
    for path, tuned in ((old, "0"), (new, "1")):
        spend([sys.executable, "-m", "deltas.applying", "write", path, str(gigabytes), tuned], folder)
    made = spend([sys.executable, "-m", "deltas.applying", "make", old, new, delta], folder).told()
    copied = spend(["cp", old, folder / "copy"], folder)
    (folder / "copy").unlink()
    hashed = spend(["sha256sum", new], folder)
    words = [delta, old, out, str(new.stat().st_size), hashed.out.split()[0]]
    told = spend([sys.executable, "-m", "deltas.applying", "apply", *words], folder).told()
    size = new.stat().st_size
    ratio = delta.stat().st_size / size
    both = copied.cpu + hashed.cpu
    how = f"int4 codes, {CHANGED:.0%} of them moved, and float16 scales, all moved: {size:,} bytes"
    return [
        Figure("synthetic: delta / file", ratio, "", how),
        Figure("  made in", made["cpu"], "CPU s", f"peak {made['peak']:.0f} MiB"),
        Figure(
            "apply: speed",
            size / told["wall"] / 1e6,
            "MB/s",
            "bytes written a second, one thread, to the disk",
            SPEED,
            False,
        ),
        Figure(
            "  by CPU time", size / told["cpu"] / 1e6, "MB/s", f"{told['cpu']:.2f} CPU s; base hashed, result hashed"
        ),
        Figure(
            "apply: memory", told["peak"], "MiB", "peak resident of the process, numpy and zstandard included", MEMORY
        ),
        Figure("  cp", copied.cpu, "CPU s", f"of the old file; wall {copied.wall:.2f} s"),
        Figure("  sha256sum", hashed.cpu, "CPU s", f"of the new file; wall {hashed.wall:.2f} s"),
        Figure("  apply / (cp + sha256sum)", told["cpu"] / both, "", "CPU seconds, the same run"),
    ]


def write(path: Path, gigabytes: float, tuned: bool) -> None:
    """Write a weight.bin of random codes and scales; the tuned one is the same, with small moves."""
    import numpy as np

    weights, moves = np.random.default_rng(1), np.random.default_rng(2)
    count = max(1, round(gigabytes * 1e9 / (LAYER + LAYER // 8)))
    with path.open("wb") as file:
        file.write(struct.pack("<II56x", 2 * count, 2))
        for number in range(2 * count):
            kind, size = ((11, LAYER), (1, LAYER // 8))[number % 2]
            file.write(struct.pack("<IIQQQ32x", 0xDEADBEEF, kind, size, file.tell() + 64, 0))
            for _ in range(size // MIB):
                if kind == 11:
                    values = weights.integers(0, 256, MIB, dtype=np.uint8)
                    if tuned:
                        move = moves.choice(
                            np.array([0, 1, 15], np.uint8), (2, MIB), p=[1 - CHANGED, CHANGED / 2, CHANGED / 2]
                        )
                        values = (values + move[0] & 15) | ((values >> 4) + move[1] & 15) << 4
                else:
                    scales = (weights.random(MIB // 2, np.float32) * 0.01 + 0.005).astype(np.float16).view(np.uint16)
                    if tuned:
                        scales += np.round(moves.normal(0, SCALES, MIB // 2)).astype(np.int16).view(np.uint16)
                    values = scales
                file.write(values.tobytes())


def child(action: str, arguments: list[str]) -> dict[str, float]:
    """Do it, and tell CPU and wall seconds without imports, and the peak of memory in MiB."""
    from stages.release.deltas.delta import apply_delta, make_delta

    paths = [Path(each) for each in arguments[:3]]
    wall, cpu = time.monotonic(), time.process_time()
    if action == "make":
        make_delta(*paths, NAME, None, None)
    else:
        apply_delta(*paths, expected_size=int(arguments[3]), expected_sha256=arguments[4])
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    return {"cpu": cpu, "wall": wall, "peak": peak}


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "1")
    else:
        print(json.dumps(child(sys.argv[1], sys.argv[2:])))
