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

/** See Model.watch. Throws what an answer throws, and why `closed` was aborted; stopped by the signal it ends without an error. */
export async function* watch(ask: Ask, source: FrameSource, options: WatchOptions, closed: AbortSignal): AsyncGenerator<Result & Frame, void, void> {
  const { fps = 2, signal, maxTokens } = options;
  if (typeof fps !== "number" || !(fps > 0)) throw new TapeoutError("prompt", `fps is ${String(fps)}`, "Give a number above 0.");
  const frames = newestOf(source);
  const pressure = watchPressure();
  let halt = (): void => undefined; // ends the wait that is on
  const abort = (): void => halt();
  const orStopped = <T>(wait: Promise<T>): Promise<T | null> =>
    new Promise((resolve, reject) => {
      wait.then(resolve, reject);
      halt = () => resolve(null);
      if (signal?.aborted || closed.aborted) halt();
    });
  signal?.addEventListener("abort", abort);
  closed.addEventListener("abort", abort);
  try {
    for (;;) {
      const coming = frames.take();
      const taken = await orStopped(coming);
      if (!taken) {
        coming.then((late) => late && close(late.image), () => undefined); // it may have been drawn in the meantime
        if (closed.aborted && !signal?.aborted) throw closed.reason;
        return;
      }
      const began = performance.now();
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
      const rest = Math.min(Math.max(0, period - took), LONGEST);
      await orStopped(new Promise<void>((resolve) => setTimeout(resolve, rest)));
    }
  } finally {
    signal?.removeEventListener("abort", abort);
    closed.removeEventListener("abort", abort);
    pressure.stop();
    frames.stop();
  }
}

const LONGEST = 2 ** 31 - 1; // milliseconds; a longer timer fires at once

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

function newestOf(source: FrameSource): Newest {
  if (isFrames(source)) return newestOfFrames(source);
  if (typeof HTMLVideoElement !== "undefined" && source instanceof HTMLVideoElement) return newestOfVideo(source);
  if (typeof MediaStream !== "undefined" && source instanceof MediaStream) return newestOfStream(source);
  throw new TapeoutError("image", "this cannot be watched", "Give a <video>, a MediaStream, or an async iterable of frames.");
}

function isFrames(source: FrameSource): source is AsyncIterable<Image> {
  return typeof (source as Partial<AsyncIterable<Image>> | null)?.[Symbol.asyncIterator] === "function";
}

/** Reads all frames as they come and keeps the last; those that nobody took are closed. */
function newestOfFrames(source: AsyncIterable<Image>): Newest {
  let iterator: AsyncIterator<Image> | null = null;
  let kept: { image: Image; time: number } | null = null;
  let done = false;
  let failure: { cause: unknown } | null = null;
  let wake = (): void => undefined;
  void (async () => {
    try {
      iterator = source[Symbol.asyncIterator]();
      for (let step = await iterator.next(); !step.done; step = await iterator.next()) {
        const image = step.value;
        if (!image || typeof image !== "object") throw new TapeoutError("image", `a frame is ${image === null ? "null" : typeof image}`, "Yield images as ask() takes them.");
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
      (async () => iterator?.return?.())().catch(() => undefined); // the caller has left: there is nobody to tell
    },
  };
}

function newestOfStream(stream: MediaStream): Newest {
  if (!stream.getVideoTracks().length) throw new TapeoutError("image", "the stream has no video track", "Ask for one: getUserMedia({ video: true }).");
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = stream;
  const { take, stop } = newestOfVideo(video, video.play());
  return { take, stop: () => (stop(), void (video.srcObject = null)) };
}

/** Draws a frame from a video when one is asked for and a new one is shown. playing: ends it where it fails. */
function newestOfVideo(video: HTMLVideoElement, playing?: Promise<void>): Newest {
  const readable = (): boolean => video.readyState >= video.HAVE_CURRENT_DATA;
  let shown: number | null = readable() ? video.currentTime * 1000 : null;
  let ended = video.ended;
  let failure: TapeoutError | null = null;
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
  const forget = (): void => void (shown = null); // another source was given
  const end = (): void => {
    ended = true;
    if (byFrame) video.cancelVideoFrameCallback(handle);
    wake();
  };
  if (byFrame) handle = video.requestVideoFrameCallback(next);
  else video.addEventListener("timeupdate", tick);
  video.addEventListener("emptied", forget);
  video.addEventListener("ended", end);
  playing?.catch((cause: unknown) => {
    failure = TapeoutError.from(cause, "image", "the stream cannot be played");
    wake();
  });
  return {
    async take() {
      let doubt = false;
      const look = (): void => {
        const found = failureOf(video);
        if (found && doubt) failure = found; // twice: between two sources a video has none either
        doubt = found !== null;
        wake();
      };
      const looking = setInterval(look, LOOK);
      const waits = (): boolean => (shown === null || !readable()) && !ended && !failure && !isStopped(video);
      while (waits()) await new Promise<void>((resolve) => (wake = resolve));
      clearInterval(looking);
      if (isStopped(video)) return null; // it shows black now
      const time = shown;
      shown = null;
      if (time !== null && readable()) return { image: await grab(video), time };
      if (failure) throw failure;
      return null;
    },
    stop() {
      end();
      video.removeEventListener("timeupdate", tick);
      video.removeEventListener("emptied", forget);
      video.removeEventListener("ended", end);
    },
  };
}

const LOOK = 250; // milliseconds between two looks at a video that shows nothing new

/** Why nothing more will come of a video; null where something may. */
function failureOf(video: HTMLVideoElement): TapeoutError | null {
  if (!video.error && video.networkState !== video.NETWORK_NO_SOURCE) return null;
  const why = video.error?.message || "none of its sources can be played";
  return new TapeoutError("image", `the video failed: ${why}`, "Give one that this browser plays.");
}

/** Whether what it shows is a stream that was stopped: where the page itself does so, no event tells. */
function isStopped({ srcObject }: HTMLVideoElement): boolean {
  const tracks = srcObject instanceof MediaStream ? srcObject.getVideoTracks() : [];
  return tracks.length > 0 && tracks.every((track) => track.readyState === "ended");
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
  if ("close" in image && typeof image.close === "function") image.close();
}

type PressureState = "nominal" | "fair" | "serious" | "critical";
interface PressureObserving {
  observe(source: "cpu", options?: { sampleInterval: number }): Promise<void>;
  disconnect(): void;
}
type PressureObserverClass = new (heard: (records: { state: PressureState }[]) => void) => PressureObserving;

/** The Compute Pressure API where there is one: how many times longer the device wants to rest. */
function watchPressure(): { factor(): number; stop(): void } {
  const Observer = (globalThis as { PressureObserver?: PressureObserverClass }).PressureObserver;
  let state: PressureState = "nominal";
  if (!Observer) return { factor: () => 1, stop: () => undefined };
  const observer = new Observer((records) => (state = records.at(-1)?.state ?? state));
  // a page may be forbidden to know; the length of answers slows it down all the same
  observer.observe("cpu", { sampleInterval: 1000 }).catch(() => undefined);
  return { factor: () => REST[state], stop: () => observer.disconnect() };
}

const REST: Record<PressureState, number> = { nominal: 1, fair: 1, serious: 2, critical: 4 };
