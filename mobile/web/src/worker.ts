/** The worker: opens a bundle, then answers one question after the other. */
import { Engine } from "./engine/engine";
import type { Visual } from "./engine/encoder";
import { check, type Stop } from "./engine/generate";
import { pause } from "./engine/pause";
import { usableBackends } from "./engine/runtime";
import { TapeoutError } from "./errors";
import type { TapeoutEvent } from "./events";
import { decodeImage } from "./image/decode";
import type { Files, Manifest } from "./manifest";
import { BUILD, type FromWorker, type Info, type Picture, type ToWorker, type WorkerOptions } from "./protocol";
import { openVerified } from "./store/open";

type Asked = Extract<ToWorker, { type: "ask" }> & { signal: { aborted: boolean } };

const FLUSH_MS = 8; // pieces of an answer that come closer together cross in one message
const SEEN = 2; // images whose visual tokens are kept

let engine: Engine | null = null;
const opening = new AbortController();
const queue: Asked[] = []; // the first is being answered
let warm: Promise<void> = Promise.resolve(); // a session takes one run at a time
const seen = new Map<number, Visual>(); // by key, the one used last at the end

self.addEventListener("message", ({ data }: MessageEvent<ToWorker>) => {
  if (data.type === "open") void open(data);
  else if (data.type === "abort") stop(data.id);
  else if (data.type === "stop") opening.abort();
  else {
    queue.push({ ...data, signal: { aborted: false } });
    if (queue.length === 1) void work();
  }
});

self.addEventListener("messageerror", () => {
  throw new RangeError("no memory for what the page gave"); // the page hears of it as of the worker's end
});

function post(message: FromWorker): void {
  self.postMessage(message);
}

const report = (event: TapeoutEvent): void => post({ type: "event", event });

async function open({ build, urls, options }: Extract<ToWorker, { type: "open" }>): Promise<void> {
  try {
    if (build !== BUILD)
      throw new TapeoutError("unsupported", "the page and its worker are of different builds of the SDK", "Reload the page; serve index.js and worker.js of one build.");
    const opened = await openFirst(urls, options);
    engine = opened.value.engine;
    const { manifest, digest, from, timings } = opened;
    const { name, version, self_test: questions } = manifest;
    const { backend, threads } = opened.value.engine;
    const info: Info = { name, version, digest, backend, threads, questions };
    const { load_ms, self_test_ms } = opened.value;
    post({ type: "opened", info, metrics: { ...timings, load_ms, self_test_ms, from } });
    warm = opened.value.engine.warmUp(() => !queue.length).catch(() => undefined); // what fails will fail an answer, and be told
  } catch (cause) {
    post({ type: "failed", error: TapeoutError.from(cause, "runtime").toPlain() });
  }
}

/** The first bundle whose own backend works here; failing that, the first that runs on another of its backends. */
async function openFirst(urls: string[], options: WorkerOptions) {
  let last: unknown;
  let passed = false; // whether a bundle was left for another one's sake
  for (const strict of urls.length > 1 ? [true, false] : [false])
    for (const [place, url] of urls.entries()) {
      try {
        return await openOne(url, options, strict);
      } catch (cause) {
        const error = TapeoutError.from(cause, "runtime");
        if (error.code === "aborted") throw cause;
        passed ||= strict && error.code === "unsupported";
        if (place === urls.length - 1 && !(strict && passed)) throw last ?? cause;
        if (error.code !== "unsupported") last ??= cause; // what went wrong where it might have worked says most
        const to = urls[(place + 1) % urls.length]!;
        report({ type: "fallback", from: url, to, reason: error.message });
      }
    }
  throw last;
}

function openOne(url: string, options: WorkerOptions, strict: boolean) {
  const { keys, digest, update } = options;
  const accept = async (manifest: Manifest) => {
    const [first] = await usableBackends(manifest, options.backend);
    const preferred = manifest.device.execution_providers?.[0];
    if (strict && first !== preferred)
      throw new TapeoutError("unsupported", `${preferred} does not work here, and ${manifest.device.name} is made for it`);
  };
  type Tested = { engine: Engine; load_ms: number; self_test_ms: number };
  const tryOut = async (manifest: Manifest, files: Files, fresh: boolean, tested: string | null, backend = options.backend): Promise<Tested> => {
    const began = performance.now();
    const opened = await Engine.open(manifest, files, backend ? { ...options, backend } : options, report);
    const loaded = performance.now();
    const untested = fresh || opened.backend !== tested;
    try {
      if (untested) await opened.selfTest(manifest, files);
    } catch (cause) {
      await opened.close().catch(() => undefined); // what went wrong before says more
      const error = TapeoutError.from(cause, "runtime");
      const usable = await usableBackends(manifest, backend);
      const next = usable[usable.indexOf(opened.backend) + 1];
      if (!next || !["self_test", "runtime", "memory"].includes(error.code)) throw cause;
      report({ type: "fallback", from: opened.backend, to: next, reason: error.message }); // what is wrong on one backend need not be the bundle's fault
      return tryOut(manifest, files, fresh, tested, next);
    }
    return { engine: opened, load_ms: loaded - began, self_test_ms: untested ? performance.now() - loaded : 0 };
  };
  const settings = { lasting: options.memory === "low", ...(keys && { keys }), ...(digest && { digest }), ...(update && { update }) };
  const backendOf = (value: { engine: Engine }): string => value.engine.backend;
  return openVerified(url, { ...settings, report, signal: opening.signal, backendOf }, accept, tryOut);
}

function stop(id: number): void {
  const place = queue.findIndex((asked) => asked.id === id);
  const asked = queue[place];
  if (!asked) return; // answered in the meantime
  asked.signal.aborted = true;
  if (place === 0) return; // `answer` sees it
  queue.splice(place, 1);
  letGo(asked.picture);
}

async function work(): Promise<void> {
  await warm;
  for (let asked = queue[0]; asked; queue.shift(), asked = queue[0]) await answer(asked);
}

async function answer({ id, picture, question, maxTokens, signal }: Asked): Promise<void> {
  let text = "";
  let flushed = -Infinity;
  const onPiece = (piece: string): void => {
    text += piece;
    const now = performance.now();
    if (now - flushed < FLUSH_MS) return;
    post({ type: "piece", id, text });
    text = "";
    flushed = now;
  };
  try {
    if (!engine) throw new TapeoutError("closed", "the model is not open");
    const ids = engine.read(question);
    const { visual, decode_ms } = await look(engine, picture, signal);
    const result = await engine.ask(visual, ids, { signal, onPiece, ...(maxTokens !== undefined && { maxTokens }) });
    if (visual && decode_ms !== null) {
      const { metrics } = result; // the image was new: what it took belongs to this answer
      metrics.prepare_ms = decode_ms + visual.prepare_ms;
      metrics.encode_ms = visual.encode_ms;
      metrics.first_token_ms += metrics.prepare_ms + metrics.encode_ms;
    }
    post({ type: "answered", id, text, result });
  } catch (cause) {
    post({ type: "refused", id, error: TapeoutError.from(cause, "runtime").toPlain() });
  } finally {
    letGo(picture);
  }
}

/** The visual tokens of a picture, new, or kept: then decode_ms is null. */
async function look(engine: Engine, picture: Picture | null, signal: Stop): Promise<{ visual: Visual | null; decode_ms: number | null }> {
  if (!picture) return { visual: null, decode_ms: null };
  const { key, source } = picture;
  let visual = seen.get(key);
  let decode_ms: number | null = null;
  if (!visual) {
    const began = performance.now();
    const pixels = await decodeImage(source);
    decode_ms = performance.now() - began;
    await pause();
    check(signal);
    visual = await engine.see(pixels);
    await pause();
  }
  seen.delete(key);
  seen.set(key, visual);
  for (const old of seen.keys()) if (seen.size > SEEN) seen.delete(old);
  return { visual, decode_ms };
}

function letGo(picture: Picture | null): void {
  if (picture && "close" in picture.source) picture.source.close();
}
