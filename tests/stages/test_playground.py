"""`tapeout playground` without a browser: what it refuses, the static folder, and its server."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ConfigError, StageError, StoreError, VerificationError
from pipelines.project import Project
from stages.data.asked import write_asked
from stages.data.example import Questions
from stages.data.source import question_source
from stages.evaluation.names import TASKS
from stages.playground.bundles import labels_of, shown_bundles
from stages.playground.command import playground
from stages.playground.questions import MOST, select
from stages.playground.server import POLICY, Server, serving
from stages.playground.site import replacing, write_site
from stages.release.manifest import write_manifest
from tests.stages.release.bundles import make_bundle

ROOT = Path(__file__).parents[2]
WEB = {"name": "web-wasm", "title": "Web (WebAssembly)", "execution_providers": ["wasm"]}
PAGE = ("index.html", "style.css", "icon.svg")


def web_bundle(folder: Path, device: dict[str, Any] | None = None, **values: Any) -> None:
    """A bundle whose device says more than its name."""
    manifest = make_bundle(folder, **values)
    write_manifest(folder, {**manifest.value, "device": device or WEB})


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for the built SDK: the page as it is, and scripts of a few bytes."""
    folder = tmp_path_factory.mktemp("dist")
    (folder / "playground").mkdir()
    for name in PAGE:
        (folder / "playground" / name).write_bytes((ROOT / "mobile/web/playground" / name).read_bytes())
    for name in ("app.js", "sw.js"):
        (folder / "playground" / name).write_text(f"// {name}")
    for name in ("worker.js", "index.d.ts", ".built", "ort.mjs", "ort.wasm", "ort-threaded.asyncify.wasm"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, dist: Path) -> Path:
    root = tmp_path_factory.mktemp("site")
    for number, name in enumerate(("fp16", "int4")):
        web_bundle(root / name / "web-wasm", seed=number)
    (root / "fp16" / "web-wasm.model.sig").write_text("{}")
    bundles = shown_bundles([root / "fp16" / "web-wasm", root / "int4" / "web-wasm"])
    write_site(root / "site", dist, bundles, select(Project(root), None))
    return root / "site"


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[Server]:
    with serving(site, 0) as served:
        yield served


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response, response.read()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"runtime": "coreml", "device": {"name": "iphone-15-pro"}}, "is for coreml (iphone-15-pro)"),
        ({"device": {"name": "pixel-8", "execution_providers": ["QNN", "XNNPACK"]}}, "pixel-8 (QNN, XNNPACK)"),
        ({"device": {"name": "pixel-8"}}, "no execution provider"),
        ({"model": {"runtime": "onnxruntime", "files": {"encoder": "encoder.onnx"}}}, "no language model"),
        (
            {
                "device": WEB,
                "model": {
                    "runtime": "onnxruntime",
                    "files": {"decoder": "decoder.onnx"},
                    "functions": {
                        "decoder": {
                            "file": "decoder.onnx",
                            "inputs": {"image_features": {"shape": [1], "dtype": "float32", "optional": True}},
                            "outputs": {},
                        }
                    },
                },
            },
            "the input image_features of its decoder is optional",
        ),
    ],
)
def test_what_no_browser_runs_is_refused(values: Any, words: str, tmp_path: Path, project: Project) -> None:
    web_bundle(tmp_path / "bundle", **values)
    with pytest.raises(ConfigError) as error:
        playground([str(tmp_path / "bundle")], project)
    assert words in error.value.message and "tapeout build 'device=[web-wasm]'" in error.value.hint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--no-serve"], "--no-serve without --out"),
        (["--out", "x", "--no-serve", "--open"], "--port and --open are for what is served"),
        (["--out", "x", "--no-serve", "--port", "1"], "--port and --open are for what is served"),
        (["--port", "70000"], "a port is 0 to 65535"),
        (["--port", "many"], "invalid int value"),
        (["--prot", "1"], "unrecognized arguments: --prot"),
        (["nowhere"], "nowhere is no folder"),
        ([], "artifacts/web-wasm is no folder"),
        (["--out", "missing/site"], "missing is no folder"),
    ],
)
def test_wrong_use(words: list[str], said: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    with pytest.raises(ConfigError, match=None) as error:
        playground(words, project)
    assert said in error.value.message and error.value.exit_status == 2
    assert list(project.root.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, project: Project) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "site.json").write_text('["playground"]')
    for name in ("mine", "link", "other", "mine/thesis.txt"):
        with pytest.raises(ConfigError, match="--out"):
            playground(["--out", str(tmp_path / name), "--no-serve"], project)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    web_bundle(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="lies in the bundle"):
        playground([str(tmp_path / "bundle"), "--out", str(tmp_path / "bundle" / "site"), "--no-serve"], project)
    assert not (tmp_path / "bundle" / "site").exists()


def test_a_damaged_bundle_goes_nowhere(tmp_path: Path, dist: Path) -> None:
    """The playground that was there stays, and nothing is left beside it."""
    out = tmp_path / "site"
    web_bundle(tmp_path / "bundle")
    selection = select(Project(tmp_path), None)
    with replacing(out, []) as new:
        write_site(new, dist, shown_bundles([tmp_path / "bundle"]), selection)
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    data = bytearray((tmp_path / "bundle" / "decoder.onnx.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "bundle" / "decoder.onnx.data").write_bytes(data)
    with pytest.raises(VerificationError, match=r"decoder\.onnx\.data: its sha256 is"), replacing(out, []) as new:
        write_site(new, dist, shown_bundles([tmp_path / "bundle"]), selection)
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "site"]
    (tmp_path / "bundle" / "stray").write_text("")
    with pytest.raises(VerificationError, match="not in the manifest"):
        shown_bundles([tmp_path / "bundle"])


def test_a_full_disk_is_told(tmp_path: Path, dist: Path) -> None:
    """A limit on the size of files stands for it: the same error of the system, another number."""
    web_bundle(tmp_path / "bundle", weights=400_000)
    selection = select(Project(tmp_path), None)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with pytest.raises(StoreError, match="/site cannot be written"), replacing(tmp_path / "site", []) as new:
            write_site(new, dist, shown_bundles([tmp_path / "bundle"]), selection)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, held)
    assert not (tmp_path / "site").exists()


def test_what_lies_in_the_folder(site: Path) -> None:
    described = json.loads((site / "site.json").read_text())["bundles"]
    assert [each["label"] for each in described] == ["fp16", "int4"]
    assert [each["url"] for each in described] == ["bundles/web-wasm/", "bundles/web-wasm.2/"]
    for each in described:
        manifest = site / each["url"] / "manifest.json"
        assert hashlib.sha256(manifest.read_bytes()).hexdigest() == each["digest"]
        for file in json.loads(manifest.read_text())["files"]:
            data = (site / each["url"] / file["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
    assert (site / "bundles" / "web-wasm.model.sig").read_text() == "{}"
    assert sorted(path.name for path in (site / "sdk").iterdir()) == sorted(
        ["worker.js", "ort.mjs", "ort.wasm", "ort-threaded.asyncify.wasm"]
    )
    listed = json.loads((site / "files.js").read_text().removeprefix("self.site = ").rstrip(";\n"))
    there = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert set(listed["files"]) | set(listed["webgpu"]) == {
        "./",
        *(name for name in there if not name.startswith("bundles/") and name not in ("sw.js", "files.js")),
    }
    assert listed["webgpu"] == ["sdk/ort-threaded.asyncify.wasm"]


def test_the_list_changes_with_any_file(site: Path, tmp_path: Path, dist: Path) -> None:
    web_bundle(tmp_path / "bundle")
    (tmp_path / "dist").mkdir()
    subprocess.run(["cp", "-r", f"{dist}/.", str(tmp_path / "dist")], check=True)
    selection, bundles = select(Project(tmp_path), None), shown_bundles([tmp_path / "bundle"])
    lists = []
    for name in ("one", "same", "other"):
        if name == "other":
            (tmp_path / "dist" / "worker.js").write_text("// newer")
        write_site(tmp_path / name, tmp_path / "dist", bundles, selection)
        lists.append((tmp_path / name / "files.js").read_text())
    assert lists[0] == lists[1] != lists[2]


def test_the_questions(site: Path) -> None:
    found = json.loads((site / "questions.json").read_text())
    assert found["source"] == "the procedural validation set"
    assert {each["task"] for each in found["questions"]} == set(TASKS)
    assert 50 <= len(found["questions"]) <= MOST
    drawn = question_source().by_task(7, 23)
    expected = [example for place, example in enumerate(drawn) if place % 7 < 6]  # as many of each task
    for each, example in zip(found["questions"], expected, strict=True):
        assert (each["question"], each["answers"]) == (example.question, list(example.answers))
        assert (each["task"], each["metric"]) == (example.task, example.metric)
        assert (np.asarray(Image.open(site / each["image"])) == example.image).all()


def test_the_questions_of_the_last_build(project: Project, tmp_path: Path) -> None:
    examples = question_source().by_task(20, 5)
    baseline, other = (project.artifacts / "build" / name for name in ("baseline", "evaluate-web-wasm"))
    for folder, flipped in ((baseline, ()), (other, (19, 25))):
        folder.mkdir(parents=True)
        lines = [
            {"question": each.question, "answer": each.answer, "score": 0.0 if place in flipped else 1.0}
            for place, each in enumerate(examples)
        ]
        (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_asked(baseline, Questions(examples, examples))
    selection = select(project, None)
    assert selection.source == "the validation set of the last build"
    assert len(selection.offered) == 54
    changed = [each.example.question for each in selection.offered if each.changed]
    assert changed == [examples[19].question, examples[25].question]
    assert all(each.original == each.example.answer for each in selection.offered)
    (baseline / "answers.jsonl").write_text("{broken")
    with pytest.raises(StageError, match="cannot be read"):
        select(project, None)
    (baseline / "answers.jsonl").unlink()
    assert select(project, None).source == "the procedural validation set"


def test_questions_of_ones_own(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no questions\.jsonl"):
        select(project, tmp_path)
    Image.new("RGB", (40, 20), (200, 30, 30)).save(tmp_path / "red.jpg", exif=turned())
    line = {"image": "red.jpg", "question": "which colour?", "answers": ["red", "crimson"], "task": "vqa"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"question": "warm?"}) + "\n")
    (tmp_path / "site").mkdir()
    from stages.playground.questions import write_questions

    write_questions(tmp_path / "site", select(project, tmp_path))
    first, second = json.loads((tmp_path / "site" / "questions.json").read_text())["questions"]
    assert (first["metric"], first["answers"]) == ("exact", ["red", "crimson"])
    assert first["image"] == second["image"] and len(list((tmp_path / "site" / "questions").iterdir())) == 1
    assert Image.open(tmp_path / "site" / first["image"]).size == (20, 40)  # upright
    (tmp_path / "questions.jsonl").write_text(json.dumps(line | {"image": "gone.jpg"}) + "\n")
    with pytest.raises(StageError, match=r"gone\.jpg"):
        select(project, tmp_path)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return exif


def test_labels_tell_bundles_apart() -> None:
    paths = [Path("/a/int4/web-wasm"), Path("/a/fp16/web-wasm"), Path("/a/web-wasm"), Path("/b/web-webgpu")]
    assert labels_of(paths[:1]) == ["web-wasm"]
    assert labels_of(paths[2:]) == ["web-wasm", "web-webgpu"]
    assert labels_of(paths[:2]) == ["int4", "fp16"]
    assert labels_of([paths[0], paths[0]]) == ["web-wasm 1", "web-wasm 2"]


def test_the_page_and_the_server_have_one_policy() -> None:
    """frame-ancestors has no meaning in a page's own."""
    text = (ROOT / "mobile/web/playground/index.html").read_text()
    own = POLICY.removesuffix("; frame-ancestors 'none'")
    assert own != POLICY and f'content="{own}"' in text
    assert "http:" not in POLICY and "https:" not in POLICY and "*" not in POLICY and "unsafe-inline" not in POLICY


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html?a=b", "text/html; charset=utf-8"),
        ("/sdk/ort.mjs", "text/javascript; charset=utf-8"),
        ("/sdk/ort.wasm", "application/wasm"),
        ("/questions/0.png", "image/png"),
        ("/bundles/web-wasm/decoder.onnx.data", "application/octet-stream"),
        ("/site%2ejson", "application/json"),
    ],
)
def test_types_and_headers(server: Server, site: Path, path: str, kind: str) -> None:
    response, body = ask(server, path)
    assert response.status == 200 and response.headers["Content-Type"] == kind
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert response.headers["Content-Security-Policy"] == POLICY
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["ETag"] == f'"{hashlib.sha256(body).hexdigest()}"'
    head, nothing = ask(server, path, "HEAD")
    assert head.status == 200 and nothing == b""
    assert head.headers["Content-Length"] == str(len(body)) == response.headers["Content-Length"]
    assert ask(server, path, If_None_Match=response.headers["ETag"])[0].status == 304
    assert ask(server, path, If_None_Match='"other"')[1] == body


@pytest.mark.parametrize(
    ("wanted", "status", "first", "last"),
    [
        ("bytes=0-9", 206, 0, 9),
        ("bytes=49990-", 206, 49_990, 49_999),
        ("bytes=-5", 206, 49_995, 49_999),
        ("bytes=-999999", 206, 0, 49_999),
        ("bytes=49999-99999", 206, 49_999, 49_999),
        ("bytes=50000-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=9-3", 200, 0, 49_999),
        ("bytes=0-1,5-6", 200, 0, 49_999),
        ("lines=0-1", 200, 0, 49_999),
        ("bytes=-", 200, 0, 49_999),
        (f"bytes={'9' * 5000}-", 200, 0, 49_999),
        (f"bytes=0-{'9' * 5000}", 200, 0, 49_999),
    ],
)
def test_ranges(server: Server, site: Path, wanted: str, status: int, first: int, last: int) -> None:
    data = (site / "bundles/web-wasm/decoder.onnx.data").read_bytes()
    path = "/bundles/web-wasm/decoder.onnx.data"
    response, body = ask(server, path, Range=wanted)
    assert response.status == status
    if status == 416:
        assert response.headers["Content-Range"] == "bytes */50000"
        return
    assert body == data[first : last + 1]
    assert response.headers["Content-Range"] == (f"bytes {first}-{last}/50000" if status == 206 else None)
    etag = response.headers["ETag"]
    assert ask(server, path, Range=wanted, If_Range=etag)[0].status == status
    assert ask(server, path, Range=wanted, If_Range='"of another version"')[1] == data


@pytest.mark.parametrize(
    "path",
    [
        "/../secret",
        "/%2e%2e/secret",
        "/sdk/../../secret",
        "/sdk/%2e%2e%2f%2e%2e%2fsecret",
        "/..%5csecret",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/link",
        "/folder/secret",
        "/sdk",
        "/sdk/",
        "/%00",
        "/%ff",
        "/" + "x" * 5000,
        "/nothing",
    ],
)
def test_nothing_outside_is_served(server: Server, site: Path, path: str) -> None:
    (site.parent / "secret").write_text("secret")
    for name, target in (("link", site.parent / "secret"), ("folder", site.parent)):
        if not (site / name).is_symlink():
            (site / name).symlink_to(target)
    response, body = ask(server, path)
    assert response.status == 404 and b"secret" not in body


def test_names_of_other_machines_and_other_methods_are_refused(server: Server) -> None:
    assert ask(server, "/", Host="attacker.example")[0].status == 421
    assert ask(server, "/", Host="attacker.example:80")[0].status == 421
    assert ask(server, "/", Host="localhost:1234")[0].status == 200
    for method in ("POST", "PUT", "DELETE"):
        assert ask(server, "/", method)[0].status == 501


def test_a_browser_that_is_gone_is_not_told_of(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (ConnectionResetError("by peer"), ValueError("a slip")):
        try:
            raise error
        except type(error):
            server.handle_error(None, ("127.0.0.1", 1))
    said = capsys.readouterr().err
    assert "a slip" in said and "by peer" not in said


def test_a_port_that_is_taken(site: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: "), serving(site, port):
            pass


def test_ctrl_c_ends_it_well_and_its_folder_is_gone(tmp_path: Path, dist: Path) -> None:
    web_bundle(tmp_path / "artifacts" / "web-wasm")
    script = (
        "import signal, sys; from pathlib import Path; import stages.playground.sdk as sdk\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background jobs ignore
        f"sdk.built_sdk = lambda: Path({str(dist)!r})\n"
        "from stages.playground.command import playground; from pipelines.project import Project\n"
        f"sys.exit(playground(['--port', '0'], Project(Path({str(tmp_path)!r}))))"
    )
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:") and "Ctrl-C ends it" in line
        assert len(list((tmp_path / "temporary").iterdir())) == 1
        connection = HTTPConnection(line.split("/")[2], timeout=10)
        connection.request("GET", "/site.json")
        assert json.loads(connection.getresponse().read())["bundles"][0]["label"] == "web-wasm"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert list((tmp_path / "temporary").iterdir()) == []
