import { TapeoutError } from "../errors";

/** Do the work while no other tab, worker or call does any under this name. By Web Locks, which every browser has that has
 * OPFS; where there are none (Node), other calls in this realm alone are kept out. Throws "aborted" while it waits. */
export async function locked<T>(name: string, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
  checkAborted(signal);
  const locks = lockManager();
  if (!locks) return queued(name, work);
  let begun = false;
  try {
    const options = signal ? { signal } : {};
    return (await locks.request(`tapeout:${name}`, options, () => {
      begun = true;
      return work();
    })) as T;
  } catch (error) {
    if (begun) throw error;
    checkAborted(signal);
    return queued(name, work); // a page that may keep nothing may lock nothing
  }
}

/** Say that a version of a model is in use here, until this worker ends. */
export async function hold(name: string, digest: string): Promise<void> {
  const locks = lockManager();
  if (!locks) return;
  await new Promise<void>((resolve) => {
    const forever = (): Promise<never> => (resolve(), new Promise(() => {}));
    locks.request(heldName(name, digest), { mode: "shared" }, forever).catch(() => resolve());
  });
}

/** Which of the versions some tab or worker holds. */
export async function held(name: string): Promise<string[]> {
  const begin = heldName(name, "");
  const names = (await lockManager()?.query().catch(() => undefined))?.held?.map((each) => each.name ?? "") ?? [];
  return names.filter((each) => each.startsWith(begin)).map((each) => each.slice(begin.length));
}

const heldName = (name: string, digest: string): string => `tapeout:${name}:${digest}`;

function lockManager(): LockManager | undefined {
  return typeof navigator === "undefined" ? undefined : (navigator as { locks?: LockManager }).locks;
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
