import { isObject, objectOf } from "../verify/json";
import { sha256Of } from "../verify/sha256";
import type { Storage } from "./storage";

/** A version that was whole, checked and tried out. digest: of its manifest; provenance, signature: sha256 of its sidecars,
 * under which they are kept, or null; backend: where it passed its self-test last, null: not told. */
export interface Version {
  digest: string;
  version: string;
  provenance: string | null;
  signature: string | null;
  backend: string | null;
}

/** What a store knows of its versions. previous: the last good one before the current; bad: digests of those that failed
 * here; trying: the one that was being tried out when this was written, how often, and when last (Date.now()). */
export interface State {
  current: Version | null;
  previous: Version | null;
  bad: string[];
  trying: { digest: string; times: number; date: number } | null;
}

export const SLOTS = ["state.0", "state.1"] as const;
const EMPTY: State = { current: null, previous: null, bad: [], trying: null };
const REMEMBERED = 20; // bad digests

/** The state in two entries that are written by turns, each with its own sha256: whatever is cut off in the middle, one of
 * both is whole. */
export class StateFile {
  #count: number;
  value: State;

  private constructor(private readonly storage: Storage, count: number, value: State) {
    this.#count = count;
    this.value = value;
  }

  /** What was saved last, or an empty state where nothing can be read. */
  static async open(storage: Storage): Promise<StateFile> {
    const found = await Promise.all(SLOTS.map(async (slot) => parsed(await storage.read(slot))));
    const [newest] = found.filter((each) => each !== null).sort((one, other) => other.count - one.count);
    return new StateFile(storage, newest?.count ?? 0, newest?.state ?? EMPTY);
  }

  async save(changes: Partial<State>): Promise<void> {
    const state = { ...this.value, ...changes };
    state.bad = state.bad.slice(-REMEMBERED);
    const count = this.#count + 1;
    const text = JSON.stringify({ count, state });
    const sha256 = await sha256Of(new TextEncoder().encode(text));
    const slot = SLOTS[count % 2 ? 1 : 0];
    await this.storage.write(slot, new TextEncoder().encode(JSON.stringify({ sha256, text })));
    this.#count = count;
    this.value = state;
  }
}

async function parsed(bytes: Uint8Array | null): Promise<{ count: number; state: State } | null> {
  if (!bytes) return null;
  try {
    const { sha256, text } = objectOf(bytes, "state", "storage");
    if (typeof text !== "string" || sha256 !== (await sha256Of(new TextEncoder().encode(text)))) return null;
    const value: unknown = JSON.parse(text);
    return isObject(value) && typeof value["count"] === "number" ? (value as unknown as { count: number; state: State }) : null;
  } catch {
    return null; // half of it was written
  }
}
