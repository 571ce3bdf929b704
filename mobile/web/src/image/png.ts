/** PNG files, all of the standard's kinds, to RGB as Pillow and stages/data/image.py see them.
 *
 * A decoder of our own, because a browser's canvas multiplies colours by their alpha, applies gamma and colour profiles, and is
 * not there in Node. Of 16 bits the colours keep the upper 8, grey is divided by 257; of an animation the default image counts. */
import { TapeoutError } from "../errors";
import { type Orientation, orientationOfExif, orientationOfXmp, startsWith, upright } from "./exif";
import { inflate, inflateSmall } from "./inflate";
import { type Pixels, checkSize } from "./pixels";
import { CHANNELS, type Colours, type Header, toPixels } from "./png-colours";
import { unfiltered } from "./png-filters";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const MOST_TEXT = 1 << 20; // bytes of a compressed text, as in Pillow

export function isPng(bytes: Uint8Array): boolean {
  return bytes.length >= 8 && startsWith(bytes, SIGNATURE);
}

/** Upright, opaque RGB. Throws TapeoutError "image" for what is no PNG file, broken, cut off or too large. */
export async function decodePng(bytes: Uint8Array): Promise<Pixels> {
  const file = read(bytes);
  const { width, height, bits, kind, interlaced } = file.header;
  const pixelBits = bits * CHANNELS[kind]!;
  const passes = (interlaced ? ADAM7 : [[0, 0, 1, 1]])
    .map(([x, y, dx, dy]) => ({ x: x!, y: y!, dx: dx!, dy: dy!, width: Math.ceil((width - x!) / dx!), height: Math.ceil((height - y!) / dy!) }))
    .filter((pass) => pass.width > 0 && pass.height > 0);
  const size = passes.reduce((sum, pass) => sum + pass.height * (1 + Math.ceil((pass.width * pixelBits) / 8)), 0);
  const raw = await inflate(file.data, size);
  const result: Pixels = { width, height, data: new Uint8Array(width * height * 3) };
  let from = 0;
  for (const pass of passes) {
    const stride = Math.ceil((pass.width * pixelBits) / 8);
    const rows = unfiltered(raw.subarray(from, from + pass.height * (1 + stride)), stride, pass.height, Math.max(pixelBits >> 3, 1));
    toPixels(rows, stride, file.header, file.colours, pass, result);
    from += pass.height * (1 + stride);
  }
  return upright(result, await orientation(file));
}

/** x, y of the first pixel of a pass, and the steps to the next */
const ADAM7 = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
];

interface File {
  header: Header;
  colours: Colours;
  data: Uint8Array[];
  exif: Uint8Array | null;
  /** text chunks in their order: type and body */
  texts: [string, Uint8Array][];
}

function read(bytes: Uint8Array): File {
  if (!isPng(bytes)) throw broken("it does not begin as one");
  let header: Header | null = null;
  const colours: Colours = { palette: null, transparency: null };
  const data: Uint8Array[] = [];
  let exif: Uint8Array | null = null;
  const texts: [string, Uint8Array][] = [];
  let ended = false;
  for (const { type, body } of chunks(bytes)) {
    if (!header && type !== "IHDR") throw broken(`its first part is ${type}, not IHDR`);
    if (type === "IHDR") header ??= parsed(body);
    else if (type === "PLTE") colours.palette = body;
    else if (type === "tRNS") colours.transparency = body;
    else if (type === "IDAT" && !ended) data.push(body);
    else if (type === "eXIf") exif = body;
    else if (type === "tEXt" || type === "zTXt" || type === "iTXt") texts.push([type, body]);
    ended = data.length > 0 && type !== "IDAT";
  }
  if (!header || !data.length) throw broken("it holds no image");
  if (header.kind === 3 && !colours.palette) throw broken("its palette is missing");
  const needed = header.kind === 2 ? 6 : header.kind === 0 ? 2 : 0;
  if (colours.transparency && colours.transparency.length < needed) throw broken("tRNS is too short");
  return { header, colours, data, exif, texts };
}

/** Up to IEND, or up to the end where that is missing and all of the image is there. */
function* chunks(bytes: Uint8Array): Generator<{ type: string; body: Uint8Array }> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at < bytes.length; ) {
    if (at + 12 > bytes.length) throw broken("it is cut off");
    const length = view.getUint32(at);
    const end = at + 12 + length;
    if (end > bytes.length) throw broken("it is cut off");
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (!/^[A-Za-z]{4}$/.test(type)) throw broken(`it holds a part of the type ${JSON.stringify(type)}`);
    if (crc(bytes, at + 4, end - 4) !== view.getUint32(end - 4)) throw broken(`the checksum of ${type} is wrong`);
    yield { type, body: bytes.subarray(at + 8, end - 4) };
    if (type === "IEND") return;
    at = end;
  }
}

function parsed(body: Uint8Array): Header {
  if (body.length < 13) throw broken("IHDR is too short");
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const [width, height] = [view.getUint32(0), view.getUint32(4)];
  const [bits, kind, compression, filter, interlace] = body.subarray(8) as unknown as [number, number, number, number, number];
  checkSize(width, height);
  if (!DEPTHS[kind]?.includes(bits)) throw broken(`colour type ${kind} with ${bits} bits is none of the standard's`);
  if (compression || filter) throw broken(`compression ${compression}, filter ${filter} are none of the standard's`);
  return { width, height, bits, kind, interlaced: interlace !== 0 };
}

const DEPTHS: Record<number, number[]> = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };

/** As Pillow finds it: eXIf, the text in which ImageMagick keeps EXIF, XMP. */
async function orientation({ exif, texts }: File): Promise<Orientation> {
  let profile: Uint8Array | null = null;
  let xmp: Uint8Array | null = null;
  for (const [type, body] of texts) {
    const end = body.indexOf(0);
    const name = new TextDecoder("latin1").decode(body.subarray(0, Math.max(end, 0)));
    if (name === PROFILE && type === "tEXt") profile = body.subarray(end + 1);
    if (name === PROFILE && type === "zTXt") profile = await inflateSmall(body.subarray(end + 2), MOST_TEXT);
    if (name === XMP && type === "iTXt") xmp = await international(body, end);
  }
  const block = exif ?? (profile && fromHex(profile));
  return (block && orientationOfExif(block)) || (xmp && orientationOfXmp(xmp)) || 1;
}

const PROFILE = "Raw profile type exif";
const XMP = "XML:com.adobe.xmp";

async function international(body: Uint8Array, end: number): Promise<Uint8Array | null> {
  const compressed = body[end + 1] !== 0;
  const language = body.indexOf(0, end + 3);
  const keyword = language < 0 ? -1 : body.indexOf(0, language + 1);
  if (keyword < 0) return null;
  const packet = body.subarray(keyword + 1);
  return compressed ? inflateSmall(packet, MOST_TEXT) : packet;
}

/** A blank line, the profile's name, its length, then lines of hexadecimal digits. */
function fromHex(profile: Uint8Array): Uint8Array {
  const digits = new TextDecoder("latin1").decode(profile).split("\n").slice(3).join("");
  return Uint8Array.from(digits.match(/[0-9A-Fa-f]{2}/g) ?? [], (pair) => parseInt(pair, 16));
}

function crc(bytes: Uint8Array, from: number, to: number): number {
  let value = 0xffffffff;
  for (let at = from; at < to; at += 1) value = CRC[(value ^ bytes[at]!) & 255]! ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function broken(why: string): TapeoutError {
  return new TapeoutError("image", `this is no PNG file that can be read: ${why}`);
}
