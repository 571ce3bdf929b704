import { TapeoutError } from "../errors";

/** The first `size` bytes of a zlib stream, by the platform. No more is unpacked, whatever the stream holds. Throws TapeoutError
 * "image" where there are fewer, or where it is no zlib stream. */
export async function inflate(parts: Uint8Array[], size: number): Promise<Uint8Array> {
  const packed = parts.reduce((sum, part) => sum + part.length, 0);
  // A header that promises more than deflate can ever unpack gets no memory.
  const { result, length } = size > packed * MOST_RATIO ? { result: parts[0]!, length: 0 } : await unpacked(parts, size);
  if (length < size) throw new TapeoutError("image", `the PNG file's data is broken or ends too early: ${length} of ${size} bytes`);
  return result;
}

const MOST_RATIO = 1032;

/** All of a small zlib stream, up to `limit` bytes; null where it is none, or longer. */
export async function inflateSmall(part: Uint8Array, limit: number): Promise<Uint8Array | null> {
  const { result, length, whole } = await unpacked([part], limit + 1);
  return whole && length <= limit ? result.subarray(0, length) : null;
}

async function unpacked(parts: Uint8Array[], size: number): Promise<{ result: Uint8Array; length: number; whole: boolean }> {
  const stream = new Blob(parts as Uint8Array<ArrayBuffer>[]).stream().pipeThrough(new DecompressionStream("deflate"));
  const reader = stream.getReader();
  const result = new Uint8Array(size);
  let length = 0;
  try {
    while (length < size) {
      const { done, value } = await reader.read();
      if (done) return { result, length, whole: true };
      const taken = value.subarray(0, size - length);
      result.set(taken, length);
      length += taken.length;
    }
  } catch {
    return { result, length, whole: false };
  }
  await reader.cancel().catch(() => undefined); // what follows is of no interest, its errors neither
  return { result, length, whole: false };
}
