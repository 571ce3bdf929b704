/** A worker that decodes images as the SDK's does. */
import { TapeoutError } from "../../src/errors";
import { type ImageSource, decodeImage } from "../../src/image/decode";
import { prepare } from "../../src/image/prepare";
import { type Answer, type Work, base64 } from "./image";

onmessage = async ({ data: { url, as, settings } }: MessageEvent<Work>) => {
  try {
    const pixels = await decodeImage(await source(await (await fetch(url)).blob(), as));
    const answer: Answer = { width: pixels.width, height: pixels.height, data: base64(pixels.data) };
    if (settings) answer.tensor = base64(new Uint8Array(prepare(pixels, settings).buffer));
    postMessage(answer);
  } catch (error) {
    postMessage({ error: TapeoutError.from(error, "runtime").code, message: String(error) });
  }
};

async function source(blob: Blob, as: Work["as"]): Promise<ImageSource> {
  if (as === "blob") return blob;
  if (as === "bytes") return new Uint8Array(await blob.arrayBuffer());
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  if (as === "bitmap") return bitmap;
  if (as === "frame") return new VideoFrame(bitmap, { timestamp: 0 });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d")!;
  context.drawImage(bitmap, 0, 0);
  return as === "canvas" ? canvas : context.getImageData(0, 0, bitmap.width, bitmap.height);
}
