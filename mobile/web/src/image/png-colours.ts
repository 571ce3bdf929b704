/** From a PNG file's samples to RGB over white, as Pillow reads them and stages/data/image.py goes on. */
import { type Pixels, blended } from "./pixels";

/** kind: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha; bits of a sample. */
export interface Header {
  width: number;
  height: number;
  bits: number;
  kind: number;
  interlaced: boolean;
}

/** The bodies of PLTE and tRNS. */
export interface Colours {
  palette: Uint8Array | null;
  transparency: Uint8Array | null;
}

/** Which pixels of the image the rows are. */
export interface Pass {
  x: number;
  y: number;
  dx: number;
  dy: number;
  width: number;
  height: number;
}

/** samples of a pixel by kind */
export const CHANNELS: Record<number, number> = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };

/** Writes a pass's rows to the result. */
export function toPixels(rows: Uint8Array, stride: number, header: Header, colours: Colours, pass: Pass, result: Pixels): void {
  const { bits, kind } = header;
  const table = kind === 3 ? paletteColours(colours) : kind === 0 && bits < 16 ? greyColours(bits, colours.transparency) : null;
  const colour = new Uint8Array(4);
  const sample = bits >> 3; // bytes
  const unit = sample * CHANNELS[kind]!;
  const clear = kind === 2 && colours.transparency ? lowBytes(colours.transparency) : null;
  const { data, width } = result;
  for (let row = 0; row < pass.height; row += 1) {
    let to = ((pass.y + row * pass.dy) * width + pass.x) * 3;
    const line = row * stride;
    for (let column = 0; column < pass.width; column += 1, to += pass.dx * 3) {
      const at = line + column * unit;
      if (table) {
        const value = bits === 8 ? rows[at]! : packed(rows, line, column, bits);
        data[to] = table[value * 3]!;
        data[to + 1] = table[value * 3 + 1]!;
        data[to + 2] = table[value * 3 + 2]!;
        continue;
      }
      if (kind === 0) {
        data.fill(Math.floor(((rows[at]! << 8) | rows[at + 1]!) / 257), to, to + 3);
        continue;
      }
      const grey = kind === 4;
      colour[0] = rows[at]!;
      colour[1] = grey ? colour[0] : rows[at + sample]!;
      colour[2] = grey ? colour[0] : rows[at + 2 * sample]!;
      const alpha = grey ? rows[at + sample]! : kind === 6 ? rows[at + 3 * sample]! : isColour(colour, clear) ? 0 : 255;
      for (let channel = 0; channel < 3; channel += 1) data[to + channel] = blended(colour[channel]!, alpha);
    }
  }
}

/** The RGB over white of each entry. Those that the file leaves out are black, as Pillow has them. */
function paletteColours({ palette, transparency }: Colours): Uint8Array {
  return table((index) => {
    const known = index * 3 + 2 < palette!.length;
    const colour = [0, 1, 2].map((channel) => (known ? palette![index * 3 + channel]! : 0));
    return [...colour, transparency?.[index] ?? 255];
  });
}

/** Of each value, which Pillow spreads over 0 to 255. The transparent one is compared with the spread value, as Pillow does,
 * so that of 2 and 4 bits only black ever is; of one bit both can be. */
function greyColours(bits: number, transparency: Uint8Array | null): Uint8Array {
  const given = transparency ? (transparency[0]! << 8) | transparency[1]! : -1;
  const clear = given < 0 ? -1 : bits === 1 ? (given ? 255 : 0) : given & 255;
  const spread = 255 / (2 ** bits - 1);
  return table((value) => {
    const grey = Math.min(value * spread, 255);
    return [grey, grey, grey, grey === clear ? 0 : 255];
  });
}

function table(colour: (value: number) => number[]): Uint8Array {
  const result = new Uint8Array(256 * 3);
  for (let value = 0; value < 256; value += 1) {
    const rgba = colour(value);
    for (let channel = 0; channel < 3; channel += 1) result[value * 3 + channel] = blended(rgba[channel]!, rgba[3]!);
  }
  return result;
}

function packed(rows: Uint8Array, line: number, column: number, bits: number): number {
  const place = column * bits;
  return (rows[line + (place >> 3)]! >> (8 - bits - (place & 7))) & ((1 << bits) - 1);
}

/** tRNS of an RGB image holds 16 bits a colour, of which Pillow takes the lower 8, of 16-bit images too. */
function lowBytes(transparency: Uint8Array): number[] {
  return [transparency[1]!, transparency[3]!, transparency[5]!];
}

function isColour(colour: Uint8Array, clear: number[] | null): boolean {
  return clear !== null && colour[0] === clear[0] && colour[1] === clear[1] && colour[2] === clear[2];
}
