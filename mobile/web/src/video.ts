/** Answers about moving pictures: always about the newest frame, never faster than asked for or than the device bears. */
import type { Answer } from "./answer";
import { pause } from "./engine/pause";
import { TapeoutError } from "./errors";
import type { Result } from "./events";
import type { Image } from "./pictures";

export type FrameSource = HTMLVideoElement | MediaStream | AsyncIterable<Image>;

export interface WatchOptions {
  fps?: number; // answers a second, at most; 2 if not given
  signal?: AbortSignal;
  maxTokens?: number;
}

/** frame: when the frame was taken, in milliseconds of the video, or of performance.now() for frames without a time. */
export interface Frame {
  frame: number;
}

type Ask = (image: Image, options: Pick<WatchOptions, "signal" | "maxTokens">) => Answer;

/** See Model.watch. Throws what an answer throws; stopped by the signal it ends without an error. */
export async function* watch(ask: Ask, source: FrameSource, options: WatchOptions): AsyncGenerator<Result & Frame, void, void> {
  const { fps = 2, signal, maxTokens } = options;
  if (!(fps > 0)) throw new TapeoutError("prompt", `fps is ${fps}`, "Give a number above 0.");
  const frames = await newestOf(source);
  const pressure = await watchPressure();
  let halt = (): void => undefined; // ends the wait that is on
  const abort = (): void => halt();
  const orStopped = <T>(wait: Promise<T>): Promise<T | null> =>
    new Promise((resolve, reject) => {
      wait.then(resolve, reject);
      halt = () => resolve(null);
      if (signal?.aborted) halt();
    });
  signal?.addEventListener("abort", abort);
  try {
    for (;;) {
      const began = performance.now();
      const coming = frames.take();
      const taken = await orStopped(coming);
      if (!taken) {
        coming.then((late) => late && close(late.image), () => undefined); // it may have been drawn in the meantime
        return;
      }
      let result: Result;
      try {
        result = await ask(taken.image, { ...(signal && { signal }), ...(maxTokens !== undefined && { maxTokens }) }).result;
      } catch (cause) {
        if (signal?.aborted && cause instanceof TapeoutError && cause.code === "aborted") return;
        throw cause;
      } finally {
        close(taken.image);
      }
      yield { ...result, frame: taken.time };
      const took = performance.now() - began;
      const period = pauseFor(1000 / fps, result, pressure.factor());
      await orStopped(new Promise<void>((resolve) => setTimeout(resolve, Math.max(0, period - took))));
    }
  } finally {
    signal?.removeEventListener("abort", abort);
    pressure.stop();
    frames.stop();
  }
}

/** Milliseconds from one answer's beginning to the next: the period; longer where an answer takes longer than it, so that
 * the device rests a fifth of the time; twice and four times that under serious and critical pressure. */
function pauseFor(period: number, { metrics }: Result, factor: number): number {
  const busy = metrics.first_token_ms + metrics.token_ms * Math.max(0, metrics.tokens - 1);
  return Math.max(period, busy > period ? busy * 1.25 : 0) * factor;
}

interface Newest {
  /** The newest frame that was not taken yet, as soon as there is one; null at the end. */
  take(): Promise<{ image: Image; time: number } | null>;
  stop(): void;
}

async function newestOf(source: FrameSource): Promise<Newest> {
  if (Symbol.asyncIterator in source) return newestOfFrames(source);
  if (source instanceof HTMLVideoElement) return newestOfVideo(source, () => undefined);
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = source;
  const ended = (): void => void video.dispatchEvent(new Event("ended"));
  const tracks = source.getVideoTracks();
  tracks.forEach((track) => track.addEventListener("ended", ended)); // a stopped camera does not end its element
  const release = (): void => {
    tracks.forEach((track) => track.removeEventListener("ended", ended));
    video.srcObject = null;
  };
  try {
    await video.play();
  } catch (cause) {
    release();
    throw TapeoutError.from(cause, "image", "the stream cannot be played");
  }
  return newestOfVideo(video, release);
}

/** Reads all frames as they come and keeps the last; those that nobody took are closed. */
function newestOfFrames(source: AsyncIterable<Image>): Newest {
  const iterator = source[Symbol.asyncIterator]();
  let kept: { image: Image; time: number } | null = null;
  let done = false;
  let failure: { cause: unknown } | null = null;
  let wake = (): void => undefined;
  void (async () => {
    try {
      for (let step = await iterator.next(); !step.done; step = await iterator.next()) {
        const image = step.value;
        if (kept) close(kept.image);
        kept = { image, time: timeOf(image) };
        if (done) break;
        wake();
        await pause(); // a source that always has a frame ready must not hold the page
      }
    } catch (cause) {
      failure = { cause };
    }
    if (done && kept) close(kept.image);
    done = true;
    wake();
  })();
  return {
    async take() {
      for (;;) {
        const frame = kept;
        kept = null;
        if (frame) return frame;
        if (failure) throw TapeoutError.from(failure.cause, "image", "the frames ended with an error");
        if (done) return null;
        await new Promise<void>((resolve) => (wake = resolve));
      }
    },
    stop() {
      done = true;
      if (kept) close(kept.image);
      kept = null;
      wake();
      (async () => iterator.return?.())().catch(() => undefined); // the caller has left: there is nobody to tell
    },
  };
}

/** Draws a frame from a video when one is asked for and a new one is shown. */
function newestOfVideo(video: HTMLVideoElement, release: () => void): Newest {
  let shown: number | null = video.readyState >= video.HAVE_CURRENT_DATA ? video.currentTime * 1000 : null;
  let ended = video.ended;
  let wake = (): void => undefined;
  let handle = 0;
  const byFrame = typeof video.requestVideoFrameCallback === "function"; // not in every browser
  const show = (time: number): void => {
    shown = time;
    wake();
  };
  const next = (_now: number, { mediaTime }: VideoFrameCallbackMetadata): void => {
    show(mediaTime * 1000);
    handle = video.requestVideoFrameCallback(next);
  };
  const tick = (): void => show(video.currentTime * 1000);
  const end = (): void => {
    ended = true;
    if (byFrame) video.cancelVideoFrameCallback(handle);
    wake();
  };
  if (byFrame) handle = video.requestVideoFrameCallback(next);
  else video.addEventListener("timeupdate", tick);
  video.addEventListener("ended", end);
  return {
    async take() {
      while (shown === null && !ended) await new Promise<void>((resolve) => (wake = resolve));
      if (shown === null) return null;
      const time = shown;
      shown = null;
      return { image: await grab(video), time };
    },
    stop() {
      ended = true;
      if (byFrame) video.cancelVideoFrameCallback(handle);
      video.removeEventListener("timeupdate", tick);
      video.removeEventListener("ended", end);
      wake();
      release();
    },
  };
}

/** What the video shows now: by reference where that is possible, so that the page copies no pixels. */
async function grab(video: HTMLVideoElement): Promise<Image> {
  try {
    return typeof VideoFrame === "undefined" ? await createImageBitmap(video) : new VideoFrame(video);
  } catch (cause) {
    throw TapeoutError.from(cause, "image", "the video cannot be read", "One from another origin needs the attribute crossorigin, and that origin's leave.");
  }
}

function timeOf(image: Image): number {
  return typeof VideoFrame !== "undefined" && image instanceof VideoFrame ? image.timestamp / 1000 : performance.now();
}

function close(image: Image): void {
  if ("close" in image) image.close();
}

type PressureState = "nominal" | "fair" | "serious" | "critical";
interface PressureObserving {
  observe(source: "cpu", options?: { sampleInterval: number }): Promise<void>;
  disconnect(): void;
}
type PressureObserverClass = new (heard: (records: { state: PressureState }[]) => void) => PressureObserving;

/** The Compute Pressure API where there is one: how many times longer the device wants to rest. */
async function watchPressure(): Promise<{ factor(): number; stop(): void }> {
  const Observer = (globalThis as { PressureObserver?: PressureObserverClass }).PressureObserver;
  let state: PressureState = "nominal";
  if (!Observer) return { factor: () => 1, stop: () => undefined };
  const observer = new Observer((records) => (state = records.at(-1)?.state ?? state));
  try {
    await observer.observe("cpu", { sampleInterval: 1000 });
  } catch {
    // a page may be forbidden to know; the length of answers slows it down all the same
  }
  return { factor: () => REST[state], stop: () => observer.disconnect() };
}

const REST: Record<PressureState, number> = { nominal: 1, fair: 1, serious: 2, critical: 4 };
