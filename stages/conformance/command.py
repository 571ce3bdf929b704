"""`tapeout vectors`: the conformance vectors of mobile/spec, from a bundle's folder."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError
from pipelines.files import storing
from pipelines.project import Project
from stages.release.commands.parser import Parser

if TYPE_CHECKING:
    from stages.release.manifest import Manifest

OUT = Path("mobile", "spec", "vectors")
FILE = "vectors.json"
ANOTHER = "name another folder: --out DIR"


def vectors(arguments: list[str], project: Project) -> int:
    """make the conformance vectors that every SDK must pass, from a BUNDLE's folder"""
    options = parse(arguments)
    out = (options.out or project.root / OUT).absolute()
    manifest = checked(options.bundle, out)
    from stages.conformance.statements import statement_for
    from stages.conformance.vectors import write_vectors

    statement, source = statement_for(options.bundle, manifest, project)
    with written_beside(out) as folder, storing(folder):
        said = write_vectors(options.bundle, manifest, statement, folder)
    counts = {name: len(cases) for name, cases in said.items() if isinstance(cases, list)}
    told = {"vectors": str(out), "bundle": manifest.digest, "provenance": source, "cases": counts}
    print(json.dumps(told) if options.json else "\n".join(lines(told, manifest)))
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        "vectors", "Makes the conformance vectors that every SDK must pass; mobile/spec/README.md says which."
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="its folder, artifacts/DEVICE: of ONNX files")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where they are written; by default {OUT}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(arguments)


def checked(bundle: Path, out: Path) -> Manifest:
    """Return the manifest of a bundle that vectors can be made from. Raises ConfigError, VerificationError."""
    if bundle.is_file():
        raise ConfigError(f"{bundle} is a file", hint="vectors are made from a bundle's folder: artifacts/DEVICE")
    from stages.release.bundles.contents import check_contents
    from stages.release.bundles.folder import opened_folder

    opened = opened_folder(bundle)
    model = opened.manifest.value["model"]
    has_all = {"encoder", "decoder"} <= set(model["files"]) and "tokenizer" in opened.manifest.value
    if opened.manifest.runtime != "onnxruntime" or not has_all:
        what = "for Core ML" if opened.manifest.runtime == "coreml" else "without an encoder, a decoder or a tokenizer"
        raise ConfigError(
            f"{bundle} is a bundle {what}; vectors are asked of ONNX Runtime, about images",
            hint="such as artifacts/web-wasm, which 'tapeout build device=web-wasm' makes",
        )
    check_out(out, bundle)
    check_contents(opened)
    return opened.manifest


def check_out(out: Path, bundle: Path) -> None:
    """Raise ConfigError where vectors would be written over what are none, or into the bundle."""
    if out.resolve().is_relative_to(bundle.resolve()):
        raise ConfigError(f"{out} lies in the bundle", hint=ANOTHER)
    if not os.path.lexists(out):
        return
    try:
        entries = os.listdir(out)
    except OSError as cause:
        raise ConfigError(f"{out} is no folder for vectors: {cause.strerror}", hint=ANOTHER) from cause
    if entries and not is_vectors(out / FILE):
        raise ConfigError(
            f"{out} holds other things than vectors, such as {sorted(entries)[0]!r}",
            hint="it would be replaced as a whole: name a new folder, or one that this command has made",
        )


def is_vectors(path: Path) -> bool:
    """Say whether this is a vectors.json."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and {"version", "bundle", "tampered"} <= set(value)


@contextlib.contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `out` if all goes well, and is gone if not. Raises ConfigError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as cause:
        raise ConfigError(f"{out} cannot be written: {cause.strerror or cause}", hint=ANOTHER) from cause
    try:
        fresh, old = aside / "new", aside / "old"
        fresh.mkdir()
        yield fresh
        with storing(out):
            if os.path.lexists(out):
                os.rename(out, old)
            try:
                os.rename(fresh, out)
            except OSError:
                with contextlib.suppress(OSError):
                    os.rename(old, out)
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def lines(told: dict[str, Any], manifest: Manifest) -> Iterator[str]:
    """Yield what was made, for the terminal."""
    yield f"vectors of {manifest.title}"
    yield f"  folder       {told['vectors']}"
    yield f"  bundle       sha256 {told['bundle']}"
    yield f"  provenance   {told['provenance']}"
    yield "  cases        " + ", ".join(f"{name} {count}" for name, count in told["cases"].items())
