"""Promotions and rollbacks from several processes at once: is the history whole, and does MLflow agree with it?

python benchmarks/releases.py [--operations N] [--processes N] [--kills N] [--seed N] [--tracking none] [--json FILE]

Each operation is a `tapeout release` of its own, promoting or rolling back at random what the others promote and roll
back at the same time, in a project with five releases for two devices whose bundles and provenance are made up. With
--kills, that many further commands get a SIGKILL at a random moment of theirs. Then the history is read, verified and
held against what the commands have printed, and MLflow's aliases against its last entry. The exit status is 1 where
anything is missing. 200 operations take three minutes on two cores.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.project import Project  # noqa: E402
from stages.release.history.following import progress_of  # noqa: E402
from stages.release.history.registry import wanted  # noqa: E402
from tests.stages.release.projects import entries_of, make_project, released, state  # noqa: E402

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0", "2.0.0")
DEVICES = ("pixel-8", "iphone-15-pro")
CHANNELS = ("stable", "beta")
LOOKED = 40  # champions before, of which a history keeps the last 50
LATEST = 1.5  # s after its start, at most, at which a command is killed


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="tapeout-releases-", ignore_cleanup_errors=True) as folder:
        bench = Bench(prepared(Path(folder), options.tracking), options)
        bench.run()
        found = bench.judged()
        if options.tracking == "mlflow":
            settle(bench.project)
            found |= agreement(bench.project)
    print("\n".join(f"{name:<52} {said(value):>12}" for name, value in found.items()))
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        told = {**vars(options), "json": str(options.json)}
        options.json.write_text(json.dumps({**machine, "options": told, "figures": found}, indent=2) + "\n")
    wrong = [name for name, value in found.items() if value is False]
    print("all is as it should be" if not wrong else f"WRONG: {'; '.join(wrong)}")
    return 1 if wrong else 0


def prepared(root: Path, tracking: str) -> Project:
    """A project with five releases for two devices, and a champion on both channels."""
    project = make_project(root, tracking)
    for number, version in enumerate(VERSIONS):
        released(project, version, *DEVICES, seed=number)
    for number, channel in enumerate(CHANNELS):
        words = ["promote", VERSIONS[number], "--channel", channel, "--new-channel"]
        subprocess.run(command(*words), cwd=root, check=True, stdout=subprocess.DEVNULL, env=environment())
    return project


@dataclass
class Bench:
    """Runs the commands, and keeps what they printed. begun: entries before the first."""

    project: Project
    options: argparse.Namespace
    promised: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    killed: int = 0
    begun: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def run(self) -> None:
        self.begun = len(entries_of(self.project))
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        share = -(-self.options.operations // self.options.processes)
        kills = -(-self.options.kills // self.options.processes)
        workers = [
            threading.Thread(target=self.work, args=(number, share, kills)) for number in range(self.options.processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.wall = time.monotonic() - started
        self.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def work(self, number: int, share: int, kills: int) -> None:
        """Run commands one after the other until `share` of them have recorded something, and kill some others."""
        draw = random.Random(self.options.seed * 1000 + number)
        recorded = 0
        while recorded < share or kills:
            kill = draw.uniform(0, LATEST) if kills and draw.random() < 0.3 else None
            kills -= kill is not None
            recorded += self.once(draw, kill) if recorded < share or kill is not None else 0

    def once(self, draw: random.Random, kill: float | None) -> bool:
        """Run a command; say whether it recorded an entry. kill: seconds after which it is killed."""
        words = [*action(draw), "--reason", "killed" if kill is not None else ""]
        started = time.monotonic()
        with subprocess.Popen(
            command(*words, "--json"),
            cwd=self.project.root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            if kill is not None:
                time.sleep(kill)
                process.kill()
            out, err = process.communicate()
        if process.returncode == -9:
            self.killed += 1
            return False
        if process.returncode or "Traceback" in err or "lags" in err:
            (self.refused if process.returncode == 1 and "nothing to go back to" in err else self.failed).append(err)
            return False
        self.seconds.append(time.monotonic() - started)
        entry = json.loads(out)["entry"]
        if entry:
            self.promised.append(entry)
        return entry is not None

    def judged(self) -> dict[str, Any]:
        """Return what the history has of all this. Reading it verifies signatures and chain."""
        entries = entries_of(self.project)
        digests = {entry.sequence: entry.digest for entry in entries}
        fresh = entries[self.begun :]
        promised = {entry["sequence"]: entry["digest"] for entry in self.promised}
        unspoken = [entry for entry in fresh if entry.sequence not in promised]
        return {
            "operations recorded": len(self.promised),
            "commands killed": self.killed,
            "refused: nothing to go back to": len(self.refused),
            "failed otherwise": len(self.failed),
            "no command failed otherwise": not self.failed,
            "each has an entry of its own": len(promised) == len(self.promised) >= self.options.operations,
            "each entry is as its command said": all(digests.get(key) == value for key, value in promised.items()),
            "sequence without a gap": [entry.sequence for entry in entries] == list(range(1, len(entries) + 1)),
            "entries of killed commands, whole": len(unspoken),
            "no entry of anybody else": all(entry.reason == "killed" for entry in unspoken),
            "each was decided on what the one before had left": consistent(entries),
            "wall seconds": round(self.wall, 1),
            "CPU seconds of the commands": round(self.cpu, 1),
            "seconds a command, median": round(statistics.median(self.seconds), 2),
            "seconds a command, 95th percentile": round(statistics.quantiles(self.seconds, n=20)[-1], 2),
        }


def action(draw: random.Random) -> list[str]:
    channel = ["--channel", draw.choice(CHANNELS)]
    kind = draw.random()
    if kind < 0.35:
        return ["rollback", *channel]
    version = draw.choice(VERSIONS)
    if kind < 0.6:
        return [
            "promote",
            version,
            *channel,
            "--arm",
            f"of_{version.replace('.', '_')}",
            "--share",
            draw.choice("123579"),
        ]
    return ["promote", version, *channel]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", "release", *words, "--key", "release.key"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def consistent(entries: list[Any]) -> bool:
    """Say whether each entry goes on from the champions that the one before it had left: with the same, one more, or
    one fewer."""
    now: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        for channel, devices in entry.set.items():
            for device, value in devices.items():
                line = [*value["former"], value["champion"]["version"]]
                before = now.get((channel, device), line[:-1])
                if (
                    line[-LOOKED:] not in (before[-LOOKED:], before[:-1][-LOOKED:])
                    and line[:-1][-LOOKED:] != before[-LOOKED:]
                ):
                    return False
                now[channel, device] = line
    return True


def settle(project: Project) -> None:
    """Wait until the process that keeps MLflow's registry has ended: one that a killed command started goes on."""
    subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "release", "status"],
        cwd=project.root,
        env=environment(),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    last, end = entries_of(project)[-1], time.monotonic() + 60
    while progress_of(project).digest != last.digest and time.monotonic() < end:
        time.sleep(0.1)


def agreement(project: Project) -> dict[str, Any]:
    """Hold MLflow's aliases against the history's last entry."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{project.root / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    agreed, aliases = True, 0
    for name, model in wanted(state(project)).items():
        numbers = {each.tags["bundle"]: str(each.version) for each in client.search_model_versions(f"name='{name}'")}
        expected = {alias: numbers.get(release.bundle) for alias, release in model.aliases.items()}
        found = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
        agreed &= found == expected and len(numbers) == len(VERSIONS)
        aliases += len(found)
    progress = progress_of(project)
    return {
        "MLflow's aliases": aliases,
        "MLflow's aliases are those of the last entry": agreed,
        "times that MLflow was brought up to date": progress.attempt,
    }


def said(value: Any) -> str:
    return {True: "yes", False: "NO"}[value] if isinstance(value, bool) else str(value)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=200)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tracking", choices=["mlflow", "none"], default="mlflow")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
