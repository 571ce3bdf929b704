/** The photographer's rotation, and doing it. */
import type { Pixels } from "./pixels";

/** 1 to 8 as EXIF has it; 1 is upright. */
export type Orientation = number;

/** Of an EXIF block (TIFF's header first, "Exif\0\0" before it or not). 0 where it says nothing or is broken. */
export function orientationOfExif(block: Uint8Array): Orientation {
  let bytes = block;
  for (let times = 0; times < 2 && startsWith(bytes, EXIF); times += 1) bytes = bytes.subarray(EXIF.length);
  if (bytes.length < 8) return 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = bytes[0] === 0x49;
  if ((!little && bytes[0] !== 0x4d) || bytes[1] !== bytes[0] || view.getUint16(2, little) !== 42) return 0;
  const directory = view.getUint32(4, little);
  if (directory + 2 > bytes.length) return 0;
  const entries = view.getUint16(directory, little);
  for (let entry = 0; entry < entries; entry += 1) {
    const at = directory + 2 + entry * 12;
    if (at + 12 > bytes.length) return 0;
    if (view.getUint16(at, little) !== ORIENTATION) continue;
    const type = view.getUint16(at + 2, little);
    return type === SHORT ? view.getUint16(at + 8, little) : type === LONG ? view.getUint32(at + 8, little) : type === BYTE ? bytes[at + 8]! : 0;
  }
  return 0;
}

/** Of an XMP packet, which counts where EXIF says nothing. */
export function orientationOfXmp(packet: Uint8Array): Orientation {
  const found = /tiff:Orientation(?:="|>)([0-9])/.exec(new TextDecoder("latin1").decode(packet));
  return found ? Number(found[1]) : 0;
}

/** Of a JPEG or WebP file's bytes, 1 where it has none; and a copy without its EXIF, which a browser would heed as well. */
export function withoutOrientation(bytes: Uint8Array): { orientation: Orientation; bytes: Uint8Array<ArrayBuffer> } {
  const copy = bytes.slice();
  const { exif, xmp } = startsWith(copy, [0xff, 0xd8]) ? inJpeg(copy) : startsWith(copy, RIFF) ? inWebp(copy) : { exif: [], xmp: null };
  const orientation = (exif.length && orientationOfExif(exif[0]!)) || (xmp && orientationOfXmp(xmp)) || 1;
  for (const block of exif) block.fill(0);
  return { orientation, bytes: copy };
}

/** The image turned and mirrored as the orientation asks; the same object where it is upright. */
export function upright(pixels: Pixels, orientation: Orientation): Pixels {
  if (!(orientation >= 2 && orientation <= 8)) return pixels;
  const { width, height, data } = pixels;
  const swapped = orientation >= 5;
  const [outWidth, outHeight] = swapped ? [height, width] : [width, height];
  // Where the first pixel of the result comes from, and how far it is from there to the next one and the next row.
  const right = orientation === 2 || orientation === 3 || orientation === 7 || orientation === 8;
  const bottom = orientation === 3 || orientation === 4 || orientation === 6 || orientation === 7;
  const first = ((bottom ? height - 1 : 0) * width + (right ? width - 1 : 0)) * 3;
  const [x, y] = [right ? -3 : 3, (bottom ? -3 : 3) * width];
  const [column, row] = swapped ? [y, x] : [x, y];
  const result = new Uint8Array(data.length);
  for (let line = 0, to = 0; line < outHeight; line += 1)
    for (let place = 0, from = first + line * row; place < outWidth; place += 1, from += column, to += 3) {
      result[to] = data[from]!;
      result[to + 1] = data[from + 1]!;
      result[to + 2] = data[from + 2]!;
    }
  return { width: outWidth, height: outHeight, data: result };
}

interface Blocks {
  exif: Uint8Array[];
  xmp: Uint8Array | null;
}

/** The segments before the picture's data. */
function inJpeg(bytes: Uint8Array): Blocks {
  const found: Blocks = { exif: [], xmp: null };
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1]!;
    if (marker === 0xff) {
      at += 1; // a filler
      continue;
    }
    if (marker === 0xda || marker === 0xd9) break;
    const length = (bytes[at + 2]! << 8) | bytes[at + 3]!;
    const segment = bytes.subarray(at + 4, at + 2 + length);
    if (marker === 0xe1 && startsWith(segment, EXIF)) found.exif.push(segment);
    else if (marker === 0xe1 && startsWith(segment, XMP)) found.xmp = segment.subarray(XMP.length);
    at += 2 + length;
  }
  return found;
}

function inWebp(bytes: Uint8Array): Blocks {
  const found: Blocks = { exif: [], xmp: null };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (startsWith(bytes.subarray(at), characters("EXIF"))) found.exif.push(body);
    if (startsWith(bytes.subarray(at), characters("XMP "))) found.xmp = body;
    at += 8 + length + (length & 1);
  }
  return found;
}

export function startsWith(bytes: Uint8Array, start: ArrayLike<number>): boolean {
  for (let index = 0; index < start.length; index += 1) if (bytes[index] !== start[index]) return false;
  return true;
}

export function characters(text: string): number[] {
  return Array.from(text, (character) => character.charCodeAt(0));
}

const EXIF = characters("Exif\0\0");
const XMP = characters("http://ns.adobe.com/xap/1.0/\0");
const RIFF = characters("RIFF");
const ORIENTATION = 0x0112;
const [BYTE, SHORT, LONG] = [1, 3, 4];
