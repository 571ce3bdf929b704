import { noRoom, type Appender, type Storage } from "./storage";

/** Entries in this object alone. room: bytes that it takes before it is full. */
export class MemoryStorage implements Storage {
  readonly kind = "memory";
  readonly entries = new Map<string, Uint8Array<ArrayBuffer>[]>();

  #used = 0;

  constructor(public room = Infinity) {}

  async list(): Promise<Map<string, number>> {
    return new Map([...this.entries].map(([name, pieces]) => [name, sizeOf(pieces)]));
  }

  async read(name: string): Promise<Uint8Array<ArrayBuffer> | null> {
    const pieces = this.entries.get(name);
    return pieces ? joined(pieces) : null;
  }

  async *pieces(name: string): AsyncIterable<Uint8Array> {
    yield* this.entries.get(name) ?? [];
  }

  async write(name: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    await this.remove(name);
    this.entries.set(name, []);
    this.#add(name, bytes);
  }

  async append(name: string): Promise<Appender> {
    if (!this.entries.has(name)) this.entries.set(name, []);
    return { write: async (piece) => this.#add(name, piece), close: async () => {} };
  }

  async remove(name: string): Promise<void> {
    this.#used -= sizeOf(this.entries.get(name) ?? []);
    this.entries.delete(name);
  }

  #add(name: string, piece: Uint8Array<ArrayBuffer>): void {
    if (this.#used + piece.length > this.room) throw noRoom(`no room for ${piece.length} bytes beside ${this.#used}`);
    this.#used += piece.length;
    this.entries.get(name)?.push(piece.slice());
  }
}

function sizeOf(pieces: readonly Uint8Array[]): number {
  return pieces.reduce((sum, piece) => sum + piece.length, 0);
}

function joined(pieces: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(sizeOf(pieces));
  let place = 0;
  for (const piece of pieces) {
    whole.set(piece, place);
    place += piece.length;
  }
  return whole;
}
