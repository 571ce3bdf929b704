"""The same 0.5B decoder to Core ML and to ONNX Runtime: our way beside the usual one."""

from pathlib import Path

from engine.figures import Figure

from convert.spent import Spent, script, size_mib, spend

CONTEXT = 1024  # rows of the cache, on both sides
THREADS = 2


def coreml(folder: Path, checkpoint: Path) -> list[Figure]:
    """Ours beside coremltools: trace, convert, optimize."""
    ours = spend(script("ours", "coreml", checkpoint, folder / "coreml", str(CONTEXT)), folder, THREADS)
    usual = folder / "usual.mlpackage"
    peer = spend(script("coremltools_peer", checkpoint, usual, str(CONTEXT)), folder, THREADS)
    sizes = size_mib(folder / "coreml/model/decoder.mlpackage"), size_mib(usual)
    return figures("Core ML", "coremltools: trace, convert, int4", ours, peer, sizes, 1 / 5, steps(peer))


def onnx(folder: Path, checkpoint: Path, python: Path) -> list[Figure]:
    """Ours beside onnxruntime-genai's builder. The two folders are what `decode` runs."""
    ours = spend(script("ours", "onnx", checkpoint, folder / "onnx", str(CONTEXT)), folder, THREADS)
    usual = folder / "genai"
    words = [python, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", usual]
    peer = spend([*words, "-p", "int4", "-e", "cpu", "-c", folder / "cache"], folder, THREADS)
    if not (usual / "model.onnx").is_file():
        raise SystemExit(f"onnxruntime-genai's builder wrote no model:\n{peer.out[-2000:]}")
    sizes = sum(size_mib(path) for path in (folder / "onnx/model").glob("decoder.onnx*")), size_mib(usual)
    return figures("ONNX", "onnxruntime-genai's builder, int4", ours, peer, sizes, 1 / 2, "")


def figures(
    name: str, usual: str, ours: Spent, peer: Spent, sizes: tuple[float, float], time: float, told: str
) -> list[Figure]:
    """time: the share of the peer's that ours may take."""
    how = f"load, round to int4, lower; one process, {THREADS} threads: {steps(ours)}"
    usual = f"{usual}; one process, {THREADS} threads" + (f": {told}" if told else "")
    return [
        Figure(f"{name}: ours", ours.wall, "s", how),
        Figure(f"{name}: peer", peer.wall, "s", usual),
        Figure(f"{name}: time, ours / peer", ours.wall / peer.wall, "", "wall seconds", time),
        Figure("  CPU, ours", ours.cpu, "CPU s", "user and system"),
        Figure("  CPU, peer", peer.cpu, "CPU s", "user and system"),
        Figure("  CPU, ours / peer", ours.cpu / peer.cpu, "", "steadier than the clock where the machine is busy"),
        Figure("  memory, ours", ours.peak, "MiB", "peak resident"),
        Figure("  memory, peer", peer.peak, "MiB", "peak resident"),
        Figure(f"{name}: memory, ours / peer", ours.peak / peer.peak, "", "peak resident", 1 / 3),
        Figure("  size, ours", sizes[0], "MiB", "the decoder's files"),
        Figure("  size, peer", sizes[1], "MiB", "the decoder's files"),
    ]


def steps(spent: Spent) -> str:
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.told()["seconds"].items())
