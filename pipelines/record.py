"""dvc.yaml and dvc.lock, so that DVC agrees with what was built: `dvc status` is clean, `dvc repro` runs nothing.

A node depends on its stage's modules, on the configuration files that it is composed from, on external inputs, on the
folders of its inputs and, where it declares libraries, on requirements.lock, which holds their versions; its outs are
its folder and its record. Written in DVC's formats, without DVC (schema 2.0).
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from pipelines.checkout import Checkout
from pipelines.config import Config
from pipelines.digests import FileDigest, hash_bytes, hash_json
from pipelines.files import write_file
from pipelines.ledger import Record
from pipelines.plan import Node, Plan
from pipelines.summary import Summary

HEADER = "# Written by `tapeout build` for the plan that it built last; conf/ is where to change it.\n"
LOCK = "requirements.lock"
OWN_GROUPS = ("executor", "tracking")  # these change no result


def write(checkout: Checkout, config: Config, plan: Plan, summary: Summary) -> None:
    """Write dvc.yaml and dvc.lock for `plan`, where they differ. Does nothing in a project without .dvc/."""
    root = checkout.project.root
    if not (root / ".dvc").is_dir() or not (root / ".dvc" / "config").is_file():
        return
    stages = {node.name: declared(checkout, config, plan, node) for node in plan.nodes.values()}
    ended = {entry.name for entry in summary.nodes if entry.status in ("built", "cached")}
    records = {name: record for name in ended if (record := checkout.last(plan.nodes[name]))}
    folders = {plan.nodes[name].folder: record for name, record in records.items()}
    locked = {
        name: {
            "cmd": stage["cmd"],
            "deps": [entry_of(checkout, path, folders) for path in stage["deps"]],
            "outs": [entry_of(checkout, path, folders) for path in stage["outs"]],
        }
        for name, stage in stages.items()
        if name in records
    }
    memory = root / ".tapeout" / "recorded.json"
    wanted: dict[str, dict[str, Any]] = {
        "dvc.yaml": {"stages": stages},
        "dvc.lock": {"schema": "2.0", "stages": locked},
    }
    marks = {name: hash_json(value) for name, value in wanted.items()}
    if read_marks(memory) == {name: [mark, digest_of(checkout, root / name)] for name, mark in marks.items()}:
        return
    for name, value in wanted.items():
        data = ((HEADER if name == "dvc.yaml" else "") + dump(value)).encode()
        path = root / name
        if not path.is_file() or path.read_bytes() != data:
            write_file(path, data)
    write_file(
        memory, json.dumps({name: [mark, digest_of(checkout, root / name)] for name, mark in marks.items()}).encode()
    )


def declared(checkout: Checkout, config: Config, plan: Plan, node: Node) -> dict[str, Any]:
    """Return the node's stage of dvc.yaml. `${` is DVC's own and is escaped."""
    project, keys = checkout.project, checkout.keys
    files = [*keys.module_files(node).values(), *keys.reads(node).values()]
    groups = ["config", "pipeline", *([node.stage.config] if node.stage.config else [])]
    groups += [f"device.{name}" for name in node.devices] if node.stage.per else []
    files += [config.files[group] for group in groups if group in config.files]
    deps = {project.relative(path) for path in files if path.is_relative_to(project.root)}
    for key in node.stage.sources:
        deps |= set(keys.source_files(node, key))
    if node.stage.libraries and (project.root / LOCK).is_file():
        deps.add(LOCK)
    deps |= {plan.nodes[need].folder for need in node.inputs.values()}
    return {
        "cmd": command(checkout, config, node).replace("${", "\\${"),
        "deps": sorted(deps),
        "outs": sorted([node.folder, node.record]),
    }


def command(checkout: Checkout, config: Config, node: Node) -> str:
    """Return the command that runs the node alone: the same from any folder that the project is copied to."""
    words = ["tapeout", "stage", node.name]
    for folder in checkout.project.config_dirs:
        words += ["--config-dir", checkout.project.relative(folder)]
    words += [
        each for each in config.overrides if each.lstrip("+~").partition("=")[0].partition(".")[0] not in OWN_GROUPS
    ]
    return shlex.join(words)


def entry_of(checkout: Checkout, path: str, folders: dict[str, Record]) -> dict[str, Any]:
    """Return what dvc.lock says of a path."""
    if path in folders:
        tree = folders[path].tree
        md5 = tree.listing_digest.md5 + ".dir"
        return {"path": path, "hash": "md5", "md5": md5, "size": tree.size, "nfiles": len(tree.files)}
    digest = checkout.digests.of(checkout.project.root / path)
    return {"path": path, "hash": "md5", "md5": digest.md5, "size": digest.size}


def dump(value: dict[str, Any]) -> str:
    """Return YAML in the order given."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(value, Dumper=dumper, sort_keys=False, width=1000, allow_unicode=True)
    return text


def digest_of(checkout: Checkout, path: Path) -> str:
    """Return the sha256 of a file, or of nothing where there is none."""
    found: FileDigest = checkout.digests.of(path) if path.is_file() else hash_bytes(b"")
    return found.sha256


def read_marks(path: Path) -> Any:
    """Return what was recorded last, or None."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
