/** tapeout-web: ask a vision-language model about an image, in the browser. README.md says how. */
import { TapeoutError } from "./errors";
import type { Backend, TapeoutEvent } from "./events";
import { Model } from "./model";
import { BUILD, type FromWorker, type ToWorker, type WorkerOptions } from "./protocol";

export { Answer } from "./answer";
export { CODES, TapeoutError, type ErrorCode, type PlainError } from "./errors";
export type { AnswerMetrics, Backend, OpenMetrics, Result, TapeoutEvent } from "./events";
export { Model, type AskOptions, type Question } from "./model";
export type { Image } from "./pictures";
export type { Info } from "./protocol";
export type { Frame, FrameSource, WatchOptions } from "./video";

export interface OpenOptions {
  keys?: string[]; // public keys (PEM, SPKI) that a bundle may be signed by
  digest?: string; // sha256 of the bundle's manifest.json: that one and no other, signed or not
  backend?: Backend; // by default what works, in the bundle's order
  threads?: number; // of WebAssembly; by default up to 4, and 1 where the page is not cross-origin isolated
  memory?: "normal" | "low"; // low: the encoder is given back after each image, and loaded again for the next
  update?: "check" | "never"; // never: what is in place is used without asking the server
  assets?: string; // URL of the folder dist/; by default where this module came from
  signal?: AbortSignal;
  onEvent?(event: TapeoutEvent): void;
}

/** Opens the bundle at url, the first of several that works here: fetched where it is not stored yet, checked, self-tested.
 *
 * Throws TapeoutError "signature" where neither keys nor a digest are given, and any other code of mobile/spec but "closed".
 */
export async function open(url: string | string[], options: OpenOptions = {}): Promise<Model> {
  const { signal, onEvent, ...rest } = options;
  if (!globalThis.crypto?.subtle)
    throw new TapeoutError("unsupported", "this page is not secure: the browser gives it nothing to check signatures by", "Serve it over https, or from localhost.");
  if (rest.keys !== undefined && !(Array.isArray(rest.keys) && rest.keys.every((key) => typeof key === "string")))
    throw new TapeoutError("signature", "keys is no list of texts", "Give { keys: [PEM] }.");
  const report = (event: TapeoutEvent): void => onEvent?.(event);
  if (!rest.keys?.length && !rest.digest)
    throw new TapeoutError("signature", "a bundle is opened with the keys that may sign it, or with its digest", "Give { keys: [PEM] }.");
  if (signal?.aborted) throw new TapeoutError("aborted", "opening was stopped");
  const urls = [url].flat().map(addressOf);
  if (!urls.length) throw new TapeoutError("network", "there is no URL to open", "Give the URL of a bundle's folder.");
  const base = rest.assets === undefined ? undefined : addressOf(rest.assets);
  const worker = startWorker(base);
  const settings: WorkerOptions = base === undefined ? rest : { ...rest, assets: base };
  return new Promise<Model>((resolve, reject) => {
    const quiet = (): void => {
      worker.removeEventListener("message", hear);
      worker.removeEventListener("error", broken);
      signal?.removeEventListener("abort", abort);
    };
    const fail = (error: TapeoutError): void => {
      quiet();
      worker.terminate();
      reject(error);
    };
    const abort = (): void => {
      quiet();
      const stop: ToWorker = { type: "stop" };
      worker.postMessage(stop);
      const end = setTimeout(() => worker.terminate(), STOP_MS);
      worker.addEventListener("message", ({ data }: MessageEvent<FromWorker>) => {
        if (data.type === "event") return;
        clearTimeout(end);
        worker.terminate();
      });
      reject(new TapeoutError("aborted", "opening was stopped"));
    };
    const broken = (event: ErrorEvent): void => {
      event.preventDefault();
      fail(new TapeoutError("unsupported", `the worker does not start: ${event.message || "its script cannot be loaded"}`, "Serve the files of dist/ side by side, or say by `assets` where they lie."));
    };
    const hear = ({ data }: MessageEvent<FromWorker>): void => {
      if (data.type === "event") return report(data.event);
      quiet();
      if (data.type === "opened") {
        resolve(new Model(worker, data.info, report));
        if (data.metrics.from === "network") void askToKeep();
        report({ type: "metrics", scope: "open", metrics: data.metrics });
      } else if (data.type === "failed") fail(TapeoutError.fromPlain(data.error));
    };
    worker.addEventListener("message", hear);
    worker.addEventListener("error", broken);
    signal?.addEventListener("abort", abort, { once: true });
    const message: ToWorker = { type: "open", build: BUILD, urls, options: settings };
    try {
      worker.postMessage(message);
    } catch (cause) {
      fail(TapeoutError.from(cause, "unsupported", "the options cannot be given to the worker"));
    }
  });
}

/** A folder's URL, as seen from the page. Throws "network" for what is no URL. */
function addressOf(url: string): string {
  try {
    const found = new URL(url, globalThis.document?.baseURI ?? location.href);
    if (!url) throw new TypeError("it is empty");
    found.pathname = found.pathname.replace(/\/*$/, "/");
    found.hash = "";
    return found.href;
  } catch (cause) {
    throw new TapeoutError("network", `${JSON.stringify(url)} is no URL`, "Give the URL of a bundle's folder.", { cause });
  }
}

const STOP_MS = 10_000; // for the worker to note in the store that it was stopped, and did not crash

/** Ask the browser not to clear what was just fetched when the device runs short of room: only a page may. */
async function askToKeep(): Promise<void> {
  try {
    if (!(await navigator.storage.persisted())) await navigator.storage.persist();
  } catch {
    return; // no store here, or none that is asked: it may be cleared then, and is fetched again
  }
}

/** Throws "unsupported" where the page's policy forbids the worker. */
function startWorker(base: string | undefined): Worker {
  try {
    return workerOf(base);
  } catch (cause) {
    throw TapeoutError.from(cause, "unsupported", "the worker cannot be started", "Allow it in the page's Content-Security-Policy: worker-src 'self' blob:.");
  }
}

/** A worker must come from the page's origin: from elsewhere it is started by a line of ours that imports it. */
function workerOf(base: string | undefined): Worker {
  const place = base === undefined ? null : new URL("worker.js", base);
  if (place === null && new URL(import.meta.url).origin === location.origin)
    return new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "tapeout" });
  const script = place ?? new URL("./worker.js", import.meta.url);
  if (script.origin === location.origin) return new Worker(script, { type: "module", name: "tapeout" });
  const line = URL.createObjectURL(new Blob([`import ${JSON.stringify(script.href)};`], { type: "text/javascript" }));
  const worker = new Worker(line, { type: "module", name: "tapeout" });
  worker.addEventListener("message", () => URL.revokeObjectURL(line), { once: true });
  return worker;
}
