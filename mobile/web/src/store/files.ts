import { TapeoutError } from "../errors";
import type { Files } from "../manifest";
import type { ReadManifest } from "../verify/manifest";
import { sha256Of } from "../verify/sha256";
import type { Downloader } from "./download";
import type { Storage } from "./storage";

type File = ReadManifest["value"]["files"][number];

/** The files of a bundle in a store. Each is hashed whenever it is read; one that is damaged is fetched again, by `mend`. */
export class StoredFiles implements Files {
  readonly #files: Map<string, File>;

  constructor(
    manifest: ReadManifest,
    private readonly storage: Storage,
    private readonly downloader: Downloader,
    private readonly mending: (work: () => Promise<void>) => Promise<void>,
  ) {
    this.#files = new Map(manifest.value.files.map((file) => [file.path, file]));
  }

  async read(path: string): Promise<Uint8Array<ArrayBuffer>> {
    const file = this.#files.get(path);
    if (!file) throw new TapeoutError("manifest", `'${path}' is not among the files of the manifest`);
    return (await this.#right(file)) ?? (await this.#mended(file));
  }

  /** The bytes, or null where they are not those of the manifest. */
  async #right(file: File): Promise<Uint8Array<ArrayBuffer> | null> {
    const begun = performance.now();
    try {
      const bytes = await this.storage.read(file.sha256);
      return bytes?.length === file.size && (await sha256Of(bytes)) === file.sha256 ? bytes : null;
    } catch (error) {
      if (error instanceof RangeError) throw new TapeoutError("memory", `${file.path}: no memory for its ${file.size} bytes`, "close other pages", { cause: error });
      return null; // what cannot be read is fetched again
    } finally {
      this.downloader.timings.verify_ms += performance.now() - begun;
    }
  }

  async #mended(file: File): Promise<Uint8Array<ArrayBuffer>> {
    const there = (await this.storage.list()).get(file.sha256) === file.size;
    try {
      await this.mending(() => this.downloader.bringOne(file));
    } catch (error) {
      if (error instanceof TapeoutError && error.code === "aborted") throw error;
      const what = there ? "is damaged in the browser's storage" : "is gone from the browser's storage";
      throw TapeoutError.from(error instanceof Error ? new Error(error.message, { cause: error }) : error, there ? "integrity" : "storage", `${file.path} ${what}, and cannot be fetched again`, "open it again while online");
    }
    const bytes = await this.#right(file);
    if (bytes) return bytes;
    throw new TapeoutError("integrity", `${file.path} is damaged in the browser's storage as soon as it is written`, "check the device's disk");
  }
}
