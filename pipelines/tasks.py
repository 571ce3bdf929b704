"""What a node's worker is given, and the scratch folders that outlive a kill."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.checkout import Checkout
from pipelines.config import Config
from pipelines.execute import Needs, Task
from pipelines.files import storing
from pipelines.plan import Node, Plan, is_elsewhere

SCRATCHES = 3  # unfinished states kept of a node, this one's included; each may be as large as a checkpoint


def make_task(
    checkout: Checkout, config: Config, plan: Plan, node: Node, ingredients: dict[str, Any], needs: Needs
) -> Task:
    """Return what a worker needs to run `node`, with its folders made."""
    project = checkout.project
    key = checkout.key_of(ingredients)
    settings = dict(node.config) if node.config is not None else None
    for name in node.stage.sources:
        if settings is not None and not is_elsewhere(settings[name]):
            settings[name] = str(project.root / str(settings[name]))
    out, scratch = checkout.store.new_folder(), project.state / "scratch" / node.name / key / "state"
    log = project.state / "logs" / f"{node.name}.log"
    with storing(project.state):
        log.parent.mkdir(parents=True, exist_ok=True)
    return Task(
        node=node.name,
        run=node.stage.run,
        import_roots=tuple(str(root) for root in project.import_roots),
        schemas=config.pipeline.schemas,
        config_group=node.stage.config,
        config=settings,
        device=node.device,
        profiles=node.profiles,
        libraries=ingredients["libraries"],
        inputs={parameter: project.root / plan.nodes[need].folder for parameter, need in node.inputs.items()},
        out=out,
        scratch=scratch,
        log=log,
        metrics=scratch.parent / "measurements.jsonl",
        needs=needs,
        local=bool(node.stage.sources),
        calls=node.stage.calls,
        retries=config.executor.retries,
    )


def set_aside(own: Path) -> bool:
    """Say whether a node that starts in `own` leaves another key's state behind; keep the newest SCRATCHES folders.

    own: .tapeout/scratch/NODE/KEY. A stage resumes only under the key that it was stopped under: going back to the code
    and configuration of then goes on from there.
    """
    if not own.parent.is_dir():
        return False
    newest = sorted(own.parent.iterdir(), key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
    others = [folder for folder in newest if folder != own]
    for folder in others[SCRATCHES - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
    return not holds_state(own) and any(map(holds_state, others[: SCRATCHES - 1]))


def holds_state(own: Path) -> bool:
    """Say whether a stage has kept something in `own` to resume from."""
    return (own / "state").is_dir() and any((own / "state").iterdir())


def drop_scratch(folder: Path) -> None:
    """Remove the state of a node that has its result, and the node's folder unless other keys have states in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the measurements in a file of JSON lines; a line cut short by a kill is left out.

    Of those with the same name and step, which a stage that resumed has measured again, the last counts.
    """
    found: dict[tuple[str, Any], dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                value = json.loads(line)
                found[value["name"], value["step"]] = value
    return list(found.values())
