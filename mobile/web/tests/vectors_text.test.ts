/** Texts, streams and prompts of the vectors. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { TapeoutError } from "../src/errors";
import type { Manifest } from "../src/manifest";
import { Prompt, TextStream } from "../src/text/prompt";
import { Tokenizer } from "../src/text/tokenizer";

interface Vectors {
  tokenizers: { file: string; texts: { text: string; ids: number[]; decoded: string }[] }[];
  streams: { file: string; ids: number[]; text: string }[];
  prompts: { question: string; ids?: number[]; error?: string }[];
}

const VECTORS = process.env["TAPEOUT_VECTORS"] ?? fileURLToPath(new URL("../../../spec/vectors/", import.meta.url));
const read = (file: string): unknown => JSON.parse(readFileSync(`${VECTORS}/${file}`, "utf8"));
const { tokenizers, streams, prompts } = read("vectors.json") as Vectors;

test("texts become the ids of the vectors, and texts again", () => {
  assert.ok(tokenizers.length >= 2);
  for (const { file, texts } of tokenizers) {
    const tokenizer = Tokenizer.parse(read(file));
    assert.ok(texts.length >= 100);
    for (const { text, ids, decoded } of texts) {
      assert.deepEqual(tokenizer.encode(text), ids, `${file}: ${JSON.stringify(text)}`);
      assert.equal(tokenizer.decode(ids), decoded);
    }
  }
});

test("streams come to the text of the vectors, and never take a piece back", () => {
  assert.ok(streams.length >= 50);
  for (const { file, ids, text } of streams) {
    const stream = new TextStream(Tokenizer.parse(read(file)));
    assert.equal(ids.map((id) => stream.push(id)).join("") + stream.end(), text, `${file}: ${ids.join()}`);
  }
});

test("questions become the prompts of the vectors", () => {
  const { model, preprocessing } = read("bundle/manifest.json") as Manifest;
  const prompt = Prompt.of(Tokenizer.parse(read("bundle/tokenizer.json")), preprocessing!, model.image_token_id ?? null, model.image_tokens ?? 0);
  assert.ok(prompts.length >= 40);
  for (const { question, ids, error } of prompts)
    if (error === undefined) assert.deepEqual(prompt.encode(question), ids, question);
    else assert.throws(() => prompt.encode(question), (thrown) => thrown instanceof TapeoutError && thrown.code === error, question);
});
