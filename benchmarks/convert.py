"""What converting a 0.5B model costs and what comes out, beside coremltools and onnxruntime-genai, in one run.

python benchmarks/convert.py [--only coreml,onnx,decode,executor,build] [--models fastvlm-0.5b,...] [--repeats N]
                             [--peers DIR] [--work DIR] [--json FILE]

Prints each figure beside its target, and says so where one is missed; the exit status is 0 whenever the measurement
ran. Every measurement is a process of its own, alone on the machine, so that its peak memory is its own. All weights
are random: time, memory and speed do not depend on them. coremltools needs 8 GB of memory, all parts together 15 GB of
disk and, on two idle cores, a quarter of an hour. onnxruntime-genai is installed in an environment of its own, once.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

from convert.builds import CONTEXT, THREADS, coreml, onnx
from convert.decode import decode, executor
from convert.peers import genai
from convert.spent import REPOSITORY, script, spend
from convert.whole import LIMITS, whole
from engine.figures import Figure, table

PARTS = ("coreml", "onnx", "decode", "executor", "build")


def main() -> None:
    options = parse()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="tapeout-convert-", dir=options.work) as name:
        folder = Path(name)
        checkpoint, python = folder / "checkpoint", None
        if options.only & {"coreml", "onnx", "decode", "executor"}:
            spend(script("checkpoints", checkpoint), folder)
        if options.only & {"onnx", "decode"}:
            python = genai(options.peers)
            figures += show(onnx(folder, checkpoint, python))
        if "decode" in options.only and python:
            figures += show(decode(folder, python, options.repeats))
        if "coreml" in options.only:
            figures += show(coreml(folder, checkpoint))
        if "executor" in options.only:
            if "coreml" not in options.only:
                spend(script("ours", "coreml", checkpoint, folder / "coreml", str(CONTEXT)), folder, THREADS)
            figures += show(executor(folder, options.repeats))
        if "build" in options.only:
            for model in options.models:
                figures += show(whole(folder, model))
    missed = [each.name.strip() for each in figures if each.met is False]
    print(
        f"{sum(each.met is True for each in figures)} targets met, {len(missed)} missed"
        + "".join(f"\n  missed: {each}" for each in missed)
    )
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        values = {"repeats": options.repeats, **machine, "figures": [each.to_json() for each in figures]}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        type=lambda text: chosen(text, PARTS),
        default=set(PARTS),
        metavar="PART,...",
        help=f"of: {', '.join(PARTS)}; `decode` makes what `onnx` measures",
    )
    parser.add_argument(
        "--models",
        type=lambda text: sorted(chosen(text, tuple(LIMITS))),
        default=["fastvlm-0.5b"],
        metavar="MODEL,...",
        help=f"that `build` builds, of: {', '.join(LIMITS)}; default fastvlm-0.5b",
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each decoding; default 3")
    parser.add_argument(
        "--peers",
        type=Path,
        default=REPOSITORY / ".tapeout" / "peers",
        metavar="DIR",
        help="where onnxruntime-genai's environment is kept; default .tapeout/peers",
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written; default: the system's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    return options


def chosen(text: str, known: tuple[str, ...]) -> set[str]:
    names = set(text.split(","))
    if names - set(known):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(names - set(known)))}; of: {', '.join(known)}")
    return names


def show(figures: list[Figure]) -> list[Figure]:
    """Print a part's table as soon as it is measured."""
    print(f"{table(figures)}\n", flush=True)
    return figures


if __name__ == "__main__":
    main()
