/** Byte pair encoding: the characters of a word are merged, the earliest rule of the list first, until none holds.
 *
 * As the `tokenizers` library does it, to the order of equal rules: the leftmost place first. A word of n characters takes
 * O(n log n): neighbours that may merge wait in a heap. */
import { fields, flag, list, shown, text, unsupported } from "./json";

const CACHED = 10_000; // words
const CACHED_LENGTH = 256; // characters of the longest word that is kept

export class Bpe {
  private readonly cache = new Map<string, number[]>();

  private constructor(
    private readonly ids: ReadonlyMap<string, number>,
    private readonly tokens: readonly (string | undefined)[],
    /** left id * width + right id -> rank; the rank's merged token in merged */
    private readonly ranks: ReadonlyMap<number, number>,
    private readonly merged: Int32Array,
    private readonly width: number,
    private readonly settings: Settings,
  ) {}

  /** From tokenizer.json's "model". Throws TapeoutError "unsupported" for another model, for dropout, and for broken merges. */
  static parse(value: unknown): Bpe {
    const model = fields(value, "model");
    // Older files leave the type out; the vocabulary of a Unigram model is a list.
    if ((model.type ?? "BPE") !== "BPE") throw unsupported(`the model ${shown(model.type)}`);
    if (model.dropout) throw unsupported(`dropout ${shown(model.dropout)}`);
    const ids = new Map<string, number>();
    const tokens: (string | undefined)[] = [];
    let width = 1;
    const vocabulary = fields(model.vocab, "vocab");
    for (const token of Object.keys(vocabulary)) {
      const id = vocabulary[token];
      if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id >= 2 ** 24) throw unsupported(`the number ${shown(id)} of ${shown(token)}`);
      ids.set(token, id);
      tokens[id] = token;
      width = Math.max(width, id + 1);
    }
    const settings: Settings = {
      prefix: optional(model.continuing_subword_prefix) ?? "",
      suffix: optional(model.end_of_word_suffix) ?? "",
      unknown: optional(model.unk_token),
      fuseUnknown: flag(model.fuse_unk, false),
      byteFallback: flag(model.byte_fallback, false),
      ignoreMerges: flag(model.ignore_merges, false),
    };
    const rules = list(model.merges, "merges");
    const ranks = new Map<number, number>();
    const merged = new Int32Array(rules.length);
    rules.forEach((rule, rank) => {
      const [left, right] = pair(rule);
      const [a, b, c] = [ids.get(left), ids.get(right), ids.get(left + right.slice(settings.prefix.length))];
      if (a === undefined || b === undefined || c === undefined) throw unsupported(`the merge ${shown(rule)}, whose tokens are not in vocab,`);
      ranks.set(a * width + b, rank);
      merged[rank] = c;
    });
    return new Bpe(ids, tokens, ranks, merged, width, settings);
  }

  /** how many tokens there are */
  get size(): number {
    return this.ids.size;
  }

  idOf(token: string): number | undefined {
    return this.ids.get(token);
  }

  tokenOf(id: number): string | undefined {
    return this.tokens[id];
  }

  /** A word's token numbers. */
  encode(word: string): number[] {
    if (this.settings.ignoreMerges) {
      const whole = this.ids.get(word);
      if (whole !== undefined) return [whole];
    }
    const known = this.cache.get(word);
    if (known) return known;
    const result = this.merge(this.symbols(word));
    if (word.length <= CACHED_LENGTH) {
      if (this.cache.size >= CACHED) this.cache.clear();
      this.cache.set(word, result);
    }
    return result;
  }

  /** A token for each character; bytes or the unknown token for those that have none. */
  private symbols(word: string): number[] {
    const { prefix, suffix, unknown, fuseUnknown, byteFallback } = this.settings;
    const result: number[] = [];
    let pending: number | null = null;
    let at = 0;
    for (const character of word) {
      const last = at + character.length === word.length;
      const symbol = (at ? prefix : "") + character + (last ? suffix : "");
      at += character.length;
      const id = this.ids.get(symbol);
      if (id !== undefined) {
        if (pending !== null) result.push(pending);
        pending = null;
        result.push(id);
        continue;
      }
      const bytes = byteFallback ? this.bytesOf(symbol) : null;
      if (bytes) {
        // An unknown character that waits stays behind these bytes: so it is in the library that is the reference.
        result.push(...bytes);
      } else if (unknown !== null) {
        const unknownId = this.ids.get(unknown);
        if (unknownId === undefined) throw unsupported(`unk_token ${shown(unknown)}, which is not in vocab,`);
        if (pending !== null && !fuseUnknown) result.push(pending);
        pending = unknownId;
      }
    }
    if (pending !== null) result.push(pending);
    return result;
  }

  private bytesOf(symbol: string): number[] | null {
    const result: number[] = [];
    for (const byte of new TextEncoder().encode(symbol)) {
      const id = this.ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
      if (id === undefined) return null;
      result.push(id);
    }
    return result;
  }

  private merge(symbols: number[]): number[] {
    const count = symbols.length;
    if (count < 2) return symbols;
    const ids = Int32Array.from(symbols); // -1: merged into the one on its left
    const left = Int32Array.from(symbols, (_, index) => index - 1);
    const right = Int32Array.from(symbols, (_, index) => (index + 1 < count ? index + 1 : -1));
    const queue = new Queue();
    const offer = (at: number) => {
      const next = at < 0 ? -1 : right[at]!;
      if (next < 0) return;
      const rank = this.ranks.get(ids[at]! * this.width + ids[next]!);
      if (rank !== undefined) queue.push(rank * count + at);
    };
    for (let at = 0; at + 1 < count; at += 1) offer(at);
    for (let entry = queue.pop(); entry >= 0; entry = queue.pop()) {
      const at = entry % count;
      const token = this.merged[(entry - at) / count]!;
      const next = ids[at] === -1 ? -1 : right[at]!;
      if (next < 0) continue;
      // Since it was offered a neighbour may have changed; what counts is that the pair still makes this token.
      const rank = this.ranks.get(ids[at]! * this.width + ids[next]!);
      if (rank === undefined || this.merged[rank] !== token) continue;
      ids[at] = token;
      ids[next] = -1;
      right[at] = right[next]!;
      if (right[next]! >= 0) left[right[next]!] = at;
      offer(left[at]!);
      offer(at);
    }
    return Array.from(ids.filter((id) => id !== -1));
  }
}

interface Settings {
  prefix: string;
  suffix: string;
  unknown: string | null;
  fuseUnknown: boolean;
  byteFallback: boolean;
  ignoreMerges: boolean;
}

/** The smallest number first. */
class Queue {
  private readonly heap: number[] = [];


  push(entry: number): void {
    const heap = this.heap;
    let at = heap.length;
    heap.push(entry);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (heap[parent]! <= entry) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = entry;
  }

  /** -1 where none is left. */
  pop(): number {
    const heap = this.heap;
    if (!heap.length) return -1;
    const first = heap[0]!;
    const last = heap.pop()!;
    const count = heap.length;
    if (!count) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= count) break;
      if (child + 1 < count && heap[child + 1]! < heap[child]!) child += 1;
      if (heap[child]! >= last) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function optional(value: unknown): string | null {
  return value === null || value === undefined ? null : text(value, "a token of model");
}

/** ["a", "b"], or "a b" in older files. */
function pair(rule: unknown): [string, string] {
  const parts = typeof rule === "string" ? rule.split(" ") : rule;
  if (!Array.isArray(parts) || parts.length !== 2 || parts.some((part) => typeof part !== "string")) throw unsupported(`the merge ${shown(rule)}`);
  return parts as [string, string];
}
