/** Pillow's antialiased resize, to the bit: two passes in 8 bits a channel, coefficients in fixed point of 22 bits.
 *
 * As ImagingResample of Pillow 13 does it. What is resized lies in a larger canvas of one colour, and only a window of the
 * result is worked out; neither costs memory for what is not there. */
import type { Pixels } from "./pixels";

export type Filter = "bilinear" | "bicubic";

/** One axis. source: the canvas's length, of which the pixels take [offset, offset + length). target: the length of the whole
 * result, of which [from, from + count) is wanted. All in pixels. */
export interface Axis {
  source: number;
  offset: number;
  length: number;
  target: number;
  from: number;
  count: number;
}

/** The window across.count x down.count of the canvas resized to across.target x down.target. colour: the canvas's, RGB. */
export function resample(pixels: Pixels, across: Axis, down: Axis, filter: Filter, colour: readonly number[]): Pixels {
  const columns = across.source === across.target ? null : coefficients(across, filter);
  const rows = down.source === down.target ? null : coefficients(down, filter);
  if (columns && rows && downFirst(across, down)) {
    const low = vertical(pixels, 0, rows, down, filled(pixels.width, colour));
    return horizontal(low, columns, across, 0, low.height, colour);
  }
  const [first, last] = rows ? rowsNeeded(rows, down) : [clamped(down.from, down), clamped(down.from + down.count, down)];
  const wide = columns ? horizontal(pixels, columns, across, first, last, colour) : copied(pixels, across, first, last, colour);
  // What a row of the canvas above or below the pixels becomes.
  const line = { width: across.length, height: 1, data: filled(across.length, colour) };
  const empty = columns ? horizontal(line, columns, across, 0, 1, colour).data : filled(across.count, colour);
  return rows ? vertical(wide, first, rows, down, empty) : placed(wide, first, down, empty);
}

/** Since Pillow 13 the rows go first where the height shrinks by more than twice as many pixels as the width. (The canvas of
 * another colour is square, and is never made so.) */
function downFirst(across: Axis, down: Axis): boolean {
  return down.target < down.source && down.source - down.target > 2 * (across.source - across.target);
}

/** For each of count results: the taps, in source pixels from starts[i], lengths[i] of them, at taps[i * size]. */
interface Coefficients {
  starts: Int32Array;
  lengths: Int32Array;
  taps: Int32Array;
  size: number;
}

const BITS = 22;
const HALF = 1 << (BITS - 1);
const SUPPORT = { bilinear: 1, bicubic: 2 };

function coefficients({ source, target, from, count }: Axis, filter: Filter): Coefficients {
  const scale = source / target;
  const stretch = Math.max(scale, 1);
  const support = SUPPORT[filter] * stretch;
  const weight = filter === "bilinear" ? bilinear : bicubic;
  const size = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(count);
  const lengths = new Int32Array(count);
  const taps = new Int32Array(count * size);
  const weights = new Float64Array(size);
  const step = 1 / stretch;
  for (let index = 0; index < count; index += 1) {
    const center = (from + index + 0.5) * scale;
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const length = Math.min(Math.trunc(center + support + 0.5), source) - start;
    let sum = 0;
    for (let tap = 0; tap < length; tap += 1) {
      const value = weight((tap + start - center + 0.5) * step);
      weights[tap] = value;
      sum += value;
    }
    for (let tap = 0; tap < length; tap += 1) {
      const value = sum === 0 ? weights[tap]! : weights[tap]! / sum;
      taps[index * size + tap] = Math.trunc((value < 0 ? -0.5 : 0.5) + value * (1 << BITS));
    }
    starts[index] = start;
    lengths[index] = length;
  }
  return { starts, lengths, taps, size };
}

function bilinear(x: number): number {
  const distance = Math.abs(x);
  return distance < 1 ? 1 - distance : 0;
}

/** Keys's cubic, a = -0.5. */
function bicubic(x: number): number {
  const a = -0.5;
  const distance = Math.abs(x);
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * a;
  return 0;
}

/** Of the pixels' rows, those that the taps reach: [first, last). */
function rowsNeeded({ starts, lengths }: Coefficients, axis: Axis): [number, number] {
  const final = starts.length - 1;
  return [clamped(starts[0]!, axis), clamped(starts[final]! + lengths[final]!, axis)];
}

function clamped(place: number, { offset, length }: Axis): number {
  return Math.min(Math.max(place - offset, 0), length);
}

function horizontal(pixels: Pixels, { starts, lengths, taps, size }: Coefficients, axis: Axis, first: number, last: number, colour: readonly number[]): Pixels {
  const { data, width } = pixels;
  const { count, offset } = axis;
  const result = new Uint8Array((last - first) * count * 3);
  // Taps that lie on the canvas beside the pixels all see its colour; they are the same for every row.
  const inner = new Int32Array(count * 3); // first tap, its end, first pixel
  const outer = new Int32Array(count * 3);
  for (let index = 0; index < count; index += 1) {
    const left = Math.min(Math.max(offset - starts[index]!, 0), lengths[index]!);
    const right = Math.max(Math.min(offset + width - starts[index]!, lengths[index]!), left);
    let beside = 0;
    for (let tap = 0; tap < lengths[index]!; tap += 1) if (tap < left || tap >= right) beside += taps[index * size + tap]!;
    inner[index * 3] = index * size + left;
    inner[index * 3 + 1] = index * size + right;
    inner[index * 3 + 2] = (starts[index]! + left - offset) * 3;
    for (let channel = 0; channel < 3; channel += 1) outer[index * 3 + channel] = HALF + Math.imul(beside, colour[channel]!);
  }
  for (let row = first, to = 0; row < last; row += 1) {
    const line = row * width * 3;
    for (let index = 0; index < count * 3; index += 3) {
      const end = inner[index + 1]!;
      let from = line + inner[index + 2]!;
      let red = outer[index]!;
      let green = outer[index + 1]!;
      let blue = outer[index + 2]!;
      for (let tap = inner[index]!; tap < end; tap += 1) {
        const weight = taps[tap]!;
        red = (red + Math.imul(data[from]!, weight)) | 0;
        green = (green + Math.imul(data[from + 1]!, weight)) | 0;
        blue = (blue + Math.imul(data[from + 2]!, weight)) | 0;
        from += 3;
      }
      result[to] = clipped(red);
      result[to + 1] = clipped(green);
      result[to + 2] = clipped(blue);
      to += 3;
    }
  }
  return { width: count, height: last - first, data: result };
}

/** wide: rows from `first` of the pixels on. empty: a row of the canvas where no pixels are. */
function vertical(wide: Pixels, first: number, { starts, lengths, taps, size }: Coefficients, axis: Axis, empty: Uint8Array): Pixels {
  const stride = wide.width * 3;
  const result = new Uint8Array(axis.count * stride);
  const sums = new Int32Array(stride);
  for (let index = 0; index < axis.count; index += 1) {
    sums.fill(HALF);
    let beside = 0;
    for (let tap = 0; tap < lengths[index]!; tap += 1) {
      const weight = taps[index * size + tap]!;
      const row = starts[index]! + tap - axis.offset;
      if (row < 0 || row >= axis.length) {
        beside += weight;
        continue;
      }
      const from = (row - first) * stride;
      const { data } = wide;
      for (let place = 0; place < stride; place += 1) sums[place] = sums[place]! + Math.imul(data[from + place]!, weight);
    }
    const to = index * stride;
    for (let place = 0; place < stride; place += 1) result[to + place] = clipped((sums[place]! + Math.imul(empty[place]!, beside)) | 0);
  }
  return { width: wide.width, height: axis.count, data: result };
}

/** Where the width stays: the window's columns of the rows [first, last). */
function copied(pixels: Pixels, { offset, from, count }: Axis, first: number, last: number, colour: readonly number[]): Pixels {
  const { data, width } = pixels;
  if (from === 0 && offset === 0 && count === width) return { width, height: last - first, data: data.subarray(first * width * 3, last * width * 3) };
  const result = filled((last - first) * count, colour);
  const [left, right] = [Math.max(from, offset), Math.min(from + count, offset + width)];
  for (let row = first; row < last && left < right; row += 1) {
    const line = (row * width - offset) * 3;
    result.set(data.subarray(line + left * 3, line + right * 3), ((row - first) * count + left - from) * 3);
  }
  return { width: count, height: last - first, data: result };
}

/** Where the height stays: rows of the canvas above and below. */
function placed(wide: Pixels, first: number, { offset, from, count }: Axis, empty: Uint8Array): Pixels {
  if (wide.height === count) return wide;
  const stride = wide.width * 3;
  const result = new Uint8Array(count * stride);
  for (let row = 0; row < count; row += 1) result.set(empty, row * stride);
  result.set(wide.data, (first + offset - from) * stride);
  return { width: wide.width, height: count, data: result };
}

function filled(pixels: number, colour: readonly number[]): Uint8Array {
  const result = new Uint8Array(pixels * 3);
  for (let place = 0; place < result.length; place += 1) result[place] = colour[place % 3]!;
  return result;
}

function clipped(sum: number): number {
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}
