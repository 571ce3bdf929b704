import { TapeoutError } from "../errors";
import { SUFFIXES, type Sidecars } from "../verify/signature";
import { MAXIMUM as ENVELOPE } from "../verify/dsse";
import { MAXIMUM as MANIFEST, NAME } from "../verify/manifest";
import { sha256Of } from "../verify/sha256";
import { checkAborted } from "./lock";

const PATIENCE = 30_000; // ms without a byte
/** What servers say of a sidecar that is not there; some show nothing that is not listed. One of both must be there anyway. */
const ABSENT = [403, 404, 410];
const RETRY = "check the connection and open it again: what was fetched is kept";

/** What a server answered. */
export interface Answer {
  status: number;
  headers: Headers;
  /** The body; ends the connection when it is left early. Throws "network" where it ends too soon, "aborted". */
  pieces: AsyncIterable<Uint8Array<ArrayBuffer>>;
  /** End the connection, where nobody wants the body. */
  leave(): void;
}

/** A bundle on a server. id: names it in the browser's storage, in hex; where: its URL without what may be secret. */
export class Remote {
  private constructor(private readonly base: URL, readonly id: string) {}

  /** url: of the bundle's folder. A query goes with each request. Throws "network" for what is no address on the web. */
  static async of(url: string): Promise<Remote> {
    let base: URL;
    try {
      base = new URL(url, typeof location === "undefined" ? undefined : location.href);
    } catch (cause) {
      throw new TapeoutError("network", `'${url}' is no URL`, "pass the URL of the bundle's folder", { cause });
    }
    if (!/^https?:$/.test(base.protocol)) throw new TapeoutError("network", `'${url}' is not on the web`, "pass the URL of the bundle's folder");
    base.hash = "";
    if (!base.pathname.endsWith("/")) base.pathname += "/";
    const name = await sha256Of(new TextEncoder().encode(base.origin + base.pathname));
    return new Remote(base, name.slice(0, 32));
  }

  get where(): string {
    return this.base.origin + this.base.pathname;
  }

  get sameOrigin(): boolean {
    return typeof location === "undefined" || location.origin === this.base.origin;
  }

  /** manifest.json, at most a little more than is ever accepted. */
  async manifest(cache: RequestCache, signal?: AbortSignal): Promise<Uint8Array<ArrayBuffer>> {
    const url = this.#url(this.base.pathname + NAME);
    const bytes = await small(url, MANIFEST, cache, signal, [404]);
    if (bytes) return bytes;
    throw new TapeoutError("network", `${shown(url)} is not there`, "pass the URL of a bundle's folder, with its manifest.json");
  }

  async sidecars(cache: RequestCache, signal?: AbortSignal): Promise<Sidecars> {
    const get = (suffix: string): Promise<Uint8Array<ArrayBuffer> | null> =>
      small(this.#url(this.base.pathname.slice(0, -1) + suffix), ENVELOPE, cache, signal, ABSENT);
    const [provenance, signature] = await Promise.all([get(SUFFIXES.provenance), get(SUFFIXES.signature)]);
    return { provenance, signature };
  }

  /** Ask for one of the bundle's files. Throws "network" where there is no answer; "aborted". */
  file(path: string, cache: RequestCache, headers: Record<string, string>, signal?: AbortSignal): Promise<Answer> {
    return ask(this.#url(this.base.pathname + path.split("/").map(encodeURIComponent).join("/")), cache, headers, signal);
  }

  #url(pathname: string): URL {
    const url = new URL(this.base);
    url.pathname = pathname; // begins at the root whatever it is: the host stays
    return url;
  }
}

/** A small file, at most a piece more than `limit` bytes; null where the server has none, which it says by `none`. */
async function small(url: URL, limit: number, cache: RequestCache, signal: AbortSignal | undefined, none: readonly number[]): Promise<Uint8Array<ArrayBuffer> | null> {
  const answer = await ask(url, cache, {}, signal);
  if (answer.status !== 200) answer.leave();
  if (none.includes(answer.status)) return null;
  if (answer.status !== 200) throw refusedBy(shown(url), answer.status);
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  let size = 0;
  for await (const piece of answer.pieces) {
    pieces.push(piece);
    size += piece.length;
    if (size > limit) break;
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

async function ask(url: URL, cache: RequestCache, headers: Record<string, string>, signal?: AbortSignal): Promise<Answer> {
  checkAborted(signal);
  const stop = new AbortController();
  const forward = (): void => stop.abort();
  const leave = (): void => {
    signal?.removeEventListener("abort", forward);
    stop.abort(); // nothing where all has come
  };
  let watch: ReturnType<typeof setTimeout> | undefined;
  const patient = async <T>(work: Promise<T>): Promise<T> => {
    watch = setTimeout(forward, PATIENCE);
    try {
      return await work;
    } catch (cause) {
      checkAborted(signal);
      const why = stop.signal.aborted ? `nothing came for ${PATIENCE / 1000} s` : cause instanceof Error ? cause.message : String(cause);
      throw new TapeoutError("network", `${shown(url)}: ${why}`, RETRY, { cause });
    } finally {
      clearTimeout(watch);
    }
  };
  signal?.addEventListener("abort", forward);
  try {
    const response = await patient(fetch(url, { cache, headers, signal: stop.signal, credentials: "same-origin" }));
    return { status: response.status, headers: response.headers, pieces: pieces(response), leave };
  } catch (error) {
    leave();
    throw error;
  }

  async function* pieces(response: Response): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const reader = response.body?.getReader();
    try {
      while (reader) {
        const { done, value } = await patient(reader.read());
        if (done) return;
        yield value;
      }
    } finally {
      leave();
    }
  }
}

export function refusedBy(where: string, status: number): TapeoutError {
  return new TapeoutError("network", `${where}: the server answered with ${status}`, RETRY);
}

/** A URL without its query, which may be a secret. */
function shown(url: URL): string {
  return url.origin + url.pathname;
}
