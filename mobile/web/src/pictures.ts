/** Images of a page as the worker takes them. */
import { TapeoutError } from "./errors";
import type { Picture, Source } from "./protocol";

export type Image = Source | HTMLImageElement | HTMLCanvasElement | OffscreenCanvas;

/** What the worker is given of an image, and what of it changes hands. What the caller gave stays the caller's.
 *
 * A Blob cannot change, so it keeps its key; of all others this is a snapshot. Throws TapeoutError "image".
 */
export async function pictureOf(image: Image, key = keyOf(image)): Promise<{ picture: Picture; transfer: ImageBitmap[] }> {
  if (isSource(image)) return { picture: { source: image, key }, transfer: [] };
  try {
    if (isElement(image)) {
      if (!image.complete) image.loading = "eager"; // a lazy one that is out of sight never comes
      await image.decode();
    }
    const bitmap = await createImageBitmap(image, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
    return { picture: { source: bitmap, key }, transfer: [bitmap] };
  } catch (cause) {
    const hint = "Give a Blob, ImageData, ImageBitmap, VideoFrame, canvas or a loaded <img>.";
    if (isElement(image) && !image.naturalWidth) throw new TapeoutError("image", `the <img> did not load ${image.currentSrc || "anything"}`, hint, { cause });
    if (cause instanceof TypeError) throw new TapeoutError("image", "this is no image", hint, { cause });
    throw TapeoutError.from(cause, "image", "the image cannot be read", hint);
  }
}

/** The same number for the same Blob, a new one for all else. */
export function keyOf(image: Image): number {
  if (!(image instanceof Blob)) return next++;
  let key = keys.get(image);
  if (key === undefined) keys.set(image, (key = next++));
  return key;
}

const keys = new WeakMap<Blob, number>();
let next = 1;

function isSource(image: Image): image is Source {
  return (
    image instanceof Blob ||
    image instanceof ImageData ||
    image instanceof ImageBitmap ||
    (typeof VideoFrame !== "undefined" && image instanceof VideoFrame)
  );
}

function isElement(image: Image): image is HTMLImageElement {
  return typeof HTMLImageElement !== "undefined" && image instanceof HTMLImageElement;
}
