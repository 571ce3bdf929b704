import { TapeoutError } from "../errors";

/** Do the work while no other tab, worker or call does any under this name. By Web Locks, which every browser has that has
 * OPFS; where there are none (Node), other calls in this realm alone are kept out. Throws "aborted" while it waits. */
export async function locked<T>(name: string, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
  checkAborted(signal);
  const locks = typeof navigator === "undefined" ? undefined : (navigator as { locks?: LockManager }).locks;
  if (!locks) return queued(name, work);
  let begun = false;
  try {
    const options = signal ? { signal } : {};
    return (await locks.request(`tapeout:${name}`, options, () => {
      begun = true;
      return work();
    })) as T;
  } catch (error) {
    if (!begun) checkAborted(signal);
    throw error;
  }
}

/** Throws "aborted" where the signal says so. */
export function checkAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new TapeoutError("aborted", "opening was stopped by the caller");
}

/** The work's end, or "aborted" as soon as the signal says so: the work goes on then, and what it gives is dropped. */
export async function abortable<T>(signal: AbortSignal | undefined, work: Promise<T>): Promise<T> {
  if (!signal) return work;
  let stop = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(new TapeoutError("aborted", "opening was stopped by the caller"));
    signal.addEventListener("abort", stop);
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

const waiting = new Map<string, Promise<unknown>>();

async function queued<T>(name: string, work: () => Promise<T>): Promise<T> {
  const before = waiting.get(name) ?? Promise.resolve();
  const mine = before.then(work, work);
  waiting.set(name, mine.catch(() => {}));
  return mine;
}
