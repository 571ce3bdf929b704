import { TapeoutError } from "../errors";

/** An upright, opaque image: RGB, 8 bits each, row by row. */
export interface Pixels {
  width: number;
  height: number;
  data: Uint8Array;
}

/** Pillow refuses larger ones as decompression bombs. */
export const MOST_PIXELS = 2 * 89_478_485;

/** Throws TapeoutError "image" for a size that is none, or too large. */
export function checkSize(width: number, height: number): void {
  if (!(width >= 1 && height >= 1)) throw new TapeoutError("image", `the image is empty: ${width} x ${height} pixels`);
  if (width * height > MOST_PIXELS)
    throw new TapeoutError("image", `the image has ${width} x ${height} pixels`, `Expected at most ${MOST_PIXELS} in all.`);
}

/** RGBA laid over white, RGB out: Pillow's alpha_composite to the bit. */
export function overWhite(rgba: Uint8Array | Uint8ClampedArray, width: number, height: number): Pixels {
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < data.length; from += 4, to += 3) {
    const alpha = rgba[from + 3]!;
    if (alpha === 255) {
      data[to] = rgba[from]!;
      data[to + 1] = rgba[from + 1]!;
      data[to + 2] = rgba[from + 2]!;
    } else {
      data[to] = blended(rgba[from]!, alpha);
      data[to + 1] = blended(rgba[from + 1]!, alpha);
      data[to + 2] = blended(rgba[from + 2]!, alpha);
    }
  }
  return { width, height, data };
}

/** One colour over white. In 7 bits of fixed point; the division by 255 is the usual one by shifts. */
export function blended(value: number, alpha: number): number {
  const sum = (value * alpha + 255 * (255 - alpha) + 128) << 7;
  return (((sum >> 8) + sum) >> 8) >> 7;
}
