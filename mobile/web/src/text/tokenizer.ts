/** tokenizer.json of the `tokenizers` library, as far as byte pair encoding goes: text to token numbers and back, to the number. */
import { type AddedToken, Finder, addedTokens } from "./added";
import { Bpe } from "./bpe";
import { type Decoder, decoder } from "./decoders";
import { fields, shown, unsupported } from "./json";
import { type Normalizer, normalizer } from "./normalizers";
import { type PreTokenizer, preTokenizer } from "./pretokenizers";
import { wellFormed } from "./unicode";

export class Tokenizer {
  private readonly added: Map<number, AddedToken>;
  private readonly addedIds: Map<string, number>;
  private readonly special: Set<string>;

  private constructor(
    private readonly model: Bpe,
    added: AddedToken[],
    private readonly raw: Finder,
    private readonly normalized: Finder,
    private readonly normalize: Normalizer,
    private readonly split: PreTokenizer,
    readonly decoder: Decoder,
  ) {
    this.added = new Map(added.map((token) => [token.id, token]));
    this.addedIds = new Map(added.map((token) => [token.content, token.id]));
    this.special = new Set(added.filter((token) => token.special).map((token) => token.content));
  }

  /** json: tokenizer.json, parsed. Throws TapeoutError "unsupported" that names what is not supported. */
  static parse(json: unknown): Tokenizer {
    const file = fields(json, "the file");
    for (const key of ["truncation", "padding"])
      if (file[key] !== null && file[key] !== undefined) throw unsupported(`${key} ${shown(file[key])}`);
    const model = Bpe.parse(file.model);
    const normalize = normalizer(file.normalizer);
    const added = addedTokens(file.added_tokens, model, normalize);
    const raw = new Finder(added.filter((token) => !token.normalized));
    const normalized = new Finder(added.filter((token) => token.normalized));
    return new Tokenizer(model, added, raw, normalized, normalize, preTokenizer(file.pre_tokenizer), decoder(file.decoder));
  }

  /** The text's token numbers, without those that the post-processor would put around it. */
  encode(text: string): number[] {
    const ids: number[] = [];
    for (const outer of this.raw.split(wellFormed(text))) {
      if ("id" in outer) {
        ids.push(outer.id);
        continue;
      }
      for (const inner of this.normalized.split(this.normalize(outer.text))) {
        if ("id" in inner) ids.push(inner.id);
        else {
          const first = outer.start === 0 && inner.start === 0;
          for (const piece of this.split([{ text: inner.text, first }])) for (const id of this.model.encode(piece.text)) ids.push(id);
        }
      }
    }
    return ids;
  }

  /** Numbers that are no token's are left out, and special tokens where skipSpecial. */
  decode(ids: readonly number[], skipSpecial = true): string {
    const tokens: string[] = [];
    for (const id of ids) {
      const token = this.tokenOf(id, skipSpecial);
      if (token !== null) tokens.push(token);
    }
    return this.decoder.decode(tokens).join("");
  }

  /** A token as the decoder gets it; null if there is none, or if it is special where skipSpecial. */
  tokenOf(id: number, skipSpecial = false): string | null {
    const added = this.added.get(id);
    if (!added) return this.model.tokenOf(id) ?? null;
    return skipSpecial && this.special.has(added.decoded) ? null : added.decoded;
  }

  /** A token's number; null if there is no such token. */
  idOf(token: string): number | null {
    return this.addedIds.get(token) ?? this.model.idOf(token) ?? null;
  }
}
