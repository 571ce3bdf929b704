/** The conformance vectors of what is fetched, verified and kept: mobile/spec/vectors, "tampered", "accepted", "updates" and
 * "versions". */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { TapeoutError } from "../src/errors";
import type { TapeoutEvent } from "../src/events";
import type { Files, Manifest } from "../src/manifest";
import { MemoryStorage } from "../src/store/memory";
import { openVerified } from "../src/store/open";
import { compared } from "../src/store/version";
import type { Contents } from "./bundles";
import { Fileserver } from "./server";

interface Change {
  op: "flip" | "truncate" | "append" | "remove" | "replace";
  file: string;
  offset: number;
  mask: number;
  size: number;
  base64: string;
  with: string;
}
interface Vectors {
  bundle: { path: string; digest: string; key: string };
  tampered: { name: string; changes: Change[]; error: string }[];
  accepted: { name: string; changes: Change[] }[];
  updates: { name: string; first: Change[]; then: Change[]; error: string | null }[];
  versions: { ascending: string[]; equal: [string, string][] };
}

const FOLDER = "../spec/vectors";
const bytesOf = (path: string): Uint8Array<ArrayBuffer> => new Uint8Array(readFileSync(`${FOLDER}/${path}`));
const vectors = JSON.parse(readFileSync(`${FOLDER}/vectors.json`, "utf8")) as Vectors;
const keys = [readFileSync(`${FOLDER}/${vectors.bundle.key}`, "utf8")];
const whole: Contents = {};
for (const entry of readdirSync(`${FOLDER}/bundle`, { recursive: true, withFileTypes: true }))
  if (entry.isFile()) {
    const path = `${entry.parentPath.slice(FOLDER.length + 1)}/${entry.name}`;
    whole[path] = bytesOf(path);
  }
for (const beside of ["bundle.provenance.json", "bundle.model.sig"]) whole[beside] = bytesOf(beside);

let server: Fileserver;
before(async () => void (server = await Fileserver.start()));
after(() => server.close());

/** The bundle's files after the changes, in their order. */
function changed(changes: readonly Change[]): Contents {
  const contents = { ...whole };
  for (const change of changes) {
    const now = contents[change.file] ?? new Uint8Array(0);
    if (change.op === "remove") delete contents[change.file];
    else if (change.op === "replace") contents[change.file] = bytesOf(change.with);
    else if (change.op === "truncate") contents[change.file] = now.slice(0, change.size);
    else if (change.op === "append") contents[change.file] = new Uint8Array(Buffer.concat([now, Buffer.from(change.base64, "base64")]));
    else {
      const copy = now.slice();
      copy[change.offset]! ^= change.mask;
      contents[change.file] = copy;
    }
  }
  return contents;
}

/** Open what the server has; every file is read. Return the digest that is used, and the events. */
async function opened(storage: MemoryStorage): Promise<{ digest: string; events: TapeoutEvent[] }> {
  const events: TapeoutEvent[] = [];
  const readAll = async (manifest: Manifest, files: Files): Promise<void> => {
    for (const { path } of manifest.files) await files.read(path);
  };
  const { digest } = await openVerified(`${server.url}bundle/`, { keys, storage, report: (event) => events.push(event) }, () => {}, readAll);
  return { digest, events };
}

test("the reference bundle opens", async () => {
  server.contents = whole;
  assert.equal((await opened(new MemoryStorage())).digest, vectors.bundle.digest);
});

for (const { name, changes, error } of vectors.tampered)
  test(`tampered: ${name}: ${error}`, async () => {
    server.contents = changed(changes);
    const thrown = await opened(new MemoryStorage()).then(() => assert.fail("it was opened"), (cause: unknown) => cause);
    assert.ok(thrown instanceof TapeoutError, String(thrown));
    assert.equal(thrown.code, error, thrown.message);
  });

for (const { name, changes } of vectors.accepted)
  test(`accepted: ${name}`, async () => {
    server.contents = changed(changes);
    await opened(new MemoryStorage());
  });

for (const { name, first, then, error } of vectors.updates)
  test(`update: ${name}: ${error ?? "taken"}`, async () => {
    const storage = new MemoryStorage();
    server.contents = changed(first);
    const { digest } = await opened(storage);
    server.contents = changed(then);
    const { digest: now, events } = await opened(storage);
    const failed = events.flatMap((event) => (event.type === "update_failed" ? [event.error.code] : []));
    assert.deepEqual(failed, error ? [error] : []);
    assert.equal(now === digest, error !== null);
  });

test("versions are ordered as the vectors have them", () => {
  const { ascending, equal } = vectors.versions;
  assert.ok(ascending.length > 10 && equal.length > 3);
  for (const [place, one] of ascending.entries()) for (const [other, two] of ascending.entries()) assert.equal(compared(one, two), Math.sign(place - other), `${one} ${two}`);
  for (const [one, two] of equal) assert.equal(compared(one, two), 0, `${one} ${two}`);
});
