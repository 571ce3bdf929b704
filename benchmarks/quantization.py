"""Ours and the peers on the shipped reference model: sizes on disk, divergence, answers kept; one table and one plot.

python benchmarks/quantization.py [--only ours,nncf,coremltools,onnxruntime] [--per-task N] [--screen N]
                                  [--cache DIR] [--json FILE] [--plot [FILE.svg]]

Everybody has the same calibration data (quantization/subject.py: 128 questions) and is judged alike: the dequantized
weights, in the same torch model, on the same held-out questions (225 of each of nine tasks), by the KL divergence from
the float model's predictions of the answers' tokens, and by answers generated from the image. The comparison is of
weights, not of runtimes. What is far off at its size is measured on fewer questions (`--screen`), and says so.

Peers quantize different parts of a model: NNCF all that multiplies, and convolutions to 8 bits only; coremltools all;
ONNX Runtime linear layers only. So there are two tables. In the first, on which the targets stand, everybody's method
is put to the same matrices (language model, projector, tower; 1x1 convolutions among them), and embeddings, output
head and the tower's other convolutions have 8 bits and a scale a row for all. The second has the peers' models as they
come out, with what they leave float as float16. Ours are the stages' own stores in both, which are whole models.

Bytes are of files. A peer's is one safetensors file that holds what its own format holds, packed as there: NNCF's
state dict; codes without gaps, lookup tables and scales in float16 as in a Core ML package; the initializers of ONNX
Runtime's MatMulNBits with float16 scales. Ours are weights.safetensors and formats.json together.

Prints each target with its figure, and says so where one is missed; the exit status is 0 whenever the measurement ran.
Every peer runs in a process of its own. Results are kept in the cache by all that they depend on: a second run is
quick; the first takes one to two hours on two idle cores, most of it trained models and coremltools' 8 bit k-means.
"""

import argparse
import json
import os
import platform
from pathlib import Path

from engine.figures import table as targets_table
from quantization.assembled import Basis
from quantization.contest import Contest
from quantization.drawing import draw
from quantization.entries import table
from quantization.peers import PACKAGES
from quantization.subject import REPOSITORY
from quantization.targets import targets

WHO = ("ours", *PACKAGES)
TITLES = {Basis.same: "Equal weights quantized", Basis.whole: "Whole models, as each makes them"}


def main() -> None:
    options = parse()
    contest = Contest(options.cache, options.per_task, min(options.screen, options.per_task))
    entries = contest.entries(sorted(options.only))
    for basis, title in TITLES.items():
        print(f"{title}\n{table([each for each in entries if each.ours or each.basis is basis])}\n")
    figures = targets(entries)
    missed = [each.name.strip() for each in figures if each.met is False]
    print(targets_table(figures))
    print(
        f"{sum(each.met is True for each in figures)} targets met, {len(missed)} missed"
        + "".join(f"\n  missed: {each}" for each in missed)
    )
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        values = {
            "per_task": options.per_task,
            **machine,
            "entries": [each.to_json() for each in entries],
            "figures": [each.to_json() for each in figures],
        }
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        draw(options.plot, entries)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=chosen, default=set(WHO), metavar="WHO,...", help=f"of: {', '.join(WHO)}")
    parser.add_argument(
        "--per-task", type=int, default=225, metavar="N", help="questions of each of nine tasks; default 225"
    )
    parser.add_argument(
        "--screen", type=int, default=40, metavar="N", help="of a task, for what turns out far off; default 40"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=REPOSITORY / ".tapeout" / "quantization",
        metavar="DIR",
        help="where results are kept; default .tapeout/quantization",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="?",
        const=Path(__file__).with_suffix(".svg"),
        metavar="FILE.svg",
        help="draw KL against size; default benchmarks/quantization.svg",
    )
    options = parser.parse_args()
    if options.per_task < 1 or options.screen < 1:
        parser.error("--per-task, --screen: at least 1")
    return options


def chosen(text: str) -> set[str]:
    names = set(text.split(","))
    if names - set(WHO):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(names - set(WHO)))}; of: {', '.join(WHO)}")
    return names


if __name__ == "__main__":
    main()
