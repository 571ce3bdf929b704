"""MLflow's model registry follows the history: real MLflow, on sqlite."""

import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.sealed import write_sealed
from stages.release.commands.release import release
from stages.release.history.decision import Decision
from stages.release.history.entry import FIRST, Entry
from stages.release.history.following import Progress, follow, kept_at, log_of, progress_of
from stages.release.history.promoting import promotion
from stages.release.history.registry import reconcile, wanted
from stages.release.history.reverting import retirement
from stages.release.history.state import State, state_of
from stages.release.history.syncing import LINGER
from stages.release.layout import Releases
from tests.stages.release.projects import entries_of, key_file, make_project, released, state

ROOT = Path(__file__).parents[3]
URI = "sqlite:///mlflow.db"


def run(project, *words):
    assert release([*words, "--key", str(key_file(project))], project) == 0


def client_of(project, uri=None):
    from mlflow.tracking import MlflowClient

    uri = uri or f"sqlite:///{project.root / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def seen(client):
    """{model: {alias: the release's version}}."""
    found = {}
    for model in client.search_registered_models():
        versions = {
            str(each.version): each.tags["version"] for each in client.search_model_versions(f"name='{model.name}'")
        }
        found[model.name] = {alias: versions[str(number)] for alias, number in model.aliases.items()}
    return found


def told(project):
    """The same, as the history has it."""
    return {
        name: {alias: each.version for alias, each in model.aliases.items()}
        for name, model in wanted(state(project)).items()
    }


def test_the_registry_follows_commands_in_a_burst_with_one_import_and_no_copies(tmp_path, capsys):
    project = make_project(tmp_path, "mlflow")
    for version in ("1.0.0", "1.1.0"):
        released(project, version, "pixel-8", "iphone-15")
    run(project, "promote", "1.0.0", "--channel", "stable")
    started = log_of(project).stat().st_ctime_ns
    run(project, "promote", "1.1.0", "--channel", "stable", "--share", "10", "--arm", "bold")
    client = client_of(project)
    bold = {"stable-champion": "1.0.0", "stable-bold": "1.1.0"}
    assert seen(client) == told(project) == {"demo.pixel-8": bold, "demo.iphone-15": bold}
    client.set_registered_model_alias("demo.pixel-8", "mine", "1")  # somebody's own
    client.delete_registered_model_alias("demo.iphone-15", "stable-champion")  # somebody's mistake
    run(project, "rollback", "--channel", "stable", "--device", "pixel-8")
    assert seen(client)["demo.pixel-8"] == {"stable-champion": "1.0.0", "mine": "1.0.0"}
    assert seen(client)["demo.iphone-15"] == bold
    run(project, "retire", "1.0.0", "--force", "--device", "iphone-15")
    assert log_of(project).stat().st_ctime_ns - started < 60e9 and not (project.root / "mlruns").exists()

    release_of = state(project).releases["1.0.0", "iphone-15"]
    model = client.get_model_version("demo.iphone-15", "1")
    assert model.source == f"tapeout:///sha256/{release_of.bundle}"
    assert model.tags == {
        "version": "1.0.0",
        "device": "iphone-15",
        "bundle": release_of.bundle,
        "archive": release_of.archive,
        "sequence": "1",
        "retired": "yes",
    }
    assert reconcile(client, state(project)) == 0  # nothing is left to do
    progress = progress_of(project)
    assert (progress.sequence, progress.digest) == (entries_of(project)[-1].sequence, entries_of(project)[-1].digest)
    assert release(["status"], project) == 0 and "MLflow     agrees" in capsys.readouterr().out
    shutil.rmtree(project.root)  # while the process waits for more
    end = time.monotonic() + LINGER + 1
    while time.monotonic() < end and not project.root.exists():
        time.sleep(0.1)
    assert not project.root.exists()


def test_nothing_to_register_starts_nothing(tmp_path, capsys):
    project = make_project(tmp_path, "mlflow")
    assert release(["status", "--sync"], project) == 0
    assert "MLflow     agrees" in capsys.readouterr().out and not log_of(project).exists()


def test_what_is_covered_needs_no_mlflow(tmp_path):
    project = make_project(tmp_path, "mlflow")
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        released(project, version)
    last = entries_of(project)[-1]
    write_sealed(kept_at(project), vars(Progress(URI, last.sequence, last.digest, attempt=1)))
    assert [follow(project, URI, sequence) for sequence in (1, 2, 3)] == ["", "", ""]
    assert not log_of(project).exists()
    path, known = Releases(project).history, progress_of(project)
    assert (
        known.covers(URI, 3, path) and not known.covers("http://elsewhere", 3, path) and not known.covers(URI, 4, path)
    )
    path.write_bytes(path.read_bytes().replace(b"eyJ", b"eyK"))  # another branch's history, as long
    assert not known.covers(URI, 3, path)


def states():
    """Two releases of two models for a phone; a channel each, with arms; one channel's arm has ended."""
    entries = []

    def add(decision):
        number = len(entries) + 1
        who = {"keyid": "k", "name": "k"}
        entry = Entry(number, FIRST, "2026-01-01T00:00:00Z", who, decision.action, **decision.to_entry())
        entries.append(replace(entry, digest=f"{number:064x}"))

    for number, (name, version) in enumerate([("small", "1"), ("large", "2")], 1):
        made = {"phone": {"bundle": f"{number:064x}", "archive": "ab" * 32}}
        add(Decision("create", name, version, ("phone",), (), releases=made))
    for version, channel, share in [("1", "stable", None), ("2", "stable", 10), ("1", "beta", None), ("2", "beta", 5)]:
        add(promotion(state_of(entries), version, channel, (), (9, FIRST), share=share, new_channel=True))
    add(promotion(state_of(entries), "2", "beta", (), (9, FIRST), share=0))
    return state_of(entries), state_of([*entries, *retired(entries)])


def retired(entries):
    decision = retirement(state_of(entries), "2", (), force=True)
    entry = Entry(8, FIRST, "2026-01-01T00:00:00Z", {"keyid": "k", "name": "k"}, "retire", **decision.to_entry())
    return [entry]


def test_what_the_registry_is_to_hold():
    before, after = states()
    found = wanted(before)
    assert {name: sorted(model.aliases) for name, model in found.items()} == {
        "small.phone": ["beta-champion", "stable-champion"],
        "large.phone": ["stable-challenger"],
    }
    own = {"beta-champion", "beta-challenger", "stable-champion", "stable-challenger"}
    assert all(model.own == own for model in found.values())
    assert wanted(after)["large.phone"].aliases == {} and wanted(State()) == {}


def test_a_registry_that_cannot_be_reached_does_not_hold_a_release_up(tmp_path, capsys):
    project = make_project(tmp_path, "mlflow")
    released(project, "1.0.0")
    nowhere = f"sqlite:///{project.root}/pyproject.toml/mlflow.db"  # in a file
    (project.conf / "tracking/mlflow.yaml").write_text(f"kind: mlflow\nuri: {nowhere}\nexperiment: x\n")
    run(project, "promote", "1.0.0", "--channel", "stable", "--json")
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert said["changed"] and said["registry"]["synced"] is False and nowhere in said["registry"]["why"]
    assert "MLflow's registry lags behind" in captured.err and "Traceback" not in captured.err
    assert state(project).channel("stable", "pixel-8").champion.version == "1.0.0"
    assert release(["status"], project) == 0
    assert f"is at entry 0 of 2: {nowhere}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_registry_that_has_lagged_catches_up(tmp_path, capsys):
    project = make_project(tmp_path, "mlflow")
    released(project, "1.0.0")
    run(project, "promote", "1.0.0", "--channel", "stable", "tracking.uri=http://127.0.0.1:9")
    assert "127.0.0.1" in capsys.readouterr().err
    assert release(["status"], project) == 0 and "is at entry 0 of 2" in capsys.readouterr().out
    assert release(["status", "--sync"], project) == 0 and "MLflow     agrees" in capsys.readouterr().out
    assert seen(client_of(project)) == told(project) == {"demo.pixel-8": {"stable-champion": "1.0.0"}}
    (project.root / "mlflow.db").unlink()
    assert release(["status", "--sync"], project) == 0 and "MLflow     agrees" in capsys.readouterr().out
    assert seen(client_of(project)) == told(project)


@pytest.mark.slow
def test_a_server_takes_releases_by_digest(tmp_path):
    """A tracking server checks a model version's source; a digest is none that it would want to see."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    store = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "kept"),
    ]
    words = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            project = make_project(tmp_path / "project", "mlflow")
            released(project, "1.0.0")
            run(project, "promote", "1.0.0", "--channel", "stable", f"tracking.uri={uri}")
            run(project, "promote", "1.0.0", "--channel", "beta", "--new-channel", f"tracking.uri={uri}")
            assert seen(client_of(project, uri)) == told(project)
            assert not (tmp_path / "kept").exists() or not any((tmp_path / "kept").iterdir())
        finally:
            server.terminate()


def wait_for(port):
    end = time.monotonic() + 90
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("no server")


@pytest.mark.slow
def test_four_projects_share_one_database(tmp_path):
    """Nobody's lock keeps these apart but the database's own."""
    projects = [make_project(tmp_path / name, "mlflow") for name in "abcd"]
    for project in projects:
        released(project, "1.0.0", name=project.root.name)
        uri = f"kind: mlflow\nuri: sqlite:///{tmp_path}/all.db\nexperiment: x\n"
        (project.conf / "tracking/mlflow.yaml").write_text(uri)
    words = [shutil.which("tapeout", path=Path(sys.executable).parent), "release", "promote", "1.0.0", "--channel"]
    running = [
        subprocess.Popen(
            [*words, "stable", "--key", "release.key"], cwd=project.root, stderr=subprocess.PIPE, text=True
        )
        for project in projects
    ]
    assert [process.communicate()[1] for process in running] == [""] * 4
    found = seen(client_of(projects[0], f"sqlite:///{tmp_path}/all.db"))
    assert found == {f"{name}.pixel-8": {"stable-champion": "1.0.0"} for name in "abcd"}
