"""What the web SDK fetches, verifies and keeps, in a real browser: faults of the contract, and tabs that are closed.

A worker of the tests' own opens bundles by the SDK's store and reads every file instead of running it, so that made-up
weights do. mobile/web/tests/store.test.ts has the same logic without a browser, faster.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.release.manifest import Manifest, read
from tests.mobile.web import ROOT, Opener, Site, Tab, sdk_or_skip
from tests.stages.release.server import UNTOLD, Fault
from tests.stages.release.signed import key, signed

WEB = ROOT / "mobile" / "web"
WEIGHTS = "decoder.onnx.data"
SIZE = 1_500_000  # bytes of the weights
KINDS = ["opfs", "cache"]


@pytest.fixture(scope="session")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store alone, with a worker that tests it, in the SDK's place on the site."""
    esbuild = WEB / "node_modules" / ".bin" / "esbuild"
    if not esbuild.is_file():
        sdk_or_skip()  # installs it
    folder = tmp_path_factory.mktemp("store")
    for source, target in [("store.ts", "index.js"), ("store-worker.ts", "store-worker.js")]:
        words = [esbuild, WEB / "tests" / "pages" / source, "--bundle", "--format=esm", f"--outfile={folder / target}"]
        subprocess.run([*words, "--log-level=warning"], check=True)
    return folder


class Visitor:
    """A browser that opens the bundle at `url`, with storage of its own: each call of `open` is another visit."""

    def __init__(self, site: Site, opened: Opener) -> None:
        self.site, self.server, self.opened = site, site.server, opened
        self.tab = self.new_tab()
        self.url = f"{site.url}/b/"
        self.kind = "opfs"
        self.manifest: Manifest

    def new_tab(self) -> Tab:
        """Open another tab, in the same storage but for the first, and wait until it has its worker."""
        tab: Tab = self.opened(context=self.tab.page.context if hasattr(self, "tab") else None)
        tab.run("return 0")
        return tab

    def publish(self, version: str = "1.0.0", seed: int = 0, by: str = "release", **values: Any) -> Manifest:
        """Lay a signed bundle onto the server, in the place of another."""
        shutil.rmtree(self.site.folder / "b", ignore_errors=True)
        values = {"weights": SIZE, "device": "web-wasm", **values}
        signed(self.site.folder / "b", by=by, version=version, seed=seed, **values)
        self.manifest = read(self.site.folder / "b")
        return self.manifest

    def order(self, **options: Any) -> dict[str, Any]:
        return {"url": self.url, "keys": [pem()], "kind": self.kind, **options}

    def open(self, tab: Tab | None = None, **options: Any) -> dict[str, Any]:
        return (tab or self.tab).run("return await sdk.open(given[0])", self.order(**options))

    def opens(self, manifest: Manifest | None = None, **options: Any) -> dict[str, Any]:
        """Open, and hold every file against the bundle; return the outcome, with `told`, its events."""
        return right(self.open(**options), manifest or self.manifest)

    def fails(self, code: str, **options: Any) -> dict[str, Any]:
        return failed(self.open(**options), code)

    def cut(self, fault: Fault, size: int, **options: Any) -> dict[str, Any]:
        """Open; the server ends the connection after so many bytes, once the page has read them.

        What a page has not read yet, Chromium drops when a connection ends.
        """
        fault.hold = size
        self.server.faults = [fault]
        before = self.tab.run("return sdk.received")
        self.tab.run("globalThis.outcome = sdk.open(given[0])", self.order(**options))
        until(lambda: self.tab.run("return sdk.received") >= before + size)
        fault.go.set()
        return self.tab.run("return await globalThis.outcome")

    def cut_at_half(self, **options: Any) -> dict[str, Any]:
        """Open, and get half of the weights."""
        return self.cut(Fault(WEIGHTS, cut=SIZE // 2, times=1, **options), SIZE // 2)

    def kept(self) -> dict[str, int]:
        """{name: bytes} of what lies in the browser's storage."""
        found: dict[str, int] = {}
        for name, size in self.tab.run("return await sdk.list()"):
            found[name] = found.get(name, 0) + size
        return found

    def flip(self, name: str, offset: int = 700_000) -> None:
        assert self.tab.run("return await sdk.flip(...given)", name, offset) == 1

    def stop(self) -> None:
        """No request is answered any more, on no connection."""
        self.server.budget = 0

    def start(self) -> None:
        self.server.budget, self.server.sent, self.server.faults = None, 0, []
        self.server.requests.clear()

    def asked(self, path: str = f"b/{WEIGHTS}") -> list[str]:
        return [request for request in self.server.requests if request.partition(" ")[0] == path]


def pem(name: str = "release", kind: str = "p256") -> str:
    return key(name, kind).public.pem.decode()


def right(outcome: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    assert "opened" in outcome, outcome
    assert outcome["opened"]["digest"] == manifest.digest, outcome["events"]
    assert outcome["opened"]["read"] == {file.path: file.sha256 for file in manifest.files}
    return outcome


def failed(outcome: dict[str, Any], code: str) -> dict[str, Any]:
    assert outcome.get("error", {}).get("code") == code, outcome
    return outcome


def told(outcome: dict[str, Any]) -> list[str]:
    """Return the events but those of progress, each with its error's code."""
    events = [event for event in outcome["events"] if event["type"] != "progress"]
    return [f"{event['type']} {event.get('error', {}).get('code', '')}".strip() for event in events]


def weights_of(manifest: Manifest) -> str:
    return next(file.sha256 for file in manifest.files if file.path == WEIGHTS)


@pytest.fixture
def visitor(site: Site, opened: Opener) -> Visitor:
    site.server.tags = True
    return Visitor(site, opened)


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest, visitor: Visitor) -> Visitor:
    """A visitor that keeps bundles in OPFS, and one that has Cache Storage alone."""
    visitor.kind = request.param
    return visitor


def test_the_second_visit_answers_with_the_server_stopped(either: Visitor) -> None:
    manifest = either.publish()
    first = either.opens()
    assert first["opened"]["from"] == "network" and first["opened"]["fresh"]
    assert first["opened"]["timings"]["download_bytes"] == sum(file.size for file in manifest.files)
    last, whole = first["events"][-1], sum(file.size for file in manifest.files)
    assert (last["type"], last["loaded"], last["total"]) == ("progress", whole, whole)
    either.start()
    again = either.opens()
    assert (again["opened"]["from"], again["opened"]["fresh"], told(again)) == ("store", False, [])
    assert sorted(either.server.requests)[:3] == ["b.model.sig", "b.provenance.json", "b/manifest.json"]
    assert either.asked() == []
    either.stop()
    assert told(either.opens()) == ["offline network"]
    either.server.close()
    assert told(either.opens()) == ["offline network"]
    assert either.tab.asked == []


def test_in_a_browser_that_keeps_nothing_it_is_fetched_each_time(visitor: Visitor) -> None:
    visitor.kind = "memory"
    visitor.publish()
    for _ in range(2):
        outcome = visitor.opens()
        assert (outcome["opened"]["from"], told(outcome)) == ("network", ["fallback"])
    assert visitor.kept() == {}
    visitor.stop()
    visitor.fails("network")


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_flipped_bit_in_any_file_is_the_error_of_that_file(visitor: Visitor, place: str) -> None:
    manifest = visitor.publish()
    sidecars = ["b/manifest.json", "b.provenance.json", "b.model.sig"]
    for path in [*sidecars, *(f"b/{file.path}" for file in manifest.files)]:
        data = bytearray((visitor.site.folder / path).read_bytes())
        data[{"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]] ^= 1
        visitor.start()
        visitor.server.faults = [Fault(path, data=bytes(data))]
        code = visitor.open()["error"]["code"]
        expected = (
            ("manifest", "signature")
            if path in sidecars[:1]
            else ("signature",)
            if path in sidecars
            else ("integrity",)
        )
        assert code in expected, (path, code)
        assert len(visitor.asked(path)) == 2, "once more, past all caches"
        assert not any(name.startswith("state") for name in visitor.kept())
    visitor.start()
    visitor.opens()


def test_what_a_cache_has_spoiled_is_fetched_past_it(visitor: Visitor) -> None:
    visitor.publish()
    visitor.server.headers |= {"Cache-Control": "max-age=3600"}
    spoiled = bytearray((visitor.site.folder / "b" / "decoder.onnx").read_bytes())
    spoiled[3] ^= 1
    visitor.server.faults = [Fault("b/decoder.onnx", times=1, data=bytes(spoiled))]
    visitor.opens()
    assert len(visitor.asked("b/decoder.onnx")) == 2


def test_only_who_is_trusted_may_sign(visitor: Visitor) -> None:
    visitor.publish()
    visitor.fails("signature", keys=[pem("stranger")])
    visitor.fails("signature", keys=[])
    visitor.fails("signature", keys=["no key"])
    visitor.fails("signature", keys=[], digest="0" * 64)
    assert visitor.asked() == [] and visitor.kept() == {}
    visitor.opens(keys=[], digest=visitor.manifest.digest)
    visitor.opens(keys=[pem("stranger"), pem()])


def test_an_ed25519_signature_is_checked_by_the_browser(visitor: Visitor) -> None:
    key("edwards", "ed25519")
    manifest = visitor.publish(files={})
    from stages.release.signing.signing import sign_bundle
    from tests.stages.release.signed import statement_of

    sign_bundle(visitor.site.folder / "b", [key("edwards", "ed25519")], statement_of(manifest))
    visitor.fails("signature")
    visitor.opens(keys=[pem("edwards", "ed25519")])


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(WEIGHTS, length=SIZE + 1000, data=b"x" * 1000), "network"),
        (Fault(WEIGHTS, cut=SIZE // 2), "network"),
        (Fault(WEIGHTS, cut=SIZE // 2 + 1), "network"),
        (Fault(WEIGHTS, data=b"short"), "integrity"),
        (Fault(WEIGHTS, data=b""), "integrity"),
        (Fault(WEIGHTS, data=b"short", length=UNTOLD), "network"),
        (Fault(WEIGHTS, more=b"x"), "integrity"),
        (Fault(WEIGHTS, more=b"x" * (1 << 20)), "integrity"),
        (Fault(WEIGHTS, status=500), "network"),
        (Fault(WEIGHTS, status=404), "integrity"),
        (Fault("manifest.json", data=b" " * (5 << 20)), "manifest"),
        (Fault("manifest.json", status=404), "network"),
        (Fault("manifest.json", cut=500), "network"),
        (Fault("b.model.sig", data=b"x" * (17 << 20)), "signature"),
        (Fault("b.model.sig", status=503), "network"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else None,
)
def test_what_a_server_sends_wrong(visitor: Visitor, fault: Fault, code: str) -> None:
    visitor.publish()
    visitor.server.faults = [fault]
    visitor.fails(code)
    visitor.start()
    visitor.opens()


def test_a_server_that_dies_at_half_is_gone_on_with(either: Visitor) -> None:
    manifest = either.publish()
    half = manifest.size // 2
    either.start()
    either.server.budget = half
    failed(either.cut(Fault(WEIGHTS), half), "network")
    before = either.kept()[weights_of(manifest)]
    assert before > 0.6 * half, "what was fetched stays"
    sent = either.server.sent
    either.start()
    outcome = either.opens()
    (again,) = either.asked()
    assert again == f"b/{WEIGHTS} bytes={before}-"
    bodies = sent + either.server.sent
    assert bodies < 1.15 * manifest.size + 40_000, f"{bodies} bytes for {manifest.size}"
    assert outcome["opened"]["timings"]["download_bytes"] < manifest.size - before


def test_a_server_without_ranges_sends_it_anew(visitor: Visitor) -> None:
    visitor.publish()
    failed(visitor.cut_at_half(), "network")
    visitor.server.faults = [Fault(WEIGHTS, ranges=False)]
    visitor.opens()
    assert [bool(" " in request) for request in visitor.asked()] == [False, True]


@pytest.mark.parametrize("tags", [True, False])
def test_a_file_that_was_changed_between_is_fetched_from_its_beginning(visitor: Visitor, tags: bool) -> None:
    visitor.server.tags = tags
    visitor.publish()
    other = random.Random(5).randbytes(SIZE)
    failed(visitor.cut_at_half(data=other), "network")
    visitor.opens()
    assert len(visitor.asked()) == (2 if tags else 3)


def test_from_another_origin_without_a_preflight(visitor: Visitor) -> None:
    """127.0.0.1 and localhost are two origins. Range is let through without a question, If-Range would not be."""
    visitor.publish()
    visitor.server.headers |= {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    visitor.url = visitor.url.replace("127.0.0.1", "localhost")
    failed(visitor.cut_at_half(), "network")
    visitor.opens()
    assert len(visitor.asked()) == 2 and " bytes=" in visitor.asked()[1]


def test_a_redirect_to_another_origin_is_as_good(visitor: Visitor) -> None:
    visitor.publish()
    visitor.server.headers |= {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    target = f"{visitor.site.url.replace('127.0.0.1', 'localhost')}/b/manifest.json"
    allowed = {"Location": target, "Access-Control-Allow-Origin": "*"}
    visitor.server.faults = [Fault("b/manifest.json", times=1, status=302, headers=allowed)]
    visitor.opens()


def test_a_part_that_no_server_gives_is_asked_for_with_the_rest(visitor: Visitor) -> None:
    """If-Range would take a preflight where a redirect leads to another origin."""
    visitor.publish()
    visitor.server.headers |= {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    failed(visitor.cut_at_half(), "network")
    target = f"{visitor.site.url.replace('127.0.0.1', 'localhost')}/b/{WEIGHTS}"
    allowed = {"Location": target, "Access-Control-Allow-Origin": "*"}
    visitor.server.faults = [Fault(f"b/{WEIGHTS}", times=1, status=302, headers=allowed)]
    visitor.server.requests.clear()
    visitor.opens()
    ranged, whole = visitor.asked()
    assert " bytes=" in ranged and " bytes=" not in whole


def quota(tab: Tab, size: int | None) -> None:
    """Let the site keep so many bytes, None: as many as there is room for."""
    limits = {} if size is None else {"quotaSize": size}
    tab.page.context.new_cdp_session(tab.page).send(
        "Storage.overrideQuotaForOrigin", {"origin": tab.site.url, **limits}
    )


def test_full_storage_is_an_error_and_what_is_in_place_answers(either: Visitor) -> None:
    quota(either.tab, 1_000_000)
    either.publish()
    either.fails("storage")
    quota(either.tab, 2_500_000)
    first = either.manifest
    either.opens()
    either.publish("1.1.0", seed=2)
    assert told(either.opens(first)) == ["update_failed storage"]
    quota(either.tab, None)
    assert told(either.opens()) == ["update"]


def test_storage_that_is_full_in_the_middle(either: Visitor) -> None:
    """The browser's estimate was wrong: writing fails."""
    either.publish()
    quota(either.tab, 1_000_000)
    either.fails("storage", tab=told_room(either, 10**12))
    assert len(either.asked()) == 1
    quota(either.tab, None)
    either.opens()


def test_a_browser_that_says_it_has_no_room_is_believed_before_anything_is_fetched(visitor: Visitor) -> None:
    """Chromium's estimate is of the disk, whatever the quota; that of others is the site's."""
    visitor.publish()
    outcome = visitor.fails("storage", tab=told_room(visitor, 1_000_000))
    assert "lets this site keep 1000000" in outcome["error"]["message"]
    assert visitor.asked() == []


def told_room(visitor: Visitor, size: int) -> Tab:
    """Return a tab to whose worker the browser says that the site may keep so many bytes."""
    told = f"navigator.storage.estimate = async () => ({{quota: {size}, usage: 0}});"
    worker = (visitor.server.mounts["sdk"] / "store-worker.js").read_text(encoding="utf-8")
    visitor.server.faults = [Fault("sdk/store-worker.js", data=(told + worker).encode(), times=1)]
    return visitor.new_tab()


def test_a_damaged_file_is_fetched_again_or_the_version_before_is_used(either: Visitor) -> None:
    first = either.publish()
    either.opens()
    second = either.publish("1.1.0", seed=2)
    assert told(either.opens()) == ["update"]
    assert {weights_of(first), weights_of(second)} <= set(either.kept()), "the last good one is kept"
    either.flip(weights_of(second))
    either.start()
    assert told(either.opens()) == []
    assert len(either.asked()) == 1
    either.flip(weights_of(second))
    either.stop()
    assert told(either.opens(first)) == ["offline network", "restored integrity"]
    either.start()
    assert told(either.opens(second)) == []
    third = either.publish("1.2.0", seed=3)
    assert told(either.opens()) == ["update"]
    kept = set(either.kept())
    assert weights_of(first) not in kept and {weights_of(second), weights_of(third)} <= kept


def test_a_damaged_manifest_or_state_is_written_anew(either: Visitor) -> None:
    manifest = either.publish()
    either.opens()
    either.flip(manifest.digest, 100)
    either.start()
    either.opens()
    for name in [name for name in either.kept() if name.startswith("state")]:
        either.flip(name, 50)
    either.opens()
    assert either.asked() == []
    either.stop()
    either.opens()


@pytest.mark.parametrize("code", ["self_test", "runtime"])
def test_an_update_that_fails_is_gone_back_from_and_not_fetched_again(visitor: Visitor, code: str) -> None:
    first = visitor.publish()
    visitor.opens()
    visitor.publish("1.1.0", seed=2)
    outcome = visitor.opens(first, failing={"1.1.0": code})
    assert told(outcome) == [f"update_failed {code}", f"restored {code}"]
    visitor.start()
    assert told(visitor.opens(first)) == ["update_failed self_test"]
    assert visitor.asked() == []
    third = visitor.publish("1.1.1", seed=3)
    assert told(visitor.opens(third)) == ["update"]


def test_an_older_version_is_not_gone_back_to(visitor: Visitor) -> None:
    newer = visitor.publish("0.10.0")
    visitor.opens()
    visitor.publish("0.9.0", seed=2)
    visitor.start()
    assert told(visitor.opens(newer)) == ["update_failed rollback"]
    assert visitor.asked() == []


def test_an_update_that_ends_in_the_middle_leaves_what_is_in_place(either: Visitor) -> None:
    first = either.publish()
    either.opens()
    second = either.publish("1.1.0", seed=2)
    assert told(right(either.cut_at_half(), first)) == ["update_failed network"]
    outcome = either.opens(second)
    assert told(outcome) == ["update"] and outcome["opened"]["timings"]["download_bytes"] < 0.6 * SIZE
    third = either.publish("1.2.0", seed=3)
    right(either.cut_at_half(), second)
    assert weights_of(third) in either.kept()
    either.publish("1.1.0", seed=2)
    either.opens(second)
    assert weights_of(third) not in either.kept(), "what nobody wants any more is removed"


def test_what_a_tab_still_reads_outlives_the_updates_of_others(either: Visitor) -> None:
    first = either.publish()
    other = either.new_tab()
    opened = other.run("return await sdk.open(given[0], undefined, true)", either.order(lasting=True))
    right(opened, first)
    for number in (1, 2):
        either.opens(either.publish(f"1.{number}.0", seed=number + 1))
        assert weights_of(first) in either.kept()
    other.page.close()
    either.opens(either.publish("1.3.0", seed=4))
    assert weights_of(first) not in either.kept()


def test_two_tabs_that_open_at_once_fetch_once(either: Visitor) -> None:
    manifest = either.publish()
    either.server.pause = 0.01
    tabs = [either.tab, *(either.new_tab() for _ in range(2))]
    for tab in tabs:
        tab.run("globalThis.outcome = sdk.open(given[0])", either.order())
    for tab in tabs:
        right(tab.run("return await globalThis.outcome"), manifest)
    assert len(either.asked()) == 1


def test_a_tab_that_is_closed_while_another_waits_leaves_it_the_rest(either: Visitor) -> None:
    manifest = either.publish()
    held = Fault(WEIGHTS, times=1, hold=int(0.9 * SIZE))
    either.server.faults.append(held)
    doomed = either.new_tab()
    doomed.run("globalThis.outcome = sdk.open(given[0])", either.order())
    until(lambda: either.kept().get(weights_of(manifest), 0) >= 1 << 20)
    either.tab.run("globalThis.outcome = sdk.open(given[0])", either.order())
    doomed.page.close()
    held.go.set()
    right(either.tab.run("return await globalThis.outcome"), manifest)
    assert len(either.asked()) == 2 and " bytes=" in either.asked()[1]


def until(done: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def test_tabs_closed_at_any_moment_never_leave_half_a_bundle(either: Visitor) -> None:
    """Each is closed somewhere in a first visit of about 0.4 s; what is there then is nothing that counts, or all."""
    either.publish(weights=SIZE // 2)
    either.server.pause = 0.02
    seen = visits(either, [0.0, *(random.Random(7).uniform(0.02, 0.7) for _ in range(7))], by_closing=True)
    assert seen["nothing"] and len(either.asked()) <= 16


def test_workers_ended_at_any_moment_of_an_update_leave_one_version_or_the_other(either: Visitor) -> None:
    either.publish(weights=300_000)
    versions = [either.manifest]
    either.opens()
    moments = random.Random(11)
    for number in range(1, 4):
        versions.append(either.publish(f"1.{number}.0", seed=number, weights=300_000))
        seen = visits(either, [moments.uniform(0, 0.25) for _ in range(4)], by_closing=False, before=versions[-2])
        assert seen["nothing"] == 0
        either.start()
        either.opens()


def visits(
    visitor: Visitor, moments: list[float], *, by_closing: bool, before: Manifest | None = None
) -> dict[str, int]:
    """End a visit after each of these seconds; then, with the server stopped, see what is there: whole or nothing."""
    seen = {"nothing": 0, "before": 0, "whole": 0}
    manifest = visitor.manifest
    for moment in moments:
        if by_closing:
            tab = visitor.new_tab()
            tab.run("globalThis.outcome = sdk.open(given[0])", visitor.order())
            time.sleep(moment)
            tab.page.close()
        else:
            visitor.tab.run("await sdk.open(given[0], given[1])", visitor.order(), 1000 * moment)
        visitor.server.budget = 0
        outcome = visitor.open()
        visitor.server.budget = None
        if "error" in outcome:
            assert outcome["error"]["code"] == "network", outcome
            seen["nothing"] += 1
        else:
            old = before is not None and outcome["opened"]["digest"] == before.digest
            right(outcome, before if old and before else manifest)
            seen["before" if old else "whole"] += 1
    visitor.opens(manifest)
    return seen


def test_a_browser_that_crashes_in_the_middle_goes_on_after(visitor: Visitor) -> None:
    """The renderer dies, with whatever it had not written."""
    manifest = visitor.publish()
    held = Fault(WEIGHTS, times=1, hold=SIZE * 2 // 3)
    visitor.server.faults.append(held)
    doomed = visitor.new_tab()
    doomed.run("globalThis.outcome = sdk.open(given[0])", visitor.order())
    until(lambda: visitor.kept().get(weights_of(manifest), 0) > SIZE // 2)
    with pytest.raises(Exception, match=r"(?i)crash"):
        doomed.page.goto("chrome://crash", timeout=10_000)
    held.go.set()
    outcome = visitor.opens()
    assert outcome["opened"]["timings"]["download_bytes"] < 0.6 * manifest.size


def test_a_name_in_storage_is_never_one_from_the_manifest(visitor: Visitor) -> None:
    manifest = visitor.publish(files={"a folder/ä.bin": b"odd"})
    visitor.opens()
    named = {hashlib.sha256(path.read_bytes()).hexdigest() for path in visitor.site.folder.glob("b.*")}
    expected = {manifest.digest, *(file.sha256 for file in manifest.files), *named}
    assert {name for name in visitor.kept() if not name.startswith("state.")} == expected
