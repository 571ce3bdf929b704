/** What can go wrong, by what a user can do about it: the codes of mobile/spec/README.md, "Errors". */
export const CODES = [
  "unsupported", // this browser, device or bundle format cannot be used here
  "network", // the server is not reached, refuses, or ended in the middle; what was fetched is kept
  "manifest", // manifest.json is not one
  "signature", // not signed by a key that is trusted
  "integrity", // a file is not as the manifest says
  "rollback", // an older version than the one in place
  "storage", // no room, or no right to store
  "self_test", // the bundle answers its own questions wrong here
  "image", // not an image
  "prompt", // the question holds the image token, is empty, or does not fit the context
  "memory", // not enough memory
  "runtime", // the runtime failed
  "aborted", // stopped by the caller
  "closed", // the model was closed
] as const;

export type ErrorCode = (typeof CODES)[number];

/** The one error of this package. code says what happened; message in words, with the file and what was expected; hint
 * what to do. It crosses from the worker to the page by `toPlain` and `fromPlain`. */
export class TapeoutError extends Error {
  override readonly name = "TapeoutError";

  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly hint: string = "",
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }

  toPlain(): PlainError {
    return { code: this.code, message: this.message, hint: this.hint };
  }

  static fromPlain(plain: PlainError): TapeoutError {
    return new TapeoutError(plain.code, plain.message, plain.hint);
  }

  /** Whatever was thrown as a TapeoutError: itself, or one of the code given. */
  static from(cause: unknown, code: ErrorCode, message?: string, hint = ""): TapeoutError {
    if (cause instanceof TapeoutError) return cause;
    const text = cause instanceof Error ? cause.message : String(cause);
    return new TapeoutError(code, message ? `${message}: ${text}` : text, hint, { cause });
  }
}

export interface PlainError {
  code: ErrorCode;
  message: string;
  hint: string;
}
