import { TapeoutError } from "../errors";

/** The rows of one pass of a PNG image, without the filters' bytes. raw: rows of 1 + stride bytes; unit: bytes of a pixel, at
 * least one. Throws TapeoutError "image" for an unknown filter. */
export function unfiltered(raw: Uint8Array, stride: number, height: number, unit: number): Uint8Array {
  const rows = new Uint8Array(stride * height);
  for (let row = 0; row < height; row += 1) {
    const from = row * (stride + 1);
    const to = row * stride;
    rows.set(raw.subarray(from + 1, from + 1 + stride), to);
    const filter = FILTERS[raw[from]!];
    if (!filter) throw new TapeoutError("image", `the PNG file's data is broken: row ${row} has the filter ${raw[from]}`);
    filter(rows, to, stride, unit, row > 0);
  }
  return rows;
}

/** Adds to a row what the filter predicts from the bytes to the left, above, and above on the left; 0 where there are none. */
type Filter = (rows: Uint8Array, start: number, stride: number, unit: number, above: boolean) => void;

const FILTERS: Filter[] = [
  () => undefined,
  (rows, start, stride, unit) => {
    for (let at = start + unit; at < start + stride; at += 1) rows[at] = rows[at]! + rows[at - unit]!;
  },
  (rows, start, stride, _unit, above) => {
    if (above) for (let at = start; at < start + stride; at += 1) rows[at] = rows[at]! + rows[at - stride]!;
  },
  (rows, start, stride, unit, above) => {
    for (let at = start; at < start + stride; at += 1) {
      const left = at - start >= unit ? rows[at - unit]! : 0;
      rows[at] = rows[at]! + ((left + (above ? rows[at - stride]! : 0)) >> 1);
    }
  },
  (rows, start, stride, unit, above) => {
    for (let at = start; at < start + stride; at += 1) {
      const left = at - start >= unit ? rows[at - unit]! : 0;
      const up = above ? rows[at - stride]! : 0;
      const corner = above && at - start >= unit ? rows[at - stride - unit]! : 0;
      rows[at] = rows[at]! + paeth(left, up, corner);
    }
  },
];

function paeth(left: number, up: number, corner: number): number {
  const [toLeft, toUp, toCorner] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}
