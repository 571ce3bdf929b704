import { TapeoutError } from "../errors";
import type { Files, Manifest } from "../manifest";
import { readManifest } from "../verify/manifest";
import { checkOrigin, readTrust, type Sidecars, type Trust } from "../verify/signature";
import { Downloader, type Report, type Timings } from "./download";
import { StoredFiles } from "./files";
import { abortable, checkAborted, hold, locked } from "./lock";
import { Remote } from "./remote";
import { Shelf, type Bundle } from "./shelf";
import type { State, Version } from "./state";
import { openStorage, type Storage } from "./storage";
import { isOlder } from "./version";

export interface StoreOptions {
  /** PEM of those who may sign; digest: the sha256 of manifest.json. One of both must be there. */
  keys?: readonly string[] | undefined;
  digest?: string | undefined;
  /** "never": the server is not asked where something is in place. */
  update?: "check" | "never" | undefined;
  /** Files are read after opening, too: updates by other tabs leave them, until this worker ends. */
  lasting?: boolean | undefined;
  /** Ends it at once: a tryOut that is running is not waited for, and what it gives is dropped. */
  signal?: AbortSignal | undefined;
  report?: Report | undefined;
  /** Where to keep things; the browser's best, if not given. */
  storage?: Storage | undefined;
}

export interface Opened<T> {
  value: T;
  manifest: Manifest;
  digest: string;
  /** Whether its files came through the network this time. */
  from: "network" | "store";
  timings: Timings;
}

/** accept: throws "unsupported" for a bundle that cannot be run here, before its files are fetched. tryOut: loads it; fresh:
 * it was never used here, and has to pass its self-test; tested: the backend on which it passed it, so that it has to pass it
 * on another. backendOf: the one that a loaded bundle uses. */
export type Accept = (manifest: Manifest) => void | Promise<void>;
export type TryOut<T> = (manifest: Manifest, files: Files, fresh: boolean, tested: string | null) => Promise<T>;
export type BackendOf<T> = (value: T) => string;

/** Open the bundle at the URL of its folder: what the server has, checked before it is used, or what is in place where the
 * server has nothing better. The version before the current one is kept, and gone back to where another fails.
 *
 * Throws TapeoutError: "signature", "manifest", "integrity", "network", "storage", "aborted", and whatever accept and tryOut
 * throw; then nothing that was in place could be used either. Runs in a worker; other tabs wait until this one is done. */
export async function openVerified<T>(url: string, options: StoreOptions & { backendOf?: BackendOf<T> }, accept: Accept, tryOut: TryOut<T>): Promise<Opened<T>> {
  const trust = await readTrust(options.keys, options.digest);
  const remote = await Remote.of(url);
  const report: Report = options.report ?? (() => {});
  let storage = options.storage;
  if (!storage) {
    const found = await openStorage(remote.id);
    storage = found.storage;
    if (found.reason) report({ type: "fallback", from: "storage", to: "memory", reason: found.reason });
  }
  const opening = new Opening(remote, storage, trust, options, report, accept, tryOut);
  return locked(remote.id, options.signal, () => opening.run());
}

const CRASHES = 3; // of the page while a new version is tried out, before it is given up for a while
const WHILE = 24 * 3600 * 1000; // ms; a page that was left or loaded anew meanwhile looks like one that crashed

class Opening<T> {
  readonly #downloader: Downloader;
  #done = false;

  constructor(
    private readonly remote: Remote,
    private readonly storage: Storage,
    private readonly trust: Trust,
    private readonly options: StoreOptions & { backendOf?: BackendOf<T> },
    private readonly report: Report,
    private readonly accept: Accept,
    private readonly tryOut: TryOut<T>,
  ) {
    this.#downloader = new Downloader(remote, storage, report, options.signal);
  }

  async run(): Promise<Opened<T>> {
    const shelf = await Shelf.open(this.storage, this.remote.id);
    const standing = await shelf.trusted(this.trust);
    const [inPlace] = standing;
    let tried: Tried | null = null;
    let reached = false;
    try {
      const offered = inPlace && this.options.update === "never" ? null : await this.#offered();
      reached = true;
      if (offered && offered.manifest.digest !== inPlace?.manifest.digest) return await this.#adopted(shelf, offered, inPlace);
      if (offered && inPlace) await this.#completed(shelf, inPlace, offered);
    } catch (error) {
      if (error instanceof Tried) tried = error;
      const cause = tried?.error ?? TapeoutError.from(error, "runtime");
      if (!inPlace || isCallers(cause)) throw cause;
      const offline = !reached && cause.code === "network";
      this.report({ type: offline ? "offline" : "update_failed", error: cause.toPlain() });
    }
    const opened = await this.#standing(shelf, standing, tried?.error ?? null);
    // where the one in place fails as well, it was the surroundings: a driver, or no memory
    if (tried?.suspect && opened.digest === inPlace?.manifest.digest) await this.#writing(() => condemn(shelf, tried.suspect!));
    return opened;
  }

  /** The server's manifest and its sidecars, checked. What is wrong may be half of an upload, or a cache's: it is asked for
   * once more, past all caches. */
  async #offered(): Promise<Bundle> {
    try {
      return await this.#fetched("no-cache");
    } catch (error) {
      if (!(error instanceof TapeoutError) || !["manifest", "signature"].includes(error.code)) throw error;
      return this.#fetched("reload");
    }
  }

  async #fetched(cache: RequestCache): Promise<Bundle> {
    const { signal } = this.options;
    const where = this.remote.where;
    const manifest = await readManifest(await this.remote.manifest(cache, signal), `${where}manifest.json`);
    const beside = this.trust.keys ? await this.remote.sidecars(cache, signal) : { provenance: null, signature: null };
    await checkOrigin(manifest, beside, this.trust, where.slice(0, -1));
    return { manifest, beside };
  }

  /** Fetch, try out and keep another version than the one in place. Throws Tried where it failed at work. */
  async #adopted(shelf: Shelf, offered: Bundle, inPlace: Bundle | undefined): Promise<Opened<T>> {
    const { manifest } = offered;
    const { digest, value } = manifest;
    this.#checkUpdate(shelf, offered, inPlace);
    await this.accept(value);
    const times = crashes(shelf.state, digest);
    if (inPlace && times >= CRASHES)
      throw new Tried(new TapeoutError("runtime", `${value.name} ${value.version} ended the page ${times} times while it was tried out`, "it is tried again a day later"));
    const version = await this.#room(shelf, offered, inPlace);
    try {
      await shelf.save({ trying: { digest, times: times + 1, date: Date.now() } });
      const opened = await this.#tried(manifest, true, null);
      await this.#kept(shelf, { ...version, backend: this.#backend(opened) }, inPlace);
      if (inPlace) this.report({ type: "update", version: value.version, digest });
      return opened;
    } catch (cause) {
      const error = TapeoutError.from(cause, "runtime");
      await this.#writing(() => (inPlace && isFault(error) ? condemn(shelf, digest) : shelf.save({ trying: null })));
      throw new Tried(error, error.code === "runtime" ? digest : null);
    }
  }

  /** Write to the store what is no condition for going on: where that fails, it is told. */
  async #writing(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (cause) {
      this.report({ type: "update_failed", error: TapeoutError.from(cause, "storage").toPlain() });
    }
  }

  #backend({ value }: Opened<T>): string | null {
    return this.options.backendOf?.(value) ?? null;
  }

  /** Make a version the current one. It was loaded and runs: where that cannot be written, it is tried out anew next time. */
  async #kept(shelf: Shelf, version: Version, inPlace: Bundle | undefined): Promise<void> {
    const others = [shelf.state.current, shelf.state.previous].filter((each) => each !== null && each.digest !== version.digest);
    const previous = others.find((each) => each?.digest === inPlace?.manifest.digest) ?? others[0] ?? null;
    await this.#writing(async () => {
      await shelf.save({ current: version, previous, trying: null });
      await shelf.sweep();
    });
  }

  /** Throws where what is in place is better than what the server has. A digest that the caller names is what he wants. */
  #checkUpdate(shelf: Shelf, offered: Bundle, inPlace: Bundle | undefined): void {
    const { digest, value } = offered.manifest;
    if (inPlace && shelf.state.bad.includes(digest)) throw new TapeoutError("self_test", `${value.name} ${value.version} failed here before, and is not fetched again`, "publish another version");
    // a manifest that was damaged here makes nobody go back either
    for (const version of [inPlace?.manifest.value.version, shelf.lost?.version])
      if (version !== undefined && this.trust.digest === null && isOlder(value.version, version))
        throw new TapeoutError("rollback", `the server has ${value.name} ${value.version}, and ${version} is in place`, "publish a higher version: nobody is taken back to an older one");
  }

  /** Bring all of a bundle into the storage. Where that is full, the version before the one in place makes room. */
  async #room(shelf: Shelf, offered: Bundle, inPlace: Bundle | undefined): Promise<Version> {
    for (;;)
      try {
        const version = await shelf.lay(offered);
        await shelf.sweep(version);
        await this.#downloader.bring(offered.manifest.value.files, false);
        return version;
      } catch (error) {
        const spare = inPlace?.manifest.digest === shelf.state.current?.digest && shelf.state.previous;
        if (!spare || !(error instanceof TapeoutError && error.code === "storage")) throw error;
        await shelf.save({ previous: null });
      }
  }

  /** Fetch what the version in place lacks, and keep the sidecars that the server has now; what is left over goes. */
  async #completed(shelf: Shelf, inPlace: Bundle, offered: Bundle): Promise<void> {
    try {
      if (this.trust.keys && !areSame(inPlace.beside, offered.beside)) await shelf.renew(await shelf.lay(offered));
      await shelf.sweep();
      await this.#downloader.bring(inPlace.manifest.value.files, true);
    } catch (error) {
      const cause = TapeoutError.from(error, "runtime");
      if (isCallers(cause)) throw error;
      this.report({ type: cause.code === "network" ? "offline" : "update_failed", error: cause.toPlain() }); // it may not be needed for running
    }
  }

  /** Use what is in place, or the version before it. failure: what another version failed by. */
  async #standing(shelf: Shelf, standing: readonly Bundle[], failure: TapeoutError | null): Promise<Opened<T>> {
    for (const { manifest } of standing)
      try {
        await this.accept(manifest.value);
        const entry = shelf.entry(manifest.digest);
        const tested = entry?.backend ?? null;
        const opened = await this.#tried(manifest, false, tested);
        const backend = this.#backend(opened);
        if (entry && backend !== tested) await this.#writing(() => shelf.renew({ ...entry, backend }));
        if (failure) this.report({ type: "restored", digest: manifest.digest, error: failure.toPlain() });
        return opened;
      } catch (cause) {
        failure = TapeoutError.from(cause, "runtime");
        if (!isBundles(failure) && !isStores(failure)) throw failure;
      }
    throw failure;
  }

  async #tried(manifest: Bundle["manifest"], fresh: boolean, tested: string | null): Promise<Opened<T>> {
    checkAborted(this.options.signal);
    const files = new StoredFiles(manifest, this.storage, this.#downloader, (work) => (this.#done ? locked(this.remote.id, undefined, work) : work()));
    const value = await abortable(this.options.signal, this.tryOut(manifest.value, files, fresh, tested));
    if (this.options.lasting) await hold(this.remote.id, manifest.digest);
    this.#done = true;
    const { timings } = this.#downloader;
    return { value, manifest: manifest.value, digest: manifest.digest, from: timings.download_bytes ? "network" : "store", timings: { ...timings } };
  }
}

/** What a version failed by when it was tried out. suspect: its digest, where that may be its fault or that of what it ran on. */
class Tried extends Error {
  constructor(
    readonly error: TapeoutError,
    readonly suspect: string | null = null,
  ) {
    super(error.message);
  }
}

/** Never try out a version again. */
async function condemn(shelf: Shelf, digest: string): Promise<void> {
  await shelf.save({ trying: null, bad: [...shelf.state.bad, digest] });
  await shelf.sweep();
}

/** How often a version was begun to be tried out lately, and came to no end. */
function crashes({ trying }: State, digest: string): number {
  return trying?.digest === digest && Math.abs(Date.now() - trying.date) < WHILE ? trying.times : 0;
}

function areSame(one: Sidecars, other: Sidecars): boolean {
  const same = (left: Uint8Array | null, right: Uint8Array | null): boolean =>
    left?.length === right?.length && (left?.every((byte, place) => byte === right?.[place]) ?? true);
  return same(one.provenance, other.provenance) && same(one.signature, other.signature);
}

const isCallers = ({ code }: TapeoutError): boolean => code === "aborted" || code === "closed";
const isFault = ({ code }: TapeoutError): boolean => code === "self_test" || code === "manifest";
const isBundles = ({ code }: TapeoutError): boolean => code === "self_test" || code === "runtime" || code === "manifest" || code === "unsupported";
const isStores = ({ code }: TapeoutError): boolean => code === "integrity" || code === "storage";
