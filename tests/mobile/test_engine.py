"""The SDK's answers in a real browser: right, streamed, stopped, on a page that never stalls, in memory that stays."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.mobile.web import ARGUMENTS, CHROMIUM, ROOT, VECTORS, Opener, Site, Tab, site_of
from tests.pages import STALL, traced

HEARD = 100  # milliseconds from an abort to its effect, in the best of some tries: others share the machine
GROWTH = 1.02  # of memory, from the tenth of a hundred answers on
EAGER = ("--enable-blink-features=ForceEagerMeasureMemory",)  # else a page is told of its memory after 20 s
GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")

OPEN = """
const events = [];
const options = { keys: [given[0].key], onEvent: (event) => events.push(event) };
const fetched = async (file) => (await fetch("/vectors/" + file)).blob();
const code = (promise) => promise.then(() => "none", (error) => error.code ?? String(error));
const { answers } = given[0];
const asked = answers.reduce((one, other) => other.ids.length > one.ids.length ? other : one);
const model = given[0].options === null ? null : await sdk.open(given[0].url, { ...options, ...given[0].options });
"""


@pytest.fixture
def tab(opened: Opener, site: Site) -> Iterator[Tab]:
    """A page beside the vectors and their bundle; at its end it has said nothing, and asked nobody else."""
    site.server.mounts["vectors"] = VECTORS
    tab = opened()
    yield tab
    assert (tab.said, tab.asked) == ([], [])


def expected() -> dict[str, Any]:
    vectors: dict[str, Any] = json.loads((VECTORS / "vectors.json").read_text(encoding="utf-8"))
    return vectors


def write_json(path: Path, value: Any) -> str:
    """Write a file; return its sha256."""
    path.write_text(json.dumps(value), encoding="utf-8")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def given(site: Site, **more: Any) -> dict[str, Any]:
    key = (VECTORS / expected()["bundle"]["key"]).read_text(encoding="ascii")
    return {"url": site.bundle(), "key": key, "answers": expected()["answers"], "options": {}, **more}


def test_answers_are_those_of_the_vectors_and_the_page_never_stalls(tab: Tab, site: Site) -> None:
    values = given(site)
    tab.run(OPEN + "Object.assign(globalThis, { model, events, fetched });", values)
    with traced(tab.page) as busy:
        found = tab.run(
            """
        const results = [];
        for (const { image, question } of given[0].answers) {
            const answer = model.ask(await fetched(image), question);
            let text = "";
            for await (const piece of answer) text += piece;
            results.push({ pieces: text, ...(await answer.result) });
        }
        const { info } = model;
        await model.close();
        return { info, results, events };
        """,
            values,
        )
    assert len(busy) > len(values["answers"]) and busy[0] <= STALL
    for answer, result in zip(values["answers"], found["results"], strict=True):
        told = {key: result[key] for key in ("ids", "text", "stop")}
        assert told == {key: answer[key] for key in told}
        assert result["pieces"] == answer["text"]
    assert (found["info"]["backend"], found["info"]["threads"]) == ("wasm", 1)  # a small model: one thread is fastest
    assert found["info"]["digest"] == expected()["bundle"]["digest"]
    first, *others = [event for event in found["events"] if event["type"] == "metrics"]
    assert first["scope"] == "open" and first["metrics"]["from"] == "network" and first["metrics"]["self_test_ms"] > 0
    assert [event["metrics"] for event in others] == [result["metrics"] for result in found["results"]]
    for result in found["results"]:
        metrics = result["metrics"]
        assert metrics["tokens"] == len(result["ids"])
        assert metrics["first_token_ms"] >= metrics["prepare_ms"] + metrics["encode_ms"] + metrics["prefill_ms"] > 0


def test_an_abort_is_heard_at_once_and_the_next_question_answered(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const blob = await fetched(asked.image);
        const timed = async (after) => {
            const stop = new AbortController();
            const answer = model.ask(new Blob([blob]), asked.question, { signal: stop.signal });
            await after(answer);
            const began = performance.now();
            stop.abort();
            const outcome = await code(answer.result);
            const told = performance.now() - began;
            const next = await model.ask(blob, asked.question).result;
            return { outcome, told, next: next.text, waited: performance.now() - began - next.metrics.first_token_ms };
        };
        const { limit } = given[0];
        const heard = ({ outcome, told, waited }) => outcome === "aborted" && told < limit && waited < limit;
        const moments = {
            "at once": async () => {},
            "while the image is read": () => new Promise((resolve) => setTimeout(resolve, 5)),
            "after the first piece": async (answer) => { for await (const _ of answer) return; },
        };
        const out = {};
        for (const [moment, after] of Object.entries(moments)) {
            out[moment] = [];
            for (let turn = 0; turn < 3 || !out[moment].some(heard) && turn < 30; turn++)
                out[moment].push(await timed(after));
        }
        const before = new AbortController();
        before.abort();
        out.before = await code(model.ask(blob, asked.question, { signal: before.signal }).result);
        const queued = [0, 1, 2].map(() => ({ stop: new AbortController() }));
        for (const each of queued) each.answer = model.ask(blob, asked.question, { signal: each.stop.signal });
        queued[1].stop.abort();
        const ended = ({ answer }) => answer.result.then((result) => result.text, (error) => error.code);
        out.queued = await Promise.all(queued.map(ended));
        await model.close();
        return { out, text: asked.text };
        """,
        given(site, limit=HEARD),
    )
    out, text = found["out"], found["text"]
    for moment in ("at once", "while the image is read", "after the first piece"):
        assert {each["outcome"] for each in out[moment]} <= {"aborted", "none"}  # none: it had ended before
        assert {each["next"] for each in out[moment]} == {text}
        aborted = [each for each in out[moment] if each["outcome"] == "aborted"]
        assert aborted and (moment != "at once" or len(aborted) == len(out[moment]))
        assert min(each["told"] for each in aborted) < HEARD
        assert min(each["waited"] for each in aborted) < HEARD
    assert out["before"] == "aborted"
    assert out["queued"] == [text, "aborted", text]


def test_close_ends_what_is_open_and_no_rejection_is_left_over(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const blob = await fetched(asked.image);
        const only = await model.ask(blob, asked.question).result;
        let text = "";
        for await (const piece of model.ask(blob, asked.question)) text += piece;
        const twice = model.ask(blob, asked.question);
        for await (const _ of twice);
        const again = await code((async () => { for await (const _ of twice); })());
        void model.ask(null, "nobody listens to this one");
        const open = [0, 1].map(() => model.ask(blob, asked.question));
        const iterated = code((async () => { for await (const _ of open[1]); })());
        await model.close();
        await model.close();
        const ended = [await code(open[0].result), await iterated, await code(model.ask(blob, "?").result)];
        await new Promise((resolve) => setTimeout(resolve, 50));
        return { only: only.text, text, asked: asked.text, again, ended };
        """,
        given(site),
    )
    assert found["only"] == found["text"] == found["asked"]
    assert found["again"] == "runtime"
    assert found["ended"] == ["closed"] * 3


def test_every_kind_of_image_gives_the_same_answer_and_stays_the_callers(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const blob = await fetched(asked.image);
        const bitmap = await createImageBitmap(blob);
        const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
        const context = canvas.getContext("2d");
        context.drawImage(bitmap, 0, 0);
        const off = new OffscreenCanvas(bitmap.width, bitmap.height);
        off.getContext("2d").drawImage(bitmap, 0, 0);
        const element = new Image();
        element.src = "/vectors/" + asked.image;
        const data = context.getImageData(0, 0, bitmap.width, bitmap.height);
        const frame = new VideoFrame(bitmap, { timestamp: 0 });
        const kinds = { blob, bitmap, canvas, off, element, data, frame };
        const out = {};
        for (const turn of [1, 2])
            for (const [kind, image] of Object.entries(kinds)) {
                const { text, metrics } = await model.ask(image, asked.question).result;
                out[kind + turn] = [text, metrics.encode_ms > 0];
            }
        frame.close();
        const wrong = [[null, "?"], [new Blob(["no image"]), "?"], [blob, "<image>"], [{}, "?"]];
        const refused = await Promise.all(wrong.map((words) => code(model.ask(...words).result)));
        await model.close();
        return { out, refused, text: asked.text };
        """,
        given(site),
    )
    for kind in ("blob", "bitmap", "canvas", "off", "element", "data", "frame"):
        for turn in (1, 2):
            assert found["out"][f"{kind}{turn}"] == [found["text"], True], kind  # of seven images, two are kept
    assert found["refused"] == ["image", "image", "prompt", "image"]


def test_a_question_whose_image_does_not_come_holds_up_nobody_once_it_is_given_up(tab: Tab, site: Site) -> None:
    tab.page.route("**/never.png", lambda route: None)
    found = tab.run(
        OPEN
        + """
        const lazy = Object.assign(new Image(), { loading: "lazy", src: "/vectors/" + asked.image });
        const out = { lazy: (await model.ask(lazy, asked.question).result).text === asked.text };
        const never = Object.assign(new Image(), { src: "/never.png" });
        const stop = new AbortController();
        const first = code(model.ask(never, "?", { signal: stop.signal }).result);
        const blob = await fetched(asked.image);
        const second = model.ask(blob, asked.question).result;
        setTimeout(() => stop.abort(), 50);
        out.ended = await first;
        out.next = (await second).text === asked.text;
        out.none = await code(model.ask(blob).result);
        const any = AbortSignal.any;
        delete AbortSignal.any;  // as in browsers of 2023
        const stopped = new AbortController();
        const items = [{ image: blob, question: asked.question }];
        out.batch = (await model.askAll(items, { signal: stopped.signal })).length;
        stopped.abort();
        out.stopped = await code(model.askAll(items, { signal: stopped.signal }));
        AbortSignal.any = any;
        await model.close();
        return out;
        """,
        given(site),
    )
    assert found == {
        "lazy": True,
        "ended": "aborted",
        "next": True,
        "none": "prompt",
        "batch": 1,
        "stopped": "aborted",
    }


def test_pages_that_may_keep_nothing_or_are_not_secure(browser: Any, sdk: Path, tmp_path: Path) -> None:
    """A browser that blocks a site's data blocks its locks as well."""
    (tmp_path / "profile" / "Default").mkdir(parents=True)
    blocked = {"profile": {"default_content_setting_values": {"cookies": 2}}}
    (tmp_path / "profile" / "Default" / "Preferences").write_text(json.dumps(blocked), encoding="utf-8")
    other = browser.browser_type.launch_persistent_context(
        tmp_path / "profile",
        executable_path=CHROMIUM,
        args=[*ARGUMENTS, "--host-resolver-rules=MAP phone.test 127.0.0.1"],
    )
    with closing(other), site_of(tmp_path / "site", sdk) as site:
        site.server.mounts["vectors"] = VECTORS
        values = given(site)
        tab = Tab(other.new_page(), site)
        script = """
            const { text } = await model.ask(await fetched(asked.image), asked.question).result;
            await model.close();
            return { same: text === asked.text, told: events.filter(({ type }) => type === "fallback") };
        """
        found = tab.run(OPEN + script, values)
        assert found["same"] and [event["to"] for event in found["told"]] == ["memory"]
        tab.page.goto(f"{site.url.replace('127.0.0.1', 'phone.test')}/index.html")
        script = "return await sdk.open(given[0].url, options).catch(({ code, hint }) => [code, hint]);"
        code, hint = tab.run(OPEN + script, values | {"options": None})
        assert code == "unsupported" and "https" in hint


def test_the_same_blob_is_encoded_once_and_so_is_an_image_of_a_batch(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const blob = await fetched(asked.image);
        const [one, two] = [await model.ask(blob, asked.question).result, await model.ask(blob, asked.question).result];
        const images = [...new Set(answers.map(({ image }) => image))].slice(0, 4);
        const blobs = Object.fromEntries(await Promise.all(images.map(async (image) => [image, await fetched(image)])));
        const chosen = answers.filter(({ image }) => images.includes(image));
        const mixed = chosen.map((_, place) => chosen[(place * 5) % chosen.length]);
        const places = [];
        const items = mixed.map(({ image, question }) => ({ image: blobs[image], question }));
        const results = await model.askAll(items, { onResult: (result, place) => places.push(place) });
        const stop = new AbortController();
        const stopped = await code(model.askAll(items, { signal: stop.signal, onResult: () => stop.abort() }));
        const failed = await code(model.askAll([{ image: blob, question: "<image>" }, { image: blob, question: "?" }]));
        const none = await model.askAll([]);
        await model.close();
        return {
            encode: [one.metrics.encode_ms, two.metrics.encode_ms],
            same: one.text === two.text && two.text === asked.text,
            texts: results.map(({ text }) => text), wanted: mixed.map(({ text }) => text), places,
            encoded: results.filter(({ metrics }) => metrics.encode_ms > 0).length, stopped, failed, none,
        };
        """,
        given(site),
    )
    assert found["encode"][0] > 0 == found["encode"][1] and found["same"]
    assert found["texts"] == found["wanted"] and len(found["texts"]) > 4
    assert sorted(found["places"]) == list(range(len(found["texts"])))
    assert found["encoded"] <= 4
    assert (found["stopped"], found["failed"], found["none"]) == ("aborted", "prompt", [])


def test_of_a_film_the_newest_frame_is_answered_and_every_frame_closed(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const bitmap = await createImageBitmap(await fetched(asked.image));
        const made = [];
        const asks = [];
        let ended = false;
        const ask = model.ask;
        model.ask = function (frame, ...words) {
            asks.push([performance.now(), made.length - 1 - frame.timestamp / 25000]);
            return ask.call(this, frame, ...words);
        };
        const film = async function* () {
            for (let number = 0; number < 4000 && !ended; number++) {
                await new Promise((resolve) => setTimeout(resolve, 25));
                const frame = new VideoFrame(bitmap, { timestamp: number * 25000 });
                made.push(frame);
                yield frame;
            }
        };
        const seen = [];
        for await (const { text, frame } of model.watch(film(), asked.question, { fps: 5 })) {
            seen.push([text, frame]);
            ended = seen.length >= 4;
        }
        const left = made.splice(0);
        const closed = left.every((frame) => frame.format === null);
        const behind = asks.map(([, frames]) => frames);
        const gaps = asks.slice(1).map(([time], place) => time - asks[place][0]);
        ended = false;
        for await (const _ of model.watch(film(), asked.question, { fps: 50 })) break;
        await new Promise((resolve) => setTimeout(resolve, 100));
        const stopped = { made: made.length, closed: made.every((frame) => frame.format === null) };
        await model.close();
        return { seen, behind, gaps, closed, left: left.length, stopped, text: asked.text };
        """,
        given(site),
    )
    times = [frame for _, frame in found["seen"]]
    assert {text for text, _ in found["seen"]} == {found["text"]}
    assert times == sorted(set(times)) and 4 <= len(times) < found["left"]
    assert set(found["behind"]) == {0} and min(found["gaps"]) >= 199
    assert found["closed"] and found["stopped"]["closed"] and found["stopped"]["made"] < 4000


def test_slips_have_codes_and_a_watch_that_is_stopped_leaves_nothing(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const image = await fetched(asked.image);
        const bitmap = await createImageBitmap(image);
        const out = {};
        const first = async (results) => { for await (const _ of results) break; };
        const answer = model.ask(image, asked.question);
        await first(answer);
        out.twice = await code(first(answer));
        out.fps = await code(first(model.watch([], asked.question, { fps: 0 })));
        out.blank = await code(model.ask(image, "  ").result);
        out.tokens = await code(model.ask(image, asked.question, { maxTokens: 1.5 }).result);
        const torn = async function* () { throw new Error("no camera"); };
        out.torn = await code(first(model.watch(torn(), asked.question)));
        out.address = await code(sdk.open("http://", options));
        out.none = await code(sdk.open([], options));
        out.empty = await code(sdk.open("", options));
        out.key = await code(sdk.open(given[0].url, { keys: given[0].key }));
        const made = [];
        let listeners = 0;
        const stop = new AbortController();
        const { signal } = stop;
        for (const [name, step] of [["addEventListener", 1], ["removeEventListener", -1]]) {
            const call = signal[name].bind(signal);
            signal[name] = (...words) => { listeners += step; return call(...words); };
        }
        const ready = async function* () {  // always has another frame
            for (;;) { made.push(new VideoFrame(bitmap, { timestamp: made.length })); yield made.at(-1); }
        };
        setTimeout(() => stop.abort(), 300);  // not reached where the frames hold the page
        for await (const _ of model.watch(ready(), asked.question, { fps: 20, signal }));
        await new Promise((resolve) => setTimeout(resolve, 100));
        out.closed = made.length > 0 && made.every((frame) => frame.format === null);
        out.listeners = listeners;
        await model.close();
        const worker = new Worker(new URL("/sdk/worker.js", location.href), { type: "module" });
        const heard = new Promise((resolve) => worker.addEventListener("message", ({ data }) => resolve(data)));
        worker.postMessage({ type: "open", build: "another", urls: [given[0].url], options: {} });
        out.build = await heard;
        worker.terminate();
        return out;
        """,
        given(site),
    )
    refused = found.pop("build")
    assert refused["type"] == "failed" and refused["error"]["code"] == "unsupported"
    assert "Reload the page" in refused["error"]["hint"]
    assert found == {
        "twice": "runtime",
        "fps": "prompt",
        "blank": "prompt",
        "tokens": "prompt",
        "torn": "image",
        "address": "network",
        "none": "network",
        "empty": "network",
        "key": "signature",
        "closed": True,
        "listeners": 0,
    }


def test_a_camera_and_a_video_are_watched_until_they_end_or_the_signal_comes(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const bitmap = await createImageBitmap(await fetched(asked.image));
        const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
        const context = canvas.getContext("2d");
        const drawing = setInterval(() => context.drawImage(bitmap, 0, 0), 20);
        context.drawImage(bitmap, 0, 0);
        const camera = canvas.captureStream(30);
        const fromCamera = [];
        for await (const { text } of model.watch(camera, asked.question, { fps: 20 })) {
            fromCamera.push(text);
            if (fromCamera.length === 3) camera.getTracks()[0].stop();
        }
        const video = document.createElement("video");
        video.muted = true;
        const shown = video.srcObject = canvas.captureStream(30);
        await video.play();
        let stopped = 0;
        for await (const _ of model.watch(video, asked.question, { fps: 20 })) {
            stopped++;
            shown.getTracks()[0].stop();
        }
        video.srcObject = canvas.captureStream(30);
        await video.play();
        const stop = new AbortController();
        const fromVideo = [];
        for await (const { text } of model.watch(video, asked.question, { fps: 20, signal: stop.signal })) {
            fromVideo.push(text);
            if (fromVideo.length === 3) stop.abort();
        }
        clearInterval(drawing);
        await model.close();
        const texts = fromCamera.concat(fromVideo);
        return { stopped, fromCamera: fromCamera.length, fromVideo: fromVideo.length, texts };
        """,
        given(site),
    )
    assert (found["fromCamera"], found["fromVideo"], found["stopped"]) == (3, 3, 1)
    assert all(text != "" for text in found["texts"])


def test_what_is_no_film_is_refused_and_no_film_is_answered_too_often(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const image = await fetched(asked.image);
        const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));
        const films = {
            list: [image], object: {}, none: null, text: "film", broken: { [Symbol.asyncIterator]: 5 },
            trackless: new MediaStream(),
        };
        const left = [];
        for (const frame of [null, "frame", {}, { close: 1 }])
            films[`of ${JSON.stringify(frame)}`] = (async function* () {
                try { yield frame; await wait(1e6); } finally { left.push(frame); }
            })();
        const first = async (film, fps) => {
            for await (const _ of model.watch(film, asked.question, { fps })) return;
        };
        const told = {};
        for (const [name, film] of Object.entries(films))
            told[name] = await first(film).then(() => "none", (error) => `${error.code} ${error.hint && "hint"}`);
        const still = async function* () { yield image; };
        const rates = {};
        for (const fps of [NaN, -1, "5", null, Infinity]) rates[String(fps)] = await code(first(still(), fps));
        const times = [];
        const ask = model.ask;
        model.ask = function (...words) { times.push(performance.now()); return ask.apply(this, words); };
        const late = async function* () { yield image; await wait(350); yield image; await wait(10); yield image; };
        for await (const _ of model.watch(late(), asked.question, { fps: 5 }));
        const gaps = times.slice(1).map((time, place) => time - times[place]);
        let rare = 0;
        const stop = new AbortController();
        for await (const _ of model.watch(late(), asked.question, { fps: 1e-9, signal: stop.signal }))
            if (rare++ === 0) setTimeout(() => stop.abort(), 1000);
        await model.close();
        return { told, rates, left, gaps, rare };
        """,
        given(site),
    )
    assert set(found["told"].values()) == {"image hint"} and found["left"][:2] == [None, "frame"], found["told"]
    assert found["rates"] == {"NaN": "prompt", "-1": "prompt", "5": "prompt", "null": "prompt", "Infinity": "none"}
    assert found["gaps"] and min(found["gaps"]) >= 199 and found["rare"] == 1


def test_a_film_that_shows_nothing_ends_by_the_signal_and_with_the_model(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const listeners = new Map();  // the last thing done with each
        for (const [name, step] of [["addEventListener", 1], ["removeEventListener", -1]]) {
            const call = EventTarget.prototype[name];
            EventTarget.prototype[name] = function (event, hear, ...more) {
                const key = `${this.number ??= Math.random()} ${event} ${hear.number ??= Math.random()}`;
                if (this instanceof AbortSignal || this instanceof HTMLVideoElement) listeners.set(key, step);
                return call.call(this, event, hear, ...more);
            };
        }
        const videos = [];
        const create = document.createElement.bind(document);
        document.createElement = (name) => { videos.push(create(name)); return videos.at(-1); };
        let returned = 0;
        const films = {
            stream: () => document.createElement("canvas").captureStream(0),
            video: () => document.createElement("video"),
            frames: () => ({
                [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => {}), return: () => void returned++ }),
            }),
        };
        const ended = (film, signal) => Promise.race([
            code((async () => { for await (const _ of model.watch(film, asked.question, { signal })); })()),
            new Promise((resolve) => setTimeout(() => resolve("hangs"), 10_000)),
        ]);
        const stop = new AbortController();
        const watches = Object.values(films).map((film) => ended(film(), stop.signal));
        setTimeout(() => stop.abort(), 50);
        const aborted = await Promise.all(watches);
        const open = Object.values(films).map((film) => ended(film()));
        await new Promise((resolve) => setTimeout(resolve, 50));
        await model.close();
        const closed = await Promise.all(open);
        const after = await ended(films.video());
        const held = videos.filter((each) => each.srcObject).length;
        const kept = [...listeners].filter(([, step]) => step > 0);
        return { aborted, closed, after, returned, held, kept, some: listeners.size };
        """,
        given(site),
    )
    assert (found["aborted"], found["closed"], found["after"]) == (["none"] * 3, ["closed"] * 3, "closed")
    assert (found["returned"], found["held"], found["kept"]) == (2, 0, []) and found["some"] > 9


def test_a_video_whose_source_changes_is_watched_on(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const bitmap = await createImageBitmap(await fetched(asked.image));
        const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
        const drawing = setInterval(() => canvas.getContext("2d").drawImage(bitmap, 0, 0), 20);
        const recorder = new MediaRecorder(canvas.captureStream(30), { mimeType: "video/webm" });
        const film = new Promise((resolve) => { recorder.ondataavailable = ({ data }) => resolve(data); });
        recorder.start();
        setTimeout(() => recorder.stop(), 500);
        const data = await film;
        clearInterval(drawing);
        const source = (src) => Object.assign(document.createElement("source"), { src });
        const gives = {
            src: (video) => { video.src = URL.createObjectURL(data); },
            sources: (video) => video.append(source("/vectors/vectors.json"), source(URL.createObjectURL(data))),
        };
        const seen = {};
        for (const [name, give] of Object.entries(gives)) {
            const video = Object.assign(document.createElement("video"), { muted: true });
            give(video);
            seen[name] = 0;
            for await (const _ of model.watch(video, asked.question, { fps: 20 })) {
                if (seen[name]++ === 0) gives.src(video);
                else if (seen[name] === 2) video.play();
            }
        }
        await model.close();
        return seen;
        """,
        given(site),
    )
    assert all(2 <= seen <= 20 for seen in found.values()), found


def test_a_video_that_cannot_be_played_ends_its_watch(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const src = "/vectors/vectors.json";
        const gives = [
            (video) => { video.src = src; },
            (video) => { video.append(Object.assign(document.createElement("source"), { src })); },
        ];
        const codes = [];
        for (const give of gives) {
            const video = document.createElement("video");
            const first = async () => { for await (const _ of model.watch(video, asked.question)) return; };
            const before = code(first());
            give(video);
            codes.push(await before, await code(first()));
        }
        await model.close();
        return codes;
        """,
        given(site),
    )
    assert found == ["image"] * 4


def test_a_hundred_answers_leave_the_memory_as_it_was_after_ten(browser: Any, site: Site) -> None:
    site.server.mounts["vectors"] = VECTORS
    other = browser.browser_type.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *EAGER])
    with closing(other):
        found = Tab(other.new_page(), site).run(
            OPEN
            + """
            const measure = async () => (await performance.measureUserAgentSpecificMemory()).bytes;
            const runtime = [];
            let ten = 0;
            for (let turn = 0; turn < 100; turn++) {
                const { image, question } = answers[turn % answers.length];
                runtime.push((await model.ask(await fetched(image), question).result).metrics.peak_memory_bytes);
                if (turn === 9) ten = await measure();
            }
            const hundred = await measure();
            await model.close();
            return { runtime, ten, hundred };
            """,
            given(site),
        )
    assert found["runtime"][-1] <= GROWTH * found["runtime"][9]
    assert found["hundred"] <= GROWTH * found["ten"]


def test_low_memory_answers_the_same(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const texts = [];
        for (const { image, question } of answers.slice(0, 5))
            texts.push((await model.ask(await fetched(image), question).result).text);
        await model.close();
        return texts;
        """,
        given(site, options={"memory": "low"}),
    )
    assert found == [answer["text"] for answer in expected()["answers"][:5]]


def test_a_worker_that_dies_ends_what_is_open(tab: Tab, site: Site) -> None:
    tab.run(OPEN + "globalThis.model = model; globalThis.image = await fetched(asked.image);", given(site))
    (worker,) = tab.page.workers
    worker.evaluate("() => { setTimeout(() => { throw new RangeError('Out of memory'); }) }")
    codes = tab.page.evaluate(
        """async () => {
            const code = (answer) => answer.result.then(() => "none", (error) => error.code);
            const codes = [];
            while (codes.at(-1) !== "memory" && codes.length < 100)
                codes.push(await code(model.ask(image, "what is it?")));
            return [codes.at(-1), await code(model.ask(image, "and now?"))];
        }"""
    )
    assert codes == ["memory", "memory"]
    tab.said.clear()  # the browser tells of the error as well


def test_opening_falls_back_and_is_refused_and_stopped(tab: Tab, site: Site) -> None:
    manifest = json.loads((VECTORS / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    manifest["device"]["execution_providers"] = ["webgpu"]
    (site.folder / "other").mkdir()
    pinned = write_json(site.folder / "other" / "manifest.json", manifest)
    requests: list[str] = []
    tab.page.context.on("request", lambda request: requests.append(request.url))
    found = tab.run(
        OPEN
        + """
        const out = {};
        out.unsigned = await code(sdk.open(given[0].url));
        out.unsupported = await code(sdk.open("/other/", { digest: given[0].pinned }));
        const stop = new AbortController();
        out.stopped = code(sdk.open(given[0].url, { ...options, signal: stop.signal }));
        stop.abort();
        out.stopped = await out.stopped;
        out.before = await code(sdk.open(given[0].url, { ...options, signal: stop.signal }));
        const secret = await sdk.open(given[0].url.replace(/.$/, "?token=secret"), options);
        await secret.close();
        const model2 = await sdk.open(["/nothing/here", given[0].url], options);
        out.text = (await model2.ask(await fetched(asked.image), asked.question).result).text;
        await model2.close();
        return { out, asked, events: events.filter(({ type }) => type === "fallback") };
        """,
        given(site, options=None, pinned=pinned),
    )
    out = found["out"]
    assert [out[key] for key in ("unsigned", "unsupported", "stopped", "before")] == [
        "signature",
        "unsupported",
        "aborted",
        "aborted",
    ]
    assert out["text"] == found["asked"]["text"]
    assert f"{site.url}/bundle/manifest.json?token=secret" in requests
    (event,) = found["events"]
    assert event["from"].endswith("/nothing/here/") and event["to"] == site.url + "/bundle/"
    assert not any("other/decoder" in line for line in tab.asked)
    tab.said = [line for line in tab.said if "404" not in line]  # the browser itself tells of those


def test_an_opening_that_is_stopped_is_no_crash(tab: Tab, site: Site) -> None:
    """Three of those would be: the worker ends when it has noted that it was stopped, whatever it was at."""
    found = tab.run(
        OPEN
        + """
        const state = async () => {
            const root = await (await navigator.storage.getDirectory()).getDirectoryHandle("tapeout");
            let newest = { count: 0 };
            for await (const folder of root.values())
                for (const name of ["state.0", "state.1"])
                    try {
                        const file = await (await folder.getFileHandle(name)).getFile();
                        const found = JSON.parse(JSON.parse(await file.text()).text);
                        if (found.count > newest.count) newest = found;
                    } catch {}  // not there yet
            return newest;
        };
        const stop = new AbortController();
        const onEvent = ({ type, loaded, total }) => {
            if (type === "progress" && loaded === total) setTimeout(() => stop.abort(), 100);
        };
        const ended = await code(sdk.open(given[0].url, { ...options, onEvent, signal: stop.signal }));
        let noted = null;
        for (let turn = 0; turn < 200 && !(noted?.count > 1 && noted.state.trying === null); turn++) {
            await new Promise((resolve) => setTimeout(resolve, 50));
            noted = await state();
        }
        return { ended, noted };
        """,
        given(site, options=None),
    )
    assert found["ended"] == "aborted" and found["noted"]["count"] > 1
    assert (found["noted"]["state"]["trying"], found["noted"]["state"]["current"]) == (None, None)


def test_without_isolation_it_runs_on_one_thread(browser: Any, sdk: Path, tmp_path: Path) -> None:
    with site_of(tmp_path / "plain", sdk, isolated=False) as site:
        site.server.mounts["vectors"] = VECTORS
        tab = Tab(browser.new_page(), site)
        found = tab.run(
            OPEN
            + """
            const { text } = await model.ask(await fetched(asked.image), asked.question).result;
            const { threads } = model.info;
            await model.close();
            return [crossOriginIsolated, threads, text === asked.text];
            """,
            given(site, options={"threads": 4}),
        )
        tab.page.close()
        assert found == [False, 1, True] and tab.said == []


def test_threads_may_be_asked_for(tab: Tab, site: Site) -> None:
    found = tab.run(
        OPEN
        + """
        const { text } = await model.ask(await fetched(asked.image), asked.question).result;
        const { threads } = model.info;
        await model.close();
        return [threads, text === asked.text];
        """,
        given(site, options={"threads": 2}),
    )
    assert found == [2, True]


def test_where_webgpu_cannot_run_a_bundle_webassembly_does(browser: Any, sdk: Path, tmp_path: Path) -> None:
    """The vectors' bundle is made for WebAssembly: WebGPU's build of the runtime cannot unpack its weights."""
    words = [word for word in ARGUMENTS if word != "--disable-gpu"]
    other = browser.browser_type.launch(executable_path=CHROMIUM, args=[*words, *GPU])
    with closing(other), site_of(tmp_path / "site", sdk) as site:
        site.server.mounts["vectors"] = VECTORS
        tab = Tab(other.new_page(), site)
        if not tab.page.evaluate("async () => !!(navigator.gpu && await navigator.gpu.requestAdapter())"):
            pytest.skip("this Chromium has no WebGPU in software")
        values = given(site)
        manifest = json.loads((site.folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))
        manifest["device"]["execution_providers"] = ["webgpu", "wasm"]
        digest = write_json(site.folder / "bundle" / "manifest.json", manifest)
        found = tab.run(
            OPEN
            + """
            const { text } = await model.ask(await fetched(asked.image), asked.question).result;
            await model.close();
            const told = events.filter(({ type }) => type === "fallback");
            return { backend: model.info.backend, same: text === asked.text, told };
            """,
            values | {"key": "", "options": {"keys": [], "digest": digest}},
        )
        assert (found["backend"], found["same"]) == ("wasm", True)
        (event,) = found["told"]
        assert (event["from"], event["to"]) == ("webgpu", "wasm") and "cannot load" in event["reason"]


def test_the_example_of_the_readme_runs_as_written(tab: Tab, site: Site) -> None:
    text = (ROOT / "mobile" / "web" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```js\n(.*?)```", text, flags=re.DOTALL)
    lines = example.strip().splitlines()
    assert len(lines) <= 10
    site.bundle("models/web-wasm")
    answer = expected()["answers"][0]
    for name, data in (
        ("models/signer.pub", (VECTORS / expected()["bundle"]["key"]).read_bytes()),
        ("photo.png", (VECTORS / answer["image"]).read_bytes()),
    ):
        (site.folder / name).write_bytes(data)
    page = f"""<!doctype html><html lang=en><meta charset=utf-8><title>Example</title><link rel=icon href=data:,>
    <script type=importmap>{{"imports": {{"tapeout-web": "/sdk/index.js"}}}}</script>
    <img src=/photo.png alt=""><output></output>
    <script type=module>{example}; document.title = "done";</script>"""
    (site.folder / "index.html").write_text(page.replace("what is it?", answer["question"]), encoding="utf-8")
    tab.page.goto(f"{site.url}/index.html")
    tab.page.wait_for_function("document.title === 'done'", timeout=60_000)
    assert tab.page.locator("output").inner_text() == answer["text"]
