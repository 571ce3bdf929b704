"""`tapeout run`: an ML program on given inputs, in the reference executor or, on macOS, in Core ML itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.errors import ConfigError, StageError
from pipelines.project import Project

if TYPE_CHECKING:
    from stages.runtimes.coreml_reference import Feature, Interface, MLProgram


def run(arguments: list[str], project: Project) -> int:
    """run PATH.mlpackage on --input NAME=FILE.npy|IMAGE|JSON|random: its outputs, anywhere"""
    options = _parse(arguments)
    path = Path(options.path)
    _check_path(path)
    from stages.runtimes.coreml_reference import MLProgram

    with _usage_errors():
        program = MLProgram(path, options.function, precision=options.precision, memory_mib=options.memory_mib)
        if options.operators:
            return _show_operators(program, path, options.json)
        interface = program.interface()
        if not options.json:
            print("\n".join(_described(path, program, interface, options)))
        inputs = _inputs(options, interface)
        interface.tensors(inputs)
    started = time.perf_counter()
    model = _model(program, options)
    loaded, seconds = time.perf_counter() - started, []
    state = model.make_state() if interface.states else None
    with _usage_errors():
        for _ in range(options.steps):
            started = time.perf_counter()
            outputs = model.predict(inputs, state)
            seconds.append(time.perf_counter() - started)
    found = {name: _statistics(value) for name, value in outputs.items()}
    files = _write(Path(options.output), outputs) if options.output else []
    if options.json:
        said = {"package": str(path), "function": interface.name, "precision": options.precision, "outputs": found}
        timing = {"load": round(loaded, 4), "predict": [round(each, 5) for each in seconds]}
        print(json.dumps(said | {"files": files, "seconds": timing}))
        return 0
    for name, each in found.items():
        print(f"output  {name}: {_summary(each)}")
    print(f"load {loaded:.2f} s, predict {sorted(seconds)[len(seconds) // 2]:.4f} s (median of {len(seconds)})")
    for file in files:
        print(f"wrote {file}")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"tapeout run: {message}", hint="'tapeout run --help' lists its options")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="tapeout run", description="Runs an ML program (.mlpackage).", allow_abbrev=False)
    parser.add_argument("path", metavar="PATH.mlpackage")
    parser.add_argument("--function", metavar="NAME", help="instead of the package's default function")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="FILE.npy, an image file, JSON (a number or a list), or random; NAME alone is random too",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random inputs; by default 0")
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="calls in a row, which share the states")
    parser.add_argument("--precision", choices=("float16", "float32"), default="float16")
    parser.add_argument(
        "--memory-mib", type=int, default=2000, metavar="N", help="of dense copies of weights; by default 2000"
    )
    parser.add_argument("--output", metavar="DIR", help="write each output there, as .npy or .png")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--operators", action="store_true", help="only list the operators, and which are not known")
    parser.add_argument(
        "--backend", choices=("reference", "native"), default="reference", help="native: Core ML itself, on macOS"
    )
    parser.add_argument(
        "--compute-units", default="all", metavar="UNITS", help="with native: all, cpu, cpu_gpu, cpu_ne"
    )
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.memory_mib < 0:
        raise ConfigError("tapeout run: --steps takes 1 or more, --memory-mib 0 or more")
    return options


def _check_path(path: Path) -> None:
    if path.suffix == ".onnx":
        raise ConfigError(f"{path} is an ONNX file", hint="ONNX Runtime runs it: onnxruntime.InferenceSession(path)")
    if not path.exists():
        raise ConfigError(f"{path} is not there", hint="expected the folder of an .mlpackage")
    if not path.is_dir():
        raise ConfigError(f"{path} is a file", hint="expected the folder of an .mlpackage, which holds Manifest.json")


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """What does not fit the program is the user's to mend (exit status 2); an unknown operator is ours (1)."""
    from stages.runtimes.coreml_reference import ProgramError, UnknownOperatorError

    try:
        yield
    except UnknownOperatorError:
        raise
    except ProgramError as error:
        raise ConfigError(error.message, hint=error.hint) from error


def _model(program: MLProgram, options: argparse.Namespace) -> Any:
    if options.backend == "native":
        from stages.runtimes.coreml_native import CoreMLModel

        return CoreMLModel(options.path, options.function, compute_units=options.compute_units)
    with _usage_errors():
        program.function()
    return program


def _described(path: Path, program: MLProgram, interface: Interface, options: argparse.Namespace) -> Iterator[str]:
    others = ", ".join(name for name in program.functions if name != interface.name)
    yield f"{path}, function {interface.name}" + (f" (others: {others})" if others else "")
    given = dict(text.partition("=")[::2] for text in options.input)
    for name, feature in interface.features.items():
        default = "" if feature.default is None else f"default {feature.default:g}"
        yield f"input   {name}: {feature.describe()}  <- {given.get(name, default or 'missing') or 'random'}"
    for name, (shape, dtype) in interface.states.items():
        yield f"state   {name}: {shape} {str(dtype).removeprefix('torch.')}"


def _inputs(options: argparse.Namespace, interface: Interface) -> dict[str, Any]:
    """What --input says, checked by name; all that is missing is named at once."""
    inputs: dict[str, Any] = {}
    generator = _generator(options.seed)
    for text in options.input:
        name, _, value = text.partition("=")
        if name not in interface.features:
            interface.tensors({name: 0})  # says which there are, and the nearest
        inputs[name] = _value(interface.features[name], value or "random", generator)
    missing = {
        name: feature for name, feature in interface.features.items() if name not in inputs and feature.default is None
    }
    if missing:
        needs = "; ".join(f"{name}: {feature.describe()}" for name, feature in missing.items())
        example = " ".join(f"--input {name}=random" for name in missing)
        raise ConfigError(f"function '{interface.name}' needs {needs}", hint=f"for instance {example}")
    return inputs


def _generator(seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed)


def _value(feature: Feature, text: str, generator: Any) -> Any:
    """What one --input stands for."""
    import numpy as np

    path = Path(text)
    if text == "random":
        shape = feature.example()
        if feature.colour:
            return generator.integers(0, 256, shape).astype(np.float32)
        if not feature.dtype.is_floating_point:
            return generator.integers(0, 2, shape).astype(np.int32)  # fits most tables, masks and positions
        return generator.standard_normal(shape).astype(np.float32)
    if text[:1] in "[-0123456789" and path.suffix not in (".npy", ".png", ".jpg", ".jpeg"):
        try:
            return np.array(json.loads(text))
        except ValueError as cause:
            raise ConfigError(f"--input {feature.name}={text} is no JSON: {cause}") from cause
    if not path.is_file():
        raise ConfigError(
            f"--input {feature.name}={text}: there is no such file",
            hint="VALUE is FILE.npy, an image file, JSON (a number or a list), or random",
        )
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        from PIL import Image

        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as cause:
        raise ConfigError(f"--input {feature.name}={text} cannot be read: {cause}") from cause


def _statistics(value: Any) -> dict[str, Any]:
    """Shape, dtype, and of the finite values minimum, maximum, mean and standard deviation."""
    import numpy as np

    array = np.asarray(value)
    wide = array.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    figures = {
        name: float(getattr(np, name)(finite)) if finite.size else None for name in ("min", "max", "mean", "std")
    }
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        **figures,
        "nan": int(np.isnan(wide).sum()),
        "infinite": int(np.isinf(wide).sum()),
    }


def _summary(found: dict[str, Any]) -> str:
    figures = "  ".join(
        f"{name} {found[name]:.6g}" for name in ("min", "max", "mean", "std") if found[name] is not None
    )
    odd = "".join(f"  {found[name]} {name}" for name in ("nan", "infinite") if found[name])
    return f"{tuple(found['shape'])} {found['dtype']}  {figures}{odd}"


def _write(folder: Path, outputs: dict[str, Any]) -> list[str]:
    """NAME.npy, or NAME.png for an image, in the folder."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, value in outputs.items():
        file = folder / f"{name.replace('/', '_')}.{'npy' if isinstance(value, np.ndarray) else 'png'}"
        np.save(file, value) if isinstance(value, np.ndarray) else value.save(file)
        files.append(str(file))
    return files


def _show_operators(program: MLProgram, path: Path, as_json: bool) -> int:
    """Print every function's operators. Exit status 1 where some are not known."""
    found = {
        name: {"operators": program.operators(name), "unknown": program.unknown_operators(name)}
        for name in program.functions
    }
    if as_json:
        print(json.dumps({"package": str(path), "functions": found}))
    for name, each in {} if as_json else found.items():
        print(f"{path}, function {name}")
        for kind, count in each["operators"].items():
            places = each["unknown"].get(kind)
            print(f"{count:6} {kind}" + (f"   not known: {', '.join(places)}" if places else ""))
    return 1 if any(each["unknown"] for each in found.values()) else 0


def main() -> int:
    """Run without a project: python -m stages.runtimes.command PATH.mlpackage ..."""
    try:
        return run(sys.argv[1:], Project(Path.cwd()))
    except (ConfigError, StageError) as error:
        print(f"tapeout: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
