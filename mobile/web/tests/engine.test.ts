/** The engine in Node, on the bundle of the vectors: the same answers as Python's runtime, stopped, limited, out of memory's way. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { Engine } from "../src/engine/engine";
import { usableBackends } from "../src/engine/runtime";
import { TapeoutError } from "../src/errors";
import { decodeImage, type Pixels } from "../src/image/decode";
import type { Files, Manifest } from "../src/manifest";

interface Expected {
  image: string;
  question: string;
  ids: number[];
  text: string;
  stop: string;
}

const VECTORS = process.env["TAPEOUT_VECTORS"] ?? fileURLToPath(new URL("../../../spec/vectors/", import.meta.url));
const vectors = JSON.parse(readFileSync(`${VECTORS}/vectors.json`, "utf8")) as {
  answers: Expected[];
  limits: (Expected & { max_tokens: number })[];
  refused: { image: string; question: string; error: string }[];
};
const manifest = JSON.parse(readFileSync(`${VECTORS}/bundle/manifest.json`, "utf8")) as Manifest;
const files: Files = { read: async (path) => new Uint8Array(await readFile(`${VECTORS}/bundle/${path}`)) };

const picture = (file: string): Promise<Pixels> => readFile(`${VECTORS}/${file}`).then((bytes) => decodeImage(new Uint8Array(bytes)));
const asked = vectors.answers[0]!;
let engine: Engine;

before(async () => {
  engine = await Engine.open(manifest, files);
});
after(() => engine.close());

test("answers are those of the vectors, token for token, and their pieces make the text", async () => {
  assert.ok(vectors.answers.length >= 50);
  for (const { image, question, ids, text, stop } of vectors.answers) {
    const pieces: string[] = [];
    const result = await engine.ask(await picture(image), question, { onPiece: (piece) => pieces.push(piece) });
    const { ids: given, text: said, stop: why } = result;
    assert.deepEqual({ question, ids: given, text: said, stop: why }, { question, ids, text, stop });
    assert.equal(pieces.join(""), text);
    assert.ok(pieces.every((piece) => piece !== ""));
  }
});

test("with little memory the answers are the same, and the encoder is opened for each image", async () => {
  const read: string[] = [];
  const counting: Files = { read: (path) => (read.push(path), files.read(path)) };
  const small = await Engine.open(manifest, counting, { memory: "low" });
  const encoder = manifest.model.files["encoder"]!;
  const opened = (): number => read.filter((path) => path === encoder).length;
  assert.equal(opened(), 0);
  for (const { image, question, text } of vectors.answers.slice(0, 3)) {
    const before = opened();
    assert.equal((await small.ask(await picture(image), question)).text, text);
    assert.equal(opened(), before + 1);
  }
  await small.close();
});

test("an image seen once answers many questions, and says that it cost nothing", async () => {
  const visual = await engine.see(await picture(asked.image));
  const { text, metrics } = await engine.ask(visual, asked.question);
  assert.equal(text, asked.text);
  assert.deepEqual([metrics.prepare_ms, metrics.encode_ms], [0, 0]);
  assert.ok(visual.encode_ms > 0 && metrics.prefill_ms > 0 && metrics.first_token_ms >= metrics.prefill_ms);
  assert.equal(metrics.tokens, asked.ids.length);
  assert.ok(metrics.peak_memory_bytes > 1e6);
});

test("an answer ends at maxTokens, and where the context is full", async () => {
  const pixels = await picture(asked.image);
  assert.ok(vectors.limits.length);
  for (const { image, question, max_tokens: maxTokens, ids, text, stop } of vectors.limits) {
    const result = await engine.ask(await picture(image), question, { maxTokens });
    assert.deepEqual([result.ids, result.text, result.stop], [ids, text, stop]);
  }
  for (const maxTokens of [0, -1, 1.5, NaN]) await assert.rejects(engine.ask(pixels, asked.question, { maxTokens }), isError("prompt"));
  const unending = { ...manifest, preprocessing: { ...manifest.preprocessing!, end_token: "<image>" } }; // never chosen
  const other = await Engine.open(unending, files);
  const long = await other.ask(pixels, asked.question, { maxTokens: 10_000 });
  assert.equal(long.stop, "context");
  assert.deepEqual(long.ids.slice(0, asked.ids.length), asked.ids);
  const prompt = manifest.model.context - long.ids.length + 1; // the last token is chosen, and not given back
  assert.ok(prompt > manifest.model.image_tokens!);
  await other.close();
});

test("a signal stops an answer before its image, and between two tokens", async () => {
  const pixels = await picture(asked.image);
  await assert.rejects(engine.ask(pixels, asked.question, { signal: { aborted: true } }), isError("aborted"));
  const signal = { aborted: false };
  let pieces = 0;
  const answer = engine.ask(pixels, asked.question, { signal, onPiece: () => ((signal.aborted = true), pieces++) });
  await assert.rejects(answer, isError("aborted"));
  assert.equal(pieces, 1);
  assert.equal((await engine.ask(pixels, asked.question)).text, asked.text);
});

test("what cannot be asked is refused with a code", async () => {
  const pixels = await picture(asked.image);
  await assert.rejects(engine.ask(null, asked.question), isError("image"));
  await assert.rejects(engine.ask(pixels, "<image>"), isError("prompt"));
  await assert.rejects(engine.ask(pixels, "why? ".repeat(400)), isError("prompt"));
  assert.ok(vectors.refused.length);
  for (const { image, question, error } of vectors.refused)
    await assert.rejects(engine.ask(await picture(image), question), isError(error));
});

test("the self-test passes, and does not with another answer", async () => {
  await engine.selfTest(manifest, files);
  const [first, ...others] = manifest.self_test;
  const changed = { ...manifest, self_test: [{ ...first!, answer: "no such answer" }, ...others] };
  await assert.rejects(engine.selfTest(changed, files), (error) => isError("self_test")(error) && /no such answer/.test(String(error)));
});

test("a bundle for other machines, and a file that is no model, are refused", async () => {
  const without = (providers: string[]): Manifest => ({ ...manifest, device: { ...manifest.device, execution_providers: providers } });
  await assert.rejects(usableBackends({ ...manifest, runtime: "coreml" }), isError("unsupported"));
  await assert.rejects(usableBackends(without(["qnn"])), isError("unsupported"));
  await assert.rejects(usableBackends(without(["webgpu"])), isError("unsupported")); // Node has none
  await assert.rejects(usableBackends(manifest, "webgpu"), isError("unsupported"));
  assert.deepEqual(await usableBackends(without(["webgpu", "wasm"])), ["wasm"]);
  const noise: Files = { read: async (path) => (path.endsWith(".onnx") ? new Uint8Array(100) : files.read(path)) };
  await assert.rejects(Engine.open(manifest, noise), isError("runtime"));
});

test("a bundle that does not say what is needed to run it is told apart from one that fails", async () => {
  const none: Files = { read: () => assert.fail("nothing is read before") };
  const parts = {
    model: ["context", "hidden", "layers", "kv_heads", "head_dim", "functions", "image_tokens", "image_token_id"],
    preprocessing: ["prompt_template", "end_token", "max_new_tokens", "image_size", "mean", "std"],
  };
  for (const [part, names] of Object.entries(parts))
    for (const name of names)
      for (const value of [undefined, "0.5", -1, [0, 0, 0]]) {
        if (name === "mean" && Array.isArray(value)) continue;
        if (["prompt_template", "end_token"].includes(name) && value === "0.5") continue;
        if (name === "functions" && Array.isArray(value)) continue;
        const other = { ...manifest, [part]: { ...manifest[part as "model"], [name]: value } };
        await assert.rejects(Engine.open(other as Manifest, none), (error) => isError("manifest")(error) && String(error).includes(`${part}.${name}`));
      }
});

test("a prompt that is too long, or none, is refused before anything is made of it", async () => {
  const long = "what ".repeat(1 << 20);
  const began = process.memoryUsage().arrayBuffers;
  await assert.rejects(engine.ask(await picture(asked.image), long), isError("prompt"));
  assert.ok(process.memoryUsage().arrayBuffers - began < 100 << 20);
  assert.throws(() => engine.read(undefined as unknown as string), isError("prompt"));
  assert.deepEqual((await engine.ask(await picture(asked.image), engine.read(asked.question))).text, asked.text);
});

test("what an opening took is given back where the encoder cannot be opened", async () => {
  const pixels = await picture(asked.image);
  const held = async (): Promise<number> => (await engine.ask(pixels, asked.question)).metrics.peak_memory_bytes;
  const encoder = manifest.model.files["encoder"]!;
  const broken: Files = { read: async (path) => (path === encoder ? new Uint8Array(100) : files.read(path)) };
  const fail = async (times: number): Promise<void> => {
    for (let turn = 0; turn < times; turn++) await assert.rejects(Engine.open(manifest, broken), isError("runtime"));
  };
  await fail(5);
  const before = await held();
  await fail(40);
  assert.equal(await held(), before);
});

test("a hundred answers leave the memory as it was after ten", async () => {
  const pixels = await picture(asked.image);
  let ten = 0;
  for (let turn = 0; turn < 100; turn++) {
    const { metrics } = await engine.ask(pixels, asked.question);
    if (turn === 9) ten = metrics.peak_memory_bytes;
    assert.ok(turn < 10 || metrics.peak_memory_bytes <= 1.02 * ten);
  }
});

function isError(code: string): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof TapeoutError, String(error));
    assert.equal(error.code, code, error.message);
    return true;
  };
}
