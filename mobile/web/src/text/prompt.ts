/** From a question to token numbers and back, as preprocessing.json says: stages/data/prompt.py in TypeScript. */
import { TapeoutError } from "../errors";
import type { Preprocessing } from "../manifest";
import { toBytes } from "./bytes";
import type { Tokenizer } from "./tokenizer";
import { strip, stripEnd, stripStart } from "./unicode";

const IMAGE = "{image}";
const QUESTION = "{question}";

export class Prompt {
  private constructor(
    private readonly tokenizer: Tokenizer,
    private readonly template: string,
    private readonly imageTokenId: number | null,
    private readonly imageTokens: number,
    /** the token that ends an answer */
    readonly endId: number,
    readonly maxNewTokens: number,
  ) {}

  /** imageTokens: how often imageTokenId (null: of a text model) stands where {image} does. Throws TapeoutError "manifest" for
   * a template without {question} or an end token that the tokenizer does not know. */
  static of(tokenizer: Tokenizer, preprocessing: Preprocessing, imageTokenId: number | null, imageTokens: number): Prompt {
    const { prompt_template: template, end_token: end, max_new_tokens: count } = preprocessing;
    if (template.split(QUESTION).length !== 2 || template.split(IMAGE).length > 2)
      throw new TapeoutError("manifest", `prompt_template is ${JSON.stringify(template)}`, `Expected ${QUESTION} once and ${IMAGE} at most once in it.`);
    const endId = tokenizer.idOf(end);
    if (endId === null) throw new TapeoutError("manifest", `end_token ${JSON.stringify(end)} is not in tokenizer.json`);
    return new Prompt(tokenizer, template, imageTokenId, imageTokens, endId, count);
  }

  /** The prompt's token numbers, the image token repeated. Throws TapeoutError "prompt" where the question holds one. */
  encode(question: string): number[] {
    const ids: number[] = [];
    this.template.split(IMAGE).forEach((text, index) => {
      const part = this.tokenizer.encode(text.split(QUESTION).join(question));
      if (this.imageTokenId !== null && part.includes(this.imageTokenId))
        throw new TapeoutError(
          "prompt",
          `the question ${JSON.stringify(question)} holds the image token`,
          `The image's place is ${IMAGE} in prompt_template; leave the token out of the question.`,
        );
      if (index && this.imageTokenId !== null) for (let count = 0; count < this.imageTokens; count += 1) ids.push(this.imageTokenId);
      for (const id of part) ids.push(id);
    });
    return ids;
  }

  /** An answer's text, without special tokens and outer blanks. */
  decode(ids: readonly number[]): string {
    return strip(this.tokenizer.decode(ids));
  }

  /** For one answer, as its tokens come. */
  stream(): TextStream {
    return new TextStream(this.tokenizer);
  }
}

/** An answer's text in pieces: joined, they are what Prompt.decode makes of all tokens. What a later token may still change,
 * half a character or blanks that may be the last, waits for it. */
export class TextStream {
  private readonly ids: number[] = [];
  private readonly bytes = new TextDecoder("utf-8", { ignoreBOM: true });
  /** of the text without its leading blanks, what was given out */
  private given = 0;
  /** of byte-level tokens, the text so far that was not given out */
  private waiting = "";

  constructor(private readonly tokenizer: Tokenizer) {}

  /** The next token. Returns what is now certain, often "". */
  push(id: number): string {
    const { byteLevel, prefixed, held } = this.tokenizer.decoder;
    if (byteLevel) {
      const token = this.tokenizer.tokenOf(id, true);
      return token === null ? "" : this.give(this.bytes.decode(toBytes(token), { stream: true }));
    }
    this.ids.push(id);
    if (!prefixed) return "";
    let settled = this.ids.length;
    for (; settled > 0; settled -= 1) {
      const token = this.tokenizer.tokenOf(this.ids[settled - 1]!, true);
      if (token !== null && !held(token)) break;
    }
    const text = stripUncertain(stripStart(this.tokenizer.decode(this.ids.slice(0, settled))));
    const piece = text.slice(this.given);
    this.given = Math.max(this.given, text.length);
    return piece;
  }

  /** What was waiting. */
  end(): string {
    if (this.tokenizer.decoder.byteLevel) return this.give(this.bytes.decode(), true);
    const piece = strip(this.tokenizer.decode(this.ids)).slice(this.given);
    this.given += piece.length;
    return piece;
  }

  private give(text: string, last = false): string {
    this.waiting += text;
    if (!this.given) this.waiting = stripStart(this.waiting);
    const certain = stripEnd(this.waiting);
    this.waiting = last ? "" : this.waiting.slice(certain.length);
    this.given += certain.length;
    return certain;
  }
}

/** Without blanks at the end and U+FFFD, which may be half a character. */
function stripUncertain(text: string): string {
  for (let rest = text; ; text = rest) {
    rest = stripEnd(text);
    if (rest.endsWith("\ufffd")) rest = rest.slice(0, -1);
    if (rest === text) return text;
  }
}
