"""What a stage has to show for itself: a summary in words and figures, which are files of its artifact."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import StageError
from pipelines.plan import Node
from pipelines.project import Project


def read_summary(folder: Path, node: Node) -> str:
    """Return the text of the summary in `folder`, an artifact of `node`; "" where its stage declares none.

    Raises StageError where that, or a figure, is not there.
    """
    for kind, names in (("summary", (node.stage.summary,)), ("figures", node.stage.figures)):
        for name in names:
            if name is not None and not (folder / name).is_file():
                raise StageError(
                    f"{node.name}: {node.stage.run} left no {name}",
                    hint=f"its stage declares it: {kind}; write it to work.out, or leave it out of the declaration",
                )
    if node.stage.summary is None:
        return ""
    path = folder / node.stage.summary
    try:
        return path.read_text(encoding="utf-8").strip("\n")
    except (OSError, ValueError) as error:
        raise StageError(f"{node.name}: {path} is no summary: {error}", hint="it must be text in UTF-8") from error


def to_publish(project: Project, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return {"device", "path", "data"} of each summary, and of each figure of a node that was built.

    device: None where all share it. data: in base64; the file may be another when it is published at last.
    """
    found = []
    for node in summary["nodes"]:
        files = {"summary.txt": node["summary"].encode()} if node["summary"] else {}
        for figure in node["figures"] if node["status"] == "built" else ():
            with contextlib.suppress(OSError):  # whoever removed it since does not miss it
                files[Path(figure["name"]).as_posix()] = (project.root / figure["path"]).read_bytes()
        for name, data in files.items():
            path = f"{node['stage']}/{name}"
            found.append({"device": node["device"], "path": path, "data": base64.b64encode(data).decode()})
    return found


def publish(mlflow: Any, files: list[Mapping[str, Any]], folder: Path) -> None:
    """Log files to MLflow's active run; `folder` is an empty one to lay them out in."""
    for each in files:
        path = folder / each["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(each["data"]))
    if files:
        mlflow.log_artifacts(str(folder))


def inline(path: Path) -> str:
    """Return an SVG as the address of an image that holds it: a page shows it, and runs nothing in it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
