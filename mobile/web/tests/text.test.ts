/** What the vectors do not say of texts: other kinds of tokenizers, limits, refusals. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { TapeoutError } from "../src/errors";
import type { Preprocessing } from "../src/manifest";
import { Prompt, TextStream } from "../src/text/prompt";
import { translated } from "../src/text/regex";
import { Tokenizer } from "../src/text/tokenizer";
import { strip } from "../src/text/unicode";

type Json = Record<string, unknown>;
const added = (content: string, rest: Json = {}): Json => ({ content, special: false, normalized: false, lstrip: false, rstrip: false, single_word: false, ...rest });

/** A tokenizer of the tokens given, by default with no more than their merges. */
function tokenizer(tokens: string[], merges: unknown[], rest: Json = {}, model: Json = {}): Tokenizer {
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  return Tokenizer.parse({ added_tokens: [], normalizer: null, pre_tokenizer: null, decoder: { type: "Fuse" }, ...rest, model: { type: "BPE", vocab, merges, ...model } });
}

function refused(work: () => unknown, named: RegExp): void {
  assert.throws(work, (error) => error instanceof TapeoutError && error.code === "unsupported" && named.test(error.message));
}

test("the earliest merge goes first, and of equal ones the leftmost; both spellings of a merge count", () => {
  const tokens = ["a", "b", "aa", "ab", "aab"];
  for (const merges of [[["a", "a"], ["a", "b"], ["aa", "b"]], ["a a", "a b", "aa b"]]) {
    const made = tokenizer(tokens, merges);
    assert.deepEqual(made.encode("aab"), [4]);
    assert.deepEqual(made.encode("aaab"), [2, 3]);
  }
});

test("a text of 100,000 characters without a blank takes no second", () => {
  const made = tokenizer(["a", "aa", "aaaa"], ["a a", "aa aa"]);
  const from = performance.now();
  assert.equal(made.encode("a".repeat(100_000)).length, 25_000);
  assert.ok(performance.now() - from < 1000);
});

test("bytes and the unknown token stand for characters without a token", () => {
  const bytes = ["<0xC3>", "<0xA9>"];
  const made = tokenizer(["<unk>", "x", ...bytes], [], { decoder: { type: "Sequence", decoders: [{ type: "ByteFallback" }, { type: "Fuse" }] } }, { byte_fallback: true, unk_token: "<unk>", fuse_unk: true });
  assert.deepEqual(made.encode("xé日本x"), [1, 2, 3, 0, 1]);
  assert.equal(made.decode([1, 2, 3]), "xé");
  assert.equal(made.decode([2, 1]), "\ufffdx");
  const stream = new TextStream(made);
  assert.deepEqual([1, 2, 3, 1].map((id) => stream.push(id)), ["x", "", "", "éx"]);
  assert.equal(stream.end(), "");
});

test("added tokens take blanks beside them, or want to stand alone, as they say", () => {
  const tokens = ["x", " ", "t", "<s>", "to"];
  const made = tokenizer(tokens, [], { added_tokens: [added("<s>", { special: true, lstrip: true, rstrip: true }), added("to", { single_word: true })] });
  assert.deepEqual(made.encode("x  <s> x"), [0, 3, 0]);
  assert.deepEqual(made.encode("to x"), [4, 1, 0]);
  assert.deepEqual(made.encode("tot"), [2, 2]);
  assert.equal(made.decode([0, 3, 4]), "xto");
  assert.equal(made.decode([0, 3, 4], false), "x<s>to");
});

test("what is not supported is refused by its name", () => {
  refused(() => tokenizer([], [], {}, { type: "Unigram", vocab: [] }), /Unigram/);
  refused(() => tokenizer([], [], { normalizer: { type: "Precompiled" } }), /Precompiled/);
  refused(() => tokenizer([], [], { pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "UnicodeScripts" }] } }), /UnicodeScripts/);
  refused(() => tokenizer([], [], { decoder: { type: "CTC" } }), /CTC/);
  refused(() => tokenizer([], [], { truncation: { max_length: 5 } }), /truncation/);
  refused(() => tokenizer(["a"], [["a", "b"]]), /merge/);
  refused(() => Tokenizer.parse(null), /the file/);
  for (const pattern of ["[a[b]]", "\\K", "(a", "a)", "(?~a)", "\\p{Klingon}", "(?i:\\p{Lu})", "[a&&b]", "\\1"]) refused(() => translated(pattern), /./);
});

test("Oniguruma's expressions mean here what they mean there", () => {
  const found = (pattern: string, text: string): string[] => text.match(translated(pattern)) ?? [];
  assert.deepEqual(found("(?i:'s|'LL)", "'S 'ſ 'll x's"), ["'S", "'ſ", "'ll", "'s"]);
  assert.deepEqual(found("a?+ab", "aab ab"), ["aab"]);
  assert.deepEqual(found("(?>a|ab)c", "abc ac"), ["ac"]);
  assert.deepEqual(found("\\s", "\u0085\ufeff"), ["\u0085"]);
  assert.deepEqual(found("^.$", "a\nb"), ["a", "b"]);
  assert.deepEqual(found("\\h+\\z", "xyzff"), ["ff"]);
  assert.deepEqual(found("[^\\S\\n]{,2}x", "  \n x"), [" x"]);
});

test("blanks are Python's", () => {
  assert.equal(strip("\x1c\u0085 \u2029a \ufeff\x1f"), "a \ufeff");
  assert.equal(strip(" \n"), "");
});

test("a prompt wants a template with a question and an end that the tokenizer knows", () => {
  const made = tokenizer(["?", "a", "I", "E"], []);
  const settings: Preprocessing = { image_size: 1, aspect: "stretch", mean: [0, 0, 0], std: [1, 1, 1], prompt_template: "{image}{question}", end_token: "E", max_new_tokens: 3 };
  const prompt = Prompt.of(made, settings, 2, 3);
  assert.deepEqual([prompt.encode("a?"), prompt.endId, prompt.maxNewTokens], [[2, 2, 2, 1, 0], 3, 3]);
  assert.throws(() => prompt.encode("aI"), (error) => error instanceof TapeoutError && error.code === "prompt");
  assert.deepEqual(Prompt.of(made, settings, null, 0).encode("aI"), [1, 2]);
  for (const wrong of [{ prompt_template: "{image}" }, { prompt_template: "{question}{question}" }, { prompt_template: "{image}{image}{question}" }, { end_token: "F" }])
    assert.throws(() => Prompt.of(made, { ...settings, ...wrong }, 2, 3), (error) => error instanceof TapeoutError && error.code === "manifest");
});
