"""MLflow, fed by one process beside the build: `python -m pipelines.publish`. Nothing is published if nothing ran.

The process starts with the first stage, so that MLflow's slow import is done when the build is. What is to be published
waits in .tapeout/outbox until it has been, so that an MLflow that does not answer loses nothing. A build that is killed
has no summary yet and no run in MLflow; what its finished stages measured is lost with it, what they made is not.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pipelines
from pipelines import compared_metrics, figures
from pipelines.config import Config
from pipelines.database import making_tables
from pipelines.display import Display
from pipelines.files import storing
from pipelines.history import history_of
from pipelines.project import Project
from pipelines.sealed import read_sealed, write_sealed
from pipelines.summary import Summary, completed

PATIENCE = 60.0  # s that a finished build waits for MLflow
QUIET = {  # a server that does not answer is given up before that
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}
Publisher = subprocess.Popen[str]
WIDTH = 120  # characters of a run's name
ENDS = ("low", "high")
NOT_IN_A_NAME = re.compile(r"[^\w.\- :]")  # of MLflow's metrics


def start(project: Project, config: Config) -> Publisher | None:
    """Start the publishing process, if the configuration wants one."""
    if config.tracking.kind != "mlflow":
        return None
    paths = [str(Path(pipelines.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**QUIET, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with storing(project.state), open(project.state / "publish.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.publish", config.tracking.uri, config.tracking.experiment],
            cwd=project.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
        )


def finish(publisher: Publisher | None, project: Project, config: Config, summary: Summary, display: Display) -> None:
    """Hand the build's summary to the publisher, if one was started, and wait for it."""
    outbox = project.state / "outbox"
    if config.tracking.kind != "mlflow":
        return
    if publisher is not None:
        write_sealed(outbox / f"{time.time_ns()}.json", payload(project, config, summary))
    waiting = sorted(outbox.glob("*.json")) if outbox.is_dir() else []
    if not waiting:
        return
    publisher = publisher or start(project, config)
    assert publisher is not None
    display.note(f"recording the build in MLflow ({config.tracking.uri})")
    try:
        publisher.communicate("\n".join(str(path) for path in waiting), timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        publisher.kill()
        publisher.wait()
    if publisher.returncode:
        display.note(
            f"MLflow did not take this build's run; the next build tries again. The build itself is complete. Why: "
            f"{project.relative(project.state / 'publish.log')}"
        )


def keep(project: Project, summary: Summary) -> None:
    """Write the summary where `tapeout report` looks for it."""
    write_sealed(project.state / "last.json", summary.to_json())


def payload(project: Project, config: Config, summary: Summary) -> dict[str, Any]:
    """Return all that a publisher needs, as JSON."""
    said = summary.to_json()
    build = history_of(project).get(summary.build) if summary.build else None
    return {
        "overrides": list(config.overrides),
        "groups": config.groups,
        "devices": config.devices,
        "departures": config.departures,
        "own": sorted({stage.config for stage in config.pipeline.stages.values() if stage.per and stage.config}),
        "config_dirs": [str(folder) for folder in project.config_dirs],
        "name": build.name if build else None,
        "summary": said,
        "files": figures.to_publish(project, said),
        "started": int((time.time() - summary.seconds) * 1000),
    }


def main() -> None:
    """Make MLflow and its database ready, wait for the files on standard input, publish each and remove it."""
    os.nice(10)
    import mlflow

    with making_tables(sys.argv[1]):
        mlflow.set_tracking_uri(sys.argv[1])
        mlflow.set_experiment(sys.argv[2])
    for name in sys.stdin.read().split("\n"):
        path = Path(name)
        if name and path.is_file():
            waiting = read_sealed(path)
            if waiting is None:
                print(f"{path} is damaged: that build is not recorded in MLflow", file=sys.stderr)
            else:
                publish(mlflow, waiting)
            path.unlink()


def publish(mlflow: Any, build: dict[str, Any]) -> None:
    """Make one run for the build and a child run for each device. The same figures have the same names in all builds,
    so that MLflow compares runs of one device (tag `device`) over builds (tag `build`). What failed is marked so."""
    summary = build["summary"] = completed(build["summary"])
    nodes = summary["nodes"]
    overrides = " ".join(build["overrides"])
    tags = {"passed": str(summary["passed"]), "overrides": overrides, **build_tags(build)}
    with run(mlflow, shortened(overrides or "build"), tags, summary["passed"]):
        log_params(mlflow, flattened(build["groups"]))
        log(mlflow, [("seconds", summary["seconds"], 0), *count_metrics(nodes)])
        log(mlflow, [each for node in nodes if node["device"] is None for each in node_metrics(node, summary)])
        mlflow.log_dict(summary, "summary.json")
        log_files(mlflow, build, None)
        log_report(mlflow, build)
        for device in build["devices"]:
            publish_device(mlflow, build, device)


def publish_device(mlflow: Any, build: dict[str, Any], device: str) -> None:
    """Make the child run of a device."""
    summary, profile = build["summary"], build["devices"][device]
    found = summary["metrics"].get(device, {})
    gates = [gate for gate in summary["gates"] if gate["device"] == device]
    nodes = [node for node in summary["nodes"] if device in node["devices"] or not node["devices"]]
    ended = all(node["status"] in ("built", "cached") for node in nodes)
    passed = ended and all(gate["passed"] for gate in gates)
    digest = digest_of(nodes)
    tags = {"device": device, "passed": str(passed), **build_tags(build), **({"digest": digest} if digest else {})}
    own = [node for node in nodes if node["device"] == device]
    with run(mlflow, device, tags, passed, nested=True):
        departures = build.get("departures", {}).get(device, {})
        groups = {name: departures.get(name) or build["groups"][name] for name in build.get("own", ())}
        log_params(mlflow, {**flattened(groups), **flattened(profile)})
        log_files(mlflow, build, device)
        log(mlflow, [*metrics_of(found), ("gates.failed", sum(not gate["passed"] for gate in gates), 0)])
        log(mlflow, [each for node in own for each in node_metrics(node, summary)])


@contextlib.contextmanager
def run(mlflow: Any, name: str, tags: dict[str, str], passed: bool, nested: bool = False) -> Iterator[None]:
    """Give a run of MLflow's, which is FAILED where what it tells of did not pass."""
    mlflow.start_run(run_name=name, nested=nested, tags=tags)
    status = "FAILED"
    try:
        yield
        status = "FINISHED" if passed else "FAILED"
    finally:
        mlflow.end_run(status)


def build_tags(build: dict[str, Any]) -> dict[str, str]:
    """Return the build's number in the history and its name, if it has them."""
    found = {"build": build["summary"].get("build"), "build_name": build.get("name")}
    return {key: str(value) for key, value in found.items() if value is not None}


def digest_of(nodes: list[dict[str, Any]]) -> str | None:
    """Return the digest of what a device's nodes came to at last: its bundle's, where there is one."""
    needed = {need for node in nodes for need in node["needs"]}
    return next((node["digest"] for node in nodes if node["name"] not in needed and node["device"]), None)


def metrics_of(found: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Return the figures of a gates file as (name, value, step): an interval's bounds as NAME.low and NAME.high."""
    metrics = []
    for name, figure in compared_metrics.figures(found).items():
        metrics.append((name, figure["value"], 0))
        metrics += [(f"{name}.{end}", bound, 0) for end, bound in zip(ENDS, figure["interval"] or (), strict=False)]
    return [(NOT_IN_A_NAME.sub("_", name), value, step) for name, value, step in metrics]


def log_report(mlflow: Any, build: dict[str, Any]) -> None:
    """Log the build's page. Where it cannot be made, the log says why, and the run has none."""
    from pipelines.report import report_of

    project = Project(Path.cwd(), tuple(Path(folder) for folder in build.get("config_dirs", ())))
    sys.path[:0] = [str(root) for root in project.import_roots if str(root) not in sys.path]
    try:
        page = report_of(project, build["summary"])
    except Exception as error:  # the page is the pipeline's own code, and the figures matter more
        print(f"no report in MLflow: {type(error).__name__}: {error}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="tapeout-") as folder:
        path = Path(folder, "report.html")
        path.write_bytes(page)
        mlflow.log_artifact(str(path))


def shortened(text: str) -> str:
    """Return a text as MLflow's tables show it whole; the tag `overrides` has all of it."""
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def count_metrics(nodes: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """Return how many nodes ended in each way."""
    return [
        (f"nodes.{status}", sum(n["status"] == status for n in nodes), 0) for status in ("built", "cached", "failed")
    ]


def node_metrics(node: dict[str, Any], summary: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Return a node's time and what its stage measured on the way, as (name, value, step)."""
    found = [(f"{node['stage']}.seconds", node["seconds"], 0)] if node["status"] == "built" else []
    for each in summary["measurements"].get(node["name"], []):
        if each["value"] is not None:  # it was infinite, or not a number
            found.append((f"{node['stage']}.{each['name']}", each["value"], each["step"] or 0))
    return found


def log_files(mlflow: Any, build: dict[str, Any], device: str | None) -> None:
    """Log what stages have to show: those of one device, or those that all share."""
    with tempfile.TemporaryDirectory(prefix="tapeout-") as folder:
        files = [each for each in build.get("files", ()) if each["device"] == device]
        figures.publish(mlflow, files, Path(folder))


def log_params(mlflow: Any, params: dict[str, Any]) -> None:
    """Log parameters, 100 at a time: MLflow takes no more in one request."""
    items = list(params.items())
    for first in range(0, len(items), 100):
        mlflow.log_params(dict(items[first : first + 100]))


def log(mlflow: Any, metrics: list[tuple[str, float, int]]) -> None:
    """Log metrics in batches: one call each would take 50 ms."""
    now = int(time.time() * 1000)
    client, run = mlflow.MlflowClient(), mlflow.active_run().info.run_id
    entities = [mlflow.entities.Metric(key, float(value), now, step) for key, value, step in metrics]
    for first in range(0, len(entities), 1000):
        client.log_batch(run, metrics=entities[first : first + 1000])


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as {"a.b.0": value}, with names and values as MLflow takes them."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        return {prefix: value if is_number(value) else str(value)[:500]}
    found: dict[str, Any] = {}
    for key, each in pairs:
        found |= flattened(each, f"{prefix}.{key}" if prefix else str(key))
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


if __name__ == "__main__":
    main()
