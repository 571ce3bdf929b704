import { TapeoutError } from "../errors";
import type { TapeoutEvent } from "../events";
import type { Manifest } from "../manifest";
import { AGAIN } from "../verify/json";
import { Hasher } from "../verify/sha256";
import { checkAborted } from "./lock";
import { refusedBy, type Answer, type Remote } from "./remote";
import { noRoom, type Storage } from "./storage";

type File = Manifest["files"][number];
export type Report = (event: TapeoutEvent) => void;
/** Told how many bytes of a file are there. */
type Tell = (have: number, last: boolean) => void;

const LARGE = 1 << 20; // bytes from which on a file is kept out of the browser's HTTP cache, where it would lie a second time
const OFTEN = 100; // ms between two reports of progress

/** What opening took. download_bytes: what came through the network; ms: of wall time; verify_ms: hashing. */
export interface Timings {
  download_bytes: number;
  download_ms: number;
  verify_ms: number;
}

/** Where a file begins to be kept: ETAG(sha256) names the entry with the ETag of the file whose beginning lies there. */
export const ETAG = (sha256: string): string => `${sha256}.etag`;

/** Brings files into a storage, each under its sha256, so that versions share what they have in common. What was fetched of
 * one is never fetched again: another call goes on where the last one ended. */
export class Downloader {
  readonly timings: Timings = { download_bytes: 0, download_ms: 0, verify_ms: 0 };
  #told = 0;

  constructor(
    private readonly remote: Remote,
    private readonly storage: Storage,
    private readonly report: Report,
    private readonly signal?: AbortSignal,
  ) {}

  /** Bring all files. checked: those of the right size were checked before. Throws "network", "integrity", "storage",
   * "aborted"; what was fetched until then stays. */
  async bring(files: readonly File[], checked: boolean): Promise<void> {
    const there = await this.storage.list();
    const needed = [...new Map(files.map((file) => [file.sha256, file])).values()];
    const sizes = needed.map((file) => file.size);
    const total = sum(sizes);
    await this.#checkRoom(sum(needed.map((file) => Math.max(0, file.size - (there.get(file.sha256) ?? 0)))));
    let before = 0;
    for (const file of needed) {
      const tell = (have: number, last: boolean): void => this.#tell(before + have, total, file.path, last);
      if (!checked || there.get(file.sha256) !== file.size) await this.bringOne(file, tell, there);
      before += file.size;
    }
  }

  /** Bring one file; tell: how many bytes of it are there. Throws as `bring` does. */
  async bringOne(file: File, tell: Tell = () => {}, there?: Map<string, number>): Promise<void> {
    const begun = performance.now();
    const verified = this.timings.verify_ms;
    try {
      let part = await this.#begun(file, (there ?? (await this.storage.list())).get(file.sha256));
      if (part.there && part.have === file.size) {
        if (part.hash.digest() === file.sha256) return tell(file.size, true);
        part = await this.#restarted(file);
      }
      for (const again of [false, true]) {
        if (await this.#fetched(file, part, again, tell)) {
          await this.storage.remove(ETAG(file.sha256));
          return tell(file.size, true);
        }
        part = await this.#restarted(file);
      }
    } finally {
      this.timings.download_ms += performance.now() - begun - (this.timings.verify_ms - verified);
    }
    throw new TapeoutError("integrity", `${this.remote.where}${file.path}: not what the manifest says (${file.size} bytes, sha256 ${file.sha256.slice(0, 16)}...)`, AGAIN);
  }

  /** What lies there of a file, hashed as far as it goes. */
  async #begun(file: File, have: number | undefined): Promise<Part> {
    if (have !== undefined && have > file.size) return this.#restarted(file);
    const part = new Part(have ?? 0, have !== undefined);
    if (have) for await (const piece of this.storage.pieces(file.sha256)) this.#hash(part, piece);
    return part;
  }

  async #restarted(file: File): Promise<Part> {
    await this.storage.remove(file.sha256);
    await this.storage.remove(ETAG(file.sha256));
    return new Part(0, false);
  }

  /** Fetch what is missing of a file; again: past all caches. Return whether it is right then. */
  async #fetched(file: File, part: Part, again: boolean, tell: Tell): Promise<boolean> {
    const answer = await this.#asked(file, part, again);
    if (!answer) return false;
    if (answer.status === 200 && part.have) part = await this.#restarted(file);
    if (!part.have) await this.#noteTag(file, answer.headers.get("etag"));
    const appender = await this.storage.append(file.sha256);
    try {
      for await (const piece of answer.pieces) {
        checkAborted(this.signal);
        this.timings.download_bytes += piece.length;
        if (part.have + piece.length > file.size) return false; // it goes on beyond its end
        await appender.write(piece);
        this.#hash(part, piece);
        part.have += piece.length;
        tell(part.have, false);
      }
    } catch (error) {
      if (!(error instanceof TapeoutError && error.code === "network" && part.have === file.size)) throw error;
    } finally {
      await appender.close();
    }
    if (part.have === file.size) return part.hash.digest() === file.sha256;
    if (again || answer.headers.has("content-length")) return false; // it is shorter on the server
    throw new TapeoutError("network", `${this.remote.where}${file.path}: ended after ${part.have} of ${file.size} bytes`, "open it again: what was fetched is kept");
  }

  /** Ask for a file from where it ends here; null where the server has another file than the one begun. */
  async #asked(file: File, part: Part, again: boolean): Promise<Answer | null> {
    const headers: Record<string, string> = {};
    const tag = part.have ? await this.#tag(file) : null;
    if (part.have) headers["Range"] = `bytes=${part.have}-`;
    // to another origin, If-Range would take a preflight, which few servers answer; the sha256 finds out there
    if (tag && this.remote.sameOrigin) headers["If-Range"] = tag;
    const cache = part.have || file.size >= LARGE ? "no-store" : again ? "reload" : "default";
    const answer = await this.#answered(file, cache, headers);
    if (answer.status === 200) return answer;
    const ranged = answer.status === 206 && part.have > 0;
    if (!ranged) answer.leave();
    if (answer.status === 404) {
      if (!part.have && !again) return null; // a cache may say so
      throw new TapeoutError("integrity", `${this.remote.where}${file.path}: the manifest lists it, and the server has none`, AGAIN);
    }
    if (!ranged && answer.status !== 416) throw refusedBy(this.remote.where + file.path, answer.status);
    const goesOn = ranged && continues(answer.headers.get("content-range"), part.have, file.size);
    const newTag = answer.headers.get("etag");
    if (goesOn && (!tag || !newTag || tag === newTag)) return answer;
    answer.leave();
    return null;
  }

  /** Where a part is not given, for want of a preflight or by a redirect to another origin, the whole may be. */
  async #answered(file: File, cache: RequestCache, headers: Record<string, string>): Promise<Answer> {
    try {
      return await this.remote.file(file.path, cache, headers, this.signal);
    } catch (error) {
      if (!("Range" in headers && error instanceof TapeoutError && error.code === "network")) throw error;
      return this.remote.file(file.path, cache, {}, this.signal);
    }
  }

  /** A strong ETag is kept beside the file's beginning: a weak one does not promise the same bytes. */
  async #noteTag(file: File, tag: string | null): Promise<void> {
    if (tag && !tag.startsWith("W/")) await this.storage.write(ETAG(file.sha256), new TextEncoder().encode(tag));
  }

  async #tag(file: File): Promise<string | null> {
    const bytes = await this.storage.read(ETAG(file.sha256));
    return bytes?.length ? new TextDecoder().decode(bytes) : null;
  }

  #hash(part: Part, piece: Uint8Array): void {
    const before = part.hash.milliseconds;
    part.hash.update(piece);
    this.timings.verify_ms += part.hash.milliseconds - before;
  }

  #tell(loaded: number, total: number, file: string, last: boolean): void {
    const now = performance.now();
    if (!last && now - this.#told < OFTEN) return;
    this.#told = now;
    this.report({ type: "progress", loaded, total, file });
  }

  /** Throws "storage" before anything is fetched where the browser says that there is no room for it. */
  async #checkRoom(missing: number): Promise<void> {
    if (!missing || this.storage.kind === "memory") return;
    const { quota, usage } = (await navigator.storage?.estimate?.().catch(() => undefined)) ?? {};
    if (quota === undefined || usage === undefined || quota - usage >= missing) return;
    throw noRoom(`the bundle needs ${missing} bytes more, and the browser lets this site keep ${Math.max(0, quota - usage)}`);
  }
}

/** have: bytes that lie there; there: whether the entry exists. */
class Part {
  readonly hash = new Hasher();

  constructor(
    public have: number,
    public there: boolean,
  ) {}
}

/** Whether a part begins where the file ends here, and ends with it. A server of another origin may not show the header. */
function continues(range: string | null, have: number, size: number): boolean {
  const found = range === null ? null : /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(range.trim());
  if (range === null) return true;
  return found !== null && Number(found[1]) === have && (found[3] === "*" || Number(found[3]) === size);
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((whole, each) => whole + each, 0);
}
