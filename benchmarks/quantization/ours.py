"""Ours: the stages calibrate, sensitivity, allocate and quantize as `tapeout build` runs them, for many overrides.

Run as a script: python -m quantization.ours NAME... FOLDER; each name is a row of OURS, each result FOLDER/<its key>.
"""

import ast
import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.spent import environment_for

from pipelines import typed
from pipelines.compose import compose
from pipelines.errors import ConfigError, TapeoutError
from pipelines.project import find_project
from pipelines.workspace import Progress, Workspace
from quantization.subject import CALIBRATION, REFERENCE, REPOSITORY

if TYPE_CHECKING:
    import torch

# What a result depends on, beside the configuration.
SOURCES = (
    *("models", "data", "quantizers", "distillation", "evaluation/divergence.py", "artifacts.py", "tensorfile.py"),
    *("calibrate.py", "sensitivity.py", "allocate.py", "quantize.py"),
)
DEVICE = "iphone-15-pro"  # for what is chosen per device


@dataclass(frozen=True)
class Ours:
    """overrides: as on the command line. kind: uniform, auto, floor, qat (see entries.Entry); bound: the budget."""

    label: str
    overrides: tuple[str, ...]
    kind: str = "uniform"
    bound: float = 0.0


def even(bits: int, rest: int = 8) -> tuple[str, ...]:
    """`bits` for every matrix; `rest` for embeddings and head; the tower's other convolutions have 8."""
    said = {"bits": bits, "convolutions": bits, "embeddings": rest, "head": rest, "spatial": 8}
    return tuple(f"quantize.{key}={value}" for key, value in said.items())


def _palettes() -> list[Ours]:
    found = []
    for bits in (4, 3, 2):
        said = ("quantize=palette4", *even(bits))
        found.append(Ours(f"palette, {bits} bits g16", said))
        found.append(Ours(f"palette, {bits} bits g16, channel scale", (*said, "quantize.channel_scale=true")))
        found.append(Ours(f"palette of pairs, {2 * bits} bits", ("quantize=palette3", *even(2 * bits))))
    return found


OURS: list[Ours] = [
    Ours("int8", ("quantize=int8", *even(8))),
    *(Ours(f"gptq int{bits} g32", ("quantize=int4", *even(bits))) for bits in (4, 3, 2)),
    Ours("gptq int4 g32 symmetric", ("quantize=int4", "quantize.symmetric=true", *even(4))),
    Ours("rtn int4 g32", ("quantize=int4", "quantize.method=rtn", *even(4))),
    *(Ours(f"{name} int4 g32", (f"quantize={name}", *even(4))) for name in ("hqq", "awq", "nncf")),
    Ours("quantize=int4", ("quantize=int4",)),
    *_palettes(),
    *(
        Ours(f"auto, {bits} bits", ("quantize=auto", f"quantize.budget.bits={bits}"), "auto", bits)
        for bits in (4.35, 4.0, 3.4, 3.0, 2.5)
    ),
    Ours("auto, KL 0.005", ("quantize=auto", "quantize.budget.bits=null", "quantize.budget.kl=0.005"), "floor", 0.005),
    *(
        Ours(f"quantize=qat{bits}", (f"quantize=qat{bits}", "quantize.training.threads=1"), "qat", bits)
        for bits in (2, 1)
    ),
]


def run(chosen: list[Ours], folder: Path) -> dict[str, Path]:
    """{label: folder of a QuantizedModel, or of missing.json}; what is not there yet is made, in a child process."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [each.label for each in chosen if not (folder / key(each) / "formats.json").is_file()]
    if missing:
        with (folder / "ours.log").open("a") as log:
            words = [sys.executable, "-m", "quantization.ours", *missing, str(folder)]
            ended = subprocess.run(words, stdout=log, stderr=log, env=environment_for(threads=1)).returncode
        if ended:
            raise SystemExit(f"a measurement ended with {ended}: see {log.name}")
    return {each.label: folder / key(each) for each in chosen}


@dataclass(frozen=True)
class Made:
    """bytes: of weights.safetensors and formats.json; weights: of what the store counts as the weights' own."""

    state: "dict[str, torch.Tensor]"
    bytes: int
    weights: int


def read(folder: Path) -> tuple[Made | None, str]:
    """What lies in a folder that `run` gave; where it could not be made, why."""
    from stages.artifacts import QuantizedModel

    problem = folder / "missing.json"
    if problem.is_file():
        return None, str(json.loads(problem.read_text(encoding="utf-8")))
    model = QuantizedModel(folder)
    size = sum((folder / name).stat().st_size for name in ("weights.safetensors", "formats.json"))
    return Made(model.model().state_dict(), size, int(model.read_json("formats.json")["totals"]["bytes"])), ""


def main(labels: list[str], folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    for each in OURS:
        if each.label not in labels:
            continue
        started, place = time.monotonic(), folder / key(each)
        shutil.rmtree(place, ignore_errors=True)
        room = Workspace(folder / f"{place.name}.part", folder / f"{place.name}.scratch", _told)
        shutil.rmtree(room.out, ignore_errors=True)
        room.out.mkdir()
        try:
            _quantized(configured(each), folder, room)
        except TapeoutError as error:  # the table says so
            (room.out / "missing.json").write_text(json.dumps(str(error)), encoding="utf-8")
        room.out.rename(place)
        print(f"{each.label}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


@cache
def key(each: Ours) -> str:
    """Of the checkpoint, the configuration and the sources that a result can depend on."""
    try:
        config = repr(sorted(configured(each).items()))
    except ConfigError as error:
        config = str(error)
    return f"ours-{hashlib.sha256((_sources() + config).encode()).hexdigest()[:16]}"


@cache
def _sources() -> str:
    digest = hashlib.sha256((REFERENCE / "model.safetensors").read_bytes())
    for place in (REPOSITORY / "stages" / name for name in SOURCES):
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(ast.unparse(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()


def configured(each: Ours) -> dict[str, Any]:
    """{group: configuration as a stage gets it}. Raises ConfigError."""
    from stages.schema import SCHEMAS

    project = find_project(REPOSITORY)
    count, seed = CALIBRATION
    same = [f"calibrate.samples={count}", f"calibrate.seed={seed}"]
    overrides = [f"device=[{DEVICE}]", "tracking=none", *same, *each.overrides]
    values, _ = compose(project, overrides)
    groups = [name for name in ("calibrate", "sensitivity", "quantize") if name in values]
    made = {name: typed.build(typed.check(name, name, values[name], SCHEMAS[name]), SCHEMAS[name]) for name in groups}
    device = values["device"][DEVICE]
    made["device"] = typed.build(typed.check(DEVICE, "device", device, SCHEMAS["device"]), SCHEMAS["device"])
    return made


def _quantized(configs: dict[str, Any], folder: Path, room: Workspace) -> None:
    from stages.artifacts import Checkpoint
    from stages.quantize import quantize
    from stages.quantizers.choices import allocates

    source, calibration, allocation = Checkpoint(REFERENCE), _calibration(configs, folder), None
    if allocates(configs["quantize"]):
        from stages.allocate import allocate
        from stages.artifacts import Sensitivity
        from stages.sensitivity import sensitivity

        measured = _once(folder, "sensitivity", configs["sensitivity"])
        if not measured.out.is_dir():
            made = _part(measured)
            sensitivity(source, calibration, configs["sensitivity"], made)
            made.out.rename(measured.out)
        chosen = Workspace(room.out.with_suffix(".allocation"), room.scratch / "allocation", _told)
        shutil.rmtree(chosen.out, ignore_errors=True)
        chosen.out.mkdir()
        found = Sensitivity(measured.out)
        allocation = allocate(found, source, calibration, configs["quantize"], configs["device"], chosen)
    quantize(source, configs["quantize"], room, calibration, allocation)


def _calibration(configs: dict[str, Any], folder: Path) -> Any:
    from stages.artifacts import Calibration, Checkpoint
    from stages.calibrate import calibrate

    place = _once(folder, "calibration", configs["calibrate"])
    if not place.out.is_dir():
        made = _part(place)
        calibrate(Checkpoint(REFERENCE), configs["calibrate"], made)
        made.out.rename(place.out)
    return Calibration(place.out)


def _once(folder: Path, name: str, config: Any) -> Workspace:
    """Where what all rows share is kept."""
    digest = hashlib.sha256((_sources() + repr(config)).encode()).hexdigest()[:16]
    return Workspace(folder / f"{name}-{digest}", folder / f"{name}-{digest}.scratch", _told)


def _part(place: Workspace) -> Workspace:
    part = Workspace(place.out.with_suffix(".part"), place.scratch, _told)
    shutil.rmtree(part.out, ignore_errors=True)
    part.out.mkdir()
    return part


def _told(event: Any) -> None:
    if not isinstance(event, Progress):
        print(event, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:-1], Path(sys.argv[-1]))
