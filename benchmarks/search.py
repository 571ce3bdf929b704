"""The search on the shipped reference model: against chance, against recovery's ranking, against uniform designs.

python benchmarks/search.py [--parts search,tau,half,seventy] [--per-task N] [--tau-steps N] [--tau-subnets N]
                            [--cache DIR] [--json FILE] [--plot [FILE.svg]] [--quick]

search   Hypervolume of accuracy, bytes and latency, of the shipped search, of TPE and of random search beside them, at
         equal evaluations, seed by seed; and of random search after the uniform designs that a search is told first.
tau      Kendall's tau of the supernet's accuracy and of what subnets answer once recovered. Of all architectures that
         any sampler tried and that were scored on all questions, one is drawn from each of as many groups by bytes.
half     The best at half the parameters against uniform designs that are no larger: everything at one share, all that
         has weights at one share, widths alone. Everybody is recovered alike, with the same steps on the same images.
seventy  The same at 0.7 of the bytes and of the latency that is predicted for a Pixel 8; measured here as well, with
         one thread of ONNX Runtime: best while nothing else runs (remove host-* in the cache to measure again).

Settings are the shipped ones of `search=nsga2 device=[pixel-8,raspberry-pi-5]`. What counts is the overall accuracy on
held-out questions, the mean over nine tasks, answered by the float model. Uniform designs are cut from the sorted
model, and once more from the trained supernet, as what is searched has that training beside its recovery.

Prints each target with its figure, and says so where one is missed; the exit status is 0 whenever the measurement ran.
Each long step is kept in the cache by all that it depends on, and goes on where it was killed. Processes that measure
different parts can share the cache at the same time; what one of them makes, the others wait for. `--quick` tries all
of it with a few steps: its figures mean nothing.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from engine.figures import Figure
from engine.figures import table as targets_table
from search.settings import CUT_FROM, REPOSITORY, Settings

PARTS = ("search", "tau", "half", "seventy")
TITLES = {
    "search": "Hypervolume of (accuracy, bytes, latency)",
    "tau": "The supernet's ranking and recovery's",
    "half": "At most half of the parameters",
    "seventy": "At most 0.7 of bytes and latency",
}


def main() -> None:
    options = parse()
    import torch
    from search.bench import Bench
    from search.steps import Steps

    torch.set_num_threads(1)
    cut_from = tuple(options.cut_from.split(","))
    settings = Settings(options.per_task, options.tau_steps, options.tau_subnets, options.quick, cut_from)
    bench, figures, found = Bench(Steps(options.cache), settings), list[Figure](), dict[str, Any]()
    for part in options.parts:
        found[part], made, text = measured(bench, part)
        figures += made
        print(f"{TITLES[part]}\n{text}\n", flush=True)
    print(f"{compute(bench)}\n\n{targets_table(figures)}")
    missed = [each.name.strip() for each in figures if each.met is False]
    print(f"{sum(each.met is True for each in figures)} targets met, {len(missed)} missed")
    for each in missed:
        print(f"  missed: {each}")
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        parts = {part: [each.to_json() for each in values] for part, values in found.items()}
        values = {"settings": vars(settings), **machine, **parts, "figures": [each.to_json() for each in figures]}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        from search.drawing import draw

        rows = {part: found[part] for part in ("half", "seventy") if part in found}
        draw(options.plot, found.get("search", []), found.get("tau", []), rows)


def measured(bench: Any, part: str) -> tuple[list[Any], list[Figure], str]:
    """What was found, its figures and its table."""
    from search import contest, ranking, volumes

    if part == "search":
        each = volumes.volumes(bench)
        return each, volumes.figures(each), volumes.table(each)
    if part == "tau":
        subnets = ranking.subnets(bench)
        return subnets, ranking.figures(subnets), ranking.table(subnets)
    bounds = contest.CONTESTS[part]
    rows = contest.contest(bench, bounds)
    return rows, contest.figures(bounds, rows), contest.table(rows)


def compute(bench: Any) -> str:
    """What everybody has been trained with."""
    training, shared = bench.configs.recover.training, bench.configs.supernet
    steps = f"{training.steps} steps (for tau {bench.settings.tau_steps})"
    return (
        f"Recovery, of everybody: {steps} of {training.batch} images. "
        f"The supernet, once: {shared.steps} steps of {shared.batch} images, {2 + shared.random} subnets each. "
        f"Held out: {bench.settings.per_task} questions of each of nine tasks."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=chosen, default=list(PARTS), metavar="PART,...", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--per-task", type=int, metavar="N", help="questions of each of nine tasks; default 225")
    parser.add_argument("--tau-steps", type=int, metavar="N", help="of recovery, for tau; default 150")
    parser.add_argument("--tau-subnets", type=int, default=9, metavar="N", help="that are ranked; default 9")
    parser.add_argument(
        "--cut-from", default=",".join(CUT_FROM), choices=[",".join(CUT_FROM), *CUT_FROM], help="of uniform designs"
    )
    parser.add_argument("--quick", action="store_true", help="a trial run, whose figures mean nothing")
    parser.add_argument(
        "--cache",
        type=Path,
        default=REPOSITORY / ".tapeout" / "search",
        metavar="DIR",
        help="where results are kept; default .tapeout/search",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="?",
        const=Path(__file__).with_suffix(".svg"),
        metavar="FILE.svg",
        help="draw; default benchmarks/search.svg",
    )
    options = parser.parse_args()
    options.per_task = options.per_task or (5 if options.quick else 225)
    options.tau_steps = options.tau_steps or (2 if options.quick else 150)
    if min(options.per_task, options.tau_steps) < 1 or options.tau_subnets < 3:
        parser.error("--per-task, --tau-steps: at least 1; --tau-subnets: at least 3")
    return options


def chosen(text: str) -> list[str]:
    """In the order in which they are given, each once."""
    names = list(dict.fromkeys(text.split(",")))
    if unknown := sorted(set(names) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; of: {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    main()
