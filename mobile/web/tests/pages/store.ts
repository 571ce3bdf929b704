/** What tests/mobile/test_store.py calls in a page. */
import type { Order, Outcome } from "./store-worker";

/** Open a bundle in a worker of its own, which then ends. after: it ends after so many milliseconds, whatever it does;
 * result: null. stays: it ends with the page. */
export function open(order: Order, after?: number, stays?: boolean): Promise<Outcome | null> {
  return asked({ open: order }, after, stays) as Promise<Outcome | null>;
}

export const flip = (name: string, offset: number): Promise<unknown> => asked({ flip: name, offset });
export const list = (): Promise<unknown> => asked({ list: true });

/** Bytes of bodies that workers of this page have read. */
export let received = 0;

// once: a page whose server was stopped still has its worker
const source = URL.createObjectURL(await (await fetch("/sdk/store-worker.js")).blob());

function asked(message: object, after?: number, stays = false): Promise<unknown> {
  const worker = new Worker(source, { type: "module" });
  return new Promise((resolve, reject) => {
    const end = (value: unknown): void => {
      if (!stays) worker.terminate();
      resolve(value);
    };
    worker.onmessage = ({ data }: MessageEvent<unknown>) => {
      if (!(data instanceof Object)) end(data);
      else if ("thrown" in data) reject(new Error(String(data.thrown)));
      else if ("received" in data) received += Number(data.received);
      else if (!("event" in data)) end(data);
    };
    worker.onerror = (event) => reject(new Error(event.message));
    worker.postMessage(message);
    if (after !== undefined) setTimeout(() => end(null), after);
  });
}
