/** A bundle that runs: image and question in, greedy answer out. In a worker or in Node. */
import { TapeoutError } from "../errors";
import type { AnswerMetrics, Backend, Result, TapeoutEvent } from "../events";
import { decodeImage, type Pixels } from "../image/decode";
import type { Files, Manifest } from "../manifest";
import { Prompt } from "../text/prompt";
import { Tokenizer } from "../text/tokenizer";
import { strip } from "../text/unicode";
import { Decoder } from "./decoder";
import { describedBy } from "./described";
import { Encoder, type Visual } from "./encoder";
import { check, generate, type Stop } from "./generate";
import { pause } from "./pause";
import { isSmall, loadRuntime, threadsFor, usableBackends, type Runtime, type RuntimeOptions } from "./runtime";
import { openSession, runtimeError } from "./session";

export interface EngineOptions extends RuntimeOptions {
  memory?: "normal" | "low"; // low: the encoder is given back after each image
}

export interface AskOptions {
  maxTokens?: number; // the bundle's max_new_tokens, if not given
  signal?: Stop;
  onPiece?(text: string): void;
}

export class Engine {
  private constructor(
    private readonly runtime: Runtime,
    private readonly manifest: Manifest,
    private readonly prompt: Prompt,
    private readonly encoder: Encoder | null, // null: a model of text alone
    private readonly decoder: Decoder,
  ) {}

  /** Opens on the first of the bundle's backends that works here; the event "fallback" tells of each that did not.
   * Throws TapeoutError "unsupported", "manifest", "memory" or "runtime", and what `files` throws. */
  static async open(
    manifest: Manifest,
    files: Files,
    options: EngineOptions = {},
    report: (event: TapeoutEvent) => void = () => undefined,
  ): Promise<Engine> {
    const backends = await usableBackends(manifest, options.backend);
    for (const [place, backend] of backends.entries()) {
      try {
        return await Engine.openOn(backend, manifest, files, options);
      } catch (cause) {
        const error = TapeoutError.from(cause, "runtime", `${backend} does not work here`);
        const next = backends[place + 1];
        if (!next || !["runtime", "memory", "unsupported"].includes(error.code)) throw error;
        report({ type: "fallback", from: backend, to: next, reason: error.message });
      }
    }
    throw new TapeoutError("unsupported", "no backend works here"); // not reached: there is one, or usableBackends threw
  }

  private static async openOn(backend: Backend, manifest: Manifest, files: Files, options: EngineOptions): Promise<Engine> {
    const { model } = manifest;
    const { settings, tokenizer: path } = describedBy(manifest);
    const tokenizer = Tokenizer.parse(await readJson(files, path));
    const prompt = Prompt.of(tokenizer, settings, model.image_token_id ?? null, model.image_tokens ?? 0);
    const runtime = await loadRuntime(backend, { ...options, threads: threadsFor(manifest, options.threads) });
    const open = (part: string) => openSession(runtime, manifest, files, part, "present.");
    const low = options.memory === "low";
    const encoder = model.files["encoder"] ? new Encoder(runtime, settings, () => open("encoder"), low) : null;
    const session = await open("decoder");
    let decoder: Decoder | null = null;
    try {
      decoder = new Decoder(runtime, session, model);
      if (!low) await encoder?.open();
    } catch (cause) {
      await (decoder?.close() ?? session.release()).catch(() => undefined); // another backend, or another version, is next
      throw runtimeError(cause, "the model cannot be opened");
    }
    return new Engine(runtime, manifest, prompt, encoder, decoder);
  }

  get backend(): Backend {
    return this.runtime.backend;
  }

  get threads(): number {
    return this.runtime.threads;
  }

  /** The visual tokens of an image, to be given to `ask` any number of times. Throws as Encoder.encode does. */
  see(pixels: Pixels): Promise<Visual> {
    if (!this.encoder) throw new TapeoutError("image", "this model takes no image", "Ask without one.");
    return this.encoder.encode(pixels);
  }

  /** The prompt's ids. Throws TapeoutError "prompt" for a question that is blank, holds the image token or does not fit. */
  read(question: string): number[] {
    if (typeof question !== "string" || !strip(question))
      throw new TapeoutError("prompt", typeof question === "string" ? "the question is empty" : "the question is no text", 'Ask with model.ask(image, "what is it?").');
    const ids = this.prompt.encode(question);
    this.decoder.checkRoom(ids.length);
    return ids;
  }

  /** The greedy answer about pixels, or about what `see` gave of them; to a question, or to the ids that `read` gave of it.
   *
   * Throws TapeoutError "image" where the model needs one and none is given, "prompt", "aborted", "memory", "runtime".
   * One answer at a time.
   */
  async ask(image: Pixels | Visual | null, question: string | readonly number[], options: AskOptions = {}): Promise<Result> {
    const began = performance.now();
    const signal = options.signal ?? { aborted: false };
    const most = options.maxTokens ?? this.prompt.maxNewTokens;
    if (!Number.isInteger(most) || most < 1) throw new TapeoutError("prompt", `maxTokens is ${most}`, "Give an integer of at least 1.");
    const ids = typeof question === "object" ? question : this.read(question);
    if (this.encoder && !image) throw new TapeoutError("image", "this model answers about an image, and none was given");
    check(signal);
    const visual = image && ("features" in image ? image : await this.see(image));
    check(signal);
    const stream = this.prompt.stream();
    const say = (piece: string) => void (piece && options.onPiece?.(piece));
    const seen = performance.now();
    const generated = await generate(this.decoder, {
      ids,
      features: visual?.features ?? null,
      imageTokenId: this.manifest.model.image_token_id ?? null,
      hidden: this.manifest.model.hidden,
      endId: this.prompt.endId,
      maxTokens: most,
      signal,
      onToken: (id) => say(stream.push(id)),
    });
    say(stream.end());
    const { step_ms: steps } = generated;
    const metrics: AnswerMetrics = {
      prepare_ms: visual === image ? 0 : (visual?.prepare_ms ?? 0),
      encode_ms: visual === image ? 0 : (visual?.encode_ms ?? 0),
      prefill_ms: generated.prefill_ms,
      first_token_ms: seen - began + generated.first_token_ms,
      token_ms: median(steps),
      tokens: generated.ids.length,
      tokens_per_s: steps.length ? (1000 * steps.length) / steps.reduce((sum, step) => sum + step, 0) : 0,
      peak_memory_bytes: this.runtime.memoryBytes(),
      backend: this.backend,
      threads: this.threads,
    };
    return { text: this.prompt.decode(generated.ids), ids: generated.ids, stop: generated.stop, metrics };
  }

  /** Asks the bundle's own questions. Throws TapeoutError "self_test" with the first answer that is another. */
  async selfTest(manifest: Manifest, files: Files): Promise<void> {
    for (const { image, question, answer } of manifest.self_test) {
      const pixels = image === null ? null : await decodeImage(await files.read(image));
      const { text } = await this.ask(pixels, question);
      if (text !== answer)
        throw new TapeoutError(
          "self_test",
          `asked "${question}" about ${image ?? "no image"}, the bundle answers "${text}" here, and "${answer}" where it was built`,
          "Use another bundle, or report this with the name of your browser.",
        );
    }
  }

  /** Gives back the sessions. The runtime's memory itself goes with the worker. */
  async close(): Promise<void> {
    await this.encoder?.close();
    await this.decoder.close();
  }

  /** Runs a small model on nothing while `idle` says so: browsers compile what runs often a second time, and the code is two
   * to three times faster then. Large ones come to that within their first token. */
  async warmUp(idle: () => boolean): Promise<void> {
    if (!isSmall(this.manifest)) return;
    const began = performance.now();
    const going = (): boolean => idle() && performance.now() - began < WARM_MS;
    for (let turn = 0; turn < WARM_IMAGES && going(); turn++) {
      await this.encoder?.warmUp();
      await pause();
    }
    const end = this.prompt.endId;
    for (let turn = 0; turn < WARM_STEPS && going(); ) {
      const cache = this.decoder.start();
      try {
        await this.decoder.prefill(new Array<number>(PROMPT).fill(end), null, cache);
        for (; turn < WARM_STEPS && going() && cache.length < this.decoder.context; turn++) {
          await this.decoder.step(end, cache);
          if (turn % 8 === 0) await pause();
        }
      } finally {
        this.decoder.release(cache);
      }
    }
  }
}

const WARM_MS = 1000; // at most
const WARM_IMAGES = 8;
const WARM_STEPS = 300;
const PROMPT = 16; // tokens before those steps

async function readJson(files: Files, path: string): Promise<unknown> {
  try {
    return JSON.parse(new TextDecoder().decode(await files.read(path)));
  } catch (cause) {
    throw TapeoutError.from(cause, "manifest", `${path} is not JSON`);
  }
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  if (!sorted.length) return 0;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
