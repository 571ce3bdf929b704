/** An open model, as a page sees it: questions go to the worker, answers come back. */
import { Answer } from "./answer";
import { TapeoutError } from "./errors";
import type { Result, TapeoutEvent } from "./events";
import { keyOf, pictureOf, type Image } from "./pictures";
import type { FromWorker, Info, ToWorker } from "./protocol";
import { watch, type Frame, type FrameSource, type WatchOptions } from "./video";

export interface AskOptions {
  signal?: AbortSignal;
  maxTokens?: number; // the bundle's max_new_tokens, if not given
}

export interface Question extends Pick<AskOptions, "maxTokens"> {
  image: Image | null;
  question: string;
}

export class Model {
  private readonly open = new Map<number, { answer: Answer; release(): void }>();
  private next = 1;
  private ended: TapeoutError | null = null;
  private readonly over = new AbortController(); // aborted at the end, by its error

  /** @internal Models are opened by `open`. */
  constructor(
    private readonly worker: Worker,
    readonly info: Info,
    private readonly report: (event: TapeoutEvent) => void,
  ) {
    worker.addEventListener("message", ({ data }: MessageEvent<FromWorker>) => this.hear(data));
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      const message = `the worker ended: ${event.message || "it gave no reason"}`;
      this.end(new TapeoutError(/memory/i.test(message) ? "memory" : "runtime", message, "Open the model again."));
    });
  }

  /** Asks at once; answers come in the order of the questions. About an image that was among the last two Blobs, the
   * visual tokens are still there. Never throws: the answer does. */
  ask(image: Image | null, question: string, options: AskOptions = {}): Answer {
    return this.send(image, question, options);
  }

  /** All the answers, in the order of the items; an image that is used again is encoded once. onResult is told each as it
   * comes, with its place. Throws the first error, and asks no further then. */
  async askAll(
    items: readonly Question[],
    options: { signal?: AbortSignal; onResult?(result: Result, place: number): void } = {},
  ): Promise<Result[]> {
    const keys = new Map<Image, number>();
    const { signal } = options;
    for (const { image } of items) if (image && !keys.has(image)) keys.set(image, keyOf(image));
    const order = items.map((_, place) => place);
    const key = (place: number): number => (items[place]!.image ? keys.get(items[place]!.image!)! : 0);
    order.sort((one, other) => key(one) - key(other) || one - other);
    const results = new Array<Result>(items.length);
    const stop = new AbortController();
    const abort = (): void => stop.abort();
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    const ahead: Answer[] = []; // one is on its way while another is being answered
    const ask = (place: number): void => {
      const { image, question, maxTokens } = items[place]!;
      ahead.push(this.send(image, question, { signal: stop.signal, ...(maxTokens !== undefined && { maxTokens }) }, key(place)));
    };
    try {
      for (const [turn, place] of order.entries()) {
        for (let coming = turn + ahead.length; coming < Math.min(turn + AHEAD, order.length); coming++) ask(order[coming]!);
        const result = await ahead.shift()!.result;
        results[place] = result;
        options.onResult?.(result, place);
      }
    } catch (cause) {
      stop.abort();
      throw cause;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
    return results;
  }

  /** Answers about a video, a stream or frames as they come: always about the newest frame, at most `fps` a second, fewer
   * where answers take longer or the device is under pressure. Frames of an iterable are closed by this. Ends with the
   * source, by `signal`, or by leaving the loop. */
  watch(source: FrameSource, question: string, options: WatchOptions = {}): AsyncGenerator<Result & Frame, void, void> {
    return watch((image, settings) => this.ask(image, question, settings), source, options, this.over.signal);
  }

  /** Ends the worker, and with it all memory of the model. Answers and watches on their way end with "closed". */
  async close(): Promise<void> {
    this.end(new TapeoutError("closed", "the model was closed"));
  }

  private send(image: Image | null, question: string, options: AskOptions, key?: number): Answer {
    const { signal, maxTokens } = options;
    const id = this.next++;
    const abort = (): void => {
      this.say({ type: "abort", id });
      this.settle(id, new TapeoutError("aborted", "the answer was stopped"));
    };
    const answer = new Answer(abort);
    this.open.set(id, { answer, release: () => signal?.removeEventListener("abort", abort) });
    if (this.ended) this.settle(id, this.ended);
    else if (signal?.aborted) this.settle(id, new TapeoutError("aborted", "the answer was stopped"));
    else {
      signal?.addEventListener("abort", abort, { once: true });
      void this.pass(id, answer, image, key, { question, ...(maxTokens !== undefined && { maxTokens }) });
    }
    return answer;
  }

  /** Elements and canvases have to be read first: the questions after one of these wait, to keep their order, unless it is
   * given up. */
  private async pass(id: number, answer: Answer, image: Image | null, key: number | undefined, rest: { question: string; maxTokens?: number }): Promise<void> {
    const earlier = this.passing;
    const reading = image ? pictureOf(image, key) : Promise.resolve({ picture: null, transfer: [] });
    const turn = (async () => {
      const { picture, transfer } = await reading;
      try {
        await earlier;
        if (this.open.has(id)) this.say({ type: "ask", id, picture, ...rest }, transfer);
      } finally {
        for (const ours of transfer) ours.close(); // empty where it was sent; else nobody else would
      }
    })();
    const given = Promise.race([turn, answer.result]).catch(() => undefined);
    this.passing = Promise.all([earlier, given]).then(() => undefined);
    try {
      await turn;
    } catch (cause) {
      this.settle(id, TapeoutError.from(cause, "image", "the image cannot be given to the worker"));
    }
  }

  private passing: Promise<void> = Promise.resolve();

  private say(message: ToWorker, transfer: Transferable[] = []): void {
    if (!this.ended) this.worker.postMessage(message, transfer);
  }

  private hear(message: FromWorker): void {
    if (message.type === "event") this.report(message.event);
    else if (message.type === "piece") this.open.get(message.id)?.answer.push(message.text);
    else if (message.type === "refused") this.settle(message.id, TapeoutError.fromPlain(message.error));
    else if (message.type === "answered") {
      this.open.get(message.id)?.answer.push(message.text);
      if (this.settle(message.id, message.result))
        this.report({ type: "metrics", scope: "answer", metrics: message.result.metrics });
    }
  }

  private settle(id: number, outcome: Result | TapeoutError): boolean {
    const entry = this.open.get(id);
    this.open.delete(id);
    entry?.release();
    return entry?.answer.end(outcome) ?? false;
  }

  private end(error: TapeoutError): void {
    if (this.ended) return;
    this.ended = error;
    this.worker.terminate();
    this.over.abort(error);
    for (const id of [...this.open.keys()]) this.settle(id, error);
  }
}

const AHEAD = 2;
