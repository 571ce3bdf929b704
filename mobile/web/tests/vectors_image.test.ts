/** Images of the vectors in Node, to the bit. What only a browser decodes starts from the pixels that the vectors hold beside it;
 * tests/mobile/test_image.py decodes it in Chromium. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { TapeoutError } from "../src/errors";
import { decodeImage } from "../src/image/decode";
import { isPng } from "../src/image/png";
import { type ImageSettings, prepare } from "../src/image/prepare";

interface Sample {
  file: string;
  note: string;
  settings: ImageSettings;
  pixels: { width: number; height: number; sha256: string; file?: string };
  tensor: { shape: number[]; sha256: string };
  error?: string;
}

const VECTORS = process.env["TAPEOUT_VECTORS"] ?? fileURLToPath(new URL("../../../spec/vectors/", import.meta.url));
const { images } = JSON.parse(readFileSync(`${VECTORS}/vectors.json`, "utf8")) as { images: Sample[] };
const bytes = (file: string): Uint8Array => new Uint8Array(readFileSync(`${VECTORS}/${file}`));
const sha256 = (data: Uint8Array): string => createHash("sha256").update(data).digest("hex");

test("an image's pixels and its tensor are those of the vectors", async () => {
  const good = images.filter((image) => image.error === undefined);
  assert.ok(good.length >= 100);
  let browsers = 0;
  for (const { file, note, settings, pixels, tensor } of good) {
    const own = isPng(bytes(file));
    if (!own) {
      browsers += 1;
      await assert.rejects(decodeImage(bytes(file)), (error) => error instanceof TapeoutError && error.code === "image");
      if (!pixels.file) continue;
    }
    const decoded = await decodeImage(bytes(own ? file : pixels.file!));
    const found = { width: decoded.width, height: decoded.height, sha256: sha256(decoded.data) };
    assert.deepEqual(found, { width: pixels.width, height: pixels.height, sha256: pixels.sha256 }, `${file}, ${note}`);
    const prepared = prepare(decoded, settings);
    assert.equal(prepared.length, tensor.shape.reduce((product, size) => product * size, 1));
    assert.equal(sha256(new Uint8Array(prepared.buffer)), tensor.sha256, `${file}, ${note}, ${JSON.stringify(settings)}`);
  }
  assert.ok(browsers < good.length / 2);
});

test("what is no image is refused", async () => {
  const bad = images.filter((image) => image.error !== undefined);
  assert.ok(bad.length >= 5);
  for (const { file, note, error } of bad)
    await assert.rejects(decodeImage(bytes(file)), (thrown) => thrown instanceof TapeoutError && thrown.code === error, `${file}, ${note}`);
});
