/** What tests/mobile/test_image.py calls in a page. */
import type { ImageSettings } from "../../src/image/prepare";

/** as: in which form the image at the URL is handed over. */
export interface Work {
  url: string;
  as: "blob" | "bytes" | "bitmap" | "frame" | "canvas" | "data";
  settings: ImageSettings | null;
}

/** data: RGB; tensor: float32 in the machine's order; both in base64. */
export interface Answer {
  width: number;
  height: number;
  data: string;
  tensor?: string;
}

export async function decode(work: Work[]): Promise<(Answer | { error: string })[]> {
  const worker = new Worker("/sdk/image-worker.js", { type: "module" });
  const results = [];
  for (const one of work) {
    worker.postMessage(one);
    results.push(await new Promise<Answer>((resolve, reject) => {
      worker.onmessage = ({ data }: MessageEvent<Answer>) => resolve(data);
      worker.onerror = (event) => reject(new Error(event.message));
    }));
  }
  worker.terminate();
  return results;
}

export function base64(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}
