import { TapeoutError } from "../errors";
import { storing, type Appender, type Storage } from "./storage";

const PIECE = 1 << 20; // bytes of one response
const PLACE = "https://tapeout.invalid/"; // no server: the name of an entry must be a URL

/** Cache Storage, where the private file system cannot be written: an entry is a row of responses of at most 1 MiB, the
 * place and size of each in its URL. Throws where there is none. */
export async function openCacheStorage(id: string): Promise<Storage> {
  if (typeof caches === "undefined") throw new TapeoutError("storage", "no Cache Storage here");
  return new CacheStorageOf(await caches.open(`tapeout-${id}`));
}

interface Piece {
  name: string;
  number: number;
  size: number;
  url: string;
}

class CacheStorageOf implements Storage {
  readonly kind = "cache";
  readonly #cache: Cache;

  constructor(cache: Cache) {
    this.#cache = cache;
  }

  async list(): Promise<Map<string, number>> {
    const found = new Map<string, number>();
    const all = await this.#all();
    for (const { name } of all) if (!found.has(name)) found.set(name, sizeOf(inOrder(all, name)));
    return found;
  }

  async read(name: string): Promise<Uint8Array<ArrayBuffer> | null> {
    const pieces = await this.#piecesOf(name);
    if (!pieces.length) return null;
    const whole = new Uint8Array(sizeOf(pieces));
    let place = 0;
    for (const piece of pieces) {
      whole.set(await this.#bytes(piece), place);
      place += piece.size;
    }
    return whole;
  }

  async *pieces(name: string): AsyncIterable<Uint8Array> {
    for (const piece of await this.#piecesOf(name)) yield await this.#bytes(piece);
  }

  async write(name: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    await this.remove(name);
    await this.#put(name, 0, bytes);
  }

  async append(name: string): Promise<Appender> {
    let number = (await this.#piecesOf(name)).length;
    if (!number) await this.#put(name, number++, new Uint8Array(0)); // an entry that is there, and empty
    let buffer = new Uint8Array(PIECE);
    let used = 0;
    const flush = async (): Promise<void> => {
      if (used) await this.#put(name, number++, buffer.slice(0, used));
      used = 0;
    };
    return {
      write: async (piece) => {
        for (let place = 0; place < piece.length; ) {
          const part = piece.subarray(place, place + PIECE - used);
          buffer.set(part, used);
          used += part.length;
          place += part.length;
          if (used === PIECE) await flush();
        }
      },
      close: async () => {
        await flush();
        buffer = new Uint8Array(0);
      },
    };
  }

  async remove(name: string): Promise<void> {
    const pieces = (await this.#all()).filter((each) => each.name === name);
    // from the end: what is left after half of it is a shorter entry, and none with a gap
    for (const piece of pieces.sort((one, other) => other.number - one.number))
      await storing("the store cannot be written", () => this.#cache.delete(piece.url));
  }

  #put(name: string, number: number, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const url = `${PLACE}${name}?number=${number}&size=${bytes.length}`;
    return storing("the store cannot be written", () => this.#cache.put(url, new Response(bytes)));
  }

  async #bytes(piece: Piece): Promise<Uint8Array<ArrayBuffer>> {
    return storing("the store cannot be read", async () => {
      const found = await this.#cache.match(piece.url);
      const bytes = found ? new Uint8Array(await found.arrayBuffer()) : new Uint8Array(0);
      if (bytes.length !== piece.size) throw new TapeoutError("storage", `the store lost a part of ${piece.name}`, "open it again while online");
      return bytes;
    });
  }

  async #piecesOf(name: string): Promise<Piece[]> {
    return inOrder(await this.#all(), name);
  }

  #all(): Promise<Piece[]> {
    return storing("the store cannot be listed", async () =>
      (await this.#cache.keys()).map(({ url }) => {
        const { pathname, searchParams } = new URL(url);
        return { name: pathname.slice(1), number: Number(searchParams.get("number")), size: Number(searchParams.get("size")), url };
      }),
    );
  }
}

/** The pieces of one entry, up to the first gap. */
function inOrder(all: readonly Piece[], name: string): Piece[] {
  const found = all.filter((each) => each.name === name).sort((one, other) => one.number - other.number);
  const gap = found.findIndex((each, place) => each.number !== place);
  return gap < 0 ? found : found.slice(0, gap);
}

function sizeOf(pieces: readonly Piece[]): number {
  return pieces.reduce((sum, piece) => sum + piece.size, 0);
}
