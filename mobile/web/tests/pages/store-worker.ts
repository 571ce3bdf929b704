/** A worker that opens a bundle as the SDK's does, and reads every file of it instead of running it; or spoils what is kept. */
import { TapeoutError, type ErrorCode, type PlainError } from "../../src/errors";
import type { TapeoutEvent } from "../../src/events";
import type { Files, Manifest } from "../../src/manifest";
import { openVerified } from "../../src/store/open";
import { sha256Of } from "../../src/verify/sha256";

/** kind: the storage that is to be used, others are taken away. failing: {version: code} that fail when they are tried out. */
export interface Order {
  url: string;
  keys?: string[];
  digest?: string;
  update?: "check" | "never";
  kind?: "opfs" | "cache" | "memory";
  lasting?: boolean;
  failing?: Record<string, ErrorCode>;
}

export type Outcome = {
  events: TapeoutEvent[];
  error?: PlainError;
  opened?: { version: string; digest: string; from: string; timings: object; fresh: boolean; read: Record<string, string> };
};

self.addEventListener("message", async ({ data }: MessageEvent<{ open: Order } | { flip: string; offset: number } | { list: true }>) => {
  try {
    self.postMessage("open" in data ? await open(data.open) : "flip" in data ? await flip(data.flip, data.offset) : await list());
  } catch (cause) {
    self.postMessage({ thrown: String(cause) });
  }
});

const read = ReadableStreamDefaultReader.prototype.read;
ReadableStreamDefaultReader.prototype.read = async function (this: ReadableStreamDefaultReader<Uint8Array>) {
  const result = await read.call(this);
  if (result.value) self.postMessage({ received: result.value.length });
  return result;
};

async function open({ url, keys, digest, update, kind, lasting, failing = {} }: Order): Promise<Outcome> {
  if (kind === "cache" || kind === "memory") Reflect.deleteProperty(FileSystemFileHandle.prototype, "createSyncAccessHandle");
  if (kind === "memory") Object.defineProperty(self, "caches", { value: undefined });
  const events: TapeoutEvent[] = [];
  let isFresh = false;
  const report = (event: TapeoutEvent): void => {
    events.push(event);
    self.postMessage({ event });
  };
  const tryOut = async (manifest: Manifest, files: Files, fresh: boolean): Promise<Record<string, string>> => {
    isFresh = fresh;
    const code = failing[manifest.version];
    if (code) throw new TapeoutError(code, `${manifest.version} is told to fail`);
    const read: Record<string, string> = {};
    for (const { path } of manifest.files) read[path] = await sha256Of(await files.read(path));
    return read;
  };
  try {
    const { value, manifest, digest: of, from, timings } = await openVerified(url, { keys, digest, update, lasting, report }, () => {}, tryOut);
    return { events, opened: { version: manifest.version, digest: of, from, timings, fresh: isFresh, read: value } };
  } catch (cause) {
    return { events, error: TapeoutError.from(cause, "runtime").toPlain() };
  }
}

/** Flip a bit in whatever is kept under this name; return how often it was found. */
async function flip(name: string, offset: number): Promise<number> {
  let found = 0;
  for await (const file of kept()) {
    if (file.name !== name) continue;
    const bytes = new Uint8Array(await (await file.getFile()).arrayBuffer());
    bytes[offset]! ^= 0x10;
    const stream = await file.createWritable();
    await stream.write(bytes);
    await stream.close();
    found += 1;
  }
  for (const key of await caches.keys()) {
    const cache = await caches.open(key);
    for (const request of await cache.keys()) {
      if (new URL(request.url).pathname !== `/${name}`) continue;
      const bytes = new Uint8Array(await (await cache.match(request))!.arrayBuffer());
      if (bytes.length <= offset) continue;
      bytes[offset]! ^= 0x10;
      await cache.put(request, new Response(bytes));
      found += 1;
    }
  }
  return found;
}

/** [name, bytes] of whatever is kept, in OPFS and in Cache Storage, without what another tab takes away meanwhile. */
async function list(): Promise<[string, number][]> {
  const found: [string, number][] = [];
  for await (const file of kept()) {
    const there = await file.getFile().catch(() => null);
    if (there) found.push([file.name, there.size]);
  }
  for (const key of await caches.keys())
    for (const { url } of await (await caches.open(key)).keys()) {
      const { pathname, searchParams } = new URL(url);
      found.push([pathname.slice(1), Number(searchParams.get("size"))]);
    }
  return found.sort();
}

async function* kept(): AsyncGenerator<FileSystemFileHandle> {
  const root = await navigator.storage.getDirectory();
  for await (const handle of root.values()) {
    if (handle.name !== "tapeout") continue;
    for await (const folder of (handle as FileSystemDirectoryHandle).values())
      for await (const file of (folder as FileSystemDirectoryHandle).values()) yield file as FileSystemFileHandle;
  }
}
