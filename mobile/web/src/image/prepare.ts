/** From pixels to the encoder's input, exactly as preprocessing.json says: stages/data/image.py in TypeScript, to the bit.
 *
 *     stretch   resized to the square, whatever its shape
 *     crop      shortest edge resized to the square's, then the middle is cut out
 *     pad       laid in the middle of a square of the colour `mean`, then resized
 */
import { TapeoutError } from "../errors";
import type { Preprocessing } from "../manifest";
import { type Pixels, checkSize } from "./pixels";
import { type Axis, type Filter, resample } from "./resample";

export type { Pixels };

/** What of preprocessing.json concerns the image. */
export type ImageSettings = Pick<Preprocessing, "image_size" | "aspect" | "resample" | "mean" | "std">;

/** (1, 3, S, S), row by row. Throws TapeoutError "unsupported" for an unknown aspect or filter, "image" for an empty image. */
export function prepare(pixels: Pixels, settings: ImageSettings): Float32Array<ArrayBuffer> {
  const size = Math.trunc(settings.image_size);
  const { data } = square(pixels, settings);
  const result = new Float32Array(3 * size * size);
  for (let channel = 0; channel < 3; channel += 1) {
    const table = normalised(settings.mean[channel]!, settings.std[channel]!);
    const plane = channel * size * size;
    for (let place = 0; place < size * size; place += 1) result[plane + place] = table[data[place * 3 + channel]!]!;
  }
  return result;
}

/** The image made square, S x S. */
export function square(pixels: Pixels, { image_size, aspect, resample: filter = "bilinear", mean }: ImageSettings): Pixels {
  if (filter !== "bilinear" && filter !== "bicubic") throw new TapeoutError("unsupported", `preprocessing.json: resample is ${JSON.stringify(filter)}`);
  const size = Math.trunc(image_size);
  const { width, height } = pixels;
  checkSize(width, height);
  if (aspect === "stretch") return cut(pixels, filter, whole(width, size), whole(height, size));
  if (aspect === "crop") {
    const short = Math.min(width, height);
    return cut(pixels, filter, middle(width, short, size), middle(height, short, size));
  }
  if (aspect === "pad") {
    const long = Math.max(width, height);
    const colour = mean.map((value) => Math.min(Math.max(Math.trunc(value * 255), 0), 255));
    return resample(pixels, padded(width, long, size), padded(height, long, size), filter, colour);
  }
  throw new TapeoutError("unsupported", `preprocessing.json: aspect is ${JSON.stringify(aspect)}`, "Expected one of stretch, crop, pad.");
}

function cut(pixels: Pixels, filter: Filter, across: Axis, down: Axis): Pixels {
  return resample(pixels, across, down, filter, [0, 0, 0]);
}

function whole(length: number, size: number): Axis {
  return { source: length, offset: 0, length, target: size, from: 0, count: size };
}

function middle(length: number, short: number, size: number): Axis {
  const target = Math.floor((length * size) / short);
  return { source: length, offset: 0, length, target, from: Math.floor((target - size) / 2), count: size };
}

function padded(length: number, long: number, size: number): Axis {
  return { source: long, offset: Math.floor((long - length) / 2), length, target: size, from: 0, count: size };
}

/** (byte / 255 - mean) / std, every step rounded to float32. */
function normalised(mean: number, std: number): Float32Array {
  const [m, s] = [Math.fround(mean), Math.fround(std)];
  return Float32Array.from({ length: 256 }, (_, byte) => Math.fround(Math.fround(Math.fround(byte / 255) - m) / s));
}
