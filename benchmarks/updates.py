"""Does an update survive what happens to phones? Kills, full disks, cut networks, wrong clocks: is a version whole?

python benchmarks/updates.py [--kills N] [--disks N] [--cuts N] [--megabytes N] [--seed N] [--json FILE]

Two releases of a model that runs are published to an update repository, behind a local web server: of their files one
comes by a delta, one whole, the others are kept. Each case starts with the old release in place (each fifth with none)
and disturbs an update to the new one: `tapeout fetch` gets a SIGKILL at a random moment of its work, self-test
included; its disk is filled up at a random moment (a small tmpfs; where that cannot be mounted, no file may grow beyond
a random size); every connection is dropped after a random number of bytes; the clock is days or years off. Then every
byte of what is in place is held against its manifest: it must be the old release or the new one; and a plain update
must bring the new one. Every tenth kill is followed by a second one, of the update that was to recover. The exit status
is 1 where anything else was found. The whole takes ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.errors import TapeoutError  # noqa: E402
from stages.release.client.client import Client  # noqa: E402
from stages.release.client.clock import utc_now  # noqa: E402
from stages.release.client.downloading import Patience  # noqa: E402
from stages.release.commands.repository import repository as init_repository  # noqa: E402
from tests.stages.release.projects import released  # noqa: E402
from tests.stages.release.repositories import World, make_world  # noqa: E402
from tests.stages.release.runnable import contents, write_runnable  # noqa: E402
from tests.stages.release.server import Server  # noqa: E402

OLD, NEW, DEVICE = "1.0.0", "1.1.0", "pixel-8"
CLOCKS = {"400 days behind": -400, "3 days behind": -3, "3 days ahead": 3, "9,000 days ahead": 9000}
QUICK = Patience(timeout=5.0, attempts=2, pause=0.02)
PAUSE = 0.004  # s after each 64 KiB that the server sends


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="tapeout-updates-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), options)
        print(bench.said(), flush=True)
        rows = [bench.kills(), bench.disks(), bench.cuts(), bench.clocks()]
        bench.server.close()
    print(table(rows))
    wrong = [line for row in rows for line in row["wrong"]]
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        told = {**vars(options), "json": str(options.json)}
        found = {**machine, "options": told, "update": bench.undisturbed, "rows": rows}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print("\n".join(wrong) or "a whole, verified version was in place after every case, and every update recovered")
    return 1 if wrong else 0


class Bench:
    """The repository, its server, and clients. undisturbed: what an update costs that nothing disturbs."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.path, self.options, self.chance = path, options, random.Random(options.seed)
        self.world, self.digests = repository(path, options.megabytes, self.chance)
        self.server = Server(self.world.directory)
        self.server.pause = PAUSE
        self.root = path / "root.json"
        self.root.write_bytes(self.world.first_root)
        self.number = 0
        self.offer(OLD)
        self.kept = path / "kept"
        assert self.client(self.kept).update().bundle == self.digests[OLD]
        self.offer(NEW)
        self.undisturbed = self.measured()

    def offer(self, version: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.world.release("promote", version, "--channel", "stable", *(["--new-channel"] * (version == OLD)))
            self.world.publish()

    def measured(self) -> dict[str, Any]:
        """Run the command without any disturbance. seconds: from its first request on."""
        device = self.device(fresh=False)
        process, began = self.started(device)
        out, _ = process.communicate()
        found = json.loads(out)
        keys = ("size", "downloaded", "deltas", "saved", "notes")
        assert found["status"] == "new" and found["deltas"] and not found["notes"], found
        return {"seconds": time.monotonic() - began, **{key: found[key] for key in keys}}

    def said(self) -> str:
        found, mb = self.undisturbed, 1e6
        return (
            f"undisturbed: {found['seconds']:.1f} s from the first request on, {found['downloaded'] / mb:.2f} MB for a "
            f"bundle of {found['size'] / mb:.2f} MB, {found['deltas'] / mb:.2f} MB of them a delta"
        )

    def device(self, fresh: bool) -> Path:
        """Return a folder with the old release in place, or where none was ever."""
        self.number += 1
        folder = self.path / f"device-{self.number}"
        if not fresh:
            shutil.copytree(self.kept, folder, symlinks=True)
        return folder

    def client(self, folder: Path, **options: Any) -> Client:
        return Client(folder, self.server.url, DEVICE, "stable", self.world.first_root, patience=QUICK, **options)

    def started(self, folder: Path, limit: int | None = None) -> tuple[subprocess.Popen[str], float]:
        """Start `tapeout fetch` in a process group of its own; return it, and when it first asked the server."""
        asked = len(self.server.requests)
        words = [sys.executable, "-m", "pipelines.cli", "fetch", self.server.url, "--to", str(folder), "--json"]
        words += ["--device", DEVICE, "--channel", "stable", "--root", str(self.root)]
        process = subprocess.Popen(
            words,
            cwd=self.world.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        while len(self.server.requests) == asked and process.poll() is None:
            time.sleep(0.001)
        return process, time.monotonic()

    def kill(self, folder: Path) -> bool:
        """Kill an update at a random moment of its work; say whether it still ran."""
        process, _ = self.started(folder)
        time.sleep(self.chance.uniform(0, 1.1 * self.undisturbed["seconds"]))
        running = process.poll() is None
        if running:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return running

    def kills(self) -> dict[str, Any]:
        row = Row("SIGKILL at a random moment")
        for number in range(self.options.kills):
            fresh = number % 5 == 4
            folder = self.device(fresh)
            hit = self.kill(folder) + (self.kill(folder) if number % 10 == 9 else 0)
            row.add(f"kill {number}", self.in_place(folder), fresh, bool(hit), self.recovered(folder))
            shutil.rmtree(folder)
        return row.told()

    def disks(self) -> dict[str, Any]:
        mounted = self.path / "disk"
        mounted.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", "size=256m", "tapeout-updates", str(mounted)]
        real = subprocess.run(words, capture_output=True).returncode == 0
        row = Row("a disk that fills up" if real else "files that may not grow")
        try:
            for number in range(self.options.disks):
                fresh = number % 5 == 4
                folder = self.device(fresh)
                if real:
                    place = mounted / folder.name
                    if not fresh:
                        shutil.move(folder, place)
                    folder = place
                refused = self.full(folder) if real else self.limited(folder)
                row.add(f"disk {number}", self.in_place(folder), fresh, refused, self.recovered(folder))
                shutil.rmtree(folder)
        finally:
            if real:
                subprocess.run(["umount", "-l", str(mounted)], check=True)
        return row.told()

    def full(self, folder: Path) -> bool:
        """Fill the disk at a random moment of an update; say whether that was refused, in the right words."""
        process, _ = self.started(folder)
        time.sleep(self.chance.uniform(0, self.undisturbed["seconds"]))
        filler = folder.parent / "filler"
        try:
            with filler.open("wb") as file:
                while process.poll() is None:
                    file.write(b"x" * 4096)
                    file.flush()
        except OSError:
            pass
        _, said = process.communicate()
        filler.unlink()
        return refused(process.returncode, said)

    def limited(self, folder: Path) -> bool:
        process, _ = self.started(folder, self.chance.randrange(self.undisturbed["downloaded"]))
        _, said = process.communicate()
        return refused(process.returncode, said)

    def cuts(self) -> dict[str, Any]:
        row = Row("the network ends after random bytes")
        for number in range(self.options.cuts):
            fresh = number % 5 == 4
            folder = self.device(fresh)
            total = self.undisturbed["size" if fresh else "downloaded"]
            self.server.sent, self.server.budget = 0, self.chance.randrange(total)
            error = self.error(folder)
            self.server.budget = None
            row.add(f"cut {number}", self.in_place(folder), fresh, bool(error), self.recovered(folder))
            shutil.rmtree(folder)
        return row.told()

    def clocks(self) -> dict[str, Any]:
        row = Row("a clock that is wrong")
        for name, days in CLOCKS.items():
            for fresh in (False, True):
                folder = self.device(fresh)
                error = self.error(folder, now=lambda days=days: utc_now() + timedelta(days=days))
                named = not error or ("expired" in error and "clock is wrong" in error)
                found = self.in_place(folder)
                after = self.recovered(folder) or ("" if named and bool(error) == (days > 0) else f"it said: {error}")
                row.add(f"clock {name}", found, fresh, bool(error), after)
                shutil.rmtree(folder)
        return row.told()

    def error(self, folder: Path, **options: Any) -> str:
        """Update in this process; return the refusal, "" where there was none."""
        try:
            self.client(folder, **options).update()
        except TapeoutError as error:
            return str(error)
        return ""

    def in_place(self, folder: Path) -> str:
        """Return "old", "new" or "nothing", or what is wrong with what is in place, judged without the client."""
        try:
            path = folder / os.readlink(folder / "current")
        except FileNotFoundError:
            return "nothing"
        data = (path / "manifest.json").read_bytes()
        found = hashlib.sha256(data).hexdigest()
        names = {self.digests[OLD]: "old", self.digests[NEW]: "new"}
        if found != path.name or found not in names:
            return f"an unknown bundle {found}"
        for file in json.loads(data)["files"]:
            if hashlib.sha256((path / file["path"]).read_bytes()).hexdigest() != file["sha256"]:
                return f"{file['path']} is damaged"
        return names[found]

    def recovered(self, folder: Path) -> str:
        """Run a plain update; return what is wrong after it, or ""."""
        error = self.error(folder)
        found = self.in_place(folder)
        left = [str(path) for path in folder.glob("partial/*")]
        return error or ("" if found == "new" and not left else f"afterwards: {found} in place, {left} left")


class Row:
    """The cases of one kind."""

    def __init__(self, name: str) -> None:
        self.name, self.found, self.disturbed, self.recovered = name, Counter[str](), 0, 0
        self.wrong: list[str] = []

    def add(self, case: str, found: str, fresh: bool, disturbed: bool, after: str) -> None:
        self.found[found] += 1
        self.disturbed += disturbed
        self.recovered += not after
        if found not in ("new", "nothing" if fresh else "old"):
            self.wrong.append(f"WRONG: {case}: in place was {found}")
        if after:
            self.wrong.append(f"WRONG: {case}: {after}")
        sys.stderr.write(f"{case}: {found} in place{'' if disturbed else ', undisturbed'}{after and f'; {after}'}\n")

    def told(self) -> dict[str, Any]:
        counts = {name: self.found[name] for name in ("old", "new", "nothing")}
        cases = sum(self.found.values())
        other = cases - sum(counts.values())
        told = {"name": self.name, "cases": cases, "disturbed": self.disturbed, **counts, "other": other}
        return {**told, "recovered": self.recovered, "wrong": self.wrong}


def repository(path: Path, megabytes: int, chance: random.Random) -> tuple[World, dict[str, str]]:
    """Return a published repository with both releases, and their digests."""
    (path / "model").mkdir()
    model = write_runnable(path / "model")
    files = contents(model)
    manifest = json.loads((model / "manifest.json").read_bytes())
    values = {"model": manifest["model"], "self_test": manifest["self_test"]}
    world, digests = make_world(path / "project"), {}
    weights, half = chance.randbytes(megabytes << 20), megabytes << 19
    for version in (OLD, NEW):
        changed = weights if version == OLD else weights[:half] + chance.randbytes(1000) + weights[half + 1000 :]
        more = {"weights.bin": changed, "other.bin": chance.randbytes(megabytes << 19)}
        released(world.project, version, DEVICE, weights=0, files={**files, **more}, **values)
        data = (world.project.artifacts / DEVICE / "manifest.json").read_bytes()
        digests[version] = hashlib.sha256(data).hexdigest()
    keys = {name: str(world.key(name)) for name in ("root-a", "release", "online", "stable")}
    words = ["--root-key", keys["root-a"], "--targets-key", keys["release"], "--online-key", keys["online"]]
    init = ["init", str(world.directory), *words, "--channel", f"stable={keys['stable']}", "--json"]
    with contextlib.redirect_stdout(io.StringIO()):
        initialised = init_repository(init, world.project)
    assert initialised == 0
    return world, digests


def refused(status: int, said: str) -> bool:
    """Say whether a command failed for want of room; raises where it failed otherwise."""
    if status == 0:
        return False
    assert status == 1 and ("disk is full" in said or "are free" in said), (status, said)
    return True


def table(rows: list[dict[str, Any]]) -> str:
    keys = ("cases", "disturbed", "old", "new", "nothing", "other", "recovered")
    lines = [f"{'':<38}" + "".join(f"{key:>11}" for key in keys)]
    lines += [f"{row['name']:<38}" + "".join(f"{row[key]:>11}" for key in keys) for row in rows]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--disks", type=int, default=10)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=8, help="of the larger file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
