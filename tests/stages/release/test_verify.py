"""`tapeout verify BUNDLE`: what it says of whole bundles, damaged ones, and those that nobody trusted has signed."""

import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.errors import ConfigError, TapeoutError, VerificationError
from pipelines.project import Project
from stages.release.bundles.archive import pack
from stages.release.commands.sign import sign as sign_command
from stages.release.commands.verify import verify as command
from stages.release.layout import sidecars
from stages.release.manifest import read
from stages.release.signing.keyless import Identity, sigstore_path
from stages.release.signing.signing import sign_bundle
from stages.release.signing.statement import check_shape, check_statement
from stages.release.signing.verifying import UNSIGNED, damaged, verify_bundle
from tests.stages.release.archives import entries, joined
from tests.stages.release.bundles import make_bundle
from tests.stages.release.signed import COMMIT, key, key_file, signed, statement_of

PUBLIC = ["--key", str(key_file().with_name("release.pub"))]


def run(words: list[str], project: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    status = command([*words, "--json"], Project(project))
    return status, json.loads(capsys.readouterr().out)


def trust(project: Path, *names: str) -> None:
    (project / "releases/keys").mkdir(parents=True)
    for name in names:
        key(name)
        shutil.copy(key_file(name).with_name(f"{name}.pub"), project / "releases/keys")


@pytest.mark.parametrize("archived", [False, True])
def test_a_bundle_that_a_trusted_key_has_signed(
    archived: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = signed(tmp_path / "pixel-8", archived=archived)
    status, told = run([str(path), *PUBLIC], tmp_path, capsys)
    manifest = read(tmp_path / "pixel-8")
    assert status == 0 and told["verified"] and told["bundle"] == manifest.digest and told["notes"] == []
    assert told["signed_by"] == [{"keyid": key().public.keyid, "name": "release"}]
    assert told["source"] == {"commit": COMMIT, "dirty": False, "changed": []}
    assert told["builder"] == "urn:tapeout:builder:local"
    assert command([str(path), *PUBLIC], Project(tmp_path)) == 0
    out = capsys.readouterr().out
    for said in (
        "demo 1.0.0 for pixel-8: every file is as the manifest says",
        manifest.digest,
        f"release, key id {key().public.keyid}",
        f"commit {COMMIT}, clean",
        "SLSA build level 1",
    ):
        assert said in out


def test_sources_that_were_never_committed_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = signed(tmp_path / "pixel-8")
    sign_bundle(path, [key()], statement_of(read(path), dirty=True))
    assert command([str(path), *PUBLIC], Project(tmp_path)) == 0
    assert f"commit {COMMIT}, DIRTY: never committed were stages/load.py" in capsys.readouterr().out


def test_keys_of_the_project_are_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = signed(tmp_path / "pixel-8")
    trust(tmp_path, "third", "release")
    status, told = run([str(path)], tmp_path, capsys)
    assert status == 0 and [each["name"] for each in told["signed_by"]] == ["release"]


@pytest.mark.parametrize("trusted", [[], ["third"]])
def test_signed_by_nobody_who_is_trusted(
    trusted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = signed(tmp_path / "pixel-8")
    trust(tmp_path, *trusted)
    for words in ([], ["--unsigned"]):
        status, told = run([str(path), *words], tmp_path, capsys)
        assert status == 1 and not told["verified"]
        assert f"signed by no key that is trusted, but by {key().public.keyid}" in told["error"]
        assert f"trusted: {trusted[0] if trusted else 'none'}" in told["hint"]
    (tmp_path / "pixel-8.provenance.json").unlink()
    status, told = run([str(path)], tmp_path, capsys)
    assert status == 1 and "model.sig: signed by no key that is trusted" in told["error"]


@pytest.mark.parametrize("archived", [False, True])
def test_unsigned(archived: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path / "pixel-8")
    path = tmp_path / "pixel-8"
    if archived:
        path = tmp_path / "pixel-8.tar"
        pack(tmp_path / "pixel-8", path)
    status, told = run([str(path)], tmp_path, capsys)
    assert status == 0 and told["signed_by"] == [] and UNSIGNED in told["notes"]
    assert told["verified"] is False and told["files"] == "as the manifest says" and told["damaged"] == []
    assert command([str(path)], Project(tmp_path)) == 0
    assert "NOT signed: every file is as the manifest says, but who made it is not proven" in capsys.readouterr().out
    trust(tmp_path, "release")
    status, told = run([str(path)], tmp_path, capsys)
    assert status == 1 and "nobody signed it" in told["error"] and "--unsigned" in told["hint"]
    status, told = run([str(path), "--unsigned"], tmp_path, capsys)
    assert status == 0 and UNSIGNED in told["notes"] and told["verified"] is False


def test_without_provenance_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = signed(tmp_path / "pixel-8")
    sign_bundle(path, [key()], None)
    status, told = run([str(path), *PUBLIC], tmp_path, capsys)
    assert status == 0 and told["notes"] == ["no provenance: what it was built from is not known"]
    with pytest.raises(ConfigError, match="has no provenance"):
        command([str(path), *PUBLIC, "--rebuild"], Project(tmp_path))


def test_every_damaged_file_of_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = signed(tmp_path / "pixel-8", files={"graphs/main.bin": b"12345"})
    data = (path / "decoder.onnx.data").read_bytes()
    (path / "decoder.onnx.data").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (path / "encoder.onnx").write_bytes(b"longer than it was before")
    (path / "graphs/main.bin").unlink()
    (path / "graphs/main.bin").mkdir()
    (path / "more\x1b[2J").touch()
    (path / "link").symlink_to("/etc/passwd")
    (path / "tokenizer.json").unlink()
    os.mkfifo(path / "tokenizer.json")
    expected = [
        (f"{path}/decoder.onnx.data", f"its sha256 is {hashlib.sha256(data[:-1] + bytes([data[-1] ^ 1])).hexdigest()}"),
        (f"{path}/encoder.onnx", "it has 25 bytes, and the manifest says 20"),
        (f"{path}/graphs/main.bin", "missing"),
        (f"{path}/link", "a symbolic link; only plain files belong into a bundle"),
        (f"{path}/more\\x1b[2J", "not in the manifest"),
        (f"{path}/tokenizer.json", "a device, a FIFO or a socket; only plain files belong into a bundle"),
    ]
    status, told = run([str(path), *PUBLIC], tmp_path, capsys)
    assert status == 1 and [tuple(line.split(": ", 1)) for line in told["damaged"]] == [
        (name, found if not found.startswith("its sha256") else told["damaged"][0].split(": ", 1)[1])
        for name, found in expected
    ]
    assert told["damaged"][0].startswith(": ".join(expected[0])) and [*damaged(path)] == told["damaged"]
    with pytest.raises(VerificationError) as found:
        command([str(path), *PUBLIC], Project(tmp_path))
    assert all(line in found.value.message for line in told["damaged"])


@pytest.mark.parametrize("weights", [3000, 5 << 20])  # of so many bytes, several files are hashed at once
def test_every_damaged_file_of_an_archive_is_named(
    weights: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = signed(tmp_path / "pixel-8", archived=True, weights=weights)
    assert verify_bundle(path, [key().public]).signed_by
    parts = entries(path)
    for number in (2, 3):
        parts[number] = (parts[number][0], bytes([parts[number][1][0] ^ 1]) + parts[number][1][1:])
    path.write_bytes(joined(parts))
    status, told = run([str(path), *PUBLIC], tmp_path, capsys)
    assert status == 1 and [line.split(": ")[1] for line in told["damaged"]] == ["decoder.onnx", "decoder.onnx.data"]


@pytest.mark.parametrize(
    "name", ["../outside", "graph/../../outside", "/etc/hostname", "./encoder.onnx", "a//b", "a\\b"]
)
def test_nothing_outside_the_bundle_is_read(name: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    (tmp_path / "outside").write_text("secret")
    value = json.loads((tmp_path / "bundle/manifest.json").read_text())
    value["files"].append({"path": name, "size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()})
    (tmp_path / "bundle/manifest.json").write_text(json.dumps(value))
    with pytest.raises(VerificationError) as found:
        verify_bundle(tmp_path / "bundle", [], require_signature=False)
    assert f"lists {name!r}, which is no path inside the bundle" in found.value.message


def test_a_folder_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", files={"graphs/main.bin": b"1"})
    shutil.move(tmp_path / "bundle/graphs", tmp_path / "graphs")
    (tmp_path / "bundle/graphs").symlink_to(tmp_path / "graphs")
    with pytest.raises(VerificationError) as found:
        verify_bundle(tmp_path / "bundle", [], require_signature=False)
    assert "graphs: a symbolic link" in found.value.message and "main.bin: missing" in found.value.message


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda path: (path / "manifest.json").unlink(), ConfigError, "manifest.json cannot be read: No such file"),
        (lambda path: shutil.rmtree(path), ConfigError, "cannot be read: No such file"),
        (lambda path: fifo(path / "manifest.json"), VerificationError, "manifest.json: no plain file"),
        (lambda path: link(path / "manifest.json"), VerificationError, "manifest.json: no plain file"),
        (lambda path: fifo(sidecars(path).provenance), VerificationError, "cannot be read: not a plain file"),
        (lambda path: link(sidecars(path).signature), VerificationError, "cannot be read: Too many levels"),
        (
            lambda path: sidecars(path).provenance.write_bytes(b" " * (17 << 20)),
            VerificationError,
            "an envelope of more",
        ),
        (
            lambda path: sidecars(path).signature.write_bytes(b" " * (17 << 20)),
            VerificationError,
            "a signature of more",
        ),
    ],
)
def test_what_cannot_be_read(
    spoil: Callable[[Path], object], error: type[TapeoutError], said: str, tmp_path: Path
) -> None:
    """None of it makes the verification wait, or read without end."""
    path = signed(tmp_path / "pixel-8")
    spoil(path)
    with pytest.raises(error) as found:
        verify_bundle(path, [key().public])
    assert said in found.value.message


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def test_folders_deeper_than_python_recurses(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    deep = tmp_path.joinpath("bundle", *["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "x").touch()
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    try:
        with pytest.raises(VerificationError, match="x: not in the manifest"):
            verify_bundle(tmp_path / "bundle", [], require_signature=False)
    finally:
        sys.setrecursionlimit(before)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 0, 1 (refused) and 2 (wrong use)."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    signed(tmp_path / "pixel-8")
    assert main(["verify", "pixel-8", *PUBLIC]) == 0
    assert main(["verify", "pixel-8"]) == 1
    assert main(["verify", "absent"]) == 2
    assert main(["verify", "pixel-8", "--kye", "x"]) == 2
    assert main(["verify", "--json"]) == 0  # of an empty store and workspace
    assert main(["--json", "verify"]) == 2
    err = capsys.readouterr().err
    assert "did you mean '--key'?" in err and "cannot take --json before its name" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--unsigned"], "--unsigned is for a BUNDLE"),
        (["x", "--identity", "me@example.com"], "--identity and --issuer go together"),
        (["x", "--source", "y"], "are for --rebuild"),
        (["x", "y"], "unrecognized arguments: y"),
        (["x", "--key", "absent.pub"], "absent.pub: the key cannot be read"),
    ],
)
def test_mistakes(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        command(words, Project(tmp_path))
    assert said in str(found.value)


# Provenance: (what is made of a right one, what is said of it).
def deeper(*path: str | int) -> Callable[[Any, Any], Any]:
    """Return what sets a member of a statement."""

    def put(value: Any, other: Any) -> Any:
        for part in path[:-1]:
            value = value[part]
        value[path[-1]] = other

    return put


DEFINITION, RUN = ("predicate", "buildDefinition"), ("predicate", "runDetails")
SHAPES: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("_type",), "x", "its _type must be"),
    (("predicateType",), "https://slsa.dev/provenance/v0.2", "its predicateType must be"),
    (("subject",), [], "its one subject"),
    (("subject",), [1, 2], "its one subject"),
    (("subject", 0, "name"), "other.json", "its one subject"),
    (("subject", 0, "digest"), {"sha512": "0"}, "its one subject"),
    (("subject", 0, "digest", "sha256"), "0" * 63, "its one subject"),
    (("predicate",), [], "buildDefinition.buildType"),
    ((*DEFINITION, "buildType"), None, "buildDefinition.buildType"),
    ((*DEFINITION, "externalParameters"), [], "externalParameters.name must be text"),
    ((*DEFINITION, "externalParameters", "version"), 1, "externalParameters.version must be text"),
    ((*DEFINITION, "externalParameters", "overrides"), "x", "overrides must be a list of texts"),
    ((*DEFINITION, "externalParameters", "config_dirs"), [1], "config_dirs must be a list of texts"),
    ((*DEFINITION, "resolvedDependencies"), None, "resolvedDependencies is malformed"),
    ((*DEFINITION, "resolvedDependencies"), {}, "resolvedDependencies is malformed"),
    ((*DEFINITION, "resolvedDependencies", 0), "x", "resolvedDependencies is malformed"),
    ((*DEFINITION, "resolvedDependencies", 0, "annotations"), [], "resolvedDependencies is malformed"),
    ((*DEFINITION, "resolvedDependencies", 0, "annotations"), {"changed": 5}, "resolvedDependencies is malformed"),
    ((*DEFINITION, "resolvedDependencies", 0, "digest", "gitCommit"), "--output=x", "a gitCommit must be"),
    ((*RUN, "builder"), "x", "runDetails.builder.id"),
    ((*RUN, "byproducts"), None, "runDetails.byproducts is malformed"),
    (RUN, {"builder": {"id": "x"}}, "runDetails.byproducts is malformed"),
    ((*RUN, "byproducts"), [{"name": "bundle"}], "runDetails.byproducts is malformed"),
    ((*RUN, "byproducts"), [], "its build made no bundle"),
    ((*RUN, "byproducts", 0, "digest", "sha256"), "0" * 64, f"its build made {'0' * 64}"),
]


@pytest.mark.parametrize(("path", "value", "said"), SHAPES)
def test_a_provenance_that_is_none(path: tuple[str | int, ...], value: Any, said: str, tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "pixel-8")
    statement = statement_of(manifest)
    check_statement(statement, manifest, "x")
    deeper(*path)(statement, value)
    with pytest.raises(VerificationError) as found:
        check_statement(statement, manifest, "x")
    assert said in found.value.message
    if not said.startswith("its build made"):
        with pytest.raises(VerificationError):
            check_shape(statement, "x")


# Keyless: what can be tried without Sigstore's services.
WHO = ["--identity", "me@example.com", "--issuer", "https://accounts.example.com"]


def test_without_sigstore_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = signed(tmp_path / "pixel-8")
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    with pytest.raises(ConfigError, match="takes sigstore") as found:
        command([str(path), *WHO], Project(tmp_path))
    assert "tapeout[keyless]" in found.value.hint


def test_without_an_identity_nothing_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sigstore")
    from stages.release.signing.keyless import sign_by_identity

    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("id.detect_credential", lambda audience: None)  # it would ask a cloud's own network
    manifest = make_bundle(tmp_path / "pixel-8")
    with pytest.raises(ConfigError, match="there is no identity here") as found:
        sign_by_identity(tmp_path / "pixel-8", statement_of(manifest))
    assert "--key" in found.value.hint and not sigstore_path(tmp_path / "pixel-8").exists()
    with pytest.raises(VerificationError, match="provenance of another bundle"):
        sign_by_identity(tmp_path / "pixel-8", statement_of(manifest, version="2.0.0"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "pixel-8.sigstore.json cannot be read: No such file"),
        (b"", "not JSON"),
        (b"\xff" * 100, "not JSON"),
        (b"{}", "no Sigstore bundle"),
        (b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}', "no Sigstore bundle"),
        (b'{"mediaType": 5, "verificationMaterial": []}', "no Sigstore bundle"),
    ],
)
def test_a_sigstore_bundle_that_is_none(data: bytes | None, said: str, tmp_path: Path) -> None:
    pytest.importorskip("sigstore")
    path = signed(tmp_path / "pixel-8")
    if data is not None:
        sigstore_path(path).write_bytes(data)
    with pytest.raises(VerificationError) as found:
        verify_bundle(path, [], identity=Identity("me@example.com", "https://accounts.example.com"))
    assert said in found.value.message and found.value.hint


def test_a_model_signature_is_no_sigstore_bundle_of_an_identity(tmp_path: Path) -> None:
    pytest.importorskip("sigstore")
    path = signed(tmp_path / "pixel-8")
    shutil.copy(sidecars(path).signature, sigstore_path(path))
    with pytest.raises(VerificationError, match="no Sigstore bundle"):
        command([str(path), *WHO], Project(tmp_path))


def test_an_identity_and_the_provenance_go_together(tmp_path: Path) -> None:
    make_bundle(tmp_path / "pixel-8")
    with pytest.raises(ConfigError, match="no build here has noted"):
        sign_command([str(tmp_path / "pixel-8"), "--identity"], Project(tmp_path))
