import { TapeoutError } from "../errors";
import { storing, type Appender, type Storage } from "./storage";

const ROOT = "tapeout";
const PIECE = 1 << 20;
const TRIES = 40; // of a file that a tab that was just closed still holds
const PAUSE = 100; // ms between them

/** The origin's private file system, in a worker: a file an entry, written in place by a synchronous handle. Throws where
 * the browser has none, or none that can be written from here. */
export async function openFolderStorage(id: string): Promise<Storage> {
  if (typeof FileSystemFileHandle === "undefined" || !("createSyncAccessHandle" in FileSystemFileHandle.prototype))
    throw new TapeoutError("storage", "no private file system can be written from here");
  const root = await navigator.storage.getDirectory();
  const all = await root.getDirectoryHandle(ROOT, { create: true });
  return new FolderStorage(await all.getDirectoryHandle(id, { create: true }));
}

/** What TypeScript's types of a page lack: https://fs.spec.whatwg.org/#api-filesystemsyncaccesshandle */
interface SyncAccessHandle {
  write(bytes: Uint8Array<ArrayBuffer>, options: { at: number }): number;
  truncate(size: number): void;
  getSize(): number;
  flush(): void;
  close(): void;
}

class FolderStorage implements Storage {
  readonly kind = "opfs";
  readonly #folder: FileSystemDirectoryHandle;

  constructor(folder: FileSystemDirectoryHandle) {
    this.#folder = folder;
  }

  list(): Promise<Map<string, number>> {
    return storing("the store cannot be listed", async () => {
      const found = new Map<string, number>();
      for await (const [name, handle] of this.#folder.entries())
        if (handle.kind === "file") found.set(name, (await (handle as FileSystemFileHandle).getFile()).size);
      return found;
    });
  }

  read(name: string): Promise<Uint8Array<ArrayBuffer> | null> {
    return storing("the store cannot be read", async () => {
      const file = await this.#file(name);
      return file && new Uint8Array(await file.arrayBuffer());
    });
  }

  async *pieces(name: string): AsyncIterable<Uint8Array> {
    const file = await storing("the store cannot be read", () => this.#file(name));
    for (let place = 0; file && place < file.size; place += PIECE) {
      const piece = file.slice(place, place + PIECE);
      yield new Uint8Array(await storing("the store cannot be read", () => piece.arrayBuffer()));
    }
  }

  async write(name: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    await storing("the store cannot be written", async () => {
      const handle = await this.#open(name);
      try {
        handle.truncate(0);
        writeAll(handle, bytes, 0);
        handle.flush();
      } finally {
        handle.close();
      }
      await this.#checkKept(name, bytes.length);
    });
  }

  append(name: string): Promise<Appender> {
    return storing("the store cannot be written", async () => {
      const handle = await this.#open(name);
      let end = handle.getSize();
      return {
        write: (piece) =>
          storing("the store cannot be written", async () => {
            writeAll(handle, piece, end);
            end += piece.length;
          }),
        close: () =>
          storing("the store cannot be written", async () => {
            try {
              handle.flush();
            } finally {
              handle.close();
            }
            await this.#checkKept(name, end);
          }),
      };
    });
  }

  async remove(name: string): Promise<void> {
    await storing("the store cannot be written", async () => {
      try {
        await this.#patiently(() => this.#folder.removeEntry(name));
      } catch (cause) {
        if (!isNamed(cause, "NotFoundError")) throw cause;
      }
    });
  }

  /** Chromium takes bytes beyond the quota without a word at times, and leaves them out. */
  async #checkKept(name: string, size: number): Promise<void> {
    const kept = (await this.#file(name))?.size;
    if (kept !== size) throw new DOMException(`${kept} of ${size} bytes were kept`, "QuotaExceededError");
  }

  async #file(name: string): Promise<File | null> {
    try {
      return await (await this.#folder.getFileHandle(name)).getFile();
    } catch (cause) {
      if (isNamed(cause, "NotFoundError")) return null;
      throw cause;
    }
  }

  async #open(name: string): Promise<SyncAccessHandle> {
    const file = (await this.#folder.getFileHandle(name, { create: true })) as unknown as { createSyncAccessHandle(): Promise<SyncAccessHandle> };
    return this.#patiently(() => file.createSyncAccessHandle());
  }

  /** The lock of a tab that has just been closed goes a little after it. */
  async #patiently<T>(work: () => Promise<T>): Promise<T> {
    for (let left = TRIES; ; left--)
      try {
        return await work();
      } catch (cause) {
        if (!isNamed(cause, "NoModificationAllowedError") || !left) throw cause;
        await new Promise((resolve) => setTimeout(resolve, PAUSE));
      }
  }
}

/** A synchronous handle may write less than it was given where no room is left. */
function writeAll(handle: SyncAccessHandle, bytes: Uint8Array<ArrayBuffer>, place: number): void {
  const written = handle.write(bytes, { at: place });
  if (written < bytes.length) throw new DOMException(`${written} of ${bytes.length} bytes could be written`, "QuotaExceededError");
}

function isNamed(cause: unknown, name: string): boolean {
  return cause instanceof Error && cause.name === name;
}
