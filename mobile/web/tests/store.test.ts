/** Opening a bundle from a real server into a store, with whatever can go wrong on the way. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { TapeoutError, type ErrorCode } from "../src/errors";
import type { TapeoutEvent } from "../src/events";
import type { Files, Manifest } from "../src/manifest";
import { MemoryStorage } from "../src/store/memory";
import { openVerified, type Opened, type StoreOptions } from "../src/store/open";
import { StateFile } from "../src/store/state";
import { compared } from "../src/store/version";
import { flipped, made, sha256, Signer, type Made, type Recipe } from "./bundles";
import { Fileserver } from "./server";

const signer = new Signer();
let server: Fileserver;
let storage: MemoryStorage;
let events: TapeoutEvent[];

beforeEach(async () => {
  server = await Fileserver.start();
  storage = new MemoryStorage();
  events = [];
});
afterEach(() => server.close());

const signed = (recipe: Recipe = {}): Made => made({ signers: [signer], ...recipe });

function serve(recipe: Recipe = {}): Made {
  const bundle = signed(recipe);
  server.contents = bundle.contents;
  return bundle;
}

type Read = Record<string, string>;

/** Read every file, as running it would. */
async function readAll(manifest: Manifest, files: Files): Promise<Read> {
  const found: Read = {};
  for (const { path } of manifest.files) found[path] = sha256(await files.read(path));
  return found;
}

interface Settings extends StoreOptions {
  accept?: (manifest: Manifest) => void;
  tryOut?: (manifest: Manifest, files: Files, fresh: boolean) => Promise<Read>;
}

function open({ accept = () => {}, tryOut = readAll, ...options }: Settings = {}): Promise<Opened<Read>> {
  events = [];
  const report = (event: TapeoutEvent): void => void events.push(structuredClone(event));
  return openVerified(`${server.url}b/`, { keys: [signer.pem], storage, report, ...options }, accept, tryOut);
}

/** Open, and hold against the bundle what was read. */
async function opens(bundle: Made, settings: Settings = {}): Promise<Opened<Read>> {
  const opened = await open(settings);
  assert.equal(opened.digest, bundle.digest);
  for (const { path, sha256: digest } of opened.manifest.files) assert.equal(opened.value[path], digest, path);
  return opened;
}

async function fails(code: ErrorCode, settings: Settings = {}, saying = /./): Promise<TapeoutError> {
  const error = await open(settings).then(
    () => assert.fail(`expected "${code}"`),
    (cause: unknown) => cause,
  );
  assert.ok(error instanceof TapeoutError, String((error as Error).stack));
  assert.equal(error.code, code, error.message);
  assert.match(error.message, saying);
  return error;
}

/** Events but those of progress; an error's code beside its event's type. */
const told = (): string[] => events.filter((each) => each.type !== "progress").map((each) => ("error" in each ? `${each.type} ${each.error.code}` : each.type));
const asked = (path: string): number => server.requests.filter((each) => each.split(" bytes=")[0] === `b/${path}`).length;
const WEIGHTS = "b/decoder.onnx.data";

test("a bundle is fetched once, then comes from the store", async () => {
  const bundle = serve();
  const opened = await opens(bundle);
  assert.equal(opened.from, "network");
  assert.equal(opened.timings.download_bytes, bundle.size);
  assert.ok(opened.timings.download_ms > 0 && opened.timings.verify_ms > 0);
  assert.deepEqual(told(), []);
  const progress = events.filter((each) => each.type === "progress");
  assert.deepEqual(progress.map((each) => each.total).filter((each) => each !== bundle.size), []);
  assert.equal(progress.at(-1)?.loaded, bundle.size);
  assert.equal(Math.max(...progress.map((each) => each.loaded)), bundle.size);
  server.forget();
  const again = await opens(bundle);
  assert.equal(again.from, "store");
  assert.equal(again.timings.download_bytes, 0);
  assert.deepEqual(server.requests.sort(), ["b.model.sig", "b.provenance.json", "b/manifest.json"]);
});

test("with the server stopped, the second visit answers; the first cannot", async () => {
  const bundle = serve();
  await opens(bundle);
  server.close();
  assert.equal((await opens(bundle)).from, "store");
  assert.deepEqual(told(), ["offline network"]);
  storage = new MemoryStorage();
  await fails("network");
});

test("a server that answers with an error is as good as none", async () => {
  const bundle = serve();
  server.faults["b/manifest.json"] = { status: 503 };
  await fails("network", {}, /503/);
  server.faults = {};
  await opens(bundle);
  server.faults["b/manifest.json"] = { status: 404 };
  await opens(bundle);
  assert.deepEqual(told(), ["offline network"]);
  server.faults = { "b.model.sig": { status: 500 } };
  await opens(bundle);
  assert.deepEqual(told(), ["offline network"]);
});

test("one sidecar is enough", async () => {
  await opens(serve({ beside: ["provenance"] }));
  storage = new MemoryStorage();
  await opens(serve({ beside: ["signature"] }));
});

for (const [path, code] of [
  ["b/manifest.json", /^(manifest|signature)$/], ["b.provenance.json", /^signature$/], ["b.model.sig", /^signature$/], ["b/MODEL_CARD.md", /^integrity$/],
  ["b/decoder.onnx", /^integrity$/], [WEIGHTS, /^integrity$/], ["b/encoder.onnx", /^integrity$/], ["b/self_test/0 ä.png", /^integrity$/], ["b/sbom.cdx.json", /^integrity$/],
] as const)
  test(`one flipped bit in ${path} is seen, and nothing of it is run`, async () => {
    const bundle = serve();
    const right = bundle.contents[path]!;
    for (const place of [0, right.length >> 1, right.length - 1]) {
      storage = new MemoryStorage();
      server.forget();
      server.faults = { [path]: { data: flipped(right, place) } };
      const error = await open({ tryOut: () => assert.fail("run") }).then(
        () => assert.fail("opened"),
        (cause: TapeoutError) => cause,
      );
      assert.match(error.code, code, error.message);
      assert.equal(server.requests.filter((each) => each === path).length, 2, "asked for twice");
    }
    server.faults = {};
    await opens(bundle);
  });

test("a damage that is a cache's is overcome by asking once more", async () => {
  const bundle = serve();
  const paths = Object.keys(bundle.contents).filter((path) => path !== "b/empty.txt");
  for (const some of [["b/manifest.json"], paths.filter((path) => path !== "b/manifest.json")]) {
    storage = new MemoryStorage();
    for (const path of some) server.faults[path] = { data: flipped(bundle.contents[path]!), times: 1 };
    await opens(bundle);
  }
});

test("no file is fetched before the signature is right and the bundle accepted", async () => {
  const bundle = serve();
  server.contents = { ...bundle.contents, "b.model.sig": flipped(bundle.contents["b.model.sig"]!, 2000) };
  await fails("signature");
  await fails("signature", { keys: [new Signer().pem] });
  await fails("signature", { keys: [] });
  server.contents = bundle.contents;
  await fails("unsupported", { accept: () => { throw new TapeoutError("unsupported", "not here"); } });
  assert.deepEqual(server.requests.filter((each) => each.startsWith("b/") && each !== "b/manifest.json"), []);
});

test("a digest stands for a signature", async () => {
  const bundle = serve({ signers: [] });
  await fails("signature", {}, /nobody signed/);
  await opens(bundle, { keys: undefined, digest: bundle.digest });
  await fails("signature", { keys: undefined, digest: "0".repeat(64) });
});

test("what is in place is used only by who trusts it, and is never fetched again for that", async () => {
  const bundle = serve();
  const stranger = new Signer();
  await opens(bundle);
  server.forget();
  await fails("signature", { keys: [stranger.pem] });
  server.contents = { ...bundle.contents, ...signedBy(bundle, stranger) };
  const opened = await opens(bundle, { keys: [stranger.pem] });
  assert.equal(opened.timings.download_bytes, 0);
  server.close();
  await opens(bundle, { keys: [stranger.pem] });
  await fails("network");
  await opens(bundle, { keys: undefined, digest: bundle.digest });
});

/** The sidecars of the same bundle, signed by another. */
function signedBy(bundle: Made, by: Signer): Made["contents"] {
  const other = made({ signers: [by] });
  assert.equal(other.digest, bundle.digest);
  return Object.fromEntries(Object.entries(other.contents).filter(([path]) => path.startsWith("b.")));
}

for (const cut of [0, 1, 100_000, 199_999])
  test(`a connection that ends after ${cut} bytes of the weights is gone on with`, async () => {
    const bundle = serve();
    server.faults[WEIGHTS] = { cut, times: 1 };
    await fails("network");
    const kept = sizeIn(bundle, "decoder.onnx.data");
    assert.ok(kept <= cut);
    server.faults = {};
    const before = server.sent;
    const opened = await opens(bundle);
    assert.equal(opened.timings.download_bytes, bundle.size - kept - restOf(bundle));
    assert.ok(server.sent - before < bundle.size - kept + 30_000);
    if (kept) assert.ok(server.requests.includes(`${WEIGHTS} bytes=${kept}-`));
  });

/** Bytes that lie in the store of a bundle's file. */
function sizeIn(bundle: Made, path: string): number {
  return storage.entries.get(sha256(bundle.contents[`b/${path}`]!))?.reduce((sum, piece) => sum + piece.length, 0) ?? 0;
}

/** Bytes of the files before the weights. */
function restOf(bundle: Made): number {
  return bundle.contents["b/MODEL_CARD.md"]!.length + bundle.contents["b/decoder.onnx"]!.length;
}

test("ten connections that end one after the other give a whole bundle, nothing of it fetched twice", async () => {
  const bundle = serve({ weights: 1_000_000 });
  server.faults[WEIGHTS] = { cut: 100_000 };
  for (let tries = 0; sizeIn(bundle, "decoder.onnx.data") < 900_000 && tries < 50; tries++) await fails("network");
  assert.ok(sizeIn(bundle, "decoder.onnx.data") >= 900_000);
  server.faults = {};
  assert.ok((await opens(bundle)).timings.download_bytes <= bundle.size - 900_000);
  assert.ok(server.sent < 1.2 * bundle.size, `${server.sent} of ${bundle.size}`);
});

test("a server without ranges sends the file anew", async () => {
  const bundle = serve();
  server.ranges = false;
  server.faults[WEIGHTS] = { cut: 150_000, times: 1 };
  await fails("network");
  assert.ok(sizeIn(bundle, "decoder.onnx.data") > 0);
  await opens(bundle);
});

for (const tags of [true, false])
  test(`another file behind the same name since then ${tags ? "is seen by its ETag" : "is seen by its sha256"}`, async () => {
    const bundle = serve();
    server.tags = tags;
    server.faults[WEIGHTS] = { cut: 150_000, times: 1, data: flipped(bundle.contents[WEIGHTS]!, 10) };
    await fails("network");
    server.forget();
    await opens(bundle);
    assert.equal(asked("decoder.onnx.data"), tags ? 1 : 2);
  });

test("a part that is longer than the file here counts for nothing", async () => {
  const bundle = serve();
  await storage.write(sha256(bundle.contents[WEIGHTS]!), new Uint8Array(300_000));
  await opens(bundle);
});

test("a whole file that lies there is hashed before it is believed", async () => {
  const bundle = serve();
  await storage.write(sha256(bundle.contents[WEIGHTS]!), flipped(bundle.contents[WEIGHTS]!));
  assert.equal((await opens(bundle)).timings.download_bytes, bundle.size);
});

test("a shorter file on the server is no connection that ended", async () => {
  const bundle = serve();
  server.faults[WEIGHTS] = { data: bundle.contents[WEIGHTS]!.subarray(0, 100_000) };
  await fails("integrity");
  assert.equal(asked("decoder.onnx.data"), 2);
  server.faults[WEIGHTS] = { cut: 100_000, untold: true, times: 1 };
  await fails("network", {}, /ended after 100000 of 200000/);
  server.faults = {};
  await opens(bundle);
  assert.ok(server.requests.includes(`${WEIGHTS} bytes=100000-`));
});

test("a longer file is stopped at its end", async () => {
  const bundle = serve();
  server.faults[WEIGHTS] = { data: Buffer.concat([bundle.contents[WEIGHTS]!, new Uint8Array(5_000_000)]) };
  await fails("integrity");
  assert.ok(sizeIn(bundle, "decoder.onnx.data") <= 200_000);
  server.faults[WEIGHTS] = { data: Buffer.concat([bundle.contents[WEIGHTS]!, new Uint8Array(1)]) };
  await fails("integrity");
});

test("manifests and sidecars without end are refused", async () => {
  serve();
  server.faults["b/manifest.json"] = { data: new Uint8Array(6 << 20).fill(32) };
  await fails("manifest", {}, /more than/);
  server.faults = { "b.model.sig": { data: new Uint8Array(18 << 20).fill(32) } };
  await fails("signature", {}, /more than/);
});

test("a redirect leads to a bundle as good as any", async () => {
  const bundle = serve();
  const elsewhere = await Fileserver.start();
  elsewhere.contents = bundle.contents;
  for (const path of Object.keys(bundle.contents)) server.faults[path] = { location: elsewhere.url + encodeURI(path) };
  await opens(bundle);
  elsewhere.close();
});

test("an update is tried out, and the version before it kept", async () => {
  const first = serve();
  await opens(first);
  const fresh: boolean[] = [];
  const second = serve({ version: "1.1.0", seed: 2 });
  const opened = await opens(second, { tryOut: (manifest, files, isFresh) => (fresh.push(isFresh), readAll(manifest, files)) });
  assert.deepEqual([told(), fresh, opened.from], [["update"], [true], "network"]);
  assert.equal(opened.timings.download_bytes, 200_000, "what both have in common is not fetched again");
  assert.ok(sizeIn(first, "decoder.onnx.data") === 200_000);
  const third = serve({ version: "1.2.0", seed: 3 });
  await opens(third);
  assert.equal(sizeIn(first, "decoder.onnx.data"), 0, "the one before that is gone");
  assert.equal(sizeIn(second, "decoder.onnx.data"), 200_000);
});

test("with update never, the server is not asked where something is in place", async () => {
  const first = serve();
  await opens(first, { update: "never" });
  serve({ version: "1.1.0", seed: 2 });
  server.forget();
  await opens(first, { update: "never" });
  assert.deepEqual(server.requests, []);
});

for (const code of ["self_test", "runtime"] as const)
  test(`an update that fails by "${code}" is gone back from, remembered, and not fetched again`, async () => {
    const first = serve();
    await opens(first);
    const second = serve({ version: "1.1.0", seed: 2 });
    const tryOut = async (manifest: Manifest, files: Files): Promise<Read> => {
      if (manifest.version === "1.1.0") throw code === "runtime" ? new Error("crash") : new TapeoutError(code, "answers wrong");
      return readAll(manifest, files);
    };
    await opens(first, { tryOut });
    assert.deepEqual(told(), [`update_failed ${code}`, `restored ${code}`]);
    assert.equal(sizeIn(second, "decoder.onnx.data"), 0);
    server.forget();
    await opens(first);
    assert.deepEqual(told(), ["update_failed self_test"]);
    assert.equal(asked("decoder.onnx.data"), 0);
    await opens(serve({ version: "1.1.1", seed: 4 }));
    assert.deepEqual(told(), ["update"]);
  });

for (const code of ["memory", "integrity"] as const)
  test(`an update that fails by "${code}" is tried again the next time, without fetching`, async () => {
    const first = serve();
    await opens(first);
    const second = serve({ version: "1.1.0", seed: 2 });
    const tryOut = async (manifest: Manifest, files: Files): Promise<Read> => {
      if (manifest.version === "1.1.0") throw new TapeoutError(code, "now");
      return readAll(manifest, files);
    };
    await opens(first, { tryOut });
    assert.deepEqual(told(), [`update_failed ${code}`, `restored ${code}`]);
    server.forget();
    assert.equal((await opens(second)).timings.download_bytes, 0);
  });

test("a first version that fails its self-test is thrown, kept, and not fetched again", async () => {
  const bundle = serve();
  await fails("self_test", { tryOut: () => Promise.reject(new TapeoutError("self_test", "wrong")) });
  assert.equal((await opens(bundle)).timings.download_bytes, 0);
});

test("a new version that ends the page three times is given up", async () => {
  const first = serve();
  await opens(first);
  const second = serve({ version: "1.1.0", seed: 2 });
  const state = await StateFile.open(storage);
  await state.save({ trying: { digest: second.digest, times: 3, date: Date.now() } });
  await opens(first, { tryOut: (manifest, files) => (manifest.version === "1.1.0" ? assert.fail("tried") : readAll(manifest, files)) });
  assert.deepEqual(told(), ["update_failed runtime", "restored runtime"]);
});

test("an older version is refused, one of the same number is not", async () => {
  const first = serve({ version: "0.10.0" });
  await opens(first);
  serve({ version: "0.9.0", seed: 2 });
  server.forget();
  await opens(first);
  assert.deepEqual(told(), ["update_failed rollback"]);
  assert.equal(asked("decoder.onnx.data"), 0);
  await opens(serve({ version: "0.10.0", seed: 3 }));
  assert.deepEqual(told(), ["update"]);
  const older = serve({ version: "0.9.0", seed: 2 });
  await opens(older, { keys: undefined, digest: older.digest });
});

test("versions are ordered by their numbers, then by what is before a release", () => {
  const rows = ["0.9", "0.9.1", "0.10.0-alpha", "0.10.0-alpha.1", "0.10.0-alpha.beta", "0.10.0-beta.2", "0.10.0-beta.11", "0.10.0-rc.1", "0.10.0", "0.10.0.1", "1", "2.0a"];
  for (const [place, one] of rows.entries()) for (const [other, two] of rows.entries()) assert.equal(compared(one, two), Math.sign(place - other), `${one} ${two}`);
  for (const [one, two] of [["1", "1.0.0"], ["v1.2", "1.2"], ["1.0+a", "1.0+b"], ["01.2", "1.2"]]) assert.equal(compared(one!, two!), 0, `${one} ${two}`);
});

test("an update that cannot be fetched leaves what is in place", async () => {
  const first = serve();
  await opens(first);
  for (const [fault, code] of [[{ cut: 100_000 }, "network"], [{ status: 500 }, "network"], [{ data: new Uint8Array(200_000) }, "integrity"]] as const) {
    serve({ version: "1.1.0", seed: 2 });
    server.faults = { [WEIGHTS]: fault };
    await opens(first);
    assert.deepEqual(told(), [`update_failed ${code}`]);
    server.faults = {};
  }
  server.contents = { ...signed({ version: "1.1.0", seed: 2 }).contents, "b.model.sig": new Uint8Array(5) };
  await opens(first);
  assert.deepEqual(told(), ["update_failed signature"]);
  server.faults = {};
  await opens(serve({ version: "1.1.0", seed: 2 }));
});

test("a full store is an error, and what is in place stays", async () => {
  const first = serve();
  storage.room = 100_000;
  await fails("storage");
  storage.room = 300_000;
  await opens(first);
  serve({ version: "1.1.0", seed: 2 });
  await opens(first);
  assert.deepEqual(told(), ["update_failed storage"]);
  storage.room = 1_000_000;
  const second = serve({ version: "1.1.0", seed: 2 });
  await opens(second);
});

test("where the store is full, the version before the one in place makes room for an update", async () => {
  storage.room = 500_000;
  const first = serve();
  await opens(first);
  const second = serve({ version: "1.1.0", seed: 2 });
  await opens(second);
  const third = serve({ version: "1.2.0", seed: 3 });
  await opens(third);
  assert.deepEqual(told(), ["update"]);
  assert.equal(sizeIn(second, "decoder.onnx.data"), 200_000);
});

test("a damaged file is fetched again; with the server stopped, the version before is used", async () => {
  const first = serve();
  await opens(first);
  const second = serve({ version: "1.1.0", seed: 2 });
  await opens(second);
  const name = sha256(second.contents[WEIGHTS]!);
  const damage = (): Promise<void> => storage.write(name, flipped(second.contents[WEIGHTS]!));
  await damage();
  assert.equal((await opens(second)).timings.download_bytes, 200_000);
  await storage.remove(name);
  assert.equal((await opens(second)).timings.download_bytes, 200_000);
  await damage();
  server.faults = Object.fromEntries(Object.keys(second.contents).map((path) => [path, { status: 500 }]));
  await opens(first);
  assert.deepEqual(told(), ["offline network", "restored integrity"]);
  server.faults = {};
  await opens(second);
  await damage();
  await storage.write(sha256(first.contents[WEIGHTS]!), flipped(first.contents[WEIGHTS]!));
  server.close();
  await fails("integrity");
});

test("a damaged manifest or state is fetched again, files are not", async () => {
  const bundle = serve();
  await opens(bundle);
  await storage.write(bundle.digest, flipped(bundle.manifest));
  assert.equal((await opens(bundle)).timings.download_bytes, 0);
  for (const slot of ["state.0", "state.1"]) await storage.write(slot, new Uint8Array(3));
  assert.equal((await opens(bundle)).timings.download_bytes, 0);
  server.close();
  await opens(bundle);
});

test("of two states, one is whole whatever is cut off", async () => {
  const states = await StateFile.open(storage);
  for (const number of [1, 2, 3]) await states.save({ bad: [String(number)] });
  await storage.write("state.1", (await storage.read("state.1"))!.slice(0, 50));
  assert.deepEqual((await StateFile.open(storage)).value.bad, ["2"]);
});

test("what is left over of a download that nobody wants any more is removed", async () => {
  const first = serve();
  await opens(first);
  const second = serve({ version: "1.1.0", seed: 2 });
  server.faults[WEIGHTS] = { cut: 100_000, times: 1 };
  await opens(first);
  assert.ok(sizeIn(second, "decoder.onnx.data") > 0);
  server.contents = first.contents;
  await opens(first);
  assert.equal(sizeIn(second, "decoder.onnx.data"), 0);
  const names = new Set(storage.entries.keys());
  for (const path of Object.keys(first.contents)) names.delete(sha256(first.contents[path]!));
  assert.deepEqual([...names].sort(), ["state.0", "state.1"]);
});

test("two that open at once fetch once", async () => {
  const bundle = serve({ weights: 2_000_000 });
  await Promise.all([opens(bundle), opens(bundle), opens(bundle)]);
  assert.equal(asked("decoder.onnx.data"), 1);
});

test("an abort ends it, and what was fetched stays", async () => {
  const bundle = serve();
  server.faults[WEIGHTS] = { cut: 100_000, stall: true, times: 1 };
  const stop = new AbortController();
  setTimeout(() => stop.abort(), 150);
  await fails("aborted", { signal: stop.signal });
  assert.equal(sizeIn(bundle, "decoder.onnx.data"), 100_000);
  await fails("aborted", { signal: AbortSignal.abort() });
  await opens(bundle);
});

test("an abort while it is tried out leaves the version as it was", async () => {
  const bundle = serve();
  await fails("aborted", { tryOut: () => Promise.reject(new TapeoutError("aborted", "stopped")) });
  await opens(bundle);
  const second = serve({ version: "1.1.0", seed: 2 });
  await fails("aborted", { tryOut: () => Promise.reject(new TapeoutError("aborted", "stopped")) });
  await opens(second);
});

test("files are read by their names in the manifest, also long after opening", async () => {
  const bundle = serve();
  let files: Files | undefined;
  await opens(bundle, { tryOut: (manifest, given) => ((files = given), readAll(manifest, given)) });
  await assert.rejects(files!.read("../b.model.sig"), { code: "manifest" });
  await storage.remove(sha256(bundle.contents[WEIGHTS]!));
  assert.equal(sha256(await files!.read("decoder.onnx.data")), sha256(bundle.contents[WEIGHTS]!));
  await storage.remove(sha256(bundle.contents[WEIGHTS]!));
  server.close();
  await assert.rejects(files!.read("decoder.onnx.data"), { code: "storage" });
});

test("a query goes with each request, and into no message", async () => {
  serve();
  const url = `${server.url}b?token=secret`;
  await openVerified(url, { keys: [signer.pem], storage }, () => {}, readAll);
  server.contents = {};
  server.faults = { "b/manifest.json": { status: 403 } };
  await assert.rejects(openVerified(url, { keys: [signer.pem], storage: new MemoryStorage() }, () => {}, readAll), (error: Error) => !error.message.includes("secret"));
  for (const wrong of ["", "b/", "file:///b/", "data:,x"]) await assert.rejects(openVerified(wrong, { keys: [signer.pem], storage }, () => {}, readAll), { code: "network" });
});
