"""dvc.yaml, dvc.lock and params.yaml, so that DVC agrees with what was built: `dvc status` is clean after a build.

A node depends on its stage's modules, on the configuration files that it is composed from, on its part of params.yaml,
on external inputs, on the folders of its inputs and, where it declares libraries, on requirements.lock, which holds
their versions; its outs are its folder and its record. The files of gates are DVC's metrics. Written in DVC's formats,
without DVC (schema 2.0).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pipelines import params
from pipelines.checkout import Checkout
from pipelines.config import Config
from pipelines.digests import hash_bytes, hash_json
from pipelines.errors import StoreError
from pipelines.files import write_file
from pipelines.ledger import Record
from pipelines.plan import Node, Plan
from pipelines.sealed import read_sealed, write_sealed
from pipelines.summary import Summary

HEADER = "# Written by `tapeout build` for the plan that it built last; conf/ is where to change it.\n"
LOCK = "requirements.lock"
MEMORY = "recorded.json"


def begin(checkout: Checkout, config: Config) -> dict[str, str]:
    """Return the digest of each file that the configuration is composed from, for `write` to know what was edited."""
    if not follows_dvc(checkout):
        return {}
    found = {}
    for path in config.files.values():
        try:
            found[str(path)] = checkout.digests.of(path).sha256
        except StoreError:  # removed
            found[str(path)] = ""
    return found


def write(checkout: Checkout, config: Config, plan: Plan, summary: Summary, began: dict[str, str]) -> None:
    """Write the three files for `plan`, where they differ. Does nothing in a project without .dvc/.

    began: what `begin` has returned. dvc.lock leaves out a node that an edit meanwhile would change: it was made of
    what was there before, and so is params.yaml.
    """
    root = checkout.project.root
    if not follows_dvc(checkout):
        return
    stages = {node.name: declared(checkout, config, plan, node) for node in plan.nodes.values()}
    metrics = [f"{node.folder}/{node.stage.gates}" for node in plan.nodes.values() if node.stage.gates]
    ended = {entry.name for entry in summary.nodes if entry.status in ("built", "cached")}
    if any(entry.status == "built" for entry in summary.nodes):  # what was edited since is not what it was made of
        ended = {name for name in ended if not checkout.keys.edited(plan.nodes[name])}
    records = {name: record for name in ended if (record := checkout.last(plan.nodes[name]))}
    edited = {path for path, digest in begin(checkout, config).items() if began.get(path) != digest}
    stays = {name for name in records if edited.isdisjoint(map(str, composed_from(config, plan.nodes[name])))}
    folders = {plan.nodes[name].folder: record for name, record in records.items()}
    locked = {
        name: {
            "cmd": stage["cmd"],
            "deps": [entry_of(checkout, path, folders) for path in stage["deps"]],
            "outs": [entry_of(checkout, path, folders) for path in stage["outs"]],
        }
        for name, stage in stages.items()
        if name in stays
    }
    stages = {name: escaped(stage) for name, stage in stages.items()}
    described = {"stages": stages, **({"metrics": metrics} if metrics else {})}
    marks = {"dvc.yaml": hash_json(described), "dvc.lock": hash_json(locked), params.FILE: params.mark_of(config)}
    if read_marks(checkout) == sealed(checkout, marks):
        return
    if edited and not params.at_hand(config):
        return  # what conf/ comes to now is not what was built; the next build writes them
    values = params.compose_params(checkout.project, config)
    if not params.at_hand(config) and begin(checkout, config) != began:  # just now
        return
    for name, stage in stages.items():
        keys = params.keys_of(values, plan.nodes[name])
        stages[name] = with_params(stage, keys)
        if name in locked:
            locked[name] = with_params(locked[name], {params.FILE: params.values_at(values, keys)})
    described["stages"] = stages
    write_other(root / params.FILE, params.text_of(values))
    write_other(root / "dvc.yaml", HEADER + dump(described))
    write_other(root / "dvc.lock", dump({"schema": "2.0", "stages": locked}))
    write_marks(checkout, sealed(checkout, marks))


def refresh_params(checkout: Checkout, config: Config) -> None:
    """Write params.yaml where it is not what conf/ and the overrides come to. `dvc repro` reads it after each stage."""
    mark, known = {params.FILE: params.mark_of(config)}, read_marks(checkout)
    if follows_dvc(checkout) and known.get(params.FILE) != sealed(checkout, mark)[params.FILE]:
        write_other(
            checkout.project.root / params.FILE, params.text_of(params.compose_params(checkout.project, config))
        )
        write_marks(checkout, {**known, **sealed(checkout, mark)})


def follows_dvc(checkout: Checkout) -> bool:
    """Say whether the project is one of DVC's."""
    return (checkout.project.root / ".dvc" / "config").is_file()


def declared(checkout: Checkout, config: Config, plan: Plan, node: Node) -> dict[str, Any]:
    """Return the node's stage as dvc.lock has it; for dvc.yaml see `escaped`."""
    project, keys = checkout.project, checkout.keys
    files = [*keys.module_files(node).values(), *keys.reads(node).values()]
    files += composed_from(config, node)
    deps = {project.relative(path) for path in files if path.is_relative_to(project.root)}
    for key in node.stage.sources:
        deps |= set(keys.source_files(node, key))
    if node.stage.libraries and (project.root / LOCK).is_file():
        deps.add(LOCK)
    deps |= {plan.nodes[need].folder for need in node.inputs.values()}
    return {
        "cmd": command(checkout, config, node),
        "deps": sorted(deps),
        "outs": sorted([node.folder, node.record]),
    }


def escaped(stage: dict[str, Any]) -> dict[str, Any]:
    """Return a stage as dvc.yaml has it, where `${` is DVC's own."""
    return {
        "cmd": stage["cmd"].replace("${", "\\${"),
        "deps": [path.replace("${", "\\${") for path in stage["deps"]],
        "outs": stage["outs"],
    }


def composed_from(config: Config, node: Node) -> list[Path]:
    """Return the configuration files that a node's part of the configuration comes from."""
    groups = ["config", "pipeline", *([node.stage.config] if node.stage.config else [])]
    groups += [f"device.{name}" for name in node.devices] if node.stage.per or node.stage.devices else []
    return [config.files[group] for group in groups if group in config.files]


def command(checkout: Checkout, config: Config, node: Node) -> str:
    """Return the command that runs the node alone: the same from any folder that the project is copied to."""
    words = ["tapeout", "stage", node.name]
    for folder in checkout.project.config_dirs:
        words += ["--config-dir", checkout.project.relative(folder)]
    return shlex.join([*words, *params.shared(config.overrides)])


def with_params(stage: dict[str, Any], value: Any) -> dict[str, Any]:
    """Return a stage of dvc.yaml or dvc.lock with its parameters, where DVC would write them."""
    return {"cmd": stage["cmd"], "deps": stage["deps"], "params": value, "outs": stage["outs"]}


def entry_of(checkout: Checkout, path: str, folders: dict[str, Record]) -> dict[str, Any]:
    """Return what dvc.lock says of a path."""
    if path in folders:
        tree = folders[path].tree
        md5 = tree.listing_digest.md5 + ".dir"
        return {"path": path, "hash": "md5", "md5": md5, "size": tree.size, "nfiles": len(tree.files)}
    digest = checkout.digests.of(checkout.project.root / path)
    return {"path": path, "hash": "md5", "md5": digest.md5, "size": digest.size}


def dump(value: dict[str, Any]) -> str:
    """Return YAML in the order given.

    DVC reads YAML 1.2, in which 1e3 is a number: text that looks so is quoted, as OmegaConf does in params.yaml.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    dumper: Any = type("Dumper", (base,), {"ignore_aliases": lambda own, value: True})
    style = {True: "'", False: None}
    dumper.add_representer(
        str, lambda own, text: own.represent_scalar("tag:yaml.org,2002:str", text, style=style[is_number(text)])
    )
    text: str = yaml.dump(value, Dumper=dumper, sort_keys=False, width=1000, allow_unicode=True)
    return text


def is_number(text: str) -> bool:
    """Say whether text could be taken for a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def write_other(path: Path, text: str) -> None:
    """Write a file, unless it holds `text` already."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_file(path, text.encode())


def sealed(checkout: Checkout, marks: dict[str, str]) -> dict[str, list[str]]:
    """Return {file: [mark of what it was written for, sha256 of what it holds]}."""
    found = {name: checkout.project.root / name for name in marks}
    digests = {name: checkout.digests.of(path) if path.is_file() else hash_bytes(b"") for name, path in found.items()}
    return {name: [mark, digests[name].sha256] for name, mark in marks.items()}


def read_marks(checkout: Checkout) -> dict[str, Any]:
    """Return what was written last, as `sealed` put it."""
    return read_sealed(checkout.project.state / MEMORY) or {}


def write_marks(checkout: Checkout, marks: dict[str, Any]) -> None:
    write_sealed(checkout.project.state / MEMORY, marks)
