/** An answer on its way: pieces of text as they come, and the whole of it. */
import { TapeoutError } from "./errors";
import type { Result } from "./events";

/** Iterate over it once for the text's pieces, or await `result`, or both. Breaking out of the loop stops the answer.
 *
 * Both throw TapeoutError where there is none: "image", "prompt", "aborted", "closed", "memory", "runtime".
 */
export class Answer implements AsyncIterable<string> {
  readonly result: Promise<Result>;
  private readonly pieces: string[] = [];
  private outcome: Result | TapeoutError | null = null;
  private iterated = false;
  private wake: (() => void) | null = null;
  private settle!: { resolve(result: Result): void; reject(error: TapeoutError): void };

  /** stop: called where the caller loses interest. */
  constructor(private readonly stop: () => void) {
    this.result = new Promise((resolve, reject) => (this.settle = { resolve, reject }));
    this.result.catch(() => undefined); // whoever only iterates hears of it there
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    if (this.iterated) throw new TapeoutError("runtime", "an answer can be iterated over once", "Its text is in (await answer.result).text.");
    this.iterated = true;
    try {
      for (;;) {
        if (this.pieces.length) yield this.pieces.splice(0).join("");
        else if (this.outcome instanceof TapeoutError) throw this.outcome;
        else if (this.outcome) return;
        else await new Promise<void>((resolve) => (this.wake = resolve));
      }
    } finally {
      if (!this.outcome) this.stop();
    }
  }

  /** @internal */
  push(text: string): void {
    if (this.outcome || !text) return;
    this.pieces.push(text);
    this.wake?.();
  }

  /** @internal Returns whether the answer was still open. */
  end(outcome: Result | TapeoutError): boolean {
    if (this.outcome) return false;
    this.outcome = outcome;
    if (outcome instanceof TapeoutError) this.settle.reject(outcome);
    else this.settle.resolve(outcome);
    this.wake?.();
    return true;
  }
}
