"""The playground's static folder: the page, the SDK, the bundles, questions. Any web server can serve it.

index.html, style.css, app.js     the page
sw.js, files.js                   what keeps the page for offline, and the list of what it keeps
site.json, questions.json         the bundles with their digests; the questions
sdk/, bundles/, questions/        the SDK, the bundles byte for byte, images
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.files import storing
from stages.playground.bundles import Shown
from stages.playground.questions import Selection, write_questions

VERSION = 1
MARK = "site.json"
PAGE = "playground"  # in dist
WEBGPU = "threaded.asyncify."  # in names of ONNX Runtime's files that run WebGPU
WORKER = ("sw.js", "files.js")  # the browser keeps these itself
HEADERS = {  # what a server has to send, so that the page may use threads
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}


def write_site(folder: Path, sdk: Path, bundles: Sequence[Shown], selection: Selection) -> None:
    """Write the site into a folder that is empty or not there; sdk: mobile/web/dist.

    Raises OSError, and VerificationError for a bundle that is not as its manifest says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(sdk / PAGE, folder, dirs_exist_ok=True)
    shutil.copytree(sdk, folder / "sdk", ignore=only_code)
    for bundle in bundles:
        bundle.copy(folder)
    write_questions(folder, selection)
    described = {"playground": VERSION, "bundles": [bundle.entry() for bundle in bundles]}
    (folder / MARK).write_text(json.dumps(described, ensure_ascii=False, indent=1), encoding="utf-8")
    write_list(folder)


def only_code(folder: str, names: list[str]) -> list[str]:
    """Names that a page does not ask for: types, the stamp, the playground itself."""
    return [name for name in names if name == PAGE or name.startswith(".") or name.endswith((".d.ts", ".map"))]


def write_list(site: Path) -> None:
    """Write files.js: the page's own files and a digest over them. Bundles are left out, which the SDK keeps itself."""
    names = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*")) if path.is_file()]
    names = [name for name in names if not name.startswith("bundles/") and name not in WORKER]
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name} {hashlib.sha256((site / name).read_bytes()).hexdigest()}\n".encode())
    webgpu = [name for name in names if WEBGPU in name]  # large, and for few: kept once it is used
    listed = {
        "version": total.hexdigest()[:16],
        "files": ["./", *(n for n in names if n not in webgpu)],
        "webgpu": webgpu,
    }
    (site / "files.js").write_text(f"self.site = {json.dumps(listed)};\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(out: Path, bundles: Sequence[Path]) -> Iterator[Path]:
    """Give a folder beside `out` to write into; it takes the place of `out` at the end, or is removed.

    Raises ConfigError where `out` is something else than a playground or lies in one of the bundles, and StoreError for
    any OSError while the folder is written: the disk is full, or must not be written.
    """
    check_replaceable(out, bundles)
    out = Path(os.path.abspath(out))
    new = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    old = new.with_suffix(".old")
    try:
        with storing(out):
            yield new
            if out.exists():
                out.rename(old)
            try:
                new.rename(out)
            except OSError:
                if old.exists():
                    old.rename(out)
                raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_replaceable(out: Path, bundles: Sequence[Path]) -> None:
    """Raise ConfigError unless `out` is not there, is an empty folder, or holds a playground, and lies in no bundle."""
    hint = "name a new folder, or one that 'tapeout playground' has written"
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"--out {out}: it is there, and no folder", hint=hint)
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: {out.parent} is no folder", hint="make it first")
    for bundle in bundles:
        if out.resolve().is_relative_to(bundle.resolve()):
            raise ConfigError(f"--out {out}: it lies in the bundle {bundle}, which would be damaged", hint=hint)
    if out.is_dir() and any(out.iterdir()) and not is_playground(out):
        raise ConfigError(f"--out {out}: the folder holds something else than a playground", hint=hint)


def is_playground(folder: Path) -> bool:
    try:
        value = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return isinstance(value, dict) and "playground" in value
    except (OSError, ValueError):
        return False
