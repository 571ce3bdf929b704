"""What an update costs to send and to apply: bytes of a delta after a small fine-tune, beside peers; speed on 1 GB.

python benchmarks/deltas.py [--only bundles,apply] [--rates 1e-5,3e-5] [--steps 30] [--gigabytes 1] [--work DIR]
                            [--json FILE]

The fine-tune is AdamW on the reference model's own training questions, all weights (deltas/fine_tune.py). Both models
are built by this project for two devices, with int8 and with int4 (GPTQ), and once with other groups. A bundle's update
is the manifest in full, and for each other file that changed its delta, or the file. The first run takes a quarter of
an hour on two cores; builds and checkpoints are kept in .tapeout/deltas. Prints each figure beside its target; the exit
status is 0 whenever the measurement ran. bsdiff4 is left out where it cannot be installed.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

from convert.spent import REPOSITORY
from deltas.applying import applying
from deltas.bundles import Releases
from deltas.peers import bsdiff
from deltas.sizes import fine_tuned, regrouped
from engine.figures import Figure, table

PARTS = ("bundles", "apply")


def main() -> None:
    options = parse()
    figures: list[Figure] = []
    if "bundles" in options.only:
        releases, peer = (
            Releases(REPOSITORY / ".tapeout" / "deltas", options.steps),
            bsdiff(REPOSITORY / ".tapeout" / "peers"),
        )
        for rate in options.rates:
            figures += show(fine_tuned(releases, rate, peer, with_target=rate == options.rates[0]))
        figures += show(regrouped(releases, options.rates[0]))
    if "apply" in options.only:
        with tempfile.TemporaryDirectory(prefix="tapeout-deltas-", dir=options.work) as name:
            figures += show(applying(Path(name), options.gigabytes))
    missed = [each.name.strip() for each in figures if each.met is False]
    print(
        f"{sum(each.met is True for each in figures)} targets met, {len(missed)} missed"
        + "".join(f"\n  missed: {each}" for each in missed)
    )
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        settings = {"steps": options.steps, "rates": options.rates, "gigabytes": options.gigabytes}
        values = {**settings, **machine, "figures": [each.to_json() for each in figures]}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=parts, default=set(PARTS), metavar="PART,...", help=f"of: {', '.join(PARTS)}")
    parser.add_argument(
        "--rates",
        type=lambda text: [float(rate) for rate in text.split(",")],
        default=[1e-5, 3e-5],
        metavar="RATE,...",
        help="peaks of the learning rate; the first is held against the target; default 1e-5,3e-5",
    )
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="of AdamW; default 30")
    parser.add_argument("--gigabytes", type=float, default=1.0, metavar="N", help="of the file for `apply`; default 1")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where `apply` writes four times as much")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser.parse_args()


def parts(text: str) -> set[str]:
    names = set(text.split(","))
    if names - set(PARTS):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(names - set(PARTS)))}; of: {', '.join(PARTS)}")
    return names


def show(figures: list[Figure]) -> list[Figure]:
    """Print a part's table as soon as it is measured."""
    print(f"{table(figures)}\n", flush=True)
    return figures


if __name__ == "__main__":
    main()
