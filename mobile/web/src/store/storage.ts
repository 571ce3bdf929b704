import { TapeoutError } from "../errors";
import { openCacheStorage } from "./cache";
import { openFolderStorage } from "./folder";
import { MemoryStorage } from "./memory";

/** Where the bundles of one URL are kept: entries by name (a word of [a-z0-9.-]), which grow at their end alone.
 *
 * folder.ts keeps them in OPFS, cache.ts in Cache Storage, memory.ts nowhere. Each method throws TapeoutError "storage", and RangeError where there is no memory for what it reads.
 * Nothing is atomic: whoever reads must be able to tell a whole entry from half of one. */
export interface Storage {
  readonly kind: "opfs" | "cache" | "memory";
  /** {name: bytes} of all entries. */
  list(): Promise<Map<string, number>>;
  /** A whole entry; null: there is none. */
  read(name: string): Promise<Uint8Array<ArrayBuffer> | null>;
  /** An entry, piece by piece. */
  pieces(name: string): AsyncIterable<Uint8Array>;
  /** Write a small entry, in the place of another of this name. */
  write(name: string, bytes: Uint8Array<ArrayBuffer>): Promise<void>;
  /** Open an entry, made where there is none, to add to its end. One at a time. */
  append(name: string): Promise<Appender>;
  remove(name: string): Promise<void>;
}

export interface Appender {
  write(piece: Uint8Array<ArrayBuffer>): Promise<void>;
  /** What was written is there after this; without it, most of it. */
  close(): Promise<void>;
}

/** The best storage of this browser for what `id` (hex) names: OPFS, else Cache Storage, else memory, which is gone with the
 * page. reason: why the last. */
export async function openStorage(id: string): Promise<{ storage: Storage; reason: string }> {
  const reasons: string[] = [];
  for (const open of [openFolderStorage, openCacheStorage])
    try {
      return { storage: await open(id), reason: "" };
    } catch (cause) {
      reasons.push(cause instanceof Error ? cause.message : String(cause));
    }
  return { storage: new MemoryStorage(), reason: reasons.join("; ") };
}

/** Do something with the browser's storage. Throws "storage" for whatever it throws. */
export async function storing<T>(what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (cause instanceof TapeoutError || cause instanceof RangeError) throw cause; // the latter: no memory
    const full = cause instanceof Error && (cause.name === "QuotaExceededError" || /quota/i.test(cause.message));
    if (full) throw noRoom(`${what}: no room is left`, cause);
    throw TapeoutError.from(cause, "storage", what, "free some room, or open the page anew");
  }
}

export function noRoom(message: string, cause?: unknown): TapeoutError {
  return new TapeoutError("storage", message, "free room on the device, or let the site keep more; what is in place stays", { cause });
}
