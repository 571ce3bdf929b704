"""How far the predictions of stages/devices are off: on models and on chips that were held out, and beside a roofline.

python benchmarks/predictors.py [--only decode,prefill,first_token,encode,memory] [--json FILE]
python benchmarks/predictors.py --test FILE.csv[.gz] [...] [--json FILE]
python benchmarks/predictors.py --write

Prints medians of the absolute relative error: ours, and of a naive roofline at the published peaks; `named`, ours
where the model's architecture or arithmetic is publicly known by name; `half`, of a roofline at half of the peaks with
2 us an operator; and how many of the intervals, which should hold 90 %, do. Everything is fitted inside the folds. Held
out are models, of which all components and precisions stay together; `relatives`, the same with languages, fine-tunes
and distilled ones of a model on its side; `devices`, chips with all of their devices.

--test scores the predictor that ships on rows that it may never have seen, of either of the two kinds of table.
--write fits it anew to all rows that the project keeps (benchmarks/predictors/README.md) and writes
stages/devices/calibration.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from predictors.figures import QUANTITIES, Figure, figure, shown
from predictors.folds import by_groups, coverage, interval_of, prepared, situation_of
from predictors.imputing import Imputer
from predictors.rows import Table, read, tables
from predictors.shipping import IMPUTER, all_tables, written

from stages.devices.calibration import FILE, calibration


def main() -> None:
    options = parse()
    if options.write:
        written(FILE)
        print(f"written: {FILE.name}")
        return
    figures = tested(options.test) if options.test else held_out(options.only)
    print(shown(figures))
    if options.json:
        values = [each.to_json() for each in figures]
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def held_out(only: list[str]) -> list[Figure]:
    """Each model; a model with its relatives; a chip with its devices."""
    found = []
    every = {quantity: table for quantity, table in all_tables().items() if quantity in only}
    for split in ("models", "relatives", "devices"):
        for table in every.values():
            groups = {"models": table.models, "relatives": table.relatives, "devices": table.chips}[split]
            held = by_groups(table, groups)
            filled = prepared(table, [])[0]  # for the rooflines, to which arithmetic is given
            covered = coverage(table, held, chip_known=split != "devices")
            found.append(figure(split, filled, held.logarithms, covered))
    return found


def tested(files: list[Path]) -> list[Figure]:
    """The shipped models on those rows."""
    return [shipped(table) for file in files for table in tables(read(file))]


def shipped(table: Table) -> Figure:
    model = calibration().models[table.quantity]
    if "given_pixels" in table.features:
        table = Imputer(np.array(json.loads(IMPUTER.read_text(encoding="utf-8")))).fill(table)
    logarithms = model.logarithms(table.features, table.situations)
    errors = np.log(table.measured) - logarithms
    inside = []
    for row, chip in enumerate(table.chips):
        known = chip in model.effects["chip"]
        low, high = interval_of(dict(model.intervals), situation_of(table, row, chip_known=known))
        inside.append(low <= errors[row] <= high)
    return figure("test", table, logarithms, float(np.mean(inside)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(QUANTITIES))
    parser.add_argument("--test", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", type=Path)
    found = parser.parse_args()
    for path in found.test or ():
        if not path.is_file():
            parser.error(f"--test {path}: there is no such file")
    return found


if __name__ == "__main__":
    main()
