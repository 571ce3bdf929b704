/** From what an app has, a file, a picture on the page or a frame of a film, to upright, opaque RGB. */
import { TapeoutError } from "../errors";
import { upright, withoutOrientation } from "./exif";
import { type Pixels, checkSize, overWhite } from "./pixels";
import { decodePng, isPng } from "./png";

export type { Pixels };

/** Pixels as ImageData holds them: RGBA, not multiplied by alpha. */
export interface RawImage {
  width: number;
  height: number;
  data: Uint8Array | Uint8ClampedArray;
}

export type ImageSource = Blob | Uint8Array | RawImage | ImageData | ImageBitmap | VideoFrame | OffscreenCanvas;

/** PNG files and ImageData come out to the bit as in stages/data/image.py, everywhere. JPEG, WebP, AVIF and the like are decoded by
 * the browser: its colours may differ by a few of 255. What the browser draws (ImageBitmap, VideoFrame, OffscreenCanvas, WebP)
 * loses a little colour where it is nearly transparent. Throws TapeoutError "image" for what is no image, or too large. */
export async function decodeImage(source: ImageSource): Promise<Pixels> {
  try {
    if (isRaw(source)) return raw(source);
    if (source instanceof Uint8Array) return await decoded(source);
    if (source instanceof Blob) return await decoded(new Uint8Array(await source.arrayBuffer()));
    return drawn(source);
  } catch (cause) {
    const exhausted = cause instanceof RangeError && /alloc|memory/i.test(cause.message);
    throw TapeoutError.from(cause, exhausted ? "memory" : "image", "the image cannot be read", "Give a PNG, a JPEG, or what else this browser shows.");
  }
}

function isRaw(source: ImageSource): source is RawImage {
  return "data" in source && ArrayBuffer.isView(source.data) && typeof (source as RawImage).width === "number";
}

function raw({ width, height, data }: RawImage): Pixels {
  checkSize(width, height);
  if (data.length !== width * height * 4)
    throw new TapeoutError("image", `${data.length} bytes are no image of ${width} x ${height} pixels`, "Expected four bytes a pixel: red, green, blue, alpha.");
  return overWhite(data, width, height);
}

async function decoded(bytes: Uint8Array): Promise<Pixels> {
  if (isPng(bytes)) return decodePng(bytes);
  if (typeof createImageBitmap !== "function" || typeof OffscreenCanvas !== "function")
    throw new TapeoutError("image", "this is no PNG file, and there is no browser here that reads others", "Expected PNG, or ImageData.");
  // The rotation is done here, from a file that says nothing of it: browsers differ in what they heed and in what "none" means.
  const file = withoutOrientation(bytes);
  const bitmap = await createImageBitmap(new Blob([file.bytes]), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  try {
    return upright(drawn(bitmap), file.orientation);
  } finally {
    bitmap.close();
  }
}

function drawn(source: ImageBitmap | VideoFrame | OffscreenCanvas): Pixels {
  const [width, height] = "displayWidth" in source ? [source.displayWidth, source.displayHeight] : [source.width, source.height];
  checkSize(width, height);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  if (!context) throw new TapeoutError("image", "this browser gives no canvas to draw on");
  context.drawImage(source, 0, 0, width, height);
  return overWhite(context.getImageData(0, 0, width, height).data, width, height);
}
