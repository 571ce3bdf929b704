import { TapeoutError } from "../errors";
import { readManifest, type ReadManifest } from "../verify/manifest";
import { sha256Of } from "../verify/sha256";
import { checkOrigin, type Sidecars, type Trust } from "../verify/signature";
import { ETAG } from "./download";
import { held } from "./lock";
import { SLOTS, StateFile, type State, type Version } from "./state";
import type { Storage } from "./storage";

/** A bundle whose manifest and sidecars are at hand. */
export interface Bundle {
  manifest: ReadManifest;
  beside: Sidecars;
}

/** The versions of a bundle in a storage: manifests, sidecars and files, each under its sha256. */
export class Shelf {
  private constructor(
    private readonly storage: Storage,
    private readonly name: string,
    private readonly file: StateFile,
    private readonly versions: Map<string, Bundle>,
  ) {}

  /** name: of the lock that guards the storage. */
  static async open(storage: Storage, name: string): Promise<Shelf> {
    const file = await StateFile.open(storage);
    const versions = new Map<string, Bundle>();
    for (const version of [file.value.current, file.value.previous]) {
      const bundle = version && (await stored(storage, version));
      if (bundle) versions.set(version.digest, bundle);
    }
    return new Shelf(storage, name, file, versions);
  }

  get state(): State {
    return this.file.value;
  }

  save(changes: Partial<State>): Promise<void> {
    return this.file.save(changes);
  }

  /** What stands here and is trusted, the current version first. What was trusted when it came need not be so now. */
  async trusted(trust: Trust): Promise<Bundle[]> {
    const found: Bundle[] = [];
    for (const version of [this.state.current, this.state.previous]) {
      const bundle = version && this.versions.get(version.digest);
      if (bundle && (await isTrusted(bundle, trust))) found.push(bundle);
    }
    return found;
  }

  /** The version that a state names as current, where its manifest is gone or damaged. */
  get lost(): Version | null {
    const { current } = this.state;
    return current && !this.versions.has(current.digest) ? current : null;
  }

  /** The state's entry of a bundle. */
  entry(digest: string): Version | null {
    return [this.state.current, this.state.previous].find((each) => each?.digest === digest) ?? null;
  }

  /** Write what changed of a version in place. */
  async renew(version: Version): Promise<void> {
    const renewed = (old: Version | null): Version | null => (old?.digest === version.digest ? version : old);
    await this.save({ current: renewed(this.state.current), previous: renewed(this.state.previous) });
  }

  /** Write a bundle's manifest and sidecars; return its entry for the state. */
  async lay({ manifest, beside }: Bundle): Promise<Version> {
    const sidecar = async (bytes: Uint8Array<ArrayBuffer> | null): Promise<string | null> => bytes && this.#written(bytes);
    this.versions.set(manifest.digest, { manifest, beside });
    return {
      digest: await this.#written(manifest.bytes),
      version: manifest.value.version,
      provenance: await sidecar(beside.provenance),
      signature: await sidecar(beside.signature),
      backend: this.entry(manifest.digest)?.backend ?? null,
    };
  }

  /** Remove whatever belongs to neither the current version, nor the previous, nor to `another`, nor to one that is held. */
  async sweep(another?: Version): Promise<void> {
    const kept = new Set<string>(SLOTS);
    const keep = (digest: string, bundle: Bundle | null | undefined): void => {
      kept.add(digest);
      for (const { sha256 } of bundle?.manifest.value.files ?? []) kept.add(sha256).add(ETAG(sha256));
    };
    for (const version of [this.state.current, this.state.previous, another]) {
      if (!version) continue;
      keep(version.digest, this.versions.get(version.digest));
      for (const name of [version.provenance, version.signature]) if (name) kept.add(name);
    }
    for (const digest of await held(this.name))
      if (!kept.has(digest)) keep(digest, await stored(this.storage, { digest, provenance: null, signature: null }));
    for (const name of (await this.storage.list()).keys()) if (!kept.has(name)) await this.storage.remove(name);
  }

  async #written(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
    const name = await sha256Of(bytes);
    const there = await this.storage.read(name);
    if (!there || (await sha256Of(there)) !== name) await this.storage.write(name, bytes);
    return name;
  }
}

/** A version's manifest and sidecars; null where the manifest is not the one that was noted. */
async function stored(storage: Storage, version: Pick<Version, "digest" | "provenance" | "signature">): Promise<Bundle | null> {
  const read = async (name: string | null): Promise<Uint8Array<ArrayBuffer> | null> => name === null ? null : storage.read(name);
  try {
    const bytes = await read(version.digest);
    const manifest = bytes && (await readManifest(bytes, "the manifest in the browser's storage"));
    if (!manifest || manifest.digest !== version.digest) return null;
    return { manifest, beside: { provenance: await read(version.provenance), signature: await read(version.signature) } };
  } catch {
    return null; // damaged: it is fetched again
  }
}

async function isTrusted({ manifest, beside }: Bundle, trust: Trust): Promise<boolean> {
  try {
    await checkOrigin(manifest, beside, trust, "the bundle in the browser's storage");
    return true;
  } catch (error) {
    if (error instanceof TapeoutError && error.code === "signature") return false;
    throw error;
  }
}
