/** What the vectors do not say of images: limits, broken files, turning, and the time it takes. */
import assert from "node:assert/strict";
import { deflateSync } from "node:zlib";
import { test } from "node:test";
import { TapeoutError } from "../src/errors";
import { decodeImage } from "../src/image/decode";
import { upright, withoutOrientation } from "../src/image/exif";
import { type ImageSettings, type Pixels, prepare, square } from "../src/image/prepare";

const SETTINGS: ImageSettings = { image_size: 384, aspect: "crop", resample: "bicubic", mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] };

function crc(bytes: Uint8Array): number {
  let value = ~0;
  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit += 1) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  }
  return ~value >>> 0;
}

function chunk(type: string, body: Uint8Array): Buffer {
  const named = Buffer.concat([Buffer.from(type), body]);
  const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(body.length);
  sum.writeUInt32BE(crc(named));
  return Buffer.concat([length, named, sum]);
}

/** A PNG file, RGB unless said. */
function png(width: number, height: number, raw: Uint8Array, bits = 8, kind = 2): Uint8Array {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([bits, kind], 8);
  const signature = Buffer.from("\x89PNG\r\n\x1a\n", "latin1");
  return new Uint8Array(Buffer.concat([signature, chunk("IHDR", header), chunk("IDAT", deflateSync(raw)), chunk("IEND", Buffer.alloc(0))]));
}

const refused = (source: Parameters<typeof decodeImage>[0]): Promise<void> =>
  assert.rejects(decodeImage(source), (error) => error instanceof TapeoutError && error.code === "image");

test("a PNG file is read whole or not at all", async () => {
  const good = png(2, 1, Uint8Array.of(0, 1, 2, 3, 4, 5, 6));
  assert.deepEqual(await decodeImage(good), { width: 2, height: 1, data: Uint8Array.of(1, 2, 3, 4, 5, 6) });
  assert.deepEqual((await decodeImage(new Blob([good as Uint8Array<ArrayBuffer>]))).data.length, 6);
  for (let length = 0; length < good.length - 12; length += 1) await refused(good.slice(0, length));
  for (let place = 0; place < good.length; place += 1) await refused(good.map((byte, at) => (at === place ? byte ^ 0x10 : byte)));
});

test("sizes that are none, too large, or not borne out by the data are refused", async () => {
  await refused(png(0, 1, Uint8Array.of(0)));
  await refused(png(20_000, 20_000, Uint8Array.of(0)));
  await refused(png(10_000, 10_000, Uint8Array.of(0)));
  await refused(png(1, 1, Uint8Array.of(5, 1, 2, 3)));
  await refused(png(1, 1, Uint8Array.of(0, 1, 2, 3), 4));
  await refused(png(1, 1, Uint8Array.of(0, 1), 8, 3));
  await refused({ width: 0, height: 0, data: new Uint8Array(0) });
  await refused({ width: 2, height: 2, data: new Uint8Array(15) });
});

test("ImageData is laid over white", async () => {
  const data = Uint8ClampedArray.of(10, 20, 30, 255, 10, 20, 30, 0, 0, 255, 100, 128);
  assert.deepEqual([...(await decodeImage({ width: 3, height: 1, data })).data], [10, 20, 30, 255, 255, 255, 127, 255, 177]);
});

test("an image is turned as each of EXIF's eight orientations says", () => {
  const grey = (rows: number[][]): Pixels => ({ width: rows[0]!.length, height: rows.length, data: Uint8Array.from(rows.flat().flatMap((value) => [value, value, value])) });
  const expected: Record<number, number[][]> = {
    0: [[1, 2, 3], [4, 5, 6]],
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
    9: [[1, 2, 3], [4, 5, 6]],
  };
  for (const [orientation, rows] of Object.entries(expected)) assert.deepEqual(upright(grey(expected[1]!), Number(orientation)), grey(rows), orientation);
});

test("a JPEG's orientation is found, and taken out of what the browser gets", () => {
  const exif = [0x45, 0x78, 0x69, 0x66, 0, 0, 0x4d, 0x4d, 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0];
  const file = Uint8Array.from([0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xe1, 0, exif.length + 2, ...exif, 0xff, 0xda, 0, 2]);
  const { orientation, bytes } = withoutOrientation(file);
  assert.deepEqual([orientation, withoutOrientation(bytes).orientation, bytes.length], [6, 1, file.length]);
  for (let length = 0; length < file.length; length += 1) assert.ok(withoutOrientation(file.slice(0, length)).orientation >= 1);
});

test("a photo of 12 megapixels is prepared in under a second", () => {
  const photo = { width: 4000, height: 3000, data: new Uint8Array(36_000_000).fill(200) };
  const from = performance.now();
  assert.ok(prepare(photo, SETTINGS).every((value) => value === Math.fround(Math.fround(Math.fround(200 / 255) - 0.5) / 0.5)));
  assert.ok(performance.now() - from < 1000);
});

test("a strip is cut or padded without the memory of what would lie around it", () => {
  const strip = { width: 1, height: 4_000_000, data: new Uint8Array(12_000_000).fill(255) };
  assert.ok(square(strip, SETTINGS).data.every((value) => value === 255));
  const padded = square(strip, { ...SETTINGS, aspect: "pad", image_size: 32 });
  assert.deepEqual([...padded.data.subarray(0, 3)], [127, 127, 127]);
});

test("settings that are unknown are refused", () => {
  const pixels = { width: 1, height: 1, data: new Uint8Array(3) };
  for (const wrong of [{ aspect: "zoom" }, { resample: "nearest" }])
    assert.throws(() => prepare(pixels, { ...SETTINGS, ...wrong } as never), (error) => error instanceof TapeoutError && error.code === "unsupported");
});
