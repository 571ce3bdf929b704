/** One thing at a time: what is asked for next stops what runs, and waits until it has ended. */

export type Work = (signal: AbortSignal) => Promise<void>;

export class Turns {
  #abort: AbortController | null = null;
  #ended: Promise<void> = Promise.resolve();
  #latest = 0;

  /** changed: told of each beginning and end. */
  constructor(private readonly changed: (busy: boolean) => void) {}

  get busy(): boolean {
    return this.#abort !== null;
  }

  stop(): void {
    this.#abort?.abort();
  }

  /** Runs the work once all before it has ended; dropped where something else was asked for meanwhile. */
  async take(work: Work): Promise<void> {
    const turn = ++this.#latest;
    this.stop();
    await this.#ended;
    if (turn !== this.#latest) return;
    const abort = new AbortController();
    this.#abort = abort;
    this.changed(true);
    this.#ended = work(abort.signal).finally(() => {
      this.#abort = null;
      this.changed(false);
    });
    const ended = this.#ended;
    this.#ended = ended.catch(() => undefined);
    await ended;
  }
}
