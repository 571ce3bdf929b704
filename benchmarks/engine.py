"""What the engine costs: a build with nothing to do, empty stages by the hundred, twelve devices on two workers.

python benchmarks/engine.py [--only noop,dvc,olive,synthetic,parallel] [--repeats N] [--json FILE] [--plot [FILE.svg]]

Prints each figure beside its target, and says so where one is missed; the exit status is 0 whenever the measurement
ran. CPU seconds are those of a whole process tree, user and system; figures are medians over the repeats. All five
parts with five repeats take most of an hour. Olive is installed in an environment of its own, once.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

from engine.figures import Figure, plot, table
from engine.noop import noop
from engine.olive import Olive
from engine.parallel import parallel
from engine.projects import twelve
from engine.synthetic import synthetic

PARTS = ("noop", "dvc", "olive", "synthetic", "parallel")  # dvc and olive stand beside noop, and measure it too


def main() -> None:
    options = parse()
    figures: list[Figure] = []
    scaling: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tapeout-engine-") as name:
        folder = Path(name)
        if {"noop", "dvc", "olive"} & options.only:
            olive = Olive(options.peers, folder / "olive") if "olive" in options.only else None
            project = twelve(folder / "noop", per_task=1)
            figures += show(noop(project, options.repeats, "dvc" in options.only, olive))
        if "synthetic" in options.only:
            found, scaling = synthetic(folder, options.repeats)
            figures += show(found)
        if "parallel" in options.only:
            copies = [twelve(folder / f"parallel{number}", options.per_task) for number in (1, 2)]
            figures += show(parallel(copies[0], copies[1], options.repeats))
    missed = [each.name.strip() for each in figures if each.met is False]
    print(
        f"{sum(each.met is True for each in figures)} targets met, {len(missed)} missed"
        + "".join(f"\n  missed: {each}" for each in missed)
    )
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        values = {
            "repeats": options.repeats,
            **machine,
            "figures": [each.to_json() for each in figures],
            "scaling": scaling,
        }
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if options.plot and scaling:
        plot(options.plot, scaling)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=parts, default=set(PARTS), metavar="PART,...", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each measurement; default 5")
    parser.add_argument(
        "--per-task", type=int, default=10, metavar="N", help="questions of a task in `parallel`; default 10"
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path(tempfile.gettempdir()) / "tapeout-peers",
        metavar="DIR",
        help="where Olive's environment is kept; default %(default)s",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="?",
        const=Path(__file__).with_suffix(".svg"),
        metavar="FILE.svg",
        help="draw the scaling run; default benchmarks/engine.svg",
    )
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    if options.plot and "synthetic" not in options.only:
        parser.error("--plot draws what `synthetic` measures: --only leaves it out")
    return options


def parts(text: str) -> set[str]:
    chosen = set(text.split(","))
    if chosen - set(PARTS):
        raise argparse.ArgumentTypeError(
            f"there is no {', '.join(sorted(chosen - set(PARTS)))}; parts: {', '.join(PARTS)}"
        )
    return chosen


def show(figures: list[Figure]) -> list[Figure]:
    """Print a part's table as soon as it is measured."""
    print(f"{table(figures)}\n", flush=True)
    return figures


if __name__ == "__main__":
    main()
