/** What a store does where the surroundings are at fault, and not the bundle: nothing good is given up for ever. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { TapeoutError, type ErrorCode } from "../src/errors";
import type { TapeoutEvent } from "../src/events";
import type { Manifest } from "../src/manifest";
import { MemoryStorage } from "../src/store/memory";
import { openVerified, type Opened, type StoreOptions } from "../src/store/open";
import { StateFile, type State } from "../src/store/state";
import { flipped, made, sha256, Signer, type Made, type Recipe } from "./bundles";
import { Fileserver } from "./server";

const signer = new Signer();
const DAY = 24 * 3600 * 1000;
const WEIGHTS = "b/decoder.onnx.data";
let server: Fileserver;
let storage: MemoryStorage;
let events: TapeoutEvent[];
let tried: { version: string; fresh: boolean; tested: string | null }[];

beforeEach(async () => {
  server = await Fileserver.start();
  storage = new MemoryStorage();
});
afterEach(() => server.close());

function serve(recipe: Recipe = {}): Made {
  const bundle = made({ signers: [signer], ...recipe });
  server.contents = bundle.contents;
  return bundle;
}

interface Settings extends StoreOptions {
  /** What trying out a version ends with, by version. */
  failing?: Record<string, () => never | Promise<never>>;
  backend?: string;
}

function open({ failing = {}, backend = "wasm", ...options }: Settings = {}): Promise<Opened<string>> {
  [events, tried] = [[], []];
  const report = (event: TapeoutEvent): void => void events.push(structuredClone(event));
  const tryOut = async ({ version }: Manifest, _: unknown, fresh: boolean, tested: string | null): Promise<string> => {
    tried.push({ version, fresh, tested });
    await failing[version]?.();
    return backend;
  };
  return openVerified(`${server.url}b/`, { keys: [signer.pem], storage, report, backendOf: (value) => value, ...options }, () => {}, tryOut);
}

async function opens(bundle: Made, settings: Settings = {}): Promise<void> {
  assert.equal((await open(settings)).digest, bundle.digest);
}

const failure = (code: ErrorCode) => (): never => {
  throw new TapeoutError(code, "on purpose");
};
const told = (): string[] => events.filter((each) => each.type !== "progress").map((each) => ("error" in each ? `${each.type} ${each.error.code}` : each.type));
const state = async (): Promise<State> => (await StateFile.open(storage)).value;

async function twoVersions(): Promise<[Made, Made]> {
  const first = serve();
  await opens(first);
  return [first, serve({ version: "1.1.0", seed: 2 })];
}

test("what the version in place fails by as well is no fault of an update's", async () => {
  const [, second] = await twoVersions();
  await assert.rejects(open({ failing: { "1.0.0": failure("runtime"), "1.1.0": failure("runtime") } }), { code: "runtime" });
  assert.deepEqual((await state()).bad, []);
  await opens(second);
  assert.deepEqual(told(), ["update"]);
});

test("an update that alone cannot be loaded is marked bad once the one in place is loaded", async () => {
  const [first, second] = await twoVersions();
  await opens(first, { failing: { "1.1.0": failure("runtime") } });
  assert.deepEqual((await state()).bad, [second.digest]);
  assert.equal(storage.entries.has(sha256(second.contents[WEIGHTS]!)), false);
});

for (const [code, bad] of [["unsupported", false], ["memory", false], ["self_test", true], ["manifest", true]] as const)
  test(`an update that fails by "${code}" is ${bad ? "" : "not "}marked bad`, async () => {
    const [first, second] = await twoVersions();
    await opens(first, { failing: { "1.1.0": failure(code) } });
    assert.deepEqual(told(), [`update_failed ${code}`, `restored ${code}`]);
    assert.deepEqual((await state()).bad, bad ? [second.digest] : []);
    await opens(bad ? first : second);
  });

test("an update that is stopped by the caller any number of times is tried again", async () => {
  const [, second] = await twoVersions();
  for (let time = 0; time < 5; time++) {
    const stop = new AbortController();
    const never = (): Promise<never> => (setTimeout(() => stop.abort(), 5), new Promise(() => {}));
    await assert.rejects(open({ signal: stop.signal, failing: { "1.1.0": never } }), { code: "aborted" });
    assert.equal(tried.length, 1, "it came to being tried out");
    assert.deepEqual([(await state()).trying, (await state()).bad], [null, []]);
  }
  await opens(second);
});

test("one that ends the page three times is given up for a day, and is not fetched meanwhile", async () => {
  const [first, second] = await twoVersions();
  const ended = async (date: number): Promise<void> => (await StateFile.open(storage)).save({ trying: { digest: second.digest, times: 3, date } });
  await ended(Date.now() - 0.9 * DAY);
  server.forget();
  await opens(first);
  assert.deepEqual(told(), ["update_failed runtime", "restored runtime"]);
  assert.deepEqual([(await state()).bad, server.requests.includes(WEIGHTS)], [[], false]);
  await ended(Date.now() - 1.1 * DAY);
  await opens(second);
  assert.deepEqual((await state()).trying, null);
});

test("each attempt is noted with its date while it lasts", async () => {
  const [, second] = await twoVersions();
  let during: State | null = null;
  const before = Date.now();
  await open({ failing: { "1.1.0": async () => ((during = await state()), failure("memory")()) } });
  const { digest, times, date } = during!.trying!;
  assert.deepEqual([digest, times, date >= before && date <= Date.now()], [second.digest, 1, true]);
});

test("a store that is full when an update fails hides neither what it failed by nor what is in place", async () => {
  const [first] = await twoVersions();
  const full = (): never => {
    storage.room = 0;
    return failure("self_test")();
  };
  await opens(first, { failing: { "1.1.0": full } });
  assert.deepEqual(told(), ["update_failed storage", "update_failed self_test", "restored self_test"]);
});

test("which backend a version passed its self-test on is kept, and told when it is opened", async () => {
  const bundle = serve();
  await opens(bundle, { backend: "webgpu" });
  assert.deepEqual(tried, [{ version: "1.0.0", fresh: true, tested: null }]);
  for (const [backend, tested] of [["webgpu", "webgpu"], ["wasm", "webgpu"], ["wasm", "wasm"]] as const) {
    await opens(bundle, { backend });
    assert.deepEqual(tried, [{ version: "1.0.0", fresh: false, tested }]);
  }
  await assert.rejects(open({ backend: "webgpu", failing: { "1.0.0": failure("self_test") } }), { code: "self_test" });
  assert.deepEqual([(await state()).current?.backend, (await state()).bad], ["wasm", []]);
});

test("a damaged manifest of the version in place lets nobody go back to an older one", async () => {
  const [, second] = await twoVersions();
  await opens(second);
  await storage.write(second.digest, flipped(second.manifest));
  const between = serve({ version: "1.0.5", seed: 3 });
  await open();
  assert.deepEqual(told(), ["update_failed rollback"]);
  await storage.remove(sha256(made({ signers: [signer] }).manifest));
  await assert.rejects(open(), { code: "rollback" });
  await opens(between, { keys: undefined, digest: between.digest });
});

for (const status of [403, 404, 410])
  test(`a server that answers ${status} for a sidecar has none`, async () => {
    const bundle = serve();
    server.faults["b.provenance.json"] = { status };
    await opens(bundle);
    assert.equal((await state()).current?.provenance, null);
    storage = new MemoryStorage();
    server.faults["b.model.sig"] = { status };
    await assert.rejects(open(), { code: "signature" });
  });

test("what the version in place lacks and cannot be fetched is told, whether it is needed or not", async () => {
  const bundle = serve();
  await opens(bundle);
  const card = "b/MODEL_CARD.md";
  for (const [fault, event] of [[{ status: 500 }, "offline network"], [{ data: new Uint8Array(7) }, "update_failed integrity"]] as const) {
    await storage.remove(sha256(bundle.contents[card]!));
    server.faults = { [card]: fault };
    await opens(bundle);
    assert.deepEqual(told(), [event]);
  }
  server.faults = {};
  await opens(bundle);
  assert.deepEqual(told(), []);
});

test("a bundle that was signed anew keeps its files and takes the new sidecars", async () => {
  const other = new Signer();
  const bundle = serve();
  await opens(bundle, { backend: "webgpu" });
  const renewed = serve({ signers: [other] });
  assert.equal(renewed.digest, bundle.digest);
  const opened = await open({ backend: "webgpu", keys: [signer.pem, other.pem] });
  assert.equal(opened.timings.download_bytes, 0);
  assert.deepEqual([(await state()).current?.provenance, (await state()).current?.backend], [sha256(renewed.contents["b.provenance.json"]!), "webgpu"]);
  assert.equal(storage.entries.has(sha256(bundle.contents["b.provenance.json"]!)), false, "the old one is gone");
  server.close();
  await opens(bundle, { keys: [other.pem] });
});

test("large files are kept out of the browser's HTTP cache, small ones need not be", async () => {
  const asked = new Map<string, RequestCache | undefined>();
  const real = globalThis.fetch;
  globalThis.fetch = (url, init) => (asked.set(new URL(String(url)).pathname, init?.cache), real(url, init));
  try {
    await opens(serve({ weights: 2_000_000 }));
  } finally {
    globalThis.fetch = real;
  }
  assert.deepEqual([asked.get(`/${WEIGHTS}`), asked.get("/b/decoder.onnx")], ["no-store", "default"]);
});
